//! Both ends of a connection: the server, which is the card's, and the client, which is the host's.
#![expect(unsafe_code, reason = "calls of DOCA, and what it calls back")]

use std::cell::RefCell;
use std::ffi::CString;
use std::fmt;
use std::mem;
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};

use doca_sys::{
    doca_comch_client, doca_comch_connection, doca_comch_event_connection_status_changed, doca_comch_event_consumer,
    doca_comch_event_msg_recv, doca_comch_server, doca_comch_task_send, doca_data, doca_error_t,
};

use super::connection::{Connection, Heard, Inbox, Sending};
use crate::context::{Context, ContextState, ProgressEngine};
use crate::device::{Capabilities, Device, Representor, not_null, told};
use crate::error::{Code, Error, check};
use crate::library::Library;
use crate::task;

/// How an endpoint is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a message at most.
    pub message_bytes: u32,
    /// Messages that may wait to be received.
    pub receive_queue: u32,
    /// Messages that may be under way.
    pub sends: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { message_bytes: 4080, receive_queue: 64, sends: 64 }
    }
}

impl Options {
    /// As usual, or as much of that as a device can.
    #[must_use]
    pub fn within(can: &Capabilities) -> Options {
        let Options { message_bytes, receive_queue, sends } = Options::default();
        Options {
            message_bytes: message_bytes.min(can.message_bytes.max(1)),
            receive_queue: receive_queue.min(can.receive_queue.max(1)),
            sends: sends.min(can.send_tasks.max(1)),
        }
    }
}

/// What an endpoint has heard.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A client has come.
    Connected(Connection),
    /// The other side has left, or died.
    Disconnected(Connection),
    /// A message.
    Message(Connection, &'a [u8]),
    /// The other side has made a consumer of this number, to which can be sent.
    ConsumerUp(Connection, u32),
    /// The other side's consumer of this number is gone.
    ConsumerGone(Connection, u32),
}

thread_local! {
    /// Where what DOCA says of a server or client belongs. Events bring only those; they and all that hears of them are of one thread.
    static ENDPOINTS: RefCell<Vec<(usize, Weak<Inbox>)>> = const { RefCell::new(Vec::new()) };
}

/// The card's end.
pub struct Server {
    end: End<doca_comch_server>,
    _representor: Representor,
}

/// The host's end.
pub struct Client {
    end: End<doca_comch_client>,
}

/// What both have in common.
struct End<T> {
    context: Context,
    object: NonNull<T>,
    inbox: Rc<Inbox>,
    _device: Device,
}

impl Server {
    /// A server of this name, to which the host can connect from the device that the representor stands for.
    ///
    /// # Errors
    /// [`Code::NOT_SUPPORTED`] on the host, and others of DOCA.
    pub fn new(
        engine: &ProgressEngine,
        device: &Device,
        representor: &Representor,
        name: &str,
        options: Options,
    ) -> Result<Server, Error> {
        let (library, mut server) = (engine.library().clone(), ptr::null_mut());
        let name = named("doca_comch_server_create", name)?;
        // SAFETY: device and representor are open, the name ends with a zero, and what is written to lives through the call.
        let answer = unsafe {
            let create = library.doca().doca_comch_server_create;
            create(device.as_ptr(), representor.as_ptr(), name.as_ptr(), &raw mut server)
        };
        check("doca_comch_server_create", answer)?;
        let server = not_null("doca_comch_server_create", server)?;
        let inbox = enter(&library, server, options);
        let context = Server::begin(engine, server, &inbox, options).inspect_err(|_| leave_server(&library, server))?;
        let end = End { context, object: server, inbox, _device: device.clone() };
        Ok(Server { end, _representor: representor.clone() })
    }

