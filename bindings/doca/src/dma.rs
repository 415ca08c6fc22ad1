//! Copies between this side's memory and the other's.
#![expect(unsafe_code, reason = "calls of DOCA, and what it calls back")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use doca_sys::{doca_data, doca_dma, doca_dma_task_memcpy};

use crate::buffer::Buffer;
use crate::context::{Context, ContextState, ProgressEngine};
use crate::device::{Device, not_null, told};
use crate::error::{Code, Error, check};
use crate::library::Library;
use crate::task;

/// A copy that has ended. Copies may end in another order than that in which they were begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// What was said of it when it began.
    pub token: u64,
    /// Whether all bytes are where they belong. After an error some of them may be.
    pub result: Result<(), Error>,
}

/// A copy engine's queue.
pub struct Dma {
    context: Context,
    dma: NonNull<doca_dma>,
    shared: Rc<Shared>,
    _device: Device,
}

/// What the callbacks see.
struct Shared {
    library: Library,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    done: RefCell<VecDeque<Finished>>,
    /// Tasks go when they come back.
    ending: Cell<bool>,
}

/// A copy that may be under way. Its task is made with the first copy and used for the next ones.
struct Slot {
    task: Option<NonNull<doca_dma_task_memcpy>>,
    buffers: Option<(Buffer, Buffer)>,
    token: u64,
}

impl Dma {
    /// A queue for `depth` copies at once.
    ///
    /// # Errors
    /// Those of DOCA.
    pub fn new(engine: &ProgressEngine, device: &Device, depth: u32) -> Result<Dma, Error> {
        let library = engine.library().clone();
        let mut dma = ptr::null_mut();
        // SAFETY: the device is open, and what is written to lives through the call.
        let answer = unsafe { (library.doca().doca_dma_create)(device.as_ptr(), &raw mut dma) };
        check("doca_dma_create", answer)?;
        let dma = not_null("doca_dma_create", dma)?;
        let slot = |_| Slot { task: None, buffers: None, token: 0 };
        let shared = Rc::new(Shared {
            library: library.clone(),
            slots: RefCell::new((0..depth).map(slot).collect()),
            free: RefCell::new((0..depth).rev().collect()),
            done: RefCell::new(VecDeque::with_capacity(depth as usize)),
            ending: Cell::new(false),
        });
        let begun = Dma::begin(engine, &library, dma, &shared, depth);
        let context = begun.inspect_err(|_| {
            // SAFETY: it was made above, and nothing was begun.
            told(check("doca_dma_destroy", unsafe { (library.doca().doca_dma_destroy)(dma.as_ptr()) }));
        })?;
        Ok(Dma { context, dma, shared, _device: device.clone() })
    }

    fn begin(
        engine: &ProgressEngine,
        library: &Library,
        dma: NonNull<doca_dma>,
        shared: &Rc<Shared>,
        depth: u32,
    ) -> Result<Context, Error> {
        let doca = library.doca();
        // SAFETY: it is there; the callbacks are of the type that is called.
        let answer =
            unsafe { (doca.doca_dma_task_memcpy_set_conf)(dma.as_ptr(), Some(succeeded), Some(failed), depth) };
        check("doca_dma_task_memcpy_set_conf", answer)?;
        // SAFETY: it is there.
        let context = unsafe { (doca.doca_dma_as_ctx)(dma.as_ptr()) };
        let context = Context::connect(engine, context, Rc::as_ptr(shared).cast())?;
        context.start()?;
        Ok(context)
    }

    /// Begins to copy the whole source to the beginning of the target. `token` comes back with [`Dma::finished`].
    ///
    /// # Errors
    /// [`Code::AGAIN`] where as many are under way as were asked for, and others of DOCA. Nothing has begun then.
    pub fn copy(&mut self, source: Buffer, target: Buffer, token: u64) -> Result<(), Error> {
        let full = Error::refused("doca_task_try_submit", Code::AGAIN, "as many copies are under way as there may be");
        let index = self.shared.free.borrow().last().copied().ok_or(full)?;
        let mut slots = self.shared.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        let task = match slot.task {
            Some(task) => self.describe(task, &source, &target),
            None => self.make(index, &source, &target)?,
        };
        slot.task = Some(task);
        // A submission calls nothing back, but this is the last moment at which that is easily seen to be harmless.
        (slot.buffers, slot.token) = (Some((source, target)), token);
        // SAFETY: the task is this slot's and not under way, and its buffers stay in the slot.
        if let Err(error) = unsafe { task::submit(&self.shared.library, task) } {
            slot.buffers = None;
            return Err(error);
        }
        self.shared.free.borrow_mut().pop();
        Ok(())
    }

