//! Frames that were sent and not yet acknowledged.

use splitrpc_ring::RequestKey;

use crate::Time;
use crate::message::Chunk;

/// What a sent frame carried, so that it can be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Cargo {
    /// Nothing that would be sent again.
    #[default]
    None,
    /// The first frame of a message: manifest and the `length` first bytes of tensor 0, or all tensors if `whole`.
    First { key: RequestKey, length: u32, whole: bool },
    /// Part of a tensor.
    Part { key: RequestKey, tensor: u16, offset: u32, length: u32 },
}

impl Cargo {
    pub(crate) fn of(key: RequestKey, chunk: Chunk) -> Cargo {
        match chunk {
            Chunk::First { length, whole } => Cargo::First { key, length, whole },
            Chunk::Part { tensor, offset, length } => Cargo::Part { key, tensor, offset, length },
        }
    }

    pub(crate) fn chunk(&self) -> Option<Chunk> {
        match *self {
            Cargo::None => None,
            Cargo::First { length, whole, .. } => Some(Chunk::First { length, whole }),
            Cargo::Part { tensor, offset, length, .. } => Some(Chunk::Part { tensor, offset, length }),
        }
    }

    pub(crate) fn key(&self) -> Option<RequestKey> {
        match *self {
            Cargo::None => None,
            Cargo::First { key, .. } | Cargo::Part { key, .. } => Some(key),
        }
    }
}

/// A frame in flight. Storage for these is lent to the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SentFrame {
    cargo: Cargo,
    bytes: u32,
    sent_at: Time,
    outstanding: bool,
}

/// Nothing later than this many packets below the highest acknowledged one is waited for.
const PACKET_THRESHOLD: u64 = 3;

/// The packets `oldest..next` of one session and direction, at most as many as the lent ring holds.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Where this flight's ring begins in the lent storage.
    base: u32,
    mask: u64,
    oldest: u64,
    next: u64,
    bytes: u64,
    highest_acked: Option<u64>,
    last_sent_at: Time,
}

/// What an acknowledged or lost frame was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled {
    pub(crate) cargo: Cargo,
    pub(crate) bytes: u32,
    pub(crate) sent_at: Time,
    pub(crate) packet: u64,
}

impl Flight {
    /// A flight over `ring[base..base + capacity]`, `capacity` a power of two.
    pub(crate) fn new(base: u32, capacity: u32) -> Flight {
        debug_assert!(capacity.is_power_of_two());
        Flight {
            base,
            mask: u64::from(capacity) - 1,
            // Packet 0 stands for "no number" on the wire.
            oldest: 1,
            next: 1,
            bytes: 0,
            highest_acked: None,
            last_sent_at: Time::default(),
        }
    }

    pub(crate) fn reset(&mut self) {
        *self = Flight::new(self.base, (self.mask + 1) as u32);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.next - self.oldest > self.mask
    }

    /// How many frames it takes.
    pub(crate) fn capacity(&self) -> u64 {
        self.mask + 1
    }

    /// How many more frames it takes.
    pub(crate) fn room(&self) -> u64 {
        self.mask + 1 - (self.next - self.oldest)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.oldest == self.next
    }

