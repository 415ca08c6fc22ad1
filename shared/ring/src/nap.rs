//! Who may be asleep: what makes rousing cost a system call only where it is needed.

use crate::sync::{AtomicBool, Ordering, fence};

/// Says whether its owner, who takes from rings or queues that others fill, may be asleep.
///
/// The owner [announces](Nap::announce) that it will sleep, then looks a last time at all that others fill, and sleeps
/// if it finds nothing. The others fill, then [ask](Nap::ends) whether somebody has to be roused. One of the two sees what
/// the other did: either the last look finds it, or whoever filled is told to rouse.
#[derive(Debug)]
pub struct Nap {
    announced: AtomicBool,
}

impl Nap {
    /// Of an owner that is awake.
    #[must_use]
    pub fn new() -> Nap {
        Nap { announced: AtomicBool::new(false) }
    }

    /// The owner is about to look a last time before it sleeps.
    pub fn announce(&self) {
        self.announced.store(true, Ordering::Relaxed);
        // Before the last look, as the other fence is between what was filled and the question.
        fence(Ordering::SeqCst);
    }

    /// The owner is awake, roused or not.
    pub fn over(&self) {
        self.announced.store(false, Ordering::Relaxed);
    }

    /// To be asked after something was filled: whether the owner has to be roused, which is true for one of those who ask.
    #[must_use = "an owner that is not roused sleeps on"]
    pub fn ends(&self) -> bool {
        fence(Ordering::SeqCst);
        // It is nearly always awake, and a look is cheaper than an exchange.
        self.announced.load(Ordering::Relaxed) && self.announced.swap(false, Ordering::Relaxed)
    }
}

impl Default for Nap {
    fn default() -> Nap {
        Nap::new()
    }
}
