//! One receive: where its bytes land, and what becomes of the frames in it.

use std::io;

use splitrpc_arena::Arena;
use splitrpc_engine::{Peer, Piece, Placement, Time, Verdict};
use splitrpc_ring::RequestKey;
use splitrpc_socket::{Received, UdpSocket};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, MAX_MANIFEST_LEN, Train, WireError};

use super::fault::Fault;
use super::guess::Guess;
use super::plan::Plan;
use crate::arrivals::Arrivals;
use crate::frame::{Measured, head_len, measure, place};
use crate::storage::Engine;

/// Bytes that a look at a datagram takes: a header and the longest manifest.
const LOOK: usize = HEADER_LEN + MAX_MANIFEST_LEN;

/// What the port counts on the way in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReceiveStats {
    pub(super) bytes: u64,
    pub(super) bursts: u64,
    pub(super) datagrams: u64,
    /// Datagrams that were looked at before they were received.
    pub(super) looks: u64,
    /// Frames whose tensor data landed in its slots.
    pub(super) foreseen: u64,
    /// Frames whose tensor data landed elsewhere and was moved.
    pub(super) misjudged: u64,
}

/// The receiving half of the port.
#[derive(Debug)]
pub(super) struct Receiver {
    plan: Plan,
    guess: Guess,
    look: Box<[u8]>,
    pub(super) fault: Fault,
    pub(super) stats: ReceiveStats,
    /// The request that tensor data last came for.
    last: Option<RequestKey>,
}

/// What is known of the first datagram before it is received.
enum First {
    Unknown,
    /// The engine has seen its first frame.
    Judged(Verdict),
    Dropped,
}

/// The engine, the slots and the time, as every step needs them.
pub(super) struct Context<'c, 'e> {
    pub(super) now: Time,
    pub(super) engine: &'c mut Engine<'e>,
    pub(super) arena: &'c Arena,
}

impl Receiver {
    pub(super) fn new(datagram: u16, fault: Fault) -> Receiver {
        Receiver {
            plan: Plan::new(),
            guess: Guess::new(datagram),
            look: vec![0; LOOK].into(),
            fault,
            stats: ReceiveStats::default(),
            last: None,
        }
    }

    /// Notes what has arrived of the request that data last came for, unless something is missing in between.
    pub(super) fn note(&mut self, engine: &Engine<'_>, arrivals: &mut Arrivals) {
        let Some(request) = self.last.take() else { return };
        let Some((run, sizes, tensor, offset)) = engine.unbroken(request) else { return };
        if !arrivals.want(u32::try_from(sizes.total()).unwrap_or(u32::MAX)) {
            return;
        }
        let pieces = (0..).zip(sizes.as_slice()).take(usize::from(tensor) + 1).map(|(number, bytes)| {
            let length = if number == tensor { offset } else { *bytes };
            Piece { run, tensor: number, offset: 0, length }
        });
        arrivals.note(request, pieces, u32::MAX);
    }

    /// Receives once, which may bring many datagrams of one sender, and deals with all of them.
    pub(super) fn receive(&mut self, cx: &mut Context<'_, '_>, socket: &UdpSocket) -> io::Result<()> {
        let first = if self.guess.is_in_doubt() {
            self.look(cx, socket)?
        } else {
            self.guess.plan(cx.engine, &mut self.plan);
            First::Unknown
        };
        let Some(list) = self.plan.scatter(cx.arena) else {
            // Slots that the engine named lie in the arena; were they not, nothing may land there.
            self.plan.clear();
            return Err(io::ErrorKind::InvalidData.into());
        };
        let received = socket.recv(list)?;
        self.walk(cx, &received, first);
        Ok(())
    }

    /// Looks at the next datagram and plans by what its first frame says.
    fn look(&mut self, cx: &mut Context<'_, '_>, socket: &UdpSocket) -> io::Result<First> {
        let peeked = socket.peek(&mut self.look)?;
        self.stats.looks += 1;
        self.plan.clear();
        if self.fault.drops() {
            return Ok(First::Dropped);
        }
        let datagram = peeked.segment.map_or(peeked.len, |segment| usize::from(segment).min(peeked.len));
        let bytes = &self.look[..LOOK.min(datagram)];
        // What does not parse, or is longer than the look, is dealt with once it is here.
        let Ok(Measured::Whole(header, head)) = measure(bytes) else { return Ok(First::Unknown) };
        if header.kind != Kind::Request || HEADER_LEN + header.length as usize > datagram {
            return Ok(First::Unknown);
        }
        let verdict = cx.engine.handle_frame(cx.now, Peer::Datagram(peeked.from), &header, &bytes[HEADER_LEN..head]);
        if let Verdict::Place(placement) = &verdict {
            self.guess.compare(cx.engine, placement, &header);
            self.guess.plan_by(cx.engine, &mut self.plan, placement, head, &header, datagram);
        }
        Ok(First::Judged(verdict))
    }

    /// Goes through the datagrams of a receive and the frames in each.
    fn walk(&mut self, cx: &mut Context<'_, '_>, received: &Received, mut first: First) {
        let len = received.len;
        let segment = received.segment.map_or(len, usize::from).max(1);
        let peer = Peer::Datagram(received.from);
        self.stats.bytes += len as u64;
        self.stats.bursts += 1;
        self.stats.datagrams += len.div_ceil(segment) as u64;
        let mut start = 0;
        while start < len {
            if matches!(first, First::Unknown)
                && let Some((header, frames)) = self.train(start, len, segment)
            {
                let kept = (0..frames).take_while(|_| !self.fault.drops()).count() as u32;
                if kept > 0 {
                    self.take_train(cx, peer, start, &header, kept, len);
                }
                start += (kept as usize + usize::from(kept < frames)) * segment;
                continue;
            }
            let end = (start + segment).min(len);
            let (known, dropped) = match std::mem::replace(&mut first, First::Unknown) {
                First::Judged(verdict) => (Some(verdict), false),
                First::Dropped => (None, true),
                First::Unknown => (None, self.fault.drops()),
            };
            if !dropped && let Err(error) = self.walk_datagram(cx, peer, start, end, len, known) {
                // Frames behind one that does not parse cannot be found.
                let _ = cx.engine.handle_garbage(cx.now, peer, error);
            }
            start = end;
        }
    }