    fn begin(
        engine: &ProgressEngine,
        server: NonNull<doca_comch_server>,
        inbox: &Rc<Inbox>,
        options: Options,
    ) -> Result<Context, Error> {
        let (doca, at) = (engine.library().doca(), server.as_ptr());
        let Options { message_bytes, receive_queue, sends } = options;
        // SAFETY: the server is there and not started, in all that follows, and the callbacks are of the types that are called.
        let answer = unsafe { (doca.doca_comch_server_set_max_msg_size)(at, message_bytes) };
        check("doca_comch_server_set_max_msg_size", answer)?;
        // SAFETY: as above.
        let answer = unsafe { (doca.doca_comch_server_set_recv_queue_size)(at, receive_queue) };
        check("doca_comch_server_set_recv_queue_size", answer)?;
        // SAFETY: as above.
        let answer = unsafe { (doca.doca_comch_server_task_send_set_conf)(at, Some(sent), Some(unsent), sends) };
        check("doca_comch_server_task_send_set_conf", answer)?;
        // SAFETY: as above.
        let answer =
            unsafe { (doca.doca_comch_server_event_msg_recv_register)(at, Some(received::<doca_comch_server>)) };
        check("doca_comch_server_event_msg_recv_register", answer)?;
        // SAFETY: as above.
        let answer = unsafe {
            let register = doca.doca_comch_server_event_connection_status_changed_register;
            register(at, Some(connected), Some(disconnected))
        };
        check("doca_comch_server_event_connection_status_changed_register", answer)?;
        // SAFETY: as above.
        let answer = unsafe {
            let (up, gone) =
                (Some(consumer_up::<doca_comch_server> as _), Some(consumer_gone::<doca_comch_server> as _));
            (doca.doca_comch_server_event_consumer_register)(at, up, gone)
        };
        check("doca_comch_server_event_consumer_register", answer)?;
        // SAFETY: as above.
        let context = unsafe { (doca.doca_comch_server_as_ctx)(at) };
        let context = Context::connect(engine, context, Rc::as_ptr(inbox).cast())?;
        context.start()?;
        Ok(context)
    }

    /// Deals with what was heard since the last time.
    pub fn notices(&mut self, of: impl FnMut(Notice<'_>)) {
        self.end.notices(of);
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`Code::AGAIN`] where too many are under way, [`Code::NOT_CONNECTED`] where nobody is there, and others of DOCA.
    pub fn send(&mut self, to: &Connection, message: &[u8]) -> Result<(), Error> {
        let make = self.end.inbox.library.doca().doca_comch_server_task_send_alloc_init;
        // SAFETY: the server and the connection are there, and the message stays where it is until it is sent.
        self.end.send(to, message, |to, message, len, task| unsafe {
            make(self.end.object.as_ptr(), to, message, len, task)
        })
    }

    /// Messages that are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.end.in_flight()
    }

    /// Ends a connection.
    ///
    /// # Errors
    /// [`Code::IN_USE`] while there are consumers or producers of it, and others of DOCA.
    pub fn disconnect(&mut self, connection: &Connection) -> Result<(), Error> {
        if !connection.is_open() {
            return Ok(());
        }
        let doca = self.end.inbox.library.doca();
        // SAFETY: the server is there, and so is the connection, of whose end nothing was heard.
        let answer = unsafe { (doca.doca_comch_server_disconnect)(self.end.object.as_ptr(), connection.as_ptr()) };
        check("doca_comch_server_disconnect", answer)
    }

    /// How far its context has come.
    #[must_use]
    pub fn state(&self) -> ContextState {
        self.end.context.state()
    }
}

impl Client {
    /// Begins to connect to the server of this name on the card. It has when [`Client::connection`] gives something, after some progress.
    ///
    /// # Errors
    /// [`Code::NOT_SUPPORTED`] on the card, and others of DOCA.
    pub fn new(engine: &ProgressEngine, device: &Device, name: &str, options: Options) -> Result<Client, Error> {
        let (library, mut client) = (engine.library().clone(), ptr::null_mut());
        let name = named("doca_comch_client_create", name)?;
        // SAFETY: the device is open, the name ends with a zero, and what is written to lives through the call.
        let answer =
            unsafe { (library.doca().doca_comch_client_create)(device.as_ptr(), name.as_ptr(), &raw mut client) };
        check("doca_comch_client_create", answer)?;
        let client = not_null("doca_comch_client_create", client)?;
        let inbox = enter(&library, client, options);
        let context = Client::begin(engine, client, &inbox, options).inspect_err(|_| leave_client(&library, client))?;
        Ok(Client { end: End { context, object: client, inbox, _device: device.clone() } })
    }

