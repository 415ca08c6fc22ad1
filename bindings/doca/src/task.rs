//! What all kinds of tasks have in common, and what their callbacks are given.
#![expect(unsafe_code, reason = "calls of DOCA, and what it calls back")]

use std::ptr::NonNull;

use doca_sys::{
    Doca, doca_comch_consumer_task_post_recv, doca_comch_producer_task_send, doca_comch_task_send, doca_data,
    doca_dma_task_memcpy, doca_task,
};

use crate::error::{Code, Error, check};
use crate::library::Library;

/// A kind of task.
pub(crate) trait Kind: Sized {
    /// What makes a task of no kind of it.
    fn as_task(doca: &Doca) -> unsafe extern "C" fn(*mut Self) -> *mut doca_task;
}

impl Kind for doca_dma_task_memcpy {
    fn as_task(doca: &Doca) -> unsafe extern "C" fn(*mut Self) -> *mut doca_task {
        doca.doca_dma_task_memcpy_as_task
    }
}

impl Kind for doca_comch_task_send {
    fn as_task(doca: &Doca) -> unsafe extern "C" fn(*mut Self) -> *mut doca_task {
        doca.doca_comch_task_send_as_task
    }
}

impl Kind for doca_comch_consumer_task_post_recv {
    fn as_task(doca: &Doca) -> unsafe extern "C" fn(*mut Self) -> *mut doca_task {
        doca.doca_comch_consumer_task_post_recv_as_task
    }
}

impl Kind for doca_comch_producer_task_send {
    fn as_task(doca: &Doca) -> unsafe extern "C" fn(*mut Self) -> *mut doca_task {
        doca.doca_comch_producer_task_send_as_task
    }
}

/// Submits a task. Where that is refused, the task is still the caller's.
///
/// # Safety
/// The task is there and not under way, and what it uses stays until it comes back.
pub(crate) unsafe fn submit<K: Kind>(library: &Library, task: NonNull<K>) -> Result<(), Error> {
    // SAFETY: the task is there.
    let task = unsafe { of_no_kind(library, task) };
    // SAFETY: the caller says so.
    check("doca_task_try_submit", unsafe { (library.doca().doca_task_try_submit)(task) })
}

/// Gives a task back.
///
/// # Safety
/// The task is there and not under way, and nobody uses it any more.
pub(crate) unsafe fn give_back<K: Kind>(library: &Library, task: NonNull<K>) {
    // SAFETY: the task is there.
    let task = unsafe { of_no_kind(library, task) };
    // SAFETY: the caller says so.
    unsafe { (library.doca().doca_task_free)(task) };
}

/// Why a task failed that has come back as failed.
///
/// # Safety
/// The task is there.
pub(crate) unsafe fn failure<K: Kind>(library: &Library, task: *mut K, call: &'static str) -> Error {
    let unknown = Error::refused(call, Code::UNKNOWN, "it failed and does not say why");
    let Some(task) = NonNull::new(task) else { return unknown };
    // SAFETY: the caller says so.
    let task = unsafe { of_no_kind(library, task) };
    // SAFETY: as above.
    let status = unsafe { (library.doca().doca_task_get_status)(task) };
    check(call, status).err().unwrap_or(unknown)
}

/// Has a task's callbacks be given a number.
///
/// # Safety
/// The task is there and not under way.
pub(crate) unsafe fn set_number<K: Kind>(library: &Library, task: NonNull<K>, number: u64) {
    // SAFETY: the task is there.
    let task = unsafe { of_no_kind(library, task) };
    // SAFETY: as above.
    unsafe { (library.doca().doca_task_set_user_data)(task, doca_data { u64_: number }) };
}

/// # Safety
/// The task is there.
unsafe fn of_no_kind<K: Kind>(library: &Library, task: NonNull<K>) -> *mut doca_task {
    // SAFETY: the caller says so.
    unsafe { K::as_task(library.doca())(task.as_ptr()) }
}

/// The number that a callback is given.
pub(crate) fn number(data: doca_data) -> u64 {
    // SAFETY: any eight bytes are a number.
    unsafe { data.u64_ }
}

/// What a context's callbacks share with whoever has the context.
///
/// # Safety
/// `of` is what that context was given, and a `T` is still there.
pub(crate) unsafe fn shared<'a, T>(of: doca_data) -> &'a T {
    // SAFETY: a pointer was put there.
    let at = unsafe { of.ptr };
    // SAFETY: the caller says so.
    unsafe { &*at.cast::<T>() }
}
