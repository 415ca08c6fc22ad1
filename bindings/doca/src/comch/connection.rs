//! A connection, and what its owner hears of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;

use doca_sys::{doca_comch_connection, doca_comch_task_send};

use crate::error::{Code, Error};
use crate::library::Library;

/// One side of a connection. Clones are the same.
#[derive(Clone)]
pub struct Connection {
    pub(super) inner: Rc<Inner>,
}

pub(super) struct Inner {
    pub(super) connection: NonNull<doca_comch_connection>,
    pub(super) open: Cell<bool>,
    pub(super) library: Library,
}

impl Connection {
    /// Whether the other side is there, as far as it is known.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inner.open.get()
    }

    /// Nothing can be made of one that is over.
    pub(super) fn check(&self, call: &'static str) -> Result<(), Error> {
        if self.is_open() { Ok(()) } else { Err(Error::refused(call, Code::NOT_CONNECTED, "the other side is gone")) }
    }

    pub(super) fn as_ptr(&self) -> *mut doca_comch_connection {
        self.inner.connection.as_ptr()
    }

    pub(super) fn library(&self) -> &Library {
        &self.inner.library
    }
}

impl PartialEq for Connection {
    fn eq(&self, other: &Connection) -> bool {
        Rc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for Connection {}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

/// What an endpoint's callbacks leave for whoever polls it.
pub(super) struct Inbox {
    pub(super) library: Library,
    pub(super) heard: RefCell<VecDeque<Heard>>,
    pub(super) connections: RefCell<Vec<Connection>>,
    /// Messages that are being sent, which stay where they are until then.
    pub(super) sending: RefCell<Vec<Option<Sending>>>,
}

pub(super) struct Sending {
    /// Where DOCA reads it.
    pub(super) message: Box<[u8]>,
    pub(super) task: NonNull<doca_comch_task_send>,
}

pub(super) enum Heard {
    Connected(Connection),
    Disconnected(Connection),
    Message(Connection, Vec<u8>),
    ConsumerUp(Connection, u32),
    ConsumerGone(Connection, u32),
}

impl Inbox {
    pub(super) fn new(library: &Library, sends: u32) -> Inbox {
        Inbox {
            library: library.clone(),
            heard: RefCell::default(),
            connections: RefCell::default(),
            sending: RefCell::new((0..sends).map(|_| None).collect()),
        }
    }

    /// What is known of a connection, which is noted if it is new.
    pub(super) fn connection(&self, at: NonNull<doca_comch_connection>) -> Connection {
        let mut all = self.connections.borrow_mut();
        if let Some(known) = all.iter().find(|known| known.inner.connection == at) {
            return known.clone();
        }
        let inner = Inner { connection: at, open: Cell::new(true), library: self.library.clone() };
        let new = Connection { inner: Rc::new(inner) };
        all.push(new.clone());
        new
    }

    /// The connection is over: another one may be where it was.
    pub(super) fn forget(&self, connection: &Connection) {
        connection.inner.open.set(false);
        self.connections.borrow_mut().retain(|known| known != connection);
    }

    pub(super) fn forget_all(&self) {
        self.connections.borrow_mut().drain(..).for_each(|connection| connection.inner.open.set(false));
    }
}
