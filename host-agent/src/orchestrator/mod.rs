//! Admission, priorities, deadlines, dynamic batching, launches, and the answers.
//!
//! An [`Orchestrator`] belongs to one data thread, which calls [`Orchestrator::poll`] whenever it comes round. It takes
//! submissions from its end of the link, and sends exactly one completion for each. It never looks at tensor data.

mod admit;
mod desk;
mod model;
mod queue;

use std::sync::Arc;

use nic_app::Arrival;
use splitrpc_arena::{AllocatorError, Arena, PoolLayout, SlotAllocator, SlotEntry};
use splitrpc_engine::{MS, Time, US};
use splitrpc_ring::{HostLink, RequestKey, Submission};
use splitrpc_telemetry::{Event, Level, Outage, Shard};
use splitrpc_wire::Status;

use self::admit::admit;
use self::desk::{Desk, State};
use self::model::{ModelState, STUCK};
use self::queue::{Rank, Waiting};
use crate::plan::Plan;
use crate::runtime::device::Device;
use crate::runtime::{Factory, RuntimeError};
use crate::worker::{Waker, Workers};

/// Submissions taken in one poll, so that a flood of them does not keep answers waiting.
const SUBMISSIONS_PER_POLL: usize = 256;

/// What is said of a request whose tensors are not where its model reads them.
const BOOKED: &str = "copies to the GPU are booked until after the deadline";
const NOT_THERE: &str = "the request lies in a device's memory, and its model does not read it there";

/// How soon a device is looked after that has something to go on with, in nanoseconds.
const LOOK: u64 = 20 * US;
/// How soon a device is looked after that is to let go of something.
const LET_GO: u64 = 2 * MS;

/// A model that is served, shared by all shards.
#[derive(Clone)]
pub struct Served {
    /// Its specification, and what makes its instances.
    pub factory: Arc<dyn Factory>,
    /// Who computes it.
    pub computing: Computing,
}

/// Who computes a model.
#[derive(Clone, Debug)]
pub enum Computing {
    /// Each data thread, which has an instance of its own.
    Inline,
    /// Worker threads.
    Workers(Arc<Workers>),
    /// Each data thread's device.
    Device,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("model", &self.factory.spec().name).finish_non_exhaustive()
    }
}

/// The index memory of a shard's output pools, lent to its orchestrator.
#[derive(Debug)]
pub struct Storage {
    pools: Vec<(u16, PoolLayout)>,
    entries: Vec<SlotEntry>,
}

impl Storage {
    /// For the output pools of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Storage {
        let pools = plan.outputs.clone();
        let entries = vec![SlotEntry::default(); SlotAllocator::storage_len(&pools)];
        Storage { pools, entries }
    }
}

/// What an orchestrator is built from.
pub struct Parts<'p> {
    /// This shard's number.
    pub shard: usize,
    /// Where this shard's tensors lie.
    pub arena: Arena,
    /// How they are laid out.
    pub plan: &'p Plan,
    /// The models, by handle.
    pub models: &'p [Served],
    /// Requests that the engine may have at once; its records' indexes are below it.
    pub requests: u32,
    /// This shard's measurements.
    pub telemetry: Arc<Shard>,
    /// Rouses this shard's data thread.
    pub waker: Waker,
    /// What those models compute on that need one.
    pub device: Option<Box<dyn Device>>,
    /// How long a launch on it may take, in nanoseconds.
    pub launch_limit: u64,
}

/// Why an orchestrator could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The output pools.
    #[error("output pools: {0}")]
    Pools(AllocatorError),
    /// A model's instance.
    #[error("model {model}: {error}")]
    Model {
        /// Its name.
        model: String,
        /// Why.
        error: RuntimeError,
    },
}

/// Decides which request runs when, and answers it.
pub struct Orchestrator<'a, L> {
    link: L,
    desk: Desk<'a>,
    models: Vec<ModelState>,
    sequence: u64,
    draining: bool,
    /// The device is lost, and that was told.
    lost: bool,
}

