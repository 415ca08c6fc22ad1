//! One connection's state. What an idle one costs is this struct: buffers come and go with partial frames.

use std::net::Shutdown;

use splitrpc_arena::{Arena, IoVec};
use splitrpc_engine::{LEVELS, Piece, Placement, Time};
use splitrpc_socket::TcpStream;
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Manifest};

use super::out::OutQueue;
use crate::frame::HEAD_ROOM;
use crate::storage::Engine;

/// Manifests up to this length are remembered, so that a request like the last one takes one system call.
const SMALL_MANIFEST: usize = 256;
/// Payloads up to this length are read together with their header. More would have to be moved if the guess is wrong.
pub(super) const SMALL_DATA: usize = 16 << 10;

/// A TCP connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) id: u32,
    pub(super) reading: Reading,
    /// Bytes that were read before the engine ran out of room for what they may cause; they come before those in the
    /// socket. Empty, and without memory, but for bursts of hundreds of small frames.
    pub(super) unread: Vec<u8>,
    pub(super) shape: Shape,
    /// How urgent its last request is: less is more urgent.
    pub(super) urgency: u8,
    pub(super) out: OutQueue,
    /// When the kernel last took something of what waits in `out`.
    pub(super) out_since: Time,
    /// The poller watches for room to write, because something waits for it.
    pub(super) watches_write: bool,
    /// The poller does not watch for input, because too much waits to be written.
    pub(super) paused: bool,
    /// When its last frame was handed over: what comes after that is nobody's.
    pub(super) parted: Option<Time>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, id: u32) -> Connection {
        Connection {
            stream,
            id,
            reading: Reading::Head(None),
            unread: Vec::new(),
            shape: Shape::default(),
            urgency: LEVELS as u8 - 1,
            out: OutQueue::default(),
            out_since: Time::default(),
            watches_write: false,
            paused: false,
            parted: None,
        }
    }

    /// Ends this side of a connection that has parted, once all is written.
    pub(super) fn shut(&self) {
        if self.parted.is_some() && self.out.is_empty() {
            // Who is gone already need not be told.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// When the part of a head that is there came, if no more than a part is.
    pub(super) fn partial_since(&self) -> Option<Time> {
        match &self.reading {
            Reading::Head(Some(part)) => Some(part.since),
            _ => None,
        }
    }
}

/// What the next byte of a stream is.
#[derive(Debug)]
pub(super) enum Reading {
    /// Part of a head, of which some may be there.
    Head(Option<Box<PartialHead>>),
    /// Tensor data on its way into slots.
    Payload(Payload),
    /// So many bytes that nobody wants.
    Drain(u32),
}

/// Tensor data on its way into slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) placement: Placement,
    /// Bytes in place.
    pub(super) done: u32,
    /// Of those, bytes that landed elsewhere first.
    pub(super) fixup: u32,
}

impl Payload {
    pub(super) fn left(&self) -> u32 {
        self.placement.length() - self.done
    }
}

/// The beginning of a head.
#[derive(Debug)]
pub(super) struct PartialHead {
    pub(super) since: Time,
    len: usize,
    bytes: [u8; HEAD_ROOM],
}

impl PartialHead {
    pub(super) fn new() -> Box<PartialHead> {
        Box::new(PartialHead { since: Time::default(), len: 0, bytes: [0; HEAD_ROOM] })
    }

    pub(super) fn begin(&mut self, now: Time, bytes: &[u8]) {
        self.since = now;
        self.len = bytes.len();
        self.bytes[..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Room for the bytes up to a length of `need`.
    pub(super) fn room(&mut self, need: usize) -> &mut [u8] {
        &mut self.bytes[self.len..need]
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.len += bytes;
    }
}

/// What a connection's last request looked like; the next one is expected to look the same.
#[derive(Debug)]
pub(super) struct Shape {
    header: Header,
    data: u32,
    /// Pool and rows of its slots, where the manifest is short enough to be remembered.
    class: Option<(u16, u16)>,
    manifest_len: u16,
    manifest: [u8; SMALL_MANIFEST],
}

impl Default for Shape {
    fn default() -> Self {
        Shape { header: Header::new(Kind::Ping), data: 0, class: None, manifest_len: 0, manifest: [0; SMALL_MANIFEST] }
    }
}

impl Shape {
    /// Takes after a request that was placed. This is asked of every request, while most are like the one before.
    pub(super) fn remember(&mut self, engine: &Engine<'_>, header: &Header, manifest: &[u8], data: u32) {
        let same = self.header.model == header.model && self.manifest() == Some(manifest);
        self.header = *header;
        self.data = data;
        if same {
            return;
        }
        self.manifest_len = manifest.len() as u16;
        self.class = None;
        if manifest.len() <= SMALL_MANIFEST {
            self.manifest[..manifest.len()].copy_from_slice(manifest);
            self.class = Manifest::parse(manifest).ok().and_then(|manifest| engine.class_of(header, &manifest));
        }
    }

    /// The manifest, where it is short enough to be remembered.
    pub(super) fn manifest(&self) -> Option<&[u8]> {
        self.manifest.get(..usize::from(self.manifest_len))
    }

    /// Bytes of the head that is expected next.
    pub(super) fn head_len(&self) -> usize {
        HEADER_LEN + usize::from(self.manifest_len)
    }

    pub(super) fn data(&self) -> u32 {
        self.data
    }

    /// Pool and rows of the slots, where the whole frame is so small that it is worth guessing where it belongs.
    pub(super) fn small(&self) -> Option<(u16, u16)> {
        self.class.filter(|_| self.data as usize <= SMALL_DATA && self.header.is_whole())
    }

    /// The header of a head that is the expected one's like.
    pub(super) fn recognise(&self, head: &[u8]) -> Option<Header> {
        let (header, manifest) = (Header::parse(head).ok()?, head.get(HEADER_LEN..)?);
        let alike = header.kind == Kind::Request
            && header.flags.has(Flags::MANIFEST)
            && header.length == self.header.length
            && self.manifest() == Some(manifest);
        alike.then_some(header)
    }
}

/// Appends where the bytes of `pieces` from `skip` on belong, at most `limit` bytes. Returns how many, or `None` where a
/// piece lies outside its slots.
pub(super) fn scatter<'a>(
    list: &mut Vec<IoVec<'a>>,
    arena: &'a Arena,
    pieces: impl Iterator<Item = Piece>,
    mut skip: u32,
    limit: u32,
) -> Option<u32> {
    let mut total = 0;
    for piece in pieces {
        let skipped = skip.min(piece.length);
        skip -= skipped;
        let length = (piece.length - skipped).min(limit - total);
        if length > 0 {
            list.push(arena.span(piece.run, piece.tensor, piece.offset + skipped, length)?.iovec());
            total += length;
        }
    }
    Some(total)
}
