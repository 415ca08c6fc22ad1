//! DOCA's codes: their names, and what they mean.

use std::ffi::{CStr, c_char};

use doca_sys::{doca_error, doca_error_t};

pub(crate) const SUCCESS: doca_error = doca_error::DOCA_SUCCESS;
pub(crate) const NOT_PERMITTED: doca_error = doca_error::DOCA_ERROR_NOT_PERMITTED;
pub(crate) const IN_USE: doca_error = doca_error::DOCA_ERROR_IN_USE;
pub(crate) const NOT_SUPPORTED: doca_error = doca_error::DOCA_ERROR_NOT_SUPPORTED;
pub(crate) const AGAIN: doca_error = doca_error::DOCA_ERROR_AGAIN;
pub(crate) const INVALID_VALUE: doca_error = doca_error::DOCA_ERROR_INVALID_VALUE;
pub(crate) const NO_MEMORY: doca_error = doca_error::DOCA_ERROR_NO_MEMORY;
pub(crate) const INITIALIZATION: doca_error = doca_error::DOCA_ERROR_INITIALIZATION;
pub(crate) const CONNECTION_RESET: doca_error = doca_error::DOCA_ERROR_CONNECTION_RESET;
pub(crate) const NOT_CONNECTED: doca_error = doca_error::DOCA_ERROR_NOT_CONNECTED;
pub(crate) const NOT_FOUND: doca_error = doca_error::DOCA_ERROR_NOT_FOUND;
pub(crate) const IO_FAILED: doca_error = doca_error::DOCA_ERROR_IO_FAILED;
pub(crate) const BAD_STATE: doca_error = doca_error::DOCA_ERROR_BAD_STATE;
pub(crate) const DRIVER: doca_error = doca_error::DOCA_ERROR_DRIVER;
pub(crate) const ALREADY_EXIST: doca_error = doca_error::DOCA_ERROR_ALREADY_EXIST;
pub(crate) const IN_PROGRESS: doca_error = doca_error::DOCA_ERROR_IN_PROGRESS;
pub(crate) const TOO_BIG: doca_error = doca_error::DOCA_ERROR_TOO_BIG;

/// By number.
const CODES: [(&CStr, &CStr); 31] = [
    (c"DOCA_SUCCESS", c"it was done"),
    (c"DOCA_ERROR_UNKNOWN", c"it failed, and nothing is known of why"),
    (c"DOCA_ERROR_NOT_PERMITTED", c"this may not be done with it"),
    (c"DOCA_ERROR_IN_USE", c"something still uses it"),
    (c"DOCA_ERROR_NOT_SUPPORTED", c"this device cannot do that"),
    (c"DOCA_ERROR_AGAIN", c"there is no room for it now"),
    (c"DOCA_ERROR_INVALID_VALUE", c"an argument is not valid"),
    (c"DOCA_ERROR_NO_MEMORY", c"there is no memory for it, or all that there were are taken"),
    (c"DOCA_ERROR_INITIALIZATION", c"it could not be set up"),
    (c"DOCA_ERROR_TIME_OUT", c"it took too long"),
    (c"DOCA_ERROR_SHUTDOWN", c"it is being shut down"),
    (c"DOCA_ERROR_CONNECTION_RESET", c"the other side ended the connection"),
    (c"DOCA_ERROR_CONNECTION_ABORTED", c"the connection failed"),
    (c"DOCA_ERROR_CONNECTION_INPROGRESS", c"the connection is not yet there"),
    (c"DOCA_ERROR_NOT_CONNECTED", c"there is no connection"),
    (c"DOCA_ERROR_NO_LOCK", c"a lock could not be had"),
    (c"DOCA_ERROR_NOT_FOUND", c"there is none such"),
    (c"DOCA_ERROR_IO_FAILED", c"the bytes could not be moved"),
    (c"DOCA_ERROR_BAD_STATE", c"its state does not allow this"),
    (c"DOCA_ERROR_UNSUPPORTED_VERSION", c"its version is not supported"),
    (c"DOCA_ERROR_OPERATING_SYSTEM", c"the operating system refused"),
    (c"DOCA_ERROR_DRIVER", c"the driver refused"),
    (c"DOCA_ERROR_UNEXPECTED", c"it is not as it should be"),
    (c"DOCA_ERROR_ALREADY_EXIST", c"there already is one"),
    (c"DOCA_ERROR_FULL", c"it has no more room"),
    (c"DOCA_ERROR_EMPTY", c"there is nothing in it"),
    (c"DOCA_ERROR_IN_PROGRESS", c"it goes on, and will be told of"),
    (c"DOCA_ERROR_TOO_BIG", c"it is more than can be"),
    (c"DOCA_ERROR_AUTHENTICATION", c"it could not show who it is"),
    (c"DOCA_ERROR_BAD_CONFIG", c"it is not set up as it must be"),
    (c"DOCA_ERROR_SKIPPED", c"it was left out"),
];

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_error_get_name(error: doca_error_t) -> *const c_char {
    CODES.get(error.0 as usize).unwrap_or(&CODES[1]).0.as_ptr()
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_error_get_descr(error: doca_error_t) -> *const c_char {
    CODES.get(error.0 as usize).unwrap_or(&CODES[1]).1.as_ptr()
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_version_runtime() -> *const c_char {
    c"3.0.0-emulated".as_ptr()
}

/// What tells that this is no card: nobody calls it.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn splitrpc_emulated_bluefield() {}
