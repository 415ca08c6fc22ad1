//! Copies.

use std::cell::RefCell;
use std::collections::VecDeque;

use doca_sys::{
    doca_buf, doca_ctx, doca_data, doca_dev, doca_devinfo, doca_dma, doca_dma_task_memcpy,
    doca_dma_task_memcpy_completion_cb_t as CopyCallback, doca_error_t, doca_task,
};

use crate::buffer::{self, Buffer, Part};
use crate::call::{Result, answer, broken, call, inside};
use crate::context::{Context, Turn, Work};
use crate::device::{Device, DeviceInfo};
use crate::error::{BAD_STATE, INVALID_VALUE, IO_FAILED, SUCCESS};
use crate::faults::{self, Fault};
use crate::handle::Handle;
use crate::memory;
use crate::task::{Callback, Configuration, Job, Task};

/// Bytes that one task may copy. More are taken when they are submitted, and stop the context.
const MAX_COPY: usize = 2_097_152;
/// Elements of a source's list.
const MAX_LIST: usize = 64;
const MAX_TASKS: u32 = 8192;
/// Pieces of a copy that is torn.
const MAX_PIECES: usize = 8;

/// A `doca_dma`.
pub(crate) struct Dma {
    /// Submitted, oldest first.
    pending: RefCell<VecDeque<Copy>>,
}

/// A copy that was submitted.
struct Copy {
    task: Handle<Task>,
    /// Progress calls until it may go on.
    wait: u32,
    pieces: Pieces,
    /// The piece that fails in place of being copied.
    fails_at: Option<usize>,
    /// Whether such a failure stops the context.
    stops: bool,
    outcome: Option<Outcome>,
}

#[derive(Clone, Copy)]
enum Outcome {
    Copied,
    Failed,
    /// And the context with it.
    Stopped,
}

/// In which parts a copy arrives.
struct Pieces {
    number: usize,
    done: usize,
    /// From where to where each goes, in the order in which they arrive; known once the first does.
    ranges: [(usize, usize); MAX_PIECES],
}

impl Dma {
    pub(crate) fn turn(&self) -> Turn {
        let mut pending = self.pending.borrow_mut();
        let Some(place) = pick(&mut pending) else { return Turn::Idle };
        let copy = &mut pending[place];
        let outcome = match copy.outcome {
            Some(outcome) => outcome,
            None => {
                let Some(outcome) = copy.go_on() else { return Turn::Idle };
                copy.outcome = Some(outcome);
                copy.wait = faults::delay();
                if copy.wait > 0 {
                    return Turn::Idle;
                }
                outcome
            }
        };
        let task = copy.task;
        pending.remove(place);
        drop(pending);
        let context = task.context;
        match outcome {
            Outcome::Copied => Task::complete(task, SUCCESS),
            Outcome::Failed => Task::complete(task, IO_FAILED),
            Outcome::Stopped => {
                // Stopping first, so that the callback finds a context that takes no more.
                Context::begin_to_stop(context);
                Task::complete(task, IO_FAILED);
            }
        }
        Turn::Handled
    }

    pub(crate) fn take_back(&self) -> Option<Handle<Task>> {
        self.pending.borrow_mut().pop_front().map(|copy| copy.task)
    }

    /// # Errors
    /// `INVALID_VALUE` for what hardware could not carry out. How much it is hardware sees later.
    pub(crate) fn validate(task: Handle<Task>) -> Result {
        check(task).map(drop).ok_or(INVALID_VALUE)
    }

    pub(crate) fn submit(&self, task: Handle<Task>) -> Result {
        let wait = faults::delay();
        let torn = faults::strikes(Fault::Tear);
        let number = if torn { 2 + faults::below(MAX_PIECES as u32 - 1) as usize } else { 1 };
        let fails = faults::strikes(Fault::Fail);
        let fails_at = fails.then(|| if torn { faults::below(number as u32) as usize } else { 0 });
        let stops = fails && faults::strikes(Fault::Stop);
        let pieces = Pieces { number, done: 0, ranges: [(0, 0); MAX_PIECES] };
        self.pending.borrow_mut().push_back(Copy { task, wait, pieces, fails_at, stops, outcome: None });
        Ok(())
    }
}

