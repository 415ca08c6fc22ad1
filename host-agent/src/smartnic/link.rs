//! The orchestrator's end of the link to a card.

use splitrpc_doca::{Lines, Producer};
use splitrpc_ring::{Completion, Consumer, Faults, Full, HostLink, Immediate, Submission, Tells};

/// The link, while there is a card.
#[derive(Debug, Default)]
pub struct CardLink {
    ends: Option<Ends>,
    /// What the ends of cards that are gone have seen amiss.
    before: Faults,
    /// Why the card is lost: what the link found out.
    broken: Option<String>,
}

#[derive(Debug)]
struct Ends {
    submissions: Consumer<Lines>,
    malformed: u64,
    producer: Producer,
}

impl CardLink {
    /// A card writes into this ring, and reads what this sends.
    pub(super) fn join(&mut self, submissions: Consumer<Lines>, producer: Producer) {
        self.ends = Some(Ends { submissions, malformed: 0, producer });
        self.broken = None;
    }

    /// The card is gone: what is still to be told it is told nobody.
    pub(super) fn part(&mut self) {
        self.before = self.faults();
        self.ends = None;
    }

    /// Why nothing more can be told the card, if that is so.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Whether something is on its way to the card that only polling brings there.
    pub(super) fn is_busy(&self) -> bool {
        self.ends.as_ref().is_some_and(|ends| ends.producer.in_flight() > 0)
    }

    /// Tells the card that the orchestrator is awake, or goes to sleep. Returns whether it could be told.
    pub(super) fn tell(&mut self, tells: Tells) -> bool {
        let Some(Ends { submissions, producer, .. }) = &mut self.ends else { return false };
        send(submissions, producer, tells, &mut self.broken).is_ok()
    }
}

impl HostLink for CardLink {
    fn submission(&mut self) -> Option<Submission> {
        let Ends { submissions, malformed, .. } = self.ends.as_mut()?;
        // No more than a ringful, so that the card cannot hold the caller.
        for _ in 0..submissions.capacity() {
            match Submission::from_words(&submissions.pop()?) {
                Ok(submission) => return Some(submission),
                Err(_) => *malformed += 1,
            }
        }
        None
    }

    fn complete(&mut self, completion: &Completion) -> Result<(), Full> {
        match &mut self.ends {
            Some(Ends { submissions, producer, .. }) => {
                send(submissions, producer, Tells::Completion(*completion), &mut self.broken)
            }
            None => Ok(()),
        }
    }

    fn faults(&self) -> Faults {
        let now = self.ends.as_ref().map_or(Faults::default(), |ends| {
            ends.submissions.faults().plus(Faults { malformed: ends.malformed, ..Faults::default() })
        });
        self.before.plus(now)
    }
}

fn send(
    submissions: &Consumer<Lines>,
    producer: &mut Producer,
    tells: Tells,
    broken: &mut Option<String>,
) -> Result<(), Full> {
    let immediate = Immediate { taken: submissions.taken() as u32, tells };
    match producer.send(&immediate.to_bytes()) {
        Ok(()) => Ok(()),
        Err(error) if error.is_again() => Err(Full),
        Err(error) => {
            broken.get_or_insert_with(|| format!("DOCA: {error}"));
            Err(Full)
        }
    }
}
