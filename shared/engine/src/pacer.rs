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
    #[inline]
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

    /// Bytes that may leave without a wait.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(bytes);
    }
}

fn mul_div(a: u64, b: u64, by: u64) -> u64 {
    u64::try_from(u128::from(a) * u128::from(b) / u128::from(by)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MS;

    /// Sends packets as soon as they may leave until `until`, and returns when each left.
    fn send(pacer: &mut Pacer, window: u64, rtt: u64, until: u64) -> Vec<u64> {
        let mut now = 0;
        let mut sent = Vec::new();
        while now < until {
            match pacer.ready_at(Time::from_nanos(now), 1472, window, rtt) {
                None => {
                    pacer.spend(1472);
                    sent.push(now);
                }
                Some(at) => {
                    assert!(at.nanos() > now, "it must wait for something");
                    now = at.nanos();
                }
            }
            assert!(sent.len() < 1_000_000, "nothing holds it back");
        }
        sent
    }

    #[test]
    fn a_window_is_spread_over_a_long_round_trip() {
        let (window, rtt) = (4 << 20, 100 * MS);
        let sent = send(&mut Pacer::new(), window, rtt, rtt);
        let bytes = sent.len() as u64 * 1472;
        assert!((window..=window * 5 / 4 + 3 * LEAST_BURST).contains(&bytes), "{bytes} bytes");
        for tenth in 1..10 {
            let slice = tenth * rtt / 10..(tenth + 1) * rtt / 10;
            let bytes = sent.iter().filter(|at| slice.contains(at)).count() as u64 * 1472;
            let even = window * 5 / 4 / 10;
            assert!((even - LEAST_BURST..=even + LEAST_BURST).contains(&bytes), "{bytes} bytes in tenth {tenth}");
        }
    }

    #[test]
    fn a_short_round_trip_is_hardly_paced() {
        let (window, rtt) = (1 << 20, 40 * US);
        let sent = send(&mut Pacer::new(), window, rtt, MS);
        assert!(sent.len() as u64 * 1472 >= 20 * window);
    }

    #[test]
    fn idle_time_saves_up_no_more_than_a_burst() {
        let mut pacer = Pacer::new();
        let (window, rtt) = (1 << 20, 100 * MS);
        send(&mut pacer, window, rtt, rtt);
        let later = Time::from_nanos(3600 * SEC);
        let mut burst = 0;
        while pacer.ready_at(later, 1472, window, rtt).is_none() {
            pacer.spend(1472);
            burst += 1472;
        }
        assert!(burst <= 2 * LEAST_BURST, "{burst} bytes");
    }
}
