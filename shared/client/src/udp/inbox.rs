//! Datagrams on their way in. The data of a response that is arriving in order is read by the kernel straight into the
//! response's buffer; what comes otherwise is read to the side and copied.

use std::io;

use splitrpc_engine::SentFrame;
use splitrpc_ring::RequestKey;
use splitrpc_socket::{IoVec, IoVecBuf, MAX_GSO_SEGMENTS, UdpSocket};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Train};

use super::calls::Calls;

/// Longest that the kernel puts together.
const ROOM: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct Inbox {
    headers: Vec<[u8; HEADER_LEN]>,
    /// What was not foreseen; `ROOM` bytes.
    side: Vec<u8>,
    list: IoVecBuf,
    /// What comes next, if all goes on as it has.
    pub(crate) foreseen: Option<Foreseen>,
}

/// Frames of one response with data of one tensor, each as long as the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreseen {
    pub(crate) key: RequestKey,
    pub(crate) tensor: u16,
    pub(crate) offset: u32,
    /// Data bytes of each frame.
    pub(crate) length: u32,
}

/// What a read brought.
pub(crate) struct Arrived {
    /// Frames whose data lies in place, their headers in [`Inbox::headers`].
    pub(crate) in_place: usize,
    /// Bytes of datagrams at the head of the side buffer.
    pub(crate) aside: usize,
    /// Length of each of those datagrams but the last.
    pub(crate) segment: usize,
}

/// Datagrams that may be in flight from a client.
pub(crate) const FLIGHT: usize = 4096;

/// What the engine works in.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) slots: Box<[splitrpc_engine::ClientSlot]>,
    pub(crate) flight: Box<[SentFrame]>,
}

impl splitrpc_engine::ClientStorage for Storage {
    fn parts(&mut self) -> (&mut [splitrpc_engine::ClientSlot], &mut [SentFrame]) {
        (&mut self.slots, &mut self.flight)
    }

    fn slots(&self) -> &[splitrpc_engine::ClientSlot] {
        &self.slots
    }

    fn flight(&self) -> &[SentFrame] {
        &self.flight
    }
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            headers: vec![[0; HEADER_LEN]; MAX_GSO_SEGMENTS],
            side: vec![0; ROOM],
            list: IoVecBuf::with_capacity(2 * MAX_GSO_SEGMENTS + 1),
            foreseen: None,
        }
    }

    /// The header of the frame at `index`, and how many frames from there to `end` make a train with it.
    pub(crate) fn train(&self, index: usize, end: usize) -> Option<(Header, u32)> {
        Train::measure(self.headers.get(index..end)?)
    }

    /// Lends the side buffer out, so that its owner's other parts can be used meanwhile.
    pub(crate) fn take_side(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.side)
    }

    pub(crate) fn put_side(&mut self, side: Vec<u8>) {
        self.side = side;
    }

    /// Reads once: one datagram, or several that the kernel put together.
    pub(crate) fn receive(&mut self, socket: &UdpSocket, calls: &mut Calls) -> io::Result<Arrived> {
        let Some((foreseen, at, count)) = self.foreseen.and_then(|f| room_for(calls, f)) else {
            let got = socket.recv(&mut [IoVec::from(&mut self.side[..])])?;
            return Ok(Arrived { in_place: 0, aside: got.len, segment: got.segment.map_or(got.len, usize::from) });
        };
        let length = foreseen.length as usize;
        let Some(data) = calls.get_mut(foreseen.key).and_then(|c| c.response.as_mut()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let data = data.span(at, count * length);
        let list = self.list.begin();
        for (header, data) in self.headers.iter_mut().zip(data.chunks_mut(length)) {
            list.push(IoVec::from(&mut header[..]));
            list.push(IoVec::from(data));
        }
        list.push(IoVec::from(&mut self.side[..]));
        let got = socket.recv(list)?;
        let unit = HEADER_LEN + length;
        let segment = got.segment.map_or(got.len, usize::from);
        let full = if segment == unit { (got.len / unit).min(count) } else { 0 };
        let in_place = match self.train(0, full) {
            Some((first, frames)) if foreseen.fits(&first, calls) => frames as usize,
            _ => 0,
        };
        let aside = self.set_aside(calls, &foreseen, at, count, in_place, got.len);
        Ok(Arrived { in_place, aside, segment })
    }

    /// Moves what lies behind the first `in_place` frames out of the foreseen places to the side.
    fn set_aside(
        &mut self,
        calls: &mut Calls,
        f: &Foreseen,
        at: usize,
        count: usize,
        in_place: usize,
        len: usize,
    ) -> usize {
        let (length, unit) = (f.length as usize, HEADER_LEN + f.length as usize);
        let foreseen_len = len.min(count * unit);
        let front = foreseen_len - in_place * unit;
        let behind = len - foreseen_len;
        if front == 0 {
            return behind;
        }
        // What the kernel put into the side buffer already comes after what is moved there.
        if self.side.len() < front + behind {
            self.side.resize(front + behind, 0);
        }
        self.side.copy_within(..behind, front);
        let Some(response) = calls.get_mut(f.key).and_then(|c| c.response.as_mut()) else { return 0 };
        let (mut to, mut from) = (0, in_place);
        while to < front {
            let head = HEADER_LEN.min(front - to);
            self.side[to..to + head].copy_from_slice(&self.headers[from][..head]);
            to += head;
            let data = length.min(front - to);
            self.side[to..to + data].copy_from_slice(response.span(at + from * length, data));
            to += data;
            from += 1;
        }
        front + behind
    }
}

impl Foreseen {
    /// Whether the first frame is what was foreseen.
    fn fits(&self, header: &Header, calls: &Calls) -> bool {
        header.kind == Kind::Response
            && !header.flags.has(Flags::MANIFEST)
            && !header.flags.has(Flags::MORE)
            && calls.get(self.key).is_some_and(|c| c.wire_id == header.request)
            && header.tensor == self.tensor
            && header.length == self.length
            && header.offset == self.offset
    }
}

/// Where the foreseen data goes and how many frames of it there is room for. Only places in which nothing has arrived
/// are given to the kernel.
fn room_for(calls: &Calls, foreseen: Foreseen) -> Option<(Foreseen, usize, usize)> {
    let call = calls.get(foreseen.key)?;
    let response = call.response.as_ref()?;
    let left = response.tensor_len(foreseen.tensor)?.checked_sub(foreseen.offset)?;
    if foreseen.length == 0 || call.frontier != (foreseen.tensor, foreseen.offset) {
        return None;
    }
    let most = (ROOM / (HEADER_LEN + foreseen.length as usize)).min(MAX_GSO_SEGMENTS);
    let count = ((left / foreseen.length) as usize).min(most);
    let at = response.position(foreseen.tensor, foreseen.offset, foreseen.length)?;
    (count > 0).then_some((foreseen, at, count))
}
