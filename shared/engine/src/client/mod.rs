//! The client's half of the protocol over datagrams.
//!
//! The driver calls [`Client::handle_frame`] for what arrives, [`Client::placed`] once response data is where the verdict
//! wanted it, [`Client::poll_transmit`] until there is nothing to send, [`Client::poll_event`] for what came of it, and
//! [`Client::handle_timeout`] when [`Client::next_timeout`] has come.

mod receive;
mod slot;
mod transmit;

use splitrpc_ring::RequestKey;
use splitrpc_wire::ack::{AckRange, MAX_ACK_RANGES};
use splitrpc_wire::hello::{HelloAck, MIN_DATAGRAM};
use splitrpc_wire::{HEADER_LEN, Manifest, Status, WireError};

use crate::Time;
use crate::channel::Channel;
use crate::config::ConfigError;
use crate::congestion::{Congestion, DelayControl};
use crate::flight::{Flight, SentFrame};
use crate::message::{Chunk, Pieces, Sizes};
use crate::time::{MS, SEC};

pub use slot::ClientSlot;
use slot::State;
pub use transmit::ClientTransmit;

/// A client engine's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Largest datagram (UDP payload) in bytes.
    pub datagram: u16,
    /// Largest response in bytes, manifest included.
    pub max_response: u32,
    /// Response data bytes that may be in flight.
    pub receive_window: u64,
    /// With something outstanding and nothing heard for this long, in nanoseconds, the server counts as gone.
    pub silence_limit: u64,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            datagram: 1472,
            max_response: 64 << 20,
            receive_window: 1 << 20,
            silence_limit: 5 * SEC,
        }
    }
}

/// Memory that a client engine works in: records for requests, and a power of two of datagrams in flight.
pub trait ClientStorage {
    /// Both parts.
    fn parts(&mut self) -> (&mut [ClientSlot], &mut [SentFrame]);
    /// The records.
    fn slots(&self) -> &[ClientSlot];
    /// The datagrams in flight.
    fn flight(&self) -> &[SentFrame];
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct RequestSpec<'m> {
    /// The model's handle.
    pub model: u16,
    /// What the request carries.
    pub manifest: Manifest<'m>,
    /// 0 for the model's default, 1 the highest.
    pub priority: u8,
    /// Microseconds that it may take, 0 for no limit.
    pub deadline_us: u32,
    /// Whether it may be executed more than once.
    pub repeatable: bool,
}

/// What became of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The session is open.
    Connected(HelloAck),
    /// The response to this request is complete; the request is forgotten.
    Response(RequestKey),
    /// The request failed and is forgotten. A text that the server sent stands in the error frame's payload, which the
    /// driver saw as `head`.
    Failed(RequestKey, Status),
    /// The server answered a ping.
    Pong(u64),
    /// The session is over: refused, lost, or closed by the server. Every open request fails first.
    Closed(Status),
}

/// What to do with a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientVerdict {
    /// The frame is dealt with.
    Done,
    /// Put the data where the placement says, then call [`Client::placed`].
    Place(ClientPlacement),
    /// The payload is this piece of the catalogue. Ask for the next with [`Client::list`].
    Catalog {
        /// Where the piece begins.
        offset: u32,
        /// Bytes of the whole catalogue.
        total: u32,
    },
    /// The payload is of no use.
    Discard,
}

/// Where response data belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPlacement {
    /// The request that it answers.
    pub request: RequestKey,
    /// What of the response.
    pub chunk: Chunk,
    packet: u64,
    ack_now: bool,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// As many requests are open as the server or the storage allows.
    Full,
    /// The session is not open.
    NotConnected,
    /// Larger than the server takes.
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Saying hello until it is answered.
    Greeting { token: u64 },
    Ready,
    Closed,
}

/// Frames that the client counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientStats {
    /// Frames taken in.
    pub frames_in: u64,
    /// Frames handed out.
    pub frames_out: u64,
    /// Frames that counted as lost.
    pub frames_lost: u64,
    /// Frames dropped: duplicates, unknown requests, before their manifest.
    pub discarded: u64,
    /// Frames that did not parse.
    pub malformed: u64,
}

const HELLO_LEN: usize = MIN_DATAGRAM as usize - HEADER_LEN;
const HELLO_RETRY: u64 = 20 * MS;
const LIST_RETRY: u64 = 20 * MS;

