//! How a data thread waits, and how others rouse it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use splitrpc_ring::Nap;
use splitrpc_socket::WakeFd;

/// What a data thread does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitMode {
    /// It keeps polling.
    Spin,
    /// It polls for this long after something last happened, then sleeps.
    Adaptive {
        /// How long.
        spin: Duration,
    },
    /// It sleeps at once.
    Block,
}

impl WaitMode {
    /// Adaptive with the usual time.
    pub const ADAPTIVE: WaitMode = WaitMode::Adaptive { spin: Duration::from_micros(50) };

    /// Nanoseconds to poll after something last happened.
    #[must_use]
    pub fn spin_ns(self) -> u64 {
        match self {
            WaitMode::Spin => u64::MAX,
            WaitMode::Adaptive { spin } => u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX),
            WaitMode::Block => 0,
        }
    }
}

/// Rouses a data thread that may be asleep. A wake-up costs a system call only if it is.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: WakeFd,
    nap: Arc<Nap>,
}

impl Waker {
    /// A waker for a thread to come.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker { fd: WakeFd::new()?, nap: Arc::default() })
    }

    /// To be called after what the thread is to see has been written.
    pub fn wake(&self) {
        if self.nap.ends() {
            self.fd.wake();
        }
    }

    /// The thread is about to look a last time before it sleeps.
    pub fn announce_sleep(&self) {
        self.nap.announce();
    }

    /// The thread is awake.
    pub fn awake(&self) {
        self.nap.over();
    }

    /// Forgets that it was roused.
    pub fn drain(&self) {
        self.fd.drain();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
