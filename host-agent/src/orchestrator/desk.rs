//! The records of live requests, and their completions.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use nic_app::Meta;
use splitrpc_arena::{Arena, EXTERNAL_POOL, External, SlotAllocator};
use splitrpc_engine::Time;
use splitrpc_ring::{Completion, HostLink, RequestKey, Run};
use splitrpc_telemetry::{Event, Shard};
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{ManifestWriter, Path, Stage, Status, StatusPayload, TensorDesc};

use super::queue::Rank;
use crate::model::spec::ModelSpec;
use crate::runtime::device::Device;
use crate::runtime::{BatchItem, Output};
use crate::worker::Job;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The record is free.
    Free,
    /// In its model's queue.
    Waiting,
    /// In a batch.
    Launched,
    /// Answered; the completion waits for room on the link.
    Answered,
}

/// A request, at the index that the engine gave it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) generation: u32,
    pub(super) state: State,
    pub(super) model: u16,
    pub(super) input: Run,
    pub(super) rank: Rank,
    pub(super) arrived: Time,
    pub(super) cancelled: bool,
    pub(super) tensors: Vec<TensorDesc>,
}

/// What a launch tells of all its items.
pub(super) struct Computed {
    rows: u32,
    launched: Time,
    taken_up: Time,
    /// From the launch to the runtime's call and back.
    hand_over: u64,
    copy_in: u64,
    compute: u64,
    copy_out: u64,
    copied_bytes: u64,
    moved: Option<(Mover, Memory)>,
    compactions: u8,
}

impl Computed {
    pub(super) fn of(job: &Job, now: Time) -> Computed {
        let launch = &job.launch;
        let copies = launch.copy_in_ns.saturating_add(launch.copy_out_ns);
        // A runtime that keeps no time of its own is timed from outside.
        let compute = if launch.compute_ns == 0 { job.execute_ns.saturating_sub(copies) } else { launch.compute_ns };
        Computed {
            rows: job.batch.rows(),
            launched: job.launched,
            taken_up: job.taken_up,
            hand_over: now.since(job.launched).saturating_sub(job.execute_ns),
            copy_in: launch.copy_in_ns,
            compute,
            copy_out: launch.copy_out_ns,
            copied_bytes: launch.copied_bytes,
            moved: launch.moved,
            compactions: launch.compactions,
        }
    }

    fn path(&self, arrived: Time, rows: u16) -> Path {
        let taken_up = self.taken_up.max(arrived);
        let share = u128::from(self.copied_bytes) * u128::from(rows) / u128::from(self.rows.max(1));
        let (mover, memory) = self.moved.unwrap_or((Mover::Unknown, Memory::Unknown));
        let mut path = Path {
            mover,
            memory,
            device_compactions: self.compactions,
            batch_rows: u16::try_from(self.rows).unwrap_or(u16::MAX),
            runtime_copied_bytes: u32::try_from(share).unwrap_or(u32::MAX),
            ..Path::default()
        };
        path.set_stage(Stage::Queue, taken_up.since(arrived));
        path.set_stage(Stage::Batch, self.launched.since(taken_up) + self.hand_over);
        path.set_stage(Stage::CopyIn, self.copy_in);
        path.set_stage(Stage::Compute, self.compute);
        path.set_stage(Stage::CopyOut, self.copy_out);
        path
    }
}

pub(super) struct Desk<'a> {
    pub(super) arena: Arena,
    pub(super) telemetry: Arc<Shard>,
    /// What models compute on that are not computed by the CPU.
    pub(super) device: Option<Box<dyn Device>>,
    outputs: SlotAllocator<'a>,
    /// By model, the output pools for what the runtime has in its own memory, smallest first; none where that is sent as it is.
    owned: Vec<Vec<u16>>,
    pub(super) records: Vec<Record>,
    /// Scratch: a copy of a request's meta area.
    pub(super) copy: Box<Meta>,
    /// Scratch: a response's manifest.
    manifest: ManifestWriter,
    /// Completions on their way to the link, each with whether a record waits for it.
    outbox: VecDeque<(Completion, bool)>,
    live: usize,
}

