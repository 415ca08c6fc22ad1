//! Requests on their way to the host, in its hands, and on their way back.

use splitrpc_arena::{Arena, MAX_TENSORS, META_BYTES, Run, Span};
use splitrpc_engine::Time;
use splitrpc_ring::{Completion, RequestKey, Submission};
use splitrpc_wire::Manifest;

/// No ticket.
pub(super) const NONE: u32 = u32::MAX;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The ticket is free.
    Free,
    /// It still arrives, and what has arrived is copied.
    Early,
    /// Nobody submits it any more, and copies of it are under way.
    Abandoned,
    /// It is copied.
    Copying,
    /// All of it is at the host, which is yet to be told.
    Copied,
    /// The host has it.
    Submitted,
    /// The host has answered, and what it says of the answer is copied.
    Head,
    /// The answer's tensors are copied.
    Body,
}

/// Part of what is to be copied: a tensor, or a meta area.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    /// Where it lies in the slots' memory.
    pub(super) offset: usize,
    pub(super) len: u32,
    /// Bytes whose copies have begun.
    pub(super) begun: u32,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) state: State,
    pub(super) request: RequestKey,
    pub(super) input: Run,
    pub(super) submission: Submission,
    pub(super) completion: Completion,
    /// The client has cancelled it, and the host has not been told of it yet.
    pub(super) cancelled: bool,
    parts: [Part; MAX_TENSORS + 1],
    count: usize,
    /// Copies under way.
    pub(super) pending: u32,
    /// One of them did not arrive.
    pub(super) failed: bool,
    /// When it was submitted, and how long it took to get it there.
    pub(super) submitted: Time,
    pub(super) copy_in: u64,
    /// When the host's answer came.
    pub(super) answered: Time,
}

impl Flight {
    pub(super) const FREE: Flight = {
        let request = RequestKey { index: 0, generation: 0 };
        Flight {
            state: State::Free,
            request,
            input: Run::NONE,
            submission: Submission::Cancel { request },
            completion: Completion { request, status: splitrpc_wire::Status::Internal, output: Run::NONE },
            cancelled: false,
            parts: [Part { offset: 0, len: 0, begun: 0 }; MAX_TENSORS + 1],
            count: 0,
            pending: 0,
            failed: false,
            submitted: Time::NEVER,
            copy_in: 0,
            answered: Time::NEVER,
        }
    };

    /// A request whose first bytes have arrived.
    pub(super) fn begin(&mut self, request: RequestKey, input: Run) {
        *self = Flight { state: State::Early, request, input, ..Flight::FREE };
    }

    /// Bytes of a tensor from `start` to `len` are here. What lies between them and those that were here before may not be.
    pub(super) fn arrived(&mut self, arena: &Arena, tensor: u16, start: u32, len: u32) {
        let index = usize::from(tensor);
        let Some(span) = arena.span(self.input, tensor, 0, len) else { return };
        let Some(part) = self.parts.get_mut(index).filter(|part| start <= part.len) else { return };
        part.offset = offset(arena, span);
        part.len = part.len.max(len);
        self.count = self.count.max(index + 1);
    }

    /// All of it is here, as its manifest says. Returns whether that can be.
    pub(super) fn complete(&mut self, arena: &Arena, manifest: &Manifest<'_>) -> bool {
        let Some(meta) = arena.meta(self.input) else { return false };
        if std::mem::take(&mut self.failed) {
            // Which piece it was is not known.
            self.parts.iter_mut().for_each(|part| part.begun = 0);
        }
        for (index, tensor) in manifest.tensors().enumerate() {
            let Some(span) = arena.span(self.input, index as u16, 0, tensor.bytes) else { return false };
            let begun = self.parts[index].begun.min(tensor.bytes);
            self.parts[index] = Part { offset: offset(arena, span), len: tensor.bytes, begun };
        }
        let tensors = manifest.len();
        self.parts[tensors] = Part { offset: offset(arena, meta), len: manifest.as_bytes().len() as u32, begun: 0 };
        self.count = tensors + 1;
        true
    }

