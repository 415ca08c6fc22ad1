//! What the entrants of a point have shown so far, what open loops are driven at in consequence, and the record of it all.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::arms::{Arm, Transport};
use crate::load::window::{Measured, PathSums};
use crate::machine::Crossed;
use crate::plan::{Basis, Drive, Entrant, Point};
use crate::process::ServerCpu;
use crate::record::{CpuUs, PathRecord, Run, stages};
use crate::stats::{Latencies, median};

/// An arm has kept up in a window in which at least this share of the requests that came was answered.
const KEPT_UP: f64 = 0.97;

/// What an entrant has shown in a point so far.
pub(crate) struct Tally {
    /// Whose it is.
    pub(crate) entrant: Entrant,
    /// Latencies of the requests answered right.
    pub(crate) latencies: Latencies,
    /// What was answered in the closed loops before an open loop's rounds, and before its last one.
    saturation: Rate,
    pace: Rate,
    /// What was meant to be sent.
    offered: Rate,
    /// Windows of an open loop at whose end more was left undone than at its beginning.
    behind: u32,
    rounds: Vec<f64>,
    medians_us: Vec<f64>,
    p99s_us: Vec<f64>,
    errors: BTreeMap<String, u64>,
    completed: f64,
    measured: Duration,
    client_cpu: Duration,
    server_cpu: ServerCpu,
    paths: PathSums,
}

impl Tally {
    /// That of an entrant that has not run yet.
    pub(crate) fn new(entrant: Entrant) -> Tally {
        Tally {
            entrant,
            latencies: Latencies::new(),
            saturation: Rate::default(),
            pace: Rate::default(),
            offered: Rate::default(),
            behind: 0,
            rounds: Vec::new(),
            medians_us: Vec::new(),
            p99s_us: Vec::new(),
            errors: BTreeMap::new(),
            completed: 0.0,
            measured: Duration::ZERO,
            client_cpu: Duration::ZERO,
            server_cpu: ServerCpu { host: Some(Duration::ZERO), nic: Some(Duration::ZERO) },
            paths: PathSums::default(),
        }
    }

    /// Adds a closed loop before an open one. Of its requests only those that failed count.
    pub(crate) fn calibrate(&mut self, measured: Measured) {
        self.pace = Rate { requests: measured.completed, seconds: measured.elapsed.as_secs_f64() };
        self.saturation.add(self.pace);
        self.fail(measured.errors);
    }

    fn fail(&mut self, errors: BTreeMap<String, u64>) {
        for (kind, count) in errors {
            *self.errors.entry(kind).or_default() += count;
        }
    }

    /// Adds a window, in which requests were to come at a rate.
    pub(crate) fn add(&mut self, mut measured: Measured, rate: Option<f64>) {
        if let Some(rps) = rate {
            let seconds = measured.elapsed.as_secs_f64();
            self.offered.add(Rate { requests: rps * seconds, seconds });
            self.behind += u32::from(measured.completed < KEPT_UP * measured.came() as f64);
        }
        for connection in &mut measured.latencies {
            self.latencies.add_connection(connection);
        }
        let mut of_round = measured.latencies.concat();
        self.medians_us.push(median(&mut of_round).unwrap_or_default() as f64 / 1e3);
        self.p99s_us.extend(p99(&mut of_round).map(|nanos| nanos as f64 / 1e3));
        self.fail(measured.errors);
        if measured.turned_away > 0 {
            *self.errors.entry("the client's queue was full".to_owned()).or_default() += measured.turned_away;
        }
        self.rounds.push(measured.completed / measured.elapsed.as_secs_f64().max(1e-9));
        self.completed += measured.completed;
        self.measured += measured.elapsed;
        self.client_cpu += measured.client_cpu;
        self.server_cpu = self.server_cpu.and(measured.server_cpu);
        self.paths.merge(&measured.paths);
    }

    /// Adds a round in which there was nothing to drive it at: rounds are those of all arms.
    pub(crate) fn pass(&mut self) {
        self.rounds.push(0.0);
        self.medians_us.push(0.0);
    }

    /// Whether requests come faster than they are answered. A stall at the end of a window is no saturation, and where more
    /// is under way at the end of a window than at its beginning, chance may be why: it is by chance in about half of the
    /// windows, and seldom in more than that by the root of their number.
    fn falls_behind(&self) -> bool {
        let windows = self.rounds.len() as f64;
        f64::from(self.behind) > windows / 2.0 + windows.sqrt()
    }

    fn throughput_rps(&self) -> f64 {
        self.completed / self.measured.as_secs_f64().max(1e-9)
    }

