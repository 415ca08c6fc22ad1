//! The two ends of a ring and of the in-process link, case by case.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use splitrpc_ring::{
    BadSize, CONTROL_LINES, Completion, Consumer, DESCRIPTOR_WORDS, Full, HostLink, Line, NicLink, Producer,
    RequestKey, Run, Submission, in_process, seal,
};
use splitrpc_wire::Status;

type Memory = Arc<[Line]>;

fn ring(entries: usize) -> (Memory, Producer<Memory>, Consumer<Memory>) {
    let memory: Memory = (0..CONTROL_LINES + entries).map(|_| Line::new()).collect();
    (Arc::clone(&memory), Producer::new(Arc::clone(&memory)).unwrap(), Consumer::new(memory).unwrap())
}

fn entry(n: u64) -> [u64; DESCRIPTOR_WORDS] {
    [n, n + 1, n + 2, n + 3, n + 4, n + 5]
}

fn write(memory: &Memory, entry: usize, words: [u64; 8]) {
    for (to, value) in memory[CONTROL_LINES + entry].words().iter().zip(words) {
        to.store(value, Ordering::Relaxed);
    }
}

#[test]
fn a_full_ring_refuses_and_recovers() {
    let (_, mut producer, mut consumer) = ring(4);
    for n in 0..4 {
        assert_eq!(producer.push(&entry(n)), Ok(()));
    }
    assert_eq!(producer.push(&entry(4)), Err(Full));
    for n in 0..4 {
        assert_eq!(consumer.pop(), Some(entry(n)));
    }
    assert_eq!(producer.push(&entry(4)), Ok(()));
    assert_eq!(consumer.pop(), Some(entry(4)));
    assert_eq!(consumer.pop(), None);
}

#[test]
fn memory_of_a_wrong_size_is_refused() {
    for lines in [0, CONTROL_LINES, CONTROL_LINES + 3, CONTROL_LINES + 7] {
        let memory: Memory = (0..lines).map(|_| Line::new()).collect();
        assert_eq!(Producer::new(Arc::clone(&memory)).err(), Some(BadSize), "{lines} lines");
        assert_eq!(Consumer::new(memory).err(), Some(BadSize), "{lines} lines");
    }
}

#[test]
fn a_ring_lies_in_any_memory_of_lines() {
    let lines = [(); CONTROL_LINES + 2].map(|()| Line::new());
    // SAFETY: the array outlives both ends, which reach it only through its atomics.
    let shared = unsafe { Line::slice_from_raw(std::ptr::NonNull::from(&lines[..]).cast(), lines.len()) };
    let mut producer = Producer::new(shared).unwrap();
    let mut consumer = Consumer::new(&lines[..]).unwrap();
    assert_eq!(producer.push(&entry(8)), Ok(()));
    assert_eq!(consumer.pop(), Some(entry(8)));
}

#[test]
fn a_torn_entry_is_waited_for_and_counted_once() {
    let (memory, _, mut consumer) = ring(4);
    let whole = seal(0, &entry(1));
    let mut half = whole;
    half[3] = 0;
    write(&memory, 0, half);
    assert_eq!((consumer.pop(), consumer.pop()), (None, None));
    assert_eq!(consumer.faults().torn, 1);
    write(&memory, 0, whole);
    assert_eq!(consumer.pop(), Some(entry(1)));
    write(&memory, 1, [77; 8]);
    assert_eq!((consumer.pop(), consumer.pop()), (None, None));
    assert_eq!((consumer.faults().torn, consumer.faults().alien), (1, 1));
}

#[test]
fn entries_of_other_positions_are_not_taken() {
    let (memory, _, mut consumer) = ring(4);
    for position in [1, 4, 8, u64::MAX - 4, u64::MAX - 1] {
        write(&memory, 0, seal(position, &entry(1)));
        assert_eq!(consumer.pop(), None, "position {position}");
    }
    write(&memory, 0, seal(0, &entry(1)));
    assert_eq!(consumer.pop(), Some(entry(1)));
}

