//! Waking a thread that waits in a poller.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// A descriptor that becomes readable when any clone is woken.
#[derive(Clone, Debug)]
pub struct WakeFd {
    fd: Arc<OwnedFd>,
}

impl WakeFd {
    /// One that nobody has woken yet.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn new() -> io::Result<WakeFd> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(WakeFd { fd: Arc::new(fd) })
    }

    /// Makes it readable.
    pub fn wake(&self) {
        // Only a full counter could refuse, and then it is readable already.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&*self.fd, &1_u64.to_ne_bytes()));
    }

    /// Makes it unreadable again; returns whether it had been woken.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::retry_on_intr(|| rustix::io::read(&*self.fd, &mut count)).is_ok()
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
