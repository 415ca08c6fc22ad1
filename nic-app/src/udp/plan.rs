//! Where the bytes of the next receive are to land: heads aside, tensor data in the slots where it is expected to belong.

use splitrpc_arena::{Arena, IoVec, IoVecBuf, Run};
use splitrpc_engine::Piece;
use splitrpc_socket::{MAX_IOVECS, MAX_UDP_PAYLOAD};
use splitrpc_wire::{HEADER_LEN, MAX_TENSORS};

use crate::frame::HEAD_ROOM;

/// Bytes kept for heads: one with a manifest, and as many bare headers as the scatter list can part with data.
const HEADS: usize = HEAD_ROOM + MAX_IOVECS / 2 * HEADER_LEN;
/// Landings, the bounce buffer left out.
const MAX_LANDINGS: usize = MAX_IOVECS - 1;
/// The first frame's head and tensors, and then a stretch for each tensor.
const MAX_STRETCHES: usize = 1 + 2 * MAX_TENSORS;
/// Room for the largest receive, in each half of the bounce buffer.
const HALF: usize = 64 << 10;

/// A stretch of the received bytes.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    /// First byte, counted from the beginning of the receive.
    at: usize,
    len: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A head, from `first` on in the memory for heads.
    Head { first: usize },
    /// Tensor data.
    Data(Place),
    /// Bare headers, from `first` on in the memory for heads, before `room` bytes each of one tensor; after the last of
    /// them there may be less.
    Frames { first: usize, place: Place, room: usize },
}

/// The beginning of a place in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    run: Run,
    tensor: u16,
    offset: u32,
}

impl Place {
    fn skip(self, bytes: usize) -> Place {
        Place { offset: self.offset + bytes as u32, ..self }
    }
}

/// Received bytes that landed in one piece.
#[derive(Clone, Copy, Debug)]
enum Landing {
    Head { first: usize, len: usize },
    Data { place: Place, len: usize },
}

/// Where the bytes of one receive land.
#[derive(Debug)]
pub(super) struct Plan {
    stretches: heapless::Vec<Stretch, MAX_STRETCHES>,
    landings: usize,
    heads: Box<[u8]>,
    heads_used: usize,
    /// Bytes planned for; what comes behind them lands in the bounce buffer.
    end: usize,
    /// Its second half takes what was not planned for, its first half what landed in the wrong place, so that the two
    /// are one stretch.
    bounce: Box<[u8]>,
    /// From this byte on everything is in the bounce buffer.
    linear_from: usize,
    list: IoVecBuf,
}

impl Plan {
    pub(super) fn new() -> Plan {
        Plan {
            stretches: heapless::Vec::new(),
            landings: 0,
            heads: vec![0; HEADS].into(),
            heads_used: 0,
            end: 0,
            bounce: vec![0; 2 * HALF].into(),
            linear_from: 0,
            list: IoVecBuf::with_capacity(MAX_IOVECS),
        }
    }

    /// Forgets everything: all bytes land in the bounce buffer.
    pub(super) fn clear(&mut self) {
        self.stretches.clear();
        self.landings = 0;
        self.heads_used = 0;
        self.end = 0;
        self.linear_from = 0;
    }

    /// Expects a head. Returns whether there was room.
    pub(super) fn expect_head(&mut self, len: usize) -> bool {
        let first = self.heads_used;
        let fits = first + len <= HEADS && self.push(len, 1, Kind::Head { first });
        self.heads_used += if fits { len } else { 0 };
        fits
    }

    /// Expects tensor data. Returns whether there was room.
    pub(super) fn expect_data(&mut self, run: Run, tensor: u16, offset: u32, len: u32) -> bool {
        len == 0 || self.push(len as usize, 1, Kind::Data(Place { run, tensor, offset }))
    }

    fn push(&mut self, len: usize, landings: usize, kind: Kind) -> bool {
        let fits = self.landings + landings <= MAX_LANDINGS && self.end + len <= MAX_UDP_PAYLOAD;
        if !fits || self.stretches.push(Stretch { at: self.end, len, kind }).is_err() {
            return false;
        }
        self.landings += landings;
        self.end += len;
        self.linear_from = self.end;
        true
    }