#[test]
fn a_lying_head_is_ignored() {
    let (memory, mut producer, mut consumer) = ring(2);
    producer.push(&entry(0)).unwrap();
    producer.push(&entry(1)).unwrap();
    let head = &memory[0].words()[0];
    for (n, lie) in [3, u64::MAX, 1 << 40].into_iter().enumerate() {
        head.store(lie, Ordering::Relaxed);
        assert_eq!(producer.push(&entry(2)), Err(Full), "head {lie}");
        assert_eq!(producer.faults().bad_head, n as u64 + 1);
    }
    assert_eq!(consumer.pop(), Some(entry(0)));
    assert_eq!(consumer.pop(), Some(entry(1)));
    assert_eq!(producer.push(&entry(2)), Ok(()));
    // Backwards.
    producer.push(&entry(3)).unwrap();
    head.store(1, Ordering::Relaxed);
    assert_eq!(producer.push(&entry(4)), Err(Full));
    assert_eq!(producer.faults().bad_head, 4);
}

const REQUEST: RequestKey = RequestKey { index: 3, generation: u32::MAX };
const RUN: Run = Run { pool: 2, rows: 5, first: 1 << 20, generation: 9 };

fn submit(index: u32) -> Submission {
    Submission::Submit {
        request: RequestKey { index, ..REQUEST },
        input: RUN,
        model: 0xfffe,
        priority: 7,
        deadline_ns: u64::MAX - 1,
        payload_bytes: u32::MAX,
        epoch: 0xbeef,
        on_device: index % 2 == 1,
    }
}

#[test]
fn the_link_carries_every_descriptor_both_ways() {
    let (mut nic, mut host) = in_process(4);
    let sent = [submit(1), Submission::Cancel { request: REQUEST }, Submission::Release { output: RUN }];
    for submission in &sent {
        nic.submit(submission).unwrap();
    }
    assert_eq!([(); 3].map(|()| host.submission().unwrap()), sent);
    assert_eq!(host.submission(), None);
    for &status in Status::ALL {
        let completion = Completion { request: REQUEST, status, output: RUN };
        host.complete(&completion).unwrap();
        assert_eq!(nic.completion(), Some(completion));
    }
    assert_eq!(nic.completion(), None);
    assert!(nic.faults().plus(host.faults()).is_none());
}

#[test]
fn the_link_holds_what_it_was_made_for() {
    for (asked, held) in [(0, 2), (1, 2), (2, 2), (3, 4), (64, 64)] {
        let (mut nic, _host) = in_process(asked);
        let taken = (0..200).take_while(|&n| nic.submit(&submit(n)).is_ok()).count();
        assert_eq!(taken, held, "asked for {asked}");
    }
}

#[test]
fn two_threads_pass_every_descriptor_in_order() {
    const COUNT: u32 = 100_000;
    let (mut nic, mut host) = in_process(64);
    let echo = std::thread::spawn(move || {
        let mut done = 0;
        while done < COUNT {
            let Some(Submission::Submit { request, input, .. }) = host.submission() else {
                std::thread::yield_now();
                continue;
            };
            assert_eq!(request.index, done);
            let completion = Completion { request, status: Status::Ok, output: input };
            while host.complete(&completion).is_err() {
                std::thread::yield_now();
            }
            done += 1;
        }
        host.faults()
    });
    let (mut sent, mut got) = (0, 0);
    while got < COUNT {
        while sent < COUNT && nic.submit(&submit(sent)).is_ok() {
            sent += 1;
        }
        let over = echo.is_finished();
        let Some(completion) = nic.completion() else {
            assert!(!over, "the host ended with {got} of {COUNT} completed");
            std::thread::yield_now();
            continue;
        };
        assert_eq!((completion.request.index, completion.output), (got, RUN));
        got += 1;
    }
    assert!(nic.faults().plus(echo.join().unwrap()).is_none());
}
