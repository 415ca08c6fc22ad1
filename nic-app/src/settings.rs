//! How a data thread is set up and ended, and what it runs beside its ports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use splitrpc_engine::Time;

use crate::arrivals::Arrival;
use crate::wait::{WaitMode, Waker};

/// What sits at the other end of the link, on the same thread.
pub trait Host {
    /// Does what there is to do. Returns whether there was anything.
    fn poll(&mut self, now: Time) -> bool;

    /// Payloads of at least so many bytes are told of while they arrive; `u32::MAX` is none. Asked once.
    fn early_bytes(&self) -> u32 {
        u32::MAX
    }

    /// Part of a request is in its slots. Not all parts are told of, and the request may never be submitted.
    fn arriving(&mut self, _: &Arrival) {}

    /// Whether something is done that nobody tells, such as what a device computed: looked at in every round, so it is to cost next to
    /// nothing.
    fn has_news(&self) -> bool {
        false
    }

    /// Hands its counters and levels to whoever exports them. Called from time to time, since a request need not wait for it.
    fn publish(&self);

    /// When it wants to be polled without being roused; `None` if nothing is due.
    fn next_deadline(&self, now: Time) -> Option<Time>;

    /// The thread is about to end: nothing is to be held back any more.
    fn drain(&mut self);

    /// Whether it has answered all that it was given.
    fn is_idle(&self) -> bool;
}

/// How a data thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataThreadConfig {
    /// What it does when there is nothing to do.
    pub wait: WaitMode,
    /// The core that it is bound to.
    pub core: Option<usize>,
    /// There are more threads than cores, so a spinning one lets others run.
    pub crowded: bool,
    /// How long it goes on for requests under way once it is told to stop.
    pub drain: Duration,
}

impl Default for DataThreadConfig {
    fn default() -> Self {
        DataThreadConfig { wait: WaitMode::ADAPTIVE, core: None, crowded: false, drain: Duration::from_secs(10) }
    }
}

/// Tells a data thread to finish what is under way and end.
#[derive(Clone, Debug)]
pub struct Stop {
    pub(crate) flag: Arc<AtomicBool>,
    pub(crate) waker: Waker,
}

impl Stop {
    /// For a thread that this waker rouses.
    #[must_use]
    pub fn new(waker: Waker) -> Stop {
        Stop { flag: Arc::default(), waker }
    }

    /// Whether it was told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// Tells it.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}
