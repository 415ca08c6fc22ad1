//! What can go wrong, who is at fault, and what to do about it.

use std::net::SocketAddr;
use std::time::Duration;
use std::{fmt, io};

use splitrpc_wire::{Status, WireError};

use crate::RequestId;

/// Why a call failed. Cheap to clone, so that one lost connection can be told to everyone who waits on it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The address has no meaning here.
    Address {
        /// As it was given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// No connection could be made.
    Unreachable {
        /// The last address that was tried.
        peer: SocketAddr,
        /// What the system said.
        kind: io::ErrorKind,
        /// In words.
        reason: String,
    },
    /// An established connection ended.
    Lost {
        /// The server.
        peer: SocketAddr,
        /// Whether a request may have reached the server, so that sending it again might execute it twice.
        may_have_executed: bool,
        /// In words.
        reason: String,
    },
    /// Something did not happen in time.
    TimedOut {
        /// What was waited for.
        waiting_for: &'static str,
        /// How long.
        after: Duration,
        /// What may be the cause; empty where there is nothing to say.
        hint: &'static str,
    },
    /// The server sent what the protocol does not allow. The connection is unusable.
    Protocol {
        /// The rule that was broken.
        error: WireError,
        /// Where.
        context: &'static str,
    },
    /// The server refused or ended the session.
    Refused(Failure),
    /// The server (or the request's deadline) ended the request without a result.
    Failed(Failure),
    /// As many requests are in flight as the session allows; poll until one ends.
    TooManyInFlight {
        /// The limit: the server's, or this connection's own if lower.
        limit: usize,
    },
    /// Earlier requests have not left yet and their copies fill the buffer; poll until they have.
    Backpressure {
        /// Bytes that wait.
        unsent: usize,
    },
    /// The request is larger than the server takes.
    TooLarge {
        /// Bytes of this request, manifest included.
        bytes: u64,
        /// The server's limit.
        limit: u32,
    },
    /// The server serves no such model.
    NoSuchModel {
        /// The name that was asked for.
        name: String,
        /// What it serves instead.
        served: Vec<String>,
    },
    /// The inputs are not what the model takes.
    BadInput(String),
    /// The session is not set up yet, or already closed.
    NotReady,
}

/// How a request, or a whole session, ended without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The request; `None` where the session as a whole is meant.
    pub id: Option<RequestId>,
    /// What happened.
    pub status: Status,
    /// When to try again, where the server said so.
    pub retry_after: Option<Duration>,
    /// The server's words, or what the client knows of the cause; may be empty.
    pub text: String,
}

impl Error {
    /// Whether no connection to a working server exists, as opposed to a request that such a server refused.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Error::Address { .. }
                | Error::Unreachable { .. }
                | Error::Lost { .. }
                | Error::TimedOut { .. }
                | Error::Protocol { .. }
                | Error::Refused(_)
        ) || matches!(self, Error::Failed(failure) if failure.status == Status::Draining)
    }

    /// Whether the connection cannot be used any more.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Lost { .. } | Error::Protocol { .. } | Error::Refused(_))
    }

    pub(crate) fn protocol(context: &'static str) -> impl FnOnce(WireError) -> Error {
        move |error| Error::Protocol { error, context }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Address { address, reason } => {
                write!(f, "cannot use the address `{address}`: {reason}; give host or host:port")
            }
            Error::Unreachable { peer, kind: io::ErrorKind::ConnectionRefused, .. } => {
                write!(f, "nothing listens at {peer}; is the server running, and on this port?")
            }
            Error::Unreachable { peer, reason, .. } => write!(f, "cannot reach {peer}: {reason}"),
            Error::Lost { peer, may_have_executed: false, reason } => {
                write!(f, "connection to {peer} lost ({reason}); the request was not sent and may be sent again")
            }
            Error::Lost { peer, may_have_executed: true, reason } => write!(
                f,
                "connection to {peer} lost ({reason}); the request may have been executed: mark it repeatable if \
                 executing it twice does no harm"
            ),
            Error::TimedOut { waiting_for, after, hint: "" } => write!(f, "no {waiting_for} within {after:?}"),
            Error::TimedOut { waiting_for, after, hint } => write!(f, "no {waiting_for} within {after:?}; {hint}"),
            Error::Protocol { error: WireError::BadMagic, .. } => {
                f.write_str("the peer does not speak splitrpc; is this another service's port?")
            }
            Error::Protocol { error: WireError::BadVersion, .. } => {
                f.write_str("the server speaks another version of the protocol; use a client of the same release")
            }
            Error::Protocol { error, context } => write!(f, "the server broke the protocol: {context}: {error}"),
            Error::Refused(failure) if failure.status == Status::Draining => failure.fmt(f),
            Error::Refused(failure) => write!(f, "the server refused the session: {failure}"),
            Error::Failed(failure) => failure.fmt(f),
            Error::TooManyInFlight { limit } => write!(f, "{limit} requests are in flight, which is the limit"),
            Error::Backpressure { unsent } => write!(f, "{unsent} bytes of earlier requests have not left yet"),
            Error::TooLarge { bytes, limit } => write!(
                f,
                "the request has {bytes} bytes, the server takes {limit}; send less, or raise limits.max_request_bytes of the server"
            ),
            Error::NoSuchModel { name, served } if served.is_empty() => {
                write!(f, "no model `{name}`: the server serves none")
            }
            Error::NoSuchModel { name, served } => {
                let served = served.join(", ");
                write!(f, "no model `{name}`; the server serves: {served}; its log names those that did not load")
            }
            Error::BadInput(text) => f.write_str(text),
            Error::NotReady => f.write_str("the session is not open"),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.status, self.status.name())?;
        if !self.text.is_empty() {
            // The server's words may hold anything; a terminal must not act on them.
            f.write_str(": ")?;
            for c in self.text.chars() {
                write!(f, "{}", if c.is_control() { ' ' } else { c })?;
            }
        }
        if let Some(after) = self.retry_after {
            write!(f, "; try again in {after:?}")?;
        }
        Ok(())
    }
}
