//! The client's record of one request.

use splitrpc_ring::RequestKey;
use splitrpc_wire::MAX_MANIFEST_LEN;

use crate::Time;
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum State {
    #[default]
    Free,
    /// Request on its way, response not complete.
    Open,
}

/// A request's record. Storage for these is lent to the engine.
#[derive(Clone, Debug)]
pub struct ClientSlot {
    pub(super) state: State,
    pub(super) generation: u32,
    pub(super) id: u64,
    pub(super) model: u16,
    pub(super) priority: u8,
    pub(super) repeatable: bool,
    pub(super) deadline: Time,
    pub(super) head: [u8; MAX_MANIFEST_LEN],
    pub(super) head_len: u16,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    /// The response's manifest is known.
    pub(super) sized: bool,
    /// A frame of the response has come.
    pub(super) answered: bool,
    /// Without news by then the server is asked about it.
    pub(super) ask_at: Time,
    /// How often that happened since the last news.
    pub(super) asked: u8,
}

impl Default for ClientSlot {
    fn default() -> Self {
        ClientSlot {
            state: State::Free,
            generation: 0,
            id: 0,
            model: 0,
            priority: 0,
            repeatable: false,
            deadline: Time::NEVER,
            head: [0; MAX_MANIFEST_LEN],
            head_len: 0,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            sized: false,
            answered: false,
            ask_at: Time::NEVER,
            asked: 0,
        }
    }
}

impl ClientSlot {
    pub(super) fn key(&self, index: usize) -> RequestKey {
        RequestKey { index: index as u32, generation: self.generation }
    }
}
