//! What a launch is made of: copies in front of it, rows put together, the model's own part, and what brings its outputs back.

use splitrpc_arena::Run;
use splitrpc_gpu::{GpuError, Operand};

use super::Flight;
use super::recordings::{ELSEWHERE, Key, Part, Way};
use crate::gpu::batch::Stretch;
use crate::gpu::tensors::{Tensor, Tensors};
use crate::gpu::transfers::Transfers;
use crate::gpu::{Program, Rows};
use crate::runtime::Batch;

impl Flight {
    /// Submits everything of a batch of which nothing is on its way: with a kernel for the inputs where they are small, or none at all
    /// where they can stay on the host; and as one recording where the program's part is one, so that the driver is called once.
    pub(super) fn launch_whole(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &Transfers,
        batch: &Batch,
    ) -> Result<(), GpuError> {
        let is_small = self.input_bytes(tensors, batch) <= copies.by_kernel;
        let by_kernel = program.launches() && tensors.is_even() && is_small;
        self.place(tensors, batch);
        if by_kernel && self.lies_right(tensors, copies) {
            let in_place = program.works_in_place();
            let recorded = || !self.timed && program.is_recorded() && !program.rehearses();
            if in_place || recorded() {
                return self.launch_at_once(tensors, program, in_place, batch);
            }
        }
        self.mark(&self.marks.begun)?;
        self.copy_in(tensors, batch, by_kernel)?;
        self.mark(&self.marks.filled)?;
        self.launch_placed(tensors, program, copies, false, batch)
    }

    /// Whether inputs and outputs lie in their slots as the program takes them, and a kernel may carry the outputs.
    pub(super) fn lies_right(&self, tensors: &Tensors, copies: &Transfers) -> bool {
        let (inputs, outputs) = &self.operands;
        let one = self.inputs.len() == 1 && self.outputs.len() == 1 && tensors.is_fixed();
        one && self.output_bytes(tensors) <= copies.by_kernel
            && self.empties_directly(tensors, copies)
            && inputs.iter().chain(outputs).all(|operand| matches!(operand, Operand::Slots { .. }))
    }

    fn copy_in(&self, tensors: &Tensors, batch: &Batch, by_kernel: bool) -> Result<(), GpuError> {
        let (work, mut inputs) = (self.lane.work(), each_input(&self.inputs, tensors, batch));
        match by_kernel {
            true => work.collect(inputs),
            false => inputs.try_for_each(|(run, tensor, bytes)| work.copy_in(run, tensor, 0, bytes)),
        }
    }

    /// Submits everything of a batch whose rows lie together as one recording: of those very slots where it is common, else of all. Only what is
    /// done in place can be timed so.
    fn launch_at_once(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        in_place: bool,
        batch: &Batch,
    ) -> Result<(), GpuError> {
        (self.compactions, self.in_place) = (0, in_place);
        self.mark(&self.marks.begun)?;
        self.mark(&self.marks.filled)?;
        let key = Key { part: Part::Whole, ..self.key };
        let way = self.recordings.way(program, key);
        let may_be_anywhere = !in_place && matches!(way, Way::Rare);
        match self.recordings.for_all(key.rows).filter(|_| may_be_anywhere) {
            Some(recorded) => self.lane.replay_for(recorded, self.inputs[0].run, self.outputs[0].run)?,
            None => self.submit_whole(tensors, program, in_place, batch, (key, way))?,
        }
        self.mark(&self.marks.computed)?;
        self.mark(&self.marks.emptied)?;
        self.signal()
    }

