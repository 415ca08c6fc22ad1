//! The TCP port: the kernel copies tensor data straight into its slots, once.

mod connection;
mod foreseen;
mod hot;
mod out;
mod read;

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use splitrpc_arena::{Arena, IoVecSend};
use splitrpc_engine::{Time, Transmit};
use splitrpc_ring::RequestKey;
use splitrpc_socket::{Event, Interest, ListenOptions, Poller, TcpListener, TcpStream};
use splitrpc_wire::{Header, Kind};

use self::connection::Connection;
use self::hot::Hot;
use self::out::{OutPool, Written};
use self::read::{Context, Reader, Turn};
use crate::arrivals::{Arrival, Arrivals};
use crate::storage::{BuiltEngine, Engine};

/// The poller's name for the listener; connections go by their number.
pub(crate) const LISTENER: u64 = u64::MAX;
/// Connections taken in one go.
const ACCEPTS: usize = 64;
/// Bytes of a hello, with room for what a later version may add.
const HELLO_ROOM: usize = 512;
/// Control frames that may wait for a connection besides the answers to its requests.
const CONTROL_WAITING: u32 = 64;
/// How often connections that have stalled are looked for.
const SWEEP: u64 = 1_000_000_000;
/// How long no connection is taken when the process is out of descriptors.
const ACCEPT_PAUSE: u64 = 100_000_000;

/// How the port is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpPortConfig {
    /// Several data threads listen on the same address.
    pub reuse_port: bool,
    /// Bytes of each connection's receive buffer in the kernel; `None` leaves its automatic growth.
    pub recv_buffer: Option<usize>,
    /// Bytes of each connection's send buffer in the kernel; `None` leaves its automatic growth.
    pub send_buffer: Option<usize>,
}

/// What the port counted since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpStats {
    /// Connections taken.
    pub accepted: u64,
    /// Connections refused because there were as many as there may be.
    pub refused: u64,
    /// Connections closed, by either side.
    pub closed: u64,
    /// Connections closed because they took or sent nothing for too long.
    pub stalled: u64,
    /// Connections closed because more waited to be written than may.
    pub overrun: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Requests that lay in their slots after one system call, head and all.
    pub foreseen: u64,
    /// Requests for which that was tried in vain, so that their bytes had to be moved.
    pub misjudged: u64,
    /// Connections open now.
    pub open: u32,
}

/// The TCP port of one data thread.
#[derive(Debug)]
pub struct TcpPort {
    listener: TcpListener,
    connections: Vec<Option<Box<Connection>>>,
    /// Numbers that no connection has, the next one last.
    free: Vec<u32>,
    reader: Reader,
    arrivals: Arrivals,
    out: OutPool,
    hot: Hot,
    /// Connections of which bytes have been read that the engine had no room for; the poller does not tell of those.
    unread: Vec<u32>,
    /// Most frames that may wait for one connection before it is no longer read.
    waiting: u32,
    grace: u64,
    next_sweep: Time,
    /// When to take connections again, after the process had run out of descriptors.
    accept_again: Option<Time>,
    stats: TcpStats,
}

/// What became of a frame handed to the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handed {
    /// All of it is with the kernel.
    Sent,
    /// The port has it, or there is no such connection any more.
    Kept,
    /// Its connection broke and has to be closed.
    Broken,
}

