//! How the socket's room is shared out among those that send large requests: evenly among the addresses that datagram clients
//! come from, and what each has evenly among its sessions, so that nobody gets more by opening many.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Server;
use crate::Time;
use crate::congestion::Congestion;

/// The smallest window, however many share the room: one segmented send of the smallest datagrams or so. Who has no request
/// of which more than that has arrived takes no share, whatever it has announced.
const LEAST: u64 = 16 << 10;
/// Who sends counts as doing so in the period of this length, in nanoseconds, in which it does, and in the next.
const PERIOD: u64 = 1 << 24;

/// What is known of one address that datagram clients come from. Storage for these is lent to the engine.
#[derive(Clone, Copy, Debug)]
pub struct OriginSlot {
    address: IpAddr,
    /// Its open sessions. While there are none the record may become another address's.
    sessions: u32,
    /// Its sessions that send, those included that ended lately.
    senders: Senders,
}

impl Default for OriginSlot {
    fn default() -> Self {
        OriginSlot { address: Ipv4Addr::UNSPECIFIED.into(), sessions: 0, senders: Senders::default() }
    }
}

/// How many senders there are.
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

    /// One sends that did last in the period `last`. Returns the period that it is now.
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
    /// A datagram session opens. Returns the record of its address.
    pub(super) fn join_origin(&mut self, address: IpAddr) -> u32 {
        let address = network(address);
        let known = self.origins.iter().position(|origin| origin.address == address);
        let at = known.unwrap_or_else(|| {
            let unused = self.origins.iter().enumerate().filter(|(_, origin)| origin.sessions == 0);
            let (at, _) = unused
                .min_by_key(|(_, origin)| origin.senders.period)
                .expect("there are as many as sessions, of which one opens only now");
            self.origins[at] = OriginSlot { address, ..OriginSlot::default() };
            at
        });
        self.origins[at].sessions += 1;
        at as u32
    }

    /// A datagram session closes.
    pub(super) fn leave_origin(&mut self, origin: u32) {
        self.origins[origin as usize].sessions -= 1;
    }

    /// So many bytes have arrived of a request of the session with this channel, some of them now.
    pub(super) fn note_sender(&mut self, now: Time, channel: usize, bytes: u64) {
        if bytes > LEAST {
            let slot = &mut self.channels[channel];
            let origin = &mut self.origins[slot.origin as usize];
            self.senders.note(now, origin.senders.period);
            slot.sent_in = origin.senders.note(now, slot.sent_in);
        }
    }

    /// Bytes that a datagram session may have under way now.
    pub(super) fn window(&self, now: Time, session: u32) -> u64 {
        let origin = &self.origins[self.channels[self.channel_index(session)].origin as usize];
        let sharers = [self.senders, origin.senders].map(|senders| u64::from(senders.at(now).max(1)));
        let share = self.config.receive_room / (sharers[0] * sharers[1]);
        share.clamp(LEAST, self.config.receive_window)
    }
}

/// What stands for all the addresses that one host may well have.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
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

    #[test]
    fn a_host_is_the_same_by_whichever_of_its_addresses() {
        let network = |address: &str| network(address.parse().unwrap());
        assert_eq!(network("::ffff:10.0.0.2"), network("10.0.0.2"));
        assert_ne!(network("::ffff:10.0.0.2"), network("::ffff:10.0.0.3"));
        assert_eq!(network("2001:db8:0:1::2"), network("2001:db8:0:1:a:b:c:d"));
        assert_ne!(network("2001:db8:0:1::2"), network("2001:db8:0:2::2"));
    }
}
