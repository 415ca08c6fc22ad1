//! One lane of a model, and the batch that is under way on it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use splitrpc_cuda::{DeviceMemory, Event, MemoryOptions};
use splitrpc_gpu::{Direction, GpuArena, GpuError, Lane, Operand, Recording, Work, filled};
use splitrpc_ring::Run;
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{DType, Shape, TensorDesc};

use super::batch::{Stretch, stretches};
use super::transfers::Transfers;
use super::{Gpu, Program, Rows};
use crate::model::spec::ModelSpec;
use crate::runtime::{Batch, Launch};

/// Where in the memory for compactions a tensor may begin, unless the model asks for more.
const ALIGNMENT: u64 = 256;
/// What the address of every slot of a window of one row is a multiple of.
const SLOT_ALIGNMENT: u64 = 64;
/// The stages of one launch in so many are timed by the device's clock, which takes longer than all else about a small one. The others are
/// taken to be shared out alike.
const TIMED_EVERY: u32 = 128;
/// How long a batch may be under way before the driver is asked whether it has failed.
const PATIENCE: Duration = Duration::from_millis(1);
/// Up to so many rows, each number of them has a recording of its own before the first batch; beyond that, only some have.
const EACH_RECORDED: u32 = 32;
/// No first slot: the tensor's rows were put together elsewhere.
const ELSEWHERE: u32 = u32::MAX;

/// What all lanes of a model know of its tensors.
pub(super) struct Tensors {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Rows of a window, of the inputs' and the outputs' pools.
    max_batch: u16,
    has_rows: bool,
    alignment: u64,
    /// Bytes of memory for compactions.
    staging: u64,
}

struct Tensor {
    /// Bytes of a row; `None` where they vary, and then there is one request in a batch.
    row: Option<u32>,
    /// Where it is put together, in the memory for compactions.
    at: u64,
    dtype: DType,
    /// Those of one row, for outputs.
    dims: Vec<u32>,
}

impl Tensors {
    pub(super) fn new(spec: &ModelSpec, program: &dyn Program) -> Tensors {
        let max_batch = spec.max_batch.max(1);
        let alignment = u64::from(program.alignment().max(1));
        let mut staging = 0;
        let mut tensor = |tensor| {
            let row = spec.row_bytes(tensor);
            let at = staging;
            // Slots of single rows are where they should be, as long as not too much is asked.
            if max_batch > 1 || alignment > SLOT_ALIGNMENT || program.rehearses() {
                let window = u64::from(row.unwrap_or(0)) * u64::from(max_batch);
                staging += window.next_multiple_of(ALIGNMENT.max(alignment));
            }
            let dims = spec.row_dims(tensor).iter().map(|d| d.unwrap_or(0)).collect();
            Tensor { row, at, dtype: tensor.dtype, dims }
        };
        let inputs = spec.inputs.iter().map(&mut tensor).collect();
        let outputs = spec.outputs.iter().map(&mut tensor).collect();
        Tensors { inputs, outputs, max_batch, has_rows: spec.max_batch > 0, alignment, staging }
    }

    /// Bytes of each lane's memory for compactions.
    pub(super) fn staging(&self) -> u64 {
        self.staging
    }

    /// The greater of how many inputs and outputs there are.
    pub(super) fn most(&self) -> usize {
        self.inputs.len().max(self.outputs.len()).max(1)
    }

    /// Outputs of a batch, each request's apart.
    pub(super) fn most_outputs(&self) -> usize {
        self.outputs.len().max(1) * usize::from(self.max_batch)
    }

    fn row_bytes(tensors: &[Tensor]) -> u64 {
        tensors.iter().map(|t| u64::from(t.row.unwrap_or(0))).sum()
    }

    fn is_fixed(&self) -> bool {
        self.inputs.iter().all(|tensor| tensor.row.is_some())
    }

    /// Bytes of an input in a stretch of a batch.
    fn input_bytes(&self, tensor: usize, stretch: &Stretch, batch: &Batch) -> u32 {
        match self.inputs[tensor].row {
            Some(row) => row * u32::from(stretch.run.rows),
            None => batch.items().first().map_or(0, |item| batch.tensors(item)[tensor].bytes),
        }
    }

