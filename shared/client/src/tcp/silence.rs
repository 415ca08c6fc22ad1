//! Telling a server that computes from one that is no more.

use std::time::{Duration, Instant};

/// How long the server has said nothing while an answer is due.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// None while no answer is due, or since something has come.
    since: Option<Instant>,
    asked: bool,
    /// Bytes of the stream that had arrived when it was last looked after.
    arrived: u64,
}

/// What silence calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// Ask for a sign of life.
    Ask,
    /// The server is lost.
    GiveUp,
}

impl Silence {
    /// Something was heard, or nothing is to be heard.
    pub(crate) fn broken(&mut self) {
        *self = Silence::default();
    }

    /// When to look again, with an answer due.
    pub(crate) fn next(&self, limit: Duration) -> Option<Instant> {
        Some(self.since? + if self.asked { limit } else { limit / 4 })
    }

    /// With an answer due, and nothing heard since the last call of [`Silence::broken`]. `arrived` says how many
    /// bytes of the stream have arrived so far, if more are on their way: while they become more, the server takes them in.
    pub(crate) fn due(&mut self, now: Instant, limit: Duration, arrived: impl FnOnce() -> Option<u64>) -> Due {
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed < if self.asked { limit } else { limit / 4 } {
            return Due::Nothing;
        }
        if let Some(arrived) = arrived().filter(|&arrived| arrived > self.arrived) {
            *self = Silence { since: Some(now), asked: false, arrived };
            return Due::Nothing;
        }
        if self.asked {
            return Due::GiveUp;
        }
        self.asked = true;
        Due::Ask
    }
}
