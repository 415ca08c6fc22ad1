//! Frames that the kernel did not take at once. Their tensors stay in the slots; only heads are kept here.

use std::sync::Arc;

use splitrpc_arena::{Arena, IoVecSend, IoVecSendBuf, Lease};
use splitrpc_engine::{Piece, Transmit};
use splitrpc_ring::{RequestKey, Run};
use splitrpc_socket::TcpStream;
use splitrpc_wire::{HEADER_LEN, Kind, MAX_MANIFEST_LEN, MAX_TENSORS};

const NONE: u32 = u32::MAX;

/// A connection's unsent frames, in order: a list through the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutQueue {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for OutQueue {
    fn default() -> Self {
        OutQueue { first: NONE, last: NONE, len: 0 }
    }
}

impl OutQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }
}

/// One unsent frame.
#[derive(Debug)]
struct Frame {
    next: u32,
    token: Option<RequestKey>,
    run: Run,
    pieces: heapless::Vec<(u16, u32, u32), MAX_TENSORS>,
    header: [u8; HEADER_LEN],
    head: heapless::Vec<u8, MAX_MANIFEST_LEN>,
    /// Instead of `head`: a slice of the catalogue, which may be long.
    listing: (u32, u32),
    written: usize,
    total: usize,
}

impl Frame {
    fn new(next: u32) -> Frame {
        Frame {
            next,
            token: None,
            run: Run::NONE,
            pieces: heapless::Vec::new(),
            header: [0; HEADER_LEN],
            head: heapless::Vec::new(),
            listing: (0, 0),
            written: 0,
            total: 0,
        }
    }
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// All is with the kernel.
    Whole,
    /// So many bytes are.
    Part(usize),
    /// The connection is broken.
    Broken,
}

/// Unsent frames of all connections of a thread.
#[derive(Debug)]
pub(super) struct OutPool {
    frames: Vec<Frame>,
    free: u32,
    list: IoVecSendBuf,
    catalog: Arc<[u8]>,
    /// Bytes written.
    pub(super) bytes: u64,
}

impl OutPool {
    /// Room for this many frames.
    pub(super) fn new(frames: u32, catalog: Arc<[u8]>) -> OutPool {
        let next = |index| if index + 1 == frames { NONE } else { index + 1 };
        OutPool {
            frames: (0..frames).map(|index| Frame::new(next(index))).collect(),
            free: if frames == 0 { NONE } else { 0 },
            list: IoVecSendBuf::with_capacity(2 + MAX_TENSORS),
            catalog,
            bytes: 0,
        }
    }

    /// Writes a frame straight from where its parts are.
    pub(super) fn write(&mut self, stream: &TcpStream, arena: &Arena, frame: &Transmit<'_>) -> Written {
        let header = frame.header.to_bytes();
        let lease = lease(arena, frame.data.clone().next().map(|p| p.run));
        let list = self.list.begin();
        list.push(IoVecSend::from(&header[..]));
        if !frame.head.is_empty() {
            list.push(IoVecSend::from(frame.head));
        }
        for Piece { tensor, offset, length, .. } in frame.data.clone() {
            let Some(span) = lease.as_ref().and_then(|lease| lease.span(tensor, offset, length)) else {
                return Written::Broken;
            };
            list.push(span.iovec_send());
        }
        let total = HEADER_LEN + frame.header.length as usize;
        let written = write(stream, list, total);
        self.count(written, 0, total);
        written
    }

    /// Keeps the rest of a frame of which `written` bytes have left. Returns whether there was room.
    pub(super) fn keep(&mut self, queue: &mut OutQueue, frame: &Transmit<'_>, written: usize) -> bool {
        let index = self.free;
        let Some(slot) = self.frames.get_mut(index as usize) else { return false };
        slot.token = frame.token;
        slot.header = frame.header.to_bytes();
        slot.written = written;
        slot.total = HEADER_LEN + frame.header.length as usize;
        slot.listing = (0, 0);
        slot.head.clear();
        if frame.header.kind == Kind::ListAck {
            slot.listing = (frame.header.offset, frame.header.length);
        } else if slot.head.extend_from_slice(frame.head).is_err() {
            return false;
        }
        slot.pieces.clear();
        slot.run = Run::NONE;
        for piece in frame.data.clone() {
            slot.run = piece.run;
            // As many as there can be tensors.
            let _ = slot.pieces.push((piece.tensor, piece.offset, piece.length));
        }
        self.free = slot.next;
        slot.next = NONE;
        match queue.last {
            NONE => queue.first = index,
            last => self.frames[last as usize].next = index,
        }
        queue.last = index;
        queue.len += 1;
        true
    }

    /// Writes as much of the oldest kept frame as the kernel takes; once all of it has left, the frame is gone from the
    /// queue and its token is returned.
    pub(super) fn write_kept(
        &mut self,
        queue: &mut OutQueue,
        stream: &TcpStream,
        arena: &Arena,
    ) -> (Written, Option<RequestKey>) {
        let Some(frame) = self.frames.get_mut(queue.first as usize) else { return (Written::Whole, None) };
        let lease = lease(arena, (!frame.pieces.is_empty()).then_some(frame.run));
        let list = self.list.begin();
        list.push(IoVecSend::from(&frame.header[..]));
        list.push(IoVecSend::from(&frame.head[..]));
        let (offset, length) = (frame.listing.0 as usize, frame.listing.1 as usize);
        list.push(IoVecSend::from(self.catalog.get(offset..offset + length).unwrap_or_default()));
        for (tensor, offset, length) in &frame.pieces {
            let Some(span) = lease.as_ref().and_then(|lease| lease.span(*tensor, *offset, *length)) else {
                return (Written::Broken, None);
            };
            list.push(span.iovec_send());
        }
        let mut rest = &mut list[..];
        IoVecSend::advance_list(&mut rest, frame.written);
        let (before, left) = (frame.written, frame.total - frame.written);
        let written = write(stream, rest, left);
        let token = frame.token;
        if let Written::Part(bytes) = written {
            frame.written += bytes;
        }
        self.count(written, before, before + left);
        if written == Written::Whole {
            self.drop_first(queue);
            return (written, token);
        }
        (written, None)
    }

    /// Gives up a closed connection's frames.
    pub(super) fn clear(&mut self, queue: &mut OutQueue) {
        while !queue.is_empty() {
            self.drop_first(queue);
        }
    }

    fn drop_first(&mut self, queue: &mut OutQueue) {
        let index = queue.first;
        let frame = &mut self.frames[index as usize];
        queue.first = frame.next;
        queue.len -= 1;
        if queue.first == NONE {
            queue.last = NONE;
        }
        frame.next = self.free;
        self.free = index;
    }

    fn count(&mut self, written: Written, before: usize, total: usize) {
        self.bytes += match written {
            Written::Whole => total - before,
            Written::Part(bytes) => bytes,
            Written::Broken => 0,
        } as u64;
    }
}

/// What keeps a frame's tensors in memory while they are written.
fn lease(arena: &Arena, run: Option<Run>) -> Option<Lease<'_>> {
    run.and_then(|run| arena.lease(run))
}

fn write(stream: &TcpStream, list: &[IoVecSend<'_>], total: usize) -> Written {
    match stream.writev(list) {
        Ok(bytes) if bytes == total => Written::Whole,
        Ok(bytes) => Written::Part(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Written::Part(0),
        Err(_) => Written::Broken,
    }
}
