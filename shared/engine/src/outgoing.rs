//! A message on its way out over datagrams: what to send next, what to send again, what has arrived.

use crate::message::{Chunk, Sizes};
use crate::ranges::RangeSet;

/// Separate gaps that one message remembers. Past these an acknowledgement is ignored, and the bytes go again.
const GAPS: usize = 64;

/// The sending side of one message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing {
    sizes: Sizes,
    head_len: u16,
    first_sent: bool,
    first_lost: bool,
    first_acked: bool,
    tensor: u16,
    offset: u32,
    lost: RangeSet<GAPS>,
    acked: RangeSet<GAPS>,
    acked_bytes: u64,
}

impl Outgoing {
    #[inline]
    pub(crate) fn start(&mut self, sizes: &Sizes, head_len: u16) {
        self.sizes.assign(sizes);
        self.head_len = head_len;
        self.first_sent = false;
        self.first_lost = false;
        self.first_acked = false;
        self.tensor = 0;
        self.offset = 0;
        self.lost.clear();
        self.acked.clear();
        self.acked_bytes = 0;
        self.skip_finished();
    }

    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Manifest and tensors together.
    #[inline]
    pub(crate) fn total(&self) -> u32 {
        (u64::from(self.head_len) + self.sizes.total()) as u32
    }

    /// Bytes of a frame's payload that carries this chunk.
    pub(crate) fn payload(&self, chunk: &Chunk) -> u32 {
        let head = if matches!(chunk, Chunk::First { .. }) { u32::from(self.head_len) } else { 0 };
        head + chunk.length()
    }

    /// Whether everything was sent once and nothing waits to be sent again.
    pub(crate) fn all_sent(&self) -> bool {
        self.first_sent && !self.first_lost && self.lost.is_empty() && self.tensor_done()
    }

    /// Data bytes that were never sent.
    pub(crate) fn unsent(&self) -> u64 {
        let behind = self.sizes.as_slice().iter().skip(usize::from(self.tensor)).map(|bytes| u64::from(*bytes));
        behind.sum::<u64>().saturating_sub(u64::from(self.offset))
    }

    /// Whether the peer has everything.
    pub(crate) fn all_acked(&self) -> bool {
        self.first_acked && self.acked_bytes == self.sizes.total()
    }

    /// Whether the next chunk would be one that was sent before.
    pub(crate) fn next_is_repeat(&self) -> bool {
        self.first_lost || (self.first_sent && !self.lost.is_empty())
    }

    /// The next chunk that fits `room` payload bytes.
    #[inline]
    pub(crate) fn next_chunk(&mut self, room: u32) -> Option<Chunk> {
        if !self.first_sent || self.first_lost {
            return self.next_first(room);
        }
        if let Some((start, end)) = self.lost.pop_first(u64::from(room)) {
            return Some(Chunk::Part {
                tensor: (start >> 32) as u16,
                offset: start as u32,
                length: (end - start) as u32,
            });
        }
        if self.tensor_done() {
            return None;
        }
        let left = self.sizes.get(self.tensor)? - self.offset;
        let length = left.min(room);
        let chunk = Chunk::Part { tensor: self.tensor, offset: self.offset, length };
        self.advance(length);
        Some(chunk)
    }

    /// Takes what follows a chunk of `room` bytes in further ones of the same tensor and length, at most `most` of them.
    /// Returns how many they are.
    #[inline]
    pub(crate) fn take_following(&mut self, chunk: Chunk, room: u32, most: u32) -> u32 {
        let Chunk::Part { tensor, offset, length } = chunk else { return 0 };
        if length != room || (tensor, offset + length) != (self.tensor, self.offset) || self.next_is_repeat() {
            return 0;
        }
        let left = self.sizes.get(tensor).unwrap_or(0).saturating_sub(self.offset);
        let count = (left / room).min(most);
        self.advance(count * room);
        count
    }

    fn next_first(&mut self, room: u32) -> Option<Chunk> {
        let room = room.checked_sub(u32::from(self.head_len))?;
        let total = self.sizes.total();
        let whole = total <= u64::from(room);
        let length = if whole { total as u32 } else { self.sizes.get(0).unwrap_or(0).min(room) };
        if !self.first_sent {
            self.first_sent = true;
            if whole {
                self.tensor = self.sizes.len();
                self.offset = 0;
            } else {
                self.offset = length;
                self.skip_finished();
            }
        }
        self.first_lost = false;
        self.each_range(&Chunk::First { length, whole }, |set, start, end| set.lost.remove(start, end));
        Some(Chunk::First { length, whole })
    }

    #[inline]
    pub(crate) fn on_acked(&mut self, chunk: Chunk) {
        if matches!(chunk, Chunk::First { .. }) {
            self.first_acked = true;
            self.first_lost = false;
        }
        self.each_range(&chunk, |set, start, end| {
            if let Ok(new) = set.acked.insert(start, end) {
                set.acked_bytes += new;
                set.lost.remove(start, end);
            } else {
                // Too many gaps to remember that this one is filled.
                set.send_again(start, end);
            }
        });
    }

    /// A chunk was lost. Returns whether anything of it must go again.
    pub(crate) fn on_lost(&mut self, chunk: Chunk) -> bool {
        let mut again = false;
        if matches!(chunk, Chunk::First { .. }) && !self.first_acked {
            self.first_lost = true;
            again = true;
        }
        if chunk.length() == 0 {
            return again;
        }
        self.each_range(&chunk, |set, start, end| {
            if set.acked.contains(start, end) {
                return;
            }
            again = true;
            set.send_again(start, end);
        });
        again
    }

