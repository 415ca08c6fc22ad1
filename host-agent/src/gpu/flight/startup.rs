//! What a lane does before its first batch: it records its program's work for the batches that are to be foreseen, and has programs that need it
//! compute once before.

use splitrpc_arena::PoolLayout;
use splitrpc_gpu::{Carried, GpuError, Operand, Work};
use splitrpc_torch::Error as TorchError;

use super::Flight;
use super::recordings::Way;
use crate::gpu::tensors::{Tensor, Tensors};
use crate::gpu::{Program, Rows};

/// Up to so many rows, each number of them has a recording of its own before the first batch; beyond that, only some have.
const EACH_RECORDED: u32 = 32;
/// The computing of programs that are rehearsed is recorded in so many slots, which are given before others, but in two windows at least: one may
/// be filled while the other is computed.
const FIRST_SLOTS: u32 = 16;
/// So often at most. Each takes about half a megabyte of the device's memory.
const IN_SLOTS: usize = 64;
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

    /// Records the computing of batches in the first slots of these pools, without doing any. For start-up, after [`Flight::rehearse`].
    pub(in crate::gpu) fn record_in_slots(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        (inputs, outputs): (u16, u16),
    ) -> Result<(), GpuError> {
        let slots = |pool| self.lane.arena().host_arena().layout(pool).map_or(0, PoolLayout::slots);
        let slots = slots(inputs).min(slots(outputs));
        let fewest = self.recordings.fewest;
        let foreseen = places(tensors.max_batch.into(), slots).filter(|place| place.rows >= fewest);
        for Place { rows: count, input, output } in foreseen.take(IN_SLOTS) {
            self.place_in_slots(tensors, count, (inputs, input), (outputs, output));
            let Flight { lane, operands: (inputs, outputs), recordings, key, .. } = self;
            let rows = Rows { count, inputs, outputs };
            if inputs.iter().chain(&*outputs).all(|operand| matches!(operand, Operand::Slots { .. })) {
                recordings.record(lane, *key, |work| program.submit(work, &rows))?;
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

/// Where a batch may lie: so many rows from one slot on, and its outputs from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    rows: u32,
    input: u32,
    output: u32,
}

/// The likely places, the likeliest first: windows of `max_batch` slots are filled from their beginning, and outputs are given the slots of the
/// inputs' numbers, or the next while an answer that was there is still being sent.
fn places(max_batch: u32, slots: u32) -> impl Iterator<Item = Place> {
    let windows = (FIRST_SLOTS / max_batch).max(2).min(slots / max_batch);
    let starts = move |further| (0..max_batch).map(move |row| (further, row));
    let inputs = move |(further, row)| (0..windows).map(move |window| (further, window * max_batch + row));
    let batches = move |(further, input): (u32, u32)| {
        let output = input + further;
        let room = max_batch - (input % max_batch).max(output % max_batch);
        let fits = move |rows: &u32| *rows <= room && output + rows <= slots;
        sizes(max_batch).filter(fits).map(move |rows| Place { rows, input, output })
    };
    (0..2).flat_map(starts).flat_map(inputs).flat_map(batches)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{IN_SLOTS, Place, places};

    fn all(max_batch: u32, slots: u32) -> Vec<Place> {
        places(max_batch, slots).collect()
    }

    #[test]
    fn single_rows_have_their_slots_and_the_next() {
        let found = all(1, 64);
        assert!(found[..16].iter().zip(0..).all(|(p, slot)| *p == Place { rows: 1, input: slot, output: slot }));
        assert!(found[16..].iter().zip(0..).all(|(p, slot)| *p == Place { rows: 1, input: slot, output: slot + 1 }));
        assert_eq!(found.len(), 32);
    }

    #[test]
    fn batches_begin_anywhere_in_a_window_and_never_leave_it() {
        for max_batch in [1, 2, 5, 8, 16, 40, 1000] {
            for slots in [0, max_batch, 2 * max_batch, 7 * max_batch] {
                let found = all(max_batch, slots);
                let (first, last) =
                    (|slot: u32| slot / max_batch, |slot: u32, rows: u32| (slot + rows - 1) / max_batch);
                for Place { rows, input, output } in &found {
                    assert!(input + rows <= slots && output + rows <= slots && *rows <= max_batch);
                    assert_eq!(first(*input), last(*input, *rows));
                    assert_eq!(first(*output), last(*output, *rows));
                }
                assert_eq!(
                    found.iter().map(|p| (p.rows, p.input, p.output)).collect::<HashSet<_>>().len(),
                    found.len()
                );
            }
        }
        assert!(all(8, 64).contains(&Place { rows: 3, input: 9, output: 9 }));
    }

    #[test]
    fn whole_windows_come_first() {
        for max_batch in [8, 16, 32] {
            let whole = |window: u32| Place { rows: max_batch, input: window * max_batch, output: window * max_batch };
            let kept = &all(max_batch, 8 * max_batch)[..IN_SLOTS];
            assert!(kept.contains(&whole(0)) && kept.contains(&whole(1)), "{max_batch}");
        }
    }
}
