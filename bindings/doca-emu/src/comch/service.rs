//! What clients and servers have in common: messages, and the connections that carry them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use doca_sys::{
    doca_comch_event_connection_status_changed_cb_t as StatusChanged,
    doca_comch_event_consumer_cb_t as ConsumerChanged, doca_comch_event_msg_recv_cb_t as Received, doca_error,
};
use rustix::time::{ClockId, Timespec, clock_gettime};
use zerocopy::IntoBytes;

use super::connection::{Connection, must_be_of};
use super::link::Link;
use super::ring::{self, Kind, Nonsense, Place, Reader, Writer};
use super::socket::{self, Hello, Listener, Welcome};
use super::{MAX_CLIENTS, MAX_MESSAGE, MAX_QUEUE};
use crate::call::{Result, broken};
use crate::context::{Context, End, Start, Turn};
use crate::device::{Representor, Side};
use crate::error::{AGAIN, ALREADY_EXIST, BAD_STATE, CONNECTION_RESET, IN_USE, INITIALIZATION, INVALID_VALUE, SUCCESS};
use crate::faults::{self, Fault};
use crate::handle::Handle;
use crate::memory::{Mapping, sealed_file};
use crate::settings::settings;
use crate::task::{Job, Task};

/// What a connection's memory holds: a ring for what the client writes, and one for what the server does.
const MEMORY: usize = 2 * ring::SIZE;

/// A client or a server.
pub(crate) struct Service {
    pub(super) role: Role,
    name: CString,
    max_message: Cell<u32>,
    queue: Cell<u32>,
    pub(super) received: Cell<Received>,
    pub(super) connected: Cell<StatusChanged>,
    pub(super) disconnected: Cell<StatusChanged>,
    pub(super) new_consumer: Cell<ConsumerChanged>,
    pub(super) expired_consumer: Cell<ConsumerChanged>,
    /// Messages whose tasks have not come back, oldest first.
    sent: RefCell<VecDeque<Sent>>,
    connections: RefCell<Vec<Handle<Connection>>>,
    /// Those that have ended, on which consumers or producers still are.
    ended: RefCell<Vec<Handle<Connection>>>,
    /// Whose turn it is.
    next: Cell<usize>,
    door: RefCell<Door>,
    /// When it last looked at sockets.
    looked: Cell<Timespec>,
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Role::Server(representor) = self.role {
            representor.users.fetch_sub(1, Ordering::Release);
        }
    }
}

pub(super) enum Role {
    Server(Handle<Representor>),
    Client,
}

/// Where the other side comes in.
enum Door {
    Shut,
    /// With those who have come and not yet said what they want.
    Open(Listener, Vec<OwnedFd>),
    /// A client's, before it has found the server.
    Looking,
    /// A client's, before the server has answered.
    Waiting(OwnedFd, Arc<Mapping>),
}

/// A message that was sent.
struct Sent {
    task: Handle<Task>,
    wait: u32,
    outcome: doca_error,
}

impl Service {
    pub(super) fn new(role: Role, name: CString) -> Service {
        Service {
            role,
            name,
            max_message: Cell::new(MAX_MESSAGE),
            queue: Cell::new(MAX_QUEUE),
            received: Cell::new(None),
            connected: Cell::new(None),
            disconnected: Cell::new(None),
            new_consumer: Cell::new(None),
            expired_consumer: Cell::new(None),
            sent: RefCell::new(VecDeque::new()),
            connections: RefCell::new(Vec::new()),
            ended: RefCell::new(Vec::new()),
            next: Cell::new(0),
            door: RefCell::new(Door::Shut),
            looked: Cell::new(Timespec { tv_sec: 0, tv_nsec: 0 }),
        }
    }

    /// # Errors
    /// `INVALID_VALUE` for none, or more than there may be.
    pub(super) fn set_max_message(&self, size: u32) -> Result {
        self.max_message.set(Some(size).filter(|size| (1..=MAX_MESSAGE).contains(size)).ok_or(INVALID_VALUE)?);
        Ok(())
    }

