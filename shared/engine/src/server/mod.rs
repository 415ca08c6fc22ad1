//! The server's half of the protocol.
//!
//! A driver calls, in any order: [`Server::handle_frame`] for every frame that arrives (or [`Server::handle_train`] for
//! several), [`Server::placed`] when a payload is where the verdict wanted it, [`Server::next_submission`] and
//! [`Server::handle_completion`] for the link, [`Server::poll_transmit`] (or [`Server::poll_train`]) until it gives nothing
//! more, and [`Server::handle_timeout`] when [`Server::next_timeout`] has come. None of them blocks, allocates or looks at the clock.

mod farewell;
mod lines;
mod link;
mod receive;
mod records;
mod request;
mod room;
mod session;
mod sessions;
mod stats;
mod timers;
mod transmit;

use splitrpc_arena::{PoolLayout, SlotAllocator};
use splitrpc_ring::{RequestKey, Run, Submission};
use splitrpc_wire::ack::{AckRange, MAX_ACK_LEN, MAX_ACK_RANGES};
use splitrpc_wire::{Header, Status};

use crate::Time;
use crate::channel::Channel;
use crate::config::{ConfigError, NO_INDEX, SESSION_INDEX_MASK, ServerConfig};
use crate::congestion::{Congestion, DelayControl};
use crate::cookie::CookieJar;
use crate::flight::{Flight, SentFrame};
use crate::message::{Chunk, Pieces, Sizes};
use crate::model::ModelPlan;
use crate::queue::Queue;

use farewell::Farewell;
pub use lines::LEVELS;
use lines::List;
pub use link::CompletionHead;
pub use request::RequestSlot;
use request::State;
pub use room::OriginSlot;
use room::Senders;
use session::Executed;
pub use session::{Peer, SessionSlot};
pub use stats::{Ended, Stats};
pub use transmit::{Control, Transmit};
pub(crate) use transmit::{describe, nothing};

/// What to do with the payload of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame is dealt with; it has no payload to place.
    Done,
    /// Put the tensor data where the placement says, then call [`Server::placed`]. Where the frame brought the request's
    /// manifest, put that into the run's meta area.
    Place(Placement),
    /// Drop the tensor data.
    Discard,
    /// The stream breaks the protocol: close it. Datagrams are just dropped.
    Close,
}

/// Where the tensor data of a frame, or of a train of them, belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The request.
    pub request: RequestKey,
    /// Its input slots.
    pub run: Run,
    /// What of it.
    pub chunk: Chunk,
    /// The number of its first packet, and how many there are.
    packet: u64,
    packets: u32,
    ack_now: bool,
}

impl Placement {
    /// Bytes of tensor data.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.chunk.length()
    }
}

/// A datagram session's transport state. Storage for these is lent to the engine.
#[derive(Debug)]
pub struct ChannelSlot<C = DelayControl> {
    channel: Channel<C>,
    executed: Executed,
    /// Requests that were refused without a record, each counted once.
    refused: Executed,
    /// The record of the address that it belongs to.
    origin: u32,
    /// The period in which it last sent much, see [`room`].
    sent_in: u32,
}

impl<C: Congestion> Default for ChannelSlot<C> {
    fn default() -> Self {
        let channel = Channel::new(Flight::new(0, 1), 1472);
        ChannelSlot { channel, executed: Executed::default(), refused: Executed::default(), origin: 0, sent_in: 0 }
    }
}

/// Memory that the engine works in; the lengths follow from the configuration ([`StorageSizes`]).
#[derive(Debug)]
pub struct Storage<'a, C = DelayControl> {
    /// Sessions.
    pub sessions: &'a mut [SessionSlot],
    /// Datagram transport.
    pub channels: &'a mut [ChannelSlot<C>],
    /// Addresses that datagram sessions belong to.
    pub origins: &'a mut [OriginSlot],
    /// Timers of the datagram sessions.
    pub timers: &'a mut [Time],
    /// Datagrams in flight.
    pub flight: &'a mut [SentFrame],
    /// Requests.
    pub requests: &'a mut [RequestSlot],
    /// Submissions on their way to the link.
    pub submissions: &'a mut [Submission],
    /// Control frames to send.
    pub control: &'a mut [Control],
    /// Datagram sessions that may have something to send.
    pub active: &'a mut [u32],
    /// Input slots that each session holds in each pool.
    pub shares: &'a mut [u32],
    /// How each model's requests ended.
    pub ended: &'a mut [Ended],
}

