//! One lane of a model, and the batch that is under way on it.

mod ahead;
mod habits;
mod launch;
mod persistent;
mod recordings;
mod startup;
mod steps;
mod timing;

use std::time::{Duration, Instant};

use splitrpc_cuda::{DeviceMemory, Event, MemoryOptions};
use splitrpc_gpu::{Direction, GpuArena, GpuError, Lane, Operand, Persistent, filled};
use splitrpc_ring::Run;

use self::ahead::Ahead;
use self::persistent::Resident;
use self::recordings::{Key, Recordings};
use self::timing::{Marks, Split};
use super::batch::{Stretch, stretches};
use super::tensors::Tensors;
use super::transfers::Transfers;
use super::{Gpu, Program};
use crate::runtime::Batch;

/// What a model's lanes may leave on the device while they have no batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeps {
    /// The next launch, behind a gate.
    pub(super) ahead: bool,
    /// The model's kernel, where that is persistent.
    pub(super) kernel: bool,
}

/// How long a batch may be under way before the driver is asked whether it has failed.
const PATIENCE: Duration = Duration::from_millis(1);

/// How far a lane's batch has come.
enum Phase {
    /// There is none.
    Idle,
    /// Its inputs are copied ahead of the launch. Where nothing is launched, the porter may have got this order for the outputs.
    Filling { since: Instant, asked: Instant, filled: Option<Instant>, outputs: Option<u64> },
    /// Everything was submitted, up to the signal at the end.
    Computing { copy_in: Option<Duration>, since: Instant, asked: Instant },
    /// Outputs are copied behind the launch, which took so long.
    Emptying { copy_in: Option<Duration>, launch: Duration, since: Instant, asked: Instant },
    /// Something could not be submitted; what was before it is still under way.
    Failing(GpuError),
}

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
    recordings: Recordings,
    /// Which of them the batch's is, if its computing is recorded apart, and how many rows are computed: those of the batch and maybe one more.
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
    /// Inputs and outputs stay on the host.
    in_place: bool,
    /// The last order to the porter about its outputs.
    ordered: u64,
    /// What it launches ahead, where the model's lanes do that.
    ahead: Option<Ahead>,
    /// The model's kernel, where that is persistent.
    resident: Option<Resident>,
}

impl Flight {
    pub(super) fn new(
        gpu: &Gpu,
        arena: &GpuArena,
        tensors: &Tensors,
        program: &dyn Program,
        priority: i32,
        ticket: u32,
        keeps: Keeps,
    ) -> Result<Flight, GpuError> {
        let context = &gpu.context;
        let resources = program.resources()?;
        let mut buffers = resources.buffers;
        let staging = buffers.len();
        if tensors.staging() > 0 {
            let bytes = tensors.staging() as usize;
            buffers.push(if program.rehearses() {
                filled(context, &vec![0; bytes])?
            } else {
                DeviceMemory::new(context, bytes, MemoryOptions::default())?.into()
            });
        }
        let resident = program.stays().map(|stays| {
            let kernel = stays.kernel.clone();
            let kernel = Persistent::new(arena, priority, buffers.clone(), kernel, stays.launch, stays.values)?;
            Ok::<_, GpuError>(Resident::new(kernel, keeps.kernel))
        });
        let resident = resident.transpose()?;
        let mut lane = Lane::new(arena, priority, buffers, resources.kernels)?.with_packages(resources.packages);
        let ahead = if keeps.ahead { Some(Ahead::new(context)?) } else { None };
        if let Some(ahead) = &ahead {
            lane = lane.with_gate(ahead.gate());
        }
        let mut flight = Flight {
            lane,
            phase: Phase::Idle,
            marks: Marks::new(context)?,
            arrived: Event::new(context)?,
            ticket,
            staging,
            inputs: Vec::with_capacity(tensors.max_batch.into()),
            outputs: Vec::with_capacity(tensors.max_batch.into()),
            requests: Vec::with_capacity(tensors.max_batch.into()),
            compactions: 0,
            operands: (Vec::with_capacity(tensors.inputs.len()), Vec::with_capacity(tensors.outputs.len())),
            recordings: Recordings::new(),
            key: Key::elsewhere(0),
            rank: (0, 0),
            number: 0,
            splits: vec![Split::default(); usize::from(tensors.max_batch).max(64) + 1],
            size: 0,
            timed: false,
            given_up: false,
            present: false,
            in_place: false,
            ordered: 0,
            ahead,
            resident,
        };
        if program.rehearses() {
            flight.rehearse(tensors, program)?;
        } else if program.is_recorded() && tensors.staging() > 0 {
            flight.record(tensors, program, gpu.settings.kernel_bytes)?;
        }
        Ok(flight)
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
        matches!(self.phase, Phase::Computing { .. }) && self.is_reached()
    }