    /// # Errors
    /// `INVALID_VALUE` for none, or more than there may be.
    pub(super) fn set_queue(&self, size: u32) -> Result {
        self.queue.set(Some(size).filter(|size| (1..=MAX_QUEUE).contains(size)).ok_or(INVALID_VALUE)?);
        Ok(())
    }

    pub(super) fn reserve(&self, tasks: u32) {
        self.sent.borrow_mut().reserve(tasks as usize);
    }

    pub(crate) fn is_configured(&self) -> bool {
        let is_client = matches!(self.role, Role::Client);
        self.received.get().is_some() && (is_client || self.connected.get().is_some())
    }

    pub(crate) fn start(&self) -> Result<Start> {
        self.forget_ended();
        let Role::Server(_) = self.role else {
            self.door.replace(Door::Looking);
            return Ok(Start::Begun);
        };
        let bus = settings()?.ok_or(INITIALIZATION)?.bus.as_path();
        let listener = Listener::new(bus, Side::Host.pci_address(), &self.name).map_err(|error| match error {
            rustix::io::Errno::EXIST => ALREADY_EXIST,
            _ => INITIALIZATION,
        })?;
        self.door.replace(Door::Open(listener, Vec::new()));
        Ok(Start::Done)
    }

    pub(crate) fn turn(&self, context: Handle<Context>) -> Turn {
        if let Some((task, outcome)) = self.come_back() {
            Task::complete(task, outcome);
            return Turn::Handled;
        }
        match self.connections_turn() {
            Turn::Idle => {}
            turn => return turn,
        }
        if matches!(*self.door.borrow(), Door::Looking | Door::Waiting(..)) {
            return self.enter(context);
        }
        if self.is_time_to_look() {
            self.connections.borrow().iter().for_each(|connection| connection.look());
            self.forget_ended();
            return self.admit(context);
        }
        Turn::Idle
    }

    fn connections_turn(&self) -> Turn {
        let all = self.connections.borrow().len();
        for _ in 0..all {
            let connections = self.connections.borrow();
            let place = if self.next.get() < connections.len() { self.next.get() } else { 0 };
            self.next.set(place + 1);
            let Some(connection) = connections.get(place).copied() else { return Turn::Idle };
            drop(connections);
            match Connection::turn(connection, self) {
                Turn::Idle => {}
                Turn::Ended if matches!(self.role, Role::Client) => return Turn::Ended,
                Turn::Ended => {
                    self.part_from(connection);
                    return Turn::Handled;
                }
                turn => return turn,
            }
        }
        Turn::Idle
    }

    /// Ends a connection, which a server's program is told.
    fn part_from(&self, connection: Handle<Connection>) {
        connection.link.end();
        self.connections.borrow_mut().retain(|known| *known != connection);
        self.ended.borrow_mut().push(connection);
        if let Some(disconnected) = self.disconnected.get().filter(|_| matches!(self.role, Role::Server(_))) {
            let event = connection.context.as_ptr();
            // SAFETY: the program registered it, and the connection's handle is alive.
            unsafe { disconnected(event, connection.as_ptr(), 1) };
        }
        self.forget_ended();
    }

    /// Ends the handles of connections that nothing is on any more.
    fn forget_ended(&self) {
        self.ended.borrow_mut().retain(|connection| {
            let used = connection.paths.load(Ordering::Acquire) > 0;
            if !used {
                connection.end();
            }
            used
        });
    }

    /// # Errors
    /// `IN_USE` where consumers or producers were not destroyed.
    pub(super) fn may_be_destroyed(&self) -> Result {
        self.forget_ended();
        if self.ended.borrow().is_empty() { Ok(()) } else { Err(IN_USE) }
    }

    /// At most each millisecond, by a clock that costs next to nothing.
    fn is_time_to_look(&self) -> bool {
        let (now, last) = (clock_gettime(ClockId::MonotonicCoarse), self.looked.get());
        let is_time = now.tv_sec != last.tv_sec || now.tv_nsec - last.tv_nsec >= 1_000_000;
        if is_time {
            self.looked.set(now);
        }
        is_time
    }

