//! What receives immediates.
#![expect(unsafe_code, reason = "calls of DOCA, and what it calls back")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use doca_sys::{doca_comch_consumer, doca_comch_consumer_task_post_recv, doca_data};

use super::MAX_IMMEDIATE;
use super::connection::Connection;
use crate::context::{Context, ContextState, ProgressEngine};
use crate::device::{not_null, told};
use crate::error::{Error, check};
use crate::library::Library;
use crate::memory::Memory;
use crate::task;

/// What has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Immediate {
    bytes: [u8; MAX_IMMEDIATE],
    len: u8,
}

impl Immediate {
    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Receives that are posted beforehand, so that the other side's producers can send.
pub struct Consumer {
    context: Context,
    consumer: NonNull<doca_comch_consumer>,
    shared: Rc<Shared>,
    posts: u32,
    made: bool,
    /// Receives for which there was no room in the queue.
    unposted: Vec<Task>,
    _memory: Memory,
    _connection: Connection,
}

/// What the callbacks see.
struct Shared {
    library: Library,
    received: RefCell<VecDeque<(NonNull<doca_comch_consumer_task_post_recv>, Immediate)>>,
    /// Tasks go when they come back.
    ending: Cell<bool>,
}

type Task = NonNull<doca_comch_consumer_task_post_recv>;

impl Consumer {
    /// A consumer with so many receives, which begins to work after some progress. `memory` is where payload would go, of which none is expected.
    ///
    /// # Errors
    /// Those of DOCA.
    pub fn new(engine: &ProgressEngine, connection: &Connection, memory: &Memory, posts: u32) -> Result<Self, Error> {
        connection.check("doca_comch_consumer_create")?;
        let (library, mut consumer) = (connection.library().clone(), ptr::null_mut());
        // SAFETY: connection and memory are there, and what is written to lives through the call.
        let answer = unsafe {
            (library.doca().doca_comch_consumer_create)(connection.as_ptr(), memory.as_ptr(), &raw mut consumer)
        };
        check("doca_comch_consumer_create", answer)?;
        let consumer = not_null("doca_comch_consumer_create", consumer)?;
        let shared = Rc::new(Shared {
            library: library.clone(),
            received: RefCell::new(VecDeque::with_capacity(posts as usize)),
            ending: Cell::new(false),
        });
        let context = Consumer::begin(engine, consumer, &shared, posts).inspect_err(|_| leave(&library, consumer))?;
        let (memory, connection, unposted) = (memory.clone(), connection.clone(), Vec::with_capacity(posts as usize));
        let made = false;
        Ok(Consumer { context, consumer, shared, posts, made, unposted, _memory: memory, _connection: connection })
    }

    fn begin(
        engine: &ProgressEngine,
        consumer: NonNull<doca_comch_consumer>,
        shared: &Rc<Shared>,
        posts: u32,
    ) -> Result<Context, Error> {
        let (doca, at) = (shared.library.doca(), consumer.as_ptr());
        // SAFETY: the consumer is there and not started, and the callbacks are of the type that is called.
        let answer =
            unsafe { (doca.doca_comch_consumer_task_post_recv_set_conf)(at, Some(received), Some(failed), posts) };
        check("doca_comch_consumer_task_post_recv_set_conf", answer)?;
        // SAFETY: as above.
        let answer = unsafe { (doca.doca_comch_consumer_set_imm_data_len)(at, MAX_IMMEDIATE as u32) };
        check("doca_comch_consumer_set_imm_data_len", answer)?;
        // SAFETY: as above.
        let context = unsafe { (doca.doca_comch_consumer_as_ctx)(at) };
        let context = Context::connect(engine, context, Rc::as_ptr(shared).cast())?;
        context.start()?;
        Ok(context)
    }