    /// Expects the frames that carry on a message of tensors of `sizes` from (tensor, offset), `room` bytes in each
    /// datagram. A datagram that is not full is the last that one receive brings.
    pub(super) fn expect_rest(&mut self, run: Run, sizes: &[u32], (mut tensor, mut offset): (u16, u32), room: u32) {
        if room == 0 {
            return;
        }
        let stride = HEADER_LEN + room as usize;
        loop {
            while sizes.get(usize::from(tensor)) == Some(&offset) {
                (tensor, offset) = (tensor + 1, 0);
            }
            let left = sizes.get(usize::from(tensor)).and_then(|size| size.checked_sub(offset));
            let Some(left) = left.map(|left| left as usize) else { return };
            let whole = ((MAX_UDP_PAYLOAD - self.end) / stride)
                .min((MAX_LANDINGS - self.landings) / 2)
                .min((HEADS - self.heads_used) / HEADER_LEN);
            // As many full datagrams as fit, and where the tensor ends before them a shorter one.
            let frames = whole.min(left.div_ceil(room as usize));
            let data = left.min(frames * room as usize);
            let (first, place) = (self.heads_used, Place { run, tensor, offset });
            let kind = Kind::Frames { first, place, room: room as usize };
            if frames == 0 || !self.push(frames * HEADER_LEN + data, 2 * frames, kind) {
                return;
            }
            self.heads_used += frames * HEADER_LEN;
            offset += data as u32;
            if data < left || !data.is_multiple_of(room as usize) {
                return;
            }
        }
    }

    /// The scatter list, or `None` where a landing lies outside its slots.
    pub(super) fn scatter<'a>(&'a mut self, arena: &'a Arena) -> Option<&'a mut [IoVec<'a>]> {
        let list = self.list.begin();
        let mut heads = &mut self.heads[..];
        let mut head = |len| {
            let (head, rest) = std::mem::take(&mut heads).split_at_mut(len);
            heads = rest;
            IoVec::from(head)
        };
        let span = |Place { run, tensor, offset }, len: usize| arena.span(run, tensor, offset, len as u32);
        for stretch in &self.stretches {
            match stretch.kind {
                Kind::Head { .. } => list.push(head(stretch.len)),
                Kind::Data(place) => list.push(span(place, stretch.len)?.iovec()),
                Kind::Frames { place, room, .. } => {
                    let frames = stretch.len.div_ceil(HEADER_LEN + room);
                    let data = stretch.len - frames * HEADER_LEN;
                    let whole = span(place, data)?;
                    for offset in (0..data).step_by(room) {
                        list.push(head(HEADER_LEN));
                        list.push(whole.slice(offset, room.min(data - offset))?.iovec());
                    }
                }
            }
        }
        list.push(IoVec::from(&mut self.bounce[HALF..]));
        Some(list)
    }

    /// The bytes from `at` on, as far as they lie in one piece outside slots, and at most to `end`. `None` where they lie in
    /// a slot.
    pub(super) fn bytes(&self, at: usize, end: usize) -> Option<&[u8]> {
        if at >= self.linear_from {
            return Some(&self.bounce[HALF + at - self.end..HALF + end - self.end]);
        }
        match self.landing(at)? {
            Landing::Head { first, len } => Some(&self.heads[first..first + len.min(end - at)]),
            Landing::Data { .. } => None,
        }
    }

    /// The bare headers of the frames expected from `at` on, of which each takes up `segment` bytes of the receive. One that was expected to be shorter is
    /// not among them: the end of a full one in its place has landed elsewhere. Empty where something else was expected.
    pub(super) fn headers(&self, at: usize, segment: usize) -> &[[u8; HEADER_LEN]] {
        let Some((first, count, _)) = self.frames(at, segment) else { return &[] };
        self.heads[first..first + count * HEADER_LEN].as_chunks().0
    }

    /// Whether the data of the frames from `at` on, `segment` bytes with its header each, has landed exactly where this
    /// piece belongs. To be asked of no more frames than there are [headers](Plan::headers).
    pub(super) fn landed_frames(&self, at: usize, segment: usize, piece: Option<Piece>) -> bool {
        let wanted = piece.map(|Piece { run, tensor, offset, .. }| Place { run, tensor, offset });
        self.frames(at, segment).is_some_and(|(_, _, place)| Some(place) == wanted)
    }

