//! Frames on their way out: as many as one system call takes.

use std::io;
use std::net::SocketAddr;

use splitrpc_engine::{ClientTransmit, Piece as Stretch};
use splitrpc_ring::RequestKey;
use splitrpc_socket::{IoVecSend, IoVecSendBuf, MAX_GSO_SEGMENTS, MAX_IOVECS, MAX_UDP_PAYLOAD, UdpSocket};

use splitrpc_wire::{HEADER_LEN, Train};

use super::calls::Calls;

/// What is put together begins at a multiple of this, a line of the processor's cache: the copy out of it is faster so.
const LINE: usize = 64;
/// Frames with at most so many data bytes are put together here, since for the kernel a list of that many small pieces
/// costs more than the copy: 428 datagrams of 1,472 bytes took an eighth longer where the kernel gathered them.
const STAGED: u32 = 2048;

/// Datagrams of one size, of which the last may be shorter, sent with one call where the system can cut them.
pub(crate) struct Batch {
    /// Heads, and staged data behind them.
    bytes_here: Vec<u8>,
    pieces: Vec<Piece>,
    list: IoVecSendBuf,
    /// Bytes of each datagram but the last.
    segment: usize,
    /// Bytes of the last.
    last: usize,
    datagrams: usize,
    bytes: usize,
    sent: usize,
}

#[derive(Clone, Copy)]
enum Piece {
    Here { from: usize, len: usize },
    Data { key: RequestKey, tensor: u16, offset: u32, length: u32 },
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch {
            bytes_here: Vec::with_capacity(MAX_UDP_PAYLOAD + LINE),
            pieces: Vec::with_capacity(256),
            list: IoVecSendBuf::with_capacity(256),
            segment: 0,
            last: 0,
            datagrams: 0,
            bytes: 0,
            sent: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.datagrams == 0
    }

    pub(crate) fn clear(&mut self) {
        let start = self.bytes_here.as_ptr().align_offset(LINE).min(LINE);
        self.bytes_here.clear();
        self.bytes_here.resize(start, 0);
        self.pieces.clear();
        (self.segment, self.last, self.datagrams, self.bytes, self.sent) = (0, 0, 0, 0, 0);
    }

    /// Adds the frames of a train from the `first` on, or the one that there is, as many as fit what is there already,
    /// and returns how many they are. An empty batch takes at least one.
    pub(crate) fn push(&mut self, frame: &ClientTransmit<'_>, first: u32, datagram: usize, calls: &Calls) -> u32 {
        if frame.frames == 1 {
            let fits = first == 0 && self.make_room(frame, datagram);
            if fits {
                self.append_one(frame, calls);
            }
            return u32::from(fits);
        }
        let (Some(key), Some(stretch)) = (frame.request, frame.data.clone().next()) else { return frame.frames };
        let taken = self.make_room_for(frame, frame.frames - first, datagram);
        let (train, length) = (Train::new(&frame.header), frame.header.length);
        let frames = first..first + taken;
        let whole = calls.get(key).and_then(|call| call.data(stretch.tensor, stretch.offset, stretch.length));
        match whole {
            Some(bytes) if length <= STAGED => {
                let from = self.bytes_here.len();
                for (n, data) in frames.clone().zip(bytes.chunks_exact(length.max(1) as usize).skip(first as usize)) {
                    self.bytes_here.extend_from_slice(&train.nth(n));
                    self.bytes_here.extend_from_slice(data);
                }
                self.note_here(from);
            }
            _ => {
                for n in frames {
                    self.append_here(&[&train.nth(n)]);
                    self.append_data(key, stretch.share(n, length), calls);
                }
            }
        }
        taken
    }

