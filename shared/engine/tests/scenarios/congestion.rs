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

/// How many bytes each of two gets through the same bottleneck, of whom the first was there long before the second.
fn shares(bytes_per_second: u64, rtt: u64) -> [u64; 2] {
    let mut alone = Path::new(bytes_per_second, rtt);
    alone.run(1_000 * MS);
    let mut late = DelayControl::new(DATAGRAM);
    late.on_silence();
    // It has found out already that the path is not all its own.
    late.on_loss(Time::default(), 100 * DATAGRAM, rtt);
    let mut controls = [alone.control, late];
    let (mut under_way, mut delivered) = ([0u64; 2], [0; 2]);
    let mut flying: VecDeque<(u64, u64, usize)> = VecDeque::new();
    let (mut now, mut busy_until, mut smoothed) = (0, 0, [rtt; 2]);
    while now < 2_000 * MS {
        for (who, control) in controls.iter().enumerate() {
            while (under_way[who] + 1) * DATAGRAM <= control.window() {
                busy_until = u64::max(busy_until, now) + DATAGRAM * 1_000_000_000 / bytes_per_second;
                flying.push_back((busy_until + rtt, now, who));
                under_way[who] += 1;
            }
        }
        let (at, sent_at, who) = flying.pop_front().unwrap();
        now = at;
        under_way[who] -= 1;
        smoothed[who] = (7 * smoothed[who] + (at - sent_at)) / 8;
        delivered[who] += if now > 1_000 * MS { DATAGRAM } else { 0 };
        controls[who].on_ack(&AckSample {
            now: Time::from_nanos(now),
            bytes: DATAGRAM,
            rtt_ns: Some(at - sent_at),
            min_rtt_ns: rtt,
            smoothed_rtt_ns: smoothed[who],
            window_limited: true,
        });
    }
    delivered
}

#[test]
fn who_shares_a_path_comes_to_share_it_evenly() {
    for (bytes_per_second, rtt) in [(8 * GIGABIT, 50 * US), (8 * GIGABIT, MS), (GIGABIT, 5 * MS)] {
        let [early, late] = shares(bytes_per_second, rtt);
        assert!(early < 2 * late && late < 2 * early, "{early} and {late} bytes at a round trip of {rtt} ns");
        assert!(early + late > bytes_per_second * 85 / 100, "{} bytes a second", early + late);
    }
}
