//! Consumers, which post receives.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use doca_sys::{
    doca_buf, doca_comch_connection, doca_comch_consumer, doca_comch_consumer_task_post_recv,
    doca_comch_consumer_task_post_recv_completion_cb_t as ReceiveCallback, doca_ctx, doca_devinfo, doca_error,
    doca_error_t, doca_mmap, doca_task,
};
use zerocopy::FromBytes;

use super::connection::{Attached, Connection};
use super::path::{MAX_POSTS, NearEnd, PayloadHeader};
use super::ring::{Kind, Nonsense, Record};
use crate::buffer;
use crate::call::{Result, answer, broken, call, inside};
use crate::context::{Context, End, Start, Turn, Work};
use crate::device::DeviceInfo;
use crate::error::{BAD_STATE, INITIALIZATION, INVALID_VALUE, IO_FAILED, SUCCESS};
use crate::handle::Handle;
use crate::memory::Mmap;
use crate::task::{Callback, Configuration, Job, MAX_IMMEDIATE, Task};

/// A `doca_comch_consumer`.
pub(crate) struct Consumer {
    attached: Attached,
    number: u32,
    mmap: Handle<Mmap>,
    immediate_len: Cell<u32>,
    /// Receives that are posted, oldest first.
    posted: RefCell<VecDeque<Handle<Task>>>,
    /// Its memory, while it is not idle.
    end: RefCell<Option<NearEnd>>,
    announced: Cell<bool>,
}

impl Consumer {
    pub(crate) fn start(&self) -> Result<Start> {
        if self.attached.link().is_down() {
            return Err(BAD_STATE);
        }
        self.end.replace(Some(NearEnd::new(self.immediate_len.get()).map_err(|_| INITIALIZATION)?));
        self.attached.set_active(true);
        Ok(Start::Begun)
    }

    pub(crate) fn turn(&self) -> Turn {
        if self.announced.get() {
            return self.receive().unwrap_or_else(|Nonsense| {
                self.attached.link().end();
                Turn::Ended
            });
        }
        match self.announce() {
            Ok(true) => Turn::Started,
            Ok(false) => Turn::Idle,
            Err(Nonsense) => {
                self.leave();
                Turn::Ended
            }
        }
    }

    /// Tells the other side, if there is room.
    fn announce(&self) -> std::result::Result<bool, Nonsense> {
        let end = self.end.borrow();
        let end = end.as_ref().filter(|_| !self.attached.link().is_down()).ok_or(Nonsense)?;
        let announced = self.attached.link().announce(self.number, &end.file)?;
        self.announced.set(announced);
        Ok(announced)
    }

    fn receive(&self) -> std::result::Result<Turn, Nonsense> {
        let down = self.attached.link().is_down();
        let mut end = self.end.borrow_mut();
        let reader = &mut end.as_mut().ok_or(Nonsense)?.reader;
        let Some(record) = reader.next()? else { return Ok(if down { Turn::Ended } else { Turn::Idle }) };
        if record.kind != Kind::Payload {
            return Err(Nonsense);
        }
        let task = self.posted.borrow_mut().pop_front().ok_or(Nonsense)?;
        let filled = self.fill(task, &record);
        if filled.is_err() {
            // For what follows to be able to give it back.
            self.posted.borrow_mut().push_front(task);
        }
        reader.take(&record);
        drop(end);
        Task::complete(task, filled?);
        Ok(Turn::Handled)
    }

    /// Puts what has come where the task wants it.
    fn fill(&self, task: Handle<Task>, record: &Record) -> std::result::Result<doca_error, Nonsense> {
        const HEADER: usize = size_of::<PayloadHeader>();
        let mut header = [0; HEADER];
        let len = record.len.checked_sub(HEADER).ok_or(Nonsense)?;
        Record { kind: record.kind, bytes: record.bytes, len: HEADER }.copy_to(&mut header)?;
        let header = PayloadHeader::read_from_bytes(&header).map_err(|_| Nonsense)?;
        let Job::Receive { into, .. } = task.job.get() else { return Err(Nonsense) };
        if header.immediate_len > self.immediate_len.get() {
            return Err(Nonsense);
        }
        let room = into.and_then(|buffer| buffer.room());
        if len > room.as_ref().map_or(0, |room| room.len) {
            return Err(Nonsense);
        }
        let written =
            room.is_none_or(|room| room.memory.write(room.address, record.bytes.wrapping_add(HEADER), len).is_ok());
        if let Some(buffer) = into {
            buffer.set_data_len(len);
        }
        task.job.set(Job::Receive { into, producer: header.producer });
        task.immediate.set(header.immediate);
        task.immediate_len.set(header.immediate_len);
        Ok(if written { SUCCESS } else { IO_FAILED })
    }

    pub(crate) fn submit(&self, task: Handle<Task>) -> Result {
        let Job::Receive { into, .. } = task.job.get() else { return Err(INVALID_VALUE) };
        let len = into.and_then(|buffer| buffer.room()).map_or(0, |room| room.len);
        self.end.borrow_mut().as_mut().ok_or(BAD_STATE)?.post(len);
        self.posted.borrow_mut().push_back(task);
        Ok(())
    }

    pub(crate) fn take_back(&self) -> Option<Handle<Task>> {
        self.posted.borrow_mut().pop_front()
    }

    pub(crate) fn wind_up(&self) -> End {
        let link = self.attached.link();
        if self.announced.get() && !link.is_down() {
            match link.send(Kind::ExpiredConsumer, &self.number.to_le_bytes()) {
                Ok(true) => {}
                Ok(false) => return End::Waiting,
                Err(Nonsense) => link.end(),
            }
        }
        self.leave();
        End::Reached
    }

