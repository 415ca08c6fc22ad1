//! One model's queue and launches on one shard.

use std::sync::Arc;

use splitrpc_engine::Time;
use splitrpc_telemetry::Event;
use splitrpc_wire::Status;

use super::admit::same_rows;
use super::desk::{Computed, Desk, State};
use super::queue::{Policy, Queue, Rank, Waiting};
use super::{Parts, Served};
use crate::model::spec::ModelSpec;
use crate::plan::ModelPools;
use crate::runtime::RuntimeError;
use crate::worker::{Instance, Job, Workers};

/// Who computes.
enum Exec {
    /// The data thread itself.
    Inline(Instance),
    /// Worker threads, `under_way` of which have a batch of this shard.
    Workers { workers: Arc<Workers>, under_way: usize },
}

pub(super) struct ModelState {
    handle: u16,
    shard: usize,
    served: Served,
    pools: ModelPools,
    policy: Policy,
    queue: Queue,
    exec: Exec,
    /// Jobs that are not under way.
    #[expect(clippy::vec_box, reason = "a job changes threads in its box")]
    jobs: Vec<Box<Job>>,
    /// Scratch: the batch that is being put together.
    batch: Vec<Waiting>,
    /// When to look at the queue again.
    look_at: Time,
    /// The last look found a batch and no output slots for it.
    wants_outputs: bool,
    /// The last look found a batch and no idle worker; the workers rouse this shard when there is one.
    wants_worker: bool,
    /// The last look found a batch and neither worker nor slots, so that requests were not taken up.
    blocked: bool,
    /// Since when it has not been so.
    unblocked: Time,
}

impl ModelState {
    pub(super) fn new(
        handle: u16,
        served: &Served,
        pools: &ModelPools,
        parts: &Parts<'_>,
    ) -> Result<ModelState, RuntimeError> {
        let spec = served.factory.spec();
        let policy = Policy::of(spec);
        let (exec, jobs) = match &served.workers {
            None => (Exec::Inline(Instance::new(&served.factory)?), 1),
            Some(workers) => {
                workers.set_waker(parts.shard, Arc::clone(&parts.waker));
                (Exec::Workers { workers: Arc::clone(workers), under_way: 0 }, workers.instances())
            }
        };
        let job = || Box::new(Job::new(parts.arena.clone(), parts.shard, policy.max_requests()));
        Ok(ModelState {
            handle,
            shard: parts.shard,
            served: served.clone(),
            pools: pools.clone(),
            queue: Queue::new(parts.requests as usize, &policy),
            exec,
            jobs: (0..jobs).map(|_| job()).collect(),
            batch: Vec::with_capacity(policy.max_requests()),
            policy,
            look_at: Time::NEVER,
            wants_outputs: false,
            wants_worker: false,
            blocked: false,
            unblocked: Time::default(),
        })
    }

    pub(super) fn spec(&self) -> &ModelSpec {
        self.served.factory.spec()
    }

    pub(super) fn pools(&self) -> &ModelPools {
        &self.pools
    }

    pub(super) fn queued(&self) -> u64 {
        self.queue.len() as u64
    }

    pub(super) fn wants_outputs(&self) -> bool {
        self.wants_outputs
    }

    /// The rank of a request's priority: what is none of the model's levels stands for its default.
    pub(super) fn priority(&self, asked: u8) -> u8 {
        let spec = self.spec();
        match spec.priority_levels {
            0 => 0,
            levels if (1..=levels).contains(&asked) => asked,
            _ => spec.default_priority,
        }
    }

    /// Whether the queue has a place.
    pub(super) fn may_wait(&self) -> bool {
        let max = self.spec().batching.as_ref().map_or(0, |b| b.max_queue);
        max == 0 || self.queue.len() < max as usize
    }

    pub(super) fn enqueue(&mut self, waiting: Waiting) {
        self.queue.push(waiting);
        self.look_now();
    }

    pub(super) fn remove(&mut self, rank: Rank) -> bool {
        self.queue.remove(rank).is_some()
    }

    pub(super) fn look_now(&mut self) {
        self.look_at = Time::default();
    }

    /// When there is something to do without anything from outside.
    pub(super) fn next_look(&self) -> Time {
        self.look_at.min(self.queue.earliest_deadline())
    }

    /// Answers those whose deadline has passed before their launch.
    pub(super) fn expire(&mut self, now: Time, desk: &mut Desk<'_>) -> bool {
        let mut any = false;
        while let Some(waiting) = self.queue.expired(now) {
            desk.fail(waiting.request, Status::DeadlineExceeded, "the deadline passed before the model was free");
            any = true;
        }
        any
    }