    /// Of frames expected from `at` on: where their headers begin, how many they are, where their data goes.
    fn frames(&self, at: usize, segment: usize) -> Option<(usize, usize, Place)> {
        if at >= self.linear_from {
            return None;
        }
        let stretch = self.stretches.iter().find(|stretch| at < stretch.at + stretch.len)?;
        let Kind::Frames { first, place, room } = stretch.kind else { return None };
        let within = at - stretch.at;
        if HEADER_LEN + room != segment || !within.is_multiple_of(segment) {
            return None;
        }
        let skipped = within / segment;
        let count = stretch.len / segment - skipped;
        Some((first + skipped * HEADER_LEN, count, place.skip(skipped * room)))
    }

    /// Whether the bytes from `at` on have landed exactly where these pieces belong.
    pub(super) fn landed(&self, mut at: usize, mut pieces: impl Iterator<Item = Piece>) -> bool {
        at < self.linear_from
            && pieces.all(|Piece { run, tensor, offset, length }| {
                let wanted = Place { run, tensor, offset };
                let landing = self.landing(at);
                at += length as usize;
                matches!(landing, Some(Landing::Data { place, len }) if place == wanted && len == length as usize)
            })
    }

    /// Moves everything from `at` to the end of the receive, `len` bytes long, into one stretch of memory that no copy
    /// into a slot touches.
    pub(super) fn linearise(&mut self, arena: &Arena, at: usize, len: usize) {
        let mut from = at;
        while from < self.linear_from.min(len) {
            let Some((landing, skip, left)) = self.landing_over(from) else { break };
            let take = left.min(len - from);
            let to = &mut self.bounce[HALF + from - self.end..][..take];
            match landing {
                Landing::Head { first, .. } => to.copy_from_slice(&self.heads[first + skip..first + skip + take]),
                Landing::Data { place, .. } => {
                    let Place { run, tensor, offset } = place.skip(skip);
                    if let Some(span) = arena.span(run, tensor, offset, take as u32) {
                        span.copy_to(to);
                    }
                }
            }
            from += take;
        }
        self.linear_from = self.linear_from.min(at);
    }

    /// The landing that begins at `at`.
    fn landing(&self, at: usize) -> Option<Landing> {
        self.landing_over(at).filter(|(_, skip, _)| *skip == 0).map(|(landing, ..)| landing)
    }

