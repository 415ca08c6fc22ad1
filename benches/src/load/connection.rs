//! What the load generator knows of an arm: a connection with at most one request under way.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use splitrpc_wire::Path;

/// What a step of a connection did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing could move.
    Idle,
    /// Bytes moved.
    Moved,
    /// The request ended; [`Connection::check`] says how.
    Done,
}

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The answer is not the one that the model gives.
    WrongBytes,
    /// The server or the client library refused or gave up, and said why.
    Refused(String),
    /// No answer came in time.
    Timeout,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::WrongBytes => f.write_str("wrong bytes in the response"),
            Fault::Refused(why) => f.write_str(why),
            Fault::Timeout => f.write_str("no answer in time"),
        }
    }
}

/// A client's connection to a server of some arm. Nothing here blocks.
pub(crate) trait Connection {
    /// Starts a request, and sends what can be sent of it at once. Only while none is under way.
    fn begin(&mut self) -> io::Result<()>;

    /// Moves what can be moved. Only while a request is under way.
    fn advance(&mut self) -> io::Result<Step>;

    /// Compares the answer just received with the one expected, byte by byte.
    fn check(&self) -> Result<(), Fault>;

    /// The path that the last request took, where the arm tells it.
    fn path(&self) -> Option<Path> {
        None
    }

    /// The socket to watch.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Whether it waits for room to send.
    fn wants_write(&self) -> bool;

    /// Whether [`Connection::alarm`] is ever set.
    fn uses_alarm(&self) -> bool {
        false
    }

    /// When to try again although nothing has arrived.
    fn alarm(&self) -> Option<Instant> {
        None
    }
}
