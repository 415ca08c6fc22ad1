//! Round-trip estimate, after RFC 9002 section 5.

use crate::Time;
use crate::time::{MS, SEC, US};

/// Longest that a receiver sits on an acknowledgement, in nanoseconds.
pub(crate) const MAX_ACK_DELAY: u64 = 250 * US;
const INITIAL: u64 = 10 * MS;
/// Shorter timers would measure the peer's scheduler, not the path.
const GRANULARITY: u64 = 100 * US;
/// The minimum is that of the last one to two of these, so that a path that has become longer does not pass for a queue
/// for ever.
const MIN_EPOCH: u64 = 10 * SEC;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    smoothed: u64,
    variation: u64,
    min: u64,
    /// The minimum since this epoch began, and when it ends.
    epoch_min: u64,
    epoch_end: Time,
    latest: u64,
    sampled: bool,
}

impl Rtt {
    pub(crate) const fn new() -> Rtt {
        Rtt {
            smoothed: INITIAL,
            variation: INITIAL / 2,
            min: u64::MAX,
            epoch_min: u64::MAX,
            epoch_end: Time::NEVER,
            latest: INITIAL,
            sampled: false,
        }
    }

    /// Takes in a round trip, and returns it without the peer's delay.
    #[inline]
    pub(crate) fn sample(&mut self, now: Time, rtt: u64, ack_delay: u64) -> u64 {
        let rtt = rtt.max(1);
        self.latest = rtt;
        if !self.sampled {
            self.epoch_end = now + MIN_EPOCH;
        } else if now >= self.epoch_end {
            self.epoch_end = now + MIN_EPOCH;
            self.min = self.epoch_min;
            self.epoch_min = u64::MAX;
        }
        self.epoch_min = self.epoch_min.min(rtt);
        self.min = self.min.min(rtt);
        // The peer's delay is believed only as far as the path's minimum allows.
        let adjusted = if rtt >= self.min.saturating_add(ack_delay) { rtt - ack_delay } else { rtt };
        if !self.sampled {
            self.sampled = true;
            self.smoothed = adjusted;
            self.variation = adjusted / 2;
        } else {
            self.variation = (3 * self.variation + self.smoothed.abs_diff(adjusted)) / 4;
            self.smoothed = (7 * self.smoothed + adjusted) / 8;
        }
        adjusted
    }

    /// The round trip is no longer than this, which has the peer's computing in it: better than nothing. Requests that are small are answered before
    /// anything has to be acknowledged, so that none may be measured for long.
    #[inline]
    pub(crate) fn bound(&mut self, most: u64) {
        if !self.sampled && most < self.smoothed {
            (self.smoothed, self.variation, self.latest) = (most.max(1), most / 2, most.max(1));
        }
    }

    pub(crate) fn smoothed(&self) -> u64 {
        self.smoothed
    }

    /// Whether any round trip was measured.
    pub(crate) fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The smallest round trip seen, or the smoothed one before any.
    pub(crate) fn min(&self) -> u64 {
        if self.sampled { self.min } else { self.smoothed }
    }

    /// How long after a later packet's acknowledgement an earlier one counts as lost.
    #[inline]
    pub(crate) fn loss_delay(&self) -> u64 {
        let rtt = self.smoothed.max(self.latest);
        (rtt + rtt / 8).max(GRANULARITY)
    }

    /// How long to wait for an acknowledgement before asking for it.
    #[inline]
    pub(crate) fn probe_timeout(&self) -> u64 {
        self.smoothed + (4 * self.variation).max(GRANULARITY) + MAX_ACK_DELAY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(SEC);

    #[test]
    fn the_first_sample_is_believed_and_later_ones_smooth_it() {
        let mut rtt = Rtt::new();
        assert_eq!((rtt.smoothed(), rtt.min()), (INITIAL, INITIAL));
        rtt.sample(START, 2 * MS, 0);
        assert_eq!((rtt.smoothed(), rtt.min()), (2 * MS, 2 * MS));
        rtt.sample(START, 10 * MS, 0);
        assert_eq!((rtt.smoothed(), rtt.min()), (3 * MS, 2 * MS));
        (0..100).for_each(|_| _ = rtt.sample(START, 10 * MS, 0));
        assert!((10 * MS).abs_diff(rtt.smoothed()) < MS / 100 && rtt.min() == 2 * MS);
    }

    #[test]
    fn answers_bound_it_until_it_is_measured() {
        let mut rtt = Rtt::new();
        rtt.bound(20 * MS);
        assert_eq!(rtt.smoothed(), INITIAL, "that is known already");
        rtt.bound(MS);
        rtt.bound(3 * MS);
        assert_eq!((rtt.smoothed(), rtt.min(), rtt.is_sampled()), (MS, MS, false));
        rtt.sample(START, 2 * MS, 0);
        rtt.bound(MS);
        assert_eq!((rtt.smoothed(), rtt.min()), (2 * MS, 2 * MS));
    }

    #[test]
    fn the_peers_delay_is_taken_off_unless_it_lies() {
        let mut rtt = Rtt::new();
        rtt.sample(START, MS, 0);
        (0..100).for_each(|_| _ = rtt.sample(START, 3 * MS, 2 * MS));
        assert!(rtt.smoothed() < MS + MS / 100);
        let mut rtt = Rtt::new();
        rtt.sample(START, MS, u64::MAX);
        (0..100).for_each(|_| _ = rtt.sample(START, 3 * MS, u64::MAX));
        assert!(rtt.smoothed() > 2 * MS, "a delay longer than the round trip");
    }

    #[test]
    fn timers_follow_it_and_never_reach_zero() {
        let mut rtt = Rtt::new();
        (0..100).for_each(|_| _ = rtt.sample(START, 0, 0));
        assert!(rtt.loss_delay() >= GRANULARITY && rtt.probe_timeout() > MAX_ACK_DELAY);
        rtt.sample(START, SEC, 0);
        assert!(rtt.loss_delay() > SEC && rtt.probe_timeout() > SEC / 2);
    }

    #[test]
    fn a_path_that_became_longer_does_not_pass_for_a_queue_for_ever() {
        let mut rtt = Rtt::new();
        rtt.sample(START, MS, 0);
        let mut now = START;
        while now < START + 2 * MIN_EPOCH + SEC {
            now = now + SEC / 10;
            rtt.sample(now, 20 * MS, 0);
        }
        assert_eq!(rtt.min(), 20 * MS);
        rtt.sample(now, 5 * MS, 0);
        assert_eq!(rtt.min(), 5 * MS, "a shorter one is believed at once");
    }
}