impl TcpPort {
    /// Listens on `address` on behalf of an engine; port 0 lets the kernel choose. All buffers are allocated now.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn bind(address: SocketAddr, config: &TcpPortConfig, engine: &BuiltEngine<'_>) -> io::Result<TcpPort> {
        let TcpPortConfig { reuse_port, recv_buffer, send_buffer } = *config;
        let options = ListenOptions { reuse_port, recv_buffer, send_buffer, ..ListenOptions::default() };
        let streams = engine.config.stream_sessions;
        let waiting = u32::from(engine.config.requests_per_client) + CONTROL_WAITING;
        Ok(TcpPort {
            listener: TcpListener::bind(address, &options)?,
            connections: (0..streams).map(|_| None).collect(),
            free: (0..streams).rev().collect(),
            reader: Reader::new(streams as usize),
            arrivals: Arrivals::new(u32::MAX),
            out: OutPool::new(engine.config.requests.saturating_add(8 * CONTROL_WAITING), Arc::clone(&engine.catalog)),
            hot: Hot::default(),
            unread: Vec::new(),
            waiting,
            grace: engine.config.progress_grace,
            next_sweep: Time::NEVER,
            accept_again: None,
            stats: TcpStats::default(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> TcpStats {
        TcpStats {
            bytes_in: self.reader.bytes,
            bytes_out: self.out.bytes,
            foreseen: self.reader.foreseen,
            misjudged: self.reader.misjudged,
            open: (self.connections.len() - self.free.len()) as u32,
            ..self.stats
        }
    }

    /// Notes arrivals of payloads of so many bytes at least.
    pub(crate) fn note_arrivals(&mut self, least: u32) {
        self.arrivals = Arrivals::new(least);
    }

    /// Hands over what has arrived of requests that were not complete then.
    pub(crate) fn take_arrivals(&mut self, told: impl FnMut(&Arrival)) {
        self.arrivals.take(told);
    }

    pub(crate) fn register(&self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.listener, LISTENER, Interest::READ)
    }

    /// Called once a poll. Returns how many connections [`TcpPort::poll_hot`] will try.
    pub(crate) fn tick(&mut self) -> u32 {
        self.hot.tick()
    }

    /// Whether [`TcpPort::poll_hot`] tries this connection.
    pub(crate) fn is_hot(&self, id: u32) -> bool {
        self.hot.contains(id)
    }

    /// Takes new connections. Not called while frames for closed connections may still be under way in the engine, since
    /// their numbers are used again.
    pub(crate) fn accept(&mut self, now: Time, poller: &Poller, engine: &mut Engine<'_>) {
        for _ in 0..ACCEPTS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::warn!(%error, "no connection can be accepted; trying again shortly");
                        self.accept_again = Some(now + ACCEPT_PAUSE);
                        let _ = poller.modify(&self.listener, LISTENER, Interest::NONE);
                    }
                    return;
                }
            };
            let Some(id) = self.free.pop() else {
                self.stats.refused += 1;
                refuse(&stream, &engine.refuse_stream());
                continue;
            };
            // Whether a silent peer lives is left to the kernel to find out.
            if keep_alive(&stream).is_err() || poller.add(&stream, u64::from(id), Interest::READ).is_err() {
                self.free.push(id);
                continue;
            }
            self.stats.accepted += 1;
            self.connections[id as usize] = Some(Box::new(Connection::new(stream, id)));
            self.next_sweep = self.next_sweep.min(now + SWEEP);
            engine.stream_opened(now, id);
            self.hot.touched(id);
        }
    }

    /// Deals with what the poller said of a connection. Returns whether anything moved.
    pub(crate) fn on_event(
        &mut self,
        now: Time,
        poller: &Poller,
        engine: &mut Engine<'_>,
        arena: &Arena,
        event: &Event,
    ) -> bool {
        let id = event.token as u32;
        let mut moved = false;
        if event.writable {
            moved |= self.write_kept(now, poller, engine, arena, id);
        }
        if event.readable {
            moved |= self.read(now, poller, engine, arena, id);
        }
        moved
    }

    /// Tries the connections that were active most recently. Returns whether anything moved.
    pub(crate) fn poll_hot(&mut self, now: Time, poller: &Poller, engine: &mut Engine<'_>, arena: &Arena) -> bool {
        let mut moved = false;
        for id in self.hot.to_try() {
            moved |= self.read(now, poller, engine, arena, id);
        }
        moved
    }

    /// Whether [`TcpPort::resume`] has something to do, so that nobody may fall asleep before.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread.iter().any(|id| self.connections[*id as usize].as_ref().is_some_and(|c| !c.paused))
    }

    /// Goes on with bytes that the engine had no room for. Returns whether anything moved.
    pub(crate) fn resume(&mut self, now: Time, poller: &Poller, engine: &mut Engine<'_>, arena: &Arena) -> bool {
        let mut moved = false;
        for at in 0..self.unread.len() {
            moved |= self.read(now, poller, engine, arena, self.unread[at]);
        }
        let connections = &self.connections;
        self.unread.retain(|id| connections[*id as usize].as_ref().is_some_and(|c| !c.unread.is_empty()));
        moved
    }

    fn read(&mut self, now: Time, poller: &Poller, engine: &mut Engine<'_>, arena: &Arena, id: u32) -> bool {
        let Some(connection) = self.connections.get_mut(id as usize).and_then(Option::as_deref_mut) else {
            return false;
        };
        if connection.paused {
            return false;
        }
        if connection.parted.is_some() {
            if self.reader.ignore(connection) == Turn::Over {
                self.close(poller, engine, id);
            }
            return false;
        }
        let arrivals = &mut self.arrivals;
        let turn = self.reader.turn(&mut Context { now, engine, arena, arrivals }, connection);
        if !connection.unread.is_empty() && !self.unread.contains(&id) {
            self.unread.push(id);
        }
        match turn {
            Turn::Quiet => self.hot.missed(id),
            Turn::Moved => self.hot.touched(id),
            Turn::Over => self.close(poller, engine, id),
        }
        turn != Turn::Quiet
    }

    /// Takes a frame from the engine for a connection.
    pub(crate) fn transmit(
        &mut self,
        now: Time,
        poller: &Poller,
        arena: &Arena,
        id: u32,
        frame: &Transmit<'_>,
    ) -> Handed {
        let Some(connection) = self.connections.get_mut(id as usize).and_then(Option::as_deref_mut) else {
            return Handed::Kept;
        };
        if is_last(&frame.header) {
            // Were its bytes left unread, the kernel would break the stream off, and the frame perhaps be lost with it.
            connection.parted = Some(now);
            self.reader.reclaim(connection);
            self.hot.forget(id);
        }
        let mut written = 0;
        if connection.out.is_empty() {
            match self.out.write(&connection.stream, arena, frame) {
                Written::Whole => {
                    connection.shut();
                    return Handed::Sent;
                }
                Written::Part(bytes) => written = bytes,
                Written::Broken => return Handed::Broken,
            }
            connection.out_since = now;
        }
        if connection.out.len() >= 2 * self.waiting || !self.out.keep(&mut connection.out, frame, written) {
            self.stats.overrun += 1;
            return Handed::Broken;
        }
        watch(poller, connection, self.waiting);
        Handed::Kept
    }

    /// Writes what waits for a connection. Returns whether anything moved.
    fn write_kept(&mut self, now: Time, poller: &Poller, engine: &mut Engine<'_>, arena: &Arena, id: u32) -> bool {
        let Some(connection) = self.connections.get_mut(id as usize).and_then(Option::as_deref_mut) else {
            return false;
        };
        let mut moved = false;
        while !connection.out.is_empty() {
            let (written, token) = self.out.write_kept(&mut connection.out, &connection.stream, arena);
            token.into_iter().for_each(|token: RequestKey| engine.sent(token));
            match written {
                Written::Whole => {}
                Written::Part(0) => break,
                Written::Part(_) => {
                    connection.out_since = now;
                    moved = true;
                    break;
                }
                Written::Broken => {
                    self.close(poller, engine, id);
                    return true;
                }
            }
            connection.out_since = now;
            moved = true;
        }
        connection.shut();
        watch(poller, connection, self.waiting);
        moved
    }

    /// Closes a connection and tells the engine, which then names none of its slots any more.
    pub(crate) fn close(&mut self, poller: &Poller, engine: &mut Engine<'_>, id: u32) {
        let Some(mut connection) = self.connections.get_mut(id as usize).and_then(Option::take) else { return };
        self.hot.forget(id);
        self.out.clear(&mut connection.out);
        self.reader.reclaim(&mut connection);
        let _ = poller.remove(&connection.stream);
        drop(connection);
        self.free.push(id);
        self.stats.closed += 1;
        engine.stream_closed(id);
    }

    /// When [`TcpPort::sweep`] wants to be called.
    pub(crate) fn next_sweep(&self) -> Time {
        self.next_sweep.min(self.accept_again.unwrap_or(Time::NEVER))
    }

    /// Closes connections that have stalled in the middle of something, and those that never said hello.
    pub(crate) fn sweep(&mut self, now: Time, poller: &Poller, engine: &mut Engine<'_>) {
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            let _ = poller.modify(&self.listener, LISTENER, Interest::READ);
        }
        if self.next_sweep > now {
            return;
        }
        while let Some(id) = engine.poll_stale_stream(now) {
            self.stats.stalled += 1;
            self.close(poller, engine, id);
        }
        for id in 0..self.connections.len() as u32 {
            let Some(connection) = &self.connections[id as usize] else { continue };
            let unsent = (!connection.out.is_empty()).then_some(connection.out_since);
            if [unsent, connection.partial_since(), connection.parted]
                .into_iter()
                .flatten()
                .any(|since| now.since(since) > self.grace)
            {
                self.stats.stalled += 1;
                self.close(poller, engine, id);
            }
        }
        self.next_sweep = if self.free.len() < self.connections.len() { now + SWEEP } else { Time::NEVER };
    }
}

