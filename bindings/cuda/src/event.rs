//! Events: points in a stream's work that can be asked about and waited for.

use std::fmt;
use std::ptr;
use std::time::Duration;

use cudarc::driver::sys::{self, CUevent};

use crate::context::Context;
use crate::error::Error;

/// A point in a stream's work: see [`Stream::record`](crate::Stream::record). Made once and recorded again and again.
pub struct Event {
    context: Context,
    raw: CUevent,
    timed: bool,
}

// SAFETY: events belong to the process; the driver lets each thread use them, and synchronises inside.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that is cheap to record, since it does not look at the clock.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Context) -> Result<Event, Error> {
        Event::with_timing(context, false)
    }

    /// An event that notes the time at which it happens.
    ///
    /// # Errors
    /// The driver's.
    pub fn timed(context: &Context) -> Result<Event, Error> {
        Event::with_timing(context, true)
    }

    fn with_timing(context: &Context, timed: bool) -> Result<Event, Error> {
        context.make_current()?;
        let flags =
            if timed { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let mut raw = ptr::null_mut();
        // SAFETY: the context is current, and the place for the event outlives the call.
        let result = unsafe { sys::cuEventCreate(&raw mut raw, flags as u32) };
        context.check(result, "cannot make an event")?;
        Ok(Event { context: context.clone(), raw, timed })
    }

    /// Whether what it was last recorded for is done; true as long as it was never recorded. Does not wait.
    ///
    /// # Errors
    /// The driver's, also those of the work before it.
    pub fn has_happened(&self) -> Result<bool, Error> {
        self.context.make_current()?;
        // SAFETY: the event is live.
        let result = unsafe { sys::cuEventQuery(self.raw) };
        self.context.check_ready(result, "cannot ask whether an event has happened")
    }

    /// Waits until what it was last recorded for is done. Whether the thread spins or sleeps is the context's setting.
    ///
    /// # Errors
    /// The driver's, also those of the work before it.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.context.make_current()?;
        // SAFETY: the event is live.
        let result = unsafe { sys::cuEventSynchronize(self.raw) };
        self.context.check(result, "cannot wait for an event")
    }

    /// Time on the device from another event to this one, to about half a microsecond; `None` as long as one of them
    /// has not happened. Both are timed and were recorded.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one is not timed; [`Error::OtherDevice`]; the driver's, for instance when one was never
    /// recorded.
    pub fn elapsed_since(&self, earlier: &Event) -> Result<Option<Duration>, Error> {
        const WHAT: &str = "cannot measure the time between two events";
        if !(self.timed && earlier.timed) {
            return Err(Error::Invalid { what: WHAT, why: "both must be made by Event::timed".to_owned() });
        }
        if !self.context.is_same(&earlier.context) {
            return Err(Error::OtherDevice { what: WHAT });
        }
        self.context.make_current()?;
        let mut milliseconds = 0_f32;
        // SAFETY: both events are live, and the place for the time outlives the call.
        let result = unsafe { sys::cuEventElapsedTime(&raw mut milliseconds, earlier.raw, self.raw) };
        if !self.context.check_ready(result, WHAT)? {
            return Ok(None);
        }
        // Negative when they happened the other way round.
        Ok(Some(Duration::try_from_secs_f64(f64::from(milliseconds) / 1000.0).unwrap_or_default()))
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn raw(&self) -> CUevent {
        self.raw
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("timed", &self.timed).finish_non_exhaustive()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.make_current_to_free() {
            // SAFETY: the event is destroyed once; one that has not happened yet is freed by the driver when it has.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