impl<'a, L: HostLink> Orchestrator<'a, L> {
    /// An orchestrator at this end of a link. All that it will ever need is allocated now.
    ///
    /// # Errors
    /// [`BuildError`] when an instance of an inline model cannot be made.
    pub fn new(link: L, mut parts: Parts<'_>, storage: &'a mut Storage) -> Result<Self, BuildError> {
        let Storage { pools, entries } = storage;
        let outputs = SlotAllocator::new(pools, entries).map_err(BuildError::Pools)?;
        let requests = parts.requests as usize;
        let models = parts.models.iter().zip(&parts.plan.models).enumerate().map(|(handle, (served, pools))| {
            let name = || served.factory.spec().name.clone();
            ModelState::new(handle as u16, served, pools, &parts)
                .map_err(|error| BuildError::Model { model: name(), error })
        });
        let models = models.collect::<Result<Vec<_>, _>>()?;
        let tensors = parts.models.iter().map(|m| m.factory.spec().inputs.len()).max().unwrap_or(0);
        let device = parts.device.take();
        let owned = parts.plan.models.iter().map(|pools| pools.owned.clone()).collect();
        let desk = Desk::new(parts.arena, parts.telemetry, device, outputs, owned, requests, tensors);
        Ok(Orchestrator { link, desk, models, sequence: 0, draining: false, lost: false })
    }