    /// Counts in as many of up to `most` such frames as fit, and returns how many they are.
    fn make_room_for(&mut self, frame: &ClientTransmit<'_>, most: u32, datagram: usize) -> u32 {
        if most == 0 || !self.make_room(frame, datagram) {
            return 0;
        }
        let len = HEADER_LEN + frame.header.length as usize;
        if self.last != self.segment || len != self.segment {
            return 1;
        }
        let lists = (MAX_IOVECS - 2 * splitrpc_wire::MAX_TENSORS).saturating_sub(self.pieces.len()) / 2;
        let room = ((MAX_UDP_PAYLOAD - self.bytes) / len).min(MAX_GSO_SEGMENTS - self.datagrams).min(lists);
        let more = room.min(most as usize - 1);
        self.datagrams += more;
        self.bytes += more * len;
        1 + more as u32
    }

    /// Counts one more of such frames in, unless it does not fit.
    fn make_room(&mut self, frame: &ClientTransmit<'_>, datagram: usize) -> bool {
        let len = HEADER_LEN + frame.header.length as usize;
        let room =
            self.bytes + len <= MAX_UDP_PAYLOAD && self.pieces.len() + 2 * splitrpc_wire::MAX_TENSORS < MAX_IOVECS;
        let largest = if self.datagrams == 1 { datagram } else { self.segment };
        if self.is_empty() {
            (self.segment, self.last, self.datagrams) = (len, len, 1);
        } else if room && frame.rides_along && self.last + len <= largest {
            self.last += len;
            self.segment = self.segment.max(self.last);
        } else if room && self.datagrams < MAX_GSO_SEGMENTS && self.last == self.segment && len <= self.segment {
            self.last = len;
            self.datagrams += 1;
        } else {
            return false;
        }
        self.bytes += len;
        true
    }

    fn append_one(&mut self, frame: &ClientTransmit<'_>, calls: &Calls) {
        self.append_here(&[&frame.header.to_bytes(), frame.head]);
        if let Some(key) = frame.request {
            frame.data.clone().for_each(|stretch| self.append_data(key, stretch, calls));
        }
    }

    fn append_data(&mut self, key: RequestKey, stretch: Stretch, calls: &Calls) {
        let Stretch { tensor, offset, length, .. } = stretch;
        match calls.get(key).and_then(|call| call.data(tensor, offset, length)) {
            Some(bytes) if length <= STAGED => self.append_here(&[bytes]),
            _ => self.pieces.push(Piece::Data { key, tensor, offset, length }),
        }
    }

    fn append_here(&mut self, parts: &[&[u8]]) {
        let from = self.bytes_here.len();
        parts.iter().for_each(|part| self.bytes_here.extend_from_slice(part));
        self.note_here(from);
    }

    /// What lies here from this place on was added.
    fn note_here(&mut self, from: usize) {
        let added = self.bytes_here.len() - from;
        match self.pieces.last_mut() {
            Some(Piece::Here { from: before, len }) if *before + *len == from => *len += added,
            _ => self.pieces.push(Piece::Here { from, len: added }),
        }
    }

    /// Sends it. What an error other than `WouldBlock` leaves unsent counts as lost on the way.
    pub(crate) fn send(&mut self, socket: &UdpSocket, to: SocketAddr, calls: &Calls) -> io::Result<()> {
        let list = self.list.begin();
        for piece in &self.pieces {
            let bytes = match *piece {
                Piece::Here { from, len } => Some(&self.bytes_here[from..from + len]),
                Piece::Data { key, tensor, offset, length } => {
                    calls.get(key).and_then(|c| c.data(tensor, offset, length))
                }
            };
            // A request that has ended meanwhile takes its frames' neighbours with it, as a loss would.
            let Some(bytes) = bytes else { return Ok(()) };
            list.push(IoVecSend::from(bytes));
        }
        let segment = u16::try_from(self.segment).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut rest = &mut list[..];
        IoVecSend::advance_list(&mut rest, self.sent);
        while self.sent < self.bytes {
            let sent = socket.send(to, rest, (self.datagrams > 1).then_some(segment))?.max(1);
            self.sent += sent;
            IoVecSend::advance_list(&mut rest, sent);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Batch { segment, datagrams, bytes, sent, .. } = self;
        write!(f, "Batch {{ datagrams: {datagrams}, segment: {segment}, bytes: {bytes}, sent: {sent} }}")
    }
}
