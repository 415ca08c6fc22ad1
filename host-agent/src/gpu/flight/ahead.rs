//! The next launch, submitted before its request has come: it waits at a gate on the device, in the hope that the request comes to the
//! slots that it was submitted for.
//!
//! What waits for nothing is let through: it computes on whatever lies in its input slots, and writes nothing but the lane's own memory and
//! the output slots that are kept for it. Not even the input slots on the device: they may be another request's meanwhile, whose
//! copies wait for no lane. It does not wait for ever in any case, since some calls of the driver wait for all streams.

use std::time::{Duration, Instant};

use splitrpc_cuda::Context;
use splitrpc_gpu::{Gate, GpuError, Operand, Work};
use splitrpc_ring::Run;

use super::recordings::{ELSEWHERE, Key, Part};
use super::{Flight, PATIENCE};
use crate::gpu::batch::Stretch;
use crate::gpu::tensors::{Tensor, Tensors};
use crate::gpu::transfers::Transfers;
use crate::gpu::{Program, Rows};

/// How long a launch waits for its request. Whoever waits for all streams waits no longer for it either.
const WAITS: Duration = Duration::from_secs(1);

/// What a lane launches ahead.
pub(super) struct Ahead {
    gate: Gate,
    /// The gate's number for the last launch.
    number: u32,
    /// The lane's signal at its end.
    end: u32,
    /// The slots of the request that it waits for, and of its answer, as long as the gate is shut.
    waits: Option<(Run, Run)>,
    /// The batch that is under way is this request.
    serves: bool,
    /// But it does not read what that brings.
    misses: bool,
    /// It has the device fetch the inputs.
    fetches: bool,
    /// It was let through for nothing, then.
    withdrawn: Option<Instant>,
    /// Not all of it could be submitted, so that there is no signal, and no further one.
    broken: bool,
}

impl Ahead {
    pub(super) fn new(context: &Context) -> Result<Ahead, GpuError> {
        Ok(Ahead {
            gate: Gate::new(context)?,
            number: 0,
            end: 0,
            waits: None,
            serves: false,
            misses: false,
            fetches: false,
            withdrawn: None,
            broken: false,
        })
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Opens the gate, if anything waits there. Returns whether that is so.
    fn open(&mut self) -> bool {
        let any = self.waits.take().is_some();
        if any {
            self.gate.open(self.number);
        }
        any
    }

    /// Whether a lane that has signalled this has done all of it.
    fn is_past(&self, signalled: u32) -> bool {
        !self.broken && signalled.wrapping_sub(self.end) as i32 >= 0
    }
}

impl Flight {
    /// Submits the launch of a request that is yet to come to these slots, with its answer in those. Returns whether anything was submitted:
    /// the output is the lane's then until that is done.
    pub(in crate::gpu) fn launch_ahead(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &Transfers,
        [input, output]: [Run; 2],
    ) -> bool {
        let ready = self.is_idle() && copies.failed.is_none() && self.splits[self.size].may_wait();
        let Some(ahead) = &mut self.ahead else { return false };
        if !ready || ahead.broken || ahead.waits.is_some() || ahead.withdrawn.is_some() {
            return false;
        }
        for (stretches, run) in [(&mut self.inputs, input), (&mut self.outputs, output)] {
            stretches.clear();
            stretches.push(Stretch { run, row: 0 });
        }
        let is_small = tensors.is_fixed() && Tensors::row_bytes(&tensors.inputs) <= copies.by_kernel;
        let fetches = tensors.staging() > 0 && is_small;
        let (inputs, outputs) = &mut self.operands;
        let arena = self.lane.arena();
        let lie_right = |known: &[Tensor], run: Run, operands: &mut Vec<Operand>| {
            operands.clear();
            known.iter().enumerate().all(|(tensor, known)| {
                let (tensor, bytes) = (tensor as u16, known.row.unwrap_or(0));
                operands.push(Operand::Slots { run, tensor, bytes });
                let range = arena.device(run, tensor, 0, bytes);
                range.is_some_and(|range| range.address().is_multiple_of(tensors.alignment))
            })
        };
        if fetches {
            let place = |known: &Tensor| {
                let bytes = known.row.unwrap_or(0).into();
                Operand::Buffer { buffer: self.staging, at: known.at, bytes }
            };
            inputs.clear();
            inputs.extend(tensors.inputs.iter().map(place));
        } else if !lie_right(&tensors.inputs, input, inputs) {
            return false;
        }
        if !lie_right(&tensors.outputs, output, outputs) {
            return false;
        }
        ahead.number = ahead.number.wrapping_add(1);
        ahead.gate.shut(ahead.number);
        ahead.fetches = fetches;
        (self.timed, self.compactions) = (false, 0);
        let submitted = self.submit_ahead(tensors, program, copies);
        let Some(ahead) = &mut self.ahead else { return false };
        ahead.end = self.number;
        match submitted {
            Ok(()) => ahead.waits = Some((input, output)),
            Err(error) => {
                tracing::warn!(%error, "nothing is launched ahead on this lane any more");
                ahead.gate.open(ahead.number);
                (ahead.broken, ahead.withdrawn) = (true, Some(Instant::now()));
            }
        }
        true
    }

