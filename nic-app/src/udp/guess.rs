//! What the next datagrams probably are, so that their tensor data can land where it belongs before they are looked at.

use splitrpc_engine::Placement;
use splitrpc_ring::RequestKey;
use splitrpc_wire::{HEADER_LEN, Header, Kind, MAX_MANIFEST_LEN, MAX_TENSORS, Manifest};

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
    /// Pool and rows of its slots.
    class: Option<(u16, u16)>,
    /// Bytes of its tensors.
    sizes: heapless::Vec<u32, MAX_TENSORS>,
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
    pub(super) fn compare(&mut self, engine: &Engine<'_>, placement: &Placement, header: &Header) {
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
    pub(super) fn placed(&mut self, engine: &Engine<'_>, placement: &Placement, header: &Header, head: &[u8]) {
        self.current = engine.still_placing(placement).then_some(placement.request);
        if !head.is_empty() {
            self.shape.get_or_insert_with(|| Shape::of(header)).become_like(engine, header, head);
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
    pub(super) fn plan(&self, engine: &Engine<'_>, plan: &mut Plan) {
        plan.clear();
        if let Some((run, sizes, tensor, offset)) = self.current.and_then(|request| engine.frontier(request)) {
            plan.expect_rest(run, sizes.as_slice(), (tensor, offset), self.room);
            return;
        }
        let Some(shape) = &self.shape else { return };
        let Some(run) = shape.class.and_then(|(pool, rows)| engine.peek_run(pool, rows)) else { return };
        if !plan.expect_head(HEADER_LEN + shape.manifest_len) {
            return;
        }
        if shape.header.is_whole() {
            (0..).zip(&shape.sizes).all(|(tensor, bytes)| plan.expect_data(run, tensor, 0, *bytes));
            return;
        }
        let data = shape.header.length - shape.manifest_len as u32;
        plan.expect_data(run, 0, 0, data);
        if shape.header.length == self.room {
            plan.expect_rest(run, &shape.sizes, (0, data), self.room);
        }
    }

    /// Plans by the first frame of a datagram of `datagram` bytes, which has been looked at: its own data, and what may
    /// follow it in the same receive.
    pub(super) fn plan_by(
        &self,
        engine: &Engine<'_>,
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
    fn of(header: &Header) -> Shape {
        Shape {
            header: *header,
            manifest: [0; MAX_MANIFEST_LEN],
            manifest_len: 0,
            class: None,
            sizes: heapless::Vec::new(),
        }
    }

    /// Takes after a request that was placed. This is asked of every request, while most are like the one before.
    fn become_like(&mut self, engine: &Engine<'_>, header: &Header, head: &[u8]) {
        let same = self.header.model == header.model && self.manifest[..self.manifest_len] == *head;
        self.header = *header;
        if same {
            return;
        }
        self.manifest_len = head.len();
        self.manifest[..head.len()].copy_from_slice(head);
        self.class = None;
        self.sizes.clear();
        if let Ok(manifest) = Manifest::parse(head) {
            self.class = engine.class_of(header, &manifest);
            // No manifest describes more tensors than there is room for.
            self.sizes.extend(manifest.tensors().map(|t| t.bytes));
        }
    }

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