/// Lets all wait, and says whose turn it is.
fn pick(pending: &mut VecDeque<Copy>) -> Option<usize> {
    let mut ready = 0;
    for copy in pending.iter_mut() {
        copy.wait = copy.wait.saturating_sub(1);
        ready += usize::from(copy.wait == 0);
        // With one that need not wait the others have nothing to gain, unless they may be taken before it.
    }
    let chosen = if ready > 1 && faults::strikes(Fault::Reorder) { faults::below(ready as u32) as usize } else { 0 };
    pending.iter().enumerate().filter(|(_, copy)| copy.wait == 0).nth(chosen).map(|(place, _)| place)
}

impl Copy {
    /// Carries out the next piece. What has come of the whole, once that is known.
    fn go_on(&mut self) -> Option<Outcome> {
        // What it names cannot change while it is in flight, except that grants end.
        let Some((from, to, len)) = check(self.task) else { return Some(Outcome::Stopped) };
        if len > MAX_COPY {
            return Some(Outcome::Stopped);
        }
        if self.fails_at == Some(self.pieces.done) {
            return Some(if self.stops { Outcome::Stopped } else { Outcome::Failed });
        }
        let (start, end) = self.pieces.next(len);
        if copy_range(from, &to, start, end).is_err() {
            return Some(Outcome::Failed);
        }
        if self.pieces.done < self.pieces.number {
            return None;
        }
        if let Job::Copy { to: Some(buffer), .. } = self.task.job.get() {
            buffer.set_data_len(len);
        }
        Some(Outcome::Copied)
    }
}

impl Pieces {
    fn next(&mut self, len: usize) -> (usize, usize) {
        if self.done == 0 {
            self.cut(len);
        }
        self.done += 1;
        self.ranges[self.done - 1]
    }

    fn cut(&mut self, len: usize) {
        self.ranges[0] = (0, len);
        if self.number == 1 {
            return;
        }
        let mut cuts = [len; MAX_PIECES];
        for cut in &mut cuts[..self.number - 1] {
            *cut = faults::below(len as u32 + 1) as usize;
        }
        cuts[..self.number - 1].sort_unstable();
        let mut start = 0;
        for (range, cut) in self.ranges.iter_mut().zip(&cuts[..self.number]) {
            *range = (start, *cut);
            start = *cut;
        }
        for last in (1..self.number).rev() {
            self.ranges.swap(last, faults::below(last as u32 + 1) as usize);
        }
    }
}

/// What a task copies from, where to, and how many bytes, if hardware can.
fn check(task: Handle<Task>) -> Option<(Handle<Buffer>, Part, usize)> {
    let Job::Copy { from: Some(from), to: Some(to) } = task.job.get() else { return None };
    let side = task.context.device.side;
    let room = to.room().filter(|room| room.memory.writable && room.memory.sides.contains(&side))?;
    if to.next().is_some() {
        return None;
    }
    let (mut len, mut elements, mut element) = (0usize, 0, Some(from));
    while let Some(buffer) = element {
        let part = buffer.bytes().filter(|part| part.memory.sides.contains(&side))?;
        len = len.checked_add(part.len)?;
        elements += 1;
        element = buffer.next();
    }
    (elements <= MAX_LIST && len > 0 && len <= room.len).then_some((from, room, len))
}

/// Copies what lies from `start` to `end` in a source's list.
fn copy_range(
    from: Handle<Buffer>,
    to: &Part,
    start: usize,
    end: usize,
) -> std::result::Result<(), memory::OutOfReach> {
    let (mut begins, mut element) = (0, Some(from));
    while let Some(buffer) = element {
        let part = buffer.bytes().ok_or(memory::OutOfReach)?;
        let (first, last) = (start.max(begins), end.min(begins + part.len));
        if first < last {
            let source = (&*part.memory, part.address + first - begins);
            memory::copy(source, (&to.memory, to.address + first), last - first)?;
        }
        begins += part.len;
        element = buffer.next();
    }
    Ok(())
}