impl<'a> Desk<'a> {
    pub(super) fn new(
        arena: Arena,
        telemetry: Arc<Shard>,
        device: Option<Box<dyn Device>>,
        outputs: SlotAllocator<'a>,
        owned: Vec<Vec<u16>>,
        requests: usize,
        tensors: usize,
    ) -> Desk<'a> {
        let record = || Record {
            generation: 0,
            state: State::Free,
            model: 0,
            input: Run::NONE,
            rank: Rank { priority: 0, deadline: Time::NEVER, sequence: 0 },
            arrived: Time::default(),
            cancelled: false,
            tensors: Vec::with_capacity(tensors),
        };
        Desk {
            arena,
            telemetry,
            device,
            outputs,
            owned,
            records: (0..requests).map(|_| record()).collect(),
            copy: Box::new([0; size_of::<Meta>()]),
            manifest: ManifestWriter::with_path(),
            // Every record's completion, and as many again that belong to none: see `has_room`.
            outbox: VecDeque::with_capacity(2 * requests),
            live: 0,
        }
    }

    /// Requests that are not answered, or whose answer is not on the link yet.
    pub(super) fn live(&self) -> usize {
        self.live + self.outbox.len()
    }

    /// Whether completions wait for the link.
    pub(super) fn has_backlog(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether another submission may be taken: each may need a place in the outbox.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.len() < self.records.len().max(1)
    }

    /// The free record that a new request's key names.
    pub(super) fn open(&mut self, key: RequestKey) -> Option<&mut Record> {
        let record = self.records.get_mut(key.index as usize).filter(|r| r.state == State::Free)?;
        record.generation = key.generation;
        record.cancelled = false;
        record.state = State::Waiting;
        self.live += 1;
        Some(record)
    }

    pub(super) fn record(&self, request: u32) -> &Record {
        &self.records[request as usize]
    }

    pub(super) fn record_mut(&mut self, request: u32) -> &mut Record {
        &mut self.records[request as usize]
    }

    /// The live record of a key.
    pub(super) fn find(&mut self, key: RequestKey) -> Option<&mut Record> {
        self.records
            .get_mut(key.index as usize)
            .filter(|r| r.generation == key.generation && matches!(r.state, State::Waiting | State::Launched))
    }

    pub(super) fn alloc(&mut self, pool: u16, rows: u16) -> Option<Run> {
        self.outputs.alloc(pool, rows)
    }

    /// The same, for what a device computes from these slots: what it has recorded for a pair of places is the more often of use.
    pub(super) fn alloc_beside(&mut self, pool: u16, rows: u16, input: Run) -> Option<Run> {
        self.outputs.alloc_near(pool, rows, input.first)
    }

    /// Splits slots among those that take so many rows each, which are all of them.
    pub(super) fn split(&mut self, whole: Run, rows: impl Iterator<Item = u16>, runs: &mut Vec<Run>) {
        runs.clear();
        let mut rest = whole;
        for rows in rows {
            match self.outputs.split(rest, rows) {
                Ok((first, others)) => {
                    runs.push(first);
                    rest = others;
                }
                // The last one takes the whole rest.
                Err(_) => runs.push(rest),
            }
        }
    }

    /// Tells the device that a request is in its slots there. Returns whether that is where its model will look for it.
    pub(super) fn is_present(&mut self, on_device: bool, request: u32, input: Run) -> bool {
        on_device && self.device.as_mut().is_some_and(|device| device.present(request, input))
    }

    /// How many nanoseconds it will be until a request's inputs are on the device, which are yet to be fetched.
    pub(super) fn booked(&self, request: u32) -> u64 {
        let Record { model, rank, tensors, .. } = self.record(request);
        let bytes = tensors.iter().map(|tensor| u64::from(tensor.bytes)).sum();
        self.device.as_ref().map_or(0, |device| device.booked(*model, (rank.priority, rank.sequence), bytes))
    }

    /// Tells the device that it need not copy the inputs of a request.
    pub(super) fn forget(&mut self, request: u32) {
        if let Some(device) = &mut self.device {
            device.forget(request);
        }
    }

    /// Takes back output slots that have left, or were never used.
    pub(super) fn free(&mut self, output: Run) {
        let known = match output.pool {
            EXTERNAL_POOL => self.arena.drop_external(output),
            _ => self.outputs.free(output).is_ok(),
        };
        if !known {
            self.telemetry.count(Event::LinkErrors, 1);
        }
    }

    /// Takes back all output slots, whoever has them, but those that are to be kept.
    pub(super) fn free_all(&mut self, keep: impl Fn(Run) -> bool) {
        self.outputs.free_all(keep);
        self.arena.drop_all_external();
    }

    /// Free output slots of all these pools.
    pub(super) fn outputs_free(&self, pools: impl Iterator<Item = u16>) -> u64 {
        pools.map(|pool| u64::from(self.outputs.available(pool))).sum()
    }

    /// Answers a submission that has no record.
    pub(super) fn refuse(&mut self, request: RequestKey) {
        self.telemetry.count(Event::LinkErrors, 1);
        self.outbox.push_back((Completion { request, status: Status::Internal, output: Run::NONE }, false));
    }

    /// Answers a request with an error.
    pub(super) fn fail(&mut self, request: u32, status: Status, text: &str) {
        let input = self.records[request as usize].input;
        if let Some(meta) = self.arena.meta(input) {
            let mut bytes: Meta = [0; size_of::<Meta>()];
            let len = StatusPayload { status, retry_after_us: 0, text }.write(&mut bytes);
            meta.copy_from(&bytes[..len]);
        }
        self.answer(request, status, Run::NONE);
    }

    fn answer(&mut self, request: u32, status: Status, output: Run) {
        let record = &mut self.records[request as usize];
        record.state = State::Answered;
        let key = RequestKey { index: request, generation: record.generation };
        self.live -= 1;
        self.outbox.push_back((Completion { request: key, status, output }, true));
    }

    /// Answers a request whose batch has been computed, unless nobody wants the answer any more.
    pub(super) fn finish(
        &mut self,
        request: u32,
        now: Time,
        spec: &ModelSpec,
        item: &BatchItem,
        answer: Option<(Output, &[TensorDesc])>,
        computed: &Computed,
    ) {
        let record = &self.records[request as usize];
        let late = record.rank.deadline <= now;
        let settled = if record.cancelled {
            Err((Status::Cancelled, "".into()))
        } else if late {
            Err((Status::DeadlineExceeded, "the deadline passed while the model computed".into()))
        } else {
            self.settle(request, spec, item, answer, computed)
        };
        let output = settled.as_ref().ok().copied();
        if let Some(unused) = item.output.filter(|run| Some(*run) != output) {
            self.free(unused);
        }
        match settled {
            Ok(output) => self.answer(request, Status::Ok, output),
            Err((status, text)) => self.fail(request, status, &text),
        }
    }

    /// Writes the response's manifest; the outputs are in place.
    fn settle(
        &mut self,
        request: u32,
        spec: &ModelSpec,
        item: &BatchItem,
        answer: Option<(Output, &[TensorDesc])>,
        computed: &Computed,
    ) -> Result<Run, (Status, Cow<'static, str>)> {
        let failed = |text: &'static str| (Status::ModelFailed, text.into());
        let (output, tensors) = answer.ok_or_else(|| failed("the model did not answer this request of its batch"))?;
        if tensors.len() != spec.outputs.len() && !matches!(output, Output::Failed(..)) {
            return Err(failed("the model gave another number of outputs than it declares"));
        }
        let manifest = &mut self.manifest;
        manifest.clear();
        manifest.set_path(&computed.path(self.records[request as usize].arrived, item.rows));
        for (handle, (tensor, declared)) in tensors.iter().zip(&spec.outputs).enumerate() {
            if usize::from(tensor.handle) != handle || tensor.dtype != declared.dtype {
                return Err(failed("the model gave an output of another type than it declares"));
            }
            manifest
                .push(tensor)
                .map_err(|_| failed("the model gave an output whose size does not follow from its shape"))?;
        }
        let run = match output {
            Output::InPlace => {
                item.output.ok_or_else(|| failed("the model answered in slots that it does not have"))?
            }
            Output::Input => item.input,
            Output::Failed(status, text) => return Err((status, text.into())),
            Output::Owned(buffers) => {
                let model = usize::from(self.records[request as usize].model);
                let fits = buffers.len() == tensors.len()
                    && buffers.iter().zip(tensors).all(|(b, t)| b.len() == t.bytes as usize);
                if !fits {
                    return Err(failed("the model gave an output of another size than its shape says"));
                }
                if let Some(classes) = self.owned.get(model).filter(|classes| !classes.is_empty()) {
                    let bytes = manifest.finish();
                    let run = put(&self.arena, &mut self.outputs, classes, &buffers, bytes)?;
                    return Ok(run);
                }
                let external = External { tensors: buffers, meta: manifest.finish().to_vec() };
                return self.arena.adopt(external).map_err(|_| {
                    (Status::Busy, "more outputs wait to be sent than limits.external_outputs allows".into())
                });
            }
        };
        let inside = |(t, tensor): (usize, &TensorDesc)| self.arena.span(run, t as u16, 0, tensor.bytes).is_some();
        if !tensors.iter().enumerate().all(inside) {
            return Err(failed("the model gave an output that is larger than its slot"));
        }
        let meta = self.arena.meta(run).ok_or((Status::Internal, "the response's slots do not exist".into()))?;
        meta.copy_from(manifest.finish());
        Ok(run)
    }

    /// Hands completions to the link, as many as it takes. Returns whether there were any.
    pub(super) fn flush(&mut self, link: &mut impl HostLink) -> bool {
        let mut sent = 0;
        while let Some(&(completion, recorded)) = self.outbox.front() {
            if link.complete(&completion).is_err() {
                break;
            }
            self.outbox.pop_front();
            sent += 1;
            if recorded {
                self.records[completion.request.index as usize].state = State::Free;
            }
        }
        self.telemetry.count(Event::Completions, sent);
        sent > 0
    }
}

/// Copies outputs from a runtime's own memory into slots.
fn put(
    arena: &Arena,
    outputs: &mut SlotAllocator<'_>,
    classes: &[u16],
    buffers: &[Vec<u8>],
    manifest: &[u8],
) -> Result<Run, (Status, Cow<'static, str>)> {
    let fits = |pool: &&u16| {
        let row = outputs.layout(**pool).map(|layout| layout.all_row_bytes());
        row.is_some_and(|row| buffers.iter().zip(row).all(|(buffer, row)| buffer.len() <= *row as usize))
    };
    let first = classes.iter().position(|pool| fits(&pool));
    let first = first.ok_or((Status::TooLarge, "the answer is larger than limits.max_request_bytes".into()))?;
    let run = classes[first..].iter().find_map(|pool| outputs.alloc(*pool, 1));
    let run = run.ok_or((Status::Busy, "more outputs wait to be sent than limits.external_outputs allows".into()))?;
    for (tensor, buffer) in buffers.iter().enumerate() {
        if let Some(span) = arena.span(run, tensor as u16, 0, buffer.len() as u32) {
            span.copy_from(buffer);
        }
    }
    if let Some(meta) = arena.meta(run) {
        meta.copy_from(manifest);
    }
    Ok(run)
}