    fn submit_whole(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        in_place: bool,
        batch: &Batch,
        (key, way): (Key, Way),
    ) -> Result<(), GpuError> {
        let Flight { lane, recordings, inputs, outputs, operands, .. } = self;
        if in_place {
            operands.0.iter_mut().chain(&mut operands.1).for_each(pin);
        }
        let rows = Rows { count: key.rows, inputs: &operands.0, outputs: &operands.1 };
        recordings.submit(lane, (key, way), |work| {
            if in_place {
                return program.submit(work, &rows);
            }
            work.collect(each_input(inputs, tensors, batch))?;
            program.submit(work, &rows)?;
            work.deliver(each_output(outputs, tensors))
        })
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

    /// Submits everything from the inputs' being there on, which have come on another stream.
    pub(super) fn launch(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &Transfers,
        batch: &Batch,
    ) -> Result<(), GpuError> {
        self.place(tensors, batch);
        self.launch_placed(tensors, program, copies, true, batch)
    }

    /// The same, where it is known how the batch lies, and whether its inputs were `fetched` on another stream.
    fn launch_placed(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &Transfers,
        fetched: bool,
        batch: &Batch,
    ) -> Result<(), GpuError> {
        self.compactions = 0;
        let mut way = self.recordings.way(program, self.key);
        // Submitting it takes such a program's own time, if there is another way.
        if program.rehearses()
            && matches!(way, Way::Rare)
            && let Some(known) = self.recordings.known(Key::elsewhere(self.key.rows))
        {
            self.place_elsewhere(tensors, batch.rows());
            way = Way::Known(known);
        }
        // One that is timed is not to take its time, nor is its part alone to be recorded beside the whole.
        if self.timed && matches!(way, Way::Common) {
            way = Way::Rare;
        }
        self.gather(tensors, batch)?;
        self.compute(program, way)?;
        self.mark(&self.marks.computed)?;
        self.spread(tensors)?;
        if self.empties_directly(tensors, copies) {
            self.bring(tensors, copies, fetched || program.launches())?;
        }
        self.mark(&self.marks.emptied)?;
        self.signal()
    }

    /// Copies outputs from their slots to the host: where that is behind a kernel, or begins at once, by a kernel if they are small. A copy engine
    /// takes its time to begin after what another engine has done.
    pub(super) fn bring(&self, tensors: &Tensors, copies: &Transfers, by_kernel: bool) -> Result<(), GpuError> {
        let (work, mut outputs) = (self.lane.work(), self.each_output(tensors));
        if by_kernel && self.output_bytes(tensors) <= copies.by_kernel {
            return work.deliver(outputs);
        }
        outputs.try_for_each(|(run, tensor, bytes)| work.copy_out(run, tensor, 0, bytes))
    }

    pub(super) fn signal(&mut self) -> Result<(), GpuError> {
        self.number = self.number.wrapping_add(1);
        self.lane.signal(self.number)
    }

    pub(super) fn empties_directly(&self, tensors: &Tensors, copies: &Transfers) -> bool {
        self.output_bytes(tensors) <= copies.direct
    }

    pub(super) fn input_bytes(&self, tensors: &Tensors, batch: &Batch) -> u64 {
        each_input(&self.inputs, tensors, batch).map(|(.., bytes)| u64::from(bytes)).sum()
    }

    pub(super) fn output_bytes(&self, tensors: &Tensors) -> u64 {
        let rows: u64 = self.outputs.iter().map(|stretch| u64::from(stretch.run.rows)).sum();
        rows * Tensors::row_bytes(&tensors.outputs)
    }

    /// Where each output is, and how many bytes it has.
    pub(super) fn each_output<'f>(&'f self, tensors: &'f Tensors) -> impl Iterator<Item = (Run, u16, u32)> + 'f {
        each_output(&self.outputs, tensors)
    }

    /// Where each tensor is for the program: in its slots where the batch's rows lie together there, as they should.
    pub(super) fn place(&mut self, tensors: &Tensors, batch: &Batch) {
        if batch.rows() < self.recordings.fewest {
            return self.place_elsewhere(tensors, batch.rows());
        }
        self.place_rows(tensors, batch.rows(), |tensor, stretch| tensors.input_bytes(tensor, stretch, batch));
    }

    /// Where they would be for so many rows from these slots on, each named by its pool and number. The sizes of all tensors are known.
    pub(super) fn place_in_slots(&mut self, tensors: &Tensors, count: u32, input: (u16, u32), output: (u16, u32)) {
        let stretch = |(pool, first)| Stretch { run: Run { pool, rows: count as u16, first, generation: 0 }, row: 0 };
        for (stretches, place) in [(&mut self.inputs, input), (&mut self.outputs, output)] {
            stretches.clear();
            stretches.push(stretch(place));
        }
        self.place_rows(tensors, count, |_, _| 0);
    }

    /// `varies` are the bytes of inputs whose rows vary.
    fn place_rows(&mut self, tensors: &Tensors, count: u32, varies: impl Fn(usize, &Stretch) -> u32) {
        let (inputs, outputs) = &mut self.operands;
        inputs.clear();
        outputs.clear();
        let first = |stretches: &[Stretch]| if let [one] = stretches { one.run.first } else { ELSEWHERE };
        self.key = Key::new(count, first(&self.inputs), first(&self.outputs));
        let arena = self.lane.arena();
        let rows = u64::from(count);
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
            let varies = || self.inputs.first().map_or(0, |stretch| varies(tensor, stretch).into());
            let bytes = known.row.map_or_else(varies, |row| u64::from(row) * rows);
            inputs.push(place(known, tensor, &self.inputs, bytes));
        }
        for (tensor, known) in tensors.outputs.iter().enumerate() {
            outputs.push(place(known, tensor, &self.outputs, u64::from(known.row.unwrap_or(0)) * rows));
        }
    }

