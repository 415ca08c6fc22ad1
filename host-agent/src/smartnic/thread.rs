//! The thread that serves with a card.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nic_app::setup::{Message, Ready};
use nic_app::{DataThreadConfig, Stop, Waker};
use splitrpc_arena::Arena;
use splitrpc_doca::{Client, Connection, Device, Library, Notice, ProgressEngine};
use splitrpc_engine::{MS, SEC, Time};
use splitrpc_ring::{Consumer, Tells};
use splitrpc_socket::{Events, Interest, Poller, pin_current_thread};
use splitrpc_telemetry::{Event, Shard as Telemetry};

use super::reach::{self, Served, Shown};
use super::shows::{DeviceSlots, OnDevice, Shows, ToldWay};
use super::visit::Visit;
use super::{CardError, CardLink};
use crate::orchestrator::Orchestrator;

/// Things that the progress engine goes on with in one round.
const PROGRESS: usize = 64;
/// How long it may take to tell a card that the agent sleeps.
const TELL: u64 = MS;
/// How often counters are handed over while something happens.
const PUBLISH: u64 = 100 * MS;
/// How long a card may be silent that shows each second that it lives, and how often the agent looks at least.
const SILENCE: u64 = 5 * SEC;
const LOOK: u64 = 2 * SEC;
/// How soon a card is looked for again: at first, and at most.
const AGAIN: core::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(1);
/// The poller's names.
const WAKER: u64 = 0;
const DOOR: u64 = 1;

/// Hears where the card listens, once it serves, and nothing when it is gone.
pub type Told = Box<dyn Fn(Option<&Ready>) + Send>;

/// What the thread is made of.
pub struct Parts {
    /// Where the tensors lie.
    pub arena: Arena,
    /// Decides and answers.
    pub orchestrator: Orchestrator<'static, ()>,
    /// Rouses the thread.
    pub waker: Waker,
    /// How it runs.
    pub config: DataThreadConfig,
    /// Its measurements.
    pub telemetry: Arc<Telemetry>,
    /// Hears whether there is a card that serves.
    pub told: Told,
    /// What a device has of the slots.
    pub device: Option<Box<dyn DeviceSlots>>,
    /// Hears how requests come there, each time that this changes.
    pub told_way: ToldWay,
}

/// The thread's own.
struct Thread {
    arena: Arena,
    orchestrator: Orchestrator<'static, CardLink>,
    waker: Waker,
    config: DataThreadConfig,
    telemetry: Arc<Telemetry>,
    told: Told,
    served: Served,
    shows: Option<Shows>,
    device: Device,
    door: Option<UdpSocket>,
    poller: Poller,
    events: Events,
    stop: Stop,
    start: Instant,
    next_publish: Time,
    unpublished: bool,
}

/// A card that serves.
struct Card {
    engine: ProgressEngine,
    client: Client,
    connection: Connection,
    heard: Time,
    /// Since when the agent is to end, and whether the card was asked to.
    ending: Option<Time>,
    asked: bool,
    _shown: Shown,
}

