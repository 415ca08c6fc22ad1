//! How a thread waits for its connection.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Error, Event};

/// How a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Poll without pause: the lowest latency, for the price of a core.
    Spin,
    /// Spin for so long after the last progress, then sleep.
    Adaptive {
        /// How long to spin.
        spin: Duration,
    },
    /// Sleep at once.
    Block,
}

impl Default for Wait {
    fn default() -> Self {
        Wait::Adaptive { spin: Duration::from_micros(50) }
    }
}

impl Wait {
    /// A waiter of this kind.
    #[must_use]
    pub fn waiter(self) -> Waiter {
        Waiter { mode: self, idle_since: None, spins: 0 }
    }
}

/// Waits, in the way that a [`Wait`] says.
#[derive(Clone, Debug)]
pub struct Waiter {
    mode: Wait,
    idle_since: Option<Instant>,
    spins: u32,
}

impl Waiter {
    /// Returns when it is worth polling again: soon while spinning, else when `fd` can be read (or written, if
    /// `write`), at `until`, or earlier for no reason.
    pub fn wait(&mut self, fd: BorrowedFd<'_>, write: bool, until: Option<Instant>) {
        match self.mode {
            Wait::Spin => self.spin(),
            Wait::Block => sleep(fd, write, until),
            Wait::Adaptive { spin } => {
                if self.idle_since.get_or_insert_with(Instant::now).elapsed() < spin {
                    self.spin();
                } else {
                    sleep(fd, write, until);
                }
            }
        }
    }

    /// Tells that something happened, so that spinning starts anew.
    pub fn progress(&mut self) {
        self.idle_since = None;
        self.spins = 0;
    }

    fn spin(&mut self) {
        self.spins = self.spins.wrapping_add(1);
        // Where threads outnumber cores, the one that is waited for may need this core.
        if self.spins.is_multiple_of(32) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// Polls a connection until its session is ready. `needs` says whether it waits for room to write, and when to poll it at
/// the latest.
///
/// # Errors
/// Those of `poll`.
pub(crate) fn until_ready<C: AsFd>(
    connection: &mut C,
    wait: Wait,
    poll: impl Fn(&mut C) -> Result<Option<Event>, Error>,
    needs: impl Fn(&C) -> (bool, Option<Instant>),
) -> Result<(), Error> {
    let mut waiter = wait.waiter();
    loop {
        match poll(connection)? {
            Some(Event::Ready) => return Ok(()),
            Some(_) => {}
            None => {
                let (write, until) = needs(connection);
                waiter.wait(connection.as_fd(), write, until);
            }
        }
    }
}

fn sleep(fd: BorrowedFd<'_>, write: bool, until: Option<Instant>) {
    let flags = if write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let left = until.map(|t| t.saturating_duration_since(Instant::now()));
    let timeout = left.map(|d| Timespec { tv_sec: d.as_secs().min(1 << 32) as i64, tv_nsec: d.subsec_nanos().into() });
    // An interruption or a failure ends the wait early, which is allowed.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, flags)], timeout.as_ref());
}