/// Whether nothing follows a frame on its stream: it ends the session, or refuses it.
fn is_last(header: &Header) -> bool {
    header.kind == Kind::Goodbye || header.kind == Kind::Error && header.request == 0
}

/// Tells a client that there is no place for it, as far as the kernel takes that at once, which it does where the stream is
/// new.
fn refuse(stream: &TcpStream, frame: &Transmit<'_>) {
    // Whoever is gone already need not be told.
    let _ = stream.writev(&[IoVecSend::from(&frame.header.to_bytes()[..]), IoVecSend::from(frame.head)]);
    let _ = stream.shutdown(Shutdown::Write);
    // A hello left unread would make the kernel break the stream off, and the client perhaps miss what it was told.
    let _ = stream.read(&mut [0; HELLO_ROOM]);
}

/// Has the kernel ask a silent peer, after 30 seconds and then every 10, whether it lives.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let often = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    SockRef::from(stream).set_tcp_keepalive(&often.with_retries(3))
}

/// Has the poller watch for what the connection needs now.
fn watch(poller: &Poller, connection: &mut Connection, waiting: u32) {
    let write = !connection.out.is_empty();
    let paused = connection.out.len() >= waiting;
    if (write, paused) == (connection.watches_write, connection.paused) {
        return;
    }
    connection.watches_write = write;
    connection.paused = paused;
    let interest = match (paused, write) {
        (true, _) => Interest::WRITE,
        (false, true) => Interest::BOTH,
        (false, false) => Interest::READ,
    };
    // The connection is watched since it was accepted, so this cannot fail.
    let _ = poller.modify(&connection.stream, u64::from(connection.id), interest);
}
