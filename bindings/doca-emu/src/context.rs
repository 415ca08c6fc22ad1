//! Contexts: their states, and who drives them.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use doca_sys::{
    doca_ctx, doca_ctx_state_changed_callback_t as StateChanged, doca_ctx_states as State, doca_data, doca_error_t,
};

use crate::call::{Result, answer, call};
use crate::comch::{Consumer, Producer, Service};
use crate::device::Device;
use crate::dma::Dma;
use crate::engine::Engine;
use crate::error::{BAD_STATE, IN_PROGRESS, IN_USE, INVALID_VALUE, IO_FAILED, NOT_CONNECTED};
use crate::handle::{Handle, object};
use crate::task::{Pool, Task};

/// Any context. All its handles are the same pointer.
pub(crate) struct Context {
    pub(crate) device: Handle<Device>,
    pub(crate) engine: Cell<Option<Handle<Engine>>>,
    state: Cell<State>,
    changed: Cell<StateChanged>,
    pub(crate) user_data: Cell<doca_data>,
    pub(crate) tasks: Pool,
    pub(crate) work: Work,
}
object!(Context, 9, "a context");

/// What a context is for.
pub(crate) enum Work {
    Dma(Dma),
    Service(Box<Service>),
    Consumer(Consumer),
    Producer(Producer),
}

/// What has come of a start.
pub(crate) enum Start {
    /// It runs.
    Done,
    /// It will run, or not, which progress shows.
    Begun,
}

/// What a turn of a context has come to.
pub(crate) enum Turn {
    /// There was nothing to handle.
    Idle,
    /// An item was handled; its callback may have changed anything.
    Handled,
    /// What was begun is done.
    Started,
    /// It cannot go on.
    Ended,
}

/// How far the end of a context has come.
pub(crate) enum End {
    /// Nothing is left.
    Reached,
    /// A callback has run.
    Handled,
    /// Others have to end first.
    Waiting,
}

impl Work {
    fn is_configured(&self) -> bool {
        match self {
            Work::Dma(_) | Work::Consumer(_) | Work::Producer(_) => true,
            Work::Service(service) => service.is_configured(),
        }
    }

    fn start(&self) -> Result<Start> {
        match self {
            Work::Dma(_) => Ok(Start::Done),
            Work::Service(service) => service.start(),
            Work::Consumer(consumer) => consumer.start(),
            Work::Producer(producer) => producer.start(),
        }
    }

    fn turn(&self, context: Handle<Context>) -> Turn {
        match self {
            Work::Dma(dma) => dma.turn(),
            Work::Service(service) => service.turn(context),
            Work::Consumer(consumer) => consumer.turn(),
            Work::Producer(producer) => producer.turn(),
        }
    }

    /// Whether something is made of it that must stop before.
    fn has_dependents(&self) -> bool {
        matches!(self, Work::Service(service) if service.has_active_paths())
    }

    /// Whether nobody else has to know of its end.
    fn ends_at_once(&self) -> bool {
        match self {
            Work::Dma(_) | Work::Producer(_) => true,
            Work::Service(service) => service.is_alone(),
            Work::Consumer(_) => false,
        }
    }

    /// Begins to end it. Its tasks come back one by one.
    fn close(&self) {
        if let Work::Service(service) = self {
            service.close();
        }
    }

    /// A task in flight that is to come back undone.
    fn take_back(&self) -> Option<Handle<Task>> {
        match self {
            Work::Dma(dma) => dma.take_back(),
            Work::Service(service) => service.take_back(),
            Work::Consumer(consumer) => consumer.take_back(),
            Work::Producer(producer) => producer.take_back(),
        }
    }

    /// Ends what is left when its tasks are back.
    fn wind_up(&self) -> End {
        match self {
            Work::Dma(_) => End::Reached,
            Work::Service(service) => service.wind_up(),
            Work::Consumer(consumer) => consumer.wind_up(),
            Work::Producer(producer) => producer.wind_up(),
        }
    }

    pub(crate) fn validate(&self, task: Handle<Task>) -> Result {
        match self {
            Work::Dma(_) => Dma::validate(task),
            Work::Service(_) | Work::Consumer(_) => Ok(()),
            Work::Producer(producer) => producer.validate(task),
        }
    }

    pub(crate) fn submit(&self, task: Handle<Task>) -> Result {
        match self {
            Work::Dma(dma) => dma.submit(task),
            Work::Service(service) => service.submit(task),
            Work::Consumer(consumer) => consumer.submit(task),
            Work::Producer(producer) => producer.submit(task),
        }
    }
}

impl Context {
    pub(crate) fn new(device: Handle<Device>, work: Work) -> Handle<Context> {
        device.users.fetch_add(1, Ordering::Relaxed);
        Handle::new(Context {
            device,
            engine: Cell::new(None),
            state: Cell::new(State::DOCA_CTX_STATE_IDLE),
            changed: Cell::new(None),
            user_data: Cell::new(doca_data { u64_: 0 }),
            tasks: Pool::new(),
            work,
        })
    }

