//! Frames gathered into as few system calls as the kernel allows: equal datagrams to one peer, and a shorter last one.

use std::io;
use std::net::SocketAddr;

use splitrpc_arena::{Arena, IoVecSend, IoVecSendBuf, Lease, Run};
use splitrpc_engine::Transmit;
use splitrpc_socket::{MAX_GSO_SEGMENTS, MAX_IOVECS, UdpSocket};
use splitrpc_wire::hello::MIN_DATAGRAM;
use splitrpc_wire::{HEADER_LEN, MAX_TENSORS, Train};

/// Bytes of one send.
const MAX_BYTES: usize = 65_000;
/// Runs of slots that one send takes tensor data from.
const MAX_RUNS: usize = 8;
/// How often a send that finds no room is tried again before its datagrams count as lost. The engine sends them again.
const TRIES: usize = 200;

#[derive(Clone, Copy, Debug)]
enum Part {
    Head { first: usize, len: usize },
    Data { run: usize, tensor: u16, offset: u32, len: u32 },
}

/// What became of the datagrams handed to a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SendStats {
    pub(super) bytes: u64,
    pub(super) bursts: u64,
    pub(super) datagrams: u64,
    /// Sends that had to wait for room in the kernel.
    pub(super) waits: u64,
    /// Datagrams given up because there was none.
    pub(super) no_room: u64,
    /// Datagrams larger than the path takes.
    pub(super) too_large: u64,
    /// Datagrams that the kernel refused otherwise.
    pub(super) refused: u64,
}

/// Datagrams to one peer that will leave with one system call.
#[derive(Debug)]
pub(super) struct Batch {
    to: Option<SocketAddr>,
    /// Bytes of each datagram but the last.
    segment: usize,
    /// Bytes of the last datagram.
    last: usize,
    datagrams: usize,
    total: usize,
    heads: Box<[u8]>,
    heads_used: usize,
    parts: Vec<Part>,
    runs: heapless::Vec<Run, MAX_RUNS>,
    list: IoVecSendBuf,
    pub(super) stats: SendStats,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            to: None,
            segment: 0,
            last: 0,
            datagrams: 0,
            total: 0,
            heads: vec![0; MAX_BYTES].into(),
            heads_used: 0,
            parts: Vec::with_capacity(MAX_IOVECS),
            runs: heapless::Vec::new(),
            list: IoVecSendBuf::with_capacity(MAX_IOVECS),
            stats: SendStats::default(),
        }
    }

    /// Takes a frame, or those of a train, and sends what was there before where they cannot leave together.
    pub(super) fn push(&mut self, socket: &UdpSocket, arena: &Arena, to: SocketAddr, frame: &Transmit<'_>) {
        if frame.frames == 1 {
            self.make_room(socket, arena, to, frame);
            return self.append(frame, &frame.header.to_bytes(), 0);
        }
        let train = Train::new(&frame.header);
        for n in 0..frame.frames {
            self.make_room(socket, arena, to, frame);
            self.append(frame, &train.nth(n), n);
        }
    }

    /// Counts one more of such frames in.
    fn make_room(&mut self, socket: &UdpSocket, arena: &Arena, to: SocketAddr, frame: &Transmit<'_>) {
        let len = HEADER_LEN + frame.header.length as usize;
        // The smallest datagram of all is one that the peer takes for certain.
        let limit = if self.datagrams == 1 { usize::from(MIN_DATAGRAM) } else { self.segment };
        let rides = frame.rides_along && self.has_room(to, len, frame) && self.last + len <= limit;
        if rides {
            if self.datagrams == 1 {
                self.segment += len;
            }
            self.last += len;
        } else {
            let follows = self.has_room(to, len, frame)
                && self.last == self.segment
                && len <= self.segment
                && self.datagrams < MAX_GSO_SEGMENTS;
            if !follows {
                self.flush(socket, arena);
                self.to = Some(to);
                self.segment = len;
            }
            self.datagrams += 1;
            self.last = len;
        }
        self.total += len;
    }

    fn has_room(&self, to: SocketAddr, len: usize, frame: &Transmit<'_>) -> bool {
        let run = frame.data.clone().next().map(|piece| piece.run);
        self.to == Some(to)
            && self.total + len <= MAX_BYTES
            && self.parts.len() + 1 + MAX_TENSORS <= MAX_IOVECS
            && run.is_none_or(|run| !self.runs.is_full() || self.runs.contains(&run))
    }

    /// Adds the `n`th frame, with this header.
    fn append(&mut self, frame: &Transmit<'_>, header_bytes: &[u8; HEADER_LEN], n: u32) {
        let first = self.heads_used;
        let len = HEADER_LEN + frame.head.len();
        let (header, head) = self.heads[first..first + len].split_at_mut(HEADER_LEN);
        header.copy_from_slice(header_bytes);
        head.copy_from_slice(frame.head);
        self.heads_used += len;
        self.parts.push(Part::Head { first, len });
        for mut piece in frame.data.clone() {
            if frame.frames > 1 {
                // All that a train carries is one stretch, of which each frame has its share.
                piece = piece.share(n, frame.header.length);
            }
            let run = self.runs.iter().position(|run| *run == piece.run).unwrap_or_else(|| {
                // `has_room` made sure of it, and an empty batch has room.
                let _ = self.runs.push(piece.run);
                self.runs.len() - 1
            });
            self.parts.push(Part::Data { run, tensor: piece.tensor, offset: piece.offset, len: piece.length });
        }
    }

    /// Sends what there is.
    pub(super) fn flush(&mut self, socket: &UdpSocket, arena: &Arena) {
        let Some(to) = self.to.take() else { return };
        let leases: heapless::Vec<Option<Lease<'_>>, MAX_RUNS> =
            self.runs.iter().map(|run| arena.lease(*run)).collect();
        let list = self.list.begin();
        for part in &self.parts {
            match *part {
                Part::Head { first, len } => list.push(IoVecSend::from(&self.heads[first..first + len])),
                Part::Data { run, tensor, offset, len } => {
                    let lease = leases.get(run).and_then(Option::as_ref);
                    list.extend(lease.and_then(|lease| lease.span(tensor, offset, len)).map(|s| s.iovec_send()));
                }
            }
        }
        let segment = (self.datagrams > 1).then_some(self.segment as u16);
        if list.len() == self.parts.len() {
            send(socket, to, list, segment, self.datagrams as u64, &mut self.stats);
        } else {
            self.stats.refused += self.datagrams as u64;
        }
        self.datagrams = 0;
        self.total = 0;
        self.heads_used = 0;
        self.parts.clear();
        self.runs.clear();
    }
}

fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    list: &[IoVecSend<'_>],
    segment: Option<u16>,
    datagrams: u64,
    stats: &mut SendStats,
) {
    for attempt in 0..TRIES {
        match socket.send(to, list, segment) {
            Ok(bytes) => {
                stats.bytes += bytes as u64;
                stats.bursts += 1;
                stats.datagrams += datagrams;
                stats.waits += u64::from(attempt > 0);
                return;
            }
            // The slots may be given to others before the kernel has room, so the batch cannot be kept.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                stats.too_large += datagrams;
                return;
            }
            Err(_) => {
                stats.refused += datagrams;
                return;
            }
        }
    }
    stats.no_room += datagrams;
}
