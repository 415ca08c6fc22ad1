//! The lines in which responses wait to be sent.

use splitrpc_ring::RequestKey;

use super::{Server, State};
use crate::config::NO_INDEX;
use crate::congestion::Congestion;

/// A list linked through [`RequestSlot::next_out`].
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl List {
    pub(super) const EMPTY: List = List { first: NO_INDEX, last: NO_INDEX };
}

/// How many urgencies are told apart.
pub const LEVELS: usize = 4;

/// 1 is the highest priority on the wire; 0 stands for the model's default and is resolved before this.
fn level(priority: u8) -> usize {
    match priority {
        1 => 0,
        0 | 2 => 1,
        3 => 2,
        _ => 3,
    }
}

impl<C: Congestion> Server<'_, C> {
    /// How urgent a request is, below [`LEVELS`]: less is more urgent. `None` once it is arriving no more.
    #[must_use]
    pub fn urgency(&self, request: RequestKey) -> Option<usize> {
        self.receiving(request).map(|index| level(self.requests[index as usize].priority))
    }

    /// Puts a response in line: streams share lines by urgency, a datagram session has its own.
    pub(super) fn enqueue_response(&mut self, session: u32, index: u32) {
        if self.is_stream(session) {
            let list = &mut self.out[level(self.requests[index as usize].priority)];
            self.requests[index as usize].next_out = NO_INDEX;
            match list.last {
                NO_INDEX => list.first = index,
                last => self.requests[last as usize].next_out = index,
            }
            list.last = index;
            return;
        }
        let urgency = level(self.requests[index as usize].priority);
        let mut before = NO_INDEX;
        let mut at = self.sessions[session as usize].first_out;
        while at != NO_INDEX && level(self.requests[at as usize].priority) <= urgency {
            before = at;
            at = self.requests[at as usize].next_out;
        }
        self.requests[index as usize].next_out = at;
        match before {
            NO_INDEX => self.sessions[session as usize].first_out = index,
            before => self.requests[before as usize].next_out = index,
        }
    }

    pub(super) fn pop_out(&mut self, level: usize) -> Option<u32> {
        let first = self.out[level].first;
        if first == NO_INDEX {
            return None;
        }
        let next = self.requests[first as usize].next_out;
        self.requests[first as usize].next_out = NO_INDEX;
        self.out[level] = if next == NO_INDEX { List::EMPTY } else { List { first: next, ..self.out[level] } };
        Some(first)
    }

    /// Takes a request out of the line in which its response stands, if it stands in one.
    pub(super) fn unlink_out(&mut self, index: u32) {
        if self.requests[index as usize].state != State::Responding {
            return;
        }
        let session = self.requests[index as usize].session;
        let next = self.requests[index as usize].next_out;
        if self.requests[index as usize].handed_out {
            // It left its line when the port took it.
        } else if self.is_stream(session) {
            for level in 0..LEVELS {
                let List { mut first, last } = self.out[level];
                let before = self.before_in(first, index);
                if first == index {
                    first = next;
                }
                let last = match (before, last == index) {
                    (Some(before), true) => before,
                    (None, true) => NO_INDEX,
                    _ => last,
                };
                if let Some(before) = before {
                    self.requests[before as usize].next_out = next;
                }
                self.out[level] = List { first, last };
            }
        } else {
            let first = self.sessions[session as usize].first_out;
            if first == index {
                self.sessions[session as usize].first_out = next;
            } else if let Some(before) = self.before_in(first, index) {
                self.requests[before as usize].next_out = next;
            }
        }
        self.requests[index as usize].next_out = NO_INDEX;
    }

    fn before_in(&self, mut at: u32, index: u32) -> Option<u32> {
        while at != NO_INDEX {
            let after = self.requests[at as usize].next_out;
            if after == index {
                return Some(at);
            }
            at = after;
        }
        None
    }
}
