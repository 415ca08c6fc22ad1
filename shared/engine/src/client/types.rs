//! What a client and its driver exchange.

use splitrpc_ring::RequestKey;
use splitrpc_wire::hello::{HelloAck, MAX_DATAGRAM, MIN_DATAGRAM};
use splitrpc_wire::{Manifest, Status};

use super::ClientSlot;
use crate::config::{ConfigError, WINDOWS};
use crate::flight::SentFrame;
use crate::message::Chunk;
use crate::time::SEC;

/// A client engine's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Largest datagram (UDP payload) in bytes.
    pub datagram: u16,
    /// Largest response in bytes, manifest included.
    pub max_response: u32,
    /// Bytes of responses' frames that may be under way to the client.
    pub receive_window: u64,
    /// With something outstanding and nothing heard for this long, in nanoseconds, the server counts as gone.
    pub silence_limit: u64,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig { datagram: 1472, max_response: 64 << 20, receive_window: 1 << 20, silence_limit: 5 * SEC }
    }
}

impl ClientConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(MIN_DATAGRAM..=MAX_DATAGRAM).contains(&self.datagram) {
            return Err(ConfigError { field: "datagram", why: "must be 1,232 to 65,000 bytes" });
        }
        if !WINDOWS.contains(&self.receive_window) {
            return Err(ConfigError { field: "receive_window", why: "must be 65,536 bytes to 1 TiB" });
        }
        Ok(())
    }
}

/// Memory that a client engine works in: records for requests, and a power of two of datagrams in flight.
pub trait ClientStorage {
    /// Both parts.
    fn parts(&mut self) -> (&mut [ClientSlot], &mut [SentFrame]);
    /// The records.
    fn slots(&self) -> &[ClientSlot];
    /// The datagrams in flight.
    fn flight(&self) -> &[SentFrame];
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct RequestSpec<'m> {
    /// The model's handle.
    pub model: u16,
    /// What the request carries.
    pub manifest: Manifest<'m>,
    /// 0 for the model's default, 1 the highest.
    pub priority: u8,
    /// Microseconds that it may take, 0 for no limit.
    pub deadline_us: u32,
    /// Whether it may be executed more than once.
    pub repeatable: bool,
}

/// What became of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The session is open.
    Connected(HelloAck),
    /// The response to this request is complete; the request is forgotten.
    Response(RequestKey),
    /// The request failed and is forgotten. A text that the server sent stands in the error frame's payload, which the
    /// driver saw as `head`.
    Failed(RequestKey, Status),
    /// The server answered a ping.
    Pong(u64),
    /// The session is over: refused, lost, or closed by the server. So is every request that is open, without an event of its
    /// own; what became of it is known only where the status says so, which [`Status::UnknownSession`] does not.
    Closed(Status),
}

/// What to do with a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientVerdict {
    /// The frame is dealt with.
    Done,
    /// Put the data where the placement says, then call [`Client::placed`](crate::Client::placed).
    Place(ClientPlacement),
    /// The payload is this piece of the catalogue. Ask for the next with [`Client::list`](crate::Client::list).
    Catalog {
        /// Where the piece begins.
        offset: u32,
        /// Bytes of the whole catalogue.
        total: u32,
    },
    /// The payload is of no use.
    Discard,
}

/// Where response data belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPlacement {
    /// The request that it answers.
    pub request: RequestKey,
    /// What of the response.
    pub chunk: Chunk,
    /// The number of its first packet, and how many there are.
    pub(super) packet: u64,
    pub(super) packets: u32,
    pub(super) ack_now: bool,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// As many requests are open as the server or the storage allows.
    Full,
    /// The session is not open.
    NotConnected,
    /// Larger than the server takes.
    TooLarge,
}

/// Frames that the client counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientStats {
    /// Frames taken in.
    pub frames_in: u64,
    /// Frames handed out.
    pub frames_out: u64,
    /// Frames that counted as lost.
    pub frames_lost: u64,
    /// Frames dropped: duplicates, unknown requests, before their manifest.
    pub discarded: u64,
    /// Frames that did not parse.
    pub malformed: u64,
}
