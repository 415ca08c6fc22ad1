//! What sends immediates.
#![expect(unsafe_code, reason = "calls of DOCA, and what it calls back")]

use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use doca_sys::{doca_comch_producer, doca_comch_producer_task_send, doca_data};

use super::MAX_IMMEDIATE;
use super::connection::Connection;
use crate::context::{Context, ContextState, ProgressEngine};
use crate::device::{not_null, told};
use crate::error::{Code, Error, check};
use crate::library::Library;
use crate::task;

/// Sends to one of the other side's consumers.
pub struct Producer {
    context: Context,
    producer: NonNull<doca_comch_producer>,
    consumer: u32,
    shared: Rc<Shared>,
    _connection: Connection,
}

/// What the callbacks see.
struct Shared {
    library: Library,
    slots: Box<[Slot]>,
    free: RefCell<Vec<u32>>,
    failed: Cell<Option<Error>>,
    /// Tasks go when they come back.
    ending: Cell<bool>,
}

/// Something that may be under way. Its task is made with the first one and used for the next ones.
struct Slot {
    task: Cell<Option<NonNull<doca_comch_producer_task_send>>>,
    /// What is sent, where DOCA reads it.
    bytes: UnsafeCell<[u8; MAX_IMMEDIATE]>,
}

impl Producer {
    /// A producer for the consumer of this number, with so many sends at once.
    ///
    /// # Errors
    /// Those of DOCA.
    pub fn new(engine: &ProgressEngine, connection: &Connection, consumer: u32, sends: u32) -> Result<Self, Error> {
        connection.check("doca_comch_producer_create")?;
        let (library, mut producer) = (connection.library().clone(), ptr::null_mut());
        // SAFETY: the connection is there, and what is written to lives through the call.
        let answer = unsafe { (library.doca().doca_comch_producer_create)(connection.as_ptr(), &raw mut producer) };
        check("doca_comch_producer_create", answer)?;
        let producer = not_null("doca_comch_producer_create", producer)?;
        let slot = |_| Slot { task: Cell::new(None), bytes: UnsafeCell::new([0; MAX_IMMEDIATE]) };
        let shared = Rc::new(Shared {
            library: library.clone(),
            slots: (0..sends).map(slot).collect(),
            free: RefCell::new((0..sends).rev().collect()),
            failed: Cell::new(None),
            ending: Cell::new(false),
        });
        let context = Producer::begin(engine, producer, &shared, sends).inspect_err(|_| leave(&library, producer))?;
        Ok(Producer { context, producer, consumer, shared, _connection: connection.clone() })
    }

    fn begin(
        engine: &ProgressEngine,
        producer: NonNull<doca_comch_producer>,
        shared: &Rc<Shared>,
        sends: u32,
    ) -> Result<Context, Error> {
        let (doca, at) = (shared.library.doca(), producer.as_ptr());
        // SAFETY: the producer is there and not started, and the callbacks are of the type that is called.
        let answer = unsafe { (doca.doca_comch_producer_task_send_set_conf)(at, Some(sent), Some(failed), sends) };
        check("doca_comch_producer_task_send_set_conf", answer)?;
        // SAFETY: as above.
        let context = unsafe { (doca.doca_comch_producer_as_ctx)(at) };
        let context = Context::connect(engine, context, Rc::as_ptr(shared).cast())?;
        context.start()?;
        Ok(context)
    }

