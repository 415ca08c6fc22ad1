//! Frames on their way out: as many as one system call takes.

use std::io;
use std::net::SocketAddr;

use splitrpc_engine::ClientTransmit;
use splitrpc_ring::RequestKey;
use splitrpc_socket::{IoVecSend, IoVecSendBuf, MAX_GSO_SEGMENTS, MAX_IOVECS, MAX_UDP_PAYLOAD, UdpSocket};

use super::calls::Calls;

/// Datagrams of one size, of which the last may be shorter, sent with one call where the system can cut them.
pub(crate) struct Batch {
    heads: Vec<u8>,
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
    Head { from: usize, len: usize },
    Data { key: RequestKey, tensor: u16, offset: u32, length: u32 },
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch {
            heads: Vec::with_capacity(16 << 10),
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
        self.heads.clear();
        self.pieces.clear();
        (self.segment, self.last, self.datagrams, self.bytes, self.sent) = (0, 0, 0, 0, 0);
    }

    /// Adds a frame, unless it does not fit what is there already. An empty batch takes any.
    pub(crate) fn push(&mut self, frame: &ClientTransmit<'_>, datagram: usize) -> bool {
        let len = splitrpc_wire::HEADER_LEN + frame.header.length as usize;
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
        let from = self.heads.len();
        self.heads.extend_from_slice(&frame.header.to_bytes());
        self.heads.extend_from_slice(frame.head);
        self.pieces.push(Piece::Head { from, len: self.heads.len() - from });
        if let Some(key) = frame.request {
            let data =
                frame.data.clone().map(|p| Piece::Data { key, tensor: p.tensor, offset: p.offset, length: p.length });
            self.pieces.extend(data);
        }
        true
    }

    /// Sends it. What an error other than `WouldBlock` leaves unsent counts as lost on the way.
    pub(crate) fn send(&mut self, socket: &UdpSocket, to: SocketAddr, calls: &Calls) -> io::Result<()> {
        let list = self.list.begin();
        for piece in &self.pieces {
            let bytes = match *piece {
                Piece::Head { from, len } => Some(&self.heads[from..from + len]),
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
