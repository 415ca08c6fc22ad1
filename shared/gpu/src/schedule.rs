//! Which bytes are copied next, when more wait than a copy engine takes at once.
#![forbid(unsafe_code)]

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use splitrpc_arena::Run;

/// How urgent a copy is: less goes first. The second number tells those of one urgency apart, in their order.
pub type Rank = (u8, u64);

/// Bytes of a run's tensor that are copied in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) run: Run,
    pub(crate) tensor: u16,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// A copy that waits, greater the sooner its turn comes.
#[derive(Debug)]
struct Waiting {
    rank: Rank,
    ticket: u32,
    rest: Chunk,
}

impl Waiting {
    /// Of one rank those of one ticket follow each other.
    fn turn(&self) -> Reverse<(Rank, u32)> {
        Reverse((self.rank, self.ticket))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.turn() == other.turn()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> Ordering {
        self.turn().cmp(&other.turn())
    }
}

/// Copies that wait, each of which belongs to a ticket. The copy engine takes what it has in order, so a copy is given to it
/// in chunks, between which a more urgent one can pass.
#[derive(Debug)]
pub(crate) struct Schedule {
    chunk: u32,
    waiting: BinaryHeap<Waiting>,
    /// Copies that wait, by ticket.
    copies: Vec<u32>,
}

impl Schedule {
    /// For tickets below `tickets`, with room for `room` copies.
    pub(crate) fn new(chunk: u32, tickets: usize, room: usize) -> Schedule {
        Schedule { chunk: chunk.max(1), waiting: BinaryHeap::with_capacity(room), copies: vec![0; tickets] }
    }

    /// Adds a copy. Without a byte there is nothing to do.
    pub(crate) fn push(&mut self, ticket: u32, rank: Rank, whole: Chunk) {
        if whole.len > 0 {
            self.copies[ticket as usize] += 1;
            self.waiting.push(Waiting { rank, ticket, rest: whole });
        }
    }

    /// The next chunk, which the caller submits, and the ticket that it is part of.
    pub(crate) fn next(&mut self) -> Option<(u32, Chunk)> {
        // Changed in place, it keeps its turn unless it is over.
        let mut first = self.waiting.peek_mut()?;
        let ticket = first.ticket;
        let next = Chunk { len: first.rest.len.min(self.chunk), ..first.rest };
        first.rest.offset += next.len;
        first.rest.len -= next.len;
        if first.rest.len == 0 {
            PeekMut::pop(first);
            self.copies[ticket as usize] -= 1;
        }
        Some((ticket, next))
    }

    /// Whether part of a ticket's copies has not been submitted.
    pub(crate) fn waits(&self, ticket: u32) -> bool {
        self.copies[ticket as usize] > 0
    }

    /// Whether all has been submitted.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets what has not been submitted of a ticket.
    pub(crate) fn forget(&mut self, ticket: u32) {
        if std::mem::take(&mut self.copies[ticket as usize]) > 0 {
            self.waiting.retain(|copy| copy.ticket != ticket);
        }
    }

    /// Bytes that have not been submitted.
    pub(crate) fn bytes(&self) -> u64 {
        self.waiting.iter().map(|copy| u64::from(copy.rest.len)).sum()
    }

    /// Those of them that go before what has this rank.
    pub(crate) fn bytes_before(&self, rank: Rank) -> u64 {
        self.waiting.iter().filter(|copy| copy.rank < rank).map(|copy| u64::from(copy.rest.len)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(tensor: u16, len: u32) -> Chunk {
        Chunk { run: Run { pool: 0, rows: 1, first: 0, generation: 0 }, tensor, offset: 0, len }
    }

    fn taken(schedule: &mut Schedule) -> Vec<(u16, u32, u32)> {
        std::iter::from_fn(|| schedule.next()).map(|(_, c)| (c.tensor, c.offset, c.len)).collect()
    }

    #[test]
    fn what_is_more_urgent_passes_between_chunks() {
        let mut schedule = Schedule::new(100, 4, 4);
        schedule.push(0, (1, 0), copy(0, 250));
        assert_eq!(schedule.next().map(|(ticket, c)| (ticket, c.offset, c.len)), Some((0, 0, 100)));
        schedule.push(1, (1, 1), copy(1, 10));
        schedule.push(2, (0, 2), copy(2, 150));
        assert_eq!(schedule.bytes(), 150 + 10 + 150);
        assert_eq!([(0, 2), (0, 3), (1, 1), (9, 0)].map(|rank| schedule.bytes_before(rank)), [0, 150, 300, 310]);
        assert_eq!(taken(&mut schedule), [(2, 0, 100), (2, 100, 50), (0, 100, 100), (0, 200, 50), (1, 0, 10)]);
    }

    #[test]
    fn a_ticket_waits_until_its_last_chunk_is_taken() {
        let mut schedule = Schedule::new(100, 2, 4);
        schedule.push(0, (0, 0), copy(0, 101));
        schedule.push(0, (0, 0), copy(1, 5));
        schedule.push(0, (0, 0), copy(2, 0));
        for _ in 0..3 {
            assert!(schedule.waits(0) && !schedule.waits(1));
            schedule.next().unwrap();
        }
        assert!(!schedule.waits(0));
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_copied() {
        let mut schedule = Schedule::new(100, 2, 4);
        schedule.push(0, (0, 0), copy(0, 300));
        schedule.push(1, (0, 1), copy(1, 10));
        schedule.next().unwrap();
        schedule.forget(0);
        schedule.forget(0);
        assert!(!schedule.waits(0));
        assert_eq!(taken(&mut schedule), [(1, 0, 10)]);
    }
}
