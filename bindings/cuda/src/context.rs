//! A device's primary context, and what is asked of the device as a whole.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUcontext, CUresult};

use crate::device::DeviceInfo;
use crate::driver::BatchCopy;
use crate::error::{DriverError, Error, check};

/// A device's primary context. A handle: clones share it, each object made from it holds one, and it is released with
/// the last. The runtimes of this process that use the same device share the driver's own object.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    raw: CUcontext,
    device: DeviceInfo,
    batch: Option<BatchCopy>,
    /// The error after which nothing works.
    lost: OnceLock<DriverError>,
    /// Nothing is given back any more.
    keeps: AtomicBool,
}

// SAFETY: contexts belong to the process; the driver lets each thread make them current, and synchronises inside.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// The priorities that streams of a device may have. Lower numbers go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPriorities {
    /// That of streams for which none is named; 0.
    pub least: i32,
    /// That of work that goes before all other; negative, or 0 where there are no priorities.
    pub greatest: i32,
}

/// Who is to see a network card's writes once they are flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushScope {
    /// Work on the device that owns the memory.
    Owner,
    /// Work on every device.
    AllDevices,
}

impl StreamPriorities {
    /// Whether streams may have this priority.
    #[must_use]
    pub fn contains(self, priority: i32) -> bool {
        (self.greatest..=self.least).contains(&priority)
    }

    pub(crate) fn refusal(self, priority: i32) -> String {
        let StreamPriorities { least, greatest } = self;
        format!("priority {priority} is not among those of the device, {greatest} (first) to {least}")
    }
}

