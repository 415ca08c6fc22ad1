//! Tasks: whose they are, and what they ask for.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use doca_sys::{
    doca_comch_consumer_task_post_recv_completion_cb_t as ReceiveCallback,
    doca_comch_producer_task_send_completion_cb_t as SendCallback,
    doca_comch_task_send_completion_cb_t as MessageCallback, doca_data,
    doca_dma_task_memcpy_completion_cb_t as CopyCallback, doca_error, doca_error_t, doca_task,
};

use crate::buffer::{self, Buffer};
use crate::call::{Result, broken, call, inside};
use crate::comch::Connection;
use crate::context::Context;
use crate::error::{AGAIN, BAD_STATE, INVALID_VALUE, NO_MEMORY, SUCCESS};
use crate::faults::{self, Fault};
use crate::handle::{Handle, object};

/// Bytes of immediate data that a task has room for.
pub(crate) const MAX_IMMEDIATE: usize = 32;

/// Any task. All its handles are the same pointer.
pub(crate) struct Task {
    pub(crate) context: Handle<Context>,
    stage: Cell<Stage>,
    status: Cell<doca_error>,
    user_data: Cell<doca_data>,
    pub(crate) job: Cell<Job>,
    /// Of fast-path tasks. Consumers' programs get a pointer to it.
    pub(crate) immediate: Cell<[u8; MAX_IMMEDIATE]>,
    pub(crate) immediate_len: Cell<u32>,
}
object!(Task, 10, "a task");

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In its context's pool.
    Free,
    /// The program's.
    Held,
    /// The card's.
    InFlight,
}

/// What a task asks for.
#[derive(Clone, Copy)]
pub(crate) enum Job {
    Nothing,
    Copy { from: Option<Handle<Buffer>>, to: Option<Handle<Buffer>> },
    Message { to: Handle<Connection>, bytes: *const u8, len: u32 },
    Receive { into: Option<Handle<Buffer>>, producer: u32 },
    Send { from: Option<Handle<Buffer>>, consumer: u32 },
}

impl Job {
    fn heads(self) -> impl Iterator<Item = Handle<Buffer>> {
        let (first, second) = match self {
            Job::Nothing | Job::Message { .. } => (None, None),
            Job::Copy { from, to } => (from, to),
            Job::Receive { into: buffer, .. } | Job::Send { from: buffer, .. } => (buffer, None),
        };
        first.into_iter().chain(second)
    }

    /// Each with all of its list.
    fn buffers(self) -> impl Iterator<Item = Handle<Buffer>> {
        self.heads().flat_map(|head| std::iter::successors(Some(head), |buffer| buffer.next()))
    }
}

/// A program's function for tasks that are done, by their kind.
#[derive(Clone, Copy)]
pub(crate) enum Callback {
    Copy(CopyCallback),
    Message(MessageCallback),
    Receive(ReceiveCallback),
    Send(SendCallback),
}

impl Callback {
    pub(crate) fn is_none(self) -> bool {
        match self {
            Callback::Copy(callback) => callback.is_none(),
            Callback::Message(callback) => callback.is_none(),
            Callback::Receive(callback) => callback.is_none(),
            Callback::Send(callback) => callback.is_none(),
        }
    }

    fn run(self, task: Handle<Task>, user_data: doca_data, context_data: doca_data) {
        /// Calls it if it is there.
        macro_rules! run {
            ($callback:expr) => {
                if let Some(callback) = $callback {
                    // SAFETY: the program registered it for this kind of task, and the task is alive.
                    unsafe { callback(task.as_ptr(), user_data, context_data) }
                }
            };
        }
        match self {
            Callback::Copy(callback) => run!(callback),
            Callback::Message(callback) => run!(callback),
            Callback::Receive(callback) => run!(callback),
            Callback::Send(callback) => run!(callback),
        }
    }
}

/// A context's tasks, all made when it starts.
pub(crate) struct Pool {
    configuration: Cell<Option<Configuration>>,
    all: RefCell<Vec<Handle<Task>>>,
    /// The one freed longest ago comes first.
    free: RefCell<VecDeque<Handle<Task>>>,
    in_flight: Cell<usize>,
}

#[derive(Clone, Copy)]
pub(crate) struct Configuration {
    pub(crate) completed: Callback,
    pub(crate) failed: Callback,
    pub(crate) number: u32,
}

impl Pool {
    pub(crate) fn new() -> Pool {
        Pool {
            configuration: Cell::new(None),
            all: RefCell::new(Vec::new()),
            free: RefCell::new(VecDeque::new()),
            in_flight: Cell::new(0),
        }
    }

    /// # Errors
    /// `INVALID_VALUE` without callbacks, or for a number that is none or more than there may be.
    pub(crate) fn configure(&self, configuration: Configuration, most: u32) -> Result {
        let callbacks = [configuration.completed, configuration.failed];
        if callbacks.iter().any(|callback| callback.is_none()) || !(1..=most).contains(&configuration.number) {
            return Err(INVALID_VALUE);
        }
        self.configuration.set(Some(configuration));
        Ok(())
    }