    /// Descriptions of the outputs of a request with so many rows.
    fn describe(&self, rows: u16) -> impl Iterator<Item = TensorDesc> {
        self.outputs.iter().enumerate().filter_map(move |(handle, tensor)| {
            let mut dims = [0; splitrpc_wire::MAX_RANK];
            let rank = usize::from(self.has_rows) + tensor.dims.len();
            let dims = dims.get_mut(..rank)?;
            dims[rank - tensor.dims.len()..].copy_from_slice(&tensor.dims);
            if self.has_rows {
                dims[0] = rows.into();
            }
            TensorDesc::fixed(handle as u16, tensor.dtype, Shape::new(dims).ok()?).ok()
        })
    }
}

/// How far a lane's batch has come.
enum Phase {
    /// There is none.
    Idle,
    /// Its inputs are copied ahead of the launch. Where nothing is launched, the porter may have got this order for the outputs.
    Filling { since: Instant, asked: Instant, filled: Option<Instant>, outputs: Option<u64> },
    /// Everything was submitted, up to the signal at the end.
    Computing { copy_in: Option<Duration>, since: Instant, asked: Instant },
    /// Outputs are copied behind the launch, which took so long.
    Emptying { copy_in: Option<Duration>, launch: Duration, since: Instant },
    /// Something could not be submitted; what was before it is still under way.
    Failing(GpuError),
}

/// Points in time on the device.
struct Marks {
    begun: Event,
    filled: Event,
    computed: Event,
    emptied: Event,
}

/// How the time of a launch is shared out, by the last one that was timed.
#[derive(Clone, Copy, Default)]
struct Split {
    /// Launches since then, and before the first that was.
    launches: u32,
    /// Whether there was one.
    is_known: bool,
    /// Shares of the whole.
    copy_in: f32,
    compute: f32,
    copy_out: f32,
}

/// What a recording is of: so many rows, with inputs and outputs from these slots on.
type Key = (u32, u32, u32);

/// A lane with its batch.
pub(super) struct Flight {
    lane: Lane,
    phase: Phase,
    marks: Marks,
    /// The inputs are there, as far as the stream of the copies goes.
    arrived: Event,
    /// Its number among the board's: the ticket of its copies out.
    ticket: u32,
    /// Which of the lane's buffers is for compactions.
    staging: usize,
    inputs: Vec<Stretch>,
    outputs: Vec<Stretch>,
    requests: Vec<u32>,
    compactions: u8,
    operands: (Vec<Operand>, Vec<Operand>),
    /// What was recorded, by rows and first slots.
    recordings: HashMap<Key, Recording>,
    /// Which of them the batch's is.
    key: Key,
    rank: (u8, u64),
    /// The number of its last signal.
    number: u32,
    /// By the size of batches.
    splits: Vec<Split>,
    /// Which of them the batch's is.
    size: usize,
    /// Whether the batch is timed.
    timed: bool,
    given_up: bool,
    /// Somebody else put all inputs where they are.
    present: bool,
    /// The last order to the porter about its outputs.
    ordered: u64,
}

impl Flight {
    pub(super) fn new(
        gpu: &Gpu,
        arena: &GpuArena,
        tensors: &Tensors,
        program: &dyn Program,
        priority: i32,
        ticket: u32,
    ) -> Result<Flight, GpuError> {
        let context = &gpu.context;
        let resources = program.resources()?;
        let mut buffers = resources.buffers;
        let staging = buffers.len();
        if tensors.staging > 0 {
            let bytes = tensors.staging as usize;
            buffers.push(if program.rehearses() {
                filled(context, &vec![0; bytes])?
            } else {
                DeviceMemory::new(context, bytes, MemoryOptions::default())?.into()
            });
        }
        let mark = || Event::timed(context);
        let marks = Marks { begun: mark()?, filled: mark()?, computed: mark()?, emptied: mark()? };
        let lane = Lane::new(arena, priority, buffers, resources.kernels)?.with_packages(resources.packages);
        let mut flight = Flight {
            lane,
            phase: Phase::Idle,
            marks,
            arrived: Event::new(context)?,
            ticket,
            staging,
            inputs: Vec::with_capacity(tensors.max_batch.into()),
            outputs: Vec::with_capacity(tensors.max_batch.into()),
            requests: Vec::with_capacity(tensors.max_batch.into()),
            compactions: 0,
            operands: (Vec::with_capacity(tensors.inputs.len()), Vec::with_capacity(tensors.outputs.len())),
            recordings: HashMap::new(),
            key: (0, ELSEWHERE, ELSEWHERE),
            rank: (0, 0),
            number: 0,
            splits: vec![Split::default(); usize::from(tensors.max_batch).max(64) + 1],
            size: 0,
            timed: false,
            given_up: false,
            present: false,
            ordered: 0,
        };
        if program.rehearses() {
            flight.rehearse(tensors, program)?;
        }
        Ok(flight)
    }

