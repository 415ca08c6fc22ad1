//! The host on the other side of PCIe, as the engine's thread sees it.

mod answers;
mod link;
mod requests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use splitrpc_arena::{Arena, META_BYTES, Run};
use splitrpc_doca::{Consumer, Lines, ProgressEngine, Server};
use splitrpc_engine::{MS, SEC, Time, US};
use splitrpc_ring::{Completion, DESCRIPTOR_WORDS, Faults, Full, Immediate, NicLink, Submission};
use splitrpc_wire::{MAX_STATUS_TEXT, Status};

use super::bell::Bell;
use super::carrier::{Carrier, Piece, Way};
use super::flight::{Flight, NONE, State};
use super::greeting::say;
use super::status::Loss;
use crate::arrivals::Arrival;
use crate::completion::Meta;
use crate::settings::{Host, Stop};
use crate::setup::Message;

/// Payloads of at least so many bytes are copied while they arrive.
const EARLY: u32 = 128 << 10;
/// Bytes of what has arrived that are worth a copy of their own.
const EARLY_PIECE: u32 = 64 << 10;
/// Things that a progress engine goes on with in one poll, before anything else is looked at.
const PROGRESS: usize = 64;
/// How often that is looked at again while there is something.
const TURNS: usize = 4;
/// How soon a host that computes is asked for news: at first, and at most.
const LOOK: core::ops::RangeInclusive<u64> = 20 * US..=MS;
/// How often each side shows that it lives, and how long it may take to.
const BEAT: u64 = SEC;
const SILENCE: u64 = 5 * SEC;
/// What a copy of a line belongs to, in place of a request.
const LINE: u64 = u64::MAX;
/// Bytes of what is said of a failure.
const STATUS_LEN: u32 = 8 + MAX_STATUS_TEXT as u32;

/// Why nothing more comes from the host.
const GONE: &str = "the card has lost its host agent";
const NOT_CARRIED: &str = "the request could not be copied to the host";
const NOT_BROUGHT: &str = "the answer could not be copied from the host";

/// What crosses the link of its own accord, or for a request.
#[derive(Clone, Copy, Debug)]
enum Outgoing {
    Request(u32),
    Cancel([u64; DESCRIPTOR_WORDS]),
    Release([u64; DESCRIPTOR_WORDS]),
}

/// What the host is reached by. What depends on the connection goes before it does.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) carrier: Carrier,
    /// As many lines as the host's ring has entries.
    pub(super) lines: Lines,
    pub(super) bell: Bell,
    pub(super) consumer: Consumer,
    pub(super) connection: splitrpc_doca::Connection,
    pub(super) server: Server,
    pub(super) engine: ProgressEngine,
}

/// The host. Clones are the same: the data thread has one as its link and one as its host.
#[derive(Clone, Debug)]
pub struct Far {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Debug)]
struct Inner {
    reach: Reach,
    arena: Arena,
    flights: Box<[Flight]>,
    free: Vec<u32>,
    /// The ticket of each of the engine's records.
    tickets: Box<[u32]>,
    /// Those that are not submitted, or not any more, while something of them is under way.
    early: Vec<u32>,
    /// Those of which copies are yet to begin.
    work: VecDeque<u32>,
    outgoing: VecDeque<Outgoing>,
    completions: VecDeque<Completion>,
    /// Submissions written to the ring, all that ever were, and how many of them the host has taken.
    written: u64,
    taken: u64,
    /// How many had been written when the last was that rouses a host that wants no slots.
    rousing: u64,
    /// Lines under way.
    lines: u32,
    ring: u64,
    /// The last pool of inputs.
    last_input: u16,
    faults: Faults,
    now: Time,
    /// When it was last looked, when the host was last heard, and when something last came of it.
    looked: Time,
    heard: Time,
    news: Time,
    beat: Time,
    beats: u32,
    /// Why the host is lost.
    lost: Option<Loss>,
    stop: Option<Stop>,
    meta: Box<Meta>,
}

