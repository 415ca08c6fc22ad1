//! Opening, finding and closing sessions; the frames that concern a session as a whole.

use core::net::SocketAddr;

use splitrpc_ring::{Run, Submission};
use splitrpc_wire::ack::Ack;
use splitrpc_wire::hello::{Abilities, Challenge, Hello, HelloAck, MIN_DATAGRAM};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Status, StatusPayload, VERSION, WireError};

use super::transmit::{Body, Control, Transmit};
use super::{Executed, Peer, Server, SessionSlot, State, Verdict};
use crate::Time;
use crate::config::{NO_INDEX, SESSION_INDEX_MASK};
use crate::congestion::Congestion;
use crate::flight::Settled;
use crate::time::{MS, SEC, US};

/// Answers to frames of unknown sessions in each [`UNKNOWN_PERIOD`].
const UNKNOWN_ANSWERS: u32 = 256;
const UNKNOWN_PERIOD: u64 = 100 * MS;
/// A datagram session that was used more recently does not make room for another client's.
const LEAST_DISUSE: u64 = SEC;
/// Longest slice of the catalogue in one frame on a stream.
const CATALOG_SLICE: u32 = 1 << 20;
/// Small frames that may wait for a datagram session beside one for each of its requests: to its hello, ping and list.
const CONTROLS_OF_SESSION: u16 = 3;

