//! What can be submitted to a lane.

use std::fmt;
use std::time::Duration;

use splitrpc_arena::Run;
use splitrpc_cuda::{Arg, CopyBatch, DeviceRange, Function, HostRange, Launch, Stream};
use splitrpc_torch::Package;

use crate::arena::Rows;
use crate::carry::{Carry, Entries, FEW, MANY, Piece, SOME};
use crate::error::GpuError;
use crate::kernel::{MAX_ARGUMENTS, Operand};
use crate::lane::Held;

/// What can be submitted to a lane. All of it is done after what was submitted before, and before what comes later.
#[derive(Clone, Copy)]
pub struct Work<'l> {
    pub(crate) held: &'l Held,
    pub(crate) stream: &'l Stream,
}

impl Work<'_> {
    /// Copies bytes of a run's tensor from the host's slots to the device's.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; the driver's.
    pub fn copy_in(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Result<(), GpuError> {
        let (to, from) = self.both(run, tensor, offset, len)?;
        // SAFETY: the lane holds the arena, both of whose sides stay until the work is done; the host's is only ever
        // accessed as memory that others may write.
        Ok(unsafe { self.stream.copy_to_device(to, from) }?)
    }

    /// Copies bytes of a run's tensor from the device's slots to the host's.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; the driver's.
    pub fn copy_out(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Result<(), GpuError> {
        let (from, to) = self.both(run, tensor, offset, len)?;
        // SAFETY: as in `copy_in`.
        Ok(unsafe { self.stream.copy_to_host(to, from) }?)
    }

    /// Copies a run's tensor on the device into a buffer: a compaction.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; [`GpuError::NoBuffer`]; the driver's.
    pub fn compact(&self, run: Run, tensor: u16, len: u32, buffer: usize, at: u64) -> Result<(), GpuError> {
        let from = self.held.arena.device(run, tensor, 0, len).ok_or(GpuError::NoSlots)?;
        let to = self.buffer(buffer, at, u64::from(len))?;
        // SAFETY: the lane holds the arena and the buffer until the work is done.
        Ok(unsafe { self.stream.copy_on_device(to, from) }?)
    }

    /// Copies from a buffer on the device into a run's tensor: the twin of a compaction.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; [`GpuError::NoBuffer`]; the driver's.
    pub fn spread(&self, buffer: usize, at: u64, run: Run, tensor: u16, len: u32) -> Result<(), GpuError> {
        let to = self.held.arena.device(run, tensor, 0, len).ok_or(GpuError::NoSlots)?;
        let from = self.buffer(buffer, at, u64::from(len))?;
        // SAFETY: as in `compact`.
        Ok(unsafe { self.stream.copy_on_device(to, from) }?)
    }

    /// Sets bytes of a buffer to zero.
    ///
    /// # Errors
    /// [`GpuError::NoBuffer`]; the driver's.
    pub(crate) fn clear(&self, buffer: usize, at: u64, len: u64) -> Result<(), GpuError> {
        let range = self.buffer(buffer, at, len)?;
        // SAFETY: the lane holds the buffer until the work is done.
        Ok(unsafe { self.stream.fill(range, 0) }?)
    }

    /// Has a kernel read pieces of frames on the host, in whatever order they came, into slots on the device. Pieces that
    /// continue each other on both sides are carried as one. Returns how many launches that took.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`], and pieces before that may have been submitted; the driver's.
    pub fn gather(&self, pieces: &[Piece]) -> Result<usize, GpuError> {
        self.carry(pieces, |frame, slot| (frame, slot))
    }

    /// As [`Work::gather`], by the copy engines and the driver's batched copies instead of a kernel. `batch` is used again and
    /// again.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; the driver's, one of which says that it has no batched copies.
    pub fn gather_by_engine(&self, batch: &mut CopyBatch, pieces: &[Piece]) -> Result<(), GpuError> {
        let arena = &self.held.arena;
        batch.clear();
        for piece in pieces {
            let &Piece { frame, frame_offset, slot, tensor, offset, len } = piece;
            let from = arena.host(frame, 0, frame_offset, len).ok_or(GpuError::NoSlots)?;
            let to = arena.device(slot, tensor, offset, len).ok_or(GpuError::NoSlots)?;
            batch.to_device(to, from).map_err(splitrpc_cuda::Error::from)?;
        }
        // SAFETY: all ranges are of the arena, which the lane holds until the work is done; the host's are only ever accessed
        // as memory that others may write.
        Ok(unsafe { self.stream.copy_batch(batch) }?)
    }

    /// The twin of [`Work::gather`]: pieces of slots on the device into frames on the host.
    ///
    /// # Errors
    /// As [`Work::gather`].
    pub fn scatter(&self, pieces: &[Piece]) -> Result<usize, GpuError> {
        self.carry(pieces, |frame, slot| (slot, frame))
    }

    /// Has what comes later wait until the lane's gate is opened, or for as long as `limit`: [`Gate::was_opened`](crate::Gate::was_opened) tells which it was.
    ///
    /// # Errors
    /// [`GpuError::NoBuffer`] where the lane has no gate; the driver's.
    pub fn hold(&self, limit: Duration) -> Result<(), GpuError> {
        let gate = self.held.gate.as_ref().ok_or(GpuError::NoBuffer)?;
        // SAFETY: the lane holds the gate until its work is done, recorded work included.
        unsafe { gate.hold(self.stream, limit) }
    }

    /// As [`Work::collect`], of single tensors, past the slots on the device to where the operands are: it can wait for its turn before the bytes are
    /// there, and writes no slots.
    ///
    /// # Errors
    /// As [`Work::gather`]; [`GpuError::NoBuffer`].
    pub fn fetch<'o>(&self, inputs: impl Iterator<Item = ((Run, u16, u32), &'o Operand)>) -> Result<(), GpuError> {
        self.carry_each(
            inputs.map(|((run, tensor, len), to)| Ok((self.host(run, tensor, len)?, self.place(to, len)?, len))),
        )
    }

    /// Where on the device an operand of so many bytes or more is.
    pub(crate) fn place(&self, operand: &Operand, len: u32) -> Result<u64, GpuError> {
        match operand {
            Operand::Slots { bytes, .. } if *bytes >= len => self.value(operand),
            Operand::Buffer { bytes, .. } if *bytes >= len.into() => self.value(operand),
            _ => Err(GpuError::NoBuffer),
        }
    }

    /// Where on the host the first so many bytes of a run's tensor are.
    pub(crate) fn host(&self, run: Run, tensor: u16, len: u32) -> Result<u64, GpuError> {
        let rows = self.held.arena.host_rows(run.pool, tensor);
        rows.and_then(|rows| rows.address(run, 0, len)).ok_or(GpuError::NoSlots)
    }

    /// As [`Work::copy_in`], from the beginning of each run's tensor, by a kernel: another one behind it begins sooner than behind a copy engine.
    ///
    /// # Errors
    /// As [`Work::gather`].
    pub fn collect(&self, inputs: impl Iterator<Item = (Run, u16, u32)>) -> Result<(), GpuError> {
        self.carry_each(inputs.map(|(run, tensor, len)| {
            let [host, device] = self.sides(run, tensor, len)?;
            Ok((host, device, len))
        }))
    }

    /// As [`Work::copy_out`], from the beginning of each run's tensor, by a kernel: where it waits for another one, it begins sooner than a copy
    /// engine would.
    ///
    /// # Errors
    /// As [`Work::gather`].
    pub fn deliver(&self, outputs: impl Iterator<Item = (Run, u16, u32)>) -> Result<(), GpuError> {
        self.carry_each(outputs.map(|(run, tensor, len)| {
            let [host, device] = self.sides(run, tensor, len)?;
            Ok((device, host, len))
        }))
    }

    /// Where the first so many bytes of a run's tensor are on the host and on the device.
    fn sides(&self, run: Run, tensor: u16, len: u32) -> Result<[u64; 2], GpuError> {
        let device = self.held.arena.device_rows(run.pool, tensor).and_then(|rows| rows.address(run, 0, len));
        Ok([self.host(run, tensor, len)?, device.ok_or(GpuError::NoSlots)?])
    }

    /// Carries bytes from one address to another, so many each.
    fn carry_each(&self, each: impl Iterator<Item = Result<(u64, u64, u32), GpuError>>) -> Result<(), GpuError> {
        let kernel = &self.held.arena.carry().few;
        let mut entries = Entries::<FEW>::new();
        for entry in each {
            let (from, to, len) = entry?;
            if len > 0 && !entries.push(from, to, len) {
                self.launch_carry(kernel, &entries)?;
                entries = Entries::new();
                entries.push(from, to, len);
            }
        }
        if entries.is_empty() { Ok(()) } else { self.launch_carry(kernel, &entries) }
    }

    fn carry(&self, pieces: &[Piece], direction: impl Fn(u64, u64) -> (u64, u64)) -> Result<usize, GpuError> {
        let Carry { few, some, many, .. } = self.held.arena.carry();
        match many {
            _ if pieces.len() <= FEW => self.carry_by::<FEW>(few, pieces, direction),
            Some(many) if pieces.len() > SOME => self.carry_by::<MANY>(many, pieces, direction),
            _ => self.carry_by::<SOME>(some, pieces, direction),
        }
    }

    fn carry_by<const N: usize>(
        &self,
        kernel: &Function,
        pieces: &[Piece],
        direction: impl Fn(u64, u64) -> (u64, u64),
    ) -> Result<usize, GpuError> {
        let arena = &self.held.arena;
        let mut entries = Entries::<N>::new();
        let (mut frames, mut slots) = (Known::default(), Known::default());
        let mut launches = 0;
        for piece in pieces.iter().filter(|piece| piece.len > 0) {
            let &Piece { frame, frame_offset, slot, tensor, offset, len } = piece;
            let frame = frames.find((frame.pool, 0), |pool, tensor| arena.host_rows(pool, tensor))?.address(
                frame,
                frame_offset,
                len,
            );
            let slot = slots
                .find((slot.pool, tensor), |pool, tensor| arena.device_rows(pool, tensor))?
                .address(slot, offset, len);
            let (Some(frame), Some(slot)) = (frame, slot) else { return Err(GpuError::NoSlots) };
            let (from, to) = direction(frame, slot);
            if !entries.push(from, to, len) {
                self.launch_carry(kernel, &entries)?;
                launches += 1;
                entries = Entries::new();
                entries.push(from, to, len);
            }
        }
        if !entries.is_empty() {
            self.launch_carry(kernel, &entries)?;
            launches += 1;
        }
        Ok(launches)
    }

    /// Carries as many bytes as the entries say, from the addresses that are in words from `told` on if `from`, else to those.
    pub(crate) fn carry_told(&self, from: bool, entries: &Entries<FEW>, told: u64) -> Result<(), GpuError> {
        if entries.is_empty() {
            return Ok(());
        }
        let carry = self.held.arena.carry();
        let kernel = if from { &carry.from_told } else { &carry.to_told };
        let parameters = [Arg::new(entries), Arg::new(&told)];
        // SAFETY: those are the kernel's two parameters. It reads as many words as there are entries from a page that the lane holds, each of which
        // is always the address of as many bytes of host slots as its entry says; for the rest, as in `launch_carry`.
        Ok(unsafe { self.stream.launch(kernel, entries.launch(), &parameters) }?)
    }

    fn launch_carry<const N: usize>(&self, kernel: &Function, entries: &Entries<N>) -> Result<(), GpuError> {
        let parameter = [Arg::new(entries)];
        // SAFETY: that begins with the one parameter of the kernel for so many entries, which accesses what they name and no more:
        // bytes that were checked to be inside frames, slots and buffers, which the lane holds until the work is done, with the kernel. The
        // host's are only ever accessed as memory that others may write.
        Ok(unsafe { self.stream.launch(kernel, entries.launch(), &parameter) }?)
    }

    /// Runs one of the lane's kernels.
    ///
    /// # Errors
    /// [`GpuError::Arguments`]; [`GpuError::NoSlots`]; [`GpuError::NoBuffer`], also for a kernel that the lane does not
    /// hold; the driver's.
    pub fn run(&self, kernel: usize, launch: Launch, operands: &[Operand]) -> Result<(), GpuError> {
        let kernel = self.held.kernels.get(kernel).ok_or(GpuError::NoBuffer)?;
        kernel.check(operands)?;
        // Little-endian: the first four bytes of a long are the word.
        let mut values = [0_u64; MAX_ARGUMENTS];
        for (value, operand) in values.iter_mut().zip(operands) {
            *value = self.value(operand)?;
        }
        let arguments = values.each_ref().map(Arg::new);
        let arguments = &arguments[..operands.len()];
        // SAFETY: there are as many arguments as the kernel takes, each at least as large; addresses are of memory that
        // the lane holds until the work is done, as it does the kernel. What the kernel does with them is its own: it is
        // trusted as the program is, which `Kernel` says.
        Ok(unsafe { self.stream.launch(kernel.function(), launch, arguments) }?)
    }

    /// Runs one of the lane's kernels with one argument.
    ///
    /// # Safety
    /// The kernel takes one parameter, of the type `T`, and what that has it access is there until the work is done.
    pub(crate) unsafe fn run_with<T: Copy>(&self, kernel: usize, launch: Launch, argument: &T) -> Result<(), GpuError> {
        let kernel = self.held.kernels.get(kernel).ok_or(GpuError::NoBuffer)?;
        // SAFETY: the caller promises that this is the kernel's parameter; the lane holds the kernel.
        Ok(unsafe { self.stream.launch(kernel.function(), launch, &[Arg::new(argument)]) }?)
    }

    pub(crate) fn value(&self, operand: &Operand) -> Result<u64, GpuError> {
        match *operand {
            Operand::Slots { run, tensor, bytes } => {
                Ok(self.held.arena.device(run, tensor, 0, bytes).ok_or(GpuError::NoSlots)?.address())
            }
            Operand::Pinned { run, tensor, bytes } => {
                let rows = self.held.arena.host_rows(run.pool, tensor);
                rows.and_then(|rows| rows.address(run, 0, bytes)).ok_or(GpuError::NoSlots)
            }
            Operand::Buffer { buffer, at, bytes } => Ok(self.buffer(buffer, at, bytes)?.address()),
            Operand::Word(value) => Ok(value.into()),
            Operand::Long(value) => Ok(value),
        }
    }

    pub(crate) fn stream(&self) -> &Stream {
        self.stream
    }

    pub(crate) fn package(&self, package: usize) -> Result<&Package, GpuError> {
        self.held.packages.get(package).ok_or(GpuError::NoBuffer)
    }

    /// Copies what another library has at an address of the device to where it belongs.
    pub(crate) fn copy_from(&self, address: u64, to: &Operand) -> Result<(), GpuError> {
        let to = match *to {
            Operand::Slots { run, tensor, bytes } => {
                self.held.arena.device(run, tensor, 0, bytes).ok_or(GpuError::NoSlots)?
            }
            Operand::Buffer { buffer, at, bytes } => self.buffer(buffer, at, bytes)?,
            Operand::Pinned { .. } | Operand::Word(_) | Operand::Long(_) => return Err(GpuError::NoSlots),
        };
        // SAFETY: the lane holds the target; the other library keeps the source in the order of the stream.
        Ok(unsafe { self.stream.copy_from_address(to, address) }?)
    }

    fn both(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Result<(DeviceRange<'_>, HostRange<'_>), GpuError> {
        let arena = &self.held.arena;
        let device = arena.device(run, tensor, offset, len).ok_or(GpuError::NoSlots)?;
        Ok((device, arena.host(run, tensor, offset, len).ok_or(GpuError::NoSlots)?))
    }

    fn buffer(&self, buffer: usize, at: u64, len: u64) -> Result<DeviceRange<'_>, GpuError> {
        let (at, len) = (usize::try_from(at), usize::try_from(len));
        let (Ok(at), Ok(len)) = (at, len) else { return Err(GpuError::NoBuffer) };
        let buffer = self.held.buffers.get(buffer).ok_or(GpuError::NoBuffer)?;
        buffer.range(at, len).map_err(|_| GpuError::NoBuffer)
    }
}

/// The rows that were asked for last: most pieces are of one tensor, in frames of one pool.
#[derive(Default)]
struct Known(Option<((u16, u16), Rows)>);

impl Known {
    #[inline]
    fn find(&mut self, of: (u16, u16), rows: impl FnOnce(u16, u16) -> Option<Rows>) -> Result<Rows, GpuError> {
        match self.0 {
            Some((known, rows)) if known == of => Ok(rows),
            _ => {
                let found = rows(of.0, of.1).ok_or(GpuError::NoSlots)?;
                self.0 = Some((of, found));
                Ok(found)
            }
        }
    }
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("arena", &self.held.arena).finish_non_exhaustive()
    }
}