/// How long each part of [`Storage`] must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageSizes {
    /// See [`Storage::sessions`].
    pub sessions: usize,
    /// See [`Storage::channels`]; also of [`Storage::origins`], [`Storage::timers`] and [`Storage::active`].
    pub channels: usize,
    /// See [`Storage::flight`].
    pub flight: usize,
    /// See [`Storage::requests`].
    pub requests: usize,
    /// See [`Storage::submissions`].
    pub submissions: usize,
    /// See [`Storage::control`].
    pub control: usize,
    /// See [`Storage::shares`].
    pub shares: usize,
    /// See [`Storage::ended`].
    pub ended: usize,
}

/// Control replies that wait to be sent. A driver asks [`Server::accepts_frames`] before it hands in more.
const CONTROL_QUEUE: usize = 512;
/// Control replies that one frame can cause.
const CONTROL_PER_FRAME: usize = 2;

impl StorageSizes {
    /// The lengths that this configuration needs with so many models and input pools.
    #[must_use]
    pub fn of(config: &ServerConfig, models: usize, pools: usize) -> StorageSizes {
        let requests = config.requests as usize;
        let sessions = config.stream_sessions as usize + config.datagram_sessions as usize;
        StorageSizes {
            sessions,
            channels: config.datagram_sessions as usize,
            flight: config.datagram_sessions as usize * config.flight as usize,
            requests,
            // See `push_submission`; the rest is what `accepts_frames` looks for.
            submissions: 4 * requests + 64,
            control: CONTROL_QUEUE,
            shares: sessions * pools,
            ended: models,
        }
    }

    /// Bytes of all parts together, with the default congestion control.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let parts = [
            (self.sessions, size_of::<SessionSlot>()),
            (self.channels, size_of::<(ChannelSlot, OriginSlot, Time, u32)>()),
            (self.flight, size_of::<SentFrame>()),
            (self.requests, size_of::<RequestSlot>()),
            (self.submissions, size_of::<Submission>()),
            (self.control, size_of::<Control>()),
            (self.shares, size_of::<u32>()),
            (self.ended, size_of::<Ended>()),
        ];
        parts.into_iter().map(|(count, size)| count as u64 * size as u64).sum()
    }
}

/// The server's half of the protocol, generic over the congestion controller.
#[derive(Debug)]
pub struct Server<'a, C = DelayControl> {
    config: ServerConfig,
    models: &'a [ModelPlan<'a>],
    catalog: &'a [u8],
    pools: &'a [(u16, PoolLayout)],
    slots: SlotAllocator<'a>,
    sessions: &'a mut [SessionSlot],
    free_session: u32,
    channels: &'a mut [ChannelSlot<C>],
    origins: &'a mut [OriginSlot],
    timers: &'a mut [Time],
    flight: &'a mut [SentFrame],
    requests: &'a mut [RequestSlot],
    free_request: u32,
    live_requests: u32,
    submissions: Queue<'a, Submission>,
    control: Queue<'a, Control>,
    /// Responses to streams, by urgency.
    out: [List; LEVELS],
    active: Queue<'a, u32>,
    /// Input slots that sessions hold: the first session's in each pool, then the next one's.
    shares: &'a mut [u32],
    /// Datagrams handed out in a row to the session at the head of `active`.
    in_a_row: u32,
    kept: u32,
    /// Addresses that send.
    senders: Senders,
    cookies: CookieJar,
    counter: u64,
    epoch: u64,
    draining: bool,
    farewell: Farewell,
    channel_timer: Time,
    request_timer: Time,
    session_timer: Time,
    unknown_answers: (Time, u32),
    /// Where the search for streams without a hello goes on.
    stale_from: u32,
    scratch: [u8; MAX_ACK_LEN],
    ranges: heapless::Vec<AckRange, MAX_ACK_RANGES>,
    stats: Stats,
    /// By model handle; what no model can be told for is in the statistics only.
    ended: &'a mut [Ended],
}

