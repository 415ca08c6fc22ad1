//! A session over TCP, polled by its owner.

mod inbox;
mod outbox;
mod session;
mod silence;
mod submit;

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use splitrpc_socket::unacknowledged;
use splitrpc_wire::hello::HelloAck;
use splitrpc_wire::{Header, Kind, ManifestWriter, Status};

use self::inbox::{Inbox, Incoming};
use self::outbox::{Outbox, send};
use self::session::{Session, State};
use self::silence::{Due, Silence};
use crate::flight::Flights;
use crate::{Catalogue, ConnectOptions, Error, Event, RequestId, Response, Wait};

/// System calls that one poll makes before it lets its caller do something else.
const POLL_BUDGET: usize = 64;
/// A connection whose peer has not answered the kernel for this long is dead.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A session over TCP. It has no thread and never blocks (but for [`TcpConnection::connect`]): its owner calls
/// [`TcpConnection::poll`], in a loop or when the file descriptor is ready, and may own thousands.
///
/// After a first few requests, submitting and polling requests of like shape allocates nothing.
#[derive(Debug)]
pub struct TcpConnection {
    stream: TcpStream,
    session: Session,
    inbox: Inbox,
    outbox: Outbox,
    flights: Flights,
    /// Header and manifest of the request being submitted.
    head: Vec<u8>,
    /// Scratch: its manifest.
    manifest: ManifestWriter,
    setup_until: Instant,
    silence: Silence,
    /// Bytes that the kernel has taken.
    written: u64,
    write_error: Option<io::Error>,
    /// A frame has left in part, and its rest is not in the outbox: nothing of the outbox may leave before it.
    torn: bool,
    dead: Option<Error>,
    more: bool,
}

impl TcpConnection {
    /// Connects, and blocks until the session is ready.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::TimedOut`], [`Error::Refused`], [`Error::Protocol`].
    pub fn connect(addr: SocketAddr, options: ConnectOptions) -> Result<TcpConnection, Error> {
        let mut connection = TcpConnection::start(addr, options)?;
        let needs = |c: &TcpConnection| (c.wants_write(), c.next_timeout());
        crate::wait::until_ready(&mut connection, Wait::Block, TcpConnection::poll, needs)?;
        Ok(connection)
    }

    /// Begins to connect. [`Event::Ready`] tells when requests may be submitted.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where the system refuses at once.
    pub fn start(addr: SocketAddr, options: ConnectOptions) -> Result<TcpConnection, Error> {
        let unreachable = |e: io::Error| Error::Unreachable { peer: addr, kind: e.kind(), reason: e.to_string() };
        let stream = begin_connect(addr, &options).map_err(unreachable)?;
        let mut outbox = Outbox::default();
        let setup_until = Instant::now() + options.timeout;
        let inbox = Inbox::new(options.max_response);
        let session = Session::new(addr, options)?;
        session.hello(&mut outbox);
        Ok(TcpConnection {
            stream,
            session,
            inbox,
            outbox,
            flights: Flights::new(0),
            head: Vec::new(),
            manifest: ManifestWriter::new(),
            setup_until,
            silence: Silence::default(),
            written: 0,
            write_error: None,
            torn: false,
            dead: None,
            more: false,
        })
    }

