//! A session over datagrams, polled by its owner.

mod batch;
mod calls;
mod drive;
mod inbox;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitrpc_engine::{Client, ClientConfig, ClientStats, RequestSpec, SentFrame, SubmitError, Time};
use splitrpc_socket::{UdpOptions, UdpSocket};
use splitrpc_wire::ManifestWriter;
use splitrpc_wire::hello::HelloAck;

use self::batch::Batch;
use self::calls::{Calls, id_of, key_of};
use self::inbox::{FLIGHT, Inbox, Storage};
use crate::request::{deadline_us, describe};
use crate::{Catalogue, ConnectOptions, Error, Event, Request, RequestId, Response, Wait};

/// Requests in flight at most; each has a record of a few kilobytes.
const MAX_IN_FLIGHT: u16 = 64;
/// The kernel's buffers that are asked for.
const SOCKET_BUFFER: usize = 4 << 20;
/// Pings that are remembered.
const MAX_PINGS: usize = 16;
/// How long a server may be silent at most.
const SILENCE_MOST: Duration = Duration::from_secs(5);

/// A session over datagrams: like [`crate::TcpConnection`], with the reliability made here.
///
/// A request's data must be at hand until it ends, to be sent again if need be: shared bytes are kept by reference, lent
/// ones are copied once into a buffer that is reused. [`UdpConnection::poll`] is to be called by
/// [`UdpConnection::next_timeout`] at the latest, not only when the descriptor is ready.
#[derive(Debug)]
pub struct UdpConnection {
    socket: UdpSocket,
    peer: SocketAddr,
    options: ConnectOptions,
    engine: Client<Storage>,
    /// Scratch: a request's manifest.
    manifest: ManifestWriter,
    calls: Calls,
    inbox: Inbox,
    /// Frames that go now.
    batch: Batch,
    /// A frame that did not fit those.
    next: Batch,
    events: VecDeque<Event>,
    pool: Vec<Response>,
    catalogue: Arc<Catalogue>,
    listing: Vec<u8>,
    first_listing: bool,
    ready: bool,
    pings: VecDeque<(u64, Instant)>,
    last_ping: u64,
    /// What the server said with the error frame that is being handled.
    words: Option<(String, Option<Duration>)>,
    started: Instant,
    /// The latest look at the clock; a few of these are a good part of a small exchange.
    looked: Instant,
    network_error: Option<io::Error>,
    /// How often the network has said that nothing listens there, since something came from there.
    refusals: u32,
    /// The server said goodbye.
    dismissed: bool,
    dead: Option<Error>,
    more: bool,
    /// Before then there is nothing to send, unless something comes or is asked for.
    quiet_until: Time,
    bytes_in_place: u64,
    bytes_copied: u64,
}

impl UdpConnection {
    /// Opens a session, and blocks until it is ready.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::TimedOut`], [`Error::Refused`].
    pub fn connect(addr: SocketAddr, options: ConnectOptions) -> Result<UdpConnection, Error> {
        let mut connection = UdpConnection::start(addr, options)?;
        let needs = |c: &UdpConnection| (c.wants_write(), c.next_timeout());
        crate::wait::until_ready(&mut connection, Wait::Block, UdpConnection::poll, needs)?;
        Ok(connection)
    }

