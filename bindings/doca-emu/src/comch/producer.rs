//! Producers, which send to the other side's consumers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr::null_mut;
use std::sync::Arc;

use doca_sys::{
    doca_buf, doca_comch_connection, doca_comch_producer, doca_comch_producer_task_send,
    doca_comch_producer_task_send_completion_cb_t as SendCallback, doca_ctx, doca_devinfo, doca_error, doca_error_t,
    doca_task,
};

use super::MAX_SEND_TASKS;
use super::connection::{Attached, Connection};
use super::path::{FarConsumer, MAX_PAYLOAD, NotSent, PayloadHeader};
use super::ring::Nonsense;
use crate::buffer::{self, Part};
use crate::call::{Result, answer, broken, call, inside};
use crate::context::{Context, End, Start, Turn, Work};
use crate::device::DeviceInfo;
use crate::error::{AGAIN, BAD_STATE, CONNECTION_RESET, INVALID_VALUE, IO_FAILED, NOT_CONNECTED, SUCCESS};
use crate::faults;
use crate::handle::Handle;
use crate::task::{Callback, Configuration, Job, MAX_IMMEDIATE, Task};

/// A `doca_comch_producer`.
pub(crate) struct Producer {
    attached: Attached,
    number: u32,
    /// What was submitted, oldest first.
    sends: RefCell<VecDeque<Send>>,
}

struct Send {
    task: Handle<Task>,
    wait: u32,
    /// Whom a post was spoken for with; `None` where there is no such consumer.
    to: Option<Arc<FarConsumer>>,
}

impl Producer {
    pub(crate) fn start(&self) -> Result<Start> {
        if self.attached.link().is_down() {
            return Err(BAD_STATE);
        }
        self.attached.set_active(true);
        Ok(Start::Done)
    }

    pub(crate) fn turn(&self) -> Turn {
        let mut sends = self.sends.borrow_mut();
        let Some(oldest) = sends.front_mut() else {
            return if self.attached.link().is_down() { Turn::Ended } else { Turn::Idle };
        };
        if oldest.wait > 0 {
            oldest.wait -= 1;
            return Turn::Idle;
        }
        let Some(outcome) = self.carry_out(oldest) else { return Turn::Idle };
        let task = oldest.task;
        sends.pop_front();
        drop(sends);
        Task::complete(task, outcome);
        Turn::Handled
    }

    /// What has come of a send; `None` while there is no room.
    fn carry_out(&self, send: &Send) -> Option<doca_error> {
        if self.attached.link().is_down() {
            return Some(CONNECTION_RESET);
        }
        let Some(consumer) = send.to.as_ref().filter(|to| !to.has_expired()) else { return Some(NOT_CONNECTED) };
        let Some(payload) = payload(send.task) else {
            consumer.give_back();
            return Some(IO_FAILED);
        };
        let (producer, immediate_len) = (self.number, send.task.immediate_len.get());
        let header = PayloadHeader { producer, immediate_len, immediate: send.task.immediate.get() };
        match consumer.send(&header, payload.as_ref()) {
            Ok(()) => Some(SUCCESS),
            Err(NotSent::Full) => None,
            Err(NotSent::Refused) => Some(IO_FAILED),
            Err(NotSent::Nonsense) => {
                self.attached.link().end();
                Some(CONNECTION_RESET)
            }
        }
    }

    /// # Errors
    /// `INVALID_VALUE` for what no consumer could take.
    pub(crate) fn validate(&self, task: Handle<Task>) -> Result {
        let Job::Send { consumer, .. } = task.job.get() else { return Err(INVALID_VALUE) };
        let fits = payload(task).is_some_and(|payload| payload.is_none_or(|part| part.len <= MAX_PAYLOAD as usize));
        if fits && self.attached.link().consumer(consumer).is_some() { Ok(()) } else { Err(INVALID_VALUE) }
    }

    pub(crate) fn submit(&self, task: Handle<Task>) -> Result {
        let Job::Send { consumer, .. } = task.job.get() else { return Err(INVALID_VALUE) };
        let mut to = self.attached.link().consumer(consumer);
        match to.as_ref().map_or(Ok(true), |to| to.reserve()) {
            Ok(true) => {}
            Ok(false) => return Err(AGAIN),
            Err(Nonsense) => {
                self.attached.link().end();
                to = None;
            }
        }
        self.sends.borrow_mut().push_back(Send { task, wait: faults::delay(), to });
        Ok(())
    }

    pub(crate) fn take_back(&self) -> Option<Handle<Task>> {
        let send = self.sends.borrow_mut().pop_front()?;
        // Others may use what it will not.
        send.to.inspect(|to| to.give_back());
        Some(send.task)
    }

