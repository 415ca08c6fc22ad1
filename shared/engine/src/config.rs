//! Capacities and limits of a server engine, set once.

use splitrpc_wire::hello::{MAX_DATAGRAM, MIN_DATAGRAM};
use splitrpc_wire::path::{Link, Memory, Mover, Port};

use crate::time::{MS, SEC};

/// What to say of the path of requests that arrive over one kind of peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// The network edge.
    pub port: Port,
    /// What carries payload.
    pub mover: Mover,
    /// Where the model reads it.
    pub memory: Memory,
    /// What joins engine and orchestrator.
    pub link: Link,
    /// Whether a software BlueField stands in for a card.
    pub emulated: bool,
}

/// A server engine's configuration. Every limit is checked by [`ServerConfig::check`] before the engine starts.
///
/// Written and read (feature `serde`) is what one side may decide for the other: not what its sockets hold, nor the paths, which are as by default then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct ServerConfig {
    /// Streams (TCP connections) at once.
    pub stream_sessions: u32,
    /// Datagram sessions at once.
    pub datagram_sessions: u32,
    /// Requests at once, kept replies included.
    pub requests: u32,
    /// Requests that one client may have in flight.
    pub requests_per_client: u16,
    /// Datagrams in flight towards one client; a power of two.
    pub flight: u32,
    /// Largest request in bytes, manifest included.
    pub max_request: u32,
    /// Largest datagram (UDP payload) in bytes.
    pub datagram: u16,
    /// Bytes of frames that one datagram client may have under way to the server.
    pub receive_window: u64,
    /// Bytes of frames that all datagram clients together may have under way: what the socket holds. Shared out among the
    /// addresses from which large requests come.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub receive_room: u64,
    /// A session that is silent for longer is forgotten, in nanoseconds.
    pub idle_timeout: u64,
    /// How long a reply is kept to answer a duplicate, in nanoseconds.
    pub keep_reply: u64,
    /// Replies that have left and are kept for duplicates; past it the oldest goes.
    pub kept_replies: u32,
    /// Bytes that a request under way must gain each second.
    pub min_progress: u32,
    /// How long a request may stall before [`ServerConfig::min_progress`] is asked of it, in nanoseconds.
    pub progress_grace: u64,
    /// Path of requests over streams.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub stream_path: PathInfo,
    /// Path of requests over datagrams.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub datagram_path: PathInfo,
}

impl PathInfo {
    /// Over TCP, beside a commodity NIC.
    pub const USUAL: PathInfo = PathInfo {
        port: Port::Tcp,
        mover: Mover::KernelToSlot,
        memory: Memory::Host,
        link: Link::InProcess,
        emulated: false,
    };
}

impl Default for PathInfo {
    fn default() -> Self {
        PathInfo::USUAL
    }
}

impl ServerConfig {
    /// Limits that fit a small machine.
    #[must_use]
    pub const fn small() -> ServerConfig {
        ServerConfig {
            stream_sessions: 1024,
            datagram_sessions: 256,
            requests: 512,
            requests_per_client: 64,
            flight: 1024,
            max_request: 64 << 20,
            datagram: 1472,
            receive_window: 1 << 20,
            receive_room: 4 << 20,
            idle_timeout: 60 * SEC,
            keep_reply: SEC,
            kept_replies: 128,
            min_progress: 16 << 10,
            progress_grace: 5 * SEC,
            stream_path: PathInfo::USUAL,
            datagram_path: PathInfo { port: Port::Udp, ..PathInfo::USUAL },
        }
    }

    /// Checks the limits against each other.
    ///
    /// # Errors
    /// The name of the limit that cannot be, and why.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, why| Err(ConfigError { field, why });
        if self.stream_sessions == 0 && self.datagram_sessions == 0 {
            return wrong("stream_sessions", "with datagram_sessions also 0 nobody can connect");
        }
        if self.stream_sessions as u64 + self.datagram_sessions as u64 > u64::from(SESSION_INDEX_MASK) {
            return wrong("stream_sessions", "together with datagram_sessions it exceeds 1,048,575");
        }
        if self.requests == 0 || self.requests > MAX_REQUESTS {
            return wrong("requests", "must be 1 to 1,048,576");
        }
        if self.requests_per_client == 0 || self.requests_per_client > MAX_REQUESTS_PER_CLIENT {
            return wrong("requests_per_client", "must be 1 to 512");
        }
        if !self.flight.is_power_of_two() || !(16..=1 << 20).contains(&self.flight) {
            return wrong("flight", "must be a power of two, 16 to 1,048,576");
        }
        if self.flight as u64 * self.datagram_sessions as u64 > 1 << 30 {
            return wrong("flight", "times datagram_sessions it exceeds 2^30");
        }
        if self.max_request < 1024 {
            return wrong("max_request", "must be at least 1,024 bytes");
        }
        if !(MIN_DATAGRAM..=MAX_DATAGRAM).contains(&self.datagram) {
            return wrong("datagram", "must be 1,232 to 65,000 bytes");
        }
        if !WINDOWS.contains(&self.receive_window) {
            return wrong("receive_window", "must be 65,536 bytes to 1 TiB");
        }
        if self.idle_timeout < 100 * MS || self.keep_reply < MS {
            return wrong("idle_timeout", "must be at least 100 ms, and keep_reply at least 1 ms");
        }
        if [self.idle_timeout, self.keep_reply, self.progress_grace].iter().any(|t| *t > 86_400 * SEC) {
            return wrong("idle_timeout", "with keep_reply and progress_grace it must be at most a day");
        }
        Ok(())
    }
}

/// A limit that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field of [`ServerConfig`].
    pub field: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

impl core::error::Error for ConfigError {}

/// Receive windows that can be, in bytes.
pub(crate) const WINDOWS: core::ops::RangeInclusive<u64> = 64 << 10..=1 << 40;
/// The most that [`ServerConfig::requests`] may be.
const MAX_REQUESTS: u32 = 1 << 20;
/// The most that [`ServerConfig::requests_per_client`] may be.
pub(crate) const MAX_REQUESTS_PER_CLIENT: u16 = 512;
/// No index into a table.
pub(crate) const NO_INDEX: u32 = u32::MAX;
/// The part of a session's number that is its index.
pub(crate) const SESSION_INDEX_MASK: u32 = (1 << 20) - 1;