    /// Begins to open a session. [`Event::Ready`] tells when requests may be submitted.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where the system refuses at once.
    pub fn start(addr: SocketAddr, options: ConnectOptions) -> Result<UdpConnection, Error> {
        let unreachable = |kind, reason: String| Error::Unreachable { peer: addr, kind, reason };
        let failed = |e: io::Error| unreachable(e.kind(), e.to_string());
        let any: SocketAddr = match addr {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let udp = UdpOptions {
            recv_buffer: Some(options.recv_buffer.unwrap_or(SOCKET_BUFFER)),
            send_buffer: Some(options.send_buffer.unwrap_or(SOCKET_BUFFER)),
            ..UdpOptions::default()
        };
        let mut socket = UdpSocket::bind(any, &udp).map_err(failed)?;
        socket.connect(addr).map_err(failed)?;
        let (granted, _) = socket.buffers().map_err(failed)?;
        let config = ClientConfig {
            datagram: options.datagram,
            max_response: options.max_response,
            // The kernel counts its own overhead too, so about half of its buffer is data.
            receive_window: (granted as u64 / 2).clamp(64 << 10, SOCKET_BUFFER as u64),
            silence_limit: SILENCE_MOST.min(options.silence).as_nanos() as u64,
        };
        let slots = usize::from(options.max_in_flight.clamp(1, MAX_IN_FLIGHT));
        let storage = Storage {
            slots: (0..slots).map(|_| Default::default()).collect(),
            flight: vec![SentFrame::default(); FLIGHT].into(),
        };
        let random =
            || getrandom::u64().map_err(|e| unreachable(io::ErrorKind::Other, format!("no random numbers: {e}")));
        let engine = Client::new(Time::default(), &config, storage, random()?)
            .map_err(|e| unreachable(io::ErrorKind::InvalidInput, e.to_string()))?;
        let started = Instant::now();
        Ok(UdpConnection {
            socket,
            peer: addr,
            options,
            engine,
            manifest: ManifestWriter::new(),
            calls: Calls::new(slots),
            inbox: Inbox::new(),
            batch: Batch::new(),
            next: Batch::new(),
            events: VecDeque::with_capacity(8),
            pool: Vec::new(),
            catalogue: Arc::default(),
            listing: Vec::new(),
            first_listing: true,
            ready: false,
            pings: VecDeque::new(),
            last_ping: 0,
            words: None,
            started,
            looked: started,
            network_error: None,
            refusals: 0,
            dismissed: false,
            dead: None,
            more: false,
            quiet_until: Time::default(),
            bytes_in_place: 0,
            bytes_copied: 0,
        })
    }

    /// Submits a request; its first frames leave at once.
    ///
    /// # Errors
    /// Nothing was submitted: [`Error::NotReady`], [`Error::TooManyInFlight`], [`Error::TooLarge`],
    /// [`Error::BadInput`], or the connection's own error.
    pub fn submit(&mut self, request: &Request<'_>) -> Result<RequestId, Error> {
        self.check_ready()?;
        describe(request.tensors, &mut self.manifest)?;
        let now = self.now();
        let spec = RequestSpec {
            model: request.model,
            manifest: self.manifest.manifest(),
            priority: request.priority,
            deadline_us: deadline_us(request.deadline),
            repeatable: request.repeatable,
        };
        let bytes = spec.manifest.as_bytes().len() as u64 + u64::from(spec.manifest.data_len());
        let key = self.engine.submit(now, &spec).map_err(|e| match e {
            SubmitError::Full => Error::TooManyInFlight { limit: self.max_in_flight() },
            SubmitError::NotConnected => Error::NotReady,
            SubmitError::TooLarge => Error::TooLarge { bytes, limit: self.limits().map_or(0, |l| l.max_request) },
        })?;
        self.calls.start(key, request.model, self.looked, request.tensors);
        self.transmit(now);
        Ok(id_of(key))
    }

    /// What has happened, one event at a time; `None` when nothing has. Poll until `None` before waiting.
    ///
    /// # Errors
    /// The session is over, and with it every request in flight. The same error comes again.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        if self.events.is_empty()
            && self.dead.is_none()
            && let Err(e) = self.drive()
        {
            self.dead = Some(e);
        }
        match (self.events.pop_front(), &self.dead) {
            (Some(event), _) => Ok(Some(event)),
            (None, Some(e)) => Err(e.clone()),
            (None, None) => Ok(None),
        }
    }

