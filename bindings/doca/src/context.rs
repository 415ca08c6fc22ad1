//! What work is submitted to, and who drives it.
#![expect(unsafe_code, reason = "calls of DOCA")]

use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::time::{Duration, Instant};

use doca_sys::{doca_ctx, doca_ctx_states, doca_data, doca_pe};

use crate::device::{not_null, told};
use crate::error::{Code, Error, check};
use crate::library::Library;

/// How long a context that stops may take to give back what is in flight.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Drives the contexts of one thread. Nothing happens in any of them but in [`ProgressEngine::progress`]. Clones are the same.
#[derive(Clone)]
pub struct ProgressEngine {
    inner: Rc<Inner>,
}

struct Inner {
    library: Library,
    engine: NonNull<doca_pe>,
}

impl ProgressEngine {
    /// An engine of this thread.
    ///
    /// # Errors
    /// Those of DOCA.
    pub fn new(library: &Library) -> Result<ProgressEngine, Error> {
        let mut engine = ptr::null_mut();
        // SAFETY: what is written to lives through the call.
        check("doca_pe_create", unsafe { (library.doca().doca_pe_create)(&raw mut engine) })?;
        let engine = not_null("doca_pe_create", engine)?;
        Ok(ProgressEngine { inner: Rc::new(Inner { library: library.clone(), engine }) })
    }

    /// Goes on with about one thing. Returns whether there was any.
    #[inline]
    #[expect(clippy::must_use_candidate, reason = "whoever polls goes on anyway")]
    pub fn progress(&self) -> bool {
        // SAFETY: the engine is there and this is its thread, which it cannot leave. The callbacks of this crate call nothing that leads here again.
        unsafe { (self.inner.library.doca().doca_pe_progress)(self.inner.engine.as_ptr()) != 0 }
    }

    pub(crate) fn library(&self) -> &Library {
        &self.inner.library
    }
}

impl fmt::Debug for ProgressEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressEngine").finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made once, given back once; each context holds its engine.
        let answer = unsafe { (self.library.doca().doca_pe_destroy)(self.engine.as_ptr()) };
        told(check("doca_pe_destroy", answer));
    }
}

/// How far a context has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextState {
    /// It has not begun, or has ended.
    Idle,
    /// It begins.
    Starting,
    /// It takes work.
    Running,
    /// It ends, once all that it was given has come back.
    Stopping,
}

/// A context and its engine. Whoever made the object that it is a context of destroys that after it has stopped.
pub(crate) struct Context {
    engine: ProgressEngine,
    context: NonNull<doca_ctx>,
}

impl Context {
    /// Connects a context that is not started. Its callbacks are given `data`.
    pub(crate) fn connect(engine: &ProgressEngine, context: *mut doca_ctx, data: *const c_void) -> Result<Self, Error> {
        let doca = engine.library().doca();
        let found = not_null("doca_pe_connect_ctx", context)?;
        let data = doca_data { ptr: data.cast_mut() };
        // SAFETY: the context is there, as the object is that it belongs to.
        check("doca_ctx_set_user_data", unsafe { (doca.doca_ctx_set_user_data)(context, data) })?;
        // SAFETY: as above, and the engine stays for as long as the context.
        let answer = unsafe { (doca.doca_pe_connect_ctx)(engine.inner.engine.as_ptr(), context) };
        check("doca_pe_connect_ctx", answer)?;
        Ok(Context { engine: engine.clone(), context: found })
    }

    /// Starts it. Some run at once, others after some progress.
    pub(crate) fn start(&self) -> Result<(), Error> {
        // SAFETY: it is there, connected, and what its object needs was said.
        match check("doca_ctx_start", unsafe { (self.library().doca().doca_ctx_start)(self.context.as_ptr()) }) {
            Err(error) if error.code() == Code::IN_PROGRESS => Ok(()),
            other => other,
        }
    }

    /// How far it has come.
    pub(crate) fn state(&self) -> ContextState {
        let mut state = doca_ctx_states::DOCA_CTX_STATE_IDLE;
        // SAFETY: it is there, and what is written to lives through the call.
        let answer = unsafe { (self.library().doca().doca_ctx_get_state)(self.context.as_ptr(), &raw mut state) };
        match state {
            _ if check("doca_ctx_get_state", answer).is_err() => ContextState::Idle,
            doca_ctx_states::DOCA_CTX_STATE_STARTING => ContextState::Starting,
            doca_ctx_states::DOCA_CTX_STATE_RUNNING => ContextState::Running,
            doca_ctx_states::DOCA_CTX_STATE_STOPPING => ContextState::Stopping,
            _ => ContextState::Idle,
        }
    }

    /// Stops it, and drives its engine until all that it was given has come back. Returns whether that has happened: if not, nothing that it uses may
    /// go.
    #[must_use]
    pub(crate) fn stop(&self) -> bool {
        let end = Instant::now() + STOP_WITHIN;
        let mut asked = false;
        while self.state() != ContextState::Idle {
            if !asked {
                // SAFETY: it is there and connected.
                let answer = unsafe { (self.library().doca().doca_ctx_stop)(self.context.as_ptr()) };
                let answer = check("doca_ctx_stop", answer);
                // What stops already refuses to be stopped; what something depends on does so until that has gone.
                asked = answer.is_ok()
                    || answer.is_err_and(|error| [Code::IN_PROGRESS, Code::BAD_STATE].contains(&error.code()));
            }
            self.engine.progress();
            if Instant::now() > end {
                tracing::error!("a context of DOCA does not stop; what it uses stays");
                return false;
            }
        }
        true
    }

    pub(crate) fn engine(&self) -> &ProgressEngine {
        &self.engine
    }

    pub(crate) fn library(&self) -> &Library {
        self.engine.library()
    }
}