/// Starts the thread. It looks for a card, serves with it, and looks again when that is gone, until it is told to end.
///
/// # Errors
/// [`CardError`] where there can be no card here.
pub fn start(
    parts: Parts,
    config: &crate::config::Config,
    plan: &crate::plan::Plan,
    models: &[splitrpc_engine::ModelPlan<'_>],
    catalog: &[u8],
) -> Result<(Stop, JoinHandle<()>), CardError> {
    let served = Served::new(config, plan, models, catalog);
    let stop = Stop::new(parts.waker.clone());
    let (nic, told) = (config.nic.clone(), stop.clone());
    let (opened, wait) = std::sync::mpsc::sync_channel(1);
    let run = move || {
        // What belongs to a device stays on its thread.
        match Thread::open(parts, served, &nic, told) {
            Ok(mut thread) => {
                let _ = opened.send(Ok(()));
                thread.run();
            }
            Err(error) => drop(opened.send(Err(error))),
        }
    };
    let kernel = |error: std::io::Error| CardError::NoCard(format!("data thread: {error}"));
    let thread = std::thread::Builder::new().name("data-0".into()).spawn(run).map_err(kernel)?;
    match wait.recv() {
        Ok(Ok(())) => Ok((stop, thread)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(CardError::NoCard("the data thread has ended".to_owned())),
    }
}

impl Thread {
    fn open(parts: Parts, served: Served, nic: &crate::config::Nic, stop: Stop) -> Result<Thread, CardError> {
        let library = Library::load(nic.libraries.as_deref())?;
        let device = reach::open(&library, nic)?;
        let door = reach::doorbell(nic.doorbell, library.is_emulated())?;
        let kernel = |error: std::io::Error| CardError::NoCard(format!("data thread: {error}"));
        let poller = Poller::new().map_err(kernel)?;
        poller.add(&parts.waker, WAKER, Interest::READ).map_err(kernel)?;
        if let Some(door) = &door {
            poller.add(door, DOOR, Interest::READ).map_err(kernel)?;
        }
        tracing::info!(
            device = device.info().address,
            doca = library.version(),
            emulated = library.is_emulated(),
            "card's device opened"
        );
        let Parts { arena, orchestrator, waker, config, telemetry, told, device: slots, told_way } = parts;
        let mut shows = Shows::new(nic.gpu_memory, slots, told_way)?;
        // What cannot be had is found out now, and not when a card comes.
        shows.as_mut().map(|shows| shows.show(&device)).transpose()?;
        Ok(Thread {
            arena,
            orchestrator: orchestrator.with_link(CardLink::default()),
            waker,
            config,
            telemetry,
            told,
            served,
            shows,
            device,
            door,
            poller,
            events: Events::with_capacity(4),
            stop,
            start: Instant::now(),
            next_publish: Time::default(),
            unpublished: true,
        })
    }

    fn run(&mut self) {
        if let Some(core) = self.config.core
            && let Err(error) = pin_current_thread(core)
        {
            tracing::warn!(core, %error, "the data thread cannot be bound to its core");
        }
        let mut again = *AGAIN.start();
        let mut said = String::new();
        while !self.stop.is_told() {
            match self.visit() {
                Ok(Some((mut card, ready))) => {
                    (self.told)(Some(&ready));
                    let why = self.serve(&mut card);
                    (self.told)(None);
                    tracing::warn!(why, "the card is lost");
                    self.part(card);
                    (again, said) = (*AGAIN.start(), String::new());
                }
                Ok(None) => {}
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::error!(error, "there is no card to serve with; trying again");
                        said = error;
                    }
                }
            }
            self.rest(again);
            again = (2 * again).min(*AGAIN.end());
        }
        self.publish(self.now());
    }

    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Looks for a card and has it serve.
    fn visit(&mut self) -> Result<Option<(Card, Ready)>, CardError> {
        let told = self.stop.clone();
        let stop = move || told.is_told();
        let Some(mut visit) = Visit::begin(&self.device, &stop)? else { return Ok(None) };
        let version = visit.greet(env!("CARGO_PKG_VERSION"), &stop)?;
        let local = |door: &UdpSocket| door.local_addr().ok();
        let doorbell: Option<SocketAddr> = self.door.as_ref().and_then(local);
        let on_device = match &mut self.shows {
            Some(shows) => shows.show(&self.device)?,
            None => OnDevice::default(),
        };
        let (setup, shown) = reach::show(&self.device, &self.arena, &self.served, doorbell, on_device)?;
        let (ready, producer) = match (visit.set_up(&setup, &stop), &mut self.shows) {
            (Err(CardError::Unreached(why)), Some(shows)) => {
                shows.unreached(why)?;
                return Ok(None);
            }
            (answer, _) => answer?,
        };
        tracing::info!(
            version,
            tcp = ready.tcp.map(|at| at.to_string()),
            udp = ready.udp.map(|at| at.to_string()),
            emulated = ready.emulated,
            "the card serves"
        );
        let submissions = Consumer::new(shown.ring.clone()).expect("it was made so large");
        self.orchestrator.link().join(submissions, producer);
        let Visit { engine, client, connection, .. } = visit;
        let card = Card { engine, client, connection, heard: self.now(), ending: None, asked: false, _shown: shown };
        Ok(Some((card, ready)))
    }

    /// Serves until the card is lost, or the agent is told to end and all is done. Returns why.
    fn serve(&mut self, card: &mut Card) -> String {
        let spin = self.config.wait.spin_ns();
        let mut active = self.now();
        let mut looked = active;
        loop {
            let now = self.now();
            // Who did not look, because it was stopped, say, cannot tell how long the card was silent.
            if now.since(looked) > 2 * LOOK {
                card.heard = now;
            }
            looked = now;
            let mut moved = false;
            for _ in 0..PROGRESS {
                if !card.engine.progress() {
                    break;
                }
                moved = true;
            }
            let progressed = moved;
            moved |= self.orchestrator.poll(now);
            if (progressed || card.client.has_notices() || now >= card.heard + SEC)
                && let Err(why) = card.hear(now)
            {
                return why;
            }
            if let Some(why) = self.orchestrator.link().broken() {
                return why.to_owned();
            }
            if self.stop.is_told() && self.ending(card, now) {
                return "the agent was told to end".to_owned();
            }
            if moved {
                active = self.now();
                self.unpublished = true;
            }
            if self.unpublished && self.next_publish <= now {
                self.publish(now);
            }
            if now.since(active) < spin {
                // Not while something is to be said that others wait for, perhaps on this core.
                if self.config.crowded && !self.orchestrator.link().is_busy() {
                    std::thread::yield_now();
                }
            } else if !moved && self.sleep(card) {
                active = self.now();
            }
        }
    }

    /// Sleeps until something comes or is due. Returns whether it has slept, or has found something.
    fn sleep(&mut self, card: &mut Card) -> bool {
        // What is said gets there only while the engine is driven.
        if self.orchestrator.link().is_busy() || card.client.in_flight() > 0 {
            return false;
        }
        self.waker.announce_sleep();
        // A card that does not know rouses nobody, and one without a doorbell never can.
        let sleeps = Tells::Sleeps { wants_slots: self.orchestrator.wants_outputs() };
        let tells = self.door.is_some() && self.orchestrator.link().tell(sleeps);
        let end = self.now() + TELL;
        while self.orchestrator.link().is_busy() && self.now() < end {
            card.engine.progress();
        }
        // What was written before the card heard is here, or will be rung for; by one that has not heard, whatever kept it from that, it will not.
        let now = self.now();
        let unheard = self.orchestrator.link().is_busy();
        if card.client.has_notices() || self.orchestrator.poll(now) || !tells || unheard {
            self.waker.awake();
            return tells;
        }
        let now = self.now();
        let mut until = (card.heard + LOOK).max(now + SEC);
        until = until.min(self.orchestrator.next_deadline(now).unwrap_or(Time::NEVER));
        if self.unpublished {
            until = until.min(self.next_publish);
        }
        if self.stop.is_told() {
            until = until.min(now + 5 * MS);
        }
        let timeout = Duration::from_nanos(until.since(now));
        if let Err(error) = self.poller.wait(&mut self.events, Some(timeout)) {
            tracing::error!(%error, "the data thread cannot wait for its doorbell");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.waker.awake();
        let knocked = self.events.iter().any(|event| event.token == DOOR);
        if knocked {
            // What it was roused for comes before all else.
            self.orchestrator.poll(self.now());
            let link = self.orchestrator.link();
            // What it answers tells that as well.
            if !link.is_busy() {
                link.tell(Tells::Awake);
            }
            for _ in 0..PROGRESS {
                if !self.orchestrator.link().is_busy() || !card.engine.progress() {
                    break;
                }
            }
            self.open_door();
        }
        if self.events.iter().any(|event| event.token == WAKER) {
            self.waker.drain();
        }
        self.telemetry.count(Event::Wakeups, 1);
        true
    }

    /// Forgets who knocked.
    fn open_door(&self) {
        let mut bytes = [0; 16];
        // As many as a round may take, so that nobody can hold the thread by knocking.
        for _ in 0..PROGRESS {
            if self.door.as_ref().is_none_or(|door| door.recv(&mut bytes).is_err()) {
                break;
            }
        }
    }

    /// Has the card finish what it has. Returns whether all is done, or the time for it is up.
    fn ending(&mut self, card: &mut Card, now: Time) -> bool {
        let drain = u64::try_from(self.config.drain.as_nanos()).unwrap_or(u64::MAX);
        let since = *card.ending.get_or_insert_with(|| {
            self.orchestrator.drain();
            now
        });
        if !card.asked {
            let bye = Message::Bye { why: "the host agent was told to end" };
            card.asked = card.client.send(&card.connection, &bye.to_bytes()).is_ok();
        }
        now.since(since) > drain
    }

    /// The card is gone. What it had submitted is computed to its end, and answered to nobody; then its slots are free.
    fn part(&mut self, card: Card) {
        self.orchestrator.link().part();
        // What it can reach ends here.
        drop(card);
        let mut told = false;
        loop {
            let now = self.now();
            let moved = self.orchestrator.poll(now);
            if self.orchestrator.is_idle() {
                break;
            }
            if !moved {
                if !told {
                    told = true;
                    tracing::info!("waiting for what the lost card had submitted");
                }
                self.rest(Duration::from_micros(200));
            }
        }
        self.orchestrator.begin_again();
        self.publish(self.now());
    }

    /// Waits, unless it is roused.
    fn rest(&mut self, long: Duration) {
        self.waker.announce_sleep();
        if !self.stop.is_told() && self.poller.wait(&mut self.events, Some(long)).is_err() {
            std::thread::sleep(long);
        }
        self.waker.awake();
        self.waker.drain();
        self.open_door();
    }

    fn publish(&mut self, now: Time) {
        self.orchestrator.publish();
        self.unpublished = false;
        self.next_publish = now + PUBLISH;
    }
}

impl Card {
    /// Hears what the card says beside the link.
    fn hear(&mut self, now: Time) -> Result<(), String> {
        let mut over = None;
        let mut answers = Vec::new();
        let (heard, asked) = (&mut self.heard, self.asked);
        self.client.notices(|notice| {
            if let Notice::Message(_, bytes) = notice {
                *heard = now;
                match Message::parse(bytes) {
                    Ok(Message::Beat { count, answer: false }) => answers.push(count),
                    Ok(Message::Beat { .. }) => {}
                    Ok(Message::Bye { .. }) if asked => over = Some("the card has finished".to_owned()),
                    Ok(Message::Bye { why }) => over = Some(format!("it ends: {why}")),
                    Ok(Message::Refused { why }) => over = Some(format!("it refuses: {why}")),
                    _ => over = Some("it said something that makes no sense here".to_owned()),
                }
            }
        });
        for count in answers {
            let _ = self.client.send(&self.connection, &Message::Beat { count, answer: true }.to_bytes());
        }
        if self.client.connection().is_none() {
            over.get_or_insert_with(|| "the connection has ended".to_owned());
        }
        if now.since(self.heard) > SILENCE {
            over.get_or_insert_with(|| "it has been silent for five seconds".to_owned());
        }
        over.map_or(Ok(()), Err)
    }
}
