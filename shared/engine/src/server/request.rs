//! The server's record of one request.

use splitrpc_ring::{RequestKey, Run};
use splitrpc_wire::path::PATH_LEN;
use splitrpc_wire::{MAX_MANIFEST_LEN, Status};

use crate::Time;
use crate::config::NO_INDEX;
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;

/// Where a request is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// The record is free.
    #[default]
    Free,
    /// Its bytes are arriving.
    Receiving,
    /// The orchestrator has it.
    Submitted,
    /// The orchestrator has it, and nobody waits for it any more.
    Orphaned,
    /// Its response is being sent; over datagrams until the client has it.
    Responding,
    /// It failed; kept so that a duplicate gets the same answer.
    Failed(Status),
}

/// A request's record. Storage for these is lent to the engine.
#[derive(Clone, Debug)]
pub struct RequestSlot {
    pub(crate) state: State,
    pub(crate) generation: u32,
    /// The client's number for it.
    pub(crate) id: u64,
    pub(crate) session: u32,
    /// Next of the same session, or next free.
    pub(crate) next: u32,
    /// Next in the session's or server's list of responses to send.
    pub(crate) next_out: u32,
    pub(crate) model: u16,
    pub(crate) priority: u8,
    pub(crate) input: Run,
    /// The number of the session whose share its input slots count in. It stays when nobody waits for the request any more.
    pub(crate) payer: u64,
    pub(crate) output: Run,
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Outgoing,
    /// Response manifest.
    pub(crate) head: [u8; MAX_MANIFEST_LEN],
    pub(crate) head_len: u16,
    pub(crate) deadline: Time,
    pub(crate) begun_at: Time,
    pub(crate) arrived_at: Time,
    /// Completion came back, failure happened, or the reply first left whole.
    pub(crate) settled_at: Time,
    pub(crate) copied: u32,
    pub(crate) fixup: u32,
    /// Bytes and time at the last check of the minimum progress.
    pub(crate) progress_mark: (u64, Time),
    /// Stream bytes that are in place of a frame still arriving.
    pub(crate) partial: u64,
    /// The link took its submission; nothing of it can come back before.
    pub(crate) taken: bool,
    /// The response's path is complete, or it has none.
    pub(crate) header_built: bool,
    /// Streams: the port has the response and reads its slots until it says that all of it was sent.
    pub(crate) handed_out: bool,
    /// Datagrams: the answer left whole at least once and is counted among the kept ones.
    pub(crate) kept: bool,
    /// Failures: the error frame found room among the control frames.
    pub(crate) told: bool,
    pub(crate) last_resend: Time,
}

impl Default for RequestSlot {
    fn default() -> Self {
        RequestSlot {
            state: State::Free,
            generation: 0,
            id: 0,
            session: NO_INDEX,
            next: NO_INDEX,
            next_out: NO_INDEX,
            model: 0,
            priority: 0,
            input: Run::NONE,
            payer: 0,
            output: Run::NONE,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            head: [0; MAX_MANIFEST_LEN],
            head_len: 0,
            deadline: Time::NEVER,
            begun_at: Time::default(),
            arrived_at: Time::default(),
            settled_at: Time::default(),
            copied: 0,
            fixup: 0,
            progress_mark: (0, Time::default()),
            partial: 0,
            taken: false,
            header_built: false,
            handed_out: false,
            kept: false,
            told: false,
            last_resend: Time::default(),
        }
    }
}

impl RequestSlot {
    pub(crate) fn key(&self, index: u32) -> RequestKey {
        RequestKey { index, generation: self.generation }
    }

    /// Whether it counts against its client's quota.
    pub(crate) fn in_flight(&self) -> bool {
        matches!(self.state, State::Receiving | State::Submitted)
    }

    /// The part of the response's manifest that holds its path.
    pub(crate) fn path_block(&mut self) -> &mut [u8] {
        const AT: usize = splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
        &mut self.head[AT..AT + PATH_LEN]
    }
}
