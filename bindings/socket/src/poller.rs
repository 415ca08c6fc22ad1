//! Readiness of many descriptors, with waits finer than a millisecond.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// What to be told about a descriptor. Errors and the end of a stream are always told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    flags: EventFlags,
}

impl Interest {
    /// Nothing but errors.
    pub const NONE: Interest = Interest { flags: EventFlags::empty() };
    /// That there is something to read.
    pub const READ: Interest = Interest { flags: EventFlags::IN.union(EventFlags::RDHUP) };
    /// That there is room to write.
    pub const WRITE: Interest = Interest { flags: EventFlags::OUT };
    /// Both.
    pub const BOTH: Interest = Interest { flags: Interest::READ.flags.union(EventFlags::OUT) };

    /// Told once when it begins, not as long as it lasts.
    #[must_use]
    pub const fn edge(self) -> Interest {
        Interest { flags: self.flags.union(EventFlags::ET) }
    }
}

/// What is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token given with the descriptor.
    pub token: u64,
    /// A read will not block; it may well say that the stream has ended, or report an error.
    pub readable: bool,
    /// A write will not block; it may well report an error.
    pub writable: bool,
    /// The other end has closed its direction, or the descriptor has failed.
    pub closed: bool,
}

/// Room for events, allocated once.
pub struct Events {
    raw: Box<[libc::epoll_event]>,
    ready: usize,
}

impl Events {
    /// Room for `capacity` events, at least one, of one wait.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Events {
        Events { raw: vec![libc::epoll_event { events: 0, u64: 0 }; capacity.max(1)].into(), ready: 0 }
    }

    /// Events of the last wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready
    }

    /// Whether the last wait brought nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready == 0
    }

    /// The events of the last wait.
    pub fn iter(&self) -> impl Iterator<Item = Event> {
        const READABLE: i32 = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
        const WRITABLE: i32 = libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR;
        const CLOSED: i32 = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
        self.raw[..self.ready].iter().map(|&libc::epoll_event { events, u64: token }| {
            let has = |flags: i32| events & flags as u32 != 0;
            Event { token, readable: has(READABLE), writable: has(WRITABLE), closed: has(CLOSED) }
        })
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    /// Whether the kernel takes timeouts in nanoseconds.
    fine: AtomicBool,
}

impl Poller {
    /// An instance that watches nothing yet.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, fine: AtomicBool::new(true) })
    }

    /// Watches a descriptor. It is forgotten when its last duplicate closes.
    ///
    /// # Errors
    /// Those of the kernel, for instance when it is watched already.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), interest.flags)?)
    }

    /// Changes what to be told about a descriptor.
    ///
    /// # Errors
    /// Those of the kernel, for instance when it is not watched.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), interest.flags)?)
    }

    /// Watches a descriptor no longer.
    ///
    /// # Errors
    /// Those of the kernel, for instance when it is not watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until something is ready, at most `timeout` (`None` for ever, zero not at all), and returns how many things
    /// are. None at all may also mean that a signal came.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        events.ready = 0;
        let result = match timeout {
            Some(timeout) if !timeout.is_zero() && self.fine.load(Relaxed) => match self.wait_fine(events, timeout) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.fine.store(false, Relaxed);
                    self.wait_coarse(events, Some(timeout))
                }
                result => result,
            },
            timeout => self.wait_coarse(events, timeout),
        };
        match result {
            Ok(ready) => {
                events.ready = ready;
                Ok(ready)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Whether waits are finer than a millisecond; turns false when the kernel proves unable to.
    #[must_use]
    pub fn waits_finely(&self) -> bool {
        self.fine.load(Relaxed)
    }

    /// Called through its number, since older C libraries do not have it.
    fn wait_fine(&self, events: &mut Events, timeout: Duration) -> io::Result<usize> {
        // What the kernel expects has 64-bit fields whatever the platform's own time has.
        #[repr(C)]
        struct Timespec {
            seconds: i64,
            nanos: i64,
        }
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let timespec = Timespec { seconds, nanos: i64::from(timeout.subsec_nanos()) };
        // SAFETY: the kernel writes at most as many events as the box has, reads the timeout, and gets no signal mask; all
        // of it outlives the call.
        let ready = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                events.raw.as_mut_ptr(),
                libc::c_int::try_from(events.raw.len()).unwrap_or(libc::c_int::MAX),
                &raw const timespec,
                ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        usize::try_from(ready).map_err(|_| io::Error::last_os_error())
    }

    fn wait_coarse(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        // Rounded up: waking too early would have the caller ask again at once, over and over.
        let millis = timeout.map_or(-1, |timeout| {
            libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
        });
        let room = libc::c_int::try_from(events.raw.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel writes at most `room` events, which the box has, and it outlives the call.
        let ready = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.raw.as_mut_ptr(), room, millis) };
        usize::try_from(ready).map_err(|_| io::Error::last_os_error())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WakeFd;

    #[test]
    fn a_kernel_without_fine_waits_is_served_too() {
        let poller = Poller::new().unwrap();
        poller.fine.store(false, Relaxed);
        let wake = WakeFd::new().unwrap();
        poller.add(&wake, 7, Interest::READ).unwrap();
        let mut events = Events::with_capacity(4);
        assert_eq!(poller.wait(&mut events, Some(Duration::from_micros(10))).unwrap(), 0);
        wake.wake();
        assert_eq!(poller.wait(&mut events, Some(Duration::from_secs(3600))).unwrap(), 1);
        assert_eq!(events.iter().next().map(|event| event.token), Some(7));
        assert!(!poller.waits_finely());
    }
}