    fn begin(
        engine: &ProgressEngine,
        client: NonNull<doca_comch_client>,
        inbox: &Rc<Inbox>,
        options: Options,
    ) -> Result<Context, Error> {
        let (doca, at) = (engine.library().doca(), client.as_ptr());
        let Options { message_bytes, receive_queue, sends } = options;
        // SAFETY: the client is there and not started, in all that follows, and the callbacks are of the types that are called.
        let answer = unsafe { (doca.doca_comch_client_set_max_msg_size)(at, message_bytes) };
        check("doca_comch_client_set_max_msg_size", answer)?;
        // SAFETY: as above.
        let answer = unsafe { (doca.doca_comch_client_set_recv_queue_size)(at, receive_queue) };
        check("doca_comch_client_set_recv_queue_size", answer)?;
        // SAFETY: as above.
        let answer = unsafe { (doca.doca_comch_client_task_send_set_conf)(at, Some(sent), Some(unsent), sends) };
        check("doca_comch_client_task_send_set_conf", answer)?;
        // SAFETY: as above.
        let answer =
            unsafe { (doca.doca_comch_client_event_msg_recv_register)(at, Some(received::<doca_comch_client>)) };
        check("doca_comch_client_event_msg_recv_register", answer)?;
        // SAFETY: as above.
        let answer = unsafe {
            let (up, gone) =
                (Some(consumer_up::<doca_comch_client> as _), Some(consumer_gone::<doca_comch_client> as _));
            (doca.doca_comch_client_event_consumer_register)(at, up, gone)
        };
        check("doca_comch_client_event_consumer_register", answer)?;
        // SAFETY: as above.
        let context = unsafe { (doca.doca_comch_client_as_ctx)(at) };
        let context = Context::connect(engine, context, Rc::as_ptr(inbox).cast())?;
        context.start()?;
        Ok(context)
    }

    /// Whether there are notices.
    #[must_use]
    pub fn has_notices(&self) -> bool {
        !self.end.inbox.heard.borrow().is_empty()
    }

    /// The connection, once there is one and while there is.
    #[must_use]
    pub fn connection(&self) -> Option<Connection> {
        let inbox = &self.end.inbox;
        if self.state() != ContextState::Running {
            inbox.forget_all();
            return None;
        }
        if let Some(known) = inbox.connections.borrow().first() {
            return Some(known.clone());
        }
        let mut connection = ptr::null_mut();
        // SAFETY: the client is there, and what is written to lives through the call.
        let answer = unsafe {
            (inbox.library.doca().doca_comch_client_get_connection)(self.end.object.as_ptr(), &raw mut connection)
        };
        check("doca_comch_client_get_connection", answer).ok()?;
        Some(inbox.connection(NonNull::new(connection)?))
    }

    /// Deals with what was heard since the last time.
    pub fn notices(&mut self, of: impl FnMut(Notice<'_>)) {
        self.end.notices(of);
    }

    /// Sends a message.
    ///
    /// # Errors
    /// As for [`Server::send`].
    pub fn send(&mut self, to: &Connection, message: &[u8]) -> Result<(), Error> {
        // A client is not told of the end; its state shows it.
        if self.state() != ContextState::Running {
            self.end.inbox.forget_all();
        }
        let make = self.end.inbox.library.doca().doca_comch_client_task_send_alloc_init;
        // SAFETY: the client and the connection are there, and the message stays where it is until it is sent.
        self.end.send(to, message, |to, message, len, task| unsafe {
            make(self.end.object.as_ptr(), to, message, len, task)
        })
    }

    /// Messages that are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.end.in_flight()
    }

    /// How far its context has come: [`ContextState::Idle`] is that it could not connect, or that the connection has ended.
    #[must_use]
    pub fn state(&self) -> ContextState {
        self.end.context.state()
    }
}

