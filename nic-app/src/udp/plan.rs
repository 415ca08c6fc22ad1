//! Where the bytes of the next receive are to land: heads aside, tensor data in the slots where it is expected to belong.

use splitrpc_arena::{Arena, IoVec, IoVecBuf, Run};
use splitrpc_engine::Piece;
use splitrpc_socket::MAX_UDP_PAYLOAD;
use splitrpc_wire::HEADER_LEN;

use crate::frame::HEAD_ROOM;

/// Datagrams that one receive is planned for.
const MAX_DATAGRAMS: usize = 128;
/// Bytes kept for heads.
const HEADS: usize = HEAD_ROOM + MAX_DATAGRAMS * HEADER_LEN;
/// Elements of the scatter list, the last one included, which takes what was not planned for.
const MAX_LANDINGS: usize = splitrpc_socket::MAX_IOVECS - 1;

/// A stretch of the received bytes, and where it lands.
#[derive(Clone, Copy, Debug)]
struct Landing {
    /// First byte, counted from the beginning of the receive.
    at: usize,
    len: usize,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// From here on in the memory for heads.
    Head(usize),
    /// In a slot.
    Slot { run: Run, tensor: u16, offset: u32 },
}

/// Where the bytes of one receive land.
#[derive(Debug)]
pub(super) struct Plan {
    landings: Vec<Landing>,
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

/// Room for the largest receive, in each half of the bounce buffer.
const HALF: usize = 64 << 10;

impl Plan {
    pub(super) fn new() -> Plan {
        Plan {
            landings: Vec::with_capacity(MAX_LANDINGS),
            heads: vec![0; HEADS].into(),
            heads_used: 0,
            end: 0,
            bounce: vec![0; 2 * HALF].into(),
            linear_from: 0,
            list: IoVecBuf::with_capacity(MAX_LANDINGS + 1),
        }
    }

    /// Forgets everything: all bytes land in the bounce buffer.
    pub(super) fn clear(&mut self) {
        self.landings.clear();
        self.heads_used = 0;
        self.end = 0;
        self.linear_from = 0;
    }

    /// Expects a head. Returns whether there is room for it and for data behind it.
    pub(super) fn expect_head(&mut self, len: usize) -> bool {
        let fits = self.heads_used + len <= HEADS
            && self.landings.len() + 2 <= MAX_LANDINGS
            && self.end + len <= MAX_UDP_PAYLOAD;
        if fits {
            self.push(len, Place::Head(self.heads_used));
            self.heads_used += len;
        }
        fits
    }

    /// Expects tensor data. Returns whether there was room.
    pub(super) fn expect_data(&mut self, run: Run, tensor: u16, offset: u32, len: u32) -> bool {
        let fits = self.landings.len() < MAX_LANDINGS && self.end + len as usize <= MAX_UDP_PAYLOAD;
        if fits && len > 0 {
            self.push(len as usize, Place::Slot { run, tensor, offset });
        }
        fits
    }

    fn push(&mut self, len: usize, place: Place) {
        self.landings.push(Landing { at: self.end, len, place });
        self.end += len;
        self.linear_from = self.end;
    }

    /// Expects the frames that carry on a message of tensors of `sizes` from (tensor, offset), `room` bytes in each
    /// datagram. A datagram that is not full is the last that one receive brings.
    pub(super) fn expect_rest(&mut self, run: Run, sizes: &[u32], (mut tensor, mut offset): (u16, u32), room: u32) {
        for _ in 0..MAX_DATAGRAMS {
            while sizes.get(usize::from(tensor)) == Some(&offset) {
                (tensor, offset) = (tensor + 1, 0);
            }
            let Some(left) = sizes.get(usize::from(tensor)).map(|size| size - offset) else { return };
            let len = left.min(room);
            if self.end + HEADER_LEN + len as usize > MAX_UDP_PAYLOAD || !self.expect_head(HEADER_LEN) {
                return;
            }
            self.expect_data(run, tensor, offset, len);
            offset += len;
            if len < room {
                return;
            }
        }
    }

    /// The scatter list, or `None` where a landing lies outside its slots.
    pub(super) fn scatter<'a>(&'a mut self, arena: &'a Arena) -> Option<&'a mut [IoVec<'a>]> {
        let list = self.list.begin();
        let mut heads = &mut self.heads[..];
        for landing in &self.landings {
            match landing.place {
                Place::Head(_) => {
                    let (head, rest) = std::mem::take(&mut heads).split_at_mut(landing.len);
                    heads = rest;
                    list.push(IoVec::from(head));
                }
                Place::Slot { run, tensor, offset } => {
                    list.push(arena.span(run, tensor, offset, landing.len as u32)?.iovec());
                }
            }
        }
        list.push(IoVec::from(&mut self.bounce[HALF..]));
        Some(list)
    }

    /// The bytes from `at` on, as far as they lie in one stretch outside slots, and at most to `end`. `None` where they
    /// lie in a slot.
    pub(super) fn bytes(&self, at: usize, end: usize) -> Option<&[u8]> {
        if at >= self.linear_from {
            return Some(&self.bounce[HALF + at - self.end..HALF + end - self.end]);
        }
        let landing = &self.landings[self.landing_at(at)?];
        match landing.place {
            Place::Head(first) => Some(&self.heads[first..first + landing.len.min(end - at)]),
            Place::Slot { .. } => None,
        }
    }

    /// Whether the bytes from `at` on have landed exactly where these pieces belong.
    pub(super) fn landed(&self, at: usize, mut pieces: impl Iterator<Item = Piece>) -> bool {
        let Some(mut index) = self.landing_at(at) else { return false };
        pieces.all(|piece| {
            let Piece { run, tensor, offset, length } = piece;
            let landing = self.landings.get(index);
            index += 1;
            let place = Place::Slot { run, tensor, offset };
            landing.is_some_and(|landing| landing.len == length as usize && landing.place == place)
        })
    }

    /// Moves everything from `at` to the end of the receive, `len` bytes long, into one stretch of memory that no copy
    /// into a slot touches.
    pub(super) fn linearise(&mut self, arena: &Arena, at: usize, len: usize) {
        if at >= self.linear_from {
            return;
        }
        let first = self.landings.partition_point(|landing| landing.at + landing.len <= at);
        for landing in &self.landings[first..] {
            let skip = at.saturating_sub(landing.at);
            let from = landing.at + skip;
            let take = (landing.len - skip).min(len.saturating_sub(from));
            let to = &mut self.bounce[HALF + from - self.end..][..take];
            match landing.place {
                Place::Head(first) => to.copy_from_slice(&self.heads[first + skip..first + skip + take]),
                Place::Slot { run, tensor, offset } => {
                    if let Some(span) = arena.span(run, tensor, offset + skip as u32, take as u32) {
                        span.copy_to(to);
                    }
                }
            }
        }
        self.linear_from = at;
    }

    fn landing_at(&self, at: usize) -> Option<usize> {
        self.landings.binary_search_by_key(&at, |landing| landing.at).ok()
    }
}
