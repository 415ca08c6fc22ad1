//! The host on the other side of PCIe, as the engine's thread sees it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use splitrpc_arena::{Arena, META_BYTES, Run};
use splitrpc_doca::{Consumer, Lines, Notice, ProgressEngine, Server};
use splitrpc_engine::{MS, SEC, Time, US};
use splitrpc_ring::{
    Completion, DESCRIPTOR_WORDS, Faults, Full, Immediate, NicLink, RequestKey, Submission, Tells, seal,
};
use splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
use splitrpc_wire::{MAX_STATUS_TEXT, Manifest, Path, Stage, Status, StatusPayload};

use super::bell::Bell;
use super::carrier::{Carrier, Piece, Way};
use super::flight::{Flight, NONE, State};
use super::greeting::say;
use super::status::Loss;
use crate::arrivals::Arrival;
use crate::completion::{Meta, copy_manifest};
use crate::settings::{Host, Stop};
use crate::setup::{Message, TAKEN};

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
    fn submit(&mut self, submission: &Submission) -> Result<(), Full> {
        let is_request = matches!(submission, Submission::Submit { .. });
        if self.lost.is_some() && !is_request {
            return Ok(());
        }
        if self.outgoing.len() == self.outgoing.capacity() {
            return Err(Full);
        }
        match *submission {
            Submission::Submit { request, input, .. } => return self.take_off(submission, request, input),
            Submission::Cancel { request } => {
                let ticket = self.ticket(request);
                match ticket.map(|ticket| &mut self.flights[ticket as usize]) {
                    Some(flight) if matches!(flight.state, State::Copying | State::Copied) => flight.cancelled = true,
                    _ => self.outgoing.push_back(Outgoing::Cancel(submission.to_words())),
                }
            }
            Submission::Release { .. } => self.outgoing.push_back(Outgoing::Release(submission.to_words())),
        }
        Ok(())
    }

    /// A request is complete in its slots here.
    fn take_off(&mut self, submission: &Submission, request: RequestKey, input: Run) -> Result<(), Full> {
        let ticket = self.board(request, input).ok_or(Full)?;
        self.early.retain(|early| *early != ticket);
        let (arena, meta) = (&self.arena, &mut self.meta);
        meta[..MANIFEST_HEAD_LEN].fill(0);
        if let Some(area) = arena.meta(input) {
            copy_manifest(area, meta);
        }
        let flight = &mut self.flights[ticket as usize];
        (flight.state, flight.submission, flight.submitted) = (State::Copying, *submission, self.now);
        if let Submission::Submit { on_device, .. } = &mut flight.submission {
            *on_device = self.reach.carrier.is_on_device(input.pool);
        }
        let known = Manifest::parse(&**meta).is_ok_and(|manifest| flight.complete(arena, &manifest));
        if self.lost.is_some() {
            self.land(ticket, Status::ConnectionLost, GONE);
        } else if known {
            self.work.push_back(ticket);
            self.pump();
        } else {
            self.land(ticket, Status::Internal, "the request's manifest does not describe its slots");
        }
        Ok(())
    }

    /// Some of a request is here.
    fn arriving(&mut self, arrival: &Arrival) {
        let Arrival { request, run, tensor, offset, len } = *arrival;
        if self.lost.is_some() {
            return;
        }
        let known = self.ticket(request).is_some();
        let Some(ticket) = self.board(request, run) else { return };
        let flight = &mut self.flights[ticket as usize];
        if flight.state != State::Early {
            return;
        }
        if !known {
            self.early.push(ticket);
        }
        flight.arrived(&self.arena, tensor, offset, offset.saturating_add(len));
        self.pump_early(ticket);
    }

    /// The ticket of a request in these slots, which gets one if it has none. There is none while something of the slots' last request is under way.
    fn board(&mut self, request: RequestKey, input: Run) -> Option<u32> {
        if let Some(ticket) = self.ticket(request) {
            return Some(ticket);
        }
        let record = *self.tickets.get(request.index as usize)?;
        if record != NONE {
            self.abandon(record);
        }
        let mut index = 0;
        while let Some(&ticket) = self.early.get(index) {
            if self.flights[ticket as usize].overlaps(input) {
                self.abandon(ticket);
                if self.flights[ticket as usize].state == State::Abandoned {
                    return None;
                }
            } else {
                index += 1;
            }
        }
        let ticket = self.free.pop()?;
        self.flights[ticket as usize].begin(request, input);
        self.tickets[request.index as usize] = ticket;
        Some(ticket)
    }

    /// A request that was not submitted never will be.
    fn abandon(&mut self, ticket: u32) {
        let flight = &mut self.flights[ticket as usize];
        let index = flight.request.index as usize;
        if self.tickets[index] == ticket {
            self.tickets[index] = NONE;
        }
        if flight.pending > 0 {
            flight.state = State::Abandoned;
        } else {
            self.release(ticket);
        }
    }

    fn release(&mut self, ticket: u32) {
        let index = self.flights[ticket as usize].request.index as usize;
        if self.tickets[index] == ticket {
            self.tickets[index] = NONE;
        }
        self.early.retain(|early| *early != ticket);
        // Where it still stands among those with work, nothing of it is to be begun.
        self.flights[ticket as usize] = Flight::FREE;
        self.free.push(ticket);
    }

    fn ticket(&self, request: RequestKey) -> Option<u32> {
        let ticket = *self.tickets.get(request.index as usize)?;
        (ticket != NONE && self.flights[ticket as usize].request == request).then_some(ticket)
    }

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

    /// Writes submissions to the host's ring, as many as it has places for.
    fn write(&mut self) -> Result<(), Loss> {
        while self.reach.carrier.has_room()
            && self.written - self.taken < self.ring
            && let Some(outgoing) = self.outgoing.pop_front()
        {
            let words = match outgoing {
                Outgoing::Cancel(words) | Outgoing::Release(words) => words,
                Outgoing::Request(ticket) => {
                    let flight = &mut self.flights[ticket as usize];
                    if flight.cancelled {
                        self.land(ticket, Status::Cancelled, "");
                        continue;
                    }
                    flight.state = State::Submitted;
                    flight.submission.less_time(flight.copy_in).to_words()
                }
            };
            let line = (self.written % self.ring) as usize;
            for (to, word) in self.reach.lines.as_ref()[line].words().iter().zip(seal(self.written, &words)) {
                to.store(word, std::sync::atomic::Ordering::Relaxed);
            }
            self.written += 1;
            if !matches!(outgoing, Outgoing::Release(_)) {
                self.rousing = self.written;
            }
            self.lines += 1;
            let piece =
                Piece { way: Way::ToRing, offset: Lines::offset(line), len: Lines::offset(1) as u32, tag: LINE };
            self.reach.carrier.begin(piece)?;
        }
        if !self.outgoing.is_empty() && self.written - self.taken == self.ring && self.lines == 0 {
            // However little it cares for what is there, it has to make room.
            self.reach.bell.ring(self.now);
        }
        Ok(())
    }

    /// Rings for a host that sleeps and has not taken what it wants to be roused for.
    fn rouse(&mut self) {
        let wanted = if self.reach.bell.wants_slots() { self.written } else { self.rousing };
        if wanted > self.taken {
            self.reach.bell.ring(self.now);
        }
    }

    /// The host has told something.
    fn told(&mut self, immediate: &Immediate) {
        self.heard = self.now;
        let taken = self.taken + u64::from(immediate.taken.wrapping_sub(self.taken as u32));
        if taken > self.written {
            self.faults.bad_head += 1;
        } else {
            self.taken = taken;
        }
        self.reach.bell.heard();
        match immediate.tells {
            Tells::Completion(completion) => self.completed(&completion),
            Tells::Awake => {}
            Tells::Sleeps { wants_slots } => {
                self.reach.bell.sleeps(wants_slots);
                // What it has not taken and is not under way either was written while it fell asleep.
                if self.lines == 0 {
                    self.rouse();
                }
            }
        }
    }

    /// The host has answered a request.
    fn completed(&mut self, completion: &Completion) {
        let ticket = self.ticket(completion.request);
        let Some(ticket) = ticket.filter(|ticket| self.flights[*ticket as usize].state == State::Submitted) else {
            self.faults.malformed += 1;
            return;
        };
        let flight = &mut self.flights[ticket as usize];
        (flight.completion, flight.answered, flight.state) = (*completion, self.now, State::Head);
        let ok = completion.status == Status::Ok;
        if ok && completion.output.pool <= self.last_input && completion.output != flight.input {
            // Those are another request's, or nobody's: the engine says so.
            self.faults.malformed += 1;
            return self.deliver(ticket);
        }
        let (run, len) = if ok { (completion.output, META_BYTES) } else { (flight.input, STATUS_LEN) };
        if flight.bring_head(&self.arena, run, len) {
            self.work.push_back(ticket);
        } else {
            self.deliver(ticket);
        }
    }

    /// What the host says of its answer is here.
    fn head_here(&mut self, ticket: u32) {
        let Completion { status, output, .. } = self.flights[ticket as usize].completion;
        if status != Status::Ok {
            return self.deliver(ticket);
        }
        self.look_at_manifest(output);
        let flight = &mut self.flights[ticket as usize];
        let sound =
            Manifest::parse(&*self.meta).is_ok_and(|manifest| flight.bring_body(&self.arena, output, &manifest));
        flight.state = State::Body;
        if sound && flight.has_more() {
            self.work.push_back(ticket);
        } else {
            // Of one that makes no sense, the engine says so.
            self.answer_here(ticket);
        }
    }

    /// The last of an answer's tensors is here.
    fn body_here(&mut self, ticket: u32) {
        // While they came, others' manifests may have been looked at.
        self.look_at_manifest(self.flights[ticket as usize].completion.output);
        self.answer_here(ticket);
    }

    /// The whole answer is here, and its manifest was looked at last: the card's own stages are added to what it says of itself.
    fn answer_here(&mut self, ticket: u32) {
        let flight = &self.flights[ticket as usize];
        let meta = self.arena.meta(flight.completion.output);
        if let Some(meta) = meta.and_then(|meta| meta.slice(MANIFEST_HEAD_LEN, splitrpc_wire::path::PATH_LEN))
            && Manifest::parse(&*self.meta).is_ok_and(|manifest| manifest.path().is_some())
            && let Ok(mut path) = Path::parse(&self.meta[MANIFEST_HEAD_LEN..][..splitrpc_wire::path::PATH_LEN])
        {
            let out = u64::from(path.stage(Stage::CopyOut)) + self.now.since(flight.answered);
            path.set_stage(Stage::Place, flight.copy_in);
            path.set_stage(Stage::CopyOut, out);
            meta.copy_from(&path.to_bytes());
        }
        self.deliver(ticket);
    }

    /// Copies the manifest beside these slots to where it can be parsed.
    fn look_at_manifest(&mut self, run: Run) {
        self.meta[..MANIFEST_HEAD_LEN].fill(0);
        if let Some(meta) = self.arena.meta(run) {
            copy_manifest(meta, &mut self.meta);
        }
    }

    fn deliver(&mut self, ticket: u32) {
        self.completions.push_back(self.flights[ticket as usize].completion);
        self.release(ticket);
    }

    /// Answers a request in the host's stead.
    fn land(&mut self, ticket: u32, status: Status, text: &str) {
        let Flight { request, input, .. } = self.flights[ticket as usize];
        if let Some(meta) = self.arena.meta(input) {
            let mut bytes = [0; STATUS_LEN as usize];
            let len = StatusPayload { status, retry_after_us: 0, text }.write(&mut bytes);
            meta.copy_from(&bytes[..len]);
        }
        self.flights[ticket as usize].completion = Completion { request, status, output: Run::NONE };
        self.deliver(ticket);
    }

    /// Hears what the host says beside the link, and shows it that the card lives.
    fn hear(&mut self) -> Result<(), Loss> {
        let Inner { reach: Reach { server, connection, bell, .. }, now, heard, beat, beats, .. } = self;
        let (mut over, mut parting) = (None, false);
        let mut answers = heapless::Vec::<u32, 4>::new();
        let mut strangers = Vec::new();
        server.notices(|notice| match notice {
            Notice::Disconnected(gone) if gone == *connection => over = Some(Loss::Gone),
            Notice::Message(from, bytes) if from == *connection => {
                *heard = *now;
                match Message::parse(bytes) {
                    Ok(Message::Beat { count, answer: false }) => drop(answers.push(count)),
                    // That it was awake then does not say that it is now.
                    Ok(Message::Beat { .. }) => {}
                    Ok(Message::Bye { .. }) => parting = true,
                    _ => over = Some(Loss::Strange),
                }
            }
            Notice::Message(from, _) => strangers.push(from),
            _ => {}
        });
        for stranger in strangers {
            let _ = server.send(&stranger, &Message::Refused { why: TAKEN }.to_bytes());
        }
        for count in answers {
            let _ = server.send(connection, &Message::Beat { count, answer: true }.to_bytes());
        }
        if *beat <= *now {
            (*beat, *beats) = (*now + BEAT, beats.wrapping_add(1));
            let said = server.send(connection, &Message::Beat { count: *beats, answer: false }.to_bytes());
            if said.is_ok() {
                bell.ring(*now);
            }
            if now.since(*heard) > SILENCE {
                over = Some(Loss::Silent);
            }
        }
        if parting {
            // What is under way is finished first.
            tracing::info!("the host agent ends");
            self.stop.iter().for_each(Stop::stop);
        }
        over.map_or(Ok(()), Err)
    }

    /// Nothing more comes from the host: all that it has is answered in its stead.
    fn lose(&mut self, why: Loss) {
        if self.lost.is_some() {
            return;
        }
        tracing::warn!(%why, "the host agent is lost");
        self.lost = Some(why);
        self.work.clear();
        self.outgoing.clear();
        for ticket in 0..self.flights.len() as u32 {
            match self.flights[ticket as usize].state {
                State::Free => {}
                State::Early | State::Abandoned => self.release(ticket),
                _ => self.land(ticket, Status::ConnectionLost, GONE),
            }
        }
        self.stop.iter().for_each(Stop::stop);
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