    /// Bytes in flight.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn last_sent_at(&self) -> Time {
        self.last_sent_at
    }

    /// Records a frame and returns its packet number. The flight must not be full.
    pub(crate) fn send(&mut self, ring: &mut [SentFrame], now: Time, cargo: Cargo, bytes: u32) -> u64 {
        debug_assert!(!self.is_full());
        let packet = self.next;
        self.next += 1;
        self.bytes += u64::from(bytes);
        self.last_sent_at = now;
        *self.at(ring, packet) = SentFrame { cargo, bytes, sent_at: now, outstanding: true };
        packet
    }

    /// The full packet number behind 32 bits of it, if it was ever sent and may still be in the ring.
    #[inline]
    pub(crate) fn expand(&self, low: u32) -> Option<u64> {
        let last = self.next - 1;
        let behind = (last as u32).wrapping_sub(low);
        last.checked_sub(u64::from(behind)).filter(|p| *p > 0)
    }

    /// Those of `first..=last` that may be outstanding.
    #[inline]
    pub(crate) fn within(&self, first: u64, last: u64) -> core::ops::Range<u64> {
        first.max(self.oldest)..(last + 1).min(self.next)
    }

    /// Takes an outstanding packet out because it was acknowledged.
    #[inline]
    pub(crate) fn acknowledge(&mut self, ring: &mut [SentFrame], packet: u64) -> Option<Settled> {
        if packet < self.oldest || packet >= self.next {
            return None;
        }
        let settled = self.settle(ring, packet)?;
        self.highest_acked = Some(self.highest_acked.map_or(packet, |h| h.max(packet)));
        Some(settled)
    }

    /// Takes out the oldest outstanding packet if it counts as lost: overtaken by [`PACKET_THRESHOLD`] others, or sent
    /// `loss_delay` before `now` and overtaken at all.
    #[inline]
    pub(crate) fn take_lost(
        &mut self,
        ring: &mut [SentFrame],
        from: &mut u64,
        now: Time,
        loss_delay: u64,
    ) -> Option<Settled> {
        let highest = self.highest_acked?;
        *from = (*from).max(self.oldest);
        while *from < highest {
            let packet = *from;
            let frame = *self.at(ring, packet);
            let lost = packet + PACKET_THRESHOLD <= highest || frame.sent_at + loss_delay <= now;
            if frame.outstanding && !lost {
                return None;
            }
            *from += 1;
            if frame.outstanding {
                return self.settle(ring, packet);
            }
        }
        None
    }

    /// When the oldest overtaken packet will count as lost.
    #[inline]
    pub(crate) fn loss_time(&self, ring: &[SentFrame], loss_delay: u64) -> Option<Time> {
        let highest = self.highest_acked?;
        (self.oldest..highest.min(self.next))
            .map(|p| &ring[self.index(p)])
            .find(|f| f.outstanding)
            .map(|f| f.sent_at + loss_delay)
    }

    /// Takes out the oldest outstanding packet, whatever its age, to send its cargo again as a probe.
    pub(crate) fn take_oldest(&mut self, ring: &mut [SentFrame]) -> Option<Settled> {
        let packet = (self.oldest..self.next).find(|p| ring[self.index(*p)].outstanding)?;
        self.settle(ring, packet)
    }

    /// Whether there is an outstanding packet of such a length.
    pub(crate) fn any(&self, ring: &[SentFrame], is: impl Fn(u32) -> bool) -> bool {
        (self.oldest..self.next).map(|p| &ring[self.index(p)]).any(|f| f.outstanding && is(f.bytes))
    }

    /// Takes out every outstanding packet that carried something of `key`; `settled` learns of each.
    pub(crate) fn forget(&mut self, ring: &mut [SentFrame], key: RequestKey, settled: impl FnMut(Settled)) {
        self.take_where(ring, |cargo| cargo.key() == Some(key), settled);
    }

    /// Takes out every outstanding packet with such a cargo; `settled` learns of each.
    pub(crate) fn take_where(
        &mut self,
        ring: &mut [SentFrame],
        wanted: impl Fn(&Cargo) -> bool,
        mut settled: impl FnMut(Settled),
    ) {
        for packet in self.oldest..self.next {
            let frame = &ring[self.index(packet)];
            if frame.outstanding
                && wanted(&frame.cargo)
                && let Some(s) = self.settle(ring, packet)
            {
                settled(s);
            }
        }
    }

    fn settle(&mut self, ring: &mut [SentFrame], packet: u64) -> Option<Settled> {
        let frame = self.at(ring, packet);
        if !frame.outstanding {
            return None;
        }
        frame.outstanding = false;
        let settled = Settled { cargo: frame.cargo, bytes: frame.bytes, sent_at: frame.sent_at, packet };
        self.bytes -= u64::from(settled.bytes);
        while self.oldest < self.next && !self.at(ring, self.oldest).outstanding {
            self.oldest += 1;
        }
        Some(settled)
    }

    fn index(&self, packet: u64) -> usize {
        self.base as usize + (packet & self.mask) as usize
    }

    fn at<'r>(&self, ring: &'r mut [SentFrame], packet: u64) -> &'r mut SentFrame {
        &mut ring[self.index(packet)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRAP: u64 = 1 << 32;

    /// A flight whose next packet has this number.
    fn flight_at(next: u64, ring: &[SentFrame]) -> Flight {
        Flight { oldest: next, next, ..Flight::new(0, ring.len() as u32) }
    }

    #[test]
    fn numbers_go_on_past_32_bits() {
        let mut ring = [SentFrame::default(); 16];
        let mut flight = flight_at(WRAP - 5, &ring);
        for n in 0..10 {
            assert_eq!(flight.send(&mut ring, Time::default(), Cargo::None, 100), WRAP - 5 + n);
        }
        for n in [9, 4, 5, 6, 0] {
            let low = (WRAP - 5 + n) as u32;
            assert_eq!(flight.expand(low), Some(WRAP - 5 + n));
            assert_eq!(flight.acknowledge(&mut ring, WRAP - 5 + n).map(|s| s.packet), Some(WRAP - 5 + n));
            assert!(flight.acknowledge(&mut ring, WRAP - 5 + n).is_none(), "acknowledged twice");
        }
        assert_eq!((flight.bytes(), flight.oldest), (500, WRAP - 4));
        // A number that was not sent yet is one of long ago, which is not in flight.
        let ahead = flight.expand((WRAP + 5) as u32).unwrap();
        assert_eq!(ahead, 5);
        assert!(flight.within(ahead, ahead).is_empty() && flight.acknowledge(&mut ring, ahead).is_none());
    }

    #[test]
    fn numbers_that_were_never_sent_are_nothing() {
        let ring = [SentFrame::default(); 16];
        let mut flight = flight_at(1, &ring);
        assert_eq!([0, 1, 2, u32::MAX].map(|low| flight.expand(low)), [None; 4]);
        flight.send(&mut ring.clone(), Time::default(), Cargo::None, 1);
        assert_eq!([0, 1, 2, u32::MAX].map(|low| flight.expand(low)), [None, Some(1), None, None]);
    }

    #[test]
    fn what_is_overtaken_by_three_or_is_late_is_lost() {
        let mut ring = [SentFrame::default(); 16];
        let mut flight = flight_at(WRAP - 2, &ring);
        let sent: Vec<u64> =
            (0..6).map(|n| flight.send(&mut ring, Time::from_nanos(n * 10), Cargo::None, 100)).collect();
        let mut from = 0;
        let mut lost = |flight: &mut Flight, ring: &mut [SentFrame], now| {
            std::iter::from_fn(|| flight.take_lost(ring, &mut from, Time::from_nanos(now), 1000).map(|s| s.packet))
                .collect::<Vec<_>>()
        };
        assert_eq!(lost(&mut flight, &mut ring, 10_000), [], "nothing overtook anything");
        flight.acknowledge(&mut ring, sent[4]);
        assert_eq!(lost(&mut flight, &mut ring, 100), sent[..2]);
        assert_eq!(flight.loss_time(&ring, 1000), Some(Time::from_nanos(1020)));
        assert_eq!(lost(&mut flight, &mut ring, 1020), sent[2..3]);
        assert_eq!(lost(&mut flight, &mut ring, 9000), sent[3..4], "the last one was not overtaken");
        assert_eq!((flight.bytes(), flight.is_empty()), (100, false));
    }

    #[test]
    fn it_is_full_when_its_ring_is() {
        let mut ring = [SentFrame::default(); 16];
        let mut flight = flight_at(WRAP - 8, &ring);
        while !flight.is_full() {
            flight.send(&mut ring, Time::default(), Cargo::None, 1);
        }
        assert_eq!(flight.bytes(), 16);
        flight.acknowledge(&mut ring, WRAP);
        assert!(flight.is_full(), "the oldest is still out");
        flight.acknowledge(&mut ring, WRAP - 8);
        assert!(!flight.is_full());
    }
}