    /// What has happened, one event at a time; `None` when nothing has. Poll until `None` before waiting on the file
    /// descriptor.
    ///
    /// # Errors
    /// The session is over, and with it every request in flight ([`TcpConnection::in_flight_ids`]). The same error
    /// comes again.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        if let Some(event) = self.session.events.pop_front() {
            return Ok(Some(event));
        }
        if let Some(e) = &self.dead {
            return Err(e.clone());
        }
        if let Err(e) = self.drive() {
            self.die(e.clone());
            // What came before the end is told before it.
            return self.session.events.pop_front().map(Some).ok_or(e);
        }
        Ok(self.session.events.pop_front())
    }

    /// Gives up on a request: its answer, should it come, is dropped, and the server is told. Returns whether the
    /// request was in flight.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let Some(flight) = self.flights.remove(id.0) else { return false };
        if let Some(partial) = flight.partial {
            self.recycle(partial);
        }
        if self.dead.is_none() {
            self.session.cancel(&mut self.outbox, id.0);
            self.flush();
        }
        true
    }

    /// Asks the server for a sign of life; [`Event::Pong`] is the answer.
    ///
    /// # Errors
    /// [`Error::TooManyInFlight`] with too many pings under way, [`Error::NotReady`].
    pub fn ping(&mut self) -> Result<(), Error> {
        self.check_ready()?;
        self.session.ping(&mut self.outbox)?;
        self.flush();
        Ok(())
    }

    /// Fetches the model catalogue again; [`Event::Catalogue`] tells when it is there.
    ///
    /// # Errors
    /// [`Error::NotReady`].
    pub fn refresh_catalogue(&mut self) -> Result<(), Error> {
        self.check_ready()?;
        self.session.fetch_catalogue(&mut self.outbox);
        self.flush();
        Ok(())
    }

    /// Gives a response's memory back for later ones.
    pub fn recycle(&mut self, response: Response) {
        self.inbox.recycle(response, self.flights.limit().max(1));
    }

    /// Whether requests may be submitted.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.session.state == State::Ready && self.dead.is_none()
    }

    /// Requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// The ids of the requests without an answer, in no order.
    pub fn in_flight_ids(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.flights.ids().map(RequestId)
    }

    /// Most requests that may be in flight.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.flights.limit()
    }

    /// How many more requests the server said it would take, when it last said so.
    #[must_use]
    pub fn credit(&self) -> u16 {
        self.session.credit
    }

    /// Whether bytes wait for the socket to become writable.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Bytes that wait for the socket.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.outbox.unsent()
    }

    /// Whether the last poll stopped to let its caller work, with more to be read. Matters to edge-triggered pollers.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.more || !self.session.events.is_empty()
    }

    /// When to poll at the latest, even if the file descriptor is not ready.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let setup = (self.session.state != State::Ready).then_some(self.setup_until);
        let silence = if self.flights.len() == 0 { None } else { self.silence.next(self.session.options.silence) };
        [setup, self.flights.nearest_deadline(), silence].into_iter().flatten().min()
    }

    /// The models that the server serves; empty where none were fetched.
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.session.catalogue
    }

    /// The server's limits, once the session is ready.
    #[must_use]
    pub fn limits(&self) -> Option<&HelloAck> {
        self.session.limits.as_ref()
    }

    /// The server's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.session.peer
    }

    /// Responses that came after their request had been given up.
    #[must_use]
    pub fn late_responses(&self) -> u64 {
        self.inbox.late()
    }

    fn check_ready(&self) -> Result<(), Error> {
        match &self.dead {
            Some(e) => Err(e.clone()),
            None if self.session.state != State::Ready => Err(Error::NotReady),
            None => Ok(()),
        }
    }

    fn flush(&mut self) {
        if self.write_error.is_some() || self.torn {
            return;
        }
        let before = self.outbox.unsent();
        if let Err(e) = self.outbox.flush(&self.stream) {
            self.write_error = Some(e);
        }
        self.written += (before - self.outbox.unsent()) as u64;
    }

    /// Writes and reads until there is an event, or nothing more to do.
    fn drive(&mut self) -> Result<(), Error> {
        self.flush();
        self.expire()?;
        self.more = false;
        for _ in 0..POLL_BUDGET {
            if self.take_in()? {
                return Ok(());
            }
            match self.inbox.receive(&self.stream, &mut self.flights) {
                Ok(_) => self.silence.broken(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return match self.write_error.take() {
                        Some(e) => Err(self.ended(&e)),
                        None => self.mind_silence(),
                    };
                }
                Err(e) => {
                    let first = self.write_error.take().filter(|w| w.kind() != io::ErrorKind::BrokenPipe);
                    return Err(self.ended(&first.unwrap_or(e)));
                }
            }
        }
        // Nothing that has been read may be left lying: the socket will not become readable for it again.
        self.take_in()?;
        self.more = true;
        Ok(())
    }

    /// Makes an event of what has been read. Returns whether there is a new one.
    fn take_in(&mut self) -> Result<bool, Error> {
        let before = self.session.events.len();
        while self.session.events.len() == before {
            let Some(incoming) = self.inbox.next(&mut self.flights)? else { return Ok(false) };
            match incoming {
                Incoming::Done(response) => self.session.events.push_back(Event::Response(response)),
                Incoming::Control(header, payload) => {
                    self.session.control(&header, payload, &mut self.outbox, &mut self.flights)?;
                    self.flush();
                }
                Incoming::TooLarge { id, bytes } => {
                    let limit = self.session.options.max_response;
                    let text = format!("the response has {bytes} bytes, this client takes {limit}");
                    self.session.fail(id, Status::TooLarge, text);
                }
            }
        }
        Ok(true)
    }

    fn expire(&mut self) -> Result<(), Error> {
        let Some(next) = self.next_timeout() else { return Ok(()) };
        let now = Instant::now();
        if now < next {
            return Ok(());
        }
        if self.session.state != State::Ready && now >= self.setup_until {
            let waiting_for =
                if self.session.state == State::Hello { "answer to the hello" } else { "model catalogue" };
            return Err(Error::TimedOut { waiting_for, after: self.session.options.timeout, hint: "" });
        }
        while let Some(id) = self.flights.expired(now) {
            self.cancel(RequestId(id));
            self.session.fail(id, Status::DeadlineExceeded, "no answer in time, says the client's own clock".into());
        }
        Ok(())
    }

    /// A server that holds its end of the stream open, and does nothing more, must not keep its clients for ever.
    fn mind_silence(&mut self) -> Result<(), Error> {
        if self.flights.len() == 0 {
            self.silence.broken();
            return Ok(());
        }
        let limit = self.session.options.silence;
        let arrived = || {
            let under_way = unacknowledged(&self.stream).unwrap_or_default() as u64;
            let more = self.torn || !self.outbox.is_empty() || under_way > 0;
            more.then_some(self.written.saturating_sub(under_way))
        };
        match self.silence.due(Instant::now(), limit, arrived) {
            Due::Nothing => {}
            Due::Ask => {
                self.session.ask_for_life(&mut self.outbox);
                self.flush();
            }
            Due::GiveUp => return Err(self.session.lost("the server is silent", &self.flights)),
        }
        Ok(())
    }

    fn ended(&self, e: &io::Error) -> Error {
        if self.session.limits.is_none() && e.kind() != io::ErrorKind::UnexpectedEof {
            return Error::Unreachable { peer: self.session.peer, kind: e.kind(), reason: e.to_string() };
        }
        self.session.lost(e.to_string(), &self.flights)
    }

    fn die(&mut self, e: Error) {
        self.dead = Some(e);
        self.torn = false;
        self.outbox.clear();
    }
}

impl AsFd for TcpConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for TcpConnection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        // In the middle of a frame a goodbye would be taken for its payload; the end of the stream says it too.
        if self.is_ready() && self.outbox.is_empty() {
            let goodbye = Header { session: self.session.id, ..Header::new(Kind::Goodbye) };
            let _ = send(&self.stream, &[IoSlice::new(&goodbye.to_bytes())]);
        }
    }
}

fn begin_connect(addr: SocketAddr, options: &ConnectOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4))?;
    socket.set_tcp_user_timeout(Some(KEEPALIVE * 2))?;
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.recv_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    match socket.connect(&addr.into()) {
        Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(e),
        _ => Ok(socket.into()),
    }
}