    /// The next copy that has ended.
    pub fn finished(&mut self) -> Option<Finished> {
        self.shared.done.borrow_mut().pop_front()
    }

    /// How many more can be begun now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.shared.free.borrow().len()
    }

    /// How many have begun, and were not given back by [`Dma::finished`].
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.slots.borrow().len() - self.room() + self.shared.done.borrow().len()
    }

    /// Whether it takes copies. A copy that the device cannot do may end it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.context.state() == ContextState::Running
    }

    fn make(&self, index: u32, source: &Buffer, target: &Buffer) -> Result<NonNull<doca_dma_task_memcpy>, Error> {
        let (data, mut task) = (doca_data { u64_: index.into() }, ptr::null_mut());
        // SAFETY: all are there, and stay while the task is under way.
        let answer = unsafe {
            let make = self.shared.library.doca().doca_dma_task_memcpy_alloc_init;
            make(self.dma.as_ptr(), source.as_ptr(), target.as_ptr(), data, &raw mut task)
        };
        check("doca_dma_task_memcpy_alloc_init", answer)?;
        not_null("doca_dma_task_memcpy_alloc_init", task)
    }

    fn describe(
        &self,
        task: NonNull<doca_dma_task_memcpy>,
        source: &Buffer,
        target: &Buffer,
    ) -> NonNull<doca_dma_task_memcpy> {
        let doca = self.shared.library.doca();
        // SAFETY: the task is not under way, and the buffer stays while it is.
        unsafe { (doca.doca_dma_task_memcpy_set_src)(task.as_ptr(), source.as_ptr()) };
        // SAFETY: as above.
        unsafe { (doca.doca_dma_task_memcpy_set_dst)(task.as_ptr(), target.as_ptr()) };
        task
    }
}

impl fmt::Debug for Dma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dma").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        self.shared.ending.set(true);
        // Those that are under way go when they come back; the context does not stop while there are any.
        for slot in self.shared.slots.borrow_mut().iter_mut().filter(|slot| slot.buffers.is_none()) {
            slot.task.take().into_iter().for_each(|task| self.shared.give_back(task));
        }
        if self.context.stop() {
            // SAFETY: made once, given back once, and stopped.
            let answer = unsafe { (self.shared.library.doca().doca_dma_destroy)(self.dma.as_ptr()) };
            told(check("doca_dma_destroy", answer));
        } else {
            mem::forget((Rc::clone(&self.shared), self.context.engine().clone(), self._device.clone()));
        }
    }
}

impl Shared {
    fn give_back(&self, task: NonNull<doca_dma_task_memcpy>) {
        // SAFETY: the task is not under way, and its slot has it no more.
        unsafe { task::give_back(&self.library, task) };
    }

    fn ended(&self, index: u64, result: Result<(), Error>) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        slot.buffers = None;
        self.done.borrow_mut().push_back(Finished { token: slot.token, result });
        if self.ending.get() {
            slot.task.take().into_iter().for_each(|task| self.give_back(task));
        } else {
            self.free.borrow_mut().push(index as u32);
        }
    }
}

unsafe extern "C" fn succeeded(_: *mut doca_dma_task_memcpy, data: doca_data, of: doca_data) {
    // SAFETY: DOCA gives back what it was given, and the queue holds it until its context has stopped.
    let shared = unsafe { task::shared::<Shared>(of) };
    shared.ended(task::number(data), Ok(()));
}

unsafe extern "C" fn failed(task: *mut doca_dma_task_memcpy, data: doca_data, of: doca_data) {
    // SAFETY: as above.
    let shared = unsafe { task::shared::<Shared>(of) };
    // SAFETY: the task has just come back.
    let why = unsafe { task::failure(&shared.library, task, "doca_dma_task_memcpy") };
    shared.ended(task::number(data), Err(why));
}
