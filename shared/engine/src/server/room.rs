//! How the socket's room is shared out among the datagram clients that send.

use super::Server;
use crate::Time;
use crate::congestion::Congestion;

/// The smallest window, however many share the room: one segmented send of the smallest datagrams or so. Clients whose
/// requests are no larger take no share.
const LEAST: u64 = 16 << 10;
/// A client counts as one that sends in the period of this length, in nanoseconds, in which it does, and in the next.
const PERIOD: u64 = 1 << 24;

/// How many clients send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Senders {
    /// The number of the latest period in which one did.
    period: u32,
    /// Those of that period, and of the one before.
    count: u32,
    before: u32,
}

impl Senders {
    fn period_at(now: Time) -> u32 {
        // Counted from 1, so that 0 is none.
        (now.nanos() / PERIOD + 1) as u32
    }

    /// A client sends that did last in the period `last`. Returns the period that it is now.
    fn note(&mut self, now: Time, last: u32) -> u32 {
        let period = Senders::period_at(now);
        if period != self.period {
            let follows = period == self.period.wrapping_add(1);
            *self = Senders { period, count: 0, before: if follows { self.count } else { 0 } };
        }
        self.count += u32::from(last != period);
        period
    }

    fn at(&self, now: Time) -> u32 {
        match Senders::period_at(now).wrapping_sub(self.period) {
            0 => self.count.max(self.before),
            1 => self.count,
            _ => 0,
        }
    }
}

impl<C: Congestion> Server<'_, C> {
    /// A datagram client sends a request of `total` bytes.
    pub(super) fn note_sender(&mut self, now: Time, session: u32, total: u32) {
        if u64::from(total) > LEAST {
            let session = &mut self.sessions[session as usize];
            session.sent_in = self.senders.note(now, session.sent_in);
        }
    }

    /// Bytes that each datagram client may have under way now.
    pub(super) fn window(&self, now: Time) -> u64 {
        let share = self.config.receive_room / u64::from(self.senders.at(now).max(1));
        share.clamp(LEAST, self.config.receive_window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_once_and_until_the_next_period_is_over() {
        let at = |periods: u64| Time::from_nanos(periods * PERIOD + 5);
        let mut senders = Senders::default();
        assert_eq!(senders.at(at(0)), 0);
        let mut clients = [0; 3];
        for _ in 0..4 {
            for last in &mut clients {
                *last = senders.note(at(7), *last);
            }
        }
        assert_eq!((senders.at(at(7)), senders.at(at(8)), senders.at(at(9))), (3, 3, 0));
        clients[0] = senders.note(at(8), clients[0]);
        assert_eq!((senders.at(at(8)), senders.at(at(9)), senders.at(at(10))), (3, 1, 0));
        senders.note(at(20), clients[0]);
        assert_eq!(senders.at(at(20)), 1);
    }
}