impl Far {
    /// The host that is reached so, whose ring has so many entries. The engine has at most so many requests, and the pools of their inputs end with
    /// that one.
    pub(super) fn new(reach: Reach, arena: &Arena, requests: u32, last_input: u16, ring: u32) -> Far {
        let tickets = 2 * requests;
        let inner = Inner {
            reach,
            arena: arena.clone(),
            flights: vec![Flight::FREE; tickets as usize].into(),
            free: (0..tickets).rev().collect(),
            tickets: vec![NONE; requests as usize].into(),
            early: Vec::with_capacity(tickets as usize),
            work: VecDeque::with_capacity(tickets as usize),
            outgoing: VecDeque::with_capacity(2 * tickets as usize),
            completions: VecDeque::with_capacity(tickets as usize),
            written: 0,
            taken: 0,
            rousing: 0,
            lines: 0,
            ring: ring.into(),
            last_input,
            faults: Faults::default(),
            now: Time::default(),
            looked: Time::default(),
            heard: Time::default(),
            news: Time::default(),
            beat: Time::default(),
            beats: 0,
            lost: None,
            stop: None,
            meta: Box::new([0; META_BYTES as usize]),
        };
        Far { inner: Rc::new(RefCell::new(inner)) }
    }

    /// What ends the data thread when the host is lost.
    pub(super) fn ends(&self, stop: Stop) {
        self.inner.borrow_mut().stop = Some(stop);
    }

    /// Why the host is lost, if it is.
    pub(super) fn lost(&self) -> Option<Loss> {
        self.inner.borrow().lost
    }

    /// Says something to the host, beside the link.
    pub(super) fn say(&self, message: &Message<'_>) {
        let Inner { reach: Reach { server, connection, engine, bell, .. }, now, .. } = &mut *self.inner.borrow_mut();
        say(engine, server, connection, &message.to_bytes());
        bell.ring(*now);
        for _ in 0..PROGRESS {
            engine.progress();
        }
    }
}

impl NicLink for Far {
    fn submit(&mut self, submission: &Submission) -> Result<(), Full> {
        self.inner.borrow_mut().submit(submission)
    }

    fn completion(&mut self) -> Option<Completion> {
        self.inner.borrow_mut().completions.pop_front()
    }

    fn faults(&self) -> Faults {
        self.inner.borrow().faults
    }
}

impl Host for Far {
    fn poll(&mut self, now: Time) -> bool {
        self.inner.borrow_mut().poll(now)
    }

    fn early_bytes(&self) -> u32 {
        EARLY
    }

    fn arriving(&mut self, arrival: &Arrival) {
        self.inner.borrow_mut().arriving(arrival);
    }

    fn has_news(&self) -> bool {
        self.inner.borrow().is_busy()
    }

    fn publish(&self) {}

    fn next_deadline(&self, _: Time) -> Option<Time> {
        Some(self.inner.borrow().next_look())
    }

    fn drain(&mut self) {}

    fn is_idle(&self) -> bool {
        self.inner.borrow().is_idle()
    }
}

impl Inner {
    fn poll(&mut self, now: Time) -> bool {
        self.now = now;
        if self.lost.is_some() {
            return false;
        }
        // Who did not look, because it was stopped, say, cannot tell how long the other side was silent.
        if self.looked == Time::default() || now.since(self.looked) > 2 * BEAT {
            (self.heard, self.beat) = (now, now + BEAT);
        }
        self.looked = now;
        let mut moved = false;
        // What has ended may let the next thing begin, and that be over at once.
        for _ in 0..TURNS {
            let mut turned = false;
            for _ in 0..PROGRESS {
                if !self.reach.engine.progress() {
                    break;
                }
                turned = true;
            }
            if let Err(why) = self.look(&mut turned) {
                self.lose(why);
                return true;
            }
            if !turned {
                break;
            }
            moved = true;
        }
        if moved {
            self.news = now;
        }
        moved
    }

    /// Deals with all that has come, and goes on with what is to be done.
    fn look(&mut self, moved: &mut bool) -> Result<(), Loss> {
        while let Some((piece, arrived)) = self.reach.carrier.ended()? {
            *moved = true;
            self.piece_ended(piece, arrived)?;
        }
        while let Some(immediate) = self.reach.consumer.take()? {
            *moved = true;
            match Immediate::from_bytes(immediate.as_bytes()) {
                Ok(immediate) => self.told(&immediate),
                Err(_) => self.faults.malformed += 1,
            }
        }
        if *moved || self.beat <= self.now {
            self.hear()?;
        }
        self.pump();
        self.write()?;
        self.reach.bell.remind(self.now);
        Ok(())
    }