    pub(crate) fn is_configured(&self) -> bool {
        self.configuration.get().is_some()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether the program has any.
    pub(crate) fn any_out(&self) -> bool {
        self.free.borrow().len() < self.all.borrow().len()
    }

    /// Makes the tasks, if they are not there from an earlier start.
    pub(crate) fn fill(&self, context: Handle<Context>) {
        let number = self.configuration.get().map_or(0, |configuration| configuration.number as usize);
        if self.all.borrow().len() == number {
            return;
        }
        self.empty();
        let task = |_| {
            Handle::new(Task {
                context,
                stage: Cell::new(Stage::Free),
                status: Cell::new(SUCCESS),
                user_data: Cell::new(doca_data { u64_: 0 }),
                job: Cell::new(Job::Nothing),
                immediate: Cell::new([0; MAX_IMMEDIATE]),
                immediate_len: Cell::new(0),
            })
        };
        self.all.borrow_mut().extend((0..number).map(task));
        self.free.borrow_mut().extend(self.all.borrow().iter());
    }

    /// Ends the tasks, none of which is out.
    pub(crate) fn empty(&self) {
        self.free.borrow_mut().clear();
        self.all.borrow_mut().drain(..).for_each(Handle::end);
    }
}

impl Task {
    /// Takes a task out of its context's pool.
    ///
    /// # Errors
    /// `BAD_STATE` unless the context runs; `NO_MEMORY` when all are out.
    pub(crate) fn take(context: Handle<Context>, job: Job) -> Result<Handle<Task>> {
        if !context.is_running() {
            return Err(BAD_STATE);
        }
        let task = context.tasks.free.borrow_mut().pop_front().ok_or(NO_MEMORY)?;
        task.stage.set(Stage::Held);
        task.job.set(job);
        task.immediate_len.set(0);
        Ok(task)
    }

    pub(crate) fn set_user_data(&self, user_data: doca_data) {
        self.user_data.set(user_data);
    }

    /// A task that the program has, and may change.
    pub(crate) fn held<C>(task: *const C) -> Handle<Task> {
        let task = Task::out(task);
        if task.stage.get() == Stage::InFlight {
            broken("a task was changed in flight");
        }
        task
    }

    /// A task that was allocated and not freed.
    pub(crate) fn out<C>(task: *const C) -> Handle<Task> {
        let task = Handle::<Task>::needed(task);
        if task.stage.get() == Stage::Free {
            broken("a task was used after it was freed");
        }
        task
    }

    /// Gives a task back to the program, in the callback for what has become of it. Nothing of the context may be relied on afterwards.
    pub(crate) fn complete(task: Handle<Task>, status: doca_error) {
        let context = task.context;
        context.tasks.in_flight.set(context.tasks.in_flight.get() - 1);
        task.stage.set(Stage::Held);
        task.status.set(status);
        task.job.get().buffers().for_each(|buffer| buffer.release());
        let Some(configuration) = context.tasks.configuration.get() else { return };
        let callback = if status == SUCCESS { configuration.completed } else { configuration.failed };
        callback.run(task, task.user_data.get(), context.user_data.get());
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_task_submit(task: *mut doca_task) -> doca_error_t {
    call("doca_task_submit", || submit(task, false))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_task_try_submit(task: *mut doca_task) -> doca_error_t {
    call("doca_task_try_submit", || submit(task, true))
}

fn submit(task: *mut doca_task, validate: bool) -> Result {
    let task = if validate && task.is_null() { return Err(INVALID_VALUE) } else { Task::out(task) };
    if task.stage.get() == Stage::InFlight {
        broken("a task was submitted twice");
    }
    let context = task.context;
    if let Some(engine) = context.engine.get() {
        engine.must_be_ours();
    }
    if !context.is_running() {
        return Err(BAD_STATE);
    }
    // They may have gone back since the task was made.
    task.job.get().heads().try_for_each(|buffer| buffer::given(buffer.as_ptr()).map(drop))?;
    if validate {
        context.work.validate(task)?;
    }
    if faults::strikes(Fault::Again) {
        return Err(AGAIN);
    }
    context.work.submit(task)?;
    task.stage.set(Stage::InFlight);
    task.job.get().buffers().for_each(|buffer| buffer.hold());
    context.tasks.in_flight.set(context.tasks.in_flight.get() + 1);
    Ok(())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_task_free(task: *mut doca_task) {
    inside("doca_task_free", || {
        let task = Task::out(task);
        if task.stage.get() == Stage::InFlight {
            broken("a task was freed in flight");
        }
        task.stage.set(Stage::Free);
        task.job.set(Job::Nothing);
        task.context.tasks.free.borrow_mut().push_back(task);
    });
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_task_get_status(task: *const doca_task) -> doca_error_t {
    inside("doca_task_get_status", || Task::out(task).status.get())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_task_set_user_data(task: *mut doca_task, user_data: doca_data) {
    inside("doca_task_set_user_data", || Task::out(task).set_user_data(user_data));
}
