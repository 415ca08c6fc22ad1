//! Packet numbers that were received, and when they must be acknowledged.

use splitrpc_wire::ack::{AckRange, MAX_ACK_RANGES};

use crate::Time;
use crate::ranges::RangeSet;
use crate::rtt::MAX_ACK_DELAY;

/// Unacknowledged packets after which an acknowledgement no longer waits. Many, since taking one in costs a sender as much
/// as sending a dozen frames, and who needs to hear earlier asks.
const PACKETS_PER_ACK: u32 = 256;
/// Unacknowledged packets after which an acknowledgement leaves along with data. With fewer it waits for more, or for its
/// time: on its way it costs both sides as much as a small message.
const PACKETS_PER_RIDE: u32 = 8;
/// What lies further below the highest packet than any flight is long is settled. Numbers travel as 32 bits and are
/// compared within half of their circle, so that old gaps must not be kept for ever.
const HORIZON: u64 = 1 << 24;

/// One session's received packets in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    packets: RangeSet<MAX_ACK_RANGES>,
    /// Everything below was received or is given up.
    floor: u64,
    highest_at: Time,
    unacked: u32,
    /// When the pending acknowledgement must leave.
    due: Time,
}

impl Received {
    pub(crate) fn new() -> Received {
        Received { packets: RangeSet::new(), floor: 1, highest_at: Time::default(), unacked: 0, due: Time::NEVER }
    }

    /// The full packet number behind 32 bits of it, nearest to the highest received.
    #[inline]
    pub(crate) fn expand(&self, low: u32) -> u64 {
        let highest = self.highest();
        let ahead = low.wrapping_sub(highest as u32) as i32;
        highest.saturating_add_signed(i64::from(ahead))
    }

    /// Whether this packet was received before, or is too old to tell.
    pub(crate) fn is_duplicate(&self, packet: u64) -> bool {
        packet < self.floor || self.packets.contains(packet, packet + 1)
    }

    /// Records a packet whose frame was dealt with.
    pub(crate) fn record(&mut self, now: Time, packet: u64, ack_now: bool) {
        self.record_train(now, packet, 1, ack_now);
    }

    /// Records as many packets in a row, `first` and those after it, whose frames were dealt with.
    #[inline]
    pub(crate) fn record_train(&mut self, now: Time, first: u64, count: u32, ack_now: bool) {
        let end = first + u64::from(count);
        if end <= self.floor {
            self.due = now;
            return;
        }
        let highest = self.highest();
        let in_order = first == highest + 1;
        let mut first = first.max(self.floor);
        while !self.packets.can_insert(first, end) {
            let lowest = self.packets.first();
            self.packets.forget_lowest();
            self.floor = lowest.map_or(self.floor, |(_, end)| end);
            first = first.max(self.floor);
        }
        // There is room: made just above.
        let _ = self.packets.insert(first, end);
        if end - 1 > highest {
            self.highest_at = now;
            while let Some((_, gone)) = self.packets.first().filter(|(_, gone)| gone + HORIZON < end - 1) {
                self.packets.forget_lowest();
                self.floor = gone;
            }
        }
        self.unacked += count;
        let at_once = ack_now || !in_order || self.unacked >= PACKETS_PER_ACK;
        self.due = self.due.min(if at_once { now } else { now + MAX_ACK_DELAY });
    }

    /// Records packets in a row whose content was here already: the peer has not heard of it yet.
    pub(crate) fn record_again(&mut self, now: Time, first: u64, count: u32, ack_now: bool) {
        for packet in first..first + u64::from(count) {
            if !self.is_duplicate(packet) {
                self.record(now, packet, ack_now);
            }
        }
        self.remind(now);
    }

    /// A duplicate arrived: the peer has not heard of it yet.
    fn remind(&mut self, now: Time) {
        self.unacked = self.unacked.max(1);
        self.due = self.due.min(now + MAX_ACK_DELAY / 4);
    }

    /// Something else told the peer what it must know; a delayed acknowledgement is no longer needed.
    pub(crate) fn satisfied(&mut self, now: Time) {
        if self.due > now {
            self.due = Time::NEVER;
            self.unacked = 0;
        }
    }