impl Context {
    pub(crate) fn retain(device: &DeviceInfo, batch: Option<BatchCopy>) -> Result<Context, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: the device is one that the driver named, and the place for the context outlives the call.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut raw, device.device) };
        check(result, "cannot use a CUDA device")?;
        let inner = Inner { raw, device: device.clone(), batch, lost: OnceLock::new(), keeps: AtomicBool::new(false) };
        Ok(Context { inner: Arc::new(inner) })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &DeviceInfo {
        &self.inner.device
    }

    /// Free and total bytes of the device's memory, over all processes.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory_bytes(&self) -> Result<(u64, u64), Error> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places for the sizes outlive the call.
        let result = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        self.check(result, "cannot ask for a device's free memory")?;
        Ok((free as u64, total as u64))
    }

    /// The priorities that [`Stream::with_priority`](crate::Stream::with_priority) takes.
    ///
    /// # Errors
    /// The driver's.
    pub fn stream_priorities(&self) -> Result<StreamPriorities, Error> {
        self.make_current()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: the places for the numbers outlive the call.
        let result = unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest) };
        self.check(result, "cannot ask for a device's stream priorities")?;
        Ok(StreamPriorities { least, greatest })
    }

    /// Waits until all work on the device, of every stream in this process, is done. For start and end, not for
    /// requests.
    ///
    /// # Errors
    /// The driver's, also those of the work.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.make_current()?;
        // SAFETY: the context is current.
        let result = unsafe { sys::cuCtxSynchronize() };
        self.check(result, "cannot finish a device's work")
    }

    /// Makes what network cards have written into this device's memory so far, and told the caller of, visible to work
    /// that is submitted from now on. Waits for it. Not needed where the device says that writes are ordered as far
    /// as that ([`DeviceInfo::rdma_writes_ordering`]).
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the CPU cannot do that; the driver's.
    pub fn flush_remote_writes(&self, scope: FlushScope) -> Result<(), Error> {
        use sys::{CUflushGPUDirectRDMAWritesScope as Scope, CUflushGPUDirectRDMAWritesTarget as Target};
        const WHAT: &str = "cannot flush a network card's writes";
        if !self.device().flush_from_host {
            return Err(Error::Unsupported { what: WHAT, needs: "a device whose remote writes the CPU can flush" });
        }
        self.make_current()?;
        let scope = match scope {
            FlushScope::Owner => Scope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER,
            FlushScope::AllDevices => Scope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES,
        };
        let target = Target::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
        // SAFETY: the context is current, and both arguments are among those that the driver knows.
        let result = unsafe { sys::cuFlushGPUDirectRDMAWrites(target, scope) };
        self.check(result, WHAT)
    }

    /// Whether an error that [is sticky](Error::is_sticky) has been seen. Each further call gives that error, without
    /// asking the driver, some of whose calls would go on as if nothing had happened.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.lost.get().is_some()
    }

    /// Makes the context current on the calling thread, unless it is lost, for another library that wants it so; each call of this
    /// crate's does it of itself.
    ///
    /// # Errors
    /// Why it was lost.
    #[inline]
    pub fn make_current(&self) -> Result<(), Error> {
        match self.inner.lost.get() {
            Some(error) => Err(error.clone().into()),
            None => self.enter(),
        }
    }

    /// Has nothing that belongs to this context be given back any more before the process ends: to give memory or code back waits for all
    /// that the device computes, and that may be something that does not end.
    pub fn keep_all(&self) {
        self.inner.keeps.store(true, Ordering::Relaxed);
    }

    /// Whether that is so.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        self.inner.keeps.load(Ordering::Relaxed)
    }

    /// Makes the context current on the calling thread for what a drop gives back, even when it is lost. False: nothing is to be given back.
    pub(crate) fn make_current_to_free(&self) -> bool {
        !self.keeps_all() && self.enter().is_ok()
    }

    /// Costs a look when the context is current already. Others in this process may change that at any time, so it is
    /// not remembered.
    #[inline]
    fn enter(&self) -> Result<(), Error> {
        const TRIED: &str = "cannot make a device current";
        let mut current = ptr::null_mut();
        // SAFETY: the place for the context outlives the call.
        let result = unsafe { sys::cuCtxGetCurrent(&raw mut current) };
        self.check(result, TRIED)?;
        if current == self.inner.raw {
            return Ok(());
        }
        // SAFETY: the context is retained as long as `self` is there.
        let result = unsafe { sys::cuCtxSetCurrent(self.inner.raw) };
        self.check(result, TRIED)
    }

    /// The driver's answer to a call in this context.
    #[inline]
    pub(crate) fn check(&self, result: CUresult, tried: &'static str) -> Result<(), Error> {
        check(result, tried).map_err(|error| self.failed(error))
    }

    /// Notes an error that loses the context.
    #[cold]
    pub(crate) fn failed(&self, error: DriverError) -> Error {
        if error.is_sticky() {
            // The first is kept.
            let _ = self.inner.lost.set(error.clone());
        }
        error.into()
    }

    /// As [`Context::check`], where "not ready" is an answer too.
    pub(crate) fn check_ready(&self, result: CUresult, tried: &'static str) -> Result<bool, Error> {
        if result == CUresult::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        self.check(result, tried).map(|()| true)
    }

    pub(crate) fn batch(&self) -> Option<BatchCopy> {
        self.inner.batch
    }

    /// Whether two handles are of one device.
    pub(crate) fn is_same(&self, other: &Context) -> bool {
        self.inner.raw == other.inner.raw
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device().ordinal()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if *self.keeps.get_mut() {
            return;
        }
        // SAFETY: this gives back what `retain` took, once, after the last object made from it is gone. That the
        // process may be ending, or the context be lost, is no error here.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_descend_from_least_to_greatest() {
        let range = StreamPriorities { least: 0, greatest: -5 };
        assert!(range.contains(0) && range.contains(-5) && range.contains(-2));
        assert!(!range.contains(1) && !range.contains(-6));
        assert_eq!(range.refusal(7), "priority 7 is not among those of the device, -5 (first) to 0");
        assert!(StreamPriorities { least: 0, greatest: 0 }.contains(0));
    }
}
