//! From a stream's bytes to frames, with tensor data read straight into its slots.

use std::io;
use std::mem;

use splitrpc_arena::{Arena, IoVecBuf};
use splitrpc_engine::{LEVELS, MS, Peer, Time, Verdict};
use splitrpc_wire::{HEADER_LEN, Header};

use super::connection::{Connection, PartialHead, Payload, Reading, SMALL_DATA, scatter};
use crate::arrivals::Arrivals;
use crate::frame::{HEAD_ROOM, Measured, measure, place};
use crate::storage::Engine;

/// Bytes that one connection may bring before the others have their turn: so many that going round costs next to nothing, and
/// no more, since each waits for what all others bring.
const BYTES_PER_TURN: usize = 128 << 10;
/// The same while more urgent requests come, which would wait for it at each step that they take.
const BYTES_PER_SHORT_TURN: usize = 32 << 10;
/// How long after an urgent request another one is counted on.
const URGENT_WITHIN: u64 = MS;
/// System calls that one connection may take before the others have their turn.
const STEPS_PER_TURN: usize = 64;
/// Bytes of one read that nobody wants.
const SINK: usize = 64 << 10;

/// What a connection's turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There was nothing to read.
    Quiet,
    /// Something was read; there may be more.
    Moved,
    /// The connection is over: its end, an error, or the protocol broken.
    Over,
}

/// The engine, the slots and the time, as every step needs them.
pub(super) struct Context<'c, 'e> {
    pub(super) now: Time,
    pub(super) engine: &'c mut Engine<'e>,
    pub(super) arena: &'c Arena,
    pub(super) arrivals: &'c mut Arrivals,
}

/// The connection is over.
pub(super) struct Over;

/// What one step of reading did.
pub(super) enum Step {
    /// Nothing to read.
    Quiet,
    /// Read so many bytes; `dry` if that was all there is for now.
    Read { bytes: usize, dry: bool },
    /// No bytes were read, but the state has changed.
    Again,
}

/// Buffers that all connections of a thread share, none of them in use between turns.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) head: Box<[u8]>,
    pub(super) spill: Box<[u8]>,
    sink: Box<[u8]>,
    pub(super) list: IoVecBuf,
    #[expect(clippy::vec_box, reason = "they move to and from connections, which are to stay small")]
    partial: Vec<Box<PartialHead>>,
    /// When the last request of each urgency began to arrive.
    begun: [Option<Time>; LEVELS],
    /// Bytes read.
    pub(super) bytes: u64,
    /// Requests that lay in their slots after one system call, head and all.
    pub(super) foreseen: u64,
    /// Requests for which that was tried in vain.
    pub(super) misjudged: u64,
}

impl Reader {
    /// Of a port with at most this many connections.
    pub(super) fn new(connections: usize) -> Reader {
        Reader {
            head: vec![0; HEAD_ROOM].into(),
            spill: vec![0; SMALL_DATA].into(),
            sink: vec![0; SINK].into(),
            list: IoVecBuf::with_capacity(1 + splitrpc_wire::MAX_TENSORS),
            partial: Vec::with_capacity(connections.min(1024)),
            begun: [None; LEVELS],
            bytes: 0,
            foreseen: 0,
            misjudged: 0,
        }
    }

    /// Reads what a connection has, until a request is complete, nothing is left or its turn is over.
    pub(super) fn turn(&mut self, cx: &mut Context<'_, '_>, connection: &mut Connection) -> Turn {
        let mut moved = 0;
        let most = self.bytes_per_turn(cx.now, connection.urgency);
        for _ in 0..STEPS_PER_TURN {
            if moved >= most || !cx.engine.accepts_frames() {
                break;
            }
            if !connection.unread.is_empty() {
                match self.feed_unread(cx, connection) {
                    Ok(bytes) => moved += bytes,
                    Err(Over) => return Turn::Over,
                }
                continue;
            }
            let step = match &connection.reading {
                Reading::Head(None) => self.read_frame(cx, connection),
                Reading::Head(Some(_)) => self.read_partial_head(cx, connection),
                Reading::Payload(payload) => {
                    let payload = *payload;
                    self.read_payload(cx, connection, payload, most)
                }
                Reading::Drain(left) => {
                    let left = *left;
                    self.drain(connection, left)
                }
            };
            match step {
                Err(Over) => return Turn::Over,
                Ok(Step::Quiet) => break,
                Ok(Step::Again) => {}
                Ok(Step::Read { bytes, dry }) => {
                    moved += bytes;
                    self.bytes += bytes as u64;
                    // A request that is complete is worth more than those behind it.
                    if dry || cx.engine.next_submission().is_some() {
                        break;
                    }
                }
            }
        }
        if moved > 0 { Turn::Moved } else { Turn::Quiet }
    }