    /// What awaits acknowledgement waits no longer.
    pub(crate) fn hurry(&mut self, now: Time) {
        if self.pending() {
            self.due = self.due.min(now);
        }
    }

    /// When the pending acknowledgement must leave; [`Time::NEVER`] for none.
    pub(crate) fn due(&self) -> Time {
        self.due
    }

    /// Whether so much awaits acknowledgement that it should leave along with data.
    pub(crate) fn may_ride(&self) -> bool {
        self.pending() && self.unacked >= PACKETS_PER_RIDE
    }

    /// Whether anything awaits acknowledgement, due or not.
    pub(crate) fn pending(&self) -> bool {
        self.due != Time::NEVER
    }

    /// The ranges to acknowledge, highest first, and the delay since the highest in microseconds. Settles what is pending.
    pub(crate) fn take_ack(&mut self, now: Time, out: &mut heapless::Vec<AckRange, MAX_ACK_RANGES>) -> u32 {
        out.clear();
        for (first, end) in self.packets.iter().rev() {
            // Both have the same capacity.
            let _ = out.push(AckRange::new(first as u32, (end - 1) as u32));
        }
        self.unacked = 0;
        self.due = Time::NEVER;
        u32::try_from(now.since(self.highest_at) / 1_000).unwrap_or(u32::MAX)
    }

    fn highest(&self) -> u64 {
        self.packets.last().map_or(self.floor - 1, |(_, end)| end - 1)
    }
}

#[cfg(test)]
mod tests {
    use splitrpc_wire::ack::{Ack, MAX_ACK_LEN};

    use super::*;

    const WRAP: u64 = 1 << 32;

    /// The ranges that would be acknowledged; the peer accepts them.
    fn acked(received: &mut Received) -> Vec<(u32, u32)> {
        let mut ranges = heapless::Vec::new();
        let delay_us = received.take_ack(Time::default(), &mut ranges);
        let mut bytes = [0; MAX_ACK_LEN];
        let length = Ack { window: 0, delay_us, ranges: &ranges }.write(&mut bytes);
        let ack = Ack::parse(&bytes[..length]).unwrap();
        ack.ranges.iter().map(|r| (r.first(), r.last())).collect()
    }

    #[test]
    fn numbers_go_on_past_32_bits() {
        let mut received = Received::new();
        received.record(Time::default(), WRAP - 10, false);
        for n in [1, 2, 3, 5, 4, 11, 10, 9, 12, 7] {
            let packet = WRAP - 10 + n;
            assert_eq!(received.expand(packet as u32), packet);
            assert!(!received.is_duplicate(packet));
            received.record(Time::default(), packet, false);
            assert!(received.is_duplicate(packet));
        }
        assert_eq!(acked(&mut received), [(u32::MAX, 2), (u32::MAX - 2, u32::MAX - 2), (u32::MAX - 9, u32::MAX - 4)]);
    }

    #[test]
    fn an_old_gap_does_not_spoil_acknowledgements_for_ever() {
        let mut received = Received::new();
        for packet in [1, 2, 4, 5] {
            received.record(Time::default(), packet, false);
        }
        assert_eq!(acked(&mut received), [(4, 5), (1, 2)]);
        // Further than numbers of 32 bits can be compared.
        for packet in [HORIZON, 2 * HORIZON, 1 << 31, (1 << 31) + (1 << 30), WRAP] {
            received.record(Time::default(), packet, false);
            let ranges = acked(&mut received);
            assert_eq!(ranges[0], (packet as u32, packet as u32));
        }
        assert!(received.is_duplicate(3), "given up");
    }

    #[test]
    fn more_gaps_than_fit_push_the_oldest_out() {
        let mut received = Received::new();
        for packet in 1..=100 {
            received.record(Time::default(), 2 * packet, false);
        }
        let ranges = acked(&mut received);
        assert_eq!((ranges.len(), ranges[0], ranges[31]), (MAX_ACK_RANGES, (200, 200), (138, 138)));
        assert!(received.is_duplicate(99) && !received.is_duplicate(199));
        received.record(Time::default(), 99, false);
        assert!(received.pending(), "the peer is told what is known of it");
    }
}