    fn submit_ahead(&mut self, tensors: &Tensors, program: &dyn Program, copies: &Transfers) -> Result<(), GpuError> {
        let directly = self.empties_directly(tensors, copies);
        let by_kernel = self.output_bytes(tensors) <= copies.by_kernel;
        let Flight { lane, recordings, operands: (inputs, outputs), ahead, number, .. } = self;
        let (Some(ahead), [Stretch { run, .. }]) = (ahead, &self.inputs[..]) else { return Ok(()) };
        let rows = Rows { count: 1, inputs, outputs };
        let fetches = ahead.fetches;
        let each = || (0..).zip(&tensors.inputs).map(|(tensor, known)| (*run, tensor, known.row.unwrap_or(0)));
        let submit = |work: &Work<'_>| {
            work.hold(WAITS)?;
            if fetches {
                work.fetch(each().zip(&*inputs))?;
            }
            program.submit(work, &rows)?;
            match (directly, by_kernel) {
                (true, true) => work.deliver(slots(outputs)),
                (true, false) => {
                    slots(outputs).try_for_each(|(run, tensor, bytes)| work.copy_out(run, tensor, 0, bytes))
                }
                (false, _) => Ok(()),
            }
        };
        let first = |stretches: &[Stretch]| stretches.first().map_or(ELSEWHERE, |stretch| stretch.run.first);
        let key = Key { part: Part::Ahead, ..Key::new(1, first(&self.inputs), first(&self.outputs)) };
        let way = recordings.way(program, key);
        recordings.submit(lane, (key, way), submit)?;
        *number = number.wrapping_add(1);
        lane.signal(*number)
    }

    /// Whether anything is launched ahead on this lane.
    pub(in crate::gpu) fn foresees(&self) -> bool {
        self.ahead.is_some()
    }

    /// Whether a launch waits for a request in these slots.
    pub(in crate::gpu) fn waits_for(&self, input: Run) -> bool {
        let place = |run: Run| (run.pool, run.first, run.rows);
        let waits = |ahead: &Ahead| ahead.waits.is_some_and(|(known, _)| place(known) == place(input));
        self.is_idle() && self.ahead.as_ref().is_some_and(|a| waits(a) && !a.is_past(self.lane.signalled()))
    }

    /// Whether what waits was submitted for a request in these slots and its answer in those. It may have waited for too long meanwhile.
    pub(in crate::gpu) fn was_launched_for(&self, input: Run, output: Option<Run>) -> bool {
        let place = |run: Run| (run.pool, run.first, run.rows);
        let waits = self.ahead.as_ref().and_then(|ahead| ahead.waits);
        waits.is_some_and(|(known, kept)| place(known) == place(input) && output == Some(kept))
    }

    /// Whether anything waits, for whatever request.
    pub(in crate::gpu) fn has_waiting(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.waits.is_some())
    }

    /// Lets through what waits for a request that will not come. Returns whether there was anything.
    pub(in crate::gpu) fn withdraw(&mut self) -> bool {
        let Some(ahead) = &mut self.ahead else { return false };
        let any = ahead.open();
        if any {
            ahead.withdrawn = Some(Instant::now());
        }
        any
    }

    /// Whether what was let through for nothing is still under way, as far as is known.
    pub(in crate::gpu) fn is_withdrawn(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.withdrawn.is_some())
    }

    /// Whether what was launched ahead is done, and was for nothing.
    pub(in crate::gpu) fn is_over(&mut self) -> bool {
        let Some(ahead) = &mut self.ahead else { return true };
        let past = ahead.is_past(self.lane.signalled());
        match ahead.withdrawn {
            // It has waited for too long.
            None if past => ahead.waits = None,
            None => return false,
            Some(_) if past => ahead.withdrawn = None,
            Some(asked) if asked.elapsed() < PATIENCE => return false,
            // What has failed gives no signal.
            Some(_) if self.lane.is_done().unwrap_or_else(|error| error.is_sticky()) => ahead.withdrawn = None,
            Some(_) => {
                ahead.withdrawn = Some(Instant::now());
                return false;
            }
        }
        true
    }

    /// The batch that begins is the request that is waited for, if anything waits. Returns whether that is so.
    pub(super) fn take_up(&mut self) -> bool {
        let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.waits.is_some()) else { return false };
        (ahead.serves, ahead.misses) = (true, false);
        true
    }

    /// Whether what waits brings the inputs to the device by itself.
    pub(super) fn fetches_itself(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.serves && ahead.fetches)
    }

    /// Whether the batch that is under way has a launch that waits for its inputs.
    pub(super) fn serves(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.serves)
    }

    /// Has the launch that waits for the batch go on.
    pub(super) fn open(&mut self) {
        if let Some(ahead) = &mut self.ahead {
            ahead.open();
        }
    }

    /// The batch has failed: the launch that waits for it, if there is one, goes on for nothing.
    pub(super) fn let_go(&mut self) {
        if let Some(ahead) = &mut self.ahead {
            ahead.open();
            ahead.serves = false;
        }
    }

    /// What waits for the batch does not read its inputs from where they are.
    pub(super) fn miss(&mut self) {
        if let Some(ahead) = &mut self.ahead {
            ahead.misses = true;
        }
    }

    /// Whether the batch, which is computed, was so without its inputs: the launch had waited for too long, or misses them.
    pub(super) fn was_in_vain(&mut self) -> bool {
        let Some(ahead) = &mut self.ahead else { return false };
        std::mem::take(&mut ahead.serves) && (ahead.misses || !ahead.gate.was_opened(ahead.number))
    }
}

impl Drop for Flight {
    /// What waits would keep the lane, and with it the device's memory, from going.
    fn drop(&mut self) {
        self.open();
    }
}

/// Tensors in their slots, and how many bytes they have.
fn slots(operands: &[Operand]) -> impl Iterator<Item = (Run, u16, u32)> {
    operands.iter().filter_map(|operand| match *operand {
        Operand::Slots { run, tensor, bytes } => Some((run, tensor, bytes)),
        _ => None,
    })
}