    /// The record, where an answer is of use within `target_us`.
    pub(crate) fn record(&self, point: &Point, crossed: Crossed, target_us: Option<f64>) -> Run {
        let Entrant { arm, wait, datagram, drop } = self.entrant;
        let throughput_rps = self.throughput_rps();
        let payload = f64::from(point.request_bytes) + f64::from(point.response_bytes);
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / self.completed.max(1.0);
        let ServerCpu { host, nic } = self.server_cpu;
        let cpu_s = host.map(|_| (self.server_cpu.sum() + self.client_cpu).as_secs_f64());
        let path = PathRecord::of(&self.paths);
        let errors = self.errors.values().sum();
        let saturated = matches!(point.drive, Drive::Saturation(..)) && self.falls_behind();
        let opened = self.rounds.len().div_ceil(point.rounds_kept() as usize) * point.concurrency;
        let latency_target_us = target_us.filter(|_| point.drive != Drive::Closed);
        let (arrivals, of_saturation, saturation_of) = match point.drive {
            Drive::Closed => (None, None, None),
            Drive::Rate(arrivals, _) => (Some(arrivals), None, None),
            Drive::Saturation(arrivals, share, basis) => (Some(arrivals), Some(share), Some(basis)),
        };
        Run {
            arm,
            emulated: path.as_ref().is_some_and(|path| path.emulated),
            model: point.workload.name(),
            request_bytes: point.request_bytes,
            response_bytes: point.response_bytes,
            concurrency: point.concurrency,
            offered_rps: self.offered.mean(),
            wait,
            requests: self.latencies.len(),
            errors,
            latency_us: self.latencies.summary(),
            throughput_rps,
            rounds_rps: self.rounds.clone(),
            rounds_us: self.medians_us.clone(),
            rounds_p99_us: middle(&self.p99s_us),
            by_rounds: false,
            cpu_us_per_request: CpuUs {
                client: each(self.client_cpu),
                server: host.map(each),
                nic: nic.filter(|_| arm.is_smartnic()).map(each),
            },
            server_memory: None,
            stages_us: stages(&self.paths),
            path,
            crossed,
            point: point.id(),
            section: point.section.name(),
            arrivals,
            of_saturation,
            saturation_of,
            saturation_rps: self.saturation.mean(),
            saturated,
            datagram: (arm.transport() == Transport::Udp).then_some(datagram),
            drop,
            rounds: self.rounds.len() as u32,
            // Those that are kept for some rounds have a median in each.
            connections: self.latencies.connections().min(opened),
            measured_s: self.measured.as_secs_f64(),
            bytes_per_s: throughput_rps * payload,
            cpu_s_per_gb: cpu_s.filter(|_| self.completed > 0.0).map(|cpu| cpu / (self.completed * payload / 1e9)),
            latency_target_us,
            goodput_rps: latency_target_us.map(|target| throughput_rps * self.latencies.share_within(target)),
            others_cpu_share: None,
            void: false,
            void_reason: None,
            error_kinds: self.errors.clone(),
            curve: self.latencies.curve(),
        }
    }
}

/// The rates at which a point's entrants are driven, each `None` in a closed loop or where it is not known.
pub(crate) fn rates(point: &Point, tallies: &[Tally]) -> Vec<Option<f64>> {
    let own = tallies.iter().map(|tally| pace(tally.entrant.arm, tallies));
    match point.drive {
        Drive::Closed => vec![None; tallies.len()],
        Drive::Rate(_, rps) => vec![Some(rps); tallies.len()],
        Drive::Saturation(_, share, Basis::Own) => own.map(|own| Some(own? * share)).collect(),
        Drive::Saturation(_, share, Basis::Slowest) => {
            let slowest = own.flatten().min_by(f64::total_cmp);
            vec![slowest.map(|slowest| slowest * share); tallies.len()]
        }
    }
}

/// What the last closed loop has shown of an arm. A floor and its second run count as one, so that they are driven at one
/// rate.
fn pace(arm: Arm, tallies: &[Tally]) -> Option<f64> {
    let floors = Arm::floors(arm.transport());
    let same = |other: Arm| other == arm || floors.contains(&arm) && floors.contains(&other);
    let mut rate = Rate::default();
    for tally in tallies.iter().filter(|tally| same(tally.entrant.arm)) {
        rate.add(tally.pace);
    }
    rate.mean().filter(|&rps| rps > 0.0)
}

/// What all but one in a hundred took at most, if there were any.
fn p99(latencies: &mut [u64]) -> Option<u64> {
    latencies.sort_unstable();
    latencies.get((latencies.len() * 99).div_ceil(100).checked_sub(1)?).copied()
}

/// The median, if there are any.
fn middle(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    (n > 0).then(|| f64::midpoint(values[(n - 1) / 2], values[n / 2]))
}