    /// Gives up on a request and tells the server. Returns whether the request was in flight.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let Some(key) = key_of(id).filter(|&key| self.calls.get(key).is_some()) else { return false };
        let now = self.now();
        self.engine.cancel(key);
        if let Some(partial) = self.calls.end(key) {
            self.recycle(partial);
        }
        self.transmit(now);
        true
    }

    /// Asks the server for a sign of life; [`Event::Pong`] is the answer, unless one of the two is lost on the way.
    ///
    /// # Errors
    /// [`Error::NotReady`], or the connection's own error.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.check_ready()?;
        if self.pings.len() == MAX_PINGS {
            self.pings.pop_front();
        }
        self.last_ping += 1;
        self.pings.push_back((self.last_ping, Instant::now()));
        self.engine.ping(self.last_ping);
        let now = self.now();
        self.transmit(now);
        Ok(())
    }

    pub(crate) fn forget_pings(&mut self) {
        self.pings.clear();
    }

    /// Acknowledges at once what has come. Who will not poll by [`UdpConnection::next_timeout`] calls it before: else the
    /// server sends answers again, and takes the pause for the path's.
    pub fn acknowledge(&mut self) {
        if self.dead.is_none() {
            let now = self.now();
            self.engine.acknowledge(now);
            self.transmit(now);
        }
    }

    /// Fetches the model catalogue again; [`Event::Catalogue`] tells when it is there.
    ///
    /// # Errors
    /// [`Error::NotReady`], or the connection's own error.
    pub fn refresh_catalogue(&mut self) -> Result<(), Error> {
        self.check_ready()?;
        self.listing.clear();
        let now = self.now();
        self.engine.list(now, 0);
        self.transmit(now);
        Ok(())
    }

    /// Gives a response's memory back for later ones.
    pub fn recycle(&mut self, response: Response) {
        if self.pool.len() < self.max_in_flight() {
            self.pool.push(response);
        }
    }

    /// Whether requests may be submitted.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready && self.dead.is_none()
    }

    /// Requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.engine.open_requests() as usize
    }

    /// The ids of the requests without an answer, in no order.
    pub fn in_flight_ids(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.calls.keys().map(id_of)
    }

    /// Most requests that may be in flight.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        let own = self.options.max_in_flight.clamp(1, MAX_IN_FLIGHT);
        self.limits().map_or(own, |l| l.max_requests.min(own)).into()
    }

    /// Whether datagrams wait for the socket to become writable.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Whether the last poll stopped to let its caller work, with more to be read.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.more || !self.events.is_empty()
    }

    /// When to poll at the latest, even if the descriptor is not ready.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let engine = self.engine.next_timeout();
        let engine = (engine != Time::NEVER).then(|| self.started + Duration::from_nanos(engine.nanos()));
        let setup = (!self.ready).then(|| self.started + self.options.timeout);
        [engine, setup].into_iter().flatten().min()
    }

    /// The models that the server serves; empty where none were fetched.
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// The server's limits, once connected.
    #[must_use]
    pub fn limits(&self) -> Option<&HelloAck> {
        self.engine.server()
    }

    /// The server's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Frames sent, received, lost and dropped.
    #[must_use]
    pub fn stats(&self) -> &ClientStats {
        self.engine.stats()
    }

    /// Response bytes that the kernel put straight into their response, and those that were copied there from the side.
    #[must_use]
    pub fn landed(&self) -> (u64, u64) {
        (self.bytes_in_place, self.bytes_copied)
    }

    fn check_ready(&self) -> Result<(), Error> {
        match &self.dead {
            Some(e) => Err(e.clone()),
            None if !self.ready => Err(Error::NotReady),
            None => Ok(()),
        }
    }

    fn now(&mut self) -> Time {
        self.looked = Instant::now();
        Time::from_nanos((self.looked - self.started).as_nanos() as u64)
    }

    fn limits_datagram(&self) -> u16 {
        self.engine.server().map_or(self.options.datagram, |l| l.datagram.min(self.options.datagram))
    }
}

impl AsFd for UdpConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpConnection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for UdpConnection {
    fn drop(&mut self) {
        if self.dead.is_none() {
            self.engine.close();
            let now = self.now();
            self.transmit(now);
        }
    }
}
