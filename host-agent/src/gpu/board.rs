//! What one shard has of a GPU.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use splitrpc_arena::{Arena, Run};
use splitrpc_cuda::{FlushScope, StreamPriorities, WritesOrdering};
use splitrpc_gpu::{Chunking, Copies, Direction, GpuArena, GpuError, Keep, Lane, Porter};
use splitrpc_wire::TensorDesc;

use super::flight::{Flight, Keeps};
use super::tensors::Tensors;
use super::transfers::Transfers;
use super::{Gpu, GpuSlots, Program};
use crate::model::spec::ModelSpec;
use crate::plan::ModelPools;
use crate::runtime::device::{Device, Turn};
use crate::runtime::{Batch, Launch, RuntimeError};

/// The urgency of requests that have no priority, among 0 to 255.
pub(super) const ORDINARY: u8 = 128;

/// A model to be served on the GPU.
#[derive(Clone)]
pub struct Tenant<'m> {
    /// What it takes and gives.
    pub spec: &'m ModelSpec,
    /// Where.
    pub pools: &'m ModelPools,
    /// How it computes.
    pub program: Arc<dyn Program>,
}

/// One GPU, as far as one shard uses it: slots there, streams, and the copies between them and the host's slots.
pub struct Board {
    arena: Keep<GpuArena>,
    models: Keep<Vec<Option<Model>>>,
    copies: Keep<Transfers>,
    /// Lanes with a batch.
    under_way: usize,
    /// Lanes on which something that was launched ahead, for nothing, is not known to be done.
    withdrawn: usize,
    /// Models whose kernels are persistent.
    persistent: Vec<usize>,
}

struct Model {
    inputs: Vec<u16>,
    tensors: Tensors,
    program: Arc<dyn Program>,
    /// For each group of priorities `each` lanes, the most urgent group first.
    lanes: Vec<Flight>,
    each: usize,
    levels: u8,
}

