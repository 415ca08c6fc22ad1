//! Status codes: one table says who is at fault, what may be done, and what gRPC and HTTP call it.

use core::fmt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::WireError;

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request cannot succeed as it is.
    Client,
    /// The server, its model or its capacity.
    Server,
    /// What lies between them.
    Network,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $fault:ident, $retry:literal, $grpc:literal, $http:literal, $text:literal;)+) => {
        /// How a request or session ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Status { $($(#[$doc])* $name = $code,)+ }

        impl Status {
            /// Every status, in the order of its code.
            pub const ALL: &'static [Status] = &[$(Status::$name,)+];

            /// The status with this wire code.
            ///
            /// # Errors
            /// [`WireError::BadStatus`] where there is none.
            pub fn from_code(code: u16) -> Result<Status, WireError> {
                match code { $($code => Ok(Status::$name),)+ _ => Err(WireError::BadStatus) }
            }

            /// The name under which it is counted.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Status::$name => stringify!($name),)+ }
            }

            /// Who is at fault.
            #[must_use]
            pub const fn fault(self) -> Fault {
                match self { $(Status::$name => Fault::$fault,)+ }
            }

            /// Whether the same request may succeed later.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Status::$name => $retry,)+ }
            }

            /// The gRPC status code.
            #[must_use]
            pub const fn grpc(self) -> u8 {
                match self { $(Status::$name => $grpc,)+ }
            }

            /// The HTTP status code.
            #[must_use]
            pub const fn http(self) -> u16 {
                match self { $(Status::$name => $http,)+ }
            }
        }

        impl fmt::Display for Status {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Status::$name => $text,)+ })
            }
        }
    };
}

statuses! {
    /// Done.
    Ok = 0, Server, false, 0, 200, "ok";
    /// A frame that breaks the protocol.
    BadFrame = 1, Client, false, 3, 400, "a frame breaks the protocol";
    /// No common protocol version.
    BadVersion = 2, Client, false, 12, 505, "no common protocol version";
    /// The server does not know the session: it restarted, or the session was idle too long.
    UnknownSession = 3, Client, true, 14, 503, "session unknown to the server; open a new one";
    /// No such model.
    UnknownModel = 4, Client, false, 5, 404, "no such model";
    /// Tensor names, types, shapes or values are not what the model takes.
    BadTensor = 5, Client, false, 3, 400, "tensors are not what the model takes";
    /// Larger than a configured limit.
    TooLarge = 6, Client, false, 8, 413, "larger than the server's limit";
    /// No slot or queue place is free.
    Busy = 7, Server, true, 14, 503, "server busy";
    /// This client holds as much as one client may.
    Quota = 8, Client, true, 8, 429, "client's quota is used up";
    /// The deadline passed.
    DeadlineExceeded = 9, Server, true, 4, 504, "deadline exceeded";
    /// The client cancelled.
    Cancelled = 10, Client, false, 1, 499, "cancelled";
    /// The request's bytes came slower than the configured minimum.
    TooSlow = 11, Client, true, 4, 408, "request arrived slower than the server's minimum";
    /// The model failed.
    ModelFailed = 12, Server, false, 13, 500, "the model failed";
    /// The server is shutting down.
    Draining = 13, Server, true, 14, 503, "server is shutting down";
    /// A fault of the server's own.
    Internal = 14, Server, false, 13, 500, "internal error";
    /// The peer vanished.
    ConnectionLost = 15, Network, true, 14, 503, "connection lost";
    /// Not supported by this server.
    Unsupported = 16, Client, false, 12, 501, "not supported";
    /// A duplicate of a request whose reply is no longer kept; it was executed once.
    ReplyGone = 17, Network, false, 10, 409, "executed once, but the reply is no longer kept";
    /// The server has as many sessions as it may.
    TooManySessions = 18, Server, true, 14, 503, "server has as many sessions as it may";
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    code: U16,
    text_len: U16,
    retry_after_us: U32,
}

/// Longest text in an error frame, in bytes.
pub const MAX_STATUS_TEXT: usize = 240;

/// The payload of an error frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusPayload<'a> {
    /// What happened.
    pub status: Status,
    /// When to try again, in microseconds; 0 where unknown.
    pub retry_after_us: u32,
    /// What to do about it, in words; may be empty.
    pub text: &'a str,
}

impl<'a> StatusPayload<'a> {
    /// Parses an error frame's payload.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::BadStatus`], [`WireError::BadText`], [`WireError::TooLong`].
    pub fn parse(bytes: &'a [u8]) -> Result<StatusPayload<'a>, WireError> {
        let (raw, rest) = Raw::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
        let len = usize::from(raw.text_len.get());
        if len > MAX_STATUS_TEXT {
            return Err(WireError::TooLong);
        }
        let text = rest.get(..len).ok_or(WireError::Truncated)?;
        Ok(StatusPayload {
            status: Status::from_code(raw.code.get())?,
            retry_after_us: raw.retry_after_us.get(),
            text: core::str::from_utf8(text).map_err(|_| WireError::BadText)?,
        })
    }

    /// Writes the payload to the head of `out` and returns its length. A text that does not fit is cut.
    pub fn write(&self, out: &mut [u8]) -> usize {
        const HEAD: usize = size_of::<Raw>();
        let Some(room) = out.len().checked_sub(HEAD) else { return 0 };
        let mut cut = self.text.len().min(MAX_STATUS_TEXT).min(room);
        while !self.text.is_char_boundary(cut) {
            cut -= 1;
        }
        let raw = Raw {
            code: U16::new(self.status as u16),
            text_len: U16::new(cut as u16),
            retry_after_us: U32::new(self.retry_after_us),
        };
        out[..HEAD].copy_from_slice(raw.as_bytes());
        out[HEAD..HEAD + cut].copy_from_slice(&self.text.as_bytes()[..cut]);
        HEAD + cut
    }
}
