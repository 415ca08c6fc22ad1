//! What a ring must do, as a queue: the judge of the unit tests, the property tests and the fuzz target alike.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use splitrpc_ring::{CONTROL_LINES, Consumer, DESCRIPTOR_WORDS, LINE_WORDS, Line, Producer, seal};

/// One step of a test. Numbers that index something are taken modulo its size.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// The producer puts in a descriptor grown from this seed.
    Push(u8),
    /// The consumer takes one.
    Pop,
    /// The consumer tells of the places that it freed.
    Publish,
    /// Somebody else overwrites one word.
    Scribble { line: u8, word: u8, value: u64 },
    /// Somebody else flips one bit.
    Flip { line: u8, bit: u16 },
    /// Somebody else copies one line over another.
    Replay { from: u8, to: u8 },
    /// Somebody else writes an entry that is right in every respect, so many places past the consumer's.
    Forge { ahead: u8, seed: u8 },
}

/// Reads steps out of a fuzzer's bytes.
pub(crate) fn ops(mut bytes: &[u8]) -> Vec<Op> {
    let mut take = move || {
        let (&byte, rest) = bytes.split_first()?;
        bytes = rest;
        Some(byte)
    };
    let next = move || {
        let code = take()?;
        let mut arg = || take().unwrap_or(0);
        // Honest steps are the more frequent, so that the hostile ones meet a ring in motion.
        Some(match code % 16 {
            0..=5 => Op::Push(code),
            6..=10 => Op::Pop,
            11 => Op::Publish,
            12 => Op::Scribble { line: arg(), word: arg(), value: small_or_wild(arg()) },
            13 => Op::Flip { line: arg(), bit: u16::from_le_bytes([arg(), arg()]) },
            14 => Op::Replay { from: arg(), to: arg() },
            _ => Op::Forge { ahead: arg(), seed: arg() },
        })
    };
    std::iter::from_fn(next).collect()
}

/// Words near those that a ring really holds, and others.
fn small_or_wild(byte: u8) -> u64 {
    if byte < 128 { u64::from(byte) } else { u64::from(byte).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}

/// Plays `ops` on a ring of `1 << log2` entries and panics where ring and queue disagree.
pub(crate) fn play(log2: u8, ops: &[Op]) {
    let mut game = Game::new(usize::from(log2 % 6));
    for op in ops {
        game.step(op);
    }
}

struct Game {
    memory: Arc<[Line]>,
    producer: Producer<Arc<[Line]>>,
    consumer: Consumer<Arc<[Line]>>,
    /// The queue: all that was put in, by position, of which the first `head` have been taken out.
    pushed: Vec<[u64; DESCRIPTOR_WORDS]>,
    head: u64,
    /// Entries that somebody else wrote, valid in every respect.
    forged: HashMap<u64, Vec<[u64; DESCRIPTOR_WORDS]>>,
    honest: bool,
}

impl Game {
    fn new(log2: usize) -> Game {
        let memory: Arc<[Line]> = (0..CONTROL_LINES + (1 << log2)).map(|_| Line::new()).collect();
        Game {
            producer: Producer::new(Arc::clone(&memory)).unwrap(),
            consumer: Consumer::new(Arc::clone(&memory)).unwrap(),
            memory,
            pushed: Vec::new(),
            head: 0,
            forged: HashMap::new(),
            honest: true,
        }
    }

    fn step(&mut self, op: &Op) {
        let lines = self.memory.len();
        match *op {
            Op::Push(seed) => self.push(seed),
            Op::Pop => self.pop(),
            Op::Publish => self.publish(),
            Op::Scribble { line, word, value } => {
                let line = usize::from(line) % lines;
                self.tamper(line, |words| words[usize::from(word) % LINE_WORDS] = value);
            }
            Op::Flip { line, bit } => {
                let (line, bit) = (usize::from(line) % lines, usize::from(bit) % (LINE_WORDS * 64));
                self.tamper(line, |words| words[bit / 64] ^= 1 << (bit % 64));
            }
            Op::Replay { from, to } => {
                let copy = read(&self.memory[usize::from(from) % lines]);
                self.tamper(usize::from(to) % lines, |words| *words = copy);
            }
            Op::Forge { ahead, seed } => {
                let position = self.head + u64::from(ahead) % self.capacity();
                let entry = seal(position, &descriptor(seed, u64::MAX));
                self.tamper(self.line_of(position), |words| *words = entry);
            }
        }
    }

    fn push(&mut self, seed: u8) {
        let words = descriptor(seed, self.pushed.len() as u64);
        let held = self.held();
        if self.producer.push(&words).is_ok() {
            assert!(held < self.capacity() || !self.honest, "took one more than it holds");
            self.pushed.push(words);
        } else {
            // Freed places may be told of late, but never as many as half of them.
            let least = self.capacity() - (self.capacity() - 1) / 2;
            assert!(held >= least || !self.honest, "full with {held} of {}", self.capacity());
        }
    }

    fn pop(&mut self) {
        let Some(words) = self.consumer.pop() else {
            assert!(self.held() == 0 || !self.honest, "lost an entry");
            return;
        };
        let pushed = self.pushed.get(self.head as usize);
        let forged = self.forged.remove(&self.head).unwrap_or_default();
        assert!(pushed == Some(&words) || forged.contains(&words), "an entry that nobody wrote: {words:x?}");
        self.head += 1;
    }

    fn publish(&mut self) {
        self.consumer.publish();
        if self.honest && self.held() < self.capacity() {
            let before = self.held();
            self.push(0);
            assert_eq!(self.held(), before + 1, "full after all was told");
        }
    }

    /// Changes a line behind both ends' backs, and notes which positions it now answers to.
    fn tamper(&mut self, line: usize, change: impl FnOnce(&mut [u64; LINE_WORDS])) {
        let mut words = read(&self.memory[line]);
        change(&mut words);
        for (to, value) in self.memory[line].words().iter().zip(words) {
            to.store(value, Ordering::Relaxed);
        }
        self.honest = false;
        let [tag, descriptor @ .., _] = words;
        let position = tag.wrapping_sub(1);
        if self.line_of(position) == line && words == seal(position, &descriptor) {
            self.forged.entry(position).or_default().push(descriptor);
        }
    }

    /// Entries in the ring; none where forged ones have led the consumer past the producer.
    fn held(&self) -> u64 {
        (self.pushed.len() as u64).saturating_sub(self.head)
    }

    fn capacity(&self) -> u64 {
        self.consumer.capacity() as u64
    }

    fn line_of(&self, position: u64) -> usize {
        CONTROL_LINES + (position % self.capacity()) as usize
    }
}

impl Drop for Game {
    fn drop(&mut self) {
        if self.honest && !std::thread::panicking() {
            assert!(self.producer.faults().plus(self.consumer.faults()).is_none(), "faults between honest ends");
        }
    }
}

fn read(line: &Line) -> [u64; LINE_WORDS] {
    std::array::from_fn(|i| line.words()[i].load(Ordering::Relaxed))
}

/// Words that tell one entry from all others; `seed` 0 gives the plainest.
fn descriptor(seed: u8, position: u64) -> [u64; DESCRIPTOR_WORDS] {
    let spread = u64::from(seed).wrapping_mul(0x0101_0101_0101_0101);
    [position, spread, !spread, 0, u64::from(seed), position ^ spread]
}
