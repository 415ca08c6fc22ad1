//! Memory that a program has as a file descriptor only.
//!
//! What can be mapped is. A dma-buf of a GPU's memory cannot, and is reached as [`super::gpu`] says.

use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::fstat;

use super::mapping::Mapping;
use super::{Backing, gpu};
use crate::call::Result;
use crate::error::{INVALID_VALUE, NOT_SUPPORTED};
use crate::settings;

/// # Errors
/// `INVALID_VALUE` where there is no such file, or it ends before the range does; `NOT_SUPPORTED` for one that cannot be mapped, and is no
/// dma-buf of the GPU's memory at that address.
pub(super) fn open(number: RawFd, address: usize, offset: usize, len: usize) -> Result<Backing> {
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
    if let Ok(mapping) = Mapping::of(file, offset as u64, len, true) {
        return Ok(Backing::File(mapping));
    }
    // The address is where the range begins, behind the offset.
    match gpu::find(address, len) {
        Ok(Some(named)) if settings::gpu().dma_buf && gpu::is_dma_buf(file, end) => Ok(Backing::Gpu(named)),
        _ => Err(NOT_SUPPORTED),
    }
}
