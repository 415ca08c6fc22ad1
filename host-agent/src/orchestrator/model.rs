//! One model's queue and launches on one shard.

mod ahead;

use std::sync::Arc;

use splitrpc_arena::Run;
use splitrpc_engine::{MS, Time, US};
use splitrpc_telemetry::{Event, Outage};
use splitrpc_wire::Status;

use self::ahead::Ahead;
use super::admit::same_rows;
use super::desk::{Computed, Desk, State};
use super::queue::{Policy, Queue, Rank, Waiting};
use super::{Computing, Parts, Served};
use crate::model::spec::ModelSpec;
use crate::plan::ModelPools;
use crate::runtime::{Launch, RuntimeError};
use crate::worker::{Claim, Instance, Job, Workers};

/// Who computes.
enum Exec {
    /// The data thread itself.
    Inline(Instance),
    /// Worker threads, `under_way` of which have a batch of this shard.
    Workers { workers: Arc<Workers>, under_way: usize },
    /// The shard's device.
    Device(Lanes),
}

/// What is under way on a device's lanes.
struct Lanes {
    jobs: Vec<Option<Box<Job>>>,
    ahead: Vec<Ahead>,
    under_way: usize,
    /// How many of those have taken so long that their requests were answered. What they read and write is theirs until they end.
    given_up: usize,
}

/// Who launches the next batch.
enum Claimed {
    Inline,
    Worker(Claim),
    Lane(u16),
}