    /// The same at the end of another link, which may be one that stays on its thread.
    #[must_use]
    pub fn with_link<M: HostLink>(self, link: M) -> Orchestrator<'a, M> {
        let Orchestrator { link: _, desk, models, sequence, draining, lost } = self;
        Orchestrator { link, desk, models, sequence, draining, lost }
    }

    /// Does what there is to do: results, submissions, expiry, launches, completions. Returns whether there was anything.
    pub fn poll(&mut self, now: Time) -> bool {
        let mut worked = self.desk.flush(&mut self.link);
        worked |= self.desk.device.as_mut().is_some_and(|device| device.pump());
        for model in &mut self.models {
            worked |= model.collect(now, &mut self.desk);
        }
        if worked && !self.lost && self.desk.device.as_ref().is_some_and(|device| device.is_lost()) {
            self.lost = true;
            let on_device = self.models.iter().filter(|model| model.on_device());
            on_device.for_each(|model| model.tell_outage(Some(Outage::DeviceLost), &self.desk));
        }
        worked |= self.take_submissions(now);
        for model in &mut self.models {
            worked |= model.expire(now, &mut self.desk);
            worked |= model.launch(now, self.draining, &mut self.desk);
            model.fetch(&mut self.desk);
        }
        worked |= self.desk.flush(&mut self.link);
        // Answers are on their way when nothing else was to be done.
        if !worked && !self.draining {
            for model in &mut self.models {
                worked |= model.launch_ahead(&mut self.desk);
            }
        }
        worked
    }

    /// Bytes of payload from which on it is worth while to be told of what arrives.
    #[must_use]
    pub fn early_bytes(&self) -> u32 {
        self.desk.device.as_ref().map_or(u32::MAX, |device| device.early_bytes())
    }

    /// Has a device copy what has arrived of a request. It is not submitted yet, so nothing is known of it but its slots.
    pub fn arriving(&mut self, arrival: &Arrival) {
        let Arrival { request, run, tensor, offset, len } = *arrival;
        if let Some(device) = &mut self.desk.device {
            device.arriving(request.index, run, tensor, offset, len);
        }
    }

    /// Whether a device has come further.
    #[must_use]
    #[inline]
    pub fn has_news(&self) -> bool {
        self.desk.device.as_ref().is_some_and(|device| device.has_news())
    }

    /// Hands counters and levels to the shard's measurements.
    pub fn publish(&self) {
        let telemetry = &self.desk.telemetry;
        let mut queued = 0;
        for (handle, model) in self.models.iter().enumerate() {
            queued += model.queued();
            if let Some(m) = telemetry.model(handle as u16) {
                m.queued.store(model.queued());
            }
        }
        telemetry.level(Level::RequestsQueued, queued);
        telemetry.set(Event::HostLinkFaults, self.link.faults().total());
        let pools = self.models.iter().filter_map(|m| m.pools().output);
        telemetry.level(Level::OutputSlotsFree, self.desk.outputs_free(pools));
    }

    /// When [`Orchestrator::poll`] has something to do without being asked, or is to look how far a device has come; `None` is: when a
    /// submission or a worker's result comes.
    #[must_use]
    pub fn next_deadline(&self, now: Time) -> Option<Time> {
        if self.desk.has_backlog() {
            return Some(now);
        }
        let next = self.models.iter().map(|m| m.next_look().min(m.next_glance(now))).min().unwrap_or(Time::NEVER);
        // Copies of those that wait go on although nobody computes.
        let next = if self.has_news() { next.min(now + LOOK) } else { next };
        let holds_on = self.desk.device.as_ref().is_some_and(|device| device.holds_on());
        let next = if holds_on { next.min(now + LET_GO) } else { next };
        (next < Time::NEVER).then_some(next)
    }

    /// Whether requests wait for output slots.
    #[must_use]
    pub fn wants_outputs(&self) -> bool {
        self.models.iter().any(ModelState::wants_outputs)
    }

    /// From now on waits for no batch mates. The engine admits no more requests; those that come are still answered.
    pub fn drain(&mut self) {
        self.draining = true;
        for model in &mut self.models {
            model.look_now();
            model.withdraw(&mut self.desk);
        }
    }

    /// Whether every request taken from the link has been answered, and the answers have been taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.desk.live() == 0
    }

    /// Begins anew with an engine that knows of nothing: all slots are free again, but those that a device may still write. No request may be under way.
    pub fn begin_again(&mut self) {
        debug_assert!(self.is_idle());
        let Orchestrator { desk, models, .. } = self;
        desk.free_all(|run| models.iter().any(|model| model.holds(run)));
    }

    /// This orchestrator's end of the link.
    pub fn link(&mut self) -> &mut L {
        &mut self.link
    }

    fn take_submissions(&mut self, now: Time) -> bool {
        let mut taken = 0;
        while taken < SUBMISSIONS_PER_POLL && self.desk.has_room() {
            let Some(submission) = self.link.submission() else { break };
            taken += 1;
            match submission {
                Submission::Submit { .. } => self.submit(now, &submission),
                Submission::Cancel { request } => self.cancel(request),
                Submission::Release { output } => {
                    self.desk.free(output);
                    self.models.iter_mut().filter(|m| m.wants_outputs()).for_each(ModelState::look_now);
                }
            }
        }
        self.desk.telemetry.count(Event::Submissions, taken as u64);
        taken > 0
    }

    fn submit(&mut self, now: Time, submission: &Submission) {
        let Submission::Submit { request, input, model, priority, deadline_ns, on_device, .. } = *submission else {
            return;
        };
        self.sequence += 1;
        let Some(record) = self.desk.open(request) else { return self.desk.refuse(request) };
        let deadline = if deadline_ns == 0 { Time::NEVER } else { now + deadline_ns };
        record.model = model;
        record.input = input;
        record.arrived = now;
        record.rank = Rank { priority: 0, deadline, sequence: self.sequence };
        let Some(state) = self.models.get_mut(usize::from(model)) else {
            // Nor are the slots known to be a request's, so no text is written there.
            record.input = splitrpc_ring::Run::NONE;
            return self.desk.fail(request.index, Status::UnknownModel, "");
        };
        record.rank.priority = state.priority(priority);
        let rank = record.rank;
        let mut tensors = std::mem::take(&mut record.tensors);
        let Desk { arena, copy, .. } = &mut self.desk;
        let admitted = admit(arena, input, state.spec(), state.pools(), copy, &mut tensors);
        self.desk.record_mut(request.index).tensors = tensors;
        match admitted {
            Ok(_) if state.is_stuck() => self.desk.fail(request.index, Status::ModelFailed, STUCK),
            Ok(_)
                if deadline < Time::NEVER
                    && state.on_device()
                    && !on_device
                    && now + self.desk.booked(request.index) > deadline =>
            {
                self.desk.fail(request.index, Status::DeadlineExceeded, BOOKED);
            }
            Ok(shape) if state.may_wait() => {
                if on_device && !self.desk.is_present(state.on_device(), request.index, input) {
                    return self.desk.fail(request.index, Status::Internal, NOT_THERE);
                }
                state.enqueue(Waiting { rank, request: request.index, rows: input.rows, shape, arrived: now });
            }
            Ok(_) => self.desk.fail(request.index, Status::Busy, "the model's queue is full"),
            Err((status, text)) => {
                if !state.pools().inputs.contains(&input.pool) {
                    self.desk.record_mut(request.index).input = splitrpc_ring::Run::NONE;
                }
                self.desk.fail(request.index, status, text);
            }
        }
    }

    fn cancel(&mut self, request: RequestKey) {
        // One that has been answered already is no fault: the two crossed on the link.
        let Some(record) = self.desk.find(request) else { return };
        record.cancelled = true;
        let (state, model, rank) = (record.state, usize::from(record.model), record.rank);
        if state == State::Waiting && self.models[model].remove(rank) {
            self.desk.forget(request.index);
            self.desk.fail(request.index, Status::Cancelled, "");
        }
    }
}

#[cfg(test)]
mod tests;
