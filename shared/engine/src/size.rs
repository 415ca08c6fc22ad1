//! How large datagrams are: as negotiated, or the smallest that every path takes while this one seems to refuse others.

use splitrpc_wire::hello::MIN_DATAGRAM;

use crate::Time;
use crate::time::{MS, SEC};

/// How long they stay small before a single large one is tried, at first; a try in vain doubles it. What looked like the path
/// may have been a peer that stood still, and paths change.
const FIRST_GAP: u64 = SEC;
const MAX_GAP: u64 = 3600 * SEC;
/// For how long, and how many, large ones get lost with none between them that arrives, while others do, before that is taken
/// for the path's doing: a full queue loses many at a time, but not for long.
const MISSED_FOR: u64 = 300 * MS;
const MISSED: u8 = 8;

/// The size of one direction's datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatagramSize {
    bytes: u16,
    negotiated: u16,
    grow_at: Time,
    gap: u64,
    /// Large ones lost since one arrived, and when the first of them was.
    missed: u8,
    missed_since: Time,
}

impl DatagramSize {
    pub(crate) const fn new(negotiated: u16) -> DatagramSize {
        let (grow_at, gap) = (Time::NEVER, FIRST_GAP);
        DatagramSize { bytes: negotiated, negotiated, grow_at, gap, missed: 0, missed_since: Time::NEVER }
    }

    pub(crate) fn bytes(&self) -> u16 {
        self.bytes
    }

    /// What the session began with.
    pub(crate) fn negotiated(&self) -> u16 {
        self.negotiated
    }

    pub(crate) fn has_shrunk(&self) -> bool {
        self.bytes < self.negotiated
    }

    pub(crate) fn shrink(&mut self, now: Time) {
        self.bytes = MIN_DATAGRAM;
        self.missed = 0;
        self.put_off(now);
    }

    /// The most that the next datagram may have: more than the others while it is time to try what the path takes.
    pub(crate) fn next(&self, now: Time) -> u16 {
        if self.has_shrunk() && self.grow_at <= now { self.negotiated } else { self.bytes }
    }

    /// A datagram of so many bytes is sent. Returns whether it is a try, beside which no other is to be sent.
    pub(crate) fn tries(&mut self, now: Time, bytes: u32) -> bool {
        let tries = bytes > u32::from(self.bytes);
        if tries {
            self.put_off(now);
        }
        tries
    }

    /// A datagram of so many bytes arrived.
    pub(crate) fn carried(&mut self, bytes: u32) {
        if bytes > u32::from(MIN_DATAGRAM) {
            self.bytes = self.negotiated;
            self.gap = FIRST_GAP;
            self.missed = 0;
        }
    }

    /// A datagram of so many bytes was lost, while others arrived.
    pub(crate) fn missed(&mut self, now: Time, bytes: u32) {
        if bytes <= u32::from(MIN_DATAGRAM) || self.has_shrunk() {
            return;
        }
        if self.missed == 0 {
            self.missed_since = now;
        }
        self.missed = self.missed.saturating_add(1);
        if self.missed >= MISSED && now.since(self.missed_since) >= MISSED_FOR {
            self.shrink(now);
        }
    }

    fn put_off(&mut self, now: Time) {
        self.grow_at = now + self.gap;
        self.gap = (2 * self.gap).min(MAX_GAP);
    }
}