impl Board {
    /// Slots on the GPU for all pools of these models, by handle, and their lanes. `requests` is how many requests there may be
    /// at once, and `shards` how many boards share the GPU.
    ///
    /// # Errors
    /// [`GpuError`], for instance for want of memory.
    pub fn new(
        gpu: &Gpu,
        arena: &Arena,
        models: &[Option<Tenant<'_>>],
        requests: usize,
        shards: usize,
    ) -> Result<Board, GpuError> {
        let pools = |tenant: &Tenant<'_>| {
            let ModelPools { inputs, output, owned: _ } = tenant.pools;
            inputs.iter().copied().chain(*output).collect::<Vec<_>>()
        };
        let slots: Vec<u16> = models.iter().flatten().flat_map(pools).collect();
        let arena = GpuArena::new(&gpu.context, arena, &slots, &[], gpu.slots)?;
        let range = gpu.context.stream_priorities()?;
        // A persistent kernel has a stream beside its lane's.
        let each = |tenant: &Tenant<'_>| if tenant.program.stays().is_some() { 2 } else { 1 };
        let all: usize = models.iter().flatten().map(|tenant| count(tenant.spec, range) * each(tenant)).sum();
        // Those of copies in and out, and a porter's.
        let streams = (all + 3) * shards;
        let takes = models.iter().flatten().any(|tenant| tenant.program.rehearses());
        let mut lanes = 0;
        let mut place = |tenant: &Option<Tenant<'_>>| {
            let place = |tenant: &Tenant<'_>| {
                let (ahead, kernel) = (launches_ahead(gpu, tenant, streams, takes), keeps_kernel(tenant, streams));
                Model::new(gpu, &arena, tenant, lanes, Keeps { ahead, kernel })
            };
            let model = tenant.as_ref().map(place).transpose()?;
            lanes += model.as_ref().map_or(0, |model| model.lanes.len() as u32);
            Ok(model)
        };
        let models: Vec<Option<Model>> = models.iter().map(&mut place).collect::<Result<_, GpuError>>()?;
        let persistent =
            |(_, model): &(usize, &Option<Model>)| model.as_ref().is_some_and(|m| m.program.stays().is_some());
        let persistent = models.iter().enumerate().filter(persistent).map(|(index, _)| index).collect();
        let tensors = models.iter().flatten().map(|m| m.tensors.most()).max().unwrap_or(1);
        // A batch's outputs may all lie apart.
        let outputs = models.iter().flatten().map(|m| m.tensors.most_outputs()).max().unwrap_or(1);
        let chunking = Chunking { bytes: gpu.settings.chunk_bytes, depth: gpu.settings.chunks_ahead.into() };
        // Copies have no priorities of their own on the device.
        let lane = || Lane::new(&arena, gpu.context.stream_priorities()?.greatest, Vec::new(), Vec::new());
        let incoming = Copies::new(lane()?, Direction::In, chunking, requests, 2 * tensors)?;
        let outgoing = Copies::new(lane()?, Direction::Out, chunking, lanes as usize, outputs)?;
        let porter = porter(gpu, &arena, &slots, streams);
        let nothing = models.iter().flatten().filter(|model| !model.program.launches());
        let unlaunched = nothing.flat_map(|model| model.inputs.iter().copied()).collect();
        let copies = Transfers::new(incoming, outgoing, porter, &arena, requests, unlaunched, &gpu.settings);
        let (arena, models, copies) = (Keep::new(arena), Keep::new(models), Keep::new(copies));
        Ok(Board { arena, models, copies, under_way: 0, withdrawn: 0, persistent })
    }

    /// Bytes of the GPU's memory that its slots take.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.arena.device_bytes()
    }

    /// A descriptor by which another process maps the GPU's memory of a pool, where `gpu.shared` says so, and how many bytes that has.
    ///
    /// # Errors
    /// As [`GpuArena::export`].
    pub fn export(&self, pool: u16) -> Result<(OwnedFd, usize), GpuError> {
        self.arena.export(pool)
    }

    /// The slots of inputs, for a card to write.
    #[must_use]
    pub fn input_slots(&self) -> GpuSlots {
        let mut pools: Vec<u16> = self.models.iter().flatten().flat_map(|model| &model.inputs).copied().collect();
        pools.sort_unstable();
        GpuSlots { arena: (*self.arena).clone(), pools }
    }

    fn model(&self, model: u16) -> Option<&Model> {
        self.models.get(usize::from(model))?.as_ref()
    }
}

impl Model {
    /// `first` is the number of its first lane among all of the board's.
    fn new(gpu: &Gpu, arena: &GpuArena, tenant: &Tenant<'_>, first: u32, keeps: Keeps) -> Result<Model, GpuError> {
        let spec = tenant.spec;
        let range = gpu.context.stream_priorities()?;
        // Lower numbers are more urgent.
        let steps = (range.least - range.greatest).unsigned_abs().min(254) as u8;
        let groups = groups(spec, range);
        let each = usize::from(spec.instances.max(1));
        let tensors = Tensors::new(spec, &*tenant.program, keeps.ahead, gpu.settings.kernel_bytes);
        let lane = |index: usize| {
            let urgency = urgency(groups, (index / each) as u8 + 1);
            let priority = range.greatest + i32::from(steps) * i32::from(urgency) / i32::from(u8::MAX);
            Flight::new(gpu, arena, &tensors, &*tenant.program, priority, first + index as u32, keeps)
        };
        let mut lanes = (0..count(spec, range)).map(lane).collect::<Result<Vec<_>, _>>()?;
        if let ([inputs], Some(outputs)) = (&tenant.pools.inputs[..], tenant.pools.output)
            && tenant.program.rehearses()
            && tenant.program.is_recorded()
        {
            let mut each = lanes.iter_mut();
            each.try_for_each(|lane| lane.record_in_slots(&tensors, &*tenant.program, (*inputs, outputs)))?;
        }
        if let (Some(pool), Some(flight)) = (tenant.pools.output, lanes.first())
            && let Some(layout) = arena.host_arena().layout(pool)
        {
            let slot = |first| Run { pool, rows: 1, first, generation: 0 };
            tenant.program.prepare(&flight.lane().work(), &mut (0..layout.slots()).map(slot))?;
            flight.lane().finish()?;
        }
        let program = Arc::clone(&tenant.program);
        let inputs = tenant.pools.inputs.clone();
        Ok(Model { inputs, tensors, program, lanes, each, levels: spec.priority_levels })
    }

