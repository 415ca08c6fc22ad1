//! What callbacks tell, in the order in which they did.

use std::cell::{Cell, RefCell};

use doca_sys::*;

use super::{doca, name};

/// Something that a callback told. Tasks are called by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Copied(u64),
    CopyFailed(u64, &'static str),
    Sent(u64),
    SendFailed(u64, &'static str),
    Message(Vec<u8>),
    Connected,
    Disconnected,
    NewConsumer(u32),
    ExpiredConsumer(u32),
    Received { task: u64, producer: u32, immediate: Vec<u8> },
    ReceiveFailed(u64, &'static str),
    Produced(u64),
    ProduceFailed(u64, &'static str),
    State(u32, u32),
}

thread_local! {
    static EVENTS: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
    /// The server's latest connection.
    static CONNECTION: RefCell<*mut doca_comch_connection> = const { RefCell::new(std::ptr::null_mut()) };
    /// Where the latest message lay.
    static MESSAGE: RefCell<*const u8> = const { RefCell::new(std::ptr::null()) };
    /// Whether tasks of receives are kept.
    static KEPT: Cell<bool> = const { Cell::new(false) };
    /// Called by the next callback for a copy.
    static NEXT: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

fn tell(event: Event) {
    EVENTS.with_borrow_mut(|events| events.push(event));
}

/// All events so far.
pub(crate) fn all() -> Vec<Event> {
    EVENTS.with_borrow(Clone::clone)
}

/// All events since they were last taken.
pub(crate) fn take() -> Vec<Event> {
    EVENTS.take()
}

pub(crate) fn has(event: &Event) -> bool {
    EVENTS.with_borrow(|events| events.contains(event))
}

pub(crate) fn count(of: impl Fn(&Event) -> bool) -> usize {
    EVENTS.with_borrow(|events| events.iter().filter(|event| of(event)).count())
}

pub(crate) fn connection() -> *mut doca_comch_connection {
    CONNECTION.with_borrow(|connection| *connection)
}

pub(crate) fn message() -> *const u8 {
    MESSAGE.with_borrow(|message| *message)
}

/// Has tasks of receives not be freed once they are done.
pub(crate) fn keep_receives() {
    KEPT.set(true);
}

/// Has the next callback for a copy do something.
pub(crate) fn next(action: impl FnOnce() + 'static) {
    NEXT.set(Some(Box::new(action)));
}

fn number(data: doca_data) -> u64 {
    // SAFETY: tests attach numbers.
    unsafe { data.u64_ }
}

fn status<T>(task: *mut T) -> &'static str {
    name(doca!(doca_task_get_status(task.cast())))
}

pub(crate) extern "C" fn copied(_task: *mut doca_dma_task_memcpy, data: doca_data, _context: doca_data) {
    tell(Event::Copied(number(data)));
    if let Some(action) = NEXT.take() {
        action();
    }
}

pub(crate) extern "C" fn copy_failed(task: *mut doca_dma_task_memcpy, data: doca_data, _context: doca_data) {
    tell(Event::CopyFailed(number(data), status(doca!(doca_dma_task_memcpy_as_task(task)))));
}

pub(crate) extern "C" fn sent(task: *mut doca_comch_task_send, data: doca_data, _context: doca_data) {
    tell(Event::Sent(number(data)));
    let task = doca!(doca_comch_task_send_as_task(task));
    doca!(doca_task_free(task));
}

pub(crate) extern "C" fn send_failed(task: *mut doca_comch_task_send, data: doca_data, _context: doca_data) {
    let task = doca!(doca_comch_task_send_as_task(task));
    tell(Event::SendFailed(number(data), status(task)));
    doca!(doca_task_free(task));
}

pub(crate) extern "C" fn message_received(
    _event: *mut doca_comch_event_msg_recv,
    bytes: *mut u8,
    len: u32,
    _connection: *mut doca_comch_connection,
) {
    MESSAGE.set(bytes);
    // SAFETY: so many bytes are there during this callback.
    tell(Event::Message(unsafe { std::slice::from_raw_parts(bytes, len as usize) }.to_vec()));
}

pub(crate) extern "C" fn connected(
    _event: *mut doca_comch_event_connection_status_changed,
    connection: *mut doca_comch_connection,
    successful: u8,
) {
    assert_eq!(successful, 1);
    CONNECTION.set(connection);
    tell(Event::Connected);
}

pub(crate) extern "C" fn disconnected(
    _event: *mut doca_comch_event_connection_status_changed,
    _connection: *mut doca_comch_connection,
    successful: u8,
) {
    assert_eq!(successful, 1);
    tell(Event::Disconnected);
}

pub(crate) extern "C" fn new_consumer(_: *mut doca_comch_event_consumer, _: *mut doca_comch_connection, consumer: u32) {
    tell(Event::NewConsumer(consumer));
}

pub(crate) extern "C" fn expired_consumer(
    _: *mut doca_comch_event_consumer,
    _: *mut doca_comch_connection,
    consumer: u32,
) {
    tell(Event::ExpiredConsumer(consumer));
}

pub(crate) extern "C" fn received(task: *mut doca_comch_consumer_task_post_recv, data: doca_data, _context: doca_data) {
    let bytes = doca!(doca_comch_consumer_task_post_recv_get_imm_data(task));
    let len = doca!(doca_comch_consumer_task_post_recv_get_imm_data_len(task));
    // SAFETY: so many bytes are there as long as the task is.
    let immediate = unsafe { std::slice::from_raw_parts(bytes, len as usize) }.to_vec();
    let producer = doca!(doca_comch_consumer_task_post_recv_get_producer_id(task));
    tell(Event::Received { task: number(data), producer, immediate });
    if !KEPT.get() {
        let task = doca!(doca_comch_consumer_task_post_recv_as_task(task));
        doca!(doca_task_free(task));
    }
}

pub(crate) extern "C" fn receive_failed(
    task: *mut doca_comch_consumer_task_post_recv,
    data: doca_data,
    _context: doca_data,
) {
    let task = doca!(doca_comch_consumer_task_post_recv_as_task(task));
    tell(Event::ReceiveFailed(number(data), status(task)));
    doca!(doca_task_free(task));
}

pub(crate) extern "C" fn produced(task: *mut doca_comch_producer_task_send, data: doca_data, _context: doca_data) {
    tell(Event::Produced(number(data)));
    let task = doca!(doca_comch_producer_task_send_as_task(task));
    doca!(doca_task_free(task));
}

pub(crate) extern "C" fn produce_failed(
    task: *mut doca_comch_producer_task_send,
    data: doca_data,
    _context: doca_data,
) {
    let task = doca!(doca_comch_producer_task_send_as_task(task));
    tell(Event::ProduceFailed(number(data), status(task)));
    doca!(doca_task_free(task));
}

pub(crate) extern "C" fn changed(_: doca_data, _: *mut doca_ctx, before: doca_ctx_states, after: doca_ctx_states) {
    tell(Event::State(before.0, after.0));
}
