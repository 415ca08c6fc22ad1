//! What the next datagrams probably are, so that their tensor data can land where it belongs before they are looked at.

use splitrpc_engine::Placement;
use splitrpc_ring::RequestKey;
use splitrpc_wire::{HEADER_LEN, Header, Kind, MAX_MANIFEST_LEN, Manifest};

use super::plan::Plan;
use crate::storage::Engine;

/// Receives that are looked at beforehand after a guess was wrong.
const DOUBT: u32 = 16;

/// What a request of the usual kind begins with.
#[derive(Debug)]
struct Shape {
    header: Header,
    manifest: [u8; MAX_MANIFEST_LEN],
    manifest_len: usize,
}

/// Remembers what came, and plans for what comes next.
#[derive(Debug)]
pub(super) struct Guess {
    /// A request that is arriving.
    current: Option<RequestKey>,
    shape: Option<Shape>,
    /// Tensor bytes in a full datagram that begins with a bare header.
    room: u32,
    doubt: u32,
}

impl Guess {
    pub(super) fn new(datagram: u16) -> Guess {
        Guess { current: None, shape: None, room: u32::from(datagram) - HEADER_LEN as u32, doubt: 0 }
    }

    /// Whether the next datagram is better looked at before it is received.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt > 0 || (self.current.is_none() && self.shape.is_none())
    }

    /// Tensor data landed in the wrong place.
    pub(super) fn was_wrong(&mut self) {
        self.doubt = DOUBT;
    }

    /// A datagram was looked at, and planned for by what it says. If the guess would have been right, so may the next be.
    pub(super) fn compare(&mut self, engine: &Engine, placement: &Placement, header: &Header) {
        let right = match self.current.and_then(|request| engine.frontier(request).map(|found| (request, found))) {
            Some((request, (_, sizes, tensor, offset))) => {
                let (tensor, offset) = skip_finished(sizes.as_slice(), tensor, offset);
                request == placement.request && (tensor, offset) == (header.tensor, header.offset)
            }
            None => self.shape.as_ref().is_some_and(|shape| shape.is_like(header)),
        };
        self.doubt = if right { self.doubt.saturating_sub(1) } else { DOUBT };
    }

    /// Whether the placement belongs to the request that is known to be arriving.
    pub(super) fn follows(&self, placement: &Placement) -> bool {
        self.current == Some(placement.request)
    }

    /// A request's frame was placed. `head` is its manifest, if it brought one.
    pub(super) fn placed(&mut self, engine: &Engine, placement: &Placement, header: &Header, head: &[u8]) {
        self.current = engine.still_placing(placement).then_some(placement.request);
        if !head.is_empty() {
            let shape =
                self.shape.get_or_insert(Shape { header: *header, manifest: [0; MAX_MANIFEST_LEN], manifest_len: 0 });
            shape.header = *header;
            shape.manifest_len = head.len();
            shape.manifest[..head.len()].copy_from_slice(head);
        }
        // A frame that stops short of its tensor's end fills its datagram.
        if let Some((_, sizes, ..)) = engine.frontier(placement.request) {
            let data = header.length - head.len() as u32;
            let stops_short = sizes.get(header.tensor).is_some_and(|size| header.offset + data < size);
            if stops_short && data > 0 && !header.is_whole() {
                self.room = header.length;
            }
        }
    }

    /// Plans for what probably comes next.
    pub(super) fn plan(&self, engine: &Engine, plan: &mut Plan) {
        plan.clear();
        if let Some((run, sizes, tensor, offset)) = self.current.and_then(|request| engine.frontier(request)) {
            plan.expect_rest(run, sizes.as_slice(), (tensor, offset), self.room);
            return;
        }
        let Some(shape) = &self.shape else { return };
        let Ok(manifest) = Manifest::parse(&shape.manifest[..shape.manifest_len]) else { return };
        let Some(run) = engine.peek_run(&shape.header, &manifest) else { return };
        if !plan.expect_head(HEADER_LEN + shape.manifest_len) {
            return;
        }
        if shape.header.is_whole() {
            manifest.tensors().all(|t| plan.expect_data(run, t.handle, 0, t.bytes));
            return;
        }
        let data = shape.header.length - shape.manifest_len as u32;
        plan.expect_data(run, 0, 0, data);
        if shape.header.length == self.room {
            let mut sizes = heapless::Vec::<u32, { splitrpc_wire::MAX_TENSORS }>::new();
            sizes.extend(manifest.tensors().map(|t| t.bytes));
            plan.expect_rest(run, &sizes, (0, data), self.room);
        }
    }

    /// Plans by the first frame of a datagram of `datagram` bytes, which has been looked at: its own data, and what may
    /// follow it in the same receive.
    pub(super) fn plan_by(
        &self,
        engine: &Engine,
        plan: &mut Plan,
        placement: &Placement,
        head: usize,
        header: &Header,
        datagram: usize,
    ) {
        plan.clear();
        plan.expect_head(head);
        for piece in engine.pieces(placement) {
            plan.expect_data(piece.run, piece.tensor, piece.offset, piece.length);
        }
        let length = header.length as usize;
        if header.is_whole() || HEADER_LEN + length != datagram {
            return;
        }
        if let Some((run, sizes, tensor, offset)) = engine.frontier(placement.request) {
            // What is being placed does not count as in place yet.
            let own = (header.tensor.min(sizes.len()), header.offset + placement.length());
            let own = if header.tensor == splitrpc_wire::MANIFEST_TENSOR { (0, 0) } else { own };
            plan.expect_rest(run, sizes.as_slice(), own.max((tensor, offset)), header.length);
        }
    }
}

impl Shape {
    fn is_like(&self, header: &Header) -> bool {
        header.kind == Kind::Request && header.flags == self.header.flags && header.length == self.header.length
    }
}

fn skip_finished(sizes: &[u32], mut tensor: u16, mut offset: u32) -> (u16, u32) {
    while sizes.get(usize::from(tensor)) == Some(&offset) {
        (tensor, offset) = (tensor + 1, 0);
    }
    (tensor, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_and_empty_tensors_are_skipped() {
        assert_eq!(skip_finished(&[5, 0, 7], 0, 5), (2, 0));
        assert_eq!(skip_finished(&[5, 0, 7], 0, 4), (0, 4));
        assert_eq!(skip_finished(&[5], 0, 5), (1, 0));
    }
}