    /// Ends it, if it is idle.
    ///
    /// # Errors
    /// `IN_USE` if it is not.
    pub(crate) fn destroy(context: Handle<Context>) -> Result {
        if !context.is_idle() || context.tasks.any_out() {
            return Err(IN_USE);
        }
        if let Some(engine) = context.engine.get() {
            engine.forget(context);
        }
        context.tasks.empty();
        context.device.users.fetch_sub(1, Ordering::Release);
        context.end();
        Ok(())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state.get() == State::DOCA_CTX_STATE_IDLE
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.get() == State::DOCA_CTX_STATE_RUNNING
    }

    /// Changes the state and tells the program, which may do anything then.
    fn set_state(context: Handle<Context>, state: State) {
        let before = context.state.replace(state);
        if let Some(changed) = context.changed.get() {
            // SAFETY: the program registered it for this context, which is alive.
            unsafe { changed(context.user_data.get(), context.as_ptr(), before, state) };
        }
    }

    /// Begins to stop it for good or ill.
    pub(crate) fn begin_to_stop(context: Handle<Context>) {
        context.work.close();
        Context::set_state(context, State::DOCA_CTX_STATE_STOPPING);
    }

    /// Lets it work. Whether it has handled an item.
    pub(crate) fn progress(context: Handle<Context>) -> bool {
        match context.state.get() {
            State::DOCA_CTX_STATE_IDLE => return false,
            State::DOCA_CTX_STATE_STOPPING => return Context::go_on_stopping(context),
            _ => {}
        }
        match context.work.turn(context) {
            Turn::Idle => return false,
            Turn::Handled => {}
            Turn::Started => Context::set_state(context, State::DOCA_CTX_STATE_RUNNING),
            Turn::Ended if context.is_running() => Context::begin_to_stop(context),
            Turn::Ended => Context::set_state(context, State::DOCA_CTX_STATE_IDLE),
        }
        true
    }

    fn go_on_stopping(context: Handle<Context>) -> bool {
        if let Some(task) = context.work.take_back() {
            Task::complete(task, IO_FAILED);
            return true;
        }
        match context.work.wind_up() {
            End::Reached if !context.tasks.any_out() => {
                Context::set_state(context, State::DOCA_CTX_STATE_IDLE);
                true
            }
            End::Reached | End::Waiting => false,
            End::Handled => true,
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_ctx_start(context: *mut doca_ctx) -> doca_error_t {
    call("doca_ctx_start", || {
        let context = Handle::<Context>::given(context)?;
        if context.engine.get().is_none() {
            return Err(NOT_CONNECTED);
        }
        if !context.is_idle() {
            return Err(BAD_STATE);
        }
        if !context.tasks.is_configured() || !context.work.is_configured() {
            return Err(INVALID_VALUE);
        }
        context.tasks.fill(context);
        match context.work.start()? {
            Start::Done => {
                Context::set_state(context, State::DOCA_CTX_STATE_RUNNING);
                Ok(())
            }
            Start::Begun => {
                Context::set_state(context, State::DOCA_CTX_STATE_STARTING);
                Err(IN_PROGRESS)
            }
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_ctx_stop(context: *mut doca_ctx) -> doca_error_t {
    call("doca_ctx_stop", || {
        let context = Handle::<Context>::given(context)?;
        if context.engine.get().is_none() {
            return Err(NOT_CONNECTED);
        }
        match context.state.get() {
            State::DOCA_CTX_STATE_IDLE => return Err(BAD_STATE),
            State::DOCA_CTX_STATE_STOPPING => return Err(IN_PROGRESS),
            _ => {}
        }
        if context.work.has_dependents() {
            return Err(IN_USE);
        }
        if context.work.ends_at_once() && !context.tasks.any_out() {
            context.work.wind_up();
            Context::set_state(context, State::DOCA_CTX_STATE_IDLE);
            return Ok(());
        }
        Context::begin_to_stop(context);
        Err(IN_PROGRESS)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_ctx_get_state(context: *const doca_ctx, state: *mut State) -> doca_error_t {
    call("doca_ctx_get_state", || {
        answer(state)?.put(Handle::<Context>::given(context)?.state.get());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_ctx_get_num_inflight_tasks(context: *const doca_ctx, number: *mut usize) -> doca_error_t {
    call("doca_ctx_get_num_inflight_tasks", || {
        answer(number)?.put(Handle::<Context>::given(context)?.tasks.in_flight());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_ctx_set_user_data(context: *mut doca_ctx, user_data: doca_data) -> doca_error_t {
    call("doca_ctx_set_user_data", || {
        Handle::<Context>::given(context)?.user_data.set(user_data);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_ctx_set_state_changed_cb(context: *mut doca_ctx, changed: StateChanged) -> doca_error_t {
    call("doca_ctx_set_state_changed_cb", || {
        let context = Handle::<Context>::given(context)?;
        if changed.is_none() {
            return Err(INVALID_VALUE);
        }
        context.changed.set(changed);
        Ok(())
    })
}
