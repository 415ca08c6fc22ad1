//! The server's record of one client.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::Time;
use crate::config::{MAX_REQUESTS_PER_CLIENT, NO_INDEX};

/// Who a frame came from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A stream by the port's number for it, less than the configured number of streams.
    Stream(u32),
    /// A datagram address.
    Datagram(SocketAddr),
}

/// A client's record. Storage for these is lent to the engine.
#[derive(Clone, Copy, Debug)]
pub struct SessionSlot {
    pub(crate) open: bool,
    /// A hello was answered.
    pub(crate) greeted: bool,
    /// It was told that the server goes.
    pub(crate) departed: bool,
    /// An answer was given up that its client may not have: something was executed of which it does not know.
    pub(crate) unconfirmed: bool,
    pub(crate) peer: Peer,
    pub(crate) id: u64,
    pub(crate) nonce: u64,
    pub(crate) last_heard: Time,
    /// When it opened, its last request frame came, or its last answer was confirmed.
    pub(crate) used_at: Time,
    /// First of its requests.
    pub(crate) first: u32,
    /// The record that its last request frame belonged to; the next one is likely to as well.
    pub(crate) recent: u32,
    /// First of its responses to send.
    pub(crate) first_out: u32,
    /// Its requests that are arriving or with the orchestrator.
    pub(crate) in_flight: u16,
    /// Its responses that have not left whole yet.
    pub(crate) leaving: u16,
    /// Datagrams: small frames to it that wait to be sent.
    pub(crate) controls: u16,
    /// Datagrams: stands in the queue of sessions that may have something to send.
    pub(crate) queued: bool,
    /// Next free datagram session.
    pub(crate) next_free: u32,
    pub(crate) max_response: u32,
}

impl Default for SessionSlot {
    fn default() -> Self {
        SessionSlot {
            open: false,
            greeted: false,
            departed: false,
            unconfirmed: false,
            peer: Peer::Datagram(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
            id: 0,
            nonce: 0,
            last_heard: Time::default(),
            used_at: Time::default(),
            first: NO_INDEX,
            recent: NO_INDEX,
            first_out: NO_INDEX,
            in_flight: 0,
            leaving: 0,
            controls: 0,
            queued: false,
            next_free: NO_INDEX,
            max_response: 0,
        }
    }
}

impl SessionSlot {
    /// Requests that count against the client's quota.
    pub(crate) fn held(&self) -> u16 {
        self.in_flight + self.leaving
    }
}

/// The request numbers of a datagram session that were executed, so that none is executed twice: a window below the
/// highest, everything older counts as executed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Executed {
    highest: u64,
    /// Highest number of which a frame of its request came.
    seen: u64,
    bits: [u64; 16],
}

const WINDOW: u64 = 1024;
/// How far ahead of the requests that were seen a cancelled one may be: as many as a client may have in flight. What is in
/// flight then still lies in the window.
const AHEAD: u64 = MAX_REQUESTS_PER_CLIENT as u64;
const _: () = assert!(2 * AHEAD <= WINDOW);

impl Executed {
    pub(crate) fn contains(&self, id: u64) -> bool {
        if id > self.highest {
            return false;
        }
        self.highest - id >= WINDOW || self.bits[Self::word(id)] & Self::bit(id) != 0
    }

    pub(crate) fn insert(&mut self, id: u64) {
        if id > self.highest {
            if id - self.highest >= WINDOW {
                self.bits = [0; 16];
            } else {
                for between in self.highest + 1..id {
                    self.bits[Self::word(between)] &= !Self::bit(between);
                }
            }
            self.highest = id;
        }
        self.bits[Self::word(id)] |= Self::bit(id);
    }

    /// A frame of this request came.
    pub(crate) fn see(&mut self, id: u64) {
        self.seen = self.seen.max(id);
    }

    /// Its client gave this request up. A number that no honest client can have got to would make all of them old, so it
    /// changes nothing.
    pub(crate) fn cancel(&mut self, id: u64) {
        if id <= self.seen.max(self.highest).saturating_add(AHEAD) {
            self.insert(id);
        }
    }

    fn word(id: u64) -> usize {
        (id % WINDOW / 64) as usize
    }

    fn bit(id: u64) -> u64 {
        1 << (id % 64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn executed_agrees_with_a_set(ids in proptest::collection::vec(1u64..5000, 1..400)) {
            let mut executed = Executed::default();
            let mut model = HashSet::new();
            let mut highest = 0;
            for id in ids {
                let old = highest > id && highest - id >= WINDOW;
                prop_assert_eq!(executed.contains(id), old || model.contains(&id));
                if !old {
                    executed.insert(id);
                    model.insert(id);
                    highest = highest.max(id);
                }
            }
        }
    }
}
