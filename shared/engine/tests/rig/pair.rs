//! A client and a server over a wire that the test governs; the orchestrator answers by itself.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use splitrpc_engine::{
    Client, ClientConfig, ClientEvent, ClientVerdict, MS, Peer, RequestSpec, SEC, ServerConfig, Time, Verdict,
};
use splitrpc_ring::{RequestKey, Run, Submission};
use splitrpc_wire::{Header, Kind, Manifest, Status};

use super::common::ClientMemory;
use super::{Ask, Rig, addr, response, serve};

/// A frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub up: bool,
    pub at: Time,
    pub header: Header,
    pub len: usize,
    /// Counts the frames of this direction.
    pub number: u64,
}

pub fn client_config() -> ClientConfig {
    ClientConfig { datagram: 1472, receive_window: 256 << 10, silence_limit: 5 * SEC, ..ClientConfig::default() }
}

/// What the orchestrator does with a request: how long it takes, and how many bytes it answers, or that it fails.
pub type Model = Box<dyn FnMut(u64) -> (u64, Result<u32, Status>)>;
/// Whether a frame is lost.
pub type Wire = Box<dyn FnMut(&Way) -> bool>;

struct Flying {
    up: bool,
    header: Header,
    head: Vec<u8>,
}

pub struct Pair<'r, 'a> {
    pub rig: &'r mut Rig<'a>,
    pub client: Client<ClientMemory>,
    pub wire: Wire,
    pub model: Model,
    pub delay: u64,
    flying: BinaryHeap<Reverse<(u64, u64)>>,
    frames: HashMap<u64, Flying>,
    counts: [u64; 2],
    order: u64,
    jobs: Vec<(Time, RequestKey, Result<u32, Status>)>,
    submitted: u64,
    pub events: Vec<ClientEvent>,
    /// Every frame sent, lost or not.
    pub log: Vec<Way>,
}

/// Runs `test` with a client that is connected; nothing is lost, and every answer is 4,000 bytes at once.
pub fn pair<R>(server: &ServerConfig, client: &ClientConfig, test: impl FnOnce(&mut Pair<'_, '_>) -> R) -> R {
    serve(server, |rig| {
        let client = Client::new(rig.now, client, ClientMemory::new(8, 256), 5).unwrap();
        let mut pair = Pair {
            rig,
            client,
            wire: Box::new(|_| false),
            model: Box::new(|_| (0, Ok(4000))),
            delay: 50_000,
            flying: BinaryHeap::new(),
            frames: HashMap::new(),
            counts: [0; 2],
            order: 0,
            jobs: Vec::new(),
            submitted: 0,
            events: Vec::new(),
            log: Vec::new(),
        };
        pair.run(MS);
        assert!(matches!(pair.events[..], [ClientEvent::Connected(_)]), "{:?}", pair.events);
        pair.events.clear();
        test(&mut pair)
    })
}

impl Pair<'_, '_> {
    pub fn now(&self) -> Time {
        self.rig.now
    }

    pub fn ask(&mut self, ask: &Ask) -> RequestKey {
        self.try_ask(ask).unwrap()
    }

    pub fn try_ask(&mut self, ask: &Ask) -> Result<RequestKey, splitrpc_engine::SubmitError> {
        let spec = RequestSpec {
            model: ask.model,
            manifest: Manifest::parse(&ask.manifest).unwrap(),
            priority: ask.priority,
            deadline_us: ask.deadline_us,
            repeatable: false,
        };
        self.client.submit(self.rig.now, &spec)
    }

    /// Goes on for `nanos`.
    pub fn run(&mut self, nanos: u64) {
        let until = self.rig.now + nanos;
        self.run_while(until, |_| true);
        self.rig.now = until;
    }

    /// Goes on until `until` or as long as `more` says so.
    pub fn run_while(&mut self, until: Time, mut more: impl FnMut(&Self) -> bool) {
        let mut same = 0;
        loop {
            self.step();
            if !more(self) {
                return;
            }
            let arrival = self.flying.peek().map_or(Time::NEVER, |f| Time::from_nanos(f.0.0));
            let job = self.jobs.iter().map(|j| j.0).min().unwrap_or(Time::NEVER);
            let next = self.rig.server.next_timeout().min(self.client.next_timeout()).min(arrival).min(job);
            if next > until {
                return;
            }
            same = if next <= self.rig.now { same + 1 } else { 0 };
            assert!(same < 10_000, "time stands still");
            self.rig.now = self.rig.now.max(next);
        }
    }

    fn step(&mut self) {
        let now = self.rig.now;
        while self.flying.peek().is_some_and(|f| f.0.0 <= now.nanos()) {
            let Reverse((_, order)) = self.flying.pop().unwrap();
            self.arrive(order);
        }
        self.rig.server.handle_timeout(now);
        self.client.handle_timeout(now);
        while let Some(at) = self.jobs.iter().position(|j| j.0 <= now) {
            let (_, request, answer) = self.jobs.remove(at);
            match answer {
                Ok(bytes) => {
                    self.rig.answer(request, bytes);
                }
                Err(status) => self.rig.complete(request, status, Run::NONE, &response(0)),
            }
        }
        for submission in self.rig.submissions() {
            if let Submission::Submit { request, .. } = submission {
                let (after, answer) = (self.model)(self.submitted);
                self.submitted += 1;
                self.jobs.push((now + after, request, answer));
            }
        }
        for sent in self.rig.sent() {
            self.fly(false, sent.header, sent.head);
        }
        while let Some(transmit) = self.client.poll_transmit(now) {
            let (header, head) = (transmit.header, transmit.head.to_vec());
            self.fly(true, header, head);
        }
        self.take_events();
    }

    fn take_events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            self.events.push(event);
        }
    }

    fn fly(&mut self, up: bool, header: Header, head: Vec<u8>) {
        let number = self.counts[usize::from(up)];
        self.counts[usize::from(up)] += 1;
        let way = Way { up, at: self.rig.now, header, len: splitrpc_wire::HEADER_LEN + header.length as usize, number };
        self.log.push(way);
        if !(self.wire)(&way) {
            self.order += 1;
            self.flying.push(Reverse((self.rig.now.nanos() + self.delay, self.order)));
            self.frames.insert(self.order, Flying { up, header, head });
        }
    }

    fn arrive(&mut self, order: u64) {
        let Flying { up, header, head } = self.frames.remove(&order).unwrap();
        let now = self.rig.now;
        if up {
            if let Verdict::Place(placement) =
                self.rig.server.handle_frame(now, Peer::Datagram(addr(1)), &header, &head)
            {
                self.rig.place(&placement);
            }
        } else if let ClientVerdict::Place(placement) = self.client.handle_frame(now, &header, &head) {
            self.client.placed(now, &placement);
        }
        self.take_events();
    }

    /// How requests ended: answered, failed.
    pub fn ended(&self) -> (usize, Vec<Status>) {
        let answered = self.events.iter().filter(|e| matches!(e, ClientEvent::Response(_))).count();
        let failed = self.events.iter().filter_map(|e| match e {
            ClientEvent::Failed(_, status) | ClientEvent::Closed(status) => Some(*status),
            _ => None,
        });
        (answered, failed.collect())
    }
}

/// A wire that loses only what `lost` says of one direction and kind.
pub fn lose(up: bool, kind: Kind, mut lost: impl FnMut(&Way) -> bool + 'static) -> Wire {
    Box::new(move |way| way.up == up && way.header.kind == kind && lost(way))
}