    /// Its lanes for requests of a priority.
    fn group(&self, priority: u8) -> std::ops::Range<usize> {
        let groups = self.lanes.len() / self.each;
        let levels = usize::from(self.levels.max(1));
        let group = usize::from(priority.max(1) - 1).min(levels - 1) * groups / levels;
        group * self.each..(group + 1) * self.each
    }
}

/// Lanes of a model.
fn count(spec: &ModelSpec, range: StreamPriorities) -> usize {
    usize::from(groups(spec, range)) * usize::from(spec.instances.max(1))
}

/// Streams that have a queue of the device each, unless the environment says otherwise.
const QUEUES: usize = 8;

fn queues() -> usize {
    std::env::var("CUDA_DEVICE_MAX_CONNECTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(QUEUES).min(32)
}

/// Whether a model's lanes launch ahead. What waits on the device holds up all that is in its queue, so no stream may share one.
/// `takes` is whether some model takes memory of the device while it is submitted, which waits for all that waits.
fn launches_ahead(gpu: &Gpu, tenant: &Tenant<'_>, streams: usize, takes: bool) -> bool {
    let model = &tenant.spec.name;
    if !gpu.settings.pre_launched.contains(model) {
        return false;
    }
    let why = if streams > queues() {
        "there are more streams than queues: set CUDA_DEVICE_MAX_CONNECTIONS (at most 32)"
    } else if takes {
        "it, or a model beside it, may have to wait for the device while it is submitted"
    } else if tenant.program.stays().is_some() {
        "its kernel is persistent"
    } else if !tenant.spec.fixed_inputs() && tenant.program.launches() {
        "the sizes of its inputs vary"
    } else {
        return true;
    };
    tracing::warn!(model, streams, why, "the model is not pre-launched");
    false
}

/// Whether a model's kernel, if it is persistent, waits on the device for the next batch: as above, no stream may share a queue then.
fn keeps_kernel(tenant: &Tenant<'_>, streams: usize) -> bool {
    let few = streams <= queues();
    if !few && tenant.program.stays().is_some() {
        let (model, why) =
            (&tenant.spec.name, "there are more streams than queues: set CUDA_DEVICE_MAX_CONNECTIONS (at most 32)");
        tracing::warn!(model, streams, why, "the model's kernel ends after each batch");
    }
    few
}

/// A porter, if there is to be one. It stays on the device, so no stream may have to wait for its queue: there are as many streams as are
/// counted here.
fn porter(gpu: &Gpu, arena: &GpuArena, slots: &[u16], streams: usize) -> Option<Porter> {
    if !gpu.settings.porter {
        return None;
    }
    let queues = queues();
    if streams > queues {
        tracing::info!(
            streams,
            queues,
            "more streams than queues, so no porter: set CUDA_DEVICE_MAX_CONNECTIONS (at most 32)"
        );
        return None;
    }
    let porter = Porter::new(arena, slots);
    porter.inspect_err(|error| tracing::warn!(%error, "there is no porter; the copy engines carry everything")).ok()
}

/// Groups of priorities that have lanes of their own.
pub(super) fn groups(spec: &ModelSpec, range: StreamPriorities) -> u8 {
    let steps = (range.least - range.greatest).unsigned_abs().min(254) as u8;
    spec.priority_levels.clamp(1, steps + 1)
}

/// How urgent a priority is beside those of other models: less is more urgent.
fn urgency(levels: u8, priority: u8) -> u8 {
    match levels {
        0 | 1 => ORDINARY,
        _ => (u16::from(priority.clamp(1, levels) - 1) * 255 / u16::from(levels - 1)) as u8,
    }
}

impl Device for Board {
    fn lanes(&self, model: u16) -> u16 {
        self.model(model).map_or(0, |m| m.lanes.len() as u16)
    }

    fn idle_lane(&self, model: u16, priority: u8) -> Option<u16> {
        let model = self.model(model)?;
        let mut idle = model.group(priority).filter(|lane| model.lanes[*lane].is_idle());
        let first = idle.next()?;
        let has_nothing = |lane: &usize| !model.lanes[*lane].has_waiting() && !model.lanes[*lane].is_withdrawn();
        Some(std::iter::once(first).chain(idle).find(has_nothing).unwrap_or(first) as u16)
    }

    fn booked(&self, model: u16, turn: Turn, bytes: u64) -> u64 {
        let Some(model) = self.model(model).filter(|_| !self.copies.incoming.all_given()) else { return 0 };
        let rank = (urgency(model.levels, turn.0), turn.1);
        let time = self.copies.incoming.time_until(rank, bytes).unwrap_or_default();
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }

    fn fetch(&mut self, model: u16, request: u32, turn: Turn, input: Run, tensors: &[TensorDesc]) {
        let Some(Some(model)) = self.models.get(usize::from(model)) else { return };
        let bytes: u64 = tensors.iter().map(|tensor| u64::from(tensor.bytes)).sum();
        let program = &model.program;
        let of_batch = bytes * u64::from(model.tensors.max_batch);
        let is_carried = model.tensors.is_even() && of_batch <= self.copies.by_kernel;
        // Behind other copies it would wait once more.
        let is_brought =
            is_carried && program.is_recorded() && !program.rehearses() && self.copies.incoming.all_given();
        if is_brought || program.works_in_place() && bytes <= self.copies.by_kernel {
            // By its launch, or it is read where it is.
            return;
        }
        let rank = (urgency(model.levels, turn.0), turn.1);
        self.copies.fetch(request, rank, input, tensors);
    }

    fn early_bytes(&self) -> u32 {
        self.copies.early_bytes()
    }

    fn arriving(&mut self, request: u32, input: Run, tensor: u16, offset: u32, len: u32) {
        // Slots of models that compute elsewhere are none of the GPU's.
        if self.arena.device(input, tensor, offset, len).is_some() {
            self.copies.arriving(request, input, tensor, offset, len);
        }
    }

    fn present(&mut self, request: u32, input: Run) -> bool {
        let context = self.arena.context();
        // A card's writes that are complete may still be on their way for kernels of this device.
        if context.device().rdma_writes_ordering == WritesOrdering::None
            && context.flush_remote_writes(FlushScope::Owner).is_err()
        {
            return false;
        }
        self.copies.present(request, input);
        true
    }

    fn forget(&mut self, request: u32) {
        self.copies.forget(request);
    }

    fn begin(&mut self, model: u16, lane: u16, turn: Turn, requests: &[u32], batch: &Batch) {
        let Some(Some(model)) = self.models.get_mut(usize::from(model)) else { return };
        let rank = (urgency(model.levels, turn.0), turn.1);
        let Model { tensors, program, lanes, .. } = model;
        let flight = &mut lanes[usize::from(lane)];
        let foreseen = matches!(batch.items(), [item] if flight.was_launched_for(item.input, item.output));
        self.withdrawn += usize::from(!foreseen && flight.withdraw());
        flight.begin(tensors, &**program, &mut self.copies, rank, requests, batch);
        self.under_way += 1;
    }

    fn foresees(&self, model: u16) -> bool {
        self.model(model).is_some_and(|model| model.lanes.iter().any(Flight::foresees))
    }

    fn launch_ahead(&mut self, model: u16, lane: u16, input: Run, output: Run) -> bool {
        let Some(Some(Model { tensors, program, lanes, .. })) = self.models.get_mut(usize::from(model)) else {
            return false;
        };
        let flight = &mut lanes[usize::from(lane)];
        let any = flight.launch_ahead(tensors, &**program, &self.copies, [input, output]);
        // It has failed half way.
        self.withdrawn += usize::from(any && flight.is_withdrawn());
        any
    }

    fn waiting_lane(&self, model: u16, priority: u8, input: Run) -> Option<u16> {
        let model = self.model(model)?;
        model.group(priority).find(|lane| model.lanes[*lane].waits_for(input)).map(|lane| lane as u16)
    }

    fn withdraw(&mut self, model: u16, lane: u16) {
        let Some(Some(model)) = self.models.get_mut(usize::from(model)) else { return };
        self.withdrawn += usize::from(model.lanes[usize::from(lane)].withdraw());
    }

    fn is_over(&mut self, model: u16, lane: u16) -> bool {
        let Some(Some(model)) = self.models.get_mut(usize::from(model)) else { return true };
        let flight = &mut model.lanes[usize::from(lane)];
        let was = flight.is_withdrawn();
        let over = flight.is_over();
        self.withdrawn -= usize::from(was && over);
        over
    }

    fn give_up(&mut self, model: u16, lane: u16) {
        let Some(Some(model)) = self.models.get_mut(usize::from(model)) else { return };
        model.lanes[usize::from(lane)].give_up(&mut self.copies);
        self.copies.close(&model.inputs);
    }

    fn has_news(&self) -> bool {
        let flights = || self.models.iter().flatten().flat_map(|model| &model.lanes);
        self.copies.are_awaited() || self.withdrawn > 0 || self.under_way > 0 && flights().any(Flight::has_signalled)
    }

    fn is_lost(&self) -> bool {
        self.arena.context().is_lost()
    }

    fn holds_on(&self) -> bool {
        let lanes = |model: &usize| self.models[*model].iter().flat_map(|model| &model.lanes);
        self.copies.can_port() || self.persistent.iter().flat_map(lanes).any(Flight::stays)
    }

    fn pump(&mut self) -> bool {
        for model in &self.persistent {
            self.models[*model].iter_mut().flat_map(|model| &mut model.lanes).for_each(Flight::rest);
        }
        self.copies.pump()
    }

    fn ended(&mut self, model: u16, lane: u16, batch: &Batch, launch: &mut Launch) -> Option<Result<(), RuntimeError>> {
        let Model { inputs, tensors, program, lanes, .. } = self.models.get_mut(usize::from(model))?.as_mut()?;
        let flight = &mut lanes[usize::from(lane)];
        let ended = flight.advance(tensors, &**program, &mut self.copies, batch, launch)?;
        self.under_way -= 1;
        if flight.was_given_up() {
            self.copies.open(inputs);
        }
        Some(ended.map_err(|error| RuntimeError(error.to_string())))
    }
}

impl Drop for Board {
    /// To give any memory back is to wait for all of the device's streams, so where something does not end nothing is given back.
    fn drop(&mut self) {
        // All are told before one is waited for.
        self.models.iter_mut().flatten().flat_map(|model| &mut model.lanes).for_each(Flight::abandon);
        if !self.models.iter().flatten().flat_map(|model| &model.lanes).all(Flight::ends) {
            tracing::warn!("a launch does not end, so the GPU's memory is not given back before the process ends");
            self.arena.context().keep_all();
            self.models.leave();
            self.copies.leave();
            self.arena.leave();
        }
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("arena", &self.arena).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_level_is_the_most_urgent_and_no_level_is_in_the_middle() {
        assert_eq!([1, 2].map(|p| urgency(2, p)), [0, 255]);
        assert_eq!([1, 2, 3, 9].map(|p| urgency(3, p)), [0, 127, 255, 255]);
        assert_eq!((urgency(0, 0), urgency(1, 1)), (ORDINARY, ORDINARY));
        assert_eq!(urgency(255, 255), 255);
    }
}