/// The client's half of the protocol over datagrams.
#[derive(Debug)]
pub struct Client<S, C = DelayControl> {
    config: ClientConfig,
    storage: S,
    channel: Channel<C>,
    phase: Phase,
    nonce: u64,
    session: u64,
    server: Option<HelloAck>,
    next_id: u64,
    open: u32,
    /// Where to go on sending.
    current: usize,
    /// Something that was sent must go again.
    repeats: bool,
    last_heard: Time,
    hello_at: Time,
    /// The catalogue offset wanted, and when to ask (again).
    list: Option<(u32, Time)>,
    ping: Option<u64>,
    cancels: heapless::Deque<u64, 64>,
    goodbye: bool,
    sent_data: bool,
    events: heapless::Deque<ClientEvent, 8>,
    deadline_timer: Time,
    scratch: [u8; HELLO_LEN],
    ranges: heapless::Vec<AckRange, MAX_ACK_RANGES>,
    stats: ClientStats,
}

impl<S: ClientStorage, C: Congestion> Client<S, C> {
    /// A client that says hello when first polled. `nonce` is random.
    ///
    /// # Errors
    /// Storage without records, or whose flight is not a power of two of at least 16.
    pub fn new(now: Time, config: &ClientConfig, storage: S, nonce: u64) -> Result<Client<S, C>, ConfigError> {
        let flight = storage.flight().len();
        if storage.slots().is_empty() || !flight.is_power_of_two() || flight < 16 {
            return Err(ConfigError { field: "storage", why: "needs records and a power of two of frames, at least 16" });
        }
        let channel = Channel::new(Flight::new(0, flight as u32), config.datagram, config.receive_window);
        Ok(Client {
            config: *config,
            storage,
            channel,
            phase: Phase::Greeting { token: 0 },
            nonce,
            session: 0,
            server: None,
            next_id: 1,
            open: 0,
            current: 0,
            repeats: false,
            last_heard: now,
            hello_at: now,
            list: None,
            ping: None,
            cancels: heapless::Deque::new(),
            goodbye: false,
            sent_data: false,
            events: heapless::Deque::new(),
            deadline_timer: Time::NEVER,
            scratch: [0; HELLO_LEN],
            ranges: heapless::Vec::new(),
            stats: ClientStats::default(),
        })
    }

    /// What the server said of itself, once connected.
    #[must_use]
    pub fn server(&self) -> Option<&HelloAck> {
        self.server.as_ref()
    }

    /// Requests that are open.
    #[must_use]
    pub fn open_requests(&self) -> u32 {
        self.open
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> &ClientStats {
        &self.stats
    }

    /// Takes a request. Its manifest is kept; its data is asked for piece by piece by [`Client::poll_transmit`], until the
    /// request ends.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit(&mut self, now: Time, spec: &RequestSpec<'_>) -> Result<RequestKey, SubmitError> {
        let server = match (self.phase, &self.server) {
            (Phase::Ready, Some(server)) => server,
            _ => return Err(SubmitError::NotConnected),
        };
        let total = spec.manifest.as_bytes().len() as u64 + u64::from(spec.manifest.data_len());
        if total > u64::from(server.max_request) {
            return Err(SubmitError::TooLarge);
        }
        if self.open >= u32::from(server.max_requests) {
            return Err(SubmitError::Full);
        }
        let (slots, _) = self.storage.parts();
        let index = slots.iter().position(|s| s.state == State::Free).ok_or(SubmitError::Full)?;
        let slot = &mut slots[index];
        slot.state = State::Open;
        slot.id = self.next_id;
        slot.model = spec.model;
        slot.priority = spec.priority;
        slot.repeatable = spec.repeatable;
        slot.answered = false;
        slot.deadline = match spec.deadline_us {
            0 => Time::NEVER,
            us => now + u64::from(us) * 1_000,
        };
        let head = spec.manifest.as_bytes();
        slot.head_len = head.len() as u16;
        slot.head[..head.len()].copy_from_slice(head);
        slot.outgoing.start(Sizes::of(&spec.manifest), head.len() as u16);
        slot.incoming.start(Sizes::NONE);
        if self.open == 0 {
            // Silence counts from when something is asked.
            self.last_heard = now;
        }
        self.next_id += 1;
        self.open += 1;
        self.deadline_timer = self.deadline_timer.min(slot.deadline);
        Ok(slot.key(index))
    }

    /// Gives a request up; the server is told. No event follows.
    pub fn cancel(&mut self, now: Time, request: RequestKey) {
        if let Some(index) = self.live(request) {
            self.tell_cancelled(index);
            self.end(now, index);
            self.storage.parts().0[index].state = State::Free;
        }
    }

    /// Asks for the catalogue from this offset on, until it comes.
    pub fn list(&mut self, now: Time, offset: u32) {
        self.list = Some((offset, now));
    }

    /// Asks the server for a sign of life; `token` comes back with it.
    pub fn ping(&mut self, token: u64) {
        self.ping = Some(token);
    }

