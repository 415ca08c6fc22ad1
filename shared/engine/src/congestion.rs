//! How many bytes may be on their way: the trait, and a controller that steers by delay.

use crate::Time;
use crate::time::US;

/// What a controller learns from an acknowledgement.
#[derive(Clone, Copy, Debug)]
pub struct AckSample {
    /// When it arrived.
    pub now: Time,
    /// Bytes that it newly acknowledged.
    pub bytes: u64,
    /// The round trip that it measured, in nanoseconds, where it measured one.
    pub rtt_ns: Option<u64>,
    /// The smallest round trip seen on this session, in nanoseconds.
    pub min_rtt_ns: u64,
    /// Smoothed round trip, in nanoseconds.
    pub smoothed_rtt_ns: u64,
    /// Whether the window was what held the sender back.
    pub window_limited: bool,
}

/// A congestion controller: one a session and direction.
pub trait Congestion: Clone {
    /// A controller for datagrams of `datagram` bytes.
    fn new(datagram: u64) -> Self;
    /// Bytes that may be in flight.
    fn window(&self) -> u64;
    /// Bytes were acknowledged.
    fn on_ack(&mut self, sample: &AckSample);
    /// Bytes count as lost.
    fn on_loss(&mut self, now: Time, bytes: u64, smoothed_rtt_ns: u64);
    /// Nothing was heard for several probe timeouts.
    fn on_silence(&mut self);
}

/// Keeps the queueing delay near a target, in the manner of Swift (Kumar et al., SIGCOMM 2020): the window grows while the
/// round trip stays below target and shrinks in proportion to the excess. A few lost datagrams are taken for noise; loss
/// counts as congestion only above a share of a round's bytes, as BBRv2 does, because datagrams are also lost for reasons
/// that sending slower does not mend.
#[derive(Clone, Debug)]
pub struct DelayControl {
    window: u64,
    datagram: u64,
    slow_start: bool,
    /// The window is cut at most once a round trip.
    next_cut: Time,
    round_end: Time,
    round_acked: u64,
    round_lost: u64,
}

/// Queueing that is tolerated above the smallest round trip. Below this, wake-ups of a sleeping peer would pass for queues.
const QUEUE_TARGET: u64 = 800 * US;
/// Windows from this size on have the shortest target, smaller ones up to so many times that.
const FULL_SHARE: u64 = 1 << 20;
const MOST_PATIENCE: u64 = 4;
/// Bytes that a window gains each round trip, besides a share of its own.
const STEP: u64 = 16 << 10;
const STEP_SHARE: u64 = 32;
const LOSS_PER_CENT: u64 = 5;
const LEAST_LOST_DATAGRAMS: u64 = 4;
const MAX_WINDOW: u64 = 16 << 20;

impl DelayControl {
    fn least(&self) -> u64 {
        8 * self.datagram
    }

    /// Those with small windows bear longer queues than those with large ones, so that who shares a path comes to share it
    /// evenly (section 3.1.3 there).
    fn queue_target(&self, min_rtt: u64) -> u64 {
        let times_8 = (64 * FULL_SHARE / self.window).isqrt().clamp(8, 8 * MOST_PATIENCE);
        QUEUE_TARGET.max(min_rtt / 2) * times_8 / 8
    }

    fn cut(&mut self, now: Time, rtt: u64, keep_per_cent: u64) {
        if now >= self.next_cut {
            self.slow_start = false;
            self.window = (self.window * keep_per_cent / 100).max(self.least());
            self.next_cut = now + rtt;
        }
    }

    fn roll_round(&mut self, now: Time, rtt: u64) {
        if now >= self.round_end {
            self.round_end = now + rtt;
            self.round_acked = 0;
            self.round_lost = 0;
        }
    }
}

impl Congestion for DelayControl {
    fn new(datagram: u64) -> DelayControl {
        DelayControl {
            window: (16 * datagram).max(64 << 10),
            datagram,
            slow_start: true,
            next_cut: Time::default(),
            round_end: Time::default(),
            round_acked: 0,
            round_lost: 0,
        }
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn on_ack(&mut self, sample: &AckSample) {
        self.roll_round(sample.now, sample.smoothed_rtt_ns);
        self.round_acked += sample.bytes;
        if let Some(rtt) = sample.rtt_ns
            && rtt > sample.min_rtt_ns + QUEUE_TARGET
            && let target = sample.min_rtt_ns + self.queue_target(sample.min_rtt_ns)
            && rtt > target
        {
            let excess = 100 * (rtt - target) / rtt;
            self.cut(sample.now, sample.smoothed_rtt_ns, 100 - (excess * 4 / 5).min(50));
            return;
        }
        if sample.window_limited {
            let grown = match self.slow_start {
                true => sample.bytes,
                false => sample.bytes * STEP / self.window + sample.bytes / STEP_SHARE + 1,
            };
            self.window = (self.window + grown).min(MAX_WINDOW);
        }
    }

    fn on_loss(&mut self, now: Time, bytes: u64, smoothed_rtt_ns: u64) {
        self.roll_round(now, smoothed_rtt_ns);
        self.round_lost += bytes;
        let seen = self.round_acked + self.round_lost;
        if self.round_lost >= LEAST_LOST_DATAGRAMS * self.datagram && 100 * self.round_lost > LOSS_PER_CENT * seen {
            self.cut(now, smoothed_rtt_ns, 70);
        }
    }

    fn on_silence(&mut self) {
        self.window = self.least();
        self.slow_start = true;
    }
}