    fn leave(&self) {
        self.announced.set(false);
        self.end.replace(None);
        self.attached.set_active(false);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.mmap.users.fetch_sub(1, Ordering::Release);
    }
}

/// Runs what needs a consumer, in any state or in the idle one.
fn with(
    consumer: *const doca_comch_consumer,
    idle: bool,
    body: impl FnOnce(Handle<Context>, &Consumer) -> Result,
) -> Result {
    let context = Handle::<Context>::given(consumer)?;
    let Work::Consumer(consumer) = &context.work else { broken("another context was passed as a consumer") };
    if idle && !context.is_idle() {
        return Err(BAD_STATE);
    }
    body(context, consumer)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_cap_is_supported(info: *const doca_devinfo) -> doca_error_t {
    call("doca_comch_consumer_cap_is_supported", || Handle::<DeviceInfo>::given(info).map(drop))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_create(
    connection: *mut doca_comch_connection,
    mmap: *mut doca_mmap,
    consumer: *mut *mut doca_comch_consumer,
) -> doca_error_t {
    call("doca_comch_consumer_create", || {
        let (connection, mmap) = (Connection::given(connection)?, Handle::<Mmap>::given(mmap)?);
        let consumer = answer(consumer)?;
        if mmap.memory().is_none() || !mmap.takes_receives() {
            return Err(INVALID_VALUE);
        }
        if connection.link.is_down() {
            return Err(BAD_STATE);
        }
        mmap.users.fetch_add(1, Ordering::Relaxed);
        let new = Consumer {
            attached: Attached::new(connection),
            number: connection.number(),
            mmap,
            immediate_len: Cell::new(0),
            posted: RefCell::new(VecDeque::with_capacity(MAX_POSTS as usize)),
            end: RefCell::new(None),
            announced: Cell::new(false),
        };
        consumer.put(Context::new(connection.context.device, Work::Consumer(new)).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_destroy(consumer: *mut doca_comch_consumer) -> doca_error_t {
    call("doca_comch_consumer_destroy", || {
        with(consumer, false, |_, _| Ok(()))?;
        Context::destroy(Handle::given(consumer)?)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_as_ctx(consumer: *mut doca_comch_consumer) -> *mut doca_ctx {
    inside("doca_comch_consumer_as_ctx", || {
        with(consumer, false, |_, _| Ok(())).map_or(null_mut(), |()| consumer.cast())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_get_id(
    consumer: *const doca_comch_consumer,
    number: *mut u32,
) -> doca_error_t {
    call("doca_comch_consumer_get_id", || {
        with(consumer, false, |_, consumer| {
            answer(number)?.put(consumer.number);
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_set_imm_data_len(
    consumer: *mut doca_comch_consumer,
    len: u32,
) -> doca_error_t {
    call("doca_comch_consumer_set_imm_data_len", || {
        with(consumer, true, |_, consumer| {
            if len as usize > MAX_IMMEDIATE {
                return Err(INVALID_VALUE);
            }
            consumer.immediate_len.set(len);
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_task_post_recv_set_conf(
    consumer: *mut doca_comch_consumer,
    completed: ReceiveCallback,
    failed: ReceiveCallback,
    number: u32,
) -> doca_error_t {
    call("doca_comch_consumer_task_post_recv_set_conf", || {
        with(consumer, true, |context, _| {
            let (completed, failed) = (Callback::Receive(completed), Callback::Receive(failed));
            context.tasks.configure(Configuration { completed, failed, number }, MAX_POSTS)
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_task_post_recv_alloc_init(
    consumer: *mut doca_comch_consumer,
    buffer: *mut doca_buf,
    task: *mut *mut doca_comch_consumer_task_post_recv,
) -> doca_error_t {
    call("doca_comch_consumer_task_post_recv_alloc_init", || {
        with(consumer, false, |context, consumer| {
            let answer = answer(task)?;
            let into = if buffer.is_null() { None } else { Some(buffer::given(buffer)?) };
            if into.is_some_and(|buffer| !buffer.is_of(consumer.mmap)) {
                return Err(INVALID_VALUE);
            }
            answer.put(Task::take(context, Job::Receive { into, producer: 0 })?.as_ptr());
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_task_post_recv_get_buf(
    task: *const doca_comch_consumer_task_post_recv,
) -> *mut doca_buf {
    inside("doca_comch_consumer_task_post_recv_get_buf", || match Task::out(task).job.get() {
        Job::Receive { into: Some(buffer), .. } => buffer.as_ptr(),
        _ => null_mut(),
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_task_post_recv_get_producer_id(
    task: *const doca_comch_consumer_task_post_recv,
) -> u32 {
    inside("doca_comch_consumer_task_post_recv_get_producer_id", || match Task::out(task).job.get() {
        Job::Receive { producer, .. } => producer,
        _ => 0,
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_task_post_recv_get_imm_data(
    task: *const doca_comch_consumer_task_post_recv,
) -> *const u8 {
    inside("doca_comch_consumer_task_post_recv_get_imm_data", || Task::out(task).immediate.as_ptr().cast_const().cast())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_task_post_recv_get_imm_data_len(
    task: *const doca_comch_consumer_task_post_recv,
) -> u32 {
    inside("doca_comch_consumer_task_post_recv_get_imm_data_len", || Task::out(task).immediate_len.get())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_consumer_task_post_recv_as_task(
    task: *mut doca_comch_consumer_task_post_recv,
) -> *mut doca_task {
    inside("doca_comch_consumer_task_post_recv_as_task", || Task::out(task).as_ptr())
}