impl<T> End<T> {
    fn notices(&mut self, mut of: impl FnMut(Notice<'_>)) {
        loop {
            // Not borrowed while the notice is dealt with.
            let next = self.inbox.heard.borrow_mut().pop_front();
            match next {
                None => break,
                Some(Heard::Connected(connection)) => of(Notice::Connected(connection)),
                Some(Heard::Disconnected(connection)) => of(Notice::Disconnected(connection)),
                Some(Heard::Message(connection, bytes)) => of(Notice::Message(connection, &bytes)),
                Some(Heard::ConsumerUp(connection, id)) => of(Notice::ConsumerUp(connection, id)),
                Some(Heard::ConsumerGone(connection, id)) => of(Notice::ConsumerGone(connection, id)),
            }
        }
    }

    fn send(
        &self,
        to: &Connection,
        message: &[u8],
        make: impl FnOnce(
            *mut doca_comch_connection,
            *const std::ffi::c_void,
            u32,
            *mut *mut doca_comch_task_send,
        ) -> doca_error_t,
    ) -> Result<(), Error> {
        const CALL: &str = "doca_comch_task_send_alloc_init";
        to.check(CALL)?;
        let mut sending = self.inbox.sending.borrow_mut();
        let full = Error::refused(CALL, Code::AGAIN, "as many messages are under way as there may be");
        let index = sending.iter().position(Option::is_none).ok_or(full)?;
        let message: Box<[u8]> = message.into();
        let mut task = ptr::null_mut();
        check(CALL, make(to.as_ptr(), message.as_ptr().cast(), message.len() as u32, &raw mut task))?;
        let task = not_null(CALL, task)?;
        sending[index] = Some(Sending { message, task });
        // What it calls back while it is submitted, if anything, finds its entry free to be borrowed.
        drop(sending);
        // SAFETY: it was just made.
        unsafe { task::set_number(&self.inbox.library, task, index as u64) };
        // SAFETY: as above; the message stays where it is.
        let answer = unsafe { task::submit(&self.inbox.library, task) };
        if answer.is_err() {
            self.inbox.sent(index as u64);
        }
        answer
    }

    fn in_flight(&self) -> usize {
        self.inbox.sending.borrow().iter().flatten().count()
    }

    /// Ends the context. Returns whether its object may go.
    fn end(&self) -> bool {
        let stopped = self.context.stop();
        self.inbox.forget_all();
        ENDPOINTS.with_borrow_mut(|all| all.retain(|(object, _)| *object != self.object.as_ptr() as usize));
        if !stopped {
            mem::forget((Rc::clone(&self.inbox), self.context.engine().clone(), self._device.clone()));
        }
        stopped
    }
}

impl Inbox {
    /// A message has left, or never will.
    fn sent(&self, index: u64) {
        let entry = self.sending.borrow_mut().get_mut(index as usize).and_then(Option::take);
        let Some(Sending { message, task }) = entry else { return };
        // SAFETY: the task is not under way, and nobody else has it.
        unsafe { task::give_back(&self.library, task) };
        drop(message);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.end.end() {
            leave_server(&self.end.inbox.library, self.end.object);
        } else {
            mem::forget(self._representor.clone());
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.end.end() {
            leave_client(&self.end.inbox.library, self.end.object);
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("state", &self.state()).finish_non_exhaustive()
    }
}

fn named(call: &'static str, name: &str) -> Result<CString, Error> {
    CString::new(name).map_err(|_| Error::refused(call, Code::INVALID_VALUE, "the name has a zero in it"))
}

/// An inbox for what is to be heard of a server or client.
fn enter<T>(library: &Library, object: NonNull<T>, options: Options) -> Rc<Inbox> {
    let inbox = Rc::new(Inbox::new(library, options.sends));
    ENDPOINTS.with_borrow_mut(|all| all.push((object.as_ptr() as usize, Rc::downgrade(&inbox))));
    inbox
}

fn leave_server(library: &Library, server: NonNull<doca_comch_server>) {
    // SAFETY: made once, given back once, and not started or stopped.
    told(check("doca_comch_server_destroy", unsafe { (library.doca().doca_comch_server_destroy)(server.as_ptr()) }));
}

fn leave_client(library: &Library, client: NonNull<doca_comch_client>) {
    // SAFETY: as above.
    told(check("doca_comch_client_destroy", unsafe { (library.doca().doca_comch_client_destroy)(client.as_ptr()) }));
}

/// How the owner of a connection is found.
trait Owner {
    /// # Safety
    /// The connection is there.
    unsafe fn of(doca: &doca_sys::Doca, connection: *const doca_comch_connection) -> usize;
}

impl Owner for doca_comch_server {
    unsafe fn of(doca: &doca_sys::Doca, connection: *const doca_comch_connection) -> usize {
        // SAFETY: the caller says so.
        unsafe { (doca.doca_comch_server_get_server_ctx)(connection) as usize }
    }
}

impl Owner for doca_comch_client {
    unsafe fn of(doca: &doca_sys::Doca, connection: *const doca_comch_connection) -> usize {
        // SAFETY: the caller says so.
        unsafe { (doca.doca_comch_client_get_client_ctx)(connection) as usize }
    }
}

/// Has whoever owns a connection hear of it.
///
/// # Safety
/// The connection is there, and an owner of this kind has it.
unsafe fn hear<O: Owner>(connection: *mut doca_comch_connection, what: impl FnOnce(&Inbox, Connection)) {
    let Some(at) = NonNull::new(connection) else { return };
    let inbox = ENDPOINTS.with_borrow(|all| {
        let any = all.iter().find_map(|(_, inbox)| inbox.upgrade())?;
        // SAFETY: the caller says so; all endpoints of a thread are of one library.
        let owner = unsafe { O::of(any.library.doca(), connection) };
        all.iter().find(|(object, _)| *object == owner).and_then(|(_, inbox)| inbox.upgrade())
    });
    if let Some(inbox) = inbox {
        let connection = inbox.connection(at);
        what(&inbox, connection);
    }
}

unsafe extern "C" fn received<O: Owner>(
    _: *mut doca_comch_event_msg_recv,
    message: *mut u8,
    len: u32,
    connection: *mut doca_comch_connection,
) {
    let bytes = match NonNull::new(message) {
        // SAFETY: DOCA gives so many bytes, which stay until this returns.
        Some(message) => unsafe { std::slice::from_raw_parts(message.as_ptr(), len as usize) },
        None => &[],
    };
    // SAFETY: it is of the connection that is given.
    unsafe {
        hear::<O>(connection, |inbox, from| inbox.heard.borrow_mut().push_back(Heard::Message(from, bytes.to_vec())));
    }
}

unsafe extern "C" fn connected(
    _: *mut doca_comch_event_connection_status_changed,
    connection: *mut doca_comch_connection,
    successful: u8,
) {
    if successful != 0 {
        // SAFETY: it is of the connection that is given, which only servers hear of.
        unsafe {
            hear::<doca_comch_server>(connection, |inbox, new| {
                inbox.heard.borrow_mut().push_back(Heard::Connected(new));
            });
        }
    }
}

unsafe extern "C" fn disconnected(
    _: *mut doca_comch_event_connection_status_changed,
    connection: *mut doca_comch_connection,
    _: u8,
) {
    // SAFETY: as above.
    unsafe {
        hear::<doca_comch_server>(connection, |inbox, old| {
            inbox.forget(&old);
            inbox.heard.borrow_mut().push_back(Heard::Disconnected(old));
        });
    }
}

unsafe extern "C" fn consumer_up<O: Owner>(
    _: *mut doca_comch_event_consumer,
    connection: *mut doca_comch_connection,
    id: u32,
) {
    // SAFETY: it is of the connection that is given.
    unsafe {
        hear::<O>(connection, |inbox, of| inbox.heard.borrow_mut().push_back(Heard::ConsumerUp(of, id)));
    }
}

unsafe extern "C" fn consumer_gone<O: Owner>(
    _: *mut doca_comch_event_consumer,
    connection: *mut doca_comch_connection,
    id: u32,
) {
    // SAFETY: it is of the connection that is given.
    unsafe {
        hear::<O>(connection, |inbox, of| inbox.heard.borrow_mut().push_back(Heard::ConsumerGone(of, id)));
    }
}

unsafe extern "C" fn sent(_: *mut doca_comch_task_send, data: doca_data, of: doca_data) {
    // SAFETY: DOCA gives back what it was given, and the endpoint holds it until its context has stopped.
    let inbox = unsafe { task::shared::<Inbox>(of) };
    inbox.sent(task::number(data));
}

unsafe extern "C" fn unsent(task: *mut doca_comch_task_send, data: doca_data, of: doca_data) {
    // SAFETY: as above.
    let inbox = unsafe { task::shared::<Inbox>(of) };
    // SAFETY: the task has just come back.
    let error = unsafe { task::failure(&inbox.library, task, "doca_comch_task_send") };
    // Of the other side's end those hear who wait for its messages.
    tracing::debug!(%error, "a message did not arrive");
    inbox.sent(task::number(data));
}
