//! Kernel buffer sizes.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::sockopt;

/// Asks for buffers of these sizes: beyond the system's limits where the process may, within them elsewhere.
pub(crate) fn set_buffers(socket: BorrowedFd<'_>, recv: Option<usize>, send: Option<usize>) -> io::Result<()> {
    if let Some(bytes) = recv {
        sockopt::set_socket_recv_buffer_size_force(socket, bytes)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes))?;
    }
    if let Some(bytes) = send {
        sockopt::set_socket_send_buffer_size_force(socket, bytes)
            .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes))?;
    }
    Ok(())
}