/// # Errors
/// `INVALID_VALUE` for a null pointer.
fn given(dma: *const doca_dma) -> Result<Handle<Context>> {
    let context = Handle::<Context>::given(dma)?;
    match context.work {
        Work::Dma(_) => Ok(context),
        _ => broken("another context was passed as a doca_dma"),
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_cap_task_memcpy_is_supported(info: *const doca_devinfo) -> doca_error_t {
    call("doca_dma_cap_task_memcpy_is_supported", || Handle::<DeviceInfo>::given(info).map(drop))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_cap_task_memcpy_get_max_buf_size(
    info: *const doca_devinfo,
    size: *mut u64,
) -> doca_error_t {
    call("doca_dma_cap_task_memcpy_get_max_buf_size", || {
        Handle::<DeviceInfo>::given(info)?;
        answer(size)?.put(MAX_COPY as u64);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_cap_task_memcpy_get_max_buf_list_len(
    info: *const doca_devinfo,
    len: *mut u32,
) -> doca_error_t {
    call("doca_dma_cap_task_memcpy_get_max_buf_list_len", || {
        Handle::<DeviceInfo>::given(info)?;
        answer(len)?.put(MAX_LIST as u32);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_cap_get_max_num_tasks(dma: *mut doca_dma, number: *mut u32) -> doca_error_t {
    call("doca_dma_cap_get_max_num_tasks", || {
        given(dma)?;
        answer(number)?.put(MAX_TASKS);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_create(device: *mut doca_dev, dma: *mut *mut doca_dma) -> doca_error_t {
    call("doca_dma_create", || {
        let (device, dma) = (Handle::<Device>::given(device)?, answer(dma)?);
        dma.put(Context::new(device, Work::Dma(Dma { pending: RefCell::new(VecDeque::new()) })).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_destroy(dma: *mut doca_dma) -> doca_error_t {
    call("doca_dma_destroy", || Context::destroy(given(dma)?))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_as_ctx(dma: *mut doca_dma) -> *mut doca_ctx {
    inside("doca_dma_as_ctx", || given(dma).map_or(std::ptr::null_mut(), Handle::as_ptr))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_task_memcpy_set_conf(
    dma: *mut doca_dma,
    completed: CopyCallback,
    failed: CopyCallback,
    number: u32,
) -> doca_error_t {
    call("doca_dma_task_memcpy_set_conf", || {
        let context = given(dma)?;
        if !context.is_idle() {
            return Err(BAD_STATE);
        }
        let (completed, failed) = (Callback::Copy(completed), Callback::Copy(failed));
        context.tasks.configure(Configuration { completed, failed, number }, MAX_TASKS)?;
        if let Work::Dma(dma) = &context.work {
            dma.pending.borrow_mut().reserve(number as usize);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_task_memcpy_alloc_init(
    dma: *mut doca_dma,
    from: *const doca_buf,
    to: *mut doca_buf,
    user_data: doca_data,
    task: *mut *mut doca_dma_task_memcpy,
) -> doca_error_t {
    call("doca_dma_task_memcpy_alloc_init", || {
        let (context, answer) = (given(dma)?, answer(task)?);
        let (from, to) = (Some(buffer::given(from)?), Some(buffer::given(to)?));
        let task = Task::take(context, Job::Copy { from, to })?;
        task.set_user_data(user_data);
        answer.put(task.as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_task_memcpy_as_task(task: *mut doca_dma_task_memcpy) -> *mut doca_task {
    inside("doca_dma_task_memcpy_as_task", || Task::out(task).as_ptr())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_task_memcpy_set_src(task: *mut doca_dma_task_memcpy, from: *const doca_buf) {
    inside("doca_dma_task_memcpy_set_src", || {
        let task = Task::held(task);
        if let Job::Copy { to, .. } = task.job.get() {
            task.job.set(Job::Copy { from: buffer::given(from).ok(), to });
        }
    });
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dma_task_memcpy_set_dst(task: *mut doca_dma_task_memcpy, to: *mut doca_buf) {
    inside("doca_dma_task_memcpy_set_dst", || {
        let task = Task::held(task);
        if let Job::Copy { from, .. } = task.job.get() {
            task.job.set(Job::Copy { from, to: buffer::given(to).ok() });
        }
    });
}
