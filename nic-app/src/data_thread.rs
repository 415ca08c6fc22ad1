//! One thread that runs ports, engine, link and host to completion.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use splitrpc_arena::Arena;
use splitrpc_engine::{MS, Peer, Time};
use splitrpc_ring::NicLink;
use splitrpc_socket::{Events, Interest, MAX_GSO_SEGMENTS, Poller, pin_current_thread};
use splitrpc_telemetry::{Event, Shard};

use crate::completion;
use crate::publish::{self, Departures};
use crate::settings::{DataThreadConfig, Host, Stop};
use crate::storage::{BuiltEngine, Engine};
use crate::tcp::{Handed, LISTENER, TcpPort};
use crate::udp::{SOCKET, UdpPort};
use crate::wait::{WaitMode, Waker};

/// The poller's name for the waker.
const WAKER: u64 = u64::MAX - 1;
/// Events taken from the poller at once.
const EVENTS: usize = 256;
/// Tries of sockets that were active lately, after which the poller is asked about all: few after it has named others than
/// these, and more each time that it has not.
const POLLER_EVERY: core::ops::RangeInclusive<u32> = 4..=64;
/// How long it is not asked at most while those are tried: one of them may keep every round busy for long.
const POLLER_WITHIN: u64 = MS / 5;
/// Rounds between engine and host in one step; what is left then waits for the next.
const ROUNDS: usize = 4;
/// Rounds without news in which a spinning thread tries nothing but its sockets, for one in which it looks everywhere: what
/// comes next mostly comes from there, and is seen the sooner the shorter a round is.
const SHORT_ROUNDS: u32 = 3;
/// How often the counters are published while something happens.
const PUBLISH: u64 = 100 * MS;
/// How often a thread that is to end looks how far it has come.
const END_LOOK: u64 = 5 * MS;
/// How long it listens to those whom it has told that it ends, so that they hear of it; at most half of the time that it has.
const FAREWELL: u64 = 200 * MS;

/// How far a thread has come that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Nobody has asked it to.
    No,
    /// It finishes what is under way, until then at most.
    Draining { until: Time },
    /// It tells everyone, until then, and for as long as another thread of the server drains, but not past `limit`: so from
    /// `give_up` on it gives up what is not finished, and listens to those too whom it tells that.
    Parting { until: Time, give_up: Time, limit: Time },
    /// Nothing is left to do.
    Over,
}

/// Everything that one data thread owns. Nothing of it is shared with the others.
#[derive(Debug)]
pub struct DataThread<'e, L, H> {
    config: DataThreadConfig,
    engine: Engine<'e>,
    arena: Arena,
    input_pools: u16,
    link: L,
    host: H,
    tcp: Option<TcpPort>,
    udp: Option<UdpPort>,
    poller: Poller,
    events: Events,
    /// `events` holds what a sleep brought.
    roused: bool,
    /// Tries of sockets since the poller was last asked, and how many there are to be until it is asked again.
    tries: u32,
    poller_every: u32,
    /// When it was last asked.
    asked: Time,
    /// Short rounds since the last whole one.
    short_rounds: u32,
    waker: Waker,
    stop: Arc<AtomicBool>,
    /// How many threads of the server have something under way that they finish, or were not told to end.
    busy: Arc<AtomicUsize>,
    telemetry: Arc<Shard>,
    departures: Departures,
    /// Scratch: what the host wrote beside a request's slots.
    meta: Box<completion::Meta>,
    start: Instant,
    unpublished: bool,
    next_publish: Time,
}

