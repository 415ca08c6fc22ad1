//! A connection: what comes over it, and what is attached to it.

use std::cell::{Cell, RefCell};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use doca_sys::{doca_comch_client, doca_comch_connection, doca_comch_server, doca_data, doca_error_t};

use super::MAX_MESSAGE;
use super::link::Link;
use super::ring::{Kind, Nonsense, Reader, Record};
use super::service::{Role, Service};
use crate::call::{Result, broken, call, inside};
use crate::context::{Context, Turn, Work};
use crate::error::INVALID_VALUE;
use crate::handle::{Handle, object};

/// What a received message's buffer is overwritten with once its callback is over.
const POISON: u8 = 0xdb;

/// A `doca_comch_connection`.
pub(crate) struct Connection {
    pub(super) link: Arc<Link>,
    /// The client or server whose it is.
    pub(super) context: Handle<Context>,
    reader: RefCell<Reader>,
    /// Where messages lie during their callback.
    message: RefCell<Box<[u8]>>,
    user_data: Cell<doca_data>,
    /// The other process has ended, or hung up.
    has_ended: Cell<bool>,
    /// Consumers and producers that were made on it.
    pub(super) paths: AtomicUsize,
    /// Those of them that are not idle.
    pub(super) active: AtomicUsize,
    numbers: AtomicU32,
}
object!(Connection, 11, "a connection");

impl Connection {
    pub(super) fn new(link: Link, reader: Reader, context: Handle<Context>) -> Handle<Connection> {
        Handle::new(Connection {
            link: Arc::new(link),
            context,
            reader: RefCell::new(reader),
            message: RefCell::new(vec![POISON; MAX_MESSAGE as usize].into()),
            user_data: Cell::new(doca_data { u64_: 0 }),
            has_ended: Cell::new(false),
            paths: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            numbers: AtomicU32::new(1),
        })
    }

    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub(super) fn given(connection: *const doca_comch_connection) -> Result<Handle<Connection>> {
        Handle::given(connection)
    }

    /// A number for a consumer or producer, which no other has.
    pub(super) fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Looks whether the other process is still there, which costs a system call.
    pub(super) fn look(&self) {
        self.has_ended.set(super::socket::has_ended(&self.link.socket));
    }

    /// Handles one record, if one has come.
    pub(super) fn turn(connection: Handle<Connection>, service: &Service) -> Turn {
        // Before the ring, so that nothing that came before the end is lost.
        let ended = connection.has_ended.get() || connection.link.is_down();
        let closed = connection.reader.borrow().is_closed();
        let next = connection.reader.borrow_mut().next();
        match next {
            Ok(Some(record)) => Connection::take(connection, &record, service).unwrap_or(Turn::Ended),
            Ok(None) if ended || closed => Turn::Ended,
            Ok(None) => Turn::Idle,
            Err(Nonsense) => Turn::Ended,
        }
    }

    fn take(connection: Handle<Connection>, record: &Record, service: &Service) -> std::result::Result<Turn, Nonsense> {
        if record.kind == Kind::Message {
            let mut message = connection.message.borrow_mut();
            let len = record.copy_to(&mut message[..connection.link.max_message as usize])?;
            let bytes = message.as_mut_ptr();
            drop(message);
            connection.reader.borrow_mut().take(record);
            service.receive(connection, bytes, len as u32);
            return Ok(Turn::Handled);
        }
        let mut number = [0; size_of::<u32>()];
        if record.copy_to(&mut number)? < number.len() {
            return Err(Nonsense);
        }
        connection.reader.borrow_mut().take(record);
        let number = u32::from_le_bytes(number);
        match record.kind {
            Kind::NewConsumer => connection.link.meet(number)?,
            Kind::ExpiredConsumer => connection.link.part(number)?,
            Kind::Skip | Kind::Message | Kind::Payload => return Err(Nonsense),
        }
        service.tell_of_consumer(connection, number, record.kind == Kind::NewConsumer);
        Ok(Turn::Handled)
    }

    /// Makes the last message unreadable.
    pub(super) fn poison(&self, len: u32) {
        self.message.borrow_mut()[..len as usize].fill(POISON);
    }
}

/// What a program made on a connection: it keeps the connection's handle alive, and, while it is active, the connection.
pub(super) struct Attached {
    pub(super) connection: Handle<Connection>,
    active: Cell<bool>,
}

impl Attached {
    pub(super) fn new(connection: Handle<Connection>) -> Attached {
        connection.paths.fetch_add(1, Ordering::Relaxed);
        Attached { connection, active: Cell::new(false) }
    }

    pub(super) fn link(&self) -> &Link {
        // Not by the handle, which is a copy of its own.
        let connection: &Connection = &self.connection;
        &connection.link
    }

    pub(super) fn set_active(&self, active: bool) {
        match (self.active.replace(active), active) {
            (false, true) => drop(self.connection.active.fetch_add(1, Ordering::AcqRel)),
            (true, false) => drop(self.connection.active.fetch_sub(1, Ordering::AcqRel)),
            _ => {}
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.connection.paths.fetch_sub(1, Ordering::AcqRel);
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_connection_set_user_data(
    connection: *mut doca_comch_connection,
    user_data: doca_data,
) -> doca_error_t {
    call("doca_comch_connection_set_user_data", || {
        Connection::given(connection)?.user_data.set(user_data);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_connection_get_user_data(connection: *const doca_comch_connection) -> doca_data {
    inside("doca_comch_connection_get_user_data", || Handle::<Connection>::needed(connection).user_data.get())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_get_server_ctx(
    connection: *const doca_comch_connection,
) -> *mut doca_comch_server {
    inside("doca_comch_server_get_server_ctx", || owner(connection, true))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_get_client_ctx(
    connection: *const doca_comch_connection,
) -> *mut doca_comch_client {
    inside("doca_comch_client_get_client_ctx", || owner(connection, false))
}

fn owner<C>(connection: *const doca_comch_connection, is_server: bool) -> *mut C {
    let Ok(connection) = Connection::given(connection) else { return null_mut() };
    match &connection.context.work {
        Work::Service(service) if matches!(service.role, Role::Server(_)) == is_server => connection.context.as_ptr(),
        _ => broken("a client's connection was taken for a server's, or a server's for a client's"),
    }
}

/// # Errors
/// `INVALID_VALUE` for a connection of another client or server.
pub(super) fn must_be_of(connection: Handle<Connection>, context: Handle<Context>) -> Result {
    if connection.context == context { Ok(()) } else { Err(INVALID_VALUE) }
}
