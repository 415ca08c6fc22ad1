//! The UDP port: the kernel scatters tensor data into its slots, many datagrams with one system call.
//!
//! What puts many datagrams into one call is segmentation offload (GSO and GRO), which spares each of them the way through the
//! kernel's network stack. `recvmmsg` and `sendmmsg` would only spare the entry into the kernel, and that only where many
//! clients have a small request each: about 3 % and 5 % of such a request, for guesses about several requests ahead.

mod fault;
mod guess;
mod plan;
mod receive;
mod send;

use std::io;
use std::net::SocketAddr;

use splitrpc_arena::Arena;
use splitrpc_engine::{Time, Transmit};
use splitrpc_socket::{Interest, Poller, UdpOptions, UdpSocket};

use self::fault::Fault;
use self::receive::{Context, Receiver};
use self::send::Batch;
use crate::arrivals::{Arrival, Arrivals};
use crate::storage::{BuiltEngine, Engine};

/// The poller's name for the socket.
pub(crate) const SOCKET: u64 = u64::MAX - 2;
/// Receives in one turn.
const RECEIVES: usize = 16;
/// Bytes of a turn after which the host is told of what has arrived, if it wants that.
const BYTES_PER_TURN: u64 = 64 << 10;
/// Tries in vain after which a spinning thread leaves the socket to the poller.
const PATIENCE: u32 = 256;

/// How the port is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpPortConfig {
    /// Several data threads share the address.
    pub reuse_port: bool,
    /// Bytes of the kernel's receive buffer; `None` leaves the system's default.
    pub recv_buffer: Option<usize>,
    /// Bytes of the kernel's send buffer; `None` leaves the system's default.
    pub send_buffer: Option<usize>,
    /// Of 1,000 received datagrams, how many are dropped: for tests and measurements under loss.
    pub drop_permille: u16,
    /// Which ones are dropped follows from this.
    pub drop_seed: u64,
}

impl Default for UdpPortConfig {
    fn default() -> Self {
        UdpPortConfig {
            reuse_port: false,
            recv_buffer: Some(4 << 20),
            send_buffer: Some(4 << 20),
            drop_permille: 0,
            drop_seed: 0,
        }
    }
}

/// What the port counted since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpStats {
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// System calls that received datagrams.
    pub bursts_in: u64,
    /// System calls that sent datagrams.
    pub bursts_out: u64,
    /// Datagrams that were looked at before they were received.
    pub looks: u64,
    /// Frames whose tensor data landed in its slots.
    pub foreseen: u64,
    /// Frames whose tensor data landed elsewhere and was moved.
    pub misjudged: u64,
    /// Datagrams dropped by the fault hook.
    pub dropped: u64,
    /// Sends that had to wait for room in the kernel.
    pub send_waits: u64,
    /// Datagrams not sent because the kernel had no room; they count as lost.
    pub no_room: u64,
    /// Datagrams not sent because the path takes none so large.
    pub too_large: u64,
    /// Datagrams that the kernel refused otherwise.
    pub refused: u64,
    /// Bursts sent without segmentation offload.
    pub without_offload: u64,
}

/// The UDP port of one data thread.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    receiver: Receiver,
    batch: Batch,
    arrivals: Arrivals,
    /// Tries in vain since something last came.
    quiet: u32,
}

impl UdpPort {
    /// Bytes that may be under way to a port set up like this without being dropped: what the kernel grants of the receive
    /// buffer, less what it spends on each datagram. An engine's receive window should be no larger.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn receive_room(config: &UdpPortConfig) -> io::Result<u64> {
        let options = UdpOptions { recv_buffer: config.recv_buffer, ..UdpOptions::default() };
        let probe = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0)), &options)?;
        // The kernel counts its own overhead, which for small datagrams is as large as they are.
        Ok(probe.buffers()?.0 as u64 / 2)
    }

    /// Binds `address` on behalf of an engine; port 0 lets the kernel choose. All buffers are allocated now.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn bind(address: SocketAddr, config: &UdpPortConfig, engine: &BuiltEngine<'_>) -> io::Result<UdpPort> {
        let options = UdpOptions {
            reuse_port: config.reuse_port,
            recv_buffer: config.recv_buffer,
            send_buffer: config.send_buffer,
            dont_fragment: true,
            ..UdpOptions::default()
        };
        let fault = Fault::new(config.drop_permille, config.drop_seed);
        Ok(UdpPort {
            socket: UdpSocket::bind(address, &options)?,
            receiver: Receiver::new(engine.config.datagram, fault),
            batch: Batch::new(),
            arrivals: Arrivals::new(u32::MAX),
            quiet: PATIENCE,
        })
    }

    /// Where it is bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    /// Whether the kernel puts received datagrams together and cuts sent ones apart.
    #[must_use]
    pub fn offloads(&self) -> (bool, bool) {
        (self.socket.gro_supported(), self.socket.gso_supported())
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> UdpStats {
        let (received, sent) = (&self.receiver.stats, &self.batch.stats);
        UdpStats {
            bytes_in: received.bytes,
            bytes_out: sent.bytes,
            datagrams_in: received.datagrams,
            datagrams_out: sent.datagrams,
            bursts_in: received.bursts,
            bursts_out: sent.bursts,
            looks: received.looks,
            foreseen: received.foreseen,
            misjudged: received.misjudged,
            dropped: self.receiver.fault.dropped,
            send_waits: sent.waits,
            no_room: sent.no_room,
            too_large: sent.too_large,
            refused: sent.refused,
            without_offload: self.socket.gso_fallbacks(),
        }
    }

    pub(crate) fn register(&self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.socket, SOCKET, Interest::READ)
    }

    /// Notes arrivals of payloads of so many bytes at least.
    pub(crate) fn note_arrivals(&mut self, least: u32) {
        self.arrivals = Arrivals::new(least);
    }

    /// Hands over the arrivals that were noted.
    pub(crate) fn take_arrivals(&mut self, told: impl FnMut(&Arrival)) {
        self.arrivals.take(told);
    }

    /// Whether a spinning thread should try the socket itself.
    pub(crate) fn is_hot(&self) -> bool {
        self.quiet < PATIENCE
    }

    /// Receives what there is, until a request is complete, nothing is left, the turn is over, or there are arrivals to tell of. Returns whether anything
    /// came.
    pub(crate) fn poll(&mut self, now: Time, engine: &mut Engine<'_>, arena: &Arena) -> bool {
        let mut moved = false;
        let before = self.receiver.stats.bytes;
        for _ in 0..RECEIVES {
            // One receive may bring more than there is room for; that costs its sender answers, which it asks for again.
            if !engine.accepts_frames() {
                break;
            }
            match self.receiver.receive(&mut Context { now, engine, arena }, &self.socket) {
                Ok(()) => moved = true,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "receiving datagrams");
                    }
                    break;
                }
            }
            if engine.next_submission().is_some() {
                break;
            }
            self.receiver.note(engine, &mut self.arrivals);
            if !self.arrivals.is_empty() && self.receiver.stats.bytes - before >= BYTES_PER_TURN {
                break;
            }
        }
        self.quiet = if moved { 0 } else { self.quiet.saturating_add(1) };
        moved
    }

    /// Takes a frame from the engine. It leaves with others, at the latest with [`UdpPort::flush`].
    pub(crate) fn transmit(&mut self, arena: &Arena, to: SocketAddr, frame: &Transmit<'_>) {
        self.batch.push(&self.socket, arena, to, frame);
    }

    /// Sends what has been taken.
    pub(crate) fn flush(&mut self, arena: &Arena) {
        self.batch.flush(&self.socket, arena);
    }
}