impl<'e, L: NicLink, H: Host> DataThread<'e, L, H> {
    /// A thread without ports. `host` is at the other end of `link`, and rouses this thread with `waker`;
    /// `input_pools` is how many of the arena's pools are the engine's.
    ///
    /// # Errors
    /// Those of the kernel.
    #[expect(clippy::too_many_arguments, reason = "all that a shard consists of")]
    pub fn new(
        config: DataThreadConfig,
        engine: BuiltEngine<'e>,
        arena: Arena,
        input_pools: u16,
        link: L,
        host: H,
        waker: Waker,
        telemetry: Arc<Shard>,
    ) -> io::Result<DataThread<'e, L, H>> {
        let poller = Poller::new()?;
        poller.add(&waker, WAKER, Interest::READ)?;
        Ok(DataThread {
            config,
            engine: engine.server,
            arena,
            input_pools,
            link,
            host,
            tcp: None,
            udp: None,
            poller,
            events: Events::with_capacity(EVENTS),
            roused: false,
            tries: 0,
            poller_every: *POLLER_EVERY.end(),
            asked: Time::default(),
            short_rounds: 0,
            waker,
            stop: Arc::new(AtomicBool::new(false)),
            busy: Arc::new(AtomicUsize::new(1)),
            telemetry,
            departures: Departures::default(),
            meta: Box::new([0; size_of::<completion::Meta>()]),
            start: Instant::now(),
            unpublished: true,
            next_publish: Time::default(),
        })
    }

    /// Adds a TCP port.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn with_tcp(mut self, mut port: TcpPort) -> io::Result<Self> {
        port.register(&self.poller)?;
        port.note_arrivals(self.host.early_bytes());
        self.tcp = Some(port);
        Ok(self)
    }

    /// Adds a UDP port.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn with_udp(mut self, mut port: UdpPort) -> io::Result<Self> {
        port.register(&self.poller)?;
        port.note_arrivals(self.host.early_bytes());
        self.udp = Some(port);
        Ok(self)
    }

    /// Makes it one of several threads that listen at the same addresses; `busy` is their number, and theirs. They end
    /// together: the kernel would hand the datagrams of one that has ended to another, which knows nothing of them.
    #[must_use]
    pub fn among(mut self, busy: Arc<AtomicUsize>) -> Self {
        self.busy = busy;
        self
    }

    /// What ends [`DataThread::run`].
    #[must_use]
    pub fn stop_handle(&self) -> Stop {
        Stop { flag: Arc::clone(&self.stop), waker: self.waker.clone() }
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine<'e> {
        &self.engine
    }

    /// The TCP port.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpPort> {
        self.tcp.as_ref()
    }

    /// The UDP port.
    #[must_use]
    pub fn udp(&self) -> Option<&UdpPort> {
        self.udp.as_ref()
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Runs until it is told to stop, and then until what was under way is done or its time is up.
    pub fn run(&mut self) {
        if let Some(core) = self.config.core
            && let Err(error) = pin_current_thread(core)
        {
            tracing::warn!(core, %error, "the data thread cannot be bound to its core");
        }
        let spin = self.config.wait.spin_ns();
        let mut active = Time::default();
        let mut ending = Ending::No;
        loop {
            let now = self.now();
            let moved = self.step(now);
            if moved {
                // What was copied meanwhile may have taken longer than a spin.
                active = self.now();
                self.unpublished = true;
            }
            if self.unpublished && self.next_publish <= now {
                self.publish(now);
            }
            if self.stop.load(Ordering::Relaxed) {
                ending = self.end(now, ending);
                if ending == Ending::Over {
                    return self.publish(now);
                }
            }
            if now.since(active) < spin {
                if self.config.crowded && !moved {
                    std::thread::yield_now();
                }
            } else if self.engine.next_submission().is_none() && !self.tcp.as_ref().is_some_and(TcpPort::has_unread) {
                self.sleep(now, ending);
            }
        }
    }

    /// Goes round once, without waiting: for those who drive the thread themselves. Returns whether anything happened.
    pub fn poll(&mut self) -> bool {
        if self.config.wait == WaitMode::Block {
            // An error here would come back from the next wait.
            self.roused = self.poller.wait(&mut self.events, Some(Duration::ZERO)).is_ok();
        }
        self.step(self.now())
    }

    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Goes round once. Returns whether anything happened.
    fn step(&mut self, now: Time) -> bool {
        let spins = self.config.wait != WaitMode::Block && !self.roused;
        let mut moved = self.receive(now);
        let short = spins && !moved && self.short_rounds < SHORT_ROUNDS;
        if short && self.engine.next_submission().is_none() && !self.host.has_news() {
            self.short_rounds += 1;
            return false;
        }
        moved |= self.exchange(now);
        // Where there was news there may be more.
        self.short_rounds = if moved { SHORT_ROUNDS } else { 0 };
        if self.engine.next_timeout() <= now {
            self.engine.handle_timeout(now);
            // What time ends may leave nothing to send.
            self.unpublished = true;
        }
        if let Some(tcp) = &mut self.tcp
            && tcp.next_sweep() <= now
        {
            tcp.sweep(now, &self.poller, &mut self.engine);
        }
        for _ in 0..ROUNDS {
            moved |= self.send(now);
            // Slots that have left, and cancellations, before the thread may fall asleep.
            if self.engine.next_submission().is_none() || !self.exchange(now) {
                break;
            }
        }
        moved
    }

    fn receive(&mut self, now: Time) -> bool {
        let mut moved = self.receive_new(now);
        let DataThread { engine, arena, host, tcp, udp, poller, .. } = self;
        if let Some(tcp) = tcp {
            moved |= tcp.resume(now, poller, engine, arena);
            tcp.take_arrivals(|arrival| host.arriving(arrival));
        }
        if let Some(udp) = udp {
            udp.take_arrivals(|arrival| host.arriving(arrival));
        }
        moved
    }

    /// Receives what the sockets have.
    fn receive_new(&mut self, now: Time) -> bool {
        let roused = std::mem::take(&mut self.roused);
        if self.config.wait == WaitMode::Block {
            // It has just been told what is ready, or it was not the sockets that roused it.
            return roused && self.take_events(now);
        }
        let udp_is_hot = self.udp.as_ref().is_some_and(UdpPort::is_hot);
        let direct = self.tcp.as_mut().map_or(0, TcpPort::tick) + u32::from(udp_is_hot);
        self.tries += direct;
        let mut moved = false;
        if roused {
            moved = self.take_events(now);
        } else if direct == 0 || self.tries > self.poller_every || now.since(self.asked) >= POLLER_WITHIN {
            (self.tries, self.asked) = (0, now);
            // An error here would come back from the next wait, which says so.
            let asked = self.poller.wait(&mut self.events, Some(Duration::ZERO)).is_ok();
            self.poller_every = match asked && self.names_others() {
                true => *POLLER_EVERY.start(),
                false => (2 * self.poller_every).min(*POLLER_EVERY.end()),
            };
            moved = asked && self.take_events(now);
        }
        // A request that is complete is worth more than what may have come meanwhile.
        if moved && self.engine.next_submission().is_some() {
            return true;
        }
        let DataThread { engine, arena, tcp, udp, poller, .. } = self;
        if let Some(udp) = udp.as_mut().filter(|_| udp_is_hot) {
            moved |= udp.poll(now, engine, arena);
        }
        if let Some(tcp) = tcp {
            moved |= tcp.poll_hot(now, poller, engine, arena);
        }
        moved
    }

    /// Whether the poller has named connections that are not tried anyway.
    fn names_others(&self) -> bool {
        let Some(tcp) = &self.tcp else { return false };
        self.events.iter().any(|event| event.token <= u64::from(u32::MAX) && !tcp.is_hot(event.token as u32))
    }

    /// Deals with what the poller said. Returns whether anything moved.
    fn take_events(&mut self, now: Time) -> bool {
        let DataThread { engine, arena, tcp, udp, poller, events, waker, .. } = self;
        let mut moved = false;
        // First, while no frame waits in the engine for a connection that is gone: its number is used again.
        if events.iter().any(|event| event.token == LISTENER)
            && let Some(tcp) = tcp
        {
            tcp.accept(now, poller, engine);
            moved = true;
        }
        for event in events.iter() {
            match (event.token, &mut *tcp, &mut *udp) {
                (WAKER, ..) => waker.drain(),
                (LISTENER, ..) => {}
                (SOCKET, _, Some(udp)) => moved |= udp.poll(now, engine, arena),
                (_, Some(tcp), _) => moved |= tcp.on_event(now, poller, engine, arena, &event),
                _ => {}
            }
        }
        moved
    }

    /// Carries submissions and completions over the link until neither side has any. Returns whether there were any.
    fn exchange(&mut self, now: Time) -> bool {
        let mut moved = false;
        for _ in 0..ROUNDS {
            while let Some(submission) = self.engine.next_submission() {
                if self.link.submit(submission).is_err() {
                    break;
                }
                self.engine.submission_taken();
            }
            let worked = self.host.poll(now);
            let mut completed = false;
            while let Some(completion) = self.link.completion() {
                completion::deliver(&mut self.engine, &self.arena, now, &completion, &mut self.meta);
                completed = true;
            }
            moved |= worked | completed;
            if self.engine.next_submission().is_none() {
                break;
            }
        }
        moved
    }

    /// Hands the engine's frames to the ports. Returns whether there were any.
    fn send(&mut self, now: Time) -> bool {
        let DataThread { engine, arena, tcp, udp, poller, telemetry, departures, .. } = self;
        let mut sent = false;
        while let Some(frame) = engine.poll_train(now, MAX_GSO_SEGMENTS as u32) {
            sent = true;
            departures.note(telemetry, &frame);
            match (frame.peer, &mut *tcp, &mut *udp) {
                (Peer::Stream(id), Some(tcp), _) => {
                    let token = frame.token;
                    match tcp.transmit(now, poller, arena, id, &frame) {
                        Handed::Sent => token.into_iter().for_each(|token| engine.sent(token)),
                        Handed::Kept => {}
                        Handed::Broken => tcp.close(poller, engine, id),
                    }
                }
                (Peer::Datagram(to), _, Some(udp)) => udp.transmit(arena, to, &frame),
                (Peer::Stream(_) | Peer::Datagram(_), ..) => {}
            }
        }
        if sent && let Some(udp) = udp {
            udp.flush(arena);
        }
        departures.record(telemetry);
        sent
    }

    /// Sleeps until something comes or is due.
    fn sleep(&mut self, now: Time, ending: Ending) {
        self.waker.announce_sleep();
        // What was handed over before the announcement roused nobody.
        if self.stop.load(Ordering::SeqCst) == (ending == Ending::No) || self.exchange(now) {
            self.waker.awake();
            self.send(now);
            self.unpublished = true;
            return;
        }
        // What led here may have taken long, and what is due is not to wait for as long again.
        let now = self.now();
        let mut until = self.engine.next_timeout();
        until = until.min(self.host.next_deadline(now).unwrap_or(Time::NEVER));
        until = until.min(self.tcp.as_ref().map_or(Time::NEVER, TcpPort::next_sweep));
        if self.unpublished {
            until = until.min(self.next_publish);
        }
        if ending != Ending::No {
            until = until.min(now + END_LOOK);
        }
        let timeout = (until != Time::NEVER).then(|| Duration::from_nanos(until.since(now)));
        if let Err(error) = self.poller.wait(&mut self.events, timeout) {
            tracing::error!(%error, "the data thread cannot wait for its sockets");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.waker.awake();
        self.roused = true;
        self.telemetry.count(Event::Wakeups, 1);
    }

    /// Takes the next step towards the end, once it is time for it. Returns how far the thread has come then.
    fn end(&mut self, now: Time, ending: Ending) -> Ending {
        let allowed = u64::try_from(self.config.drain.as_nanos()).unwrap_or(u64::MAX);
        let farewell = FAREWELL.min(allowed / 2);
        match ending {
            Ending::No => {
                self.engine.begin_drain();
                self.host.drain();
                Ending::Draining { until: now + (allowed - farewell) }
            }
            Ending::Draining { until } if now < until && !(self.engine.is_idle() && self.host.is_idle()) => ending,
            Ending::Draining { until } => {
                self.busy.fetch_sub(1, Ordering::Relaxed);
                let give_up = now.max(until);
                Ending::Parting { until: now + farewell, give_up, limit: give_up + farewell }
            }
            Ending::Parting { until, give_up, limit } => {
                let connections = self.tcp.as_ref().map_or(0, |tcp| tcp.stats().open);
                let none_left = self.engine.open_sessions() == 0 && connections == 0;
                let all_part = self.busy.load(Ordering::Relaxed) == 0 || now >= limit;
                let is_last = all_part && (now >= until || none_left);
                self.engine.say_farewell(is_last || now >= give_up);
                self.send(now);
                if !is_last {
                    return ending;
                }
                self.tell_latecomers(now);
                Ending::Over
            }
            Ending::Over => ending,
        }
    }

    /// Who comes while the last are told hears of the end too, as far as that is possible without waiting. What they sent is
    /// read: for bytes left unread the kernel breaks a stream off, and what was said may be lost with it.
    fn tell_latecomers(&mut self, now: Time) {
        for _ in 0..ROUNDS {
            self.roused = self.poller.wait(&mut self.events, Some(Duration::ZERO)).is_ok();
            let moved = self.step(now);
            self.engine.say_farewell(true);
            if !self.send(now) && !moved {
                break;
            }
        }
    }

    fn publish(&mut self, now: Time) {
        let (link, tcp, udp) = (self.link.faults(), self.tcp.as_ref(), self.udp.as_ref());
        publish::publish(&self.telemetry, &self.engine, link, self.input_pools, tcp, udp);
        self.host.publish();
        self.unpublished = false;
        self.next_publish = now + PUBLISH;
    }
}
