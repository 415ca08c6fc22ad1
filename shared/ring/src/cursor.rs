//! The two ends of a ring: each keeps its place to itself and believes nothing that it reads.
//!
//! Ring memory is [`CONTROL_LINES`] lines, of which word 0 of the first holds the head, and behind them one line for
//! each entry. The producer's place needs no shared word: entries say themselves whether they are new. The consumer's
//! place, the *head*, is written once a batch and read only by a producer that believes the ring to be full.

use crate::entry::{LINE_WORDS, Line, NoEntry, check_tag, open, seal};
use crate::sync::Ordering;
use crate::{DESCRIPTOR_WORDS, Full};

/// Lines in front of the entries: the head has two to itself, since processors fetch lines in pairs.
pub const CONTROL_LINES: usize = 2;
/// Most entries of a ring.
pub const MAX_CAPACITY: usize = 1 << 24;

/// The memory is not two lines and a power of two, at most [`MAX_CAPACITY`], of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSize;

impl core::fmt::Display for BadSize {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "ring memory must be {CONTROL_LINES} lines and a power of two of entries")
    }
}

impl core::error::Error for BadSize {}

/// What an end has seen that an honest peer does not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Entries that were seen half written or damaged, each counted once. A copy engine may cause a few.
    pub torn: u64,
    /// Entries with a tag of neither this lap nor the last, each counted once.
    pub alien: u64,
    /// Reads of a head that ran backwards or ahead of the tail.
    pub bad_head: u64,
    /// Entries that were whole but described nothing.
    pub malformed: u64,
}

impl Faults {
    /// Both ends' faults together.
    #[must_use]
    pub fn plus(self, other: Faults) -> Faults {
        Faults {
            torn: self.torn + other.torn,
            alien: self.alien + other.alien,
            bad_head: self.bad_head + other.bad_head,
            malformed: self.malformed + other.malformed,
        }
    }

    /// How many there are, of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Faults { torn, alien, bad_head, malformed } = *self;
        torn + alien + bad_head + malformed
    }

    /// Whether nothing was amiss.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Faults::default()
    }
}

/// The end that puts descriptors in.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    mask: u64,
    /// Position of the next entry.
    tail: u64,
    /// The last believable head.
    head: u64,
    bad_head: u64,
}

impl<M: AsRef<[Line]>> Producer<M> {
    /// The producing end over fresh, zeroed memory of [`CONTROL_LINES`] lines and one for each entry.
    ///
    /// # Errors
    /// [`BadSize`].
    pub fn new(memory: M) -> Result<Producer<M>, BadSize> {
        let mask = capacity_of(memory.as_ref())? - 1;
        Ok(Producer { memory, mask, tail: 0, head: 0, bad_head: 0 })
    }

    /// Puts one descriptor in. The consumer sees it at once.
    ///
    /// # Errors
    /// [`Full`], and nothing was put in.
    pub fn push(&mut self, descriptor: &[u64; DESCRIPTOR_WORDS]) -> Result<(), Full> {
        if self.tail - self.head > self.mask {
            self.refresh_head();
            if self.tail - self.head > self.mask {
                return Err(Full);
            }
        }
        let line = &self.memory.as_ref()[CONTROL_LINES + (self.tail & self.mask) as usize];
        let sealed = seal(self.tail, descriptor);
        let (first, rest) = line.words().split_first().expect("a line has words");
        for (word, &value) in rest.iter().zip(&sealed[1..]) {
            word.store(value, Ordering::Relaxed);
        }
        // The tag last: who sees it sees the rest.
        first.store(sealed[0], Ordering::Release);
        self.tail += 1;
        Ok(())
    }

    /// Entries that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.mask as usize + 1
    }

    /// What this end has seen amiss.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults { bad_head: self.bad_head, ..Faults::default() }
    }

    fn refresh_head(&mut self) {
        // Pairs with the release in `publish`: what the consumer has read may be overwritten.
        let head = head_word(&self.memory).load(Ordering::Acquire);
        if (self.head..=self.tail).contains(&head) {
            self.head = head;
        } else {
            self.bad_head += 1;
        }
    }
}

/// The end that takes descriptors out.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    mask: u64,
    /// Position of the next entry.
    head: u64,
    /// The head as the producer may know it.
    published: u64,
    /// The entry at `head` has been counted as a fault.
    counted: bool,
    torn: u64,
    alien: u64,
}

impl<M: AsRef<[Line]>> Consumer<M> {
    /// The consuming end over fresh, zeroed memory of [`CONTROL_LINES`] lines and one for each entry.
    ///
    /// # Errors
    /// [`BadSize`].
    pub fn new(memory: M) -> Result<Consumer<M>, BadSize> {
        let mask = capacity_of(memory.as_ref())? - 1;
        Ok(Consumer { memory, mask, head: 0, published: 0, counted: false, torn: 0, alien: 0 })
    }

    /// Takes the next descriptor, if a whole one lies there. An entry that is torn or alien counts as not there yet.
    ///
    /// The producer learns of the freed places when this finds nothing more, and after every half ring.
    pub fn pop(&mut self) -> Option<[u64; DESCRIPTOR_WORDS]> {
        match self.read() {
            Ok(descriptor) => {
                self.head += 1;
                self.counted = false;
                if self.head - self.published > self.mask / 2 {
                    self.publish();
                }
                Some(descriptor)
            }
            Err(why) => {
                self.publish();
                self.count(why);
                None
            }
        }
    }

    /// Tells the producer of the places freed so far; for who stops before [`Consumer::pop`] finds nothing.
    pub fn publish(&mut self) {
        if self.published != self.head {
            head_word(&self.memory).store(self.head, Ordering::Release);
            self.published = self.head;
        }
    }

    /// How many descriptors were taken, all that ever were.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.head
    }

    /// Entries that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.mask as usize + 1
    }

    /// What this end has seen amiss.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults { torn: self.torn, alien: self.alien, ..Faults::default() }
    }

    fn read(&self) -> Result<[u64; DESCRIPTOR_WORDS], NoEntry> {
        let words = self.memory.as_ref()[CONTROL_LINES + (self.head & self.mask) as usize].words();
        let first = words[0].load(Ordering::Acquire);
        check_tag(self.head, self.mask + 1, first)?;
        // Each word is read once, and what is checked is what is used.
        let mut line = [first; LINE_WORDS];
        for (to, from) in line[1..].iter_mut().zip(&words[1..]) {
            *to = from.load(Ordering::Relaxed);
        }
        open(self.head, self.mask + 1, &line)
    }

    fn count(&mut self, why: NoEntry) {
        let counter = match why {
            NoEntry::Empty => return,
            NoEntry::Torn => &mut self.torn,
            NoEntry::Alien => &mut self.alien,
        };
        if !self.counted {
            *counter += 1;
            self.counted = true;
        }
    }
}

fn head_word<M: AsRef<[Line]>>(memory: &M) -> &crate::sync::AtomicU64 {
    &memory.as_ref()[0].words()[0]
}

fn capacity_of(memory: &[Line]) -> Result<u64, BadSize> {
    let entries = memory.len().checked_sub(CONTROL_LINES).ok_or(BadSize)?;
    if entries.is_power_of_two() && entries <= MAX_CAPACITY { Ok(entries as u64) } else { Err(BadSize) }
}