    /// Says goodbye with the next [`Client::poll_transmit`] and is closed.
    pub fn close(&mut self) {
        self.goodbye = self.phase == Phase::Ready;
        self.phase = Phase::Closed;
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Whether more frames may be handed in before events are taken.
    #[must_use]
    pub fn accepts_frames(&self) -> bool {
        self.events.len() + 2 <= self.events.capacity()
    }

    /// Counts bytes that did not parse.
    pub fn handle_garbage(&mut self, _error: WireError) {
        self.stats.malformed += 1;
    }

    /// Where a placement's data goes: stretches of the response's tensors.
    #[must_use]
    pub fn pieces(&self, placement: &ClientPlacement) -> Pieces<'_> {
        let sizes = match self.storage.slots().get(placement.request.index as usize) {
            Some(slot) if slot.generation == placement.request.generation => slot.incoming.sizes(),
            _ => &Sizes::NONE,
        };
        Pieces::new(splitrpc_ring::Run::NONE, placement.chunk, sizes)
    }

    /// When [`Client::handle_timeout`] wants to be called at the latest.
    #[must_use]
    pub fn next_timeout(&self) -> Time {
        let mut at = self.deadline_timer;
        match self.phase {
            Phase::Greeting { .. } => at = at.min(self.hello_at).min(self.last_heard + self.config.silence_limit),
            Phase::Ready => {
                at = at.min(self.channel.timer(self.storage.flight()));
                if let Some((_, ask_at)) = self.list {
                    at = at.min(ask_at);
                }
                if self.waits() {
                    at = at.min(self.last_heard + self.config.silence_limit);
                }
            }
            Phase::Closed => {}
        }
        at
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.phase != Phase::Closed
            && self.waits()
            && now.since(self.last_heard) >= self.config.silence_limit
        {
            self.shut(now, Status::ConnectionLost);
            return;
        }
        if self.deadline_timer <= now {
            self.check_deadlines(now);
        }
        if self.phase == Phase::Ready {
            let (slots, flight) = self.storage.parts();
            let (stats, repeats) = (&mut self.stats, &mut self.repeats);
            self.channel.on_timer(flight, now, |settled| {
                stats.frames_lost += 1;
                *repeats |= transmit::settle(slots, &settled, false);
            });
        }
    }

    /// Whether the server owes an answer.
    fn waits(&self) -> bool {
        self.open > 0 || self.list.is_some() || matches!(self.phase, Phase::Greeting { .. })
    }

    fn check_deadlines(&mut self, now: Time) {
        let mut earliest = Time::NEVER;
        for index in 0..self.storage.slots().len() {
            let slot = &self.storage.slots()[index];
            if slot.state != State::Open {
                continue;
            }
            if slot.deadline > now {
                earliest = earliest.min(slot.deadline);
            } else if self.accepts_frames() {
                self.tell_cancelled(index);
                self.fail(now, index, Status::DeadlineExceeded);
            } else {
                earliest = now;
            }
        }
        self.deadline_timer = earliest;
    }

    fn tell_cancelled(&mut self, index: usize) {
        // When too many are cancelled at once the server learns of the rest by their silence.
        let _ = self.cancels.push_back(self.storage.slots()[index].id);
    }

    /// Ends every open request and the session.
    fn shut(&mut self, now: Time, status: Status) {
        self.phase = Phase::Closed;
        for index in 0..self.storage.slots().len() {
            if self.storage.slots()[index].state == State::Open {
                self.end(now, index);
                // Too many for the queue of events: `Closed` speaks for all of them.
                self.storage.parts().0[index].state = State::Free;
            }
        }
        self.events.clear();
        let _ = self.events.push_back(ClientEvent::Closed(status));
    }

    fn fail(&mut self, now: Time, index: usize, status: Status) {
        let key = self.storage.slots()[index].key(index);
        let sent = self.storage.slots()[index].outgoing.fresh_bytes();
        let received = self.storage.slots()[index].incoming.received();
        // The server takes these out of its count too.
        self.channel.sent_data = self.channel.sent_data.saturating_sub(sent);
        self.channel.received_data = self.channel.received_data.saturating_sub(received);
        self.end(now, index);
        self.storage.parts().0[index].state = State::Free;
        let _ = self.events.push_back(ClientEvent::Failed(key, status));
    }

    /// Takes a request out of flight; its record is free after its event.
    fn end(&mut self, now: Time, index: usize) {
        let key = self.storage.slots()[index].key(index);
        let (slots, flight) = self.storage.parts();
        self.channel.on_answered(flight, now, key);
        let slot = &mut slots[index];
        slot.state = State::Ended;
        slot.generation = slot.generation.wrapping_add(1);
        self.open -= 1;
    }

    fn live(&self, request: RequestKey) -> Option<usize> {
        let slot = self.storage.slots().get(request.index as usize)?;
        (slot.generation == request.generation && slot.state == State::Open).then_some(request.index as usize)
    }
}