impl<'a, C: Congestion> Server<'a, C> {
    /// A server of these models. `pools` are the input pools that `slots` allocates from; `catalog` is the encoded model
    /// catalogue; `secret` and `epoch` are random, made anew at each start.
    ///
    /// # Errors
    /// A limit that cannot be, or storage that is shorter than [`StorageSizes`] says.
    #[expect(clippy::too_many_arguments, reason = "all of them are fixed for the server's life")]
    #[expect(clippy::needless_pass_by_value, reason = "the storage is lent for good")]
    pub fn new(
        config: &ServerConfig,
        models: &'a [ModelPlan<'a>],
        catalog: &'a [u8],
        pools: &'a [(u16, PoolLayout)],
        slots: SlotAllocator<'a>,
        storage: Storage<'a, C>,
        secret: [u8; 16],
        epoch: u64,
    ) -> Result<Server<'a, C>, ConfigError> {
        config.check()?;
        let need = StorageSizes::of(config, models.len(), pools.len());
        let enough = storage.sessions.len() >= need.sessions
            && storage.channels.len() >= need.channels
            && storage.origins.len() >= need.channels
            && storage.timers.len() >= need.channels
            && storage.active.len() >= need.channels
            && storage.flight.len() >= need.flight
            && storage.requests.len() >= need.requests
            && storage.submissions.len() >= need.submissions
            && storage.control.len() >= need.control
            && storage.shares.len() >= need.shares
            && storage.ended.len() >= need.ended;
        if !enough {
            return Err(ConfigError { field: "storage", why: "shorter than the configuration needs" });
        }
        let streams = config.stream_sessions;
        for (index, slot) in storage.requests.iter_mut().enumerate() {
            *slot = RequestSlot { next: index as u32 + 1, ..RequestSlot::default() };
        }
        if let Some(last) = storage.requests.last_mut() {
            last.next = NO_INDEX;
        }
        for (index, slot) in storage.sessions.iter_mut().enumerate() {
            let next_free = if index as u32 >= streams { index as u32 + 1 } else { NO_INDEX };
            *slot = SessionSlot { next_free, ..SessionSlot::default() };
        }
        if let Some(last) = storage.sessions.last_mut() {
            last.next_free = NO_INDEX;
        }
        for (index, slot) in storage.channels.iter_mut().enumerate() {
            let flight = Flight::new(index as u32 * config.flight, config.flight);
            slot.channel = Channel::new(flight, config.datagram);
        }
        storage.origins.fill(OriginSlot::default());
        storage.timers.fill(Time::NEVER);
        storage.shares.fill(0);
        storage.ended.fill([0; Status::ALL.len()]);
        Ok(Server {
            config: *config,
            models,
            catalog,
            pools,
            slots,
            free_session: if config.datagram_sessions > 0 { streams } else { NO_INDEX },
            sessions: storage.sessions,
            channels: storage.channels,
            origins: storage.origins,
            timers: storage.timers,
            flight: storage.flight,
            requests: storage.requests,
            free_request: 0,
            live_requests: 0,
            submissions: Queue::new(storage.submissions),
            control: Queue::new(storage.control),
            out: [List::EMPTY; LEVELS],
            active: Queue::new(storage.active),
            shares: storage.shares,
            in_a_row: 0,
            kept: 0,
            senders: Senders::default(),
            cookies: CookieJar::new(secret),
            counter: 0,
            epoch,
            draining: false,
            farewell: Farewell::default(),
            channel_timer: Time::NEVER,
            request_timer: Time::NEVER,
            session_timer: Time::NEVER,
            unknown_answers: (Time::default(), 0),
            stale_from: 0,
            scratch: [0; MAX_ACK_LEN],
            ranges: heapless::Vec::new(),
            stats: Stats::default(),
            ended: &mut storage.ended[..need.ended],
        })
    }

    /// Whether the engine has room for what one more frame can cause. If not, call [`Server::poll_transmit`] and
    /// [`Server::next_submission`] first; datagrams handed in all the same may go unanswered.
    #[must_use]
    pub fn accepts_frames(&self) -> bool {
        self.control.room() >= CONTROL_PER_FRAME && self.submissions.room() >= 4
    }

    /// Where a placement's data goes, piece by piece, in the order of the frame's bytes; nowhere once the slots are not
    /// the request's to write any more.
    #[must_use]
    pub fn pieces(&self, placement: &Placement) -> Pieces<'_> {
        match self.still_placing(placement) {
            true => Pieces::new(placement.run, placement.chunk, self.sizes(placement.request)),
            false => nothing(),
        }
    }

    /// Tensor sizes of a request.
    #[must_use]
    pub fn sizes(&self, request: RequestKey) -> &Sizes {
        match self.requests.get(request.index as usize) {
            Some(slot) if slot.generation == request.generation => slot.incoming.sizes(),
            _ => &Sizes::NONE,
        }
    }

    /// The pool that a request like this one gets its slots from, and how many it takes.
    #[must_use]
    pub fn class_of(&self, like: &Header, manifest: &splitrpc_wire::Manifest<'_>) -> Option<(u16, u16)> {
        let plan = self.models.get(usize::from(like.model))?;
        let (rows, sizes) = plan.admit(manifest).ok()?;
        Some((plan.class(self.pools, rows, &sizes).ok()?, rows))
    }

    /// The slots that the next request of this pool and so many rows would get, so that bytes may land there before they
    /// are known to be that request. Until a verdict hands them out they belong to nobody.
    #[must_use]
    pub fn peek_run(&self, pool: u16, rows: u16) -> Option<Run> {
        self.slots.peek(pool, rows)
    }

    /// Whether no request is arriving, computing or leaving. Replies kept for duplicates do not count.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.control.is_empty()
            && self.submissions.is_empty()
            && self.requests.iter().all(|r| match r.state {
                State::Free | State::Failed(_) => true,
                State::Responding => r.kept,
                _ => false,
            })
    }

    /// Requests that hold a record, kept replies included.
    #[must_use]
    pub fn live_requests(&self) -> u32 {
        self.live_requests
    }

    /// Open sessions.
    #[must_use]
    pub fn open_sessions(&self) -> usize {
        self.sessions.iter().filter(|s| s.open).count()
    }

    /// Bytes that were sent to datagram clients and are neither acknowledged nor lost: what their credit is used up by.
    #[must_use]
    pub fn bytes_under_way(&self) -> u64 {
        self.channels.iter().map(|slot| slot.channel.flight.bytes()).sum()
    }

    /// Free slots of an input pool.
    #[must_use]
    pub fn free_slots(&self, pool: u16) -> u32 {
        self.slots.available(pool)
    }

    /// What was counted since the start.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How the requests of each model ended since the start, by model handle: part of [`Stats::ended`], which also counts
    /// those that named no model.
    #[must_use]
    pub fn ended(&self) -> &[Ended] {
        self.ended
    }

    /// Counts the end of a request for this model, if there is such a one.
    fn count_end(&mut self, model: u16, status: Status) {
        let Some(at) = Status::ALL.iter().position(|s| *s == status) else { return };
        self.stats.ended[at] += 1;
        if let Some(ended) = self.ended.get_mut(usize::from(model)) {
            ended[at] += 1;
        }
    }

    fn is_stream(&self, session: u32) -> bool {
        session < self.config.stream_sessions
    }

    fn channel_index(&self, session: u32) -> usize {
        (session - self.config.stream_sessions) as usize
    }

    fn session_index(id: u64) -> u32 {
        id as u32 & SESSION_INDEX_MASK
    }
}
