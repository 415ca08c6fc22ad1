//! How a server goes: it refuses what is new, finishes what it has begun, and tells every client.

use splitrpc_wire::{Header, Kind, Status};

use super::transmit::{Body, Control, Transmit};
use super::{Server, Verdict};
use crate::config::NO_INDEX;
use crate::congestion::Congestion;

/// A walk over the sessions that tells them of the server's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Farewell {
    /// The session that is looked at next.
    next: usize,
    /// No session is spared.
    at_last: bool,
}

impl Default for Farewell {
    fn default() -> Self {
        Farewell { next: usize::MAX, at_last: false }
    }
}

impl<C: Congestion> Server<'_, C> {
    /// Refuses new sessions and requests from now on; those under way go on.
    pub fn begin_drain(&mut self) {
        self.draining = true;
    }

    /// Has [`Server::poll_transmit`] tell every session that the server goes, behind all else that is to be sent. One of
    /// which something is under way is told only `at_last`, and what that is is given up then.
    ///
    /// ERROR Draining tells a client that nothing was executed of what it has no answer to; GOODBYE leaves that open. Either
    /// is the last frame of a stream.
    pub fn say_farewell(&mut self, at_last: bool) {
        self.farewell = Farewell { next: 0, at_last };
    }

    pub(super) fn next_farewell(&mut self) -> Option<Transmit<'_>> {
        while let Some(session) = self.sessions.get(self.farewell.next) {
            let index = self.farewell.next;
            self.farewell.next += 1;
            let too_soon = session.first != NO_INDEX && !self.farewell.at_last;
            if !session.open || session.departed || too_soon {
                continue;
            }
            self.sessions[index].departed = true;
            self.stats.frames_out += 1;
            let control = self.farewell_to(index as u32);
            self.give_up(index as u32);
            return Some(self.control_frame(control));
        }
        None
    }

    /// Nothing more is said to a session that was told, but for what the port has begun to write.
    fn give_up(&mut self, session: u32) {
        let mut index = self.sessions[session as usize].first;
        // It is told the same again.
        self.sessions[session as usize].unconfirmed |= index != NO_INDEX;
        while index != NO_INDEX {
            let request = &self.requests[index as usize];
            let next = request.next;
            if !request.handed_out {
                self.abandon(index);
            }
            index = next;
        }
    }

    fn farewell_to(&self, session: u32) -> Control {
        let session = &self.sessions[session as usize];
        // A request that has a record may have been executed without its client knowing of it.
        let (kind, body) = match session.first != NO_INDEX || session.unconfirmed {
            true => (Kind::Goodbye, Body::Empty),
            false => (Kind::Error, Body::status(Status::Draining, "")),
        };
        Control { peer: session.peer, header: Header { session: session.id, ..Header::new(kind) }, body }
    }

    /// A session that was told already says something: it has not heard, or not yet.
    pub(super) fn repeat_farewell(&mut self, session: u32, kind: Kind) -> Verdict {
        if matches!(kind, Kind::Request | Kind::List | Kind::Ping) {
            let control = self.farewell_to(session);
            self.push_control(control);
        }
        Verdict::Discard
    }
}