    /// Has all of a batch of so many rows put together in the memory for compactions, where more rows may follow.
    pub(super) fn place_elsewhere(&mut self, tensors: &Tensors, count: u32) {
        let count = count.max(self.recordings.fewest);
        self.key = Key::elsewhere(count);
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
    pub(super) fn gather(&mut self, tensors: &Tensors, batch: &Batch) -> Result<(), GpuError> {
        let work = self.lane.work();
        let mut any = false;
        for (tensor, (known, operand)) in tensors.inputs.iter().zip(&self.operands.0).enumerate() {
            let (&Operand::Buffer { buffer, at, .. }, Some(row)) = (operand, known.row) else { continue };
            for stretch in self.inputs.iter().filter(|_| row > 0) {
                let bytes = tensors.input_bytes(tensor, stretch, batch);
                let at = at + u64::from(row) * u64::from(stretch.row);
                work.compact(stretch.run, tensor as u16, bytes, buffer, at)?;
                any = true;
                // Nobody's rows are the batch's own once more: whatever a model makes of all its rows, it is of no other request.
                for more in batch.rows()..self.key.rows {
                    work.compact(stretch.run, tensor as u16, bytes, buffer, at + u64::from(row) * u64::from(more))?;
                }
            }
        }
        self.compactions += u8::from(any);
        Ok(())
    }

    /// Takes outputs apart whose rows belong apart.
    pub(super) fn spread(&mut self, tensors: &Tensors) -> Result<(), GpuError> {
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

    pub(super) fn compute(&mut self, program: &dyn Program, way: Way) -> Result<(), GpuError> {
        let Flight { lane, operands: (inputs, outputs), recordings, key, .. } = self;
        let rows = Rows { count: key.rows, inputs, outputs };
        recordings.submit(lane, (*key, way), |work| program.submit(work, &rows))
    }
}

fn each_input<'f>(
    stretches: &'f [Stretch],
    tensors: &'f Tensors,
    batch: &'f Batch,
) -> impl Iterator<Item = (Run, u16, u32)> + 'f {
    let all = move |stretch: &'f Stretch| {
        let bytes = move |tensor: usize| (stretch.run, tensor as u16, tensors.input_bytes(tensor, stretch, batch));
        (0..tensors.inputs.len()).map(bytes)
    };
    stretches.iter().flat_map(all).filter(|(.., bytes)| *bytes > 0)
}

fn each_output<'f>(stretches: &'f [Stretch], tensors: &'f Tensors) -> impl Iterator<Item = (Run, u16, u32)> + 'f {
    stretches.iter().flat_map(|stretch| {
        let rows = u32::from(stretch.run.rows);
        let bytes = move |tensor: &Tensor| tensor.row.unwrap_or(0) * rows;
        let outputs = tensors.outputs.iter().map(bytes).enumerate();
        outputs.filter(|(_, bytes)| *bytes > 0).map(|(tensor, bytes)| (stretch.run, tensor as u16, bytes))
    })
}

/// The same tensor, where the host has it.
pub(super) fn pin(operand: &mut Operand) {
    if let Operand::Slots { run, tensor, bytes } = *operand {
        *operand = Operand::Pinned { run, tensor, bytes };
    }
}