    fn piece_ended(&mut self, piece: Piece, arrived: bool) -> Result<(), Loss> {
        if piece.tag == LINE {
            if !arrived {
                return Err(Loss::Copy);
            }
            self.lines -= 1;
            self.rouse();
            return Ok(());
        }
        let ticket = piece.tag as u32;
        let flight = &mut self.flights[ticket as usize];
        flight.pending -= 1;
        flight.failed |= !arrived;
        if flight.pending > 0 || (flight.has_more() && !flight.failed) {
            return Ok(());
        }
        match flight.state {
            State::Abandoned => self.release(ticket),
            State::Copying if flight.failed => self.land(ticket, Status::Internal, NOT_CARRIED),
            State::Copying if flight.cancelled => self.land(ticket, Status::Cancelled, ""),
            State::Copying => {
                flight.state = State::Copied;
                flight.copy_in = self.now.since(flight.submitted);
                self.outgoing.push_back(Outgoing::Request(ticket));
            }
            State::Head | State::Body if flight.failed => {
                let output = flight.completion.output;
                if output != Run::NONE && output != flight.input {
                    let release = Submission::Release { output };
                    self.outgoing.push_back(Outgoing::Release(release.to_words()));
                }
                self.land(ticket, Status::Internal, NOT_BROUGHT);
            }
            State::Head => self.head_here(ticket),
            State::Body => self.body_here(ticket),
            // An early one whose bytes did not arrive is tried once more when all of it is here.
            State::Early | State::Free | State::Submitted | State::Copied => {}
        }
        Ok(())
    }

    /// Begins copies, as many as there is room for.
    fn pump(&mut self) {
        while self.reach.carrier.has_room()
            && let Some(&ticket) = self.work.front()
        {
            let flight = &mut self.flights[ticket as usize];
            if flight.failed {
                self.work.pop_front();
                continue;
            }
            let back = matches!(flight.state, State::Head | State::Body);
            let way = if back { Way::FromHost } else { Way::ToHost };
            let Some((offset, len)) = flight.next_piece(self.reach.carrier.most()) else {
                self.work.pop_front();
                continue;
            };
            self.begin(Piece { way, offset, len, tag: ticket.into() });
        }
    }

    /// The same for a request that still arrives: what is worth while.
    fn pump_early(&mut self, ticket: u32) {
        while self.reach.carrier.has_room()
            && let Some((offset, len)) =
                self.flights[ticket as usize].next_early_piece(EARLY_PIECE, self.reach.carrier.most())
        {
            self.begin(Piece { way: Way::ToHost, offset, len, tag: ticket.into() });
        }
    }

    fn begin(&mut self, piece: Piece) {
        if let Err(error) = self.reach.carrier.begin(piece) {
            self.lose(error.into());
        }
    }

    /// Whether something is under way that only polling shows.
    fn is_busy(&self) -> bool {
        self.lost.is_none() && (!self.is_empty() || self.reach.carrier.is_busy())
    }

    fn is_idle(&self) -> bool {
        self.is_empty() && self.outgoing.is_empty() && self.completions.is_empty()
    }

    /// Whether there are no requests but those that still arrive, of which some never will.
    fn is_empty(&self) -> bool {
        self.free.len() + self.early.len() == self.flights.len()
    }

    fn next_look(&self) -> Time {
        if self.lost.is_some() {
            return Time::NEVER;
        }
        let said = self.reach.server.in_flight() > 0;
        let soon = said || self.reach.carrier.is_busy() || !self.completions.is_empty();
        let look = match self.is_busy() {
            _ if soon || (!self.outgoing.is_empty() && self.written - self.taken < self.ring) => self.now,
            true => self.now + (self.now.since(self.news) / 8).clamp(*LOOK.start(), *LOOK.end()),
            false => self.beat,
        };
        look.min(self.beat).min(self.reach.bell.next())
    }
}
