//! Streams: work of a device in order.

use std::ffi::c_void;
use std::fmt;
use std::ptr;

use cudarc::driver::sys::{self, CUstream};

use crate::context::Context;
use crate::error::Error;
use crate::event::Event;

/// Work of one device that is carried out in the order in which it was submitted, beside that of other streams. No
/// stream waits for the process's default stream.
///
/// # Safety of what is submitted
/// A submitting call returns before its work is done. The `unsafe` ones ask this of their caller: until the stream has
/// passed the work (until [`Stream::synchronize`] returns, or an [`Event`] recorded behind it has happened),
///
/// - all memory that it names stays mapped: device memory is not dropped, and host memory is neither freed, moved nor
///   unmapped, nor its registration dropped;
/// - host memory that it writes is not accessed, and host memory that it reads is not written, other than as memory
///   which others may write (no reference to it exists);
/// - modules and graphs that it runs are not dropped.
///
/// Dropping a stream does not wait, so it does not end that time; nor does an error, unless it is one from waiting that
/// [is sticky](Error::is_sticky).
pub struct Stream {
    context: Context,
    raw: CUstream,
}

// SAFETY: streams belong to the process; the driver lets each thread use them, and synchronises inside.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the least priority.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Context) -> Result<Stream, Error> {
        Stream::with_priority(context, context.stream_priorities()?.least)
    }

    /// A stream of a priority. It counts when blocks of several streams wait for room on the device; copies have none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the priority is not among [`Context::stream_priorities`]; the driver's.
    pub fn with_priority(context: &Context, priority: i32) -> Result<Stream, Error> {
        const WHAT: &str = "cannot make a stream";
        let range = context.stream_priorities()?;
        if !range.contains(priority) {
            return Err(Error::Invalid { what: WHAT, why: range.refusal(priority) });
        }
        context.make_current()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current, and the place for the stream outlives the call.
        let result = unsafe { sys::cuStreamCreateWithPriority(&raw mut raw, flags, priority) };
        context.check(result, WHAT)?;
        Ok(Stream { context: context.clone(), raw })
    }

    /// Its device.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Its priority; lower numbers go first.
    ///
    /// # Errors
    /// The driver's.
    pub fn priority(&self) -> Result<i32, Error> {
        self.context.make_current()?;
        let mut priority = 0;
        // SAFETY: the stream is live, and the place for the number outlives the call.
        let result = unsafe { sys::cuStreamGetPriority(self.raw, &raw mut priority) };
        self.context.check(result, "cannot ask for a stream's priority")?;
        Ok(priority)
    }

    /// Waits until all that was submitted is done. Whether the thread spins or sleeps is the context's setting.
    ///
    /// # Errors
    /// The driver's, also those of the work.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.context.make_current()?;
        // SAFETY: the stream is live.
        let result = unsafe { sys::cuStreamSynchronize(self.raw) };
        self.context.check(result, "cannot finish a stream's work")
    }

    /// Whether all that was submitted is done. Does not wait.
    ///
    /// # Errors
    /// The driver's, also those of the work.
    pub fn is_done(&self) -> Result<bool, Error> {
        self.context.make_current()?;
        // SAFETY: the stream is live.
        let result = unsafe { sys::cuStreamQuery(self.raw) };
        self.context.check_ready(result, "cannot ask whether a stream's work is done")
    }

    /// Has the event happen when all that was submitted so far is done; what it was recorded for before is forgotten.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; the driver's.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        const WHAT: &str = "cannot record an event";
        self.same_device(event.context(), WHAT)?;
        self.context.make_current()?;
        // SAFETY: the event and the stream are live, and of one context.
        let result = unsafe { sys::cuEventRecord(event.raw(), self.raw) };
        self.context.check(result, WHAT)
    }

    /// Has all that is submitted from now on wait for what the event was last recorded for, on whichever device. The
    /// calling thread does not wait. An event that was never recorded holds nothing up.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.context.make_current()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT as u32;
        // SAFETY: the event and the stream are live. The driver keeps what it needs of the event should it be dropped.
        let result = unsafe { sys::cuStreamWaitEvent(self.raw, event.raw(), flags) };
        self.context.check(result, "cannot wait for an event")
    }

    /// The driver's handle, for another library. What that submits falls under the contract above.
    #[must_use]
    pub fn as_raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    pub(crate) fn same_device(&self, other: &Context, what: &'static str) -> Result<(), Error> {
        if self.context.is_same(other) { Ok(()) } else { Err(Error::OtherDevice { what }) }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.make_current_to_free() {
            // SAFETY: the stream is destroyed once; work that it still has is carried out, and the driver frees it
            // then.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}