    /// Sends at most [`MAX_IMMEDIATE`] bytes.
    ///
    /// # Errors
    /// [`Code::AGAIN`] where the consumer has no receive posted or too many are under way, and others of DOCA, among them that of one that was sent
    /// before and has not arrived.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        const CALL: &str = "doca_comch_producer_task_send_alloc_init";
        if let Some(error) = self.shared.failed.take() {
            return Err(error);
        }
        if bytes.len() > MAX_IMMEDIATE {
            return Err(Error::refused(CALL, Code::TOO_BIG, "an immediate has at most 32 bytes"));
        }
        let full = Error::refused(CALL, Code::AGAIN, "as many are under way as there may be");
        let index = self.shared.free.borrow().last().copied().ok_or(full)?;
        let slot = &self.shared.slots[index as usize];
        // SAFETY: nothing of this slot is under way, so nobody reads it.
        let room = unsafe { &mut *slot.bytes.get() };
        room[..bytes.len()].copy_from_slice(bytes);
        let task = self.task(index, slot, bytes.len() as u32)?;
        // SAFETY: the task is this slot's and not under way, and its bytes stay in the slot.
        unsafe { task::submit(&self.shared.library, task) }?;
        // A submission calls nothing back.
        self.shared.free.borrow_mut().pop();
        Ok(())
    }

    /// A slot's task, which sends what the slot has.
    fn task(&self, index: u32, slot: &Slot, len: u32) -> Result<NonNull<doca_comch_producer_task_send>, Error> {
        const CALL: &str = "doca_comch_producer_task_send_alloc_init";
        let (doca, bytes) = (self.shared.library.doca(), slot.bytes.get().cast::<u8>());
        if let Some(task) = slot.task.get() {
            // SAFETY: the task is not under way, and the bytes stay where they are.
            unsafe { (doca.doca_comch_producer_task_send_set_imm_data)(task.as_ptr(), bytes, len) };
            return Ok(task);
        }
        let mut task = ptr::null_mut();
        // SAFETY: the producer is there, the bytes stay where they are, and what is written to lives through the call.
        let answer = unsafe {
            let make = doca.doca_comch_producer_task_send_alloc_init;
            make(self.producer.as_ptr(), ptr::null(), bytes, len, self.consumer, &raw mut task)
        };
        check(CALL, answer)?;
        let task = not_null(CALL, task)?;
        slot.task.set(Some(task));
        // SAFETY: it was just made.
        unsafe { task::set_number(&self.shared.library, task, index.into()) };
        Ok(task)
    }

    /// Sends that are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.slots.len() - self.shared.free.borrow().len()
    }

    /// Whether it works.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.context.state() == ContextState::Running
    }
}

impl Shared {
    fn give_back(&self, task: NonNull<doca_comch_producer_task_send>) {
        // SAFETY: the task is not under way, and its slot has it no more.
        unsafe { task::give_back(&self.library, task) };
    }

    fn over(&self, index: u64) {
        if self.ending.get() {
            self.slots[index as usize].task.take().into_iter().for_each(|task| self.give_back(task));
        } else {
            self.free.borrow_mut().push(index as u32);
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.ending.set(true);
        for index in self.shared.free.borrow_mut().drain(..) {
            self.shared.slots[index as usize].task.take().into_iter().for_each(|task| self.shared.give_back(task));
        }
        if self.context.stop() {
            leave(&self.shared.library, self.producer);
        } else {
            mem::forget((Rc::clone(&self.shared), self.context.engine().clone(), self._connection.clone()));
        }
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}

fn leave(library: &Library, producer: NonNull<doca_comch_producer>) {
    let doca = library.doca();
    // SAFETY: made once, given back once, and not started or stopped.
    told(check("doca_comch_producer_destroy", unsafe { (doca.doca_comch_producer_destroy)(producer.as_ptr()) }));
}

unsafe extern "C" fn sent(_: *mut doca_comch_producer_task_send, data: doca_data, of: doca_data) {
    // SAFETY: DOCA gives back what it was given, and the producer holds it until its context has stopped.
    let shared = unsafe { task::shared::<Shared>(of) };
    shared.over(task::number(data));
}

unsafe extern "C" fn failed(task: *mut doca_comch_producer_task_send, data: doca_data, of: doca_data) {
    // SAFETY: as above.
    let shared = unsafe { task::shared::<Shared>(of) };
    // SAFETY: the task has just come back.
    shared.failed.set(Some(unsafe { task::failure(&shared.library, task, "doca_comch_producer_task_send") }));
    shared.over(task::number(data));
}