    /// The landing that `at` lies in, how far in, and how much of it is left from there.
    fn landing_over(&self, at: usize) -> Option<(Landing, usize, usize)> {
        let stretch = self.stretches.iter().find(|stretch| at < stretch.at + stretch.len)?;
        let within = at - stretch.at;
        Some(match stretch.kind {
            Kind::Head { first } => (Landing::Head { first, len: stretch.len }, within, stretch.len - within),
            Kind::Data(place) => (Landing::Data { place, len: stretch.len }, within, stretch.len - within),
            Kind::Frames { first, place, room } => {
                // Small numbers: a narrow division is several times as fast.
                let (within, stride) = (within as u32, (HEADER_LEN + room) as u32);
                let frame = (within / stride) as usize;
                let skip = (within % stride) as usize;
                if let Some(skip) = skip.checked_sub(HEADER_LEN) {
                    let begin = frame * stride as usize + HEADER_LEN;
                    let len = room.min(stretch.len - begin);
                    (Landing::Data { place: place.skip(frame * room), len }, skip, len - skip)
                } else {
                    let first = first + frame * HEADER_LEN;
                    (Landing::Head { first, len: HEADER_LEN }, skip, HEADER_LEN - skip)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use splitrpc_arena::PoolLayout;

    use super::*;

    const RUN: Run = Run { pool: 0, rows: 1, first: 0, generation: 1 };

    fn arena() -> Arena {
        Arena::new("plan", &[(0, PoolLayout::new(&[5000, 300], 1, 1).unwrap())], 0).unwrap()
    }

    /// Fills the planned places as a receive of these bytes would.
    fn receive(plan: &mut Plan, arena: &Arena, bytes: &[u8]) {
        let end = plan.end;
        for at in 0..bytes.len() {
            if at >= end {
                plan.bounce[HALF + at - end] = bytes[at];
                continue;
            }
            match plan.landing_over(at).unwrap() {
                (Landing::Head { first, .. }, skip, _) => plan.heads[first + skip] = bytes[at],
                (Landing::Data { place, .. }, skip, _) => {
                    let Place { tensor, offset, .. } = place.skip(skip);
                    arena.span(RUN, tensor, offset, 1).unwrap().copy_from(&bytes[at..=at]);
                }
            }
        }
    }

    #[test]
    fn landings_and_scatter_list_agree() {
        let arena = arena();
        let mut plan = Plan::new();
        plan.clear();
        assert!(plan.expect_head(90) && plan.expect_data(RUN, 0, 0, 1000));
        plan.expect_rest(RUN, &[5000, 300], (0, 1000), 1000);
        // Four full datagrams end the first tensor; the second one takes less than one.
        let lens: Vec<usize> = plan.scatter(&arena).unwrap().iter().map(IoVec::len).collect();
        assert_eq!(lens, [90, 1000, 64, 1000, 64, 1000, 64, 1000, 64, 1000, 64, 300, HALF]);
        let mut at = 0;
        for len in &lens[..12] {
            let (_, skip, left) = plan.landing_over(at).unwrap();
            assert_eq!((skip, left), (0, *len));
            at += len;
        }
        assert!(plan.landing_over(at).is_none());
    }

    #[test]
    fn a_shorter_datagram_is_the_last_one_planned_for() {
        let mut plan = Plan::new();
        plan.clear();
        plan.expect_rest(RUN, &[2500, 300], (0, 0), 1000);
        assert_eq!(plan.end, 3 * 64 + 2500);
    }

    #[test]
    fn a_train_ends_before_a_frame_that_was_planned_shorter() {
        let mut plan = Plan::new();
        plan.clear();
        plan.expect_rest(RUN, &[2500], (0, 0), 1000);
        let piece = |offset, length| Some(Piece { run: RUN, tensor: 0, offset, length });
        assert_eq!((plan.headers(0, 1064).len(), plan.headers(1064, 1064).len()), (2, 1));
        assert!(plan.landed_frames(1064, 1064, piece(1000, 1000)));
        // A request of the same class that is longer: the last 500 bytes of a full frame are in the bounce buffer.
        assert!(plan.headers(2 * 1064, 1064).is_empty());
        assert!(!plan.landed(2 * 1064 + 64, piece(2000, 1000).into_iter()));
    }

    #[test]
    fn straightened_bytes_are_those_received() {
        let arena = arena();
        let bytes: Vec<u8> = (0..6000).map(|i| (i % 251) as u8).collect();
        for at in [0, 1, 63, 64, 500, 1064, 1065, 3000, 4256, 4257, 5900] {
            for len in [at, at + 1, 4255, 4257, 6000] {
                let mut plan = Plan::new();
                plan.clear();
                plan.expect_rest(RUN, &[4000], (0, 0), 1000);
                assert_eq!(plan.end, 4256);
                receive(&mut plan, &arena, &bytes[..len]);
                plan.linearise(&arena, at, len);
                if at < len {
                    assert!(plan.bytes(at, len).unwrap() == &bytes[at..len], "from {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn only_the_exact_place_counts_as_landed() {
        let mut plan = Plan::new();
        plan.clear();
        plan.expect_rest(RUN, &[2500], (0, 0), 1000);
        let piece = |offset, length| [Piece { run: RUN, tensor: 0, offset, length }].into_iter();
        assert!(plan.landed(64, piece(0, 1000)));
        assert!(plan.landed(64 + 1064, piece(1000, 1000)));
        assert!(plan.landed(64 + 2 * 1064, piece(2000, 500)));
        assert!(!plan.landed(64, piece(1000, 1000)));
        assert!(!plan.landed(64, piece(0, 900)));
        assert!(!plan.landed(65, piece(1, 999)));
        assert!(!plan.landed(0, piece(0, 64)));
        let other = Piece { run: Run { generation: 2, ..RUN }, tensor: 0, offset: 0, length: 1000 };
        assert!(!plan.landed(64, [other].into_iter()));
    }
}
