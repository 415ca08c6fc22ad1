//! A lane whose batches are computed by a kernel that stays on the GPU: the data thread sees each part of a batch end, and begins the next.

use std::time::Instant;

use splitrpc_gpu::{GpuError, Operand, Persistent};

use super::Flight;
use super::launch::pin;
use crate::gpu::tensors::{Tensor, Tensors};
use crate::gpu::transfers::{CLOSE, Transfers};
use crate::gpu::{Program, Rows};
use crate::runtime::Batch;

/// The kernel, and how far it is with the batch that is under way.
pub(super) struct Resident {
    kernel: Persistent,
    part: Part,
    /// When its last batch was seen to be computed.
    idle_since: Instant,
    /// It waits for the next batch; else it ends behind each, since others would have to wait for it.
    waits: bool,
    /// Scratch.
    values: Vec<Operand>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The lane puts rows together.
    Gather,
    Compute,
    /// The lane takes rows apart.
    Spread,
}

impl Resident {
    pub(super) fn new(kernel: Persistent, waits: bool) -> Resident {
        Resident { kernel, part: Part::Spread, idle_since: Instant::now(), waits, values: Vec::new() }
    }

    /// Whether it is the kernel that is waited for; then, whether it is done.
    pub(super) fn is_done(&self) -> Option<bool> {
        (self.part == Part::Compute).then(|| self.kernel.is_done())
    }

    /// Fails where the kernel does.
    pub(super) fn check(&mut self) -> Result<(), GpuError> {
        self.kernel.check()
    }

    /// Has the kernel end, if it can: its batch is nobody's any more.
    pub(super) fn abandon(&mut self) {
        self.kernel.abandon();
    }

    /// Whether the kernel, which was told to end, does so within a while.
    pub(super) fn ends(&self) -> bool {
        self.kernel.ends()
    }

    /// Whether the kernel computes nothing any more, whatever became of it.
    pub(super) fn is_over(&mut self) -> bool {
        self.kernel.is_done() || self.kernel.check().is_err()
    }
}

impl Flight {
    /// Begins a batch in its slots on the host, if that is how it is computed.
    pub(super) fn rings_in_place(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &Transfers,
        batch: &Batch,
    ) -> Option<Result<(), GpuError>> {
        if self.resident.is_none() || !program.works_in_place() {
            return None;
        }
        if self.input_bytes(tensors, batch) > copies.by_kernel {
            return None;
        }
        self.place(tensors, batch);
        if !self.lies_right(tensors, copies) {
            return None;
        }
        (self.in_place, self.compactions) = (true, 0);
        self.operands.0.iter_mut().chain(&mut self.operands.1).for_each(pin);
        Some(self.ring(program))
    }

    /// Has the kernel compute a batch whose inputs are in their slots on the device, or the lane put them together for it.
    pub(super) fn hand_over(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        batch: &Batch,
    ) -> Result<(), GpuError> {
        self.compactions = 0;
        self.place(tensors, batch);
        if !lie_elsewhere(&self.operands.0, &tensors.inputs) {
            return self.ring(program);
        }
        self.gather(tensors, batch)?;
        self.signal()?;
        self.goes_on_with(Part::Gather);
        Ok(())
    }

    fn ring(&mut self, program: &dyn Program) -> Result<(), GpuError> {
        let Flight { resident: Some(resident), operands: (inputs, outputs), key, .. } = self else { return Ok(()) };
        resident.values.clear();
        program.tell(&Rows { count: key.rows, inputs, outputs }, &mut resident.values);
        resident.kernel.ring(key.rows, &resident.values)?;
        self.goes_on_with(Part::Compute);
        Ok(())
    }

    fn goes_on_with(&mut self, part: Part) {
        if let Some(resident) = &mut self.resident {
            resident.part = part;
        }
    }

    /// Goes on with a batch of which one part is done. Returns whether there is another one before its outputs are in their slots.
    pub(super) fn goes_on(&mut self, tensors: &Tensors, program: &dyn Program) -> Result<bool, GpuError> {
        let Some(resident) = &mut self.resident else { return Ok(false) };
        match resident.part {
            Part::Gather => self.ring(program)?,
            Part::Compute => {
                resident.idle_since = Instant::now();
                if !resident.waits {
                    resident.kernel.stop();
                }
                if !lie_elsewhere(&self.operands.1, &tensors.outputs) {
                    return Ok(false);
                }
                self.spread(tensors)?;
                self.signal()?;
                self.goes_on_with(Part::Spread);
            }
            Part::Spread => return Ok(false),
        }
        Ok(true)
    }

    /// Begins to bring outputs that are in their slots on the device, if nobody has and they are not to be brought in pieces.
    pub(super) fn brings(&mut self, tensors: &Tensors, copies: &mut Transfers) -> Result<bool, GpuError> {
        if self.resident.is_none() || self.in_place || !self.empties_directly(tensors, copies) {
            return Ok(false);
        }
        if !copies.can_port() || self.port_outputs(tensors, copies).is_none() {
            self.bring(tensors, copies, true)?;
            self.signal()?;
        }
        Ok(true)
    }

    /// Has the kernel end where nothing has come for a while.
    pub(in crate::gpu) fn rest(&mut self) {
        let is_idle = self.is_idle();
        if let Some(Resident { kernel, idle_since, .. }) = &mut self.resident
            && is_idle
            && kernel.is_running()
            && idle_since.elapsed() > CLOSE
        {
            kernel.stop();
        }
    }

    /// Whether the kernel is there.
    pub(in crate::gpu) fn stays(&self) -> bool {
        self.resident.as_ref().is_some_and(|resident| resident.kernel.is_running())
    }

    /// Has what stays or waits on the device end, if it can: what is under way is nobody's any more.
    pub(in crate::gpu) fn abandon(&mut self) {
        self.withdraw();
        if let Some(resident) = &mut self.resident {
            resident.abandon();
        }
    }
}

/// Whether tensors are somewhere else than in their slots.
fn lie_elsewhere(operands: &[Operand], tensors: &[Tensor]) -> bool {
    let elsewhere = |operand: &Operand| matches!(operand, Operand::Buffer { .. });
    operands.iter().zip(tensors).any(|(operand, known)| elsewhere(operand) && known.row.is_some_and(|row| row > 0))
}
