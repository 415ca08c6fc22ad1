//! Every interleaving, as far as the memory model tells them apart, of the two ends of a small ring, and of an owner that
//! falls asleep while others fill its rings:
//! `RUSTFLAGS="--cfg loom" cargo test -p splitrpc-ring --release --test loom`.
#![cfg(loom)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::mpsc::channel;
use loom::thread;
use splitrpc_ring::{CONTROL_LINES, Consumer, DESCRIPTOR_WORDS, Line, Nap, Producer};

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

/// An owner takes `each` entries from each of `fillers`, and sleeps whenever it finds none: on a channel, which keeps what
/// came while nobody slept, as the kernel's event counter does. Loom reports a sleep that nothing ends as a deadlock.
fn sleep_between_entries(fillers: usize, each: usize) {
    let nap = Arc::new(Nap::new());
    let (rouse, bell) = channel();
    let (mut rings, mut filling) = (Vec::new(), Vec::new());
    for _ in 0..fillers {
        let memory = memory(each);
        let mut producer = Producer::new(Arc::clone(&memory)).unwrap();
        rings.push(Consumer::new(memory).unwrap());
        let (nap, rouse) = (Arc::clone(&nap), rouse.clone());
        filling.push(thread::spawn(move || {
            for n in 0..each {
                producer.push(&entry(n as u64)).unwrap();
                if nap.ends() {
                    rouse.send(()).unwrap();
                }
            }
        }));
    }
    let mut take = || rings.iter_mut().filter_map(Consumer::pop).count();
    let mut left = fillers * each;
    while left > 0 {
        let taken = take();
        left -= taken;
        if taken > 0 {
            continue;
        }
        nap.announce();
        let taken = take();
        left -= taken;
        if taken == 0 {
            bell.recv().unwrap();
        }
        nap.over();
    }
    filling.into_iter().for_each(|filling| filling.join().unwrap());
}

#[test]
fn nobody_sleeps_beside_an_entry() {
    explore(3, || sleep_between_entries(1, 2));
    explore(2, || sleep_between_entries(2, 1));
}

/// As a shard and a model's worker do: who finds it busy is roused once it is given back.
#[test]
fn who_waits_for_a_worker_is_roused_when_it_is_given_back() {
    explore(3, || {
        let (busy, nap) = (Arc::new(AtomicBool::new(true)), Arc::new(Nap::new()));
        let (rouse, bell) = channel();
        let (worker, waiting) = (Arc::clone(&busy), Arc::clone(&nap));
        let giving_back = thread::spawn(move || {
            worker.store(false, Ordering::SeqCst);
            if waiting.ends() {
                rouse.send(()).unwrap();
            }
        });
        let claim = || !busy.load(Ordering::Relaxed) && !busy.swap(true, Ordering::SeqCst);
        while !claim() {
            nap.announce();
            if claim() {
                break;
            }
            bell.recv().unwrap();
        }
        giving_back.join().unwrap();
    });
}