    /// Whether the part of the batch that was begun last is done.
    #[inline]
    fn is_reached(&self) -> bool {
        let computed = self.resident.as_ref().and_then(Resident::is_done);
        computed.unwrap_or_else(|| self.lane.signalled() == self.number)
    }

    /// Takes a batch up. Inputs that are not on their way already are copied in front of the launch where they are small, else with
    /// the other copies, so that urgent ones can pass. What was launched ahead, if it waits, waits for this batch.
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
        self.in_place = false;
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
        let ahead = self.take_up();
        self.timed = self.splits[self.size].count() && !ahead && self.resident.is_none();
        let since = Instant::now();
        if let Some(error) = copies.failure() {
            return self.fail(copies, error);
        }
        let mut begun = requests.iter().zip(batch.items());
        let early = begun.any(|(request, item)| copies.has_begun(*request, item.input));
        let each = || requests.iter().zip(batch.items());
        each().for_each(|(request, item)| copies.take(*request, item.input));
        self.present = requests.iter().all(|request| copies.is_present(*request));
        if self.fetches_itself() && (self.present || !early) && copies.failed.is_none() {
            self.forget(copies);
            // It reads what is on the host, which is not what somebody else has put on the device.
            if self.present {
                self.miss();
            }
            self.open();
            copies.launched(program.launches());
            self.phase = Phase::Computing { copy_in: None, since, asked: since };
            return;
        }
        if !early
            && !self.present
            && let Some(rung) = self.rings_in_place(tensors, program, copies, batch)
        {
            self.forget(copies);
            self.phase = rung.map_or_else(Phase::Failing, |()| Phase::Computing { copy_in: None, since, asked: since });
            return;
        }
        let left: u64 = each().map(|(request, item)| copies.left(*request, batch.tensors(item))).sum();
        let small = left <= copies.direct && copies.incoming.all_given();
        // A launch can stand behind a copy engine's copy on its stream at once, where it would have to wait for the porter's to be seen.
        let ports =
            small && !program.launches() && copies.can_port() && each().all(|(request, _)| copies.is_alone(*request));
        let ported = ports && each().all(|(r, item)| copies.port(*r, item.input, batch.tensors(item)));
        // What the porter has yet to do the launch waits for, as it does for copies that others may pass.
        if ahead
            || ported
            || !small
            || self.resident.is_some()
            || !each().all(|(request, _)| copies.is_ported(*request))
        {
            if !ported {
                each().for_each(|(request, item)| copies.fetch(*request, rank, item.input, batch.tensors(item)));
            }
            let alone = ported && !ahead && self.resident.is_none();
            let outputs = if alone { self.port_outputs(tensors, copies) } else { None };
            copies.waited_for += 1;
            copies.launched(program.launches());
            self.phase = Phase::Filling { since, asked: since, filled: None, outputs };
            return;
        }
        // Others may be on their way to the same slots of requests that came to nothing. A stream keeps the order.
        let alone = !early && copies.are_settled();
        if let Some(error) = copies.failure() {
            return self.fail(copies, error);
        }
        let begun = if alone {
            self.launch_whole(tensors, program, copies, batch)
        } else {
            self.copy_rest(copies, batch).and_then(|()| self.launch(tensors, program, copies, batch))
        };
        self.phase = begun.map_or_else(Phase::Failing, |()| Phase::Computing { copy_in: None, since, asked: since });
        copies.launched(program.launches());
    }

    /// Nothing is submitted of the batch, but for what was so ahead of it.
    fn fail(&mut self, copies: &mut Transfers, error: GpuError) {
        self.forget(copies);
        self.let_go();
        self.phase = Phase::Failing(error);
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

    /// The batch's requests have been answered, and their numbers are given to others. What was submitted goes on.
    pub(super) fn give_up(&mut self, copies: &mut Transfers) {
        if matches!(self.phase, Phase::Filling { .. }) {
            copies.waited_for -= 1;
            self.fail(copies, GpuError::NoSlots);
        }
        self.requests.clear();
        self.given_up = true;
        if let Some(resident) = &mut self.resident {
            resident.abandon();
        }
    }

    /// Whether nothing of it is under way any more, for which it waits for a while.
    pub(super) fn ends(&self) -> bool {
        self.lane.ends() && self.resident.as_ref().is_none_or(Resident::ends)
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
}
