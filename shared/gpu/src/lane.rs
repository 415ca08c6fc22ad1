//! Streams whose memory outlives their work.

use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use splitrpc_arena::Run;
use splitrpc_cuda::{Context, DeviceMemory, Event, Executable, HostRange, MemoryOptions, Stream};
use splitrpc_torch::Package;

use crate::arena::GpuArena;
use crate::error::GpuError;
use crate::gate::Gate;
use crate::kernel::Kernel;
use crate::pages::{Page, Pages};
use crate::told::Told;
use crate::work::Work;

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
    pub(crate) held: ManuallyDrop<Held>,
    pub(crate) stream: Stream,
}

pub(crate) struct Held {
    recordings: Vec<Executable>,
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) packages: Vec<Package>,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) gate: Option<Gate>,
    /// Its first word is the number of the last signal.
    signal: Arc<Pages<Page>>,
    /// Recordings for all slots.
    pub(crate) told: Told,
    /// Those of kernels that stay.
    pages: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) arena: GpuArena,
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
        let signal = Pages::new(arena.context(), Page::new())?;
        let (recordings, packages) = (Vec::new(), Vec::new());
        let held = Held {
            recordings,
            kernels,
            packages,
            buffers,
            gate: None,
            signal,
            told: Told::default(),
            pages: None,
            arena: arena.clone(),
        };
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
        self.held.signal.0[0].load(Ordering::Acquire)
    }

    /// Lets the lane wait at a gate, unless it has one.
    #[must_use]
    pub fn with_gate(mut self, gate: &Gate) -> Lane {
        // Work may wait at the one that it had.
        self.held.gate.get_or_insert_with(|| gate.clone());
        self
    }

    /// The same lane, which holds these pages until its work is done.
    pub(crate) fn with_pages(mut self, pages: Arc<dyn Any + Send + Sync>) -> Lane {
        self.held.pages = Some(pages);
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
        let Some(executable) = self.capture(submit)? else { return Ok(None) };
        let recordings = &mut self.held.recordings;
        recordings.push(executable);
        Ok(Some(Recording(recordings.len() - 1)))
    }

    /// What `submit` submits, recorded, if so much may be.
    pub(crate) fn capture(
        &mut self,
        submit: impl FnOnce(&Work<'_>) -> Result<(), GpuError>,
    ) -> Result<Option<Executable>, GpuError> {
        let Lane { held, stream } = self;
        if held.recordings.len() + held.told.all.len() >= MAX_RECORDINGS {
            return Ok(None);
        }
        let mut outcome = Ok(());
        let graph = stream.capture(|stream| {
            outcome = submit(&Work { held, stream });
            Ok(())
        });
        outcome?;
        Ok(Some(graph?.instantiate()?))
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

    /// Whether nothing is under way any more, so that what the lane holds may go. Waits for that, for two seconds.
    #[must_use]
    pub fn ends(&self) -> bool {
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
