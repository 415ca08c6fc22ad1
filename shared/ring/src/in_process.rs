//! The link inside one process: two rings on the heap.

use alloc::sync::Arc;

use crate::cursor::{CONTROL_LINES, Consumer, Faults, MAX_CAPACITY, Producer};
use crate::{Completion, Full, HostLink, Line, NicLink, Submission};

type Memory = Arc<[Line]>;

/// A link whose rings hold `capacity` descriptors each, rounded up to a power of two. Allocates now and never again.
#[must_use]
pub fn in_process(capacity: usize) -> (InProcessNic, InProcessHost) {
    let (submit, submitted) = ring(capacity);
    let (complete, completed) = ring(capacity);
    (
        InProcessNic { submissions: submit, completions: completed, malformed: 0 },
        InProcessHost { submissions: submitted, completions: complete, malformed: 0 },
    )
}

/// The engine's end.
#[derive(Debug)]
pub struct InProcessNic {
    submissions: Producer<Memory>,
    completions: Consumer<Memory>,
    malformed: u64,
}

impl NicLink for InProcessNic {
    fn submit(&mut self, submission: &Submission) -> Result<(), Full> {
        self.submissions.push(&submission.to_words())
    }

    fn completion(&mut self) -> Option<Completion> {
        next(&mut self.completions, &mut self.malformed, |words| Completion::from_words(words).ok())
    }

    // Anything but zeros is a fault of this program.
    fn faults(&self) -> Faults {
        let malformed = Faults { malformed: self.malformed, ..Faults::default() };
        self.submissions.faults().plus(self.completions.faults()).plus(malformed)
    }
}

/// The orchestrator's end.
#[derive(Debug)]
pub struct InProcessHost {
    submissions: Consumer<Memory>,
    completions: Producer<Memory>,
    malformed: u64,
}

impl HostLink for InProcessHost {
    fn submission(&mut self) -> Option<Submission> {
        next(&mut self.submissions, &mut self.malformed, |words| Submission::from_words(words).ok())
    }

    fn complete(&mut self, completion: &Completion) -> Result<(), Full> {
        self.completions.push(&completion.to_words())
    }

    // Anything but zeros is a fault of this program.
    fn faults(&self) -> Faults {
        let malformed = Faults { malformed: self.malformed, ..Faults::default() };
        self.submissions.faults().plus(self.completions.faults()).plus(malformed)
    }
}

fn ring(capacity: usize) -> (Producer<Memory>, Consumer<Memory>) {
    let entries = capacity.clamp(2, MAX_CAPACITY).next_power_of_two();
    let memory: Memory = (0..CONTROL_LINES + entries).map(|_| Line::new()).collect();
    let producer = Producer::new(Arc::clone(&memory)).expect("the size is the ring's own");
    (producer, Consumer::new(memory).expect("the size is the ring's own"))
}

/// The next entry that describes something. Looks at no more than a ringful, so that a peer cannot hold the caller.
fn next<T>(
    ring: &mut Consumer<Memory>,
    malformed: &mut u64,
    parse: impl Fn(&[u64; crate::DESCRIPTOR_WORDS]) -> Option<T>,
) -> Option<T> {
    for _ in 0..ring.capacity() {
        match parse(&ring.pop()?) {
            Some(parsed) => return Some(parsed),
            None => *malformed += 1,
        }
    }
    None
}
