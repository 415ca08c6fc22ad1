//! The smallest host that answers: null and echo, optionally holding requests back.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nic_app::{Arrival, Host, Waker};
use splitrpc_arena::{Arena, META_BYTES, PoolLayout, SlotAllocator, SlotEntry, bytes_copied_by_this_thread};
use splitrpc_engine::Time;
use splitrpc_ring::{Completion, HostLink, InProcessHost, RequestKey, Run, Submission};
use splitrpc_wire::{DType, Manifest, ManifestWriter, Path, Shape, Status, StatusPayload, TensorDesc};

use super::NULL;
use super::client::Client;

pub const NULL_BYTES: u32 = 4000;
/// Of payloads of so many bytes the host wants to know before they are whole.
const EARLY_BYTES: u32 = 50_000;

/// Holds requests back while it is closed.
#[derive(Clone, Debug)]
pub struct Hold {
    held: Arc<AtomicBool>,
    waiting: Arc<AtomicU64>,
    copied: Arc<AtomicU64>,
    /// Polls with something held after which it opens by itself.
    polls: Arc<AtomicU64>,
    /// Nanoseconds that each poll takes that does something.
    takes: Arc<AtomicU64>,
    /// What the host is told of before it is whole is held against what it was then.
    watches: Arc<AtomicBool>,
    visit: Arc<Mutex<Visit>>,
    waker: Waker,
}

/// A client that says hello while the thread ends.
#[derive(Debug, Default)]
struct Visit {
    server: Option<SocketAddr>,
    /// In the poll after so many.
    polls: u64,
    visitor: Option<Client>,
}

impl Hold {
    pub fn new(waker: Waker) -> Hold {
        Hold {
            held: Arc::default(),
            waiting: Arc::default(),
            copied: Arc::default(),
            polls: Arc::default(),
            takes: Arc::default(),
            watches: Arc::default(),
            visit: Arc::default(),
            waker,
        }
    }

    pub fn close(&self) {
        self.close_for_polls(u64::MAX);
    }

    /// Closes it for so many polls that find something to hold; the next one opens it, and nobody is roused for that.
    pub fn close_for_polls(&self, polls: u64) {
        self.polls.store(polls, Ordering::SeqCst);
        self.held.store(true, Ordering::SeqCst);
    }

    /// From now on what the host is told of before a request is whole has to be there already.
    pub fn watch(&self) {
        self.watches.store(true, Ordering::SeqCst);
    }

    /// From now on each poll takes so long in which the host does something.
    pub fn take_long(&self, takes: Duration) {
        self.takes.store(takes.as_nanos() as u64, Ordering::SeqCst);
    }

    fn poll(&self) {
        if self.held.load(Ordering::SeqCst) {
            let left = self.polls.load(Ordering::SeqCst);
            self.held.store(left > 0, Ordering::SeqCst);
            self.polls.store(left.saturating_sub(1), Ordering::SeqCst);
        }
    }

    /// Has a client say hello once so many polls are over since the host was told to drain.
    pub fn visit_after(&self, polls: u64, server: SocketAddr) {
        *self.visit.lock().unwrap() = Visit { server: Some(server), polls, visitor: None };
    }

    /// Who has said hello then.
    pub fn visitor(&self) -> Option<Client> {
        self.visit.lock().unwrap().visitor.take()
    }

    fn poll_draining(&self) {
        let mut visit = self.visit.lock().unwrap();
        match visit.polls.checked_sub(1) {
            Some(left) => visit.polls = left,
            None => visit.visitor = visit.server.take().map(Client::greet).or(visit.visitor.take()),
        }
    }