/// What a request is told that comes while a launch does not end.
pub(super) const STUCK: &str = "an earlier launch of the model has not ended";
/// The first looks after a device come as often as this, in nanoseconds, and the last ones of a long launch.
const GLANCE: std::ops::RangeInclusive<u64> = 20 * US..=MS;

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
    /// Scratch: its output slots, where they lie together.
    together: Vec<Run>,
    /// Requests that have come since the device was last told of those that wait.
    unfetched: Vec<u32>,
    launch_limit: u64,
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
        let (exec, jobs) = match &served.computing {
            Computing::Inline => (Exec::Inline(Instance::new(&served.factory)?), 1),
            Computing::Workers(workers) => {
                workers.set_waker(parts.shard, Arc::clone(&parts.waker));
                (Exec::Workers { workers: Arc::clone(workers), under_way: 0 }, workers.instances())
            }
            Computing::Device => {
                let lanes = parts.device.as_ref().map_or(0, |device| usize::from(device.lanes(handle)));
                if lanes == 0 {
                    return Err(RuntimeError("there is no device to compute it".into()));
                }
                let jobs = (0..lanes).map(|_| None).collect();
                let ahead = vec![Ahead::default(); lanes];
                (Exec::Device(Lanes { jobs, ahead, under_way: 0, given_up: 0 }), lanes)
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
            together: Vec::with_capacity(policy.max_requests()),
            unfetched: Vec::with_capacity(parts.requests as usize),
            launch_limit: parts.launch_limit,
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

    /// Whether the device writes its outputs there, or may do so: what waits for a request that is yet to come, and what was given up.
    pub(super) fn holds(&self, run: Run) -> bool {
        let Exec::Device(lanes) = &self.exec else { return false };
        let mut jobs = lanes.jobs.iter().flatten();
        lanes.ahead.iter().any(|ahead| ahead.output == Some(run))
            || jobs.any(|job| job.batch.items().iter().any(|item| item.output == Some(run)))
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

    /// Whether a launch does not end, so that nothing new is begun.
    pub(super) fn is_stuck(&self) -> bool {
        matches!(&self.exec, Exec::Device(lanes) if lanes.given_up > 0)
    }

    pub(super) fn enqueue(&mut self, waiting: Waiting) {
        if matches!(self.exec, Exec::Device(_)) {
            self.unfetched.push(waiting.request);
        }
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

    /// When to look whether a device is done: the longer it has taken, the longer it may take to be seen.
    pub(super) fn next_glance(&self, now: Time) -> Time {
        let Exec::Device(Lanes { jobs, under_way: 1.., .. }) = &self.exec else { return Time::NEVER };
        let last = jobs.iter().flatten().map(|job| job.launched).max().unwrap_or(now);
        now + (now.since(last) / 8).clamp(*GLANCE.start(), *GLANCE.end())
    }

    /// Answers those whose deadline has passed before their launch.
    pub(super) fn expire(&mut self, now: Time, desk: &mut Desk<'_>) -> bool {
        let mut any = false;
        while let Some(waiting) = self.queue.expired(now) {
            desk.forget(waiting.request);
            desk.fail(waiting.request, Status::DeadlineExceeded, "the deadline passed before the model was free");
            any = true;
        }
        any
    }

    /// Takes results from the workers or the device.
    pub(super) fn collect(&mut self, now: Time, desk: &mut Desk<'_>) -> bool {
        if let Exec::Device(Lanes { under_way, .. }) = &self.exec {
            let ended = *under_way > 0 && self.collect_lanes(now, desk);
            return self.collect_ahead(desk) | ended;
        }
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

    fn collect_lanes(&mut self, now: Time, desk: &mut Desk<'_>) -> bool {
        let mut any = false;
        for lane in 0.. {
            let Exec::Device(lanes) = &mut self.exec else { return any };
            let Some(place) = lanes.jobs.get_mut(lane) else { return any };
            let (Some(job), Some(device)) = (place.as_mut(), &mut desk.device) else { continue };
            let given_up = job.requests.is_empty();
            let Some(ended) = device.ended(self.handle, lane as u16, &job.batch, &mut job.launch) else {
                if !given_up && now.since(job.launched) > self.launch_limit {
                    self.give_up(now, lane, desk);
                    any = true;
                }
                continue;
            };
            let Some(mut job) = place.take() else { continue };
            lanes.under_way -= 1;
            self.look_at = Time::default();
            any = true;
            if given_up {
                lanes.given_up -= 1;
                let name = &self.served.factory.spec().name;
                tracing::warn!(model = name, "a launch has ended that had been given up");
                if lanes.given_up == 0 {
                    let lost = device.is_lost().then_some(Outage::DeviceLost);
                    self.tell_outage(lost, desk);
                }
                job.batch.items().iter().filter_map(|item| item.output).for_each(|output| desk.free(output));
            } else {
                let Launch { copy_in_ns, compute_ns, copy_out_ns, .. } = job.launch;
                job.execute_ns = copy_in_ns.saturating_add(compute_ns).saturating_add(copy_out_ns);
                job.error = ended.err().map(|RuntimeError(text)| text);
                if let Some(error) = &job.error {
                    tracing::error!(model = self.served.factory.spec().name, error, "a launch failed");
                }
                self.answer(now, &mut job, desk);
            }
            self.jobs.push(job);
        }
        any
    }

    /// Answers the requests of a batch that takes too long, and those that wait.
    fn give_up(&mut self, now: Time, lane: usize, desk: &mut Desk<'_>) {
        let Exec::Device(lanes) = &mut self.exec else { return };
        let Some(Some(job)) = lanes.jobs.get_mut(lane) else { return };
        lanes.given_up += 1;
        if let Some(device) = &mut desk.device {
            device.give_up(self.handle, lane as u16);
        }
        let millis = now.since(job.launched) / MS;
        let name = &self.served.factory.spec().name;
        tracing::error!(model = name, millis, "a launch does not end; the model is not served until it does");
        for request in job.requests.drain(..) {
            desk.fail(request, Status::ModelFailed, &format!("the launch has not ended after {millis} ms"));
        }
        while let Some(waiting) = self.queue.first().copied() {
            self.queue.remove(waiting.rank);
            desk.forget(waiting.request);
            desk.fail(waiting.request, Status::ModelFailed, STUCK);
        }
        self.tell_outage(Some(Outage::Stuck), desk);
    }

    /// Has the device copy the inputs of those that have come and wait.
    pub(super) fn fetch(&mut self, desk: &mut Desk<'_>) {
        for request in self.unfetched.drain(..) {
            let record = &desk.records[request as usize];
            if record.state == State::Waiting
                && record.model == self.handle
                && let Some(device) = &mut desk.device
            {
                let turn = (record.rank.priority, record.rank.sequence);
                device.fetch(self.handle, request, turn, record.input, &record.tensors);
            }
        }
    }

    /// Tells those who ask that it is out of service, or not.
    pub(super) fn tell_outage(&self, outage: Option<Outage>, desk: &Desk<'_>) {
        if let Some(model) = desk.telemetry.model(self.handle) {
            model.set_outage(outage);
        }
    }

    /// Whether it computes on the device.
    pub(super) fn on_device(&self) -> bool {
        matches!(self.exec, Exec::Device(_))
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

    /// Launches a batch if one is due, and else sets when to look again. Returns whether there was one, launched or not: that it waits for slots
    /// from now on, who is about to sleep has to know.
    fn launch_one(&mut self, now: Time, flush: bool, desk: &mut Desk<'_>) -> bool {
        self.look_at = Time::NEVER;
        self.wants_outputs = false;
        let Some(first) = self.queue.first() else { return false };
        let claim = match &self.exec {
            Exec::Inline(_) => Some(Claimed::Inline),
            // A worker may be idle again before its result has been taken, and with it the job's buffers.
            Exec::Workers { .. } if self.jobs.is_empty() => None,
            Exec::Workers { workers, .. } => {
                let claim = workers.claim(self.shard);
                self.wants_worker = claim.is_none();
                claim.map(Claimed::Worker)
            }
            Exec::Device(_) => {
                let lane = desk.device.as_ref().and_then(|d| d.idle_lane(self.handle, first.rank.priority));
                lane.map(Claimed::Lane)
            }
        };
        let Some(claim) = claim else {
            self.blocked = true;
            return false;
        };
        if std::mem::take(&mut self.blocked) {
            self.unblocked = now;
        }
        let job = self.gather(now, flush, desk);
        match (&mut self.exec, claim, job) {
            (Exec::Inline(instance), Claimed::Inline, Some((mut job, _))) => {
                job.run(instance);
                self.look_at = Time::default();
                // The clock is the caller's: the call itself counts as computing, not as waiting.
                self.answer(now, &mut job, desk);
                self.jobs.push(job);
                true
            }
            (Exec::Workers { workers, under_way }, Claimed::Worker(claim), Some((job, _))) => {
                *under_way += 1;
                workers.hand_over(claim, job);
                self.look_at = Time::default();
                true
            }
            (Exec::Workers { workers, .. }, Claimed::Worker(claim), None) => {
                workers.release(claim);
                self.wants_outputs
            }
            (Exec::Device(lanes), Claimed::Lane(lane), Some((job, waiting))) => {
                let lane = waiting.unwrap_or(lane);
                if let Some(device) = &mut desk.device {
                    let ranks = job.requests.iter().map(|request| desk.records[*request as usize].rank);
                    let turn = ranks.min().map_or((0, 0), |first| (first.priority, first.sequence));
                    device.begin(self.handle, lane, turn, &job.requests, &job.batch);
                }
                lanes.under_way += 1;
                let foresees = desk.device.as_ref().is_some_and(|device| device.foresees(self.handle));
                let last = match job.batch.items() {
                    [item] if item.rows == 1 && foresees => Some(item.input),
                    _ => None,
                };
                lanes.ahead[usize::from(lane)].last = last;
                lanes.jobs[usize::from(lane)] = Some(job);
                self.look_at = Time::default();
                true
            }
            _ => self.wants_outputs,
        }
    }

    /// Puts the next batch together, with output slots for each request. Returns it with the lane that is to have it because its launch waits
    /// there, if there is one.
    fn gather(&mut self, now: Time, flush: bool, desk: &mut Desk<'_>) -> Option<(Box<Job>, Option<u16>)> {
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
        let together = self.put_together(desk);
        let (lane, mut kept) = self.take_waiting(desk).unzip();
        for (index, waiting) in self.batch.drain(..).enumerate() {
            // Once one has no slots, those behind it wait as well: order is kept.
            let output = match self.pools.output {
                Some(_) if together => self.together.get(index).copied(),
                Some(pool) if !self.wants_outputs => kept.take().or_else(|| match self.exec {
                    Exec::Device(_) => desk.alloc_beside(pool, waiting.rows, desk.record(waiting.request).input),
                    _ => desk.alloc(pool, waiting.rows),
                }),
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
        if self.wants_outputs {
            self.withdraw(desk);
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
        Some((job, lane))
    }

    /// Puts a device's batch into the order in which its inputs lie, and takes output slots for it that lie together too, if there
    /// are any, so that it takes no copy to make one batch of it.
    fn put_together(&mut self, desk: &mut Desk<'_>) -> bool {
        let (Exec::Device(_), Some(pool), 2..) = (&self.exec, self.pools.output, self.batch.len()) else {
            return false;
        };
        let rows: u32 = self.batch.iter().map(|waiting| u32::from(waiting.rows)).sum();
        let place = |run: Run| (run.pool, run.first);
        let inputs = self.batch.iter().map(|waiting| desk.record(waiting.request).input);
        let first = inputs.min_by_key(|input| place(*input));
        let (Ok(rows), Some(first)) = (u16::try_from(rows), first) else { return false };
        let Some(whole) = desk.alloc_beside(pool, rows, first) else { return false };
        self.batch.sort_unstable_by_key(|waiting| place(desk.record(waiting.request).input));
        desk.split(whole, self.batch.iter().map(|waiting| waiting.rows), &mut self.together);
        true
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
