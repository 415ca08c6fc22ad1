//! Progress engines: inside them, and nowhere else, the card works.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use doca_sys::{doca_ctx, doca_error_t, doca_pe};

use crate::call::{answer, broken, call, inside};
use crate::context::Context;
use crate::error::{BAD_STATE, IN_USE, NOT_PERMITTED};
use crate::handle::{Handle, object};

/// A `doca_pe`.
pub(crate) struct Engine {
    /// The thread that first used it, which alone may use it; 0 before.
    owner: AtomicU64,
    busy: Cell<bool>,
    contexts: RefCell<Vec<Handle<Context>>>,
    /// Whose turn it is.
    next: Cell<usize>,
}
object!(Engine, 8, "a progress engine");

thread_local! {
    /// This thread's number, which no other ever has.
    static THREAD: u64 = {
        static THREADS: AtomicU64 = AtomicU64::new(1);
        THREADS.fetch_add(1, Ordering::Relaxed)
    };
}

impl Engine {
    /// Makes it this thread's, whose it must be if it is anybody's.
    pub(crate) fn must_be_ours(&self) {
        let this = THREAD.with(|thread| *thread);
        let owner = self.owner.load(Ordering::Acquire);
        if owner != this && (owner != 0 || self.owner.swap(this, Ordering::AcqRel) != 0) {
            broken("a progress engine was used by two threads");
        }
    }

    pub(crate) fn forget(&self, context: Handle<Context>) {
        self.contexts.borrow_mut().retain(|known| *known != context);
    }

    /// Lets each context work in its turn, until one has handled an item.
    fn turn(&self) -> bool {
        let all = self.contexts.borrow().len();
        (0..all).any(|_| {
            // Callbacks may have changed which there are.
            let contexts = self.contexts.borrow();
            let place = if self.next.get() < contexts.len() { self.next.get() } else { 0 };
            self.next.set(place + 1);
            let context = contexts.get(place).copied();
            drop(contexts);
            context.is_some_and(Context::progress)
        })
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_pe_create(engine: *mut *mut doca_pe) -> doca_error_t {
    call("doca_pe_create", || {
        let contexts = RefCell::new(Vec::new());
        let new = Engine { owner: AtomicU64::new(0), busy: Cell::new(false), contexts, next: Cell::new(0) };
        answer(engine)?.put(Handle::new(new).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_pe_destroy(engine: *mut doca_pe) -> doca_error_t {
    call("doca_pe_destroy", || {
        let engine = Handle::<Engine>::given(engine)?;
        if engine.busy.get() {
            broken("a progress engine was destroyed in one of its callbacks");
        }
        if !engine.contexts.borrow().is_empty() {
            return Err(IN_USE);
        }
        engine.end();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_pe_connect_ctx(engine: *mut doca_pe, context: *mut doca_ctx) -> doca_error_t {
    call("doca_pe_connect_ctx", || {
        let (engine, context) = (Handle::<Engine>::given(engine)?, Handle::<Context>::given(context)?);
        if !context.is_idle() {
            return Err(BAD_STATE);
        }
        if context.engine.get().is_some() {
            return Err(NOT_PERMITTED);
        }
        context.engine.set(Some(engine));
        engine.contexts.borrow_mut().push(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_pe_progress(engine: *mut doca_pe) -> u8 {
    inside("doca_pe_progress", || {
        let engine = Handle::<Engine>::needed(engine);
        engine.must_be_ours();
        if engine.busy.replace(true) {
            broken("a progress engine was made to progress in one of its callbacks");
        }
        let handled = engine.turn();
        engine.busy.set(false);
        u8::from(handled)
    })
}