    /// What the host says of its answer, or why there is none, is to be brought. Returns whether there can be anything.
    pub(super) fn bring_head(&mut self, arena: &Arena, run: Run, len: u32) -> bool {
        let meta = arena.meta(run);
        self.count = usize::from(meta.is_some());
        self.failed = false;
        if let Some(meta) = meta {
            self.parts[0] = Part { offset: offset(arena, meta), len: len.min(META_BYTES), begun: 0 };
        }
        meta.is_some()
    }

    /// The answer's tensors are to be brought. Returns whether they can be where it says.
    pub(super) fn bring_body(&mut self, arena: &Arena, run: Run, manifest: &Manifest<'_>) -> bool {
        self.count = 0;
        for (index, tensor) in manifest.tensors().enumerate() {
            let Some(span) = arena.span(run, index as u16, 0, tensor.bytes) else { return false };
            self.parts[index] = Part { offset: offset(arena, span), len: tensor.bytes, begun: 0 };
            self.count = index + 1;
        }
        true
    }

    /// The next piece of at most so many bytes whose copy is to begin.
    pub(super) fn next_piece(&mut self, most: u32) -> Option<(usize, u32)> {
        let part = self.parts[..self.count].iter_mut().find(|part| part.begun < part.len)?;
        let len = most.min(part.len - part.begun);
        let offset = part.offset + part.begun as usize;
        part.begun += len;
        self.pending += 1;
        Some((offset, len))
    }

    /// The same of a request that still arrives, if it is of at least so many bytes.
    pub(super) fn next_early_piece(&mut self, least: u32, most: u32) -> Option<(usize, u32)> {
        let worth = |part: &Part| part.len - part.begun >= least;
        if self.parts[..self.count].iter().any(worth) { self.next_piece(most) } else { None }
    }

    /// Whether copies have yet to begin.
    pub(super) fn has_more(&self) -> bool {
        self.parts[..self.count].iter().any(|part| part.begun < part.len)
    }

    /// Whether two runs have a slot in common.
    pub(super) fn overlaps(&self, run: Run) -> bool {
        let mine = self.input;
        let end = |run: Run| run.first.saturating_add(run.rows.into());
        mine.pool == run.pool && mine.first < end(run) && run.first < end(mine)
    }
}

/// Where bytes of the slots' memory lie in it.
fn offset(arena: &Arena, span: Span<'_>) -> usize {
    span.as_ptr().addr() - arena.whole().as_ptr().addr()
}

#[cfg(test)]
mod tests {
    use splitrpc_arena::PoolLayout;

    use super::*;

    const RUN: Run = Run { pool: 0, rows: 1, first: 1, generation: 1 };

    fn flight() -> (Arena, Flight) {
        let arena = Arena::new("flight", &[(0, PoolLayout::new(&[1 << 20], 1, 2).unwrap())], 0).unwrap();
        let mut flight = Flight::FREE;
        flight.begin(RequestKey { index: 3, generation: 4 }, RUN);
        (arena, flight)
    }

    #[test]
    fn only_what_is_here_is_copied_early() {
        let (arena, mut flight) = flight();
        let begin = offset(&arena, arena.span(RUN, 0, 0, 1).unwrap());
        // A client may send its parts in any order.
        flight.arrived(&arena, 0, 500_000, 600_000);
        assert_eq!(flight.next_piece(1 << 20), None);
        flight.arrived(&arena, 0, 0, 1_000);
        assert_eq!(flight.next_piece(1 << 20), Some((begin, 1_000)));
        flight.arrived(&arena, 0, 1_000, 3_000);
        flight.arrived(&arena, 0, 500_000, 600_000);
        assert_eq!(flight.next_early_piece(5_000, 1 << 20), None);
        assert_eq!(flight.next_piece(1_500), Some((begin + 1_000, 1_500)));
        assert_eq!(flight.next_piece(1_500), Some((begin + 2_500, 500)));
        // More than the slot holds, or a tensor that it does not have.
        flight.arrived(&arena, 0, 3_000, (1 << 20) + 1);
        flight.arrived(&arena, 1, 0, 1);
        assert_eq!((flight.next_piece(1 << 20), flight.pending), (None, 3));
    }
}
