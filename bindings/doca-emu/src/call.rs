//! What each exported function does first and last, and what it may be given.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::io::Write;
use std::ptr::NonNull;

use doca_sys::doca_error;

use crate::error::{INVALID_VALUE, SUCCESS};

/// What a function comes to.
pub(crate) type Result<T = ()> = std::result::Result<T, doca_error>;

thread_local! {
    /// The function that runs now; of those called from callbacks, the innermost.
    static FUNCTION: Cell<&'static str> = const { Cell::new("") };
}

/// Runs a function that answers with a code.
pub(crate) fn call(function: &'static str, body: impl FnOnce() -> Result) -> doca_error {
    inside(function, body).err().unwrap_or(SUCCESS)
}

/// Runs a function that answers with something else.
pub(crate) fn inside<T>(function: &'static str, body: impl FnOnce() -> T) -> T {
    let outer = FUNCTION.replace(function);
    let answer = body();
    FUNCTION.set(outer);
    answer
}

/// Tells the rule that a program broke, and ends it.
#[cold]
pub(crate) fn broken(rule: &str) -> ! {
    // Not by a macro for printing, which a test harness would keep to itself. If it cannot be told the process still ends.
    let _ = writeln!(std::io::stderr(), "software BlueField: RULE BROKEN: {rule} (in {})", FUNCTION.get());
    std::process::abort()
}

/// Where a caller wants something written.
pub(crate) struct Answer<T>(NonNull<T>);

/// # Errors
/// `INVALID_VALUE` for a null pointer.
pub(crate) fn answer<T>(place: *mut T) -> Result<Answer<T>> {
    NonNull::new(place).map(Answer).ok_or(INVALID_VALUE)
}

impl<T> Answer<T> {
    pub(crate) fn put(self, value: T) {
        // SAFETY: callers of DOCA's functions pass places of the declared type, or null, which was refused.
        unsafe { self.0.write(value) };
    }
}

/// # Errors
/// `INVALID_VALUE` for a null pointer.
pub(crate) fn text<'a>(text: *const c_char) -> Result<&'a CStr> {
    if text.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: callers of DOCA's functions pass texts that end, or null, which was refused.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// Writes a text with its end into a caller's buffer.
///
/// # Errors
/// `INVALID_VALUE` for a null pointer, or where it does not fit.
pub(crate) fn put_text(place: *mut c_char, size: usize, text: &CStr) -> Result {
    let text = text.to_bytes_with_nul();
    if place.is_null() || text.len() > size {
        return Err(INVALID_VALUE);
    }
    // SAFETY: callers of DOCA's functions pass a buffer of the size that they say, or that the function's description says.
    unsafe { place.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len()) };
    Ok(())
}
