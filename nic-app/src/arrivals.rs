//! What has arrived of large requests that are not complete, for a host that can make use of it.

use splitrpc_engine::Piece;
use splitrpc_ring::{RequestKey, Run};

/// How many arrivals are kept at once. They are hints: what is not told of is found in its slots all the same.
const MOST: usize = 64;

/// Bytes of a request that are in their slots, while others are yet to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The request. It may yet come to nothing.
    pub request: RequestKey,
    /// Its slots.
    pub run: Run,
    /// The tensor.
    pub tensor: u16,
    /// The first of the bytes.
    pub offset: u32,
    /// How many, those that were told of before included.
    pub len: u32,
}

/// Arrivals that the host has not been told of.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// Payloads with fewer bytes are not worth telling of.
    least: u32,
    list: Vec<Arrival>,
}

impl Arrivals {
    /// Of payloads with so many bytes at least.
    pub(crate) fn new(least: u32) -> Arrivals {
        let room = if least == u32::MAX { 0 } else { MOST };
        Arrivals { least, list: Vec::with_capacity(room) }
    }

    /// Whether a payload of so many bytes is told of.
    #[inline]
    pub(crate) fn want(&self, payload: u32) -> bool {
        payload >= self.least && self.list.len() < self.list.capacity()
    }

    /// Notes that the first `done` bytes of a payload are where they belong, which these pieces say.
    pub(crate) fn note(&mut self, request: RequestKey, pieces: impl Iterator<Item = Piece>, done: u32) {
        let mut before = 0;
        for Piece { run, tensor, offset, length } in pieces {
            let len = length.min(done - before);
            if len > 0 && self.list.len() < self.list.capacity() {
                self.list.push(Arrival { request, run, tensor, offset, len });
            }
            before += len;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Hands over all that was noted.
    pub(crate) fn take(&mut self, mut told: impl FnMut(&Arrival)) {
        self.list.drain(..).for_each(|arrival| told(&arrival));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Run = Run { pool: 0, rows: 1, first: 3, generation: 9 };
    const REQUEST: RequestKey = RequestKey { index: 5, generation: 2 };

    fn noted(arrivals: &mut Arrivals, done: u32) -> Vec<(u16, u32, u32)> {
        let pieces =
            [(0, 100, 50), (1, 0, 200)].map(|(tensor, offset, length)| Piece { run: RUN, tensor, offset, length });
        arrivals.note(REQUEST, pieces.into_iter(), done);
        let mut told = Vec::new();
        arrivals.take(|arrival| told.push((arrival.tensor, arrival.offset, arrival.len)));
        told
    }

    #[test]
    fn what_has_arrived_is_told_tensor_by_tensor() {
        let mut arrivals = Arrivals::new(10);
        assert!(arrivals.want(10) && !arrivals.want(9));
        assert_eq!(noted(&mut arrivals, 0), []);
        assert_eq!(noted(&mut arrivals, 20), [(0, 100, 20)]);
        assert_eq!(noted(&mut arrivals, 60), [(0, 100, 50), (1, 0, 10)]);
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let mut none = Arrivals::new(u32::MAX);
        assert!(!none.want(u32::MAX));
        let mut arrivals = Arrivals::new(0);
        let piece = Piece { run: RUN, tensor: 0, offset: 0, length: 1 };
        (0..2 * MOST).for_each(|_| arrivals.note(REQUEST, std::iter::once(piece), 1));
        assert!(!arrivals.want(1));
        let mut count = 0;
        arrivals.take(|_| count += 1);
        assert_eq!(count, MOST);
        none.take(|_| unreachable!());
    }
}
