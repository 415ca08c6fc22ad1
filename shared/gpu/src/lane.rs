//! Streams whose memory outlives their work.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use splitrpc_arena::Run;
use splitrpc_cuda::{
    Arg, Context, CopyBatch, DeviceMemory, DeviceRange, Event, Executable, Function, HostRange, Launch, MemoryOptions,
    Stream,
};
use splitrpc_torch::Package;

use crate::arena::{GpuArena, Rows};
use crate::carry::{Carry, Entries, FEW, MANY, Piece, SOME};
use crate::error::GpuError;
use crate::gate::Gate;
use crate::kernel::{Kernel, MAX_ARGUMENTS, Operand};
use crate::signal::Signal;

/// Device memory beside the slots: weights, and what a model keeps from kernel to kernel.
pub type Buffer = Arc<DeviceMemory>;

/// Device memory that holds these bytes, one at least. For start-up: waits until they are there.
///
/// # Errors
/// The driver's.
pub fn filled(context: &Context, bytes: &[u8]) -> Result<Buffer, GpuError> {
    let memory = DeviceMemory::new(context, bytes.len(), MemoryOptions::default())?;
    let all = memory.range(0, bytes.len()).map_err(splitrpc_cuda::Error::from)?;
    Stream::new(context)?.upload(all, bytes)?;
    Ok(Arc::new(memory))
}

/// Recorded work of one lane, at most.
const MAX_RECORDINGS: usize = 256;
/// How long the end of a lane waits for its work.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stream, and all memory and code that is used on it: the slots of an arena, buffers and kernels. Work is submitted
/// in order and done later; nothing that it uses goes before that.
///
/// A lane that is dropped waits for its work. Where that does not end, its memory is never given back, as the device
/// may still write there.
pub struct Lane {
    held: ManuallyDrop<Held>,
    stream: Stream,
}

struct Held {
    recordings: Vec<Executable>,
    kernels: Vec<Kernel>,
    packages: Vec<Package>,
    buffers: Vec<Buffer>,
    gate: Option<Gate>,
    signal: Signal,
    arena: GpuArena,
}

/// Work of a lane that was recorded: see [`Lane::record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recording(usize);

impl Lane {
    /// A lane over an arena's slots. `priority` is one of the device's stream priorities.
    ///
    /// # Errors
    /// [`GpuError::NoBuffer`] for a buffer of another device; the driver's.
    pub fn new(arena: &GpuArena, priority: i32, buffers: Vec<Buffer>, kernels: Vec<Kernel>) -> Result<Lane, GpuError> {
        let device = |context: &Context| context.device().ordinal();
        if buffers.iter().any(|buffer| device(buffer.context()) != device(arena.context())) {
            return Err(GpuError::NoBuffer);
        }
        let stream = Stream::with_priority(arena.context(), priority)?;
        let signal = Signal::new(arena.context())?;
        let (recordings, packages) = (Vec::new(), Vec::new());
        let held = Held { recordings, kernels, packages, buffers, gate: None, signal, arena: arena.clone() };
        Ok(Lane { held: ManuallyDrop::new(held), stream })
    }

    /// The same lane, with models that PyTorch compiled behind those that it has.
    #[must_use]
    pub fn with_packages(mut self, packages: Vec<Package>) -> Lane {
        self.held.packages.extend(packages);
        self
    }

    /// Its slots.
    #[must_use]
    pub fn arena(&self) -> &GpuArena {
        &self.held.arena
    }

    /// Has the event happen when all that was submitted so far is done.
    ///
    /// # Errors
    /// The driver's.
    pub fn mark(&self, event: &Event) -> Result<(), GpuError> {
        Ok(self.stream.record(event)?)
    }

