//! How a thread waits for its sockets: the same three ways at clients and servers, for every arm.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::time::Timespec;
use serde::Serialize;

/// How long an adaptive thread spins after the last byte moved before it sleeps.
const ADAPTIVE_SPIN: Duration = Duration::from_micros(50);
/// Up to so many connections a spinning thread tries each socket itself; past that it asks the kernel which are ready.
const DIRECT_MAX: usize = 4;
/// A thread that tries sockets itself asks the kernel about all others (listeners) once in so many rounds.
const DIRECT_ROUNDS: u32 = 64;

static CROWDED: AtomicBool = AtomicBool::new(false);

/// Has threads of this process that spin give way to others each time. For where client and server share a core: neither
/// must keep the one that it waits for from running.
pub(crate) fn share_core() {
    CROWDED.store(true, Relaxed);
}

/// Whether they do.
pub(crate) fn shares_core() -> bool {
    CROWDED.load(Relaxed)
}

/// A wait mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// Never sleep.
    Spin,
    /// Spin for 50 us after the last byte moved, then sleep.
    Adaptive,
    /// Sleep whenever nothing is ready.
    Block,
}

impl Wait {
    /// The name in options and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Wait::Spin => "spin",
            Wait::Adaptive => "adaptive",
            Wait::Block => "block",
        }
    }
}

/// Which sockets to try next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// All of them.
    All,
    /// Those in [`Waiter::tokens`].
    Listed,
}

/// Waits for sockets in one of the three modes.
pub(crate) struct Waiter {
    mode: Wait,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    ready: usize,
    quiet_since: Option<Instant>,
    rounds: u32,
}

impl Waiter {
    /// A waiter over no sockets yet.
    pub(crate) fn new(mode: Wait) -> io::Result<Waiter> {
        let empty = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Ok(Waiter {
            mode,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: vec![empty; 256],
            ready: 0,
            quiet_since: None,
            rounds: 0,
        })
    }

    /// Whether `connections` sockets are tried one by one, so that the kernel need not watch them.
    pub(crate) fn direct(&self, connections: usize) -> bool {
        self.mode == Wait::Spin && connections <= DIRECT_MAX
    }

    /// Watches a socket for input, and for room to send where `write` says so.
    pub(crate) fn add(&self, socket: impl AsFd, token: u64, write: bool) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags(write))?)
    }

    /// Changes whether a watched socket is watched for room to send.
    pub(crate) fn modify(&self, socket: impl AsFd, token: u64, write: bool) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token), flags(write))?)
    }

    /// Stops watching a socket.
    pub(crate) fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Says which sockets to try after a round in which something moved or nothing did. Sleeps where the mode wants it,
    /// at most until `until`.
    pub(crate) fn next(
        &mut self,
        moved: bool,
        connections: usize,
        now: Instant,
        until: Option<Instant>,
    ) -> io::Result<Ready> {
        if moved {
            self.quiet_since = None;
        }
        let spins = match self.mode {
            Wait::Spin => true,
            Wait::Block => false,
            Wait::Adaptive => now.saturating_duration_since(*self.quiet_since.get_or_insert(now)) < ADAPTIVE_SPIN,
        };
        if !spins {
            let timeout = until.map(|until| until.saturating_duration_since(now));
            self.poll(timeout)?;
            return Ok(Ready::Listed);
        }
        if !moved {
            if shares_core() { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if connections <= DIRECT_MAX {
            self.rounds = self.rounds.wrapping_add(1);
            if !self.rounds.is_multiple_of(DIRECT_ROUNDS) {
                return Ok(Ready::All);
            }
        }
        self.poll(Some(Duration::ZERO))?;
        Ok(Ready::Listed)
    }

    /// The tokens of the sockets that the last [`Ready::Listed`] meant.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = u64> {
        self.events[..self.ready].iter().map(|event| event.data.u64())
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) });
        self.ready = 0;
        loop {
            match epoll::wait(&self.epoll, &mut self.events[..], timeout.as_ref()) {
                Ok(ready) => self.ready = ready,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            return Ok(());
        }
    }
}

fn flags(write: bool) -> epoll::EventFlags {
    if write { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN }
}