    /// A client's next step towards its server.
    fn enter(&self, context: Handle<Context>) -> Turn {
        let door = self.door.replace(Door::Shut);
        let (socket, memory) = match door {
            Door::Looking => match self.knock() {
                Some((socket, memory)) => (socket, memory),
                None => return Turn::Ended,
            },
            Door::Waiting(socket, memory) => (socket, memory),
            Door::Shut | Door::Open(..) => return Turn::Idle,
        };
        match socket::receive::<Welcome>(&socket) {
            socket::Received::Nothing => {
                self.door.replace(Door::Waiting(socket, memory));
                Turn::Idle
            }
            socket::Received::Packet(welcome, None) if welcome.is_one() => {
                self.connect(context, socket, &memory, welcome.max_message, welcome.queue);
                Turn::Started
            }
            socket::Received::Packet(..) | socket::Received::End => Turn::Ended,
        }
    }

    /// Finds the server, if there is one.
    fn knock(&self) -> Option<(OwnedFd, Arc<Mapping>)> {
        let bus = settings().ok()??.bus.as_path();
        let socket = socket::dial(bus, Side::Host.pci_address(), &self.name).ok()?;
        let file = sealed_file("splitrpc-bluefield-connection", MEMORY).ok()?;
        let memory = Mapping::of(file.as_fd(), 0, MEMORY, true).ok()?;
        let hello = Hello::new(self.max_message.get(), self.queue.get(), &self.name);
        socket::send(&socket, hello.as_bytes(), Some(file.as_fd())).ok()?;
        Some((socket, Arc::new(memory)))
    }

    /// Lets a client in that has come, if one has.
    fn admit(&self, context: Handle<Context>) -> Turn {
        let mut door = self.door.borrow_mut();
        let Door::Open(listener, guests) = &mut *door else { return Turn::Idle };
        if guests.len() < MAX_CLIENTS as usize {
            guests.extend(listener.accept());
        }
        let mut admitted = None;
        for place in (0..guests.len()).rev() {
            let hello = match socket::receive::<Hello>(&guests[place]) {
                socket::Received::Nothing => continue,
                socket::Received::Packet(hello, Some(file)) if hello.is_for(&self.name) => Some((hello, file)),
                socket::Received::Packet(..) | socket::Received::End => None,
            };
            // Who is not let in is hung up on.
            let guest = guests.swap_remove(place);
            admitted = hello.map(|(hello, file)| (guest, hello, file));
            break;
        }
        drop(door);
        let Some((guest, hello, file)) = admitted else { return Turn::Idle };
        let full = self.connections.borrow().len() >= MAX_CLIENTS as usize;
        let Some(memory) = socket::map(&file, MEMORY).filter(|_| !full).map(Arc::new) else { return Turn::Idle };
        let welcome = Welcome::new(self.max_message.get(), self.queue.get());
        if socket::send(&guest, welcome.as_bytes(), None).is_err() {
            return Turn::Idle;
        }
        let connection = self.connect(context, guest, &memory, hello.max_message, hello.queue);
        if let Some(connected) = self.connected.get() {
            // SAFETY: the program registered it, and the connection is alive.
            unsafe { connected(context.as_ptr(), connection.as_ptr(), 1) };
        }
        Turn::Handled
    }

    fn connect(
        &self,
        context: Handle<Context>,
        socket: OwnedFd,
        memory: &Arc<Mapping>,
        max_message: u32,
        queue: u32,
    ) -> Handle<Connection> {
        let (first, second) = (Place { memory: memory.clone(), offset: 0 }, ring::SIZE);
        let second = Place { memory: memory.clone(), offset: second };
        let (out, back) = if matches!(self.role, Role::Client) { (first, second) } else { (second, first) };
        let link = Link::new(socket, Writer::new(out), self.max_message.get().min(max_message), queue);
        let connection = Connection::new(link, Reader::new(back), context);
        self.connections.borrow_mut().push(connection);
        connection
    }

    pub(super) fn receive(&self, connection: Handle<Connection>, bytes: *mut u8, len: u32) {
        if let Some(received) = self.received.get() {
            // SAFETY: the program registered it, the connection is alive, and so many bytes are there until the callback is over.
            unsafe { received(connection.context.as_ptr(), bytes, len, connection.as_ptr()) };
        }
        connection.poison(len);
    }