    pub(crate) fn wind_up(&self) -> End {
        self.attached.set_active(false);
        End::Reached
    }
}

/// The bytes that a task sends, if it sends any; `None` if it cannot.
fn payload(task: Handle<Task>) -> Option<Option<Part>> {
    let Job::Send { from: Some(buffer), .. } = task.job.get() else { return Some(None) };
    let part = buffer.bytes().filter(|_| buffer.next().is_none())?;
    part.memory.sides.contains(&task.context.device.side).then_some(Some(part))
}

/// Runs what needs a producer, in any state or in the idle one.
fn with(
    producer: *const doca_comch_producer,
    idle: bool,
    body: impl FnOnce(Handle<Context>, &Producer) -> Result,
) -> Result {
    let context = Handle::<Context>::given(producer)?;
    let Work::Producer(producer) = &context.work else { broken("another context was passed as a producer") };
    if idle && !context.is_idle() {
        return Err(BAD_STATE);
    }
    body(context, producer)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_cap_is_supported(info: *const doca_devinfo) -> doca_error_t {
    call("doca_comch_producer_cap_is_supported", || Handle::<DeviceInfo>::given(info).map(drop))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_create(
    connection: *mut doca_comch_connection,
    producer: *mut *mut doca_comch_producer,
) -> doca_error_t {
    call("doca_comch_producer_create", || {
        let (connection, producer) = (Connection::given(connection)?, answer(producer)?);
        if connection.link.is_down() {
            return Err(BAD_STATE);
        }
        let (attached, number) = (Attached::new(connection), connection.number());
        let new = Producer { attached, number, sends: RefCell::new(VecDeque::new()) };
        producer.put(Context::new(connection.context.device, Work::Producer(new)).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_destroy(producer: *mut doca_comch_producer) -> doca_error_t {
    call("doca_comch_producer_destroy", || {
        with(producer, false, |_, _| Ok(()))?;
        Context::destroy(Handle::given(producer)?)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_as_ctx(producer: *mut doca_comch_producer) -> *mut doca_ctx {
    inside("doca_comch_producer_as_ctx", || {
        with(producer, false, |_, _| Ok(())).map_or(null_mut(), |()| producer.cast())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_task_send_set_conf(
    producer: *mut doca_comch_producer,
    completed: SendCallback,
    failed: SendCallback,
    number: u32,
) -> doca_error_t {
    call("doca_comch_producer_task_send_set_conf", || {
        with(producer, true, |context, producer| {
            let (completed, failed) = (Callback::Send(completed), Callback::Send(failed));
            context.tasks.configure(Configuration { completed, failed, number }, MAX_SEND_TASKS)?;
            producer.sends.borrow_mut().reserve(number as usize);
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_task_send_alloc_init(
    producer: *mut doca_comch_producer,
    buffer: *const doca_buf,
    immediate: *mut u8,
    immediate_len: u32,
    consumer: u32,
    task: *mut *mut doca_comch_producer_task_send,
) -> doca_error_t {
    call("doca_comch_producer_task_send_alloc_init", || {
        with(producer, false, |context, _| {
            let answer = answer(task)?;
            let from = if buffer.is_null() { None } else { Some(buffer::given(buffer)?) };
            let bytes = immediate_bytes(immediate, immediate_len).ok_or(INVALID_VALUE)?;
            let task = Task::take(context, Job::Send { from, consumer })?;
            task.immediate.set(bytes);
            task.immediate_len.set(immediate_len);
            answer.put(task.as_ptr());
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_task_send_set_imm_data(
    task: *mut doca_comch_producer_task_send,
    immediate: *mut u8,
    immediate_len: u32,
) {
    inside("doca_comch_producer_task_send_set_imm_data", || {
        let task = Task::held(task);
        let Some(bytes) = immediate_bytes(immediate, immediate_len) else { broken("immediate data is up to 32 bytes") };
        task.immediate.set(bytes);
        task.immediate_len.set(immediate_len);
    });
}

/// What a caller passes as immediate data, unless it is too long.
fn immediate_bytes(immediate: *const u8, len: u32) -> Option<[u8; MAX_IMMEDIATE]> {
    let mut bytes = [0; MAX_IMMEDIATE];
    if len == 0 {
        return Some(bytes);
    }
    let place = bytes.get_mut(..len as usize).filter(|_| !immediate.is_null())?;
    // SAFETY: the caller passes so many bytes, or null, which was refused.
    unsafe { place.as_mut_ptr().copy_from_nonoverlapping(immediate, len as usize) };
    Some(bytes)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_producer_task_send_as_task(
    task: *mut doca_comch_producer_task_send,
) -> *mut doca_task {
    inside("doca_comch_producer_task_send_as_task", || Task::out(task).as_ptr())
}
