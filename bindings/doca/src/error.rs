//! What a call may answer.

use std::fmt;

use doca_sys::doca_error;

/// DOCA's own code for what went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(u32);

macro_rules! codes {
    ($($name:ident = $text:ident,)+) => {
        #[expect(missing_docs, reason = "DOCA's own names")]
        impl Code {
            $(pub const $name: Code = Code(doca_error::$text.0);)+

            /// Its name in DOCA's documentation, without what all begin with.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Code::$name => stringify!($name),)+ _ => "an unknown code" }
            }
        }
    };
}

codes! {
    UNKNOWN = DOCA_ERROR_UNKNOWN,
    NOT_PERMITTED = DOCA_ERROR_NOT_PERMITTED,
    IN_USE = DOCA_ERROR_IN_USE,
    NOT_SUPPORTED = DOCA_ERROR_NOT_SUPPORTED,
    AGAIN = DOCA_ERROR_AGAIN,
    INVALID_VALUE = DOCA_ERROR_INVALID_VALUE,
    NO_MEMORY = DOCA_ERROR_NO_MEMORY,
    INITIALIZATION = DOCA_ERROR_INITIALIZATION,
    TIME_OUT = DOCA_ERROR_TIME_OUT,
    SHUTDOWN = DOCA_ERROR_SHUTDOWN,
    CONNECTION_RESET = DOCA_ERROR_CONNECTION_RESET,
    CONNECTION_ABORTED = DOCA_ERROR_CONNECTION_ABORTED,
    CONNECTION_INPROGRESS = DOCA_ERROR_CONNECTION_INPROGRESS,
    NOT_CONNECTED = DOCA_ERROR_NOT_CONNECTED,
    NO_LOCK = DOCA_ERROR_NO_LOCK,
    NOT_FOUND = DOCA_ERROR_NOT_FOUND,
    IO_FAILED = DOCA_ERROR_IO_FAILED,
    BAD_STATE = DOCA_ERROR_BAD_STATE,
    UNSUPPORTED_VERSION = DOCA_ERROR_UNSUPPORTED_VERSION,
    OPERATING_SYSTEM = DOCA_ERROR_OPERATING_SYSTEM,
    DRIVER = DOCA_ERROR_DRIVER,
    UNEXPECTED = DOCA_ERROR_UNEXPECTED,
    ALREADY_EXIST = DOCA_ERROR_ALREADY_EXIST,
    FULL = DOCA_ERROR_FULL,
    EMPTY = DOCA_ERROR_EMPTY,
    IN_PROGRESS = DOCA_ERROR_IN_PROGRESS,
    TOO_BIG = DOCA_ERROR_TOO_BIG,
    AUTHENTICATION = DOCA_ERROR_AUTHENTICATION,
    BAD_CONFIG = DOCA_ERROR_BAD_CONFIG,
    SKIPPED = DOCA_ERROR_SKIPPED,
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// A call that DOCA, or this crate in its place, refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    call: &'static str,
    code: Code,
    why: &'static str,
}

impl Error {
    /// Of a call that DOCA would take, and that makes no sense.
    pub(crate) const fn refused(call: &'static str, code: Code, why: &'static str) -> Error {
        Error { call, code, why }
    }

    /// The code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// Whether a queue is full, so that the same call may succeed later.
    #[must_use]
    pub fn is_again(&self) -> bool {
        self.code == Code::AGAIN
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error { call, code, why } = self;
        write!(f, "{call}: {code:?}")?;
        if why.is_empty() { Ok(()) } else { write!(f, ", {why}") }
    }
}

impl std::error::Error for Error {}

/// What a call of DOCA answered.
pub(crate) fn check(call: &'static str, answer: doca_error) -> Result<(), Error> {
    if answer == doca_error::DOCA_SUCCESS { Ok(()) } else { Err(Error { call, code: Code(answer.0), why: "" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_call_and_code() {
        let error = check("doca_mmap_start", doca_error::DOCA_ERROR_NOT_PERMITTED).unwrap_err();
        assert_eq!(error.to_string(), "doca_mmap_start: NOT_PERMITTED (2)");
        assert!(!error.is_again() && check("any", doca_error::DOCA_SUCCESS).is_ok());
        let unknown = check("any", doca_error(77)).unwrap_err();
        assert_eq!(unknown.to_string(), "any: an unknown code (77)");
    }
}
