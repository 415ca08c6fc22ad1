//! The client's half of the protocol over datagrams.
//!
//! The driver calls [`Client::handle_frame`] for what arrives, [`Client::placed`] once response data is where the verdict
//! wanted it, [`Client::poll_transmit`] until there is nothing to send, [`Client::poll_event`] for what came of it, and
//! [`Client::handle_timeout`] when [`Client::next_timeout`] has come.

mod receive;
mod slot;
mod transmit;
mod types;

use splitrpc_ring::RequestKey;
use splitrpc_wire::ack::{AckRange, MAX_ACK_RANGES};
use splitrpc_wire::hello::{HelloAck, MIN_DATAGRAM};
use splitrpc_wire::{HEADER_LEN, Status, WireError};

use crate::Time;
use crate::channel::Channel;
use crate::config::ConfigError;
use crate::congestion::{Congestion, DelayControl};
use crate::flight::Flight;
use crate::message::{Pieces, Sizes};
use crate::server::nothing;
use crate::time::{MS, SEC};

pub use slot::ClientSlot;
use slot::State;
pub use transmit::ClientTransmit;
pub use types::{
    ClientConfig, ClientEvent, ClientPlacement, ClientStats, ClientStorage, ClientVerdict, RequestSpec, SubmitError,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Saying hello until it is answered.
    Greeting {
        token: u64,
    },
    Ready,
    Closed,
}

const HELLO_LEN: usize = MIN_DATAGRAM as usize - HEADER_LEN;
const HELLO_RETRY: u64 = 20 * MS;
const LIST_RETRY: u64 = 20 * MS;
/// Without news of a request that has been sent, the server is asked about it after this long, and then ever less often:
/// its error, or the news that it gave the reply up, may have been lost.
const ASK_AFTER: u64 = 100 * MS;
const ASK_AT_LEAST_EVERY: u64 = SEC;

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
    /// Something that was sent may have to go again.
    repeats: bool,
    last_heard: Time,
    hello_at: Time,
    /// The catalogue offset wanted, and when to ask (again).
    list: Option<(u32, Time)>,
    ping: Option<u64>,
    /// The server's ping to answer.
    pong: Option<u64>,
    cancels: heapless::Deque<u64, 64>,
    goodbye: bool,
    sent_data: bool,
    events: heapless::Deque<ClientEvent, 8>,
    deadline_timer: Time,
    ask_timer: Time,
    scratch: [u8; HELLO_LEN],
    ranges: heapless::Vec<AckRange, MAX_ACK_RANGES>,
    stats: ClientStats,
}

