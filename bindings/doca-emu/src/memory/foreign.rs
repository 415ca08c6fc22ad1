//! Memory that a program has as a file descriptor only.
//!
//! What can be mapped is. A descriptor of GPU memory cannot, and is where another way of reaching memory would begin: a case of its own here, and
//! one of [`super::Reach`] for what is copied.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::fstat;

use super::mapping::Mapping;
use crate::call::Result;
use crate::error::{INVALID_VALUE, NOT_SUPPORTED};

/// # Errors
/// `INVALID_VALUE` where there is no such file, or it ends before the range does; `NOT_SUPPORTED` for one that cannot be mapped.
pub(super) fn open(number: RawFd, offset: usize, len: usize) -> Result<Mapping> {
    if number < 0 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller lends it for the call; a number that is no open file is refused by the first use.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    let stat = fstat(file).map_err(|_| INVALID_VALUE)?;
    let end = offset.checked_add(len).ok_or(INVALID_VALUE)?;
    // Devices have no size of their own.
    if stat.st_size > 0 && (stat.st_size as u64) < end as u64 {
        return Err(INVALID_VALUE);
    }
    Mapping::of(file, offset as u64, len, true).map_err(|_: io::Error| NOT_SUPPORTED)
}