    /// Computes batches of nothing in the memory for compactions, and records that, so that whatever comes has been recorded. For start-up.
    fn rehearse(&mut self, tensors: &Tensors, program: &dyn Program) -> Result<(), GpuError> {
        let most = u32::from(tensors.max_batch);
        for count in (1..=most).filter(|count| *count <= EACH_RECORDED || count.is_power_of_two() || *count == most) {
            self.place_elsewhere(tensors, count);
            let (inputs, outputs) = &self.operands;
            program.submit(&self.lane.work(), &Rows { count, inputs, outputs })?;
            self.lane.finish()?;
            if program.is_recorded() {
                self.compute(program, count)?;
                self.lane.finish()?;
                if !self.recordings.contains_key(&self.key) {
                    tracing::warn!(rows = count, "a batch cannot be recorded, so it is submitted piece by piece");
                }
            }
        }
        Ok(())
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether what was submitted is done, and that is not known yet.
    #[inline]
    pub(super) fn has_signalled(&self) -> bool {
        matches!(self.phase, Phase::Computing { .. }) && self.lane.signalled() == self.number
    }

    /// Takes a batch up. Inputs that are not on their way already are copied in front of the launch where they are small, else with
    /// the other copies, so that urgent ones can pass.
    pub(super) fn begin(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &mut Transfers,
        rank: (u8, u64),
        requests: &[u32],
        batch: &Batch,
    ) {
        self.rank = rank;
        self.requests.clear();
        self.requests.extend_from_slice(requests);
        let arena = self.lane.arena().host_arena();
        let window = |pool| arena.layout(pool).map_or(1, |layout| layout.max_batch());
        stretches(batch.items().iter().map(|item| Run { rows: item.rows, ..item.input }), window, &mut self.inputs);
        stretches(batch.items().iter().filter_map(|item| item.output), window, &mut self.outputs);
        let bytes: u64 = batch.items().iter().flat_map(|i| batch.tensors(i)).map(|t| u64::from(t.bytes)).sum();
        // Of batches whose rows vary in size there is only one row.
        self.size = if tensors.is_fixed() { batch.rows() as usize } else { (64 - bytes.leading_zeros()) as usize };
        self.size = self.size.min(self.splits.len() - 1);
        let split = &mut self.splits[self.size];
        split.launches += 1;
        // Not the first, which may be recorded, and compiled.
        self.timed = split.launches > 1 && (split.launches % TIMED_EVERY == 2 || !split.is_known);
        let since = Instant::now();
        if let Some(error) = copies.failure() {
            self.forget(copies);
            self.phase = Phase::Failing(error);
            return;
        }
        let mut begun = requests.iter().zip(batch.items());
        let ahead = begun.any(|(request, item)| copies.has_begun(*request, item.input));
        let each = || requests.iter().zip(batch.items());
        each().for_each(|(request, item)| copies.begin(*request, item.input));
        self.present = requests.iter().all(|request| copies.is_present(*request));
        let left: u64 = each().map(|(request, item)| copies.left(*request, batch.tensors(item))).sum();
        let small = left <= copies.direct && copies.incoming.all_given();
        // A launch can stand behind a copy engine's copy on its stream at once, where it would have to wait for the porter's to be seen.
        let ports =
            small && !program.launches() && copies.can_port() && each().all(|(request, _)| copies.is_alone(*request));
        let ported = ports && each().all(|(r, item)| copies.port(*r, item.input, batch.tensors(item)));
        // What the porter has yet to do the launch waits for, as it does for copies that others may pass.
        if ported || !small || !each().all(|(request, _)| copies.is_ported(*request)) {
            if !ported {
                each().for_each(|(request, item)| copies.fetch(*request, rank, item.input, batch.tensors(item)));
            }
            let outputs = if ported && !program.launches() { self.port_outputs(tensors, copies) } else { None };
            copies.waited_for += 1;
            copies.launched(program.launches());
            self.phase = Phase::Filling { since, asked: since, filled: None, outputs };
            return;
        }
        // Others may be on their way to the same slots of requests that came to nothing. A stream keeps the order.
        let alone = !ahead && copies.are_settled();
        if let Some(error) = copies.failure() {
            self.forget(copies);
            self.phase = Phase::Failing(error);
            return;
        }
        let copied = if alone { self.copy_in(tensors, batch) } else { self.copy_rest(copies, batch) };
        let begun = copied.and_then(|()| self.launch(tensors, program, copies, !alone, batch));
        self.phase = begun.map_or_else(Phase::Failing, |()| Phase::Computing { copy_in: None, since, asked: since });
        copies.launched(program.launches());
    }

    /// Has the porter bring outputs that lie in their slots already. Returns its last order, or `None` where that is not how it is done.
    fn port_outputs(&mut self, tensors: &Tensors, copies: &mut Transfers) -> Option<u64> {
        if !self.empties_directly(tensors, copies) {
            return None;
        }
        let mut last = self.ordered;
        let mut each = self.each_output(tensors);
        let all = each.all(|(run, tensor, bytes)| {
            let order = copies.order(Direction::Out, run, tensor, 0, bytes);
            last = order.unwrap_or(last);
            order.is_some()
        });
        drop(each);
        self.ordered = last;
        all.then_some(last)
    }

    /// Goes on. Returns how the batch has ended, once it has.
    pub(super) fn advance(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &mut Transfers,
        batch: &Batch,
        launch: &mut Launch,
    ) -> Option<Result<(), GpuError>> {
        match self.step(tensors, program, copies, batch, launch) {
            Ok(false) => None,
            Ok(true) => {
                self.phase = Phase::Idle;
                Some(Ok(()))
            }
            Err(error) if error.is_sticky() || matches!(self.phase, Phase::Idle) => {
                self.phase = Phase::Idle;
                Some(Err(error))
            }
            Err(error) => {
                self.phase = Phase::Failing(error);
                None
            }
        }
    }

    /// Whether all is done. An error that comes with the lane idle is what the batch has ended with.
    fn step(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &mut Transfers,
        batch: &Batch,
        launch: &mut Launch,
    ) -> Result<bool, GpuError> {
        match &self.phase {
            Phase::Idle => Ok(false),
            &Phase::Filling { since, asked, filled, outputs } => {
                if let Some(error) = copies.failed.clone() {
                    self.forget(copies);
                    copies.waited_for -= 1;
                    return Err(error);
                }
                let now = Instant::now();
                let inputs = filled.is_some() || self.requests.iter().all(|request| copies.are_done(*request));
                let filled = filled.or(inputs.then_some(now));
                let ready = inputs && outputs.is_none_or(|order| copies.is_carried(order));
                if !ready {
                    let overdue = now.saturating_duration_since(asked) > PATIENCE;
                    if overdue {
                        // A porter that has failed says nothing.
                        copies.check();
                    }
                    let asked = if overdue { now } else { asked };
                    self.phase = Phase::Filling { since, asked, filled, outputs };
                    return Ok(false);
                }
                let filled = filled.unwrap_or(now);
                let copy_in = Some(filled.saturating_duration_since(since));
                self.forget(copies);
                copies.waited_for -= 1;
                if outputs.is_some() {
                    (self.timed, self.compactions) = (false, 0);
                    let copy_out = now.saturating_duration_since(filled);
                    self.answer(tensors, copy_in, Duration::ZERO, copy_out, batch, launch)?;
                    return Ok(true);
                }
                let since = Instant::now();
                self.mark(&self.marks.filled)?;
                self.launch(tensors, program, copies, true, batch)?;
                self.phase = Phase::Computing { copy_in, since, asked: since };
                Ok(false)
            }
            Phase::Computing { copy_in, since, asked } => {
                let (copy_in, since) = (*copy_in, *since);
                if self.lane.signalled() != self.number {
                    // What has failed never signals.
                    let now = Instant::now();
                    if now.saturating_duration_since(*asked) > PATIENCE {
                        self.lane.is_done()?;
                        self.phase = Phase::Computing { copy_in, since, asked: now };
                    }
                    return Ok(false);
                }
                // Where the porter had no room for all outputs, it still brings some of them.
                if !copies.is_carried(self.ordered) {
                    return Ok(false);
                }
                let took = since.elapsed();
                if self.empties_directly(tensors, copies) {
                    self.answer(tensors, copy_in, took, Duration::ZERO, batch, launch)?;
                    return Ok(true);
                }
                for (run, tensor, bytes) in self.each_output(tensors) {
                    copies.outgoing.push(self.ticket, self.rank, run, tensor, 0, bytes)?;
                }
                copies.waited_for += 1;
                self.phase = Phase::Emptying { copy_in, launch: took, since: Instant::now() };
                Ok(false)
            }
            Phase::Emptying { copy_in, launch: took, since } => {
                if let Some(error) = copies.failed.clone() {
                    copies.outgoing.forget(self.ticket);
                    copies.waited_for -= 1;
                    return Err(error);
                }
                if !copies.outgoing.are_done(self.ticket) {
                    return Ok(false);
                }
                let (copy_in, took, copy_out) = (*copy_in, *took, since.elapsed());
                copies.waited_for -= 1;
                self.answer(tensors, copy_in, took, copy_out, batch, launch)?;
                Ok(true)
            }
            Phase::Failing(error) => {
                let error = error.clone();
                if error.is_sticky() {
                    self.phase = Phase::Idle;
                    return Err(error);
                }
                // What comes of that is in what is under way.
                let _ = (copies.incoming.pump(), copies.outgoing.pump());
                let engines = copies.incoming.are_settled() && copies.outgoing.are_settled();
                let settled = engines && copies.is_carried(self.ordered);
                // Copies in front of a launch are on either stream.
                if settled && copies.incoming.lane().is_done()? && self.lane.is_done()? {
                    self.phase = Phase::Idle;
                    return Err(error);
                }
                Ok(false)
            }
        }
    }

    /// The batch's requests have been answered, and their numbers are given to others. What was submitted goes on.
    pub(super) fn give_up(&mut self, copies: &mut Transfers) {
        if matches!(self.phase, Phase::Filling { .. }) {
            self.forget(copies);
            copies.waited_for -= 1;
            self.phase = Phase::Failing(GpuError::NoSlots);
        }
        self.requests.clear();
        self.given_up = true;
    }

    /// Whether the batch that ended last had been given up.
    pub(super) fn was_given_up(&mut self) -> bool {
        std::mem::take(&mut self.given_up)
    }

    /// The batch's requests are copied no more. What the porter was told of them it still does.
    fn forget(&mut self, copies: &mut Transfers) {
        for request in &self.requests {
            self.ordered = self.ordered.max(copies.order_of(*request));
            copies.forget(*request);
        }
    }

    /// Notes on the device when it gets there, if the batch is timed.
    fn mark(&self, event: &Event) -> Result<(), GpuError> {
        if self.timed { self.lane.mark(event) } else { Ok(()) }
    }

    fn copy_in(&self, tensors: &Tensors, batch: &Batch) -> Result<(), GpuError> {
        self.mark(&self.marks.begun)?;
        let work = self.lane.work();
        for stretch in &self.inputs {
            for tensor in 0..tensors.inputs.len() {
                let bytes = tensors.input_bytes(tensor, stretch, batch);
                if bytes > 0 {
                    work.copy_in(stretch.run, tensor as u16, 0, bytes)?;
                }
            }
        }
        self.mark(&self.marks.filled)
    }

    /// Copies what is not on its way yet behind what is, on the stream of the copies, and has the lane wait for it.
    fn copy_rest(&self, copies: &mut Transfers, batch: &Batch) -> Result<(), GpuError> {
        self.mark(&self.marks.begun)?;
        let mut copied = Ok(());
        for (request, item) in self.requests.iter().zip(batch.items()) {
            copies.rest(*request, batch.tensors(item), |copies, tensor, from, len| {
                let work = copies.incoming.lane().work();
                copied = copied.clone().and_then(|()| work.copy_in(item.input, tensor, from, len));
                true
            });
            copies.forget(*request);
        }
        copied?;
        copies.incoming.lane().mark(&self.arrived)?;
        self.lane.wait(&self.arrived)?;
        self.mark(&self.marks.filled)
    }

    /// Submits everything from the inputs' being there on. They have come on another stream if they were `fetched`.
    fn launch(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &Transfers,
        fetched: bool,
        batch: &Batch,
    ) -> Result<(), GpuError> {
        self.compactions = 0;
        self.place(tensors, batch);
        // No time for that here, if there is another way.
        if program.rehearses() && !self.recordings.contains_key(&self.key) && self.lane.recordings_left() == 0 {
            let elsewhere = (batch.rows(), ELSEWHERE, ELSEWHERE);
            if self.recordings.contains_key(&elsewhere) {
                self.place_elsewhere(tensors, batch.rows());
            }
        }
        self.gather(tensors, batch)?;
        self.compute(program, batch.rows())?;
        self.mark(&self.marks.computed)?;
        self.spread(tensors)?;
        if self.empties_directly(tensors, copies) {
            let work = self.lane.work();
            // A copy engine takes its time to begin after what another engine has done.
            if (fetched || program.launches()) && self.output_bytes(tensors) <= copies.by_kernel {
                work.deliver(self.each_output(tensors))?;
            } else {
                for (run, tensor, bytes) in self.each_output(tensors) {
                    work.copy_out(run, tensor, 0, bytes)?;
                }
            }
        }
        self.mark(&self.marks.emptied)?;
        self.number = self.number.wrapping_add(1);
        self.lane.signal(self.number)
    }

    fn empties_directly(&self, tensors: &Tensors, copies: &Transfers) -> bool {
        self.output_bytes(tensors) <= copies.direct
    }

    fn output_bytes(&self, tensors: &Tensors) -> u64 {
        let rows: u64 = self.outputs.iter().map(|stretch| u64::from(stretch.run.rows)).sum();
        rows * Tensors::row_bytes(&tensors.outputs)
    }

    /// Where each output is, and how many bytes it has.
    fn each_output<'f>(&'f self, tensors: &'f Tensors) -> impl Iterator<Item = (Run, u16, u32)> + 'f {
        self.outputs.iter().flat_map(|stretch| {
            let rows = u32::from(stretch.run.rows);
            let bytes = move |tensor: &Tensor| tensor.row.unwrap_or(0) * rows;
            let outputs = tensors.outputs.iter().map(bytes).enumerate();
            outputs.filter(|(_, bytes)| *bytes > 0).map(|(tensor, bytes)| (stretch.run, tensor as u16, bytes))
        })
    }

    /// Where each tensor is for the program: in its slots where the batch's rows lie together there, as they should.
    fn place(&mut self, tensors: &Tensors, batch: &Batch) {
        let (inputs, outputs) = &mut self.operands;
        inputs.clear();
        outputs.clear();
        let first = |stretches: &[Stretch]| if let [one] = stretches { one.run.first } else { ELSEWHERE };
        self.key = (batch.rows(), first(&self.inputs), first(&self.outputs));
        let arena = self.lane.arena();
        let rows = u64::from(batch.rows());
        let place = |known: &Tensor, tensor: usize, stretches: &[Stretch], bytes: u64| {
            if let [Stretch { run, .. }] = stretches
                && let Ok(bytes) = u32::try_from(bytes)
                && let Some(range) = arena.device(*run, tensor as u16, 0, bytes)
                && range.address().is_multiple_of(tensors.alignment)
            {
                return Operand::Slots { run: *run, tensor: tensor as u16, bytes };
            }
            Operand::Buffer { buffer: self.staging, at: known.at, bytes }
        };
        for (tensor, known) in tensors.inputs.iter().enumerate() {
            let varies = || self.inputs.first().map_or(0, |s| tensors.input_bytes(tensor, s, batch).into());
            let bytes = known.row.map_or_else(varies, |row| u64::from(row) * rows);
            inputs.push(place(known, tensor, &self.inputs, bytes));
        }
        for (tensor, known) in tensors.outputs.iter().enumerate() {
            outputs.push(place(known, tensor, &self.outputs, u64::from(known.row.unwrap_or(0)) * rows));
        }
    }

    /// Has all of a batch of so many rows put together in the memory for compactions.
    fn place_elsewhere(&mut self, tensors: &Tensors, count: u32) {
        self.key = (count, ELSEWHERE, ELSEWHERE);
        let staging = self.staging;
        let place = |known: &Tensor| {
            let bytes = u64::from(known.row.unwrap_or(0)) * u64::from(count);
            Operand::Buffer { buffer: staging, at: known.at, bytes }
        };
        let (inputs, outputs) = &mut self.operands;
        inputs.clear();
        outputs.clear();
        inputs.extend(tensors.inputs.iter().map(place));
        outputs.extend(tensors.outputs.iter().map(place));
    }

    /// Puts inputs together whose rows lie apart.
    fn gather(&mut self, tensors: &Tensors, batch: &Batch) -> Result<(), GpuError> {
        let work = self.lane.work();
        let mut any = false;
        for (tensor, (known, operand)) in tensors.inputs.iter().zip(&self.operands.0).enumerate() {
            let (&Operand::Buffer { buffer, at, .. }, Some(row)) = (operand, known.row) else { continue };
            for stretch in self.inputs.iter().filter(|_| row > 0) {
                let bytes = tensors.input_bytes(tensor, stretch, batch);
                let at = at + u64::from(row) * u64::from(stretch.row);
                work.compact(stretch.run, tensor as u16, bytes, buffer, at)?;
                any = true;
            }
        }
        self.compactions += u8::from(any);
        Ok(())
    }

    /// Takes outputs apart whose rows belong apart.
    fn spread(&mut self, tensors: &Tensors) -> Result<(), GpuError> {
        let work = self.lane.work();
        let mut any = false;
        for (tensor, (known, operand)) in tensors.outputs.iter().zip(&self.operands.1).enumerate() {
            let (&Operand::Buffer { buffer, at, .. }, Some(row)) = (operand, known.row) else { continue };
            for stretch in self.outputs.iter().filter(|_| row > 0) {
                let at = at + u64::from(row) * u64::from(stretch.row);
                work.spread(buffer, at, stretch.run, tensor as u16, row * u32::from(stretch.run.rows))?;
                any = true;
            }
        }
        self.compactions += u8::from(any);
        Ok(())
    }

    fn compute(&mut self, program: &dyn Program, count: u32) -> Result<(), GpuError> {
        let Flight { lane, operands: (inputs, outputs), recordings, key, .. } = self;
        let rows = Rows { count, inputs, outputs };
        if !program.is_recorded() {
            return program.submit(&lane.work(), &rows);
        }
        let known = match recordings.get(key) {
            Some(known) => Some(*known),
            None => match lane.record(|work: &Work<'_>| program.submit(work, &rows)) {
                Ok(recorded) => recorded,
                Err(error) if error.is_sticky() => return Err(error),
                // It goes without.
                Err(_) => None,
            },
        };
        match known {
            Some(recording) => {
                recordings.insert(*key, recording);
                lane.replay(recording)
            }
            None => program.submit(&lane.work(), &rows),
        }
    }

    /// Answers all items. `took` is from the launch, of which the copies in are part where they have no time of their own, until its end
    /// was seen; `copy_out` comes on top of that.
    fn answer(
        &mut self,
        tensors: &Tensors,
        copy_in: Option<Duration>,
        took: Duration,
        copy_out: Duration,
        batch: &Batch,
        launch: &mut Launch,
    ) -> Result<(), GpuError> {
        if self.timed {
            self.split(copy_in.is_none(), took)?;
        }
        let split = self.splits[self.size];
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let share = |of: f32| (took.as_nanos() as f32 * of) as u64;
        launch.copy_in_ns = copy_in.map_or_else(|| share(split.copy_in), ns);
        launch.copy_out_ns = share(split.copy_out) + ns(copy_out);
        launch.compute_ns = share(split.compute);
        if !split.is_known {
            launch.compute_ns = ns(took);
        }
        // Who brought what was there already, the port knows.
        let mover = if self.present { Mover::Unknown } else { Mover::GpuCopy };
        launch.moved = Some((mover, Memory::Cuda));
        launch.compactions = self.compactions;
        for item in batch.items() {
            launch.push_in_place(tensors.describe(item.rows));
        }
        Ok(())
    }

    /// Keeps how the time of a launch that was timed was shared out.
    fn split(&mut self, copies_in: bool, took: Duration) -> Result<(), GpuError> {
        let Marks { begun, filled, computed, emptied } = &self.marks;
        let share = |from: &Event, to: &Event| {
            let time = to.elapsed_since(from)?.unwrap_or_default();
            Ok::<_, GpuError>((time.as_secs_f32() / took.as_secs_f32().max(1e-9)).min(1.0))
        };
        let copy_in = if copies_in { share(begun, filled)? } else { 0.0 };
        let (compute, copy_out) = (share(filled, computed)?, share(computed, emptied)?);
        let split = &mut self.splits[self.size];
        *split = Split { launches: split.launches, is_known: true, copy_in, compute, copy_out };
        Ok(())
    }
}