    /// The header of the datagram at `at`, and with how many that follow it makes a train: they came as expected.
    fn train(&self, at: usize, len: usize, segment: usize) -> Option<(Header, u32)> {
        let headers = self.plan.headers(at, segment);
        let (header, frames) = Train::measure(headers.get(..headers.len().min((len - at) / segment))?)?;
        let fits = header.kind == Kind::Request
            && !header.flags.has(Flags::MANIFEST)
            && HEADER_LEN + header.length as usize == segment;
        fits.then_some((header, frames))
    }

    fn take_train(
        &mut self,
        cx: &mut Context<'_, '_>,
        peer: Peer,
        at: usize,
        header: &Header,
        frames: u32,
        len: usize,
    ) {
        let verdict = cx.engine.handle_train(cx.now, peer, header, frames);
        let Verdict::Place(placement) = verdict else { return };
        let segment = HEADER_LEN + header.length as usize;
        let data = placement.length();
        let mut fixup = 0;
        if self.plan.landed_frames(at, segment, cx.engine.pieces(&placement).next()) {
            self.stats.foreseen += u64::from(frames);
        } else {
            self.plan.linearise(cx.arena, at, len);
            for n in 0..frames {
                let from = at + n as usize * segment + HEADER_LEN;
                let bytes = self.plan.bytes(from, from + header.length as usize).unwrap_or_default();
                if !place(cx.arena, cx.engine.pieces(&placement), n * header.length, bytes) {
                    return;
                }
            }
            fixup = data;
            self.stats.misjudged += u64::from(frames);
            self.guess.was_wrong();
        }
        cx.engine.placed(cx.now, &placement, data, fixup);
        self.last = Some(placement.request);
        if at + frames as usize * segment == len || !self.guess.follows(&placement) {
            self.guess.placed(cx.engine, &placement, header, &[]);
        }
    }

    fn walk_datagram(
        &mut self,
        cx: &mut Context<'_, '_>,
        peer: Peer,
        start: usize,
        end: usize,
        len: usize,
        mut known: Option<Verdict>,
    ) -> Result<(), WireError> {
        let mut at = start;
        while at < end {
            // Nearly always all of it is where it was expected, or behind everything that was.
            let bytes = match self.plan.bytes(at, end) {
                Some(bytes) if bytes.len() >= HEADER_LEN => bytes,
                _ => self.straight(cx.arena, at, end, len),
            };
            let header = Header::parse(bytes)?;
            let mut head = head_len(&header, bytes)?;
            if head > bytes.len() {
                let bytes = self.straight(cx.arena, at, end, len);
                head = head_len(&header, bytes)?;
            }
            let next = at + HEADER_LEN + header.length as usize;
            if next > end || at + head > next {
                return Err(WireError::Truncated);
            }
            let verdict = match known.take() {
                Some(verdict) => verdict,
                None => cx.engine.handle_frame(cx.now, peer, &header, behind(&mut self.plan, at, head)),
            };
            if let Verdict::Place(placement) = verdict {
                if head > HEADER_LEN
                    && let Some(meta) = cx.arena.meta(placement.run)
                {
                    meta.copy_from(behind(&mut self.plan, at, head));
                }
                self.put(cx, &placement, at + head, next, len);
                // In between there is nothing to learn.
                if head > HEADER_LEN || end == len || !self.guess.follows(&placement) {
                    let manifest = behind(&mut self.plan, at, head);
                    self.guess.placed(cx.engine, &placement, &header, manifest);
                }
            }
            at = next;
        }
        Ok(())
    }

    /// The bytes from `at` to `end`, in one piece.
    fn straight(&mut self, arena: &Arena, at: usize, end: usize, len: usize) -> &[u8] {
        self.plan.linearise(arena, at, len);
        self.plan.bytes(at, end).unwrap_or_default()
    }

    /// Sees to it that a frame's tensor data, from `at` to `next` in the receive, is in its slots.
    fn put(&mut self, cx: &mut Context<'_, '_>, placement: &Placement, at: usize, next: usize, len: usize) {
        let data = placement.length();
        debug_assert_eq!(data as usize, next - at);
        let mut fixup = 0;
        if data > 0 && !self.plan.landed(at, cx.engine.pieces(placement)) {
            // From here on nothing is where it was expected, or at least not all: the slots in which it lies now may be
            // where another frame's data belongs.
            self.plan.linearise(cx.arena, at, len);
            let bytes = self.plan.bytes(at, next).unwrap_or_default();
            if !place(cx.arena, cx.engine.pieces(placement), 0, bytes) {
                return;
            }
            fixup = data;
            self.stats.misjudged += 1;
            self.guess.was_wrong();
        } else {
            self.stats.foreseen += u64::from(data > 0);
        }
        cx.engine.placed(cx.now, placement, data, fixup);
        if data > 0 {
            self.last = Some(placement.request);
        }
    }
}

/// What of a head follows the header.
fn behind(plan: &mut Plan, at: usize, head: usize) -> &[u8] {
    if head == HEADER_LEN {
        return &[];
    }
    plan.bytes(at, at + head).and_then(|bytes| bytes.get(HEADER_LEN..)).unwrap_or_default()
}