    /// Takes results from the workers.
    pub(super) fn collect(&mut self, now: Time, desk: &mut Desk<'_>) -> bool {
        let mut any = false;
        loop {
            let Exec::Workers { workers, under_way } = &mut self.exec else { return any };
            let result = if *under_way == 0 { None } else { workers.result(self.shard) };
            let Some(mut job) = result else {
                // Another shard may have given back the worker that this one waits for.
                if std::mem::take(&mut self.wants_worker) {
                    self.look_at = Time::default();
                }
                return any;
            };
            *under_way -= 1;
            self.look_at = Time::default();
            any = true;
            self.answer(now, &mut job, desk);
            self.jobs.push(job);
        }
    }

    /// Launches every batch that is due.
    pub(super) fn launch(&mut self, now: Time, flush: bool, desk: &mut Desk<'_>) -> bool {
        let mut any = false;
        while now >= self.look_at {
            if !self.launch_one(now, flush, desk) {
                return any;
            }
            any = true;
        }
        any
    }

    /// Launches a batch if one is due, and else sets when to look again.
    fn launch_one(&mut self, now: Time, flush: bool, desk: &mut Desk<'_>) -> bool {
        self.look_at = Time::NEVER;
        self.wants_outputs = false;
        if self.queue.len() == 0 {
            return false;
        }
        let claim = match &self.exec {
            Exec::Inline(_) => None,
            // A worker may be idle again before its result has been taken, and with it the job's buffers.
            Exec::Workers { .. } if self.jobs.is_empty() => {
                self.blocked = true;
                return false;
            }
            Exec::Workers { workers, .. } => match workers.claim(self.shard) {
                Some(claim) => Some(claim),
                None => {
                    self.wants_worker = true;
                    self.blocked = true;
                    return false;
                }
            },
        };
        if std::mem::take(&mut self.blocked) {
            self.unblocked = now;
        }
        let job = self.gather(now, flush, desk);
        match (&mut self.exec, claim, job) {
            (Exec::Inline(instance), _, Some(mut job)) => {
                job.run(instance);
                self.look_at = Time::default();
                // The clock is the caller's: the call itself counts as computing, not as waiting.
                self.answer(now, &mut job, desk);
                self.jobs.push(job);
                true
            }
            (Exec::Workers { workers, under_way }, Some(claim), Some(job)) => {
                *under_way += 1;
                workers.hand_over(claim, job);
                self.look_at = Time::default();
                true
            }
            (Exec::Workers { workers, .. }, Some(claim), None) => {
                workers.release(claim);
                false
            }
            _ => false,
        }
    }

    /// Puts the next batch together, with output slots for each request.
    fn gather(&mut self, now: Time, flush: bool, desk: &mut Desk<'_>) -> Option<Box<Job>> {
        let spec = self.served.factory.spec();
        let same = |a, b| same_rows(spec, &desk.record(a).tensors, &desk.record(b).tensors);
        self.batch.clear();
        if let Some(again) = self.queue.take_batch(now, &self.policy, flush, same, &mut self.batch) {
            self.look_at = again;
        }
        if self.batch.is_empty() {
            return None;
        }
        // The caller has seen that there is one.
        let mut job = self.jobs.pop().expect("a job that is not under way");
        job.clear();
        job.launched = now;
        job.taken_up = self.unblocked.min(now);
        for waiting in self.batch.drain(..) {
            // Once one has no slots, those behind it wait as well: order is kept.
            let output = match self.pools.output {
                Some(pool) if !self.wants_outputs => desk.alloc(pool, waiting.rows),
                _ => None,
            };
            if self.pools.output.is_some() && output.is_none() {
                self.wants_outputs = true;
                self.queue.push(waiting);
                continue;
            }
            let record = desk.record_mut(waiting.request);
            record.state = State::Launched;
            job.batch.push(record.input, waiting.rows, output, &record.tensors);
            job.requests.push(waiting.request);
        }
        if job.requests.is_empty() {
            self.blocked = true;
            self.look_at = Time::NEVER;
            self.jobs.push(job);
            return None;
        }
        desk.telemetry.count(Event::Launches, 1);
        if let Some(model) = desk.telemetry.model(self.handle) {
            model.batch_rows.record(u64::from(job.batch.rows()));
            model.batch_requests.record(job.requests.len() as u64);
        }
        Some(job)
    }

    /// Answers the requests of a batch that has been computed.
    fn answer(&self, now: Time, job: &mut Job, desk: &mut Desk<'_>) {
        if job.replaced {
            desk.telemetry.count(Event::WorkersReplaced, 1);
        }
        let spec = self.served.factory.spec();
        let computed = Computed::of(job, now);
        let Job { batch, launch, error, requests, .. } = job;
        for (index, (request, item)) in requests.iter().zip(batch.items()).enumerate() {
            match error {
                Some(text) => {
                    if let Some(output) = item.output {
                        desk.free(output);
                    }
                    desk.fail(*request, Status::ModelFailed, text);
                }
                None => desk.finish(*request, now, spec, item, launch.take(index), &computed),
            }
        }
    }
}
