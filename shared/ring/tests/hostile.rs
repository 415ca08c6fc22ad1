//! Somebody scribbles random words over the ring while both ends run: nothing panics, and what comes out went in.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use splitrpc_ring::{CONTROL_LINES, Consumer, DESCRIPTOR_WORDS, Line, Producer};

/// Splitmix64: a different word for every input.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Every word of an entry follows from its position, so that a mixture shows.
fn entry(position: u64) -> [u64; DESCRIPTOR_WORDS] {
    std::array::from_fn(|i| mix(position * 8 + i as u64))
}

const STEPS: u32 = 1_000;

/// Scribbles from `first_line` on, and gives how many entries came through all the same.
fn scribble_while_running(first_line: usize, rounds: u64) -> u64 {
    let mut taken_in_all = 0;
    for round in 0..rounds {
        let memory: Arc<[Line]> = (0..CONTROL_LINES + 8).map(|_| Line::new()).collect();
        let mut producer = Producer::new(Arc::clone(&memory)).unwrap();
        let mut consumer = Consumer::new(Arc::clone(&memory)).unwrap();
        let over = AtomicBool::new(false);
        let (mut taken, mut wrong) = (0, None);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seed = round << 32;
                while !over.load(Ordering::Relaxed) {
                    seed += 1;
                    let (place, value) = (mix(seed) as usize, mix(!seed));
                    let lines = memory.len() - first_line;
                    let word = &memory[first_line + place / 8 % lines].words()[place % 8];
                    // Now and then a plausible small number, as tags and heads are.
                    word.store(if place & 1024 == 0 { value } else { value % 64 }, Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
            scope.spawn(|| {
                let mut position = 0;
                for _ in 0..STEPS {
                    if producer.push(&entry(position)).is_ok() {
                        position += 1;
                    }
                    std::thread::yield_now();
                }
            });
            for _ in 0..STEPS {
                if let Some(words) = consumer.pop() {
                    if words != entry(taken) {
                        wrong = Some(words);
                        break;
                    }
                    taken += 1;
                }
                std::thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
        });
        // Not before the scribbler has been told to end.
        assert_eq!(wrong, None, "round {round}, entry {taken}");
        taken_in_all += taken;
    }
    taken_in_all
}

#[test]
fn scribbling_over_entries_loses_them_and_nothing_worse() {
    assert!(scribble_while_running(CONTROL_LINES, 100) > 0);
}

#[test]
fn scribbling_over_everything_loses_entries_and_nothing_worse() {
    assert!(scribble_while_running(0, 100) > 0);
}