    pub(super) fn tell_of_consumer(&self, connection: Handle<Connection>, consumer: u32, is_new: bool) {
        let changed = if is_new { self.new_consumer.get() } else { self.expired_consumer.get() };
        if let Some(changed) = changed {
            // SAFETY: the program registered it, and the connection is alive.
            unsafe { changed(connection.context.as_ptr(), connection.as_ptr(), consumer) };
        }
    }

    /// A client's connection.
    pub(super) fn connection(&self) -> Result<Handle<Connection>> {
        self.connections.borrow().first().copied().ok_or(BAD_STATE)
    }

    /// # Errors
    /// `INVALID_VALUE` for no message, one that is too long, or another's connection.
    pub(super) fn message(
        &self,
        context: Handle<Context>,
        to: Handle<Connection>,
        bytes: *const u8,
        len: u32,
    ) -> Result<Handle<Task>> {
        must_be_of(to, context)?;
        if bytes.is_null() || len == 0 || len > self.max_message.get().min(to.link.max_message) {
            return Err(INVALID_VALUE);
        }
        Task::take(context, Job::Message { to, bytes, len })
    }

    pub(crate) fn submit(&self, task: Handle<Task>) -> Result {
        let Job::Message { to, bytes, len } = task.job.get() else { return Err(INVALID_VALUE) };
        if !to.is_alive() {
            broken("a message was sent by a connection that had ended");
        }
        if faults::strikes(Fault::Disconnect) {
            to.link.end();
        }
        let outcome = if to.link.is_down() {
            CONNECTION_RESET
        } else {
            // SAFETY: the program passed so many bytes, which stay until the task is done.
            let bytes = unsafe { std::slice::from_raw_parts(bytes, len as usize) };
            match to.link.is_full().and_then(|full| Ok(!full && to.link.send(Kind::Message, bytes)?)) {
                Ok(true) => SUCCESS,
                Ok(false) => return Err(AGAIN),
                Err(Nonsense) => {
                    to.link.end();
                    CONNECTION_RESET
                }
            }
        };
        self.sent.borrow_mut().push_back(Sent { task, wait: faults::delay(), outcome });
        Ok(())
    }

    /// The oldest message, if it need not wait.
    fn come_back(&self) -> Option<(Handle<Task>, doca_error)> {
        let mut sent = self.sent.borrow_mut();
        let oldest = sent.front_mut()?;
        if oldest.wait > 0 {
            oldest.wait -= 1;
            return None;
        }
        sent.pop_front().map(|sent| (sent.task, sent.outcome))
    }

    pub(crate) fn take_back(&self) -> Option<Handle<Task>> {
        self.sent.borrow_mut().pop_front().map(|sent| sent.task)
    }

    /// # Errors
    /// `IN_USE` while a consumer or producer on it is not idle; `AGAIN` when the other side has no room for a message.
    pub(super) fn disconnect(&self, connection: Handle<Connection>) -> Result {
        if connection.active.load(Ordering::Acquire) > 0 {
            return Err(IN_USE);
        }
        if !connection.link.is_down() && connection.link.is_full().unwrap_or(false) {
            return Err(AGAIN);
        }
        connection.link.end();
        Ok(())
    }

    /// Whether consumers or producers are not idle.
    pub(crate) fn has_active_paths(&self) -> bool {
        let active = |connections: &RefCell<Vec<Handle<Connection>>>| {
            connections.borrow().iter().any(|connection| connection.active.load(Ordering::Acquire) > 0)
        };
        active(&self.connections) || active(&self.ended)
    }

    /// Whether it has neither connections nor a server to wait for.
    pub(crate) fn is_alone(&self) -> bool {
        self.connections.borrow().is_empty() && !self.has_active_paths()
    }

    pub(crate) fn close(&self) {
        self.connections.borrow().iter().for_each(|connection| connection.link.end());
    }

    pub(crate) fn wind_up(&self) -> End {
        self.door.replace(Door::Shut);
        let last = self.connections.borrow().last().copied();
        if let Some(connection) = last {
            self.part_from(connection);
            return End::Handled;
        }
        if self.has_active_paths() { End::Waiting } else { End::Reached }
    }
}
