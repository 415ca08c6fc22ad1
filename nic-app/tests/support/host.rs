//! The smallest host that answers: null and echo, optionally holding requests back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nic_app::{Host, Waker};
use splitrpc_arena::{Arena, META_BYTES, PoolLayout, SlotAllocator, SlotEntry, bytes_copied_by_this_thread};
use splitrpc_engine::Time;
use splitrpc_ring::{Completion, HostLink, InProcessHost, RequestKey, Run, Submission};
use splitrpc_wire::{DType, Manifest, ManifestWriter, Path, Shape, Status, StatusPayload, TensorDesc};

use super::NULL;

pub const NULL_BYTES: u32 = 4000;

/// Holds requests back while it is closed.
#[derive(Clone, Debug)]
pub struct Hold {
    held: Arc<AtomicBool>,
    waiting: Arc<AtomicU64>,
    copied: Arc<AtomicU64>,
    waker: Waker,
}

impl Hold {
    pub fn new(waker: Waker) -> Hold {
        Hold { held: Arc::default(), waiting: Arc::default(), copied: Arc::default(), waker }
    }

    pub fn close(&self) {
        self.held.store(true, Ordering::SeqCst);
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
    /// Requests answered.
    pub answered: u64,
    pub cancelled: u64,
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
            answered: 0,
            cancelled: 0,
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

impl Host for TestHost {
    fn poll(&mut self, _now: Time) -> bool {
        let mut worked = false;
        self.hold.copied.store(bytes_copied_by_this_thread(), Ordering::SeqCst);
        while let Some(submission) = self.link.submission() {
            worked = true;
            match submission {
                Submission::Submit { request, input, model, .. } => self.waiting.push_back((request, input, model)),
                Submission::Release { output } => self.outputs.free(output).unwrap(),
                // Completed all the same, when its turn comes.
                Submission::Cancel { .. } => self.cancelled += 1,
            }
        }
        if !self.hold.held.load(Ordering::SeqCst) {
            while let Some((request, input, model)) = self.waiting.pop_front() {
                worked = true;
                self.answer(request, input, model);
            }
        }
        self.hold.waiting.store(self.waiting.len() as u64, Ordering::SeqCst);
        worked
    }

    fn next_deadline(&self, _now: Time) -> Option<Time> {
        None
    }

    fn drain(&mut self) {}

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}
