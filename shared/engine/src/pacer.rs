//! Spreads a window over its round trip.

use crate::Time;
use crate::time::{SEC, US};

/// Two of the kernel's largest segmented sends go without waiting.
const LEAST_BURST: u64 = 128 << 10;
/// A polling thread cannot be held to shorter gaps than this.
const QUANTUM: u64 = 250 * US;

/// A token bucket that refills at a little more than window over round trip.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacer {
    tokens: u64,
    filled_at: Time,
}

impl Pacer {
    pub(crate) const fn new() -> Pacer {
        Pacer { tokens: LEAST_BURST, filled_at: Time::from_nanos(0) }
    }

    /// When `bytes` may leave: `None` for now.
    pub(crate) fn ready_at(&mut self, now: Time, bytes: u64, window: u64, rtt: u64) -> Option<Time> {
        if self.tokens >= bytes {
            return None;
        }
        let rate = window.saturating_mul(5) / 4;
        let rtt = rtt.max(1);
        let burst = LEAST_BURST.max(mul_div(rate, QUANTUM, rtt));
        let refill = mul_div(rate, now.since(self.filled_at).min(SEC), rtt);
        if refill > 0 {
            self.tokens = (self.tokens + refill).min(burst);
            self.filled_at = now;
        }
        let short = bytes.min(burst).saturating_sub(self.tokens);
        if short == 0 { None } else { Some(now + mul_div(short, rtt, rate.max(1)) + 1) }
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(bytes);
    }
}

fn mul_div(a: u64, b: u64, by: u64) -> u64 {
    u64::try_from(u128::from(a) * u128::from(b) / u128::from(by)).unwrap_or(u64::MAX)
}
