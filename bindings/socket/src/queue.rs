//! What the kernel still holds of what was sent.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes written to a TCP socket that its peer's kernel has not acknowledged.
///
/// # Errors
/// Those of the kernel, for instance when it is no TCP socket.
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open while it is borrowed, and SIOCOUTQ (TIOCOUTQ) writes one int, to `bytes`.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(bytes).unwrap_or(0)) }
}
