//! What to send next.

use splitrpc_ring::RequestKey;
use splitrpc_wire::hello::{Challenge, HelloAck};
use splitrpc_wire::{Flags, Header, Kind, MANIFEST_TENSOR, Path, Stage, Status, StatusPayload};

use super::{Peer, Server, State};
use crate::Time;
use crate::channel::Sent;
use crate::config::NO_INDEX;
use crate::congestion::Congestion;
use crate::message::{Chunk, Pieces, Sizes};

/// Datagrams that one session may send before the next one's turn: one segmented send's worth.
const TURN: u32 = 64;

/// One frame to send.
#[derive(Debug)]
pub struct Transmit<'e> {
    /// To whom.
    pub peer: Peer,
    /// The header.
    pub header: Header,
    /// What follows the header: manifest or control payload.
    pub head: &'e [u8],
    /// The tensor data that follows that, as stretches of slots.
    pub data: Pieces<'e>,
    /// Streams: to be given to [`Server::sent`] once all of it is with the kernel.
    pub token: Option<RequestKey>,
    /// Datagrams: may ride in the same datagram as the frame before it to the same peer.
    pub rides_along: bool,
    /// Datagrams: how many frames this is. More than one are a [`Train`](splitrpc_wire::Train) with `header` at its head,
    /// and `data` is that of all of them.
    pub frames: u32,
    /// Whether this is the beginning of an answer that was never sent before: as often as that, a request was answered.
    pub answers: bool,
}

/// A small frame that waits to be sent. Storage for these is lent to the engine.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    pub(super) peer: Peer,
    pub(super) header: Header,
    pub(super) body: Body,
}

impl Default for Control {
    fn default() -> Self {
        Control { peer: Peer::Stream(0), header: Header::new(Kind::Ping), body: Body::Empty }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Empty,
    /// Its stream was closed meanwhile.
    Gone,
    Challenge(Challenge),
    HelloAck(HelloAck),
    Status(StatusPayload<'static>),
    /// The status payload in a failed request's record.
    Failure(RequestKey),
    Catalog {
        offset: u32,
        length: u32,
    },
}

impl Body {
    pub(super) fn status(status: Status, text: &'static str) -> Body {
        Body::Status(StatusPayload { status, retry_after_us: retry_after_us(status), text })
    }
}

/// When to try again what was refused or failed with this status, in microseconds; 0 where waiting alone changes nothing.
pub(super) fn retry_after_us(status: Status) -> u32 {
    match status {
        // Others' requests end all the time.
        Status::Busy | Status::Quota => 1_000,
        _ => 0,
    }
}

/// A decision of what to send, before anything is borrowed for it.
#[derive(Clone, Copy)]
enum Next {
    Ack { length: usize, rides_along: bool },
    Data { index: u32, sent: Sent },
}

impl<C: Congestion> Server<'_, C> {
    /// The next frame to send, until there is none for now.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Transmit<'_>> {
        self.poll_train(now, 1)
    }

