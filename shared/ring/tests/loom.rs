//! Every interleaving, as far as the memory model tells them apart, of the two ends of a small ring:
//! `RUSTFLAGS="--cfg loom" cargo test -p splitrpc-ring --release --test loom`.
#![cfg(loom)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering;
use loom::thread;
use splitrpc_ring::{CONTROL_LINES, Consumer, DESCRIPTOR_WORDS, Line, Producer};

fn memory(entries: usize) -> Arc<[Line]> {
    (0..CONTROL_LINES + entries).map(|_| Line::new()).collect()
}

fn entry(n: u64) -> [u64; DESCRIPTOR_WORDS] {
    std::array::from_fn(|i| n * 8 + i as u64)
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Something that loom watches: touching it from two threads that are not ordered is an error.
struct Watched(UnsafeCell<()>);

// SAFETY: nothing is ever read or written through the cell; loom only watches who would.
unsafe impl Sync for Watched {}

/// Passes `count` entries through a ring of `entries`. Between honest ends an entry that looks torn would be a
/// missing release or acquire, so none may be counted. Loom does not let a store overtake an earlier load, so that
/// what the head must order, reads before the place's next use, is shown by a watched cell for each entry.
fn pass(entries: usize, count: usize) {
    let memory = memory(entries);
    let mut producer = Producer::new(Arc::clone(&memory)).unwrap();
    let mut consumer = Consumer::new(memory).unwrap();
    let read: Arc<[Watched]> = (0..count).map(|_| Watched(UnsafeCell::new(()))).collect();
    let was_read = Arc::clone(&read);
    let producing = thread::spawn(move || {
        for n in 0..count {
            while producer.push(&entry(n as u64)).is_err() {
                thread::yield_now();
            }
            if let Some(before) = n.checked_sub(entries) {
                was_read[before].0.with_mut(|_| ());
            }
        }
        producer.faults()
    });
    for (n, cell) in read.iter().enumerate() {
        cell.0.with_mut(|_| ());
        let words = loop {
            match consumer.pop() {
                Some(words) => break words,
                None => {
                    assert!(consumer.faults().is_none());
                    thread::yield_now();
                }
            }
        };
        assert_eq!(words, entry(n as u64));
    }
    assert_eq!(consumer.pop(), None);
    assert!(producing.join().unwrap().plus(consumer.faults()).is_none());
}

#[test]
fn entries_pass_whole_and_in_order() {
    explore(3, || pass(2, 2));
}

#[test]
fn a_place_is_reused_only_once_it_was_read() {
    explore(3, || pass(1, 3));
    explore(2, || pass(2, 4));
}

#[test]
fn a_scribbler_hides_entries_but_makes_none() {
    for (line, word) in [(0, 0), (CONTROL_LINES, 0), (CONTROL_LINES, 3), (CONTROL_LINES, 7)] {
        for value in [0, 1, u64::MAX] {
            explore(2, move || {
                let memory = memory(1);
                let mut producer = Producer::new(Arc::clone(&memory)).unwrap();
                let mut consumer = Consumer::new(Arc::clone(&memory)).unwrap();
                let producing = thread::spawn(move || (0..2).filter(|&n| producer.push(&entry(n)).is_ok()).count());
                let scribbling = thread::spawn(move || memory[line].words()[word].store(value, Ordering::Relaxed));
                let mut taken = 0;
                for _ in 0..3 {
                    if let Some(words) = consumer.pop() {
                        assert_eq!(words, entry(taken));
                        taken += 1;
                    }
                }
                assert!(taken <= producing.join().unwrap() as u64);
                scribbling.join().unwrap();
            });
        }
    }
}