    /// Whether the other side can send: the receives are posted as soon as that is possible.
    ///
    /// # Errors
    /// Those of DOCA when they are posted.
    pub fn is_ready(&mut self) -> Result<bool, Error> {
        if !self.made && self.context.state() == ContextState::Running {
            self.made = true;
            for _ in 0..self.posts {
                let mut task = ptr::null_mut();
                // SAFETY: the consumer is there, and what is written to lives through the call.
                let answer = unsafe {
                    let make = self.shared.library.doca().doca_comch_consumer_task_post_recv_alloc_init;
                    make(self.consumer.as_ptr(), ptr::null_mut(), &raw mut task)
                };
                check("doca_comch_consumer_task_post_recv_alloc_init", answer)?;
                self.unposted.push(not_null("doca_comch_consumer_task_post_recv_alloc_init", task)?);
            }
        }
        self.post()?;
        Ok(self.made && self.unposted.len() < self.posts as usize)
    }

    /// Takes the next one that has come. Its receive is posted again.
    ///
    /// # Errors
    /// Those of DOCA when it is posted: the connection is over.
    pub fn take(&mut self) -> Result<Option<Immediate>, Error> {
        let next = self.shared.received.borrow_mut().pop_front();
        if let Some((task, _)) = next {
            self.unposted.push(task);
        }
        if !self.unposted.is_empty() {
            self.post()?;
        }
        Ok(next.map(|(_, immediate)| immediate))
    }

    /// Posts receives, as many as the queue takes now.
    fn post(&mut self) -> Result<(), Error> {
        while let Some(task) = self.unposted.pop() {
            // SAFETY: the task is not posted, and uses nothing.
            if let Err(error) = unsafe { task::submit(&self.shared.library, task) } {
                self.unposted.push(task);
                return if error.is_again() { Ok(()) } else { Err(error) };
            }
        }
        Ok(())
    }

    /// Whether it works.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.context.state() == ContextState::Running
    }
}

impl Shared {
    fn give_back(&self, task: Task) {
        // SAFETY: the task is not posted, and nobody else has it.
        unsafe { task::give_back(&self.library, task) };
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.ending.set(true);
        self.shared.received.borrow_mut().drain(..).for_each(|(task, _)| self.shared.give_back(task));
        self.unposted.drain(..).for_each(|task| self.shared.give_back(task));
        if self.context.stop() {
            leave(&self.shared.library, self.consumer);
        } else {
            let kept = (self._memory.clone(), self._connection.clone());
            mem::forget((Rc::clone(&self.shared), self.context.engine().clone(), kept));
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("posts", &self.posts).finish_non_exhaustive()
    }
}

fn leave(library: &Library, consumer: NonNull<doca_comch_consumer>) {
    let doca = library.doca();
    // SAFETY: made once, given back once, and not started or stopped.
    told(check("doca_comch_consumer_destroy", unsafe { (doca.doca_comch_consumer_destroy)(consumer.as_ptr()) }));
}

unsafe extern "C" fn received(task: *mut doca_comch_consumer_task_post_recv, _: doca_data, of: doca_data) {
    // SAFETY: DOCA gives back what it was given, and the consumer holds it until its context has stopped.
    let shared = unsafe { task::shared::<Shared>(of) };
    let Some(task) = NonNull::new(task) else { return };
    if shared.ending.get() {
        return shared.give_back(task);
    }
    let doca = shared.library.doca();
    // SAFETY: the task has just come back.
    let from = unsafe { (doca.doca_comch_consumer_task_post_recv_get_imm_data)(task.as_ptr()) };
    // SAFETY: as above.
    let len = unsafe { (doca.doca_comch_consumer_task_post_recv_get_imm_data_len)(task.as_ptr()) };
    let len = if from.is_null() { 0 } else { (len as usize).min(MAX_IMMEDIATE) };
    let mut immediate = Immediate { bytes: [0; MAX_IMMEDIATE], len: len as u8 };
    if len > 0 {
        // SAFETY: DOCA has so many bytes there, which stay until this returns.
        immediate.bytes[..len].copy_from_slice(unsafe { std::slice::from_raw_parts(from, len) });
    }
    shared.received.borrow_mut().push_back((task, immediate));
}

unsafe extern "C" fn failed(task: *mut doca_comch_consumer_task_post_recv, _: doca_data, of: doca_data) {
    // SAFETY: DOCA gives back what it was given, and the consumer holds it until its context has stopped.
    let shared = unsafe { task::shared::<Shared>(of) };
    // The connection is over; a receive is worth nothing any more.
    NonNull::new(task).into_iter().for_each(|task| shared.give_back(task));
}