    /// The next frame to send, or up to `most` at once where they make a train, until there is none for now.
    pub fn poll_train(&mut self, now: Time, most: u32) -> Option<Transmit<'_>> {
        while let Some(control) = self.pop_control() {
            match control.body {
                Body::Failure(key) if !self.is_failed(key) => continue,
                Body::Gone => continue,
                _ => {}
            }
            self.stats.frames_out += 1;
            return Some(self.control_frame(control));
        }
        if let Some(index) = self.out.iter().position(|list| list.first != NO_INDEX).and_then(|l| self.pop_out(l)) {
            self.stats.frames_out += 1;
            return Some(self.whole_response(now, index));
        }
        while let Some(&session) = self.active.front() {
            let left = TURN.saturating_sub(self.in_a_row);
            let next = if left > 0 { self.next_datagram(now, session, most.min(left)) } else { None };
            if let Some(next) = next {
                let frames = if let Next::Data { sent, .. } = next { sent.frames } else { 1 };
                self.in_a_row += frames;
                self.stats.frames_out += u64::from(frames);
                return Some(self.datagram_frame(now, session, next));
            }
            self.active.pop();
            let turn_is_up = self.in_a_row >= TURN;
            self.in_a_row = 0;
            self.sessions[session as usize].queued = false;
            if turn_is_up {
                self.activate(session);
            } else {
                self.set_channel_timer(session);
            }
        }
        self.next_farewell()
    }

    /// All of a stream's response is with the kernel.
    pub fn sent(&mut self, token: RequestKey) {
        let index = token.index;
        let named = self
            .requests
            .get(index as usize)
            .is_some_and(|r| r.generation == token.generation && r.state == State::Responding);
        if named {
            self.release_output(index);
            self.retire(index);
        }
    }

    fn is_failed(&self, key: RequestKey) -> bool {
        self.requests
            .get(key.index as usize)
            .is_some_and(|r| r.generation == key.generation && matches!(r.state, State::Failed(_)))
    }

    pub(super) fn control_frame(&mut self, control: Control) -> Transmit<'_> {
        let Control { peer, mut header, body } = control;
        if let Body::Failure(key) = body
            && matches!(peer, Peer::Stream(_))
        {
            // A stream delivers this, so nothing need be kept. The record's bytes stay until it is used again.
            self.retire(key.index);
        }
        let head: &[u8] = match body {
            Body::Empty | Body::Gone => &[],
            Body::Challenge(challenge) => {
                self.scratch[..Challenge::LEN].copy_from_slice(&challenge.to_bytes());
                &self.scratch[..Challenge::LEN]
            }
            Body::HelloAck(ack) => {
                self.scratch[..HelloAck::LEN].copy_from_slice(&ack.to_bytes());
                &self.scratch[..HelloAck::LEN]
            }
            Body::Status(payload) => {
                let length = payload.write(&mut self.scratch);
                &self.scratch[..length]
            }
            Body::Failure(key) => {
                let slot = &self.requests[key.index as usize];
                &slot.head[..usize::from(slot.head_len)]
            }
            Body::Catalog { offset, length } => &self.catalog[offset as usize..(offset + length) as usize],
        };
        header.length = head.len() as u32;
        Transmit { peer, header, head, data: nothing(), token: None, rides_along: false, frames: 1, answers: false }
    }

    fn whole_response(&mut self, now: Time, index: u32) -> Transmit<'_> {
        let answers = self.build_header_stage(now, index);
        self.requests[index as usize].handed_out = true;
        let slot = &self.requests[index as usize];
        let session = &self.sessions[slot.session as usize];
        let chunk = Chunk::First { length: slot.outgoing.sizes().total() as u32, whole: true };
        let total = slot.outgoing.total();
        let header = Header {
            flags: Flags::MANIFEST,
            priority: slot.priority,
            model: slot.model,
            session: session.id,
            request: slot.id,
            // Of this response the client learns when it has left.
            credit: (self.config.requests_per_client + 1).saturating_sub(session.held()),
            length: total,
            total,
            ..Header::new(Kind::Response)
        };
        self.stats.bytes_sent += u64::from(chunk.length());
        Transmit {
            peer: session.peer,
            header,
            head: &slot.head[..usize::from(slot.head_len)],
            data: Pieces::new(slot.output, chunk, slot.outgoing.sizes()),
            token: Some(slot.key(index)),
            rides_along: false,
            frames: 1,
            answers,
        }
    }

    fn next_datagram(&mut self, now: Time, session: u32, most: u32) -> Option<Next> {
        if !self.sessions[session as usize].open {
            return None;
        }
        let at = self.channel_index(session);
        if let Some(data) = self.next_data(now, session, at, most) {
            return Some(data);
        }
        let received = &self.channels[at].channel.received;
        if received.due() > now && !(self.in_a_row > 0 && received.may_ride()) {
            return None;
        }
        let window = self.window(now, session);
        let channel = &mut self.channels[at].channel;
        let length = channel.take_ack(now, window, &mut self.ranges).write(&mut self.scratch);
        Some(Next::Ack { length, rides_along: self.in_a_row > 0 })
    }

    fn next_data(&mut self, now: Time, session: u32, at: usize, most: u32) -> Option<Next> {
        let channel = &mut self.channels[at].channel;
        let mut index = self.sessions[session as usize].first_out;
        while index != NO_INDEX {
            let slot = &mut self.requests[index as usize];
            if slot.outgoing.all_sent() {
                index = slot.next_out;
                continue;
            }
            channel.may_send(now).ok()?;
            let repeat = slot.outgoing.next_is_repeat();
            let key = slot.key(index);
            let Some(sent) = channel.send_next(self.flight, now, key, &mut slot.outgoing, most) else {
                index = slot.next_out;
                continue;
            };
            if !repeat && self.sessions[session as usize].in_flight == 0 {
                // The response itself tells the client that its request arrived.
                channel.received.satisfied(now);
            }
            self.note_sent(now, index);
            return Some(Next::Data { index, sent });
        }
        None
    }

    fn note_sent(&mut self, now: Time, index: u32) {
        let slot = &mut self.requests[index as usize];
        if slot.outgoing.all_sent() && !slot.kept {
            slot.kept = true;
            slot.settled_at = now;
            self.sessions[slot.session as usize].leaving -= 1;
            self.kept += 1;
            self.request_timer = self.request_timer.min(now + self.config.keep_reply);
            if self.kept > self.config.kept_replies {
                self.evict_oldest_reply_but(index);
            }
        }
    }

    fn datagram_frame(&mut self, now: Time, session: u32, next: Next) -> Transmit<'_> {
        let credit = self.config.requests_per_client.saturating_sub(self.sessions[session as usize].held());
        match next {
            Next::Ack { length, rides_along } => {
                let owner = &self.sessions[session as usize];
                let header = Header { session: owner.id, credit, length: length as u32, ..Header::new(Kind::Ack) };
                Transmit {
                    peer: owner.peer,
                    header,
                    head: &self.scratch[..length],
                    data: nothing(),
                    token: None,
                    rides_along,
                    frames: 1,
                    answers: false,
                }
            }
            Next::Data { index, sent: Sent { chunk, packet, frames, ask } } => {
                let answers = matches!(chunk, Chunk::First { .. }) && self.build_header_stage(now, index);
                let owner = &self.sessions[session as usize];
                let slot = &self.requests[index as usize];
                let head: &[u8] = match chunk {
                    Chunk::First { .. } => &slot.head[..usize::from(slot.head_len)],
                    Chunk::Part { .. } => &[],
                };
                let mut header = Header {
                    priority: slot.priority,
                    model: slot.model,
                    session: owner.id,
                    request: slot.id,
                    credit,
                    packet,
                    length: head.len() as u32 + chunk.length() / frames,
                    total: slot.outgoing.total(),
                    ..Header::new(Kind::Response)
                };
                describe(&mut header, &chunk, slot.outgoing.sizes(), ask);
                self.stats.bytes_sent += u64::from(chunk.length());
                Transmit {
                    peer: owner.peer,
                    header,
                    head,
                    data: Pieces::new(slot.output, chunk, slot.outgoing.sizes()),
                    token: None,
                    rides_along: false,
                    frames,
                    answers,
                }
            }
        }
    }

    /// Completes the path that the response carries, the first time its header is built. Returns whether this is the first time.
    fn build_header_stage(&mut self, now: Time, index: u32) -> bool {
        let slot = &mut self.requests[index as usize];
        if slot.header_built {
            return false;
        }
        slot.header_built = true;
        let respond = now.since(slot.settled_at);
        Path::set_stage_in(slot.path_block(), Stage::Respond, respond);
        true
    }

    /// A datagram session may have something to send.
    pub(super) fn activate(&mut self, session: u32) {
        if !self.is_stream(session) && !self.sessions[session as usize].queued {
            // The queue is as long as there are datagram sessions, and each stands in it once.
            self.sessions[session as usize].queued = self.active.push(session);
        }
    }
}

/// Fills in the fields that say which part of a message a frame carries.
pub(crate) fn describe(header: &mut Header, chunk: &Chunk, sizes: &Sizes, ask: bool) {
    match *chunk {
        Chunk::First { length, .. } => {
            header.flags = header.flags.with(Flags::MANIFEST);
            // A manifest alone says so, unless it is the whole message.
            header.tensor = if length == 0 && sizes.total() > 0 { MANIFEST_TENSOR } else { 0 };
        }
        Chunk::Part { tensor, offset, .. } => {
            header.tensor = tensor;
            header.offset = offset;
        }
    }
    if ask {
        header.flags = header.flags.with(Flags::ACK_NOW);
    }
}

pub(crate) fn nothing() -> Pieces<'static> {
    Pieces::new(splitrpc_ring::Run::NONE, Chunk::Part { tensor: 0, offset: 0, length: 0 }, &Sizes::NONE)
}