impl<S: ClientStorage, C: Congestion> Client<S, C> {
    /// A client that says hello when first polled. `nonce` is random.
    ///
    /// # Errors
    /// Storage without records, or whose flight is not a power of two of at least 16; a limit that cannot be.
    pub fn new(now: Time, config: &ClientConfig, storage: S, nonce: u64) -> Result<Client<S, C>, ConfigError> {
        config.check()?;
        let flight = storage.flight().len();
        if storage.slots().is_empty() || !flight.is_power_of_two() || flight < 16 {
            return Err(ConfigError {
                field: "storage",
                why: "needs records and a power of two of frames, at least 16",
            });
        }
        let channel = Channel::new(Flight::new(0, flight as u32), config.datagram);
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
            pong: None,
            cancels: heapless::Deque::new(),
            goodbye: false,
            sent_data: false,
            events: heapless::Deque::new(),
            deadline_timer: Time::NEVER,
            ask_timer: Time::NEVER,
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

    /// Bytes that were sent and are neither acknowledged nor lost: what the server's credit is used up by.
    #[must_use]
    pub fn bytes_under_way(&self) -> u64 {
        self.channel.flight.bytes()
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
        let ask_at = now + ASK_AFTER;
        let (slots, _) = self.storage.parts();
        let index = slots.iter().position(|s| s.state == State::Free).ok_or(SubmitError::Full)?;
        let slot = &mut slots[index];
        slot.state = State::Open;
        slot.id = self.next_id;
        slot.model = spec.model;
        slot.priority = spec.priority;
        slot.repeatable = spec.repeatable;
        slot.sized = false;
        slot.answered = false;
        slot.ask_at = ask_at;
        slot.asked = 0;
        slot.deadline = match spec.deadline_us {
            0 => Time::NEVER,
            us => now + u64::from(us) * 1_000,
        };
        let head = spec.manifest.as_bytes();
        slot.head_len = head.len() as u16;
        slot.head[..head.len()].copy_from_slice(head);
        slot.outgoing.start(&Sizes::of(&spec.manifest), head.len() as u16);
        slot.incoming.start(&Sizes::NONE);
        if self.open == 0 {
            // Silence counts from when something is asked.
            self.last_heard = now;
        }
        self.next_id += 1;
        self.open += 1;
        self.deadline_timer = self.deadline_timer.min(slot.deadline);
        self.ask_timer = self.ask_timer.min(ask_at);
        Ok(slot.key(index))
    }

    /// Gives a request up; the server is told. No event follows.
    pub fn cancel(&mut self, request: RequestKey) {
        if let Some(index) = self.live(request) {
            self.tell_cancelled(index);
            self.end(index);
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

    /// Acknowledges what has arrived with the next [`Client::poll_transmit`], as who does not ask by
    /// [`Client::next_timeout`] must.
    pub fn acknowledge(&mut self, now: Time) {
        self.channel.received.hurry(now);
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
        match self.live(placement.request) {
            Some(index) => {
                let sizes = self.storage.slots()[index].incoming.sizes();
                Pieces::new(splitrpc_ring::Run::NONE, placement.chunk, sizes)
            }
            None => nothing(),
        }
    }

    /// When [`Client::handle_timeout`] wants to be called at the latest.
    #[must_use]
    pub fn next_timeout(&self) -> Time {
        let mut at = self.deadline_timer;
        match self.phase {
            Phase::Greeting { .. } => at = at.min(self.hello_at).min(self.last_heard + self.config.silence_limit),
            Phase::Ready => {
                at = at.min(self.ask_timer).min(self.channel.timer(self.storage.flight()));
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
        if self.phase != Phase::Closed && self.waits() && now.since(self.last_heard) >= self.config.silence_limit {
            self.shut(Status::ConnectionLost);
            return;
        }
        if self.deadline_timer <= now {
            self.check_deadlines(now);
        }
        if self.phase == Phase::Ready {
            if self.ask_timer <= now {
                self.check_news(now);
            }
            let (slots, flight) = self.storage.parts();
            let (stats, repeats) = (&mut self.stats, &mut self.repeats);
            self.channel.on_timer(flight, now, |settled| {
                stats.frames_lost += 1;
                let again = transmit::settle(slots, &settled, false);
                *repeats |= again;
                again
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
                self.fail(index, Status::DeadlineExceeded);
            } else {
                earliest = now;
            }
        }
        self.deadline_timer = earliest;
    }

    /// Asks about requests of which nothing was heard for too long.
    fn check_news(&mut self, now: Time) {
        let mut earliest = Time::NEVER;
        // A server that lives is to be heard in time, also where a question is lost.
        let longest = self.config.silence_limit / 4;
        for slot in self.storage.parts().0.iter_mut().filter(|s| s.state == State::Open) {
            if slot.ask_at <= now {
                // Otherwise frames of it are under way or next, and the acknowledgements bring news.
                if slot.outgoing.all_acked() {
                    slot.outgoing.ask();
                    self.repeats = true;
                }
                slot.asked = slot.asked.saturating_add(1);
                slot.ask_at = now + (ASK_AFTER << slot.asked.min(16)).min(ASK_AT_LEAST_EVERY).min(longest);
            }
            earliest = earliest.min(slot.ask_at);
        }
        self.ask_timer = earliest;
    }

    fn tell_cancelled(&mut self, index: usize) {
        // When too many are cancelled at once the server learns of the rest by their silence.
        let _ = self.cancels.push_back(self.storage.slots()[index].id);
    }

    /// Ends every open request and the session.
    fn shut(&mut self, status: Status) {
        self.phase = Phase::Closed;
        self.deadline_timer = Time::NEVER;
        self.channel.reset(self.config.datagram, 0);
        for index in 0..self.storage.slots().len() {
            if self.storage.slots()[index].state == State::Open {
                // Too many for the queue of events: `Closed` speaks for all of them.
                self.end(index);
            }
        }
        self.events.clear();
        let _ = self.events.push_back(ClientEvent::Closed(status));
    }

    fn fail(&mut self, index: usize, status: Status) {
        let key = self.storage.slots()[index].key(index);
        self.end(index);
        let _ = self.events.push_back(ClientEvent::Failed(key, status));
    }

    /// Frees the record of a request. Frames of it that are under way stay so until they are acknowledged or lost.
    fn end(&mut self, index: usize) {
        // The next request need not wait as long for its probes as this one had come to.
        self.channel.stop_probing();
        let slot = &mut self.storage.parts().0[index];
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.open -= 1;
    }

    fn live(&self, request: RequestKey) -> Option<usize> {
        let slot = self.storage.slots().get(request.index as usize)?;
        (slot.generation == request.generation && slot.state == State::Open).then_some(request.index as usize)
    }
}