/// Requests over time.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    requests: f64,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, other: Rate) {
        self.requests += other.requests;
        self.seconds += other.seconds;
    }

    /// Requests a second, if there was any time.
    fn mean(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.requests / self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::arrivals::Arrivals;
    use crate::plan;

    fn point(basis: Basis) -> Point {
        let mut points = plan::full(&Arm::NETWORK);
        points.retain(|point| point.drive == Drive::Saturation(Arrivals::Poisson, 0.7, basis));
        let mut point = points.remove(0);
        point.entrants.retain(|entrant| !entrant.arm.is_smartnic());
        point
    }

    /// Tallies of all arms after closed loops of a tenth of a second: floors at 900 and 1,100, others at 500 and slower.
    fn tallies(point: &Point) -> Vec<Tally> {
        let mut tallies: Vec<Tally> = point.entrants.iter().map(|&entrant| Tally::new(entrant)).collect();
        for (tally, completed) in tallies.iter_mut().zip([90.0, 110.0, 90.0, 110.0, 50.0, 40.0, 30.0]) {
            tally.calibrate(Measured { completed, elapsed: Duration::from_millis(100), ..Measured::default() });
        }
        tallies
    }

    fn rounded(rates: Vec<Option<f64>>) -> Vec<Option<u64>> {
        rates.into_iter().map(|rps| rps.map(|rps| rps.round() as u64)).collect()
    }

    #[test]
    fn each_arm_is_driven_at_a_share_of_its_own_and_a_floor_as_its_second_run() {
        let point = point(Basis::Own);
        let mut tallies = tallies(&point);
        let own = [700, 700, 700, 700, 350, 280, 210].map(Some);
        assert_eq!(rounded(rates(&point, &tallies)), own);
        // The pace is that of the round, and what is reported that of all of them.
        tallies[5].calibrate(Measured { completed: 80.0, elapsed: Duration::from_millis(100), ..Measured::default() });
        assert_eq!(rounded(rates(&point, &tallies))[5], Some(560));
        assert!((tallies[5].saturation.mean().unwrap() - 600.0).abs() < 1e-6);
    }

    #[test]
    fn all_arms_are_driven_at_a_share_of_the_slowest() {
        let point = point(Basis::Slowest);
        let mut tallies = tallies(&point);
        assert_eq!(rounded(rates(&point, &tallies)), [Some(210); 7]);
        // One that answers nothing holds nobody up.
        tallies[6].calibrate(Measured { elapsed: Duration::from_millis(100), ..Measured::default() });
        assert_eq!(rounded(rates(&point, &tallies)), [Some(280); 7]);
    }

    #[test]
    fn the_median_of_a_round_is_that_of_all_its_requests() {
        let point = point(Basis::Own);
        let mut tally = Tally::new(point.entrants[0]);
        // Whatever the connections' own medians are.
        tally.add(Measured { latencies: vec![vec![9_000], vec![1_000, 2_000, 3_000]], ..Measured::default() }, None);
        tally.pass();
        tally.add(Measured { latencies: vec![vec![4_000]], ..Measured::default() }, None);
        let run = tally.record(&point, Crossed::Loopback, None);
        assert_eq!((run.rounds_us, run.requests, run.connections), (vec![2.5, 0.0, 4.0], 5, 3));
        // One that answered nothing has no slowest answers.
        assert_eq!(run.rounds_p99_us, Some(6.5));
    }

    #[test]
    fn who_falls_behind_in_more_windows_than_chance_has_it_is_saturated() {
        let point = point(Basis::Own);
        let window = |completed: u64, came| Measured {
            completed: completed as f64,
            latencies: vec![vec![1_000; came]],
            elapsed: Duration::from_millis(100),
            ..Measured::default()
        };
        let saturated = |windows: &[u64]| {
            let mut tally = Tally::new(point.entrants[0]);
            for &completed in windows {
                tally.add(window(completed, 100), Some(1_000.0));
            }
            let run = tally.record(&point, Crossed::Loopback, None);
            (run.saturated, run.offered_rps.map(f64::round), run.throughput_rps.round())
        };
        assert_eq!(saturated(&[100, 99, 101]), (false, Some(1_000.0), 1_000.0));
        assert_eq!(saturated(&[90; 10]), (true, Some(1_000.0), 900.0));
        // Stalls, and what is under way by chance.
        assert_eq!(saturated(&[100, 40, 100]), (false, Some(1_000.0), 800.0));
        assert_eq!(saturated(&[96, 104].repeat(8)), (false, Some(1_000.0), 1_000.0));
        assert!(!saturated(&[vec![96; 12], vec![104; 8]].concat()).0);
        assert!(saturated(&[vec![96; 15], vec![104; 5]].concat()).0);
        assert_eq!(saturated(&[]), (false, None, 0.0));
    }
}
