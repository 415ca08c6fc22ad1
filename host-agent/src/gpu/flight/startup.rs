//! What a lane does before its first batch: it has its program computed once for each number of rows, and records that.

use splitrpc_arena::PoolLayout;
use splitrpc_gpu::{Carried, GpuError, Operand, Work};
use splitrpc_torch::Error as TorchError;

use super::Flight;
use super::recordings::Way;
use crate::gpu::tensors::{Tensor, Tensors};
use crate::gpu::{Program, Rows};

/// Up to so many rows, each number of them has a recording of its own before the first batch; beyond that, only some have.
const EACH_RECORDED: u32 = 32;
/// The computing of programs that are rehearsed is recorded for so many slots: as long as no more requests are under way, no others are used.
const FIRST_SLOTS: u32 = 16;
/// Programs that take no single row take so many: exporters count 0 and 1 among the sizes that are fixed.
const SEVERAL: u32 = 2;

impl Flight {
    /// Computes batches of nothing in the memory for compactions, and records that, so that whatever comes has been recorded. For start-up.
    pub(super) fn rehearse(&mut self, tensors: &Tensors, program: &dyn Program) -> Result<(), GpuError> {
        let most = u32::from(tensors.max_batch);
        for count in sizes(most) {
            self.place_elsewhere(tensors, count);
            let (inputs, outputs) = &self.operands;
            match program.submit(&self.lane.work(), &Rows { count, inputs, outputs }) {
                Err(GpuError::Torch(error @ TorchError::Failed { .. })) if count == 1 && most >= SEVERAL => {
                    tracing::warn!(%error, "the model computes no single row: such a batch is computed as one of two rows");
                    self.recordings.fewest = SEVERAL;
                    continue;
                }
                submitted => submitted?,
            }
            self.lane.finish()?;
            if program.is_recorded() {
                self.compute(program, Way::Common)?;
                self.lane.finish()?;
            }
        }
        Ok(())
    }

    /// Records the computing of batches in the first slots of these pools, which are given before others, without doing any. For start-up, after
    /// [`Flight::rehearse`].
    pub(in crate::gpu) fn record_in_slots(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        pools: (u16, u16),
    ) -> Result<(), GpuError> {
        let arena = self.lane.arena().host_arena();
        let slots = |pool| arena.layout(pool).map_or(0, PoolLayout::slots);
        let firsts = FIRST_SLOTS.min(slots(pools.0)).min(slots(pools.1));
        let fewest = self.recordings.fewest;
        for first in (0..firsts).step_by(tensors.max_batch.into()) {
            for count in sizes(tensors.max_batch.into()).filter(|count| *count >= fewest) {
                self.place_first(tensors, count, pools, first);
                let Flight { lane, operands: (inputs, outputs), recordings, key, .. } = self;
                let rows = Rows { count, inputs, outputs };
                if inputs.iter().chain(&*outputs).all(|operand| matches!(operand, Operand::Slots { .. })) {
                    recordings.record(lane, *key, |work| program.submit(work, &rows))?;
                }
            }
        }
        Ok(())
    }

    /// Records the computing of batches in the memory for compactions, and as a whole those whose tensors have no more than `by_kernel` bytes, without
    /// doing any. For start-up.
    pub(super) fn record(&mut self, tensors: &Tensors, program: &dyn Program, by_kernel: u32) -> Result<(), GpuError> {
        let carried = |known: &[Tensor], operands: &[Operand], count: u32| -> Option<Vec<Carried>> {
            let bytes = known.iter().map(|tensor| tensor.row?.checked_mul(count)).collect::<Option<Vec<_>>>()?;
            let all = bytes.iter().try_fold(0_u32, |all, bytes| all.checked_add(*bytes))?;
            let each = (0..).zip(bytes).zip(operands).filter(|((_, bytes), _)| *bytes > 0);
            (all <= by_kernel).then(|| each.map(|((tensor, bytes), at)| (tensor, bytes, *at)).collect())
        };
        let carries = tensors.is_even() && !program.works_in_place();
        for count in sizes(tensors.max_batch.into()) {
            self.place_elsewhere(tensors, count);
            let Flight { lane, operands: (inputs, outputs), recordings, key, .. } = self;
            let rows = Rows { count, inputs, outputs };
            let compute = |work: &Work<'_>| program.submit(work, &rows);
            if tensors.lie_apart {
                recordings.record(lane, *key, compute)?;
            }
            if carries
                && let Some(ins) = carried(&tensors.inputs, inputs, count)
                && let Some(outs) = carried(&tensors.outputs, outputs, count)
            {
                recordings.record_for_all(lane, count, (&ins, &outs), compute)?;
            }
        }
        Ok(())
    }
}

/// The numbers of rows, up to the most, of which each has a recording of its own before the first batch.
fn sizes(most: u32) -> impl Iterator<Item = u32> {
    (1..=most).filter(move |count| *count <= EACH_RECORDED || count.is_power_of_two() || *count == most)
}