    /// Bytes that a connection may bring whose requests are so urgent.
    fn bytes_per_turn(&self, now: Time, urgency: u8) -> usize {
        let others = self.begun.iter().take(urgency.into()).flatten();
        match others.copied().any(|begun| now.since(begun) < URGENT_WITHIN) {
            true => BYTES_PER_SHORT_TURN,
            false => BYTES_PER_TURN,
        }
    }

    /// Reads once from a connection, for the sake of its being read.
    pub(super) fn ignore(&mut self, connection: &mut Connection) -> Turn {
        match finish(connection.stream.read(&mut self.sink), SINK) {
            Ok(Step::Read { bytes, .. }) => {
                self.bytes += bytes as u64;
                Turn::Moved
            }
            Ok(Step::Quiet | Step::Again) => Turn::Quiet,
            Err(Over) => Turn::Over,
        }
    }

    /// Forgets what a connection has brought of a frame that is not whole, and what the engine had no room for.
    pub(super) fn reclaim(&mut self, connection: &mut Connection) {
        connection.unread = Vec::new();
        if let Reading::Head(Some(partial)) = mem::replace(&mut connection.reading, Reading::Head(None)) {
            self.keep(partial);
        }
    }

    /// Between frames: reads the next head, and where the whole frame is small and looks like the last one, all of it.
    fn read_frame(&mut self, cx: &mut Context<'_, '_>, connection: &mut Connection) -> Result<Step, Over> {
        if let Some((pool, rows)) = connection.shape.small()
            && let Some(run) = cx.engine.peek_run(pool, rows)
        {
            return self.read_foreseen(cx, connection, run);
        }
        // Where nothing is known the head is taken in steps, so that no tensor data comes along.
        let want = connection.shape.head_len();
        let read = connection.stream.read(&mut self.head[..want]);
        let step = finish(read, want)?;
        if let Step::Read { bytes, .. } = step {
            self.feed_head(cx, connection, bytes)?;
        }
        Ok(step)
    }

    fn read_partial_head(&mut self, cx: &mut Context<'_, '_>, connection: &mut Connection) -> Result<Step, Over> {
        let Reading::Head(Some(partial)) = &mut connection.reading else { return Ok(Step::Again) };
        let need = match measure(partial.bytes()) {
            Ok(Measured::Needs(need)) => need,
            Ok(Measured::Whole(_, len)) => len,
            Err(error) => return self.garbage(cx, connection, error),
        };
        let room = partial.room(need);
        let want = room.len();
        let step = finish(connection.stream.read(room), want)?;
        if let Step::Read { bytes, .. } = step {
            partial.filled(bytes);
            self.finish_head(cx, connection)?;
        }
        Ok(step)
    }

    fn read_payload(
        &mut self,
        cx: &mut Context<'_, '_>,
        connection: &mut Connection,
        payload: Payload,
        most: usize,
    ) -> Result<Step, Over> {
        if !cx.engine.still_placing(&payload.placement) {
            connection.reading = Reading::Drain(payload.left());
            return Ok(Step::Again);
        }
        let list = self.list.begin();
        let pieces = cx.engine.pieces(&payload.placement);
        let want = scatter(list, cx.arena, pieces, payload.done, most as u32).ok_or(Over)? as usize;
        let step = finish(connection.stream.readv(list), want)?;
        if let Step::Read { bytes, .. } = step {
            advance(cx, connection, bytes as u32, false);
        }
        Ok(step)
    }