    pub fn open(&self) {
        self.held.store(false, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Requests that are being held.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Bytes that the data thread had copied through spans when it last polled the host.
    pub fn copied(&self) -> u64 {
        self.copied.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub struct TestHost {
    link: InProcessHost,
    arena: Arena,
    outputs: SlotAllocator<'static>,
    output_pool: u16,
    waiting: VecDeque<(RequestKey, Run, u16)>,
    hold: Hold,
    pattern: Vec<u8>,
    /// What was there when the host was told so, by request: tensor, first byte, bytes.
    arrived: HashMap<RequestKey, Vec<(u16, u32, Vec<u8>)>>,
    /// Bytes of which it was told before their request was whole.
    pub told: u64,
    /// Requests answered.
    pub answered: u64,
    pub cancelled: u64,
    /// The time that the last poll was told that did something.
    worked_at: Time,
    /// That time, and the one that was told when the host was next asked for its deadline.
    pub planned: Cell<(Time, Time)>,
    draining: bool,
}

impl TestHost {
    pub fn new(link: InProcessHost, arena: Arena, pool: (u16, PoolLayout), requests: usize, hold: Hold) -> TestHost {
        let pools = Box::leak(Box::new([pool]));
        let entries = vec![SlotEntry::default(); SlotAllocator::storage_len(pools)].leak();
        TestHost {
            link,
            arena,
            outputs: SlotAllocator::new(pools, entries).unwrap(),
            output_pool: pool.0,
            waiting: VecDeque::with_capacity(requests),
            hold,
            pattern: (0..NULL_BYTES).map(|i| i as u8).collect(),
            arrived: HashMap::new(),
            told: 0,
            answered: 0,
            cancelled: 0,
            worked_at: Time::default(),
            planned: Cell::default(),
            draining: false,
        }
    }

    fn answer(&mut self, request: RequestKey, input: Run, model: u16) {
        let mut meta = [0; META_BYTES as usize];
        self.arena.meta(input).unwrap().copy_to(&mut meta);
        let asked = Manifest::parse(&meta).unwrap();
        let mut manifest = ManifestWriter::with_path();
        manifest.set_path(&Path::default());
        let output = if model == NULL {
            let output = self.outputs.alloc(self.output_pool, 1).unwrap();
            self.arena.span(output, 0, 0, NULL_BYTES).unwrap().copy_from(&self.pattern);
            let shape = Shape::new(&[NULL_BYTES]).unwrap();
            manifest.push(&TensorDesc::fixed(0, DType::Uint8, shape).unwrap()).unwrap();
            output
        } else {
            asked.tensors().for_each(|t| manifest.push(&t).unwrap());
            input
        };
        self.arena.meta(output).unwrap().copy_from(manifest.finish());
        // A first tensor that begins with this byte makes the model fail.
        let mut first = [0];
        if model != NULL && self.arena.span(input, 0, 0, 1).unwrap().copy_to(&mut first) == 1 && first[0] == 0xEE {
            let mut text = [0; 256];
            let failure = StatusPayload { status: Status::ModelFailed, retry_after_us: 0, text: "as it was asked to" };
            let len = failure.write(&mut text);
            self.arena.meta(input).unwrap().copy_from(&text[..len]);
            self.link.complete(&Completion { request, status: Status::ModelFailed, output: Run::NONE }).unwrap();
            return;
        }
        self.answered += 1;
        self.link.complete(&Completion { request, status: Status::Ok, output }).unwrap();
    }
}

impl TestHost {
    /// What the host was told of a request was there, as it is now.
    fn hold_against(&mut self, request: RequestKey, input: Run) {
        for (tensor, offset, was) in self.arrived.remove(&request).unwrap_or_default() {
            let mut is = vec![0; was.len()];
            self.arena.span(input, tensor, offset, was.len() as u32).unwrap().copy_to(&mut is);
            assert!(is == was, "bytes {offset} to {} of tensor {tensor} were not there", offset as usize + was.len());
        }
    }
}

impl Host for TestHost {
    fn publish(&self) {}

    fn early_bytes(&self) -> u32 {
        EARLY_BYTES
    }

    fn arriving(&mut self, arrival: &Arrival) {
        let Arrival { request, run, tensor, offset, len } = *arrival;
        self.told += u64::from(len);
        if self.hold.watches.load(Ordering::SeqCst) {
            let mut bytes = vec![0; len as usize];
            self.arena.span(run, tensor, offset, len).unwrap().copy_to(&mut bytes);
            self.arrived.entry(request).or_default().push((tensor, offset, bytes));
        }
    }

    fn poll(&mut self, now: Time) -> bool {
        let mut worked = false;
        if self.draining {
            self.hold.poll_draining();
        }
        self.hold.copied.store(bytes_copied_by_this_thread(), Ordering::SeqCst);
        while let Some(submission) = self.link.submission() {
            worked = true;
            match submission {
                Submission::Submit { request, input, model, .. } => {
                    self.hold_against(request, input);
                    self.waiting.push_back((request, input, model));
                }
                Submission::Release { output } => self.outputs.free(output).unwrap(),
                // Completed all the same, when its turn comes.
                Submission::Cancel { .. } => self.cancelled += 1,
            }
        }
        if !self.waiting.is_empty() {
            self.hold.poll();
        }
        if !self.hold.held.load(Ordering::SeqCst) {
            while let Some((request, input, model)) = self.waiting.pop_front() {
                worked = true;
                self.answer(request, input, model);
            }
        }
        self.hold.waiting.store(self.waiting.len() as u64, Ordering::SeqCst);
        if worked {
            self.worked_at = now;
            std::thread::sleep(Duration::from_nanos(self.hold.takes.load(Ordering::SeqCst)));
        }
        worked
    }

    fn next_deadline(&self, now: Time) -> Option<Time> {
        if self.planned.get().0 != self.worked_at {
            self.planned.set((self.worked_at, now));
        }
        None
    }

    fn drain(&mut self) {
        self.draining = true;
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}