impl<C: Congestion> Server<'_, C> {
    /// A stream was accepted. `id` is the port's number for it, less than the configured number of streams and not in use.
    pub fn stream_opened(&mut self, now: Time, id: u32) {
        if !self.is_stream(id) {
            return;
        }
        // A number that is used again without its stream having been closed must not inherit requests.
        self.stream_closed(id);
        self.sessions[id as usize] =
            SessionSlot { open: true, peer: Peer::Stream(id), last_heard: now, ..SessionSlot::default() };
        self.session_timer = self.session_timer.min(now + SEC);
    }

    /// What a stream for which the port has no number is told before the port closes it. The engine knows nothing of it.
    pub fn refuse_stream(&mut self) -> Transmit<'_> {
        self.stats.frames_out += 1;
        let body = Body::status(Status::TooManySessions, "limits.sessions is reached");
        self.control_frame(Control { peer: Peer::Stream(NO_INDEX), header: Header::new(Kind::Error), body })
    }

    /// A stream is gone. The port no longer reads into or writes from any of its slots.
    pub fn stream_closed(&mut self, id: u32) {
        if self.sessions.get(id as usize).is_some_and(|s| s.open) && self.is_stream(id) {
            self.stats.sessions_closed += u64::from(self.sessions[id as usize].greeted);
            self.close_session(id);
            // The number's next stream must not read what this one did not.
            self.control.iter_mut().filter(|c| c.peer == Peer::Stream(id)).for_each(|c| c.body = Body::Gone);
        }
    }

    /// Takes in one frame. `head` is the part of its payload that is not tensor data: the manifest where the frame has one,
    /// all of it for frames that are neither requests nor responses, else nothing.
    pub fn handle_frame(&mut self, now: Time, from: Peer, header: &Header, head: &[u8]) -> Verdict {
        self.handle(now, from, header, head, 1)
    }

    /// Takes in `frames` request frames at once that make a [`Train`](splitrpc_wire::Train) with `first` at its head: one
    /// verdict and one placement for all of their data.
    pub fn handle_train(&mut self, now: Time, from: Peer, first: &Header, frames: u32) -> Verdict {
        let in_trains = first.kind == Kind::Request && !first.flags.has(Flags::MANIFEST);
        match first.length.checked_mul(frames).filter(|_| in_trains && frames > 0) {
            Some(length) => self.handle(now, from, &Header { length, ..*first }, &[], frames),
            None => Verdict::Discard,
        }
    }

    fn handle(&mut self, now: Time, from: Peer, header: &Header, head: &[u8], packets: u32) -> Verdict {
        self.stats.frames_in += u64::from(packets);
        if header.flags.has(Flags::TAGGED) || header.flags.has(Flags::SEALED) {
            return self.handle_garbage(now, from, WireError::NotNegotiated);
        }
        if header.kind == Kind::Hello {
            return match Hello::parse(head) {
                Ok(hello) => self.on_hello(now, from, header, &hello),
                Err(error) => self.handle_garbage(now, from, error),
            };
        }
        let Some(session) = self.session_of(from, header.session) else {
            return self.on_unknown(now, from, header);
        };
        self.sessions[session as usize].last_heard = now;
        if self.sessions[session as usize].departed && header.kind != Kind::Goodbye {
            return self.repeat_farewell(session, header.kind);
        }
        match header.kind {
            Kind::Request => {
                self.sessions[session as usize].used_at = now;
                return self.on_request(now, session, header, head, packets);
            }
            Kind::List => self.on_list(session, header),
            Kind::Ack | Kind::Credit => match Ack::parse(head) {
                Ok(ack) if !self.is_stream(session) => self.on_ack(now, session, &ack),
                Ok(_) => {}
                Err(error) => return self.handle_garbage(now, from, error),
            },
            Kind::Cancel => self.on_cancel(now, session, header),
            Kind::Ping => {
                let pong = Header { session: header.session, request: header.request, ..Header::new(Kind::Pong) };
                self.answer(session, pong, Body::Empty);
            }
            Kind::Pong => {}
            Kind::Goodbye => {
                if self.is_stream(session) {
                    // The port closes the stream and says so.
                    return Verdict::Close;
                }
                self.stats.sessions_closed += 1;
                self.close_session(session);
            }
            Kind::Hello | Kind::Challenge | Kind::HelloAck | Kind::ListAck | Kind::Response | Kind::Error => {
                self.stats.wrong_direction += 1;
                return Verdict::Close;
            }
        }
        Verdict::Done
    }

    /// Counts bytes that did not parse as a frame.
    pub fn handle_garbage(&mut self, _now: Time, _from: Peer, error: WireError) -> Verdict {
        self.stats.malformed[error.index()] += 1;
        Verdict::Close
    }

    fn session_of(&self, from: Peer, id: u64) -> Option<u32> {
        let index = match from {
            Peer::Stream(stream) => stream,
            Peer::Datagram(_) => Self::session_index(id),
        };
        let session = self.sessions.get(index as usize)?;
        (session.open && session.greeted && session.id == id && session.peer == from).then_some(index)
    }

    fn on_unknown(&mut self, now: Time, from: Peer, header: &Header) -> Verdict {
        self.stats.unknown_session += 1;
        // The answer must not be larger than what came, and a flood of these must not keep the server busy.
        let answerable = matches!(header.kind, Kind::Request | Kind::List | Kind::Ping) && header.length >= 8;
        if now.since(self.unknown_answers.0) >= UNKNOWN_PERIOD {
            self.unknown_answers = (now, 0);
        }
        if let Peer::Datagram(_) = from
            && answerable
            && self.unknown_answers.1 < UNKNOWN_ANSWERS
        {
            self.unknown_answers.1 += 1;
            let error = Header { session: header.session, ..Header::new(Kind::Error) };
            self.push_control(Control { peer: from, header: error, body: Body::status(Status::UnknownSession, "") });
        }
        Verdict::Close
    }

    fn on_hello(&mut self, now: Time, from: Peer, header: &Header, hello: &Hello) -> Verdict {
        let speaks = hello.version_min <= u16::from(VERSION) && u16::from(VERSION) <= hello.version_max;
        let refusal = if self.draining { Some(Status::Draining) } else { (!speaks).then_some(Status::BadVersion) };
        match from {
            Peer::Stream(stream) => {
                let Some(session) = self.sessions.get_mut(stream as usize).filter(|s| s.open && !s.greeted) else {
                    return Verdict::Close;
                };
                session.departed = refusal.is_some();
                match refusal {
                    None => self.greet(now, stream, from, hello),
                    Some(status) => self.refuse_hello(from, status),
                }
            }
            Peer::Datagram(addr) => {
                if header.length as usize + HEADER_LEN < usize::from(MIN_DATAGRAM) {
                    return self.handle_garbage(now, from, WireError::Truncated);
                }
                if let Some(status) = refusal {
                    self.refuse_hello(from, status);
                } else if self.cookies.accepts(now, addr, hello.nonce, hello.token) {
                    self.on_proven_hello(now, addr, hello);
                } else {
                    self.stats.challenges += 1;
                    let challenge = Challenge { token: self.cookies.issue(now, addr, hello.nonce), nonce: hello.nonce };
                    let header = Header::new(Kind::Challenge);
                    self.push_control(Control { peer: from, header, body: Body::Challenge(challenge) });
                }
            }
        }
        Verdict::Done
    }

    fn on_proven_hello(&mut self, now: Time, addr: SocketAddr, hello: &Hello) {
        let peer = Peer::Datagram(addr);
        let streams = self.config.stream_sessions as usize;
        let known =
            self.sessions[streams..].iter().position(|s| s.open && s.peer == peer).map(|at| (at + streams) as u32);
        if let Some(session) = known {
            if self.sessions[session as usize].nonce == hello.nonce {
                // Our answer was lost, or the hello was duplicated.
                self.acknowledge_hello(now, session);
                return;
            }
            // The client restarted on the same address.
            self.stats.sessions_closed += 1;
            self.close_session(session);
        }
        if self.free_session == NO_INDEX
            && let Err(wait) = self.make_room(now)
        {
            self.stats.sessions_refused += 1;
            let retry_after_us = u32::try_from(wait.div_ceil(US)).unwrap_or(u32::MAX);
            let text = match self.config.datagram_sessions {
                0 => "no datagrams are taken here: the host agent's listen.udp is off",
                _ => "limits.datagram_sessions is reached, and all of them are in use",
            };
            let status = StatusPayload { status: Status::TooManySessions, retry_after_us, text };
            self.push_control(Control { peer, header: Header::new(Kind::Error), body: Body::Status(status) });
            return;
        }
        let index = self.free_session;
        self.free_session = self.sessions[index as usize].next_free;
        let datagram = hello.datagram.min(self.config.datagram);
        let at = self.channel_index(index);
        self.channels[at].channel.reset(datagram, hello.window);
        self.channels[at].executed = Executed::default();
        self.channels[at].refused = Executed::default();
        self.channels[at].origin = self.join_origin(addr.ip());
        self.channels[at].sent_in = 0;
        self.timers[at] = Time::NEVER;
        self.greet(now, index, peer, hello);
    }

    /// Closes the datagram session that is missed least: one that never asked anything before one that did, and of those
    /// the one whose last use is longest ago. Those of which a request or an answer is still here, and those used a moment
    /// ago, stay; what else they say, such as pings, does not keep them. If these are all, returns how long it takes at least
    /// until the last use of one of them is long enough ago.
    fn make_room(&mut self, now: Time) -> Result<(), u64> {
        let mut wait = LEAST_DISUSE;
        let mut least: Option<(bool, Time, u32)> = None;
        for index in self.config.stream_sessions..self.sessions.len() as u32 {
            let session = &self.sessions[index as usize];
            if !session.open || session.first != NO_INDEX {
                continue;
            }
            let disuse = now.since(session.used_at);
            if disuse < LEAST_DISUSE {
                wait = wait.min(LEAST_DISUSE - disuse);
                continue;
            }
            let asked = session.recent != NO_INDEX;
            let this = (asked, session.used_at, index);
            least = Some(least.map_or(this, |least| least.min(this)));
        }
        let (_, _, index) = least.ok_or(wait)?;
        self.stats.sessions_expired += 1;
        self.close_session(index);
        Ok(())
    }

    fn greet(&mut self, now: Time, index: u32, peer: Peer, hello: &Hello) {
        self.counter += 1;
        let random = self.cookies.unguessable(self.counter) & !u64::from(SESSION_INDEX_MASK);
        self.sessions[index as usize] = SessionSlot {
            open: true,
            greeted: true,
            peer,
            id: random | u64::from(index),
            nonce: hello.nonce,
            last_heard: now,
            used_at: now,
            max_response: hello.max_response,
            // Its place in the queue of the active outlives a session.
            queued: self.sessions[index as usize].queued,
            ..SessionSlot::default()
        };
        self.stats.sessions_opened += 1;
        self.session_timer = self.session_timer.min(now + SEC);
        self.acknowledge_hello(now, index);
    }

    fn acknowledge_hello(&mut self, now: Time, index: u32) {
        let session = &self.sessions[index as usize];
        let (datagram, window) = match self.is_stream(index) {
            // Neither means anything there.
            true => (self.config.datagram, self.config.receive_window),
            // The size that was agreed on: a repetition says the same, whatever the path carries by now.
            false => (self.channels[self.channel_index(index)].channel.negotiated(), self.window(now, index)),
        };
        let answer = HelloAck {
            version: u16::from(VERSION),
            max_requests: self.config.requests_per_client,
            abilities: Abilities(0),
            datagram,
            max_request: self.config.max_request,
            catalog_len: self.catalog.len() as u32,
            idle_timeout_ms: (self.config.idle_timeout / MS) as u32,
            keep_reply_ms: (self.config.keep_reply / MS) as u32,
            nonce: session.nonce,
            epoch: self.epoch,
            window,
        };
        let header = Header { session: session.id, ..Header::new(Kind::HelloAck) };
        self.answer(index, header, Body::HelloAck(answer));
    }

    fn refuse_hello(&mut self, peer: Peer, status: Status) {
        self.push_control(Control { peer, header: Header::new(Kind::Error), body: Body::status(status, "") });
    }

    fn on_list(&mut self, session: u32, header: &Header) {
        let room = match self.is_stream(session) {
            true => CATALOG_SLICE,
            // No channel watches over these, so nothing would tell that the path takes no larger ones.
            false => u32::from(MIN_DATAGRAM) - HEADER_LEN as u32,
        };
        let total = self.catalog.len() as u32;
        let offset = header.offset.min(total);
        let answer = Header { session: header.session, offset, total, ..Header::new(Kind::ListAck) };
        self.answer(session, answer, Body::Catalog { offset, length: (total - offset).min(room) });
    }

    fn on_ack(&mut self, now: Time, session: u32, ack: &Ack<'_>) {
        let at = self.channel_index(session);
        let (requests, stats) = (&mut *self.requests, &mut self.stats);
        let mut finished: heapless::Vec<u32, 64> = heapless::Vec::new();
        let settled = |s: Settled, acked: bool| {
            if let Some(index) = settle_frame(requests, &s, acked)
                && acked
                && !finished.contains(&index)
            {
                // A request that does not fit is finished by the next acknowledgement, or by its time.
                let _ = finished.push(index);
            }
            stats.frames_lost += u64::from(!acked);
        };
        self.channels[at].channel.on_ack(self.flight, now, ack, settled);
        for index in finished {
            self.sessions[session as usize].used_at = now;
            self.finish_reply(index);
        }
        self.activate(session);
    }

    fn on_cancel(&mut self, now: Time, session: u32, header: &Header) {
        if !self.is_stream(session) {
            let at = self.channel_index(session);
            if header.packet != 0 {
                let packet = self.channels[at].channel.received.expand(header.packet);
                self.channels[at].channel.received.record(now, packet, false);
            }
            // Frames of the request that are still under way must not start it again.
            self.channels[at].executed.cancel(header.request);
            self.activate(session);
        }
        if let Some(index) = self.find_request(session, header.request) {
            if self.requests[index as usize].handed_out {
                // The port may be in the middle of writing it: its slots are not free before the port is done.
                return;
            }
            if !matches!(self.requests[index as usize].state, State::Failed(_)) {
                self.count_end(self.requests[index as usize].model, Status::Cancelled);
            }
            self.abandon(index);
        }
    }

    /// Takes the session's requests from it and closes it.
    pub(super) fn close_session(&mut self, index: u32) {
        while self.sessions[index as usize].first != NO_INDEX {
            let request = self.sessions[index as usize].first;
            self.abandon(request);
        }
        self.clear_shares(index);
        let queued = self.sessions[index as usize].queued;
        self.sessions[index as usize] = SessionSlot { queued, ..SessionSlot::default() };
        if !self.is_stream(index) {
            let at = self.channel_index(index);
            self.leave_origin(self.channels[at].origin);
            self.channels[at].channel.reset(self.config.datagram, 0);
            self.timers[at] = Time::NEVER;
            self.sessions[index as usize].next_free = self.free_session;
            self.free_session = index;
        }
    }

    /// Nobody waits for this request any more: takes it from its session and gives back what it holds, or asks the
    /// orchestrator to.
    pub(super) fn abandon(&mut self, index: u32) {
        let slot = &self.requests[index as usize];
        let key = slot.key(index);
        match slot.state {
            State::Submitted => {
                self.unlink(index);
                self.requests[index as usize].state = State::Orphaned;
                self.push_submission(Submission::Cancel { request: key });
            }
            State::Receiving => {
                self.free_input(index);
                self.retire(index);
            }
            State::Responding => self.finish_reply(index),
            State::Failed(_) => self.retire(index),
            State::Free | State::Orphaned => {}
        }
    }

    /// Gives the outputs of a response back: to the orchestrator, or, where they are the request's own input, to the pool.
    pub(super) fn release_output(&mut self, index: u32) {
        let slot = &mut self.requests[index as usize];
        let output = core::mem::replace(&mut slot.output, Run::NONE);
        if output == Run::NONE {
        } else if output == slot.input {
            self.free_input(index);
        } else {
            self.push_submission(Submission::Release { output });
        }
    }

    fn answer(&mut self, session: u32, header: Header, body: Body) {
        let peer = self.sessions[session as usize].peer;
        self.push_control(Control { peer, header, body });
    }

    /// Queues a small frame. A datagram session that asks for more of them at once than it may have requests gets no more, and
    /// has to ask again: else one that asks without end, which costs it little, would keep the others from being served.
    pub(super) fn push_control(&mut self, control: Control) -> bool {
        let session = self.datagram_session(&control);
        let most = self.config.requests_per_client + CONTROLS_OF_SESSION;
        let fits = session.is_none_or(|session| self.sessions[session as usize].controls < most);
        let pushed = fits && self.control.push(control);
        self.stats.control_dropped += u64::from(!pushed);
        if pushed && let Some(session) = session {
            self.sessions[session as usize].controls += 1;
        }
        pushed
    }

    pub(super) fn pop_control(&mut self) -> Option<Control> {
        let control = self.control.pop()?;
        if let Some(session) = self.datagram_session(&control) {
            let waiting = &mut self.sessions[session as usize].controls;
            *waiting = waiting.saturating_sub(1);
        }
        Some(control)
    }

    /// The datagram session that a small frame is for, if it is for one that is open.
    fn datagram_session(&self, control: &Control) -> Option<u32> {
        match control.peer {
            Peer::Stream(_) => None,
            Peer::Datagram(_) => self.session_of(control.peer, control.header.session),
        }
    }

    pub(super) fn push_submission(&mut self, submission: Submission) {
        // There is room for four of each record. More never wait: a record is used again only after the completion of the
        // request before, which is believed only once the link has taken that one's submission. So what waits is at most
        // that one's cancellation and release, and the next one's submission and cancellation.
        let pushed = self.submissions.push(submission);
        debug_assert!(pushed);
    }
}

/// Tells a request that one of its frames was acknowledged or lost. Returns its index if the client has all of it now, or
/// if something of it must go again.
pub(super) fn settle_frame(requests: &mut [super::RequestSlot], settled: &Settled, acked: bool) -> Option<u32> {
    let key = settled.cargo.key()?;
    let slot = requests.get_mut(key.index as usize)?;
    if slot.generation != key.generation || slot.state != State::Responding {
        return None;
    }
    let chunk = settled.cargo.chunk()?;
    let news = if acked {
        slot.outgoing.on_acked(chunk);
        slot.outgoing.all_acked()
    } else {
        slot.outgoing.on_lost(chunk)
    };
    news.then_some(key.index)
}