    fn drain(&mut self, connection: &mut Connection, left: u32) -> Result<Step, Over> {
        let want = SINK.min(left as usize);
        let step = finish(connection.stream.read(&mut self.sink[..want]), want)?;
        if let Step::Read { bytes, .. } = step {
            connection.reading = drained(left - bytes as u32);
        }
        Ok(step)
    }

    pub(super) fn feed_head(
        &mut self,
        cx: &mut Context<'_, '_>,
        connection: &mut Connection,
        bytes: usize,
    ) -> Result<(), Over> {
        let head = mem::take(&mut self.head);
        let fed = self.feed(cx, connection, &head[..bytes]);
        self.head = head;
        fed
    }

    /// Goes on with what the engine had no room for. Returns how many bytes it has taken now.
    fn feed_unread(&mut self, cx: &mut Context<'_, '_>, connection: &mut Connection) -> Result<usize, Over> {
        let bytes = mem::take(&mut connection.unread);
        self.feed(cx, connection, &bytes)?;
        Ok(bytes.len() - connection.unread.len())
    }

    /// Takes in bytes of the stream that have landed outside slots, whatever they turn out to be. What comes after the
    /// engine has run out of room is kept.
    pub(super) fn feed(
        &mut self,
        cx: &mut Context<'_, '_>,
        connection: &mut Connection,
        mut bytes: &[u8],
    ) -> Result<(), Over> {
        while !bytes.is_empty() {
            if !connection.unread.is_empty() || !cx.engine.accepts_frames() {
                connection.unread.extend_from_slice(bytes);
                return Ok(());
            }
            let taken = match &mut connection.reading {
                Reading::Head(None) => match measure(bytes) {
                    Ok(Measured::Whole(header, len)) => {
                        self.dispatch(cx, connection, &header, &bytes[HEADER_LEN..len])?;
                        len
                    }
                    Ok(Measured::Needs(_)) => {
                        let mut partial = self.partial.pop().unwrap_or_else(PartialHead::new);
                        partial.begin(cx.now, bytes);
                        connection.reading = Reading::Head(Some(partial));
                        bytes.len()
                    }
                    Err(error) => return self.garbage(cx, connection, error),
                },
                Reading::Head(Some(partial)) => match measure(partial.bytes()) {
                    Ok(Measured::Needs(need) | Measured::Whole(_, need)) => {
                        let room = partial.room(need);
                        let taken = room.len().min(bytes.len());
                        room[..taken].copy_from_slice(&bytes[..taken]);
                        partial.filled(taken);
                        self.finish_head(cx, connection)?;
                        taken
                    }
                    Err(error) => return self.garbage(cx, connection, error),
                },
                Reading::Payload(payload) => {
                    let taken = bytes.len().min(payload.left() as usize);
                    if cx.engine.still_placing(&payload.placement) {
                        let pieces = cx.engine.pieces(&payload.placement);
                        if !place(cx.arena, pieces, payload.done, &bytes[..taken]) {
                            return Err(Over);
                        }
                        advance(cx, connection, taken as u32, true);
                    } else {
                        connection.reading = drained(payload.left() - taken as u32);
                    }
                    taken
                }
                Reading::Drain(left) => {
                    let taken = bytes.len().min(*left as usize);
                    connection.reading = drained(*left - taken as u32);
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Hands a partial head on if it has become whole.
    fn finish_head(&mut self, cx: &mut Context<'_, '_>, connection: &mut Connection) -> Result<(), Over> {
        let Reading::Head(Some(partial)) = mem::replace(&mut connection.reading, Reading::Head(None)) else {
            return Ok(());
        };
        match measure(partial.bytes()) {
            Ok(Measured::Whole(header, len)) => {
                let dispatched = self.dispatch(cx, connection, &header, &partial.bytes()[HEADER_LEN..len]);
                self.keep(partial);
                dispatched
            }
            Ok(Measured::Needs(_)) => {
                connection.reading = Reading::Head(Some(partial));
                Ok(())
            }
            Err(error) => {
                self.keep(partial);
                self.garbage(cx, connection, error)
            }
        }
    }

    /// Hands a frame to the engine, and notes what is to become of the tensor data behind its head.
    pub(super) fn dispatch(
        &mut self,
        cx: &mut Context<'_, '_>,
        connection: &mut Connection,
        header: &Header,
        head: &[u8],
    ) -> Result<(), Over> {
        let rest = header.length - head.len() as u32;
        match cx.engine.handle_frame(cx.now, Peer::Stream(connection.id), header, head) {
            Verdict::Close => return Err(Over),
            Verdict::Done | Verdict::Discard => connection.reading = drained(rest),
            Verdict::Place(placement) => {
                if !head.is_empty() {
                    cx.arena.meta(placement.run).ok_or(Over)?.copy_from(head);
                    connection.shape.remember(cx.engine, header, head, rest);
                }
                if let Some(urgency) = cx.engine.urgency(placement.request) {
                    connection.urgency = urgency as u8;
                    self.begun[urgency] = Some(cx.now);
                }
                connection.reading = Reading::Payload(Payload { placement, done: 0, fixup: 0 });
                if placement.length() == 0 {
                    complete(cx, connection);
                }
            }
        }
        Ok(())
    }

    fn garbage<T>(
        &mut self,
        cx: &mut Context<'_, '_>,
        connection: &Connection,
        error: splitrpc_wire::WireError,
    ) -> Result<T, Over> {
        // For streams the verdict is always to close.
        let _ = cx.engine.handle_garbage(cx.now, Peer::Stream(connection.id), error);
        Err(Over)
    }

    fn keep(&mut self, partial: Box<PartialHead>) {
        if self.partial.len() < self.partial.capacity() {
            self.partial.push(partial);
        }
    }
}

/// `bytes` more of a payload are in its slots.
fn advance(cx: &mut Context<'_, '_>, connection: &mut Connection, bytes: u32, moved: bool) {
    let Reading::Payload(payload) = &mut connection.reading else { return };
    payload.done += bytes;
    payload.fixup += if moved { bytes } else { 0 };
    if payload.left() == 0 {
        complete(cx, connection);
    } else {
        cx.engine.progressed(&payload.placement, payload.done);
        if cx.arrivals.want(payload.placement.length()) {
            let Payload { placement, done, .. } = *payload;
            cx.arrivals.note(placement.request, cx.engine.pieces(&placement), done);
        }
    }
}

/// All of a payload is in its slots. The kernel copied every byte once.
pub(super) fn complete(cx: &mut Context<'_, '_>, connection: &mut Connection) {
    if let Reading::Payload(payload) = mem::replace(&mut connection.reading, Reading::Head(None)) {
        cx.engine.placed(cx.now, &payload.placement, payload.placement.length(), payload.fixup);
    }
}

fn drained(left: u32) -> Reading {
    if left == 0 { Reading::Head(None) } else { Reading::Drain(left) }
}

pub(super) fn finish(read: io::Result<usize>, want: usize) -> Result<Step, Over> {
    match read {
        Ok(0) => Err(Over),
        Ok(bytes) => Ok(Step::Read { bytes, dry: bytes < want }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Step::Quiet),
        Err(_) => Err(Over),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_less_urgent_has_short_turns_while_others_come() {
        let mut reader = Reader::new(1);
        let at = |time: u64| Time::from_nanos(5 * MS + time);
        let turns = |reader: &Reader, time| [0, 1, 2, 3].map(|urgency| reader.bytes_per_turn(at(time), urgency));
        const SHORT: usize = BYTES_PER_SHORT_TURN;
        const LONG: usize = BYTES_PER_TURN;
        assert_eq!(turns(&reader, 0), [LONG; 4]);
        reader.begun[1] = Some(at(0));
        assert_eq!(turns(&reader, URGENT_WITHIN - 1), [LONG, LONG, SHORT, SHORT]);
        reader.begun[0] = Some(at(100));
        assert_eq!(turns(&reader, URGENT_WITHIN), [LONG, SHORT, SHORT, SHORT]);
        assert_eq!(turns(&reader, URGENT_WITHIN + 100), [LONG; 4]);
    }
}