    /// The peer asks for the answer that it should have: sends the first chunk again.
    pub(crate) fn resend_first(&mut self) {
        self.first_lost = true;
    }

    /// Nothing was heard of the message for long: sends its first chunk until it is acknowledged, which the peer answers.
    pub(crate) fn ask(&mut self) {
        self.first_acked = false;
        self.first_lost = self.first_sent;
    }

    /// The peer answered: it has everything.
    pub(crate) fn all_arrived(&mut self) {
        self.first_sent = true;
        self.first_lost = false;
        self.first_acked = true;
        self.lost.clear();
        self.acked.clear();
        self.acked_bytes = self.sizes.total();
        // There is room for as many stretches as a message has tensors.
        let everything = Chunk::First { length: self.acked_bytes as u32, whole: true };
        self.each_range(&everything, |set, start, end| _ = set.acked.insert(start, end));
        self.tensor = self.sizes.len();
        self.offset = 0;
    }

    fn send_again(&mut self, start: u64, end: u64) {
        if self.lost.insert(start, end).is_ok() {
            return;
        }
        // Too many gaps for the finer picture: from the lowest on, all goes again.
        let lowest = self.lost.iter().next().map_or(start, |(s, _)| s.min(start));
        self.lost.clear();
        let (tensor, offset) = ((lowest >> 32) as u16, lowest as u32);
        if (tensor, offset) < (self.tensor, self.offset) {
            self.tensor = tensor;
            self.offset = offset;
        }
    }

    fn advance(&mut self, length: u32) {
        self.offset += length;
        self.skip_finished();
    }

    fn skip_finished(&mut self) {
        while self.sizes.get(self.tensor) == Some(self.offset) {
            self.tensor += 1;
            self.offset = 0;
        }
    }

    fn tensor_done(&self) -> bool {
        self.tensor >= self.sizes.len()
    }

    /// Calls `f` with each tensor range that a chunk covers.
    fn each_range(&mut self, chunk: &Chunk, mut f: impl FnMut(&mut Self, u64, u64)) {
        for n in 0..self.sizes.count(chunk) {
            let (start, end) = self.sizes.range(chunk, n);
            f(self, start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes(bytes: &[u32]) -> Sizes {
        let mut sizes = Sizes::NONE;
        sizes.set(bytes.iter().copied());
        sizes
    }

    /// Which bytes of each tensor the peer has.
    struct Peer(Vec<Vec<bool>>);

    impl Peer {
        fn take(&mut self, sizes: &Sizes, chunk: &Chunk) {
            for n in 0..sizes.count(chunk) {
                let (start, end) = sizes.range(chunk, n);
                let tensor = &mut self.0[(start >> 32) as usize];
                tensor[start as u32 as usize..][..(end - start) as usize].fill(true);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        // 0 and 1: acknowledged; 2: lost; 3: acknowledged late; 4: taken for lost, but it was not.
        #[test]
        fn everything_arrives_whatever_is_lost(
            bytes in proptest::collection::vec(0u32..60_000, 1..4),
            fates in proptest::collection::vec(0u8..5, 1..200),
            room in 216u32..1400,
        ) {
            let sizes = sizes(&bytes);
            let mut out = Outgoing::default();
            out.start(&sizes, 200);
            let mut peer = Peer(bytes.iter().map(|b| vec![false; *b as usize]).collect());
            let mut late = std::collections::VecDeque::new();
            let mut described = false;
            for (step, fate) in fates.iter().cycle().enumerate() {
                prop_assert!(step < 100_000, "it never ends: {:?}", out);
                let fate = if step < 5_000 { *fate } else { 0 };
                if out.all_acked() {
                    break;
                }
                let Some(chunk) = out.next_chunk(room) else {
                    prop_assert!(out.all_sent());
                    match late.pop_front() {
                        Some(chunk) => out.on_acked(chunk),
                        None => prop_assert!(false, "all sent, all settled, and not all acknowledged"),
                    }
                    continue;
                };
                let first = matches!(chunk, Chunk::First { .. });
                prop_assert!(chunk.length() > 0 || first);
                prop_assert!(chunk.length() <= room);
                if fate != 2 {
                    described |= first;
                    peer.take(&sizes, &chunk);
                }
                match fate {
                    2 | 4 => {
                        out.on_lost(chunk);
                    }
                    3 => late.push_back(chunk),
                    _ => out.on_acked(chunk),
                }
            }
            prop_assert!(described && peer.0.iter().flatten().all(|have| *have));
        }
    }

    #[test]
    fn one_that_asks_sends_its_first_chunk_until_it_is_acknowledged() {
        let mut out = Outgoing::default();
        out.start(&sizes(&[1000]), 20);
        let whole = Chunk::First { length: 1000, whole: true };
        assert_eq!(out.next_chunk(1020), Some(whole));
        out.all_arrived();
        assert!(out.all_sent() && out.all_acked());
        for _ in 0..2 {
            out.ask();
            assert_eq!(out.next_chunk(1020), Some(whole));
            assert!(out.on_lost(whole), "nobody answered");
            assert_eq!(out.next_chunk(1020), Some(whole));
            out.on_acked(whole);
            assert_eq!(out.next_chunk(1020), None);
            assert!(out.all_acked());
        }
    }
}
