//! The congestion controller against a bottleneck: a link of so many bytes a second with a queue before it.

use std::collections::VecDeque;

use splitrpc_engine::{AckSample, Congestion, DelayControl, MS, Time, US};

const DATAGRAM: u64 = 1472;

struct Path {
    control: DelayControl,
    now: u64,
    bytes_per_second: u64,
    rtt: u64,
    /// Lost of each thousand.
    loss: u64,
    dice: u64,
    /// Sent and not yet settled: when the acknowledgement or the news of its loss arrives, when it was sent, lost.
    flying: VecDeque<(u64, u64, bool)>,
    /// When the bottleneck is done with what it has.
    busy_until: u64,
    min_rtt: u64,
    smoothed: u64,
    delivered: u64,
    queued: u64,
}

impl Path {
    fn new(bytes_per_second: u64, rtt: u64) -> Path {
        Path {
            control: DelayControl::new(DATAGRAM),
            now: 0,
            bytes_per_second,
            rtt,
            loss: 0,
            dice: 1,
            flying: VecDeque::new(),
            busy_until: 0,
            min_rtt: u64::MAX,
            smoothed: 10 * MS,
            delivered: 0,
            queued: 0,
        }
    }

    fn lost(&mut self) -> bool {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % 1000 < self.loss
    }

    /// Sends as much as the window lets for `nanos`. Returns the bytes delivered each second.
    fn run(&mut self, nanos: u64) -> u64 {
        let (until, before) = (self.now + nanos, self.delivered);
        while self.now < until {
            while (self.flying.len() as u64 + 1) * DATAGRAM <= self.control.window() {
                self.busy_until = self.busy_until.max(self.now) + DATAGRAM * 1_000_000_000 / self.bytes_per_second;
                let lost = self.lost();
                self.flying.push_back((self.busy_until + self.rtt, self.now, lost));
            }
            self.queued = self.queued.max(self.busy_until.saturating_sub(self.now));
            let (at, sent_at, lost) = self.flying.pop_front().unwrap();
            self.now = at;
            let now = Time::from_nanos(at);
            if lost {
                self.control.on_loss(now, DATAGRAM, self.smoothed);
                continue;
            }
            let rtt = at - sent_at;
            self.min_rtt = self.min_rtt.min(rtt);
            self.smoothed = (7 * self.smoothed + rtt) / 8;
            self.delivered += DATAGRAM;
            self.control.on_ack(&AckSample {
                now,
                bytes: DATAGRAM,
                rtt_ns: Some(rtt),
                min_rtt_ns: self.min_rtt,
                smoothed_rtt_ns: self.smoothed,
                window_limited: true,
            });
        }
        (self.delivered - before) * 1000 / (nanos / MS)
    }
}

const GIGABIT: u64 = 125_000_000;

#[test]
fn the_window_grows_until_the_path_is_full_and_no_queue_stands() {
    for rtt in [50 * US, MS, 20 * MS] {
        let mut path = Path::new(GIGABIT, rtt);
        path.run(2_000 * MS);
        path.queued = 0;
        let rate = path.run(2_000 * MS);
        assert!(rate > GIGABIT * 9 / 10, "{rate} B/s at a round trip of {rtt} ns");
        assert!(path.queued < 3 * MS + rtt, "a queue of {} ns at {rtt} ns", path.queued);
    }
}

#[test]
fn the_window_does_not_grow_while_it_is_not_what_limits() {
    let mut control = DelayControl::new(DATAGRAM);
    let before = control.window();
    for n in 0..1000 {
        control.on_ack(&AckSample {
            now: Time::from_nanos(n * MS),
            bytes: DATAGRAM,
            rtt_ns: Some(MS),
            min_rtt_ns: MS,
            smoothed_rtt_ns: MS,
            window_limited: false,
        });
    }
    assert_eq!(control.window(), before);
}

#[test]
fn a_little_random_loss_is_taken_for_noise() {
    // With the larger one every round trip loses several datagrams.
    for bottleneck in [GIGABIT, 8 * GIGABIT] {
        let mut path = Path::new(bottleneck, MS);
        path.loss = 10;
        path.run(1_000 * MS);
        let rate = path.run(1_000 * MS);
        assert!(rate > bottleneck * 8 / 10, "{rate} of {bottleneck} B/s");
    }
}

#[test]
fn much_loss_shrinks_the_window_and_it_recovers() {
    let mut path = Path::new(GIGABIT, 5 * MS);
    path.run(2_000 * MS);
    let full = path.control.window();
    path.loss = 200;
    path.run(500 * MS);
    let shrunk = path.control.window();
    assert!(shrunk < full / 4, "from {full} to {shrunk}");
    assert!(shrunk >= 8 * DATAGRAM);
    path.loss = 0;
    path.run(2_000 * MS);
    let rate = path.run(1_000 * MS);
    assert!(rate > GIGABIT * 9 / 10, "{rate} B/s after it healed");
}

#[test]
fn a_slower_bottleneck_shrinks_the_window() {
    let mut path = Path::new(GIGABIT, 5 * MS);
    path.run(2_000 * MS);
    let full = path.control.window();
    path.bytes_per_second /= 10;
    path.run(2_000 * MS);
    path.queued = 0;
    let rate = path.run(2_000 * MS);
    assert!(path.control.window() < full / 4, "from {full} to {}", path.control.window());
    assert!(rate > GIGABIT / 10 * 9 / 10 && path.queued < 10 * MS, "{rate} B/s, a queue of {} ns", path.queued);
}

#[test]
fn silence_starts_it_over() {
    let mut path = Path::new(GIGABIT, 5 * MS);
    path.run(2_000 * MS);
    let full = path.control.window();
    path.control.on_silence();
    assert_eq!(path.control.window(), 8 * DATAGRAM);
    path.run(200 * MS);
    assert!(path.control.window() > full / 2);
}
