//! What a launch is made of: copies in front of it, rows put together, the model's own part, and what brings its outputs back.

use splitrpc_gpu::{GpuError, Operand};
use splitrpc_ring::Run;

use super::Flight;
use super::recordings::ELSEWHERE;
use crate::gpu::batch::Stretch;
use crate::gpu::tensors::{Tensor, Tensors};
use crate::gpu::transfers::Transfers;
use crate::gpu::{Program, Rows};
use crate::runtime::Batch;

/// Up to so many rows, each number of them has a recording of its own before the first batch; beyond that, only some have.
const EACH_RECORDED: u32 = 32;
/// Programs that take no single row take so many: exporters count 0 and 1 among the sizes that are fixed.
const SEVERAL: u32 = 2;

impl Flight {
    /// Computes batches of nothing in the memory for compactions, and records that, so that whatever comes has been recorded. For start-up.
    pub(super) fn rehearse(&mut self, tensors: &Tensors, program: &dyn Program) -> Result<(), GpuError> {
        let most = u32::from(tensors.max_batch);
        for count in (1..=most).filter(|count| *count <= EACH_RECORDED || count.is_power_of_two() || *count == most) {
            self.place_elsewhere(tensors, count);
            let (inputs, outputs) = &self.operands;
            match program.submit(&self.lane.work(), &Rows { count, inputs, outputs }) {
                Err(GpuError::Torch(error)) if count == 1 && most >= SEVERAL => {
                    tracing::info!(%error, "the model computes no single row: such a batch is computed as one of two rows");
                    self.recordings.fewest = SEVERAL;
                    continue;
                }
                submitted => submitted?,
            }
            self.recordings.was_rehearsed(count);
            self.lane.finish()?;
            if program.is_recorded() {
                self.compute(program)?;
                self.lane.finish()?;
            }
        }
        // Another thread is to come.
        self.recordings.move_on();
        Ok(())
    }

    pub(super) fn copy_in(&self, tensors: &Tensors, batch: &Batch) -> Result<(), GpuError> {
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
    pub(super) fn copy_rest(&self, copies: &mut Transfers, batch: &Batch) -> Result<(), GpuError> {
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
    pub(super) fn launch(
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
        if program.rehearses() && !self.recordings.has(self.key) && self.lane.recordings_left() == 0 {
            let elsewhere = (batch.rows(), ELSEWHERE, ELSEWHERE);
            if self.recordings.has(elsewhere) {
                self.place_elsewhere(tensors, batch.rows());
            }
        }
        self.gather(tensors, batch)?;
        self.compute(program)?;
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

    pub(super) fn empties_directly(&self, tensors: &Tensors, copies: &Transfers) -> bool {
        self.output_bytes(tensors) <= copies.direct
    }

    pub(super) fn output_bytes(&self, tensors: &Tensors) -> u64 {
        let rows: u64 = self.outputs.iter().map(|stretch| u64::from(stretch.run.rows)).sum();
        rows * Tensors::row_bytes(&tensors.outputs)
    }

    /// Where each output is, and how many bytes it has.
    pub(super) fn each_output<'f>(&'f self, tensors: &'f Tensors) -> impl Iterator<Item = (Run, u16, u32)> + 'f {
        self.outputs.iter().flat_map(|stretch| {
            let rows = u32::from(stretch.run.rows);
            let bytes = move |tensor: &Tensor| tensor.row.unwrap_or(0) * rows;
            let outputs = tensors.outputs.iter().map(bytes).enumerate();
            outputs.filter(|(_, bytes)| *bytes > 0).map(|(tensor, bytes)| (stretch.run, tensor as u16, bytes))
        })
    }

    /// Where each tensor is for the program: in its slots where the batch's rows lie together there, as they should.
    fn place(&mut self, tensors: &Tensors, batch: &Batch) {
        if batch.rows() < self.recordings.fewest {
            return self.place_elsewhere(tensors, batch.rows());
        }
        let (inputs, outputs) = &mut self.operands;
        inputs.clear();
        outputs.clear();
        let first = |stretches: &[Stretch]| if let [one] = stretches { one.run.first } else { ELSEWHERE };
        self.computed = batch.rows();
        self.key = (self.computed, first(&self.inputs), first(&self.outputs));
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

    /// Has all of a batch of so many rows put together in the memory for compactions, where rows may follow that are nobody's.
    fn place_elsewhere(&mut self, tensors: &Tensors, count: u32) {
        let count = count.max(self.recordings.fewest);
        self.computed = count;
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

    fn compute(&mut self, program: &dyn Program) -> Result<(), GpuError> {
        let Flight { lane, operands: (inputs, outputs), recordings, key, computed, .. } = self;
        recordings.submit(lane, program, &Rows { count: *computed, inputs, outputs }, *key)
    }
}