    /// Has all that is submitted from now on wait for what the event was last recorded for.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait(&self, event: &Event) -> Result<(), GpuError> {
        Ok(self.stream.wait(event)?)
    }

    /// Has [`Lane::signalled`] give this number when all that was submitted so far is done. It costs the device less than an event, and the
    /// CPU no call to see it.
    ///
    /// # Errors
    /// The driver's, one of which says that it cannot.
    pub fn signal(&self, number: u32) -> Result<(), GpuError> {
        // SAFETY: the lane holds the word until its work is done.
        Ok(unsafe { self.stream.write_value32(self.held.signal.word()?, number) }?)
    }

    /// The number of the last signal whose work is done; 0 before the first. Work that failed does not get that far.
    #[must_use]
    #[inline]
    pub fn signalled(&self) -> u32 {
        self.held.signal.value()
    }

    /// Lets the lane wait at a gate, unless it has one.
    #[must_use]
    pub fn with_gate(mut self, gate: &Gate) -> Lane {
        // Work may wait at the one that it had.
        self.held.gate.get_or_insert_with(|| gate.clone());
        self
    }

    /// Where work is submitted to.
    #[must_use]
    pub fn work(&self) -> Work<'_> {
        Work { held: &self.held, stream: &self.stream }
    }

    /// Records what `submit` submits, which is not done now, so that it can be done as a whole as often as wanted. `None`
    /// where so much is recorded already that it has to go without.
    ///
    /// # Errors
    /// Those of `submit`; the driver's.
    pub fn record(
        &mut self,
        submit: impl FnOnce(&Work<'_>) -> Result<(), GpuError>,
    ) -> Result<Option<Recording>, GpuError> {
        let Lane { held, stream } = self;
        if held.recordings.len() == MAX_RECORDINGS {
            return Ok(None);
        }
        let mut outcome = Ok(());
        let graph = stream.capture(|stream| {
            outcome = submit(&Work { held, stream });
            Ok(())
        });
        outcome?;
        let executable = graph?.instantiate()?;
        held.recordings.push(executable);
        Ok(Some(Recording(held.recordings.len() - 1)))
    }

    /// How much more can be recorded.
    #[must_use]
    pub fn recordings_left(&self) -> usize {
        MAX_RECORDINGS - self.held.recordings.len()
    }

    /// Does work again that this lane has recorded. A recording of another lane names another one's, if any.
    ///
    /// # Errors
    /// [`GpuError::NoBuffer`] where the lane has no such recording; the driver's, also those of earlier work.
    pub fn replay(&self, recording: Recording) -> Result<(), GpuError> {
        let executable = self.held.recordings.get(recording.0).ok_or(GpuError::NoBuffer)?;
        // SAFETY: all that was submitted when it was recorded is of memory and code that the lane holds until its
        // work is done, and so is the recording.
        Ok(unsafe { self.stream.launch_graph(executable) }?)
    }

    /// Copies private bytes to slots on the device, submits what `compute` does, copies from slots to private bytes, and waits for all of
    /// that. For those who have a launch to wait for, and for start-up and tests.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; those of `compute`; the driver's, also those of the work.
    pub fn exchange(
        &self,
        inputs: &[(Run, u16, &[u8])],
        compute: impl FnOnce(&Work<'_>) -> Result<(), GpuError>,
        outputs: &mut [(Run, u16, &mut [u8])],
    ) -> Result<(), GpuError> {
        // Whatever becomes of the submission: what was submitted has borrowed the bytes.
        let borrowed = Borrowed { stream: &self.stream };
        let submitted = self.submit_exchange(inputs, compute, outputs);
        let done = self.finish();
        drop(borrowed);
        submitted.and(done)
    }

    fn submit_exchange(
        &self,
        inputs: &[(Run, u16, &[u8])],
        compute: impl FnOnce(&Work<'_>) -> Result<(), GpuError>,
        outputs: &mut [(Run, u16, &mut [u8])],
    ) -> Result<(), GpuError> {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| GpuError::NoSlots);
        for &(run, tensor, bytes) in inputs {
            let to = self.held.arena.device(run, tensor, 0, len(bytes)?).ok_or(GpuError::NoSlots)?;
            // SAFETY: the bytes are borrowed until the caller has waited, and a copy to the device does not write them.
            let from = unsafe { HostRange::new(bytes.as_ptr().cast_mut(), bytes.len()) };
            // SAFETY: as above, and the lane holds the slots.
            unsafe { self.stream.copy_to_device(to, from) }?;
        }
        compute(&self.work())?;
        for (run, tensor, bytes) in outputs {
            let from = self.held.arena.device(*run, *tensor, 0, len(bytes)?).ok_or(GpuError::NoSlots)?;
            // SAFETY: the bytes are borrowed, exclusively, until the caller has waited.
            let to = unsafe { HostRange::new(bytes.as_mut_ptr(), bytes.len()) };
            // SAFETY: as above, and the lane holds the slots.
            unsafe { self.stream.copy_to_host(to, from) }?;
        }
        Ok(())
    }

    /// Whether all that was submitted is done.
    ///
    /// # Errors
    /// The driver's, also those of the work.
    pub fn is_done(&self) -> Result<bool, GpuError> {
        Ok(self.stream.is_done()?)
    }

    /// Waits until all that was submitted is done. For start-up and tests.
    ///
    /// # Errors
    /// The driver's, also those of the work.
    pub fn finish(&self) -> Result<(), GpuError> {
        Ok(self.stream.synchronize()?)
    }

    /// Whether nothing is under way any more, so that what the lane holds may go.
    pub(crate) fn ends(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.stream.is_done() {
                Ok(true) => return true,
                // A context that is lost does nothing any more.
                Err(error) => return error.is_sticky(),
                Ok(false) if Instant::now() > end => return false,
                Ok(false) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Bytes that are borrowed for a stream's work. Dropped, also by a panic, once that is done; waits for it for as long as it takes.
struct Borrowed<'s> {
    stream: &'s Stream,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        loop {
            match self.stream.is_done() {
                Ok(true) => return,
                // A context that is lost does nothing any more.
                Err(error) if error.is_sticky() => return,
                Ok(false) | Err(_) => thread::sleep(Duration::from_micros(100)),
            }
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("arena", &self.held.arena).finish_non_exhaustive()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.ends() {
            // SAFETY: dropped once, here, and not used after that.
            unsafe { ManuallyDrop::drop(&mut self.held) };
        }
    }
}

/// What can be submitted to a lane. All of it is done after what was submitted before, and before what comes later.
#[derive(Clone, Copy)]
pub struct Work<'l> {
    held: &'l Held,
    stream: &'l Stream,
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

    /// Has what comes later wait until the lane's gate is opened, or for as long as `limit`: [`Gate::was_opened`] tells which it was.
    ///
    /// # Errors
    /// [`GpuError::NoBuffer`] where the lane has no gate; the driver's.
    pub fn hold(&self, limit: Duration) -> Result<(), GpuError> {
        let gate = self.held.gate.as_ref().ok_or(GpuError::NoBuffer)?;
        // SAFETY: the lane holds the gate until its work is done, recorded work included.
        unsafe { gate.hold(self.stream, limit) }
    }

    /// Has a kernel read tensors on the host, from the beginning of each run's on, into a buffer on the device: it can wait for its turn before the
    /// bytes are there, and writes no slots.
    ///
    /// # Errors
    /// As [`Work::gather`]; [`GpuError::NoBuffer`].
    pub fn fetch(
        &self,
        inputs: impl Iterator<Item = (Run, u16, u32)>,
        buffer: usize,
        at: &[u64],
    ) -> Result<(), GpuError> {
        self.carry_each(inputs.zip(at).map(|((run, tensor, len), at)| {
            let host = self.held.arena.host_rows(run.pool, tensor).and_then(|rows| rows.address(run, 0, len));
            Ok((host.ok_or(GpuError::NoSlots)?, self.buffer(buffer, *at, len.into())?.address(), len))
        }))
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
        let arena = &self.held.arena;
        let address = |rows: Option<Rows>| rows.and_then(|rows| rows.address(run, 0, len)).ok_or(GpuError::NoSlots);
        Ok([address(arena.host_rows(run.pool, tensor))?, address(arena.device_rows(run.pool, tensor))?])
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
        let Carry { few, some, many } = self.held.arena.carry();
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
