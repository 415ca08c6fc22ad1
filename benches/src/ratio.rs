//! How many times another run's latency or throughput a run's is, and whether the floors of a load agree in it. An arm, its
//! floor and the floor's second run are compared in one way.

use crate::arms::{Arm, Transport};
use crate::plan::Basis;
use crate::record::Run;

/// How far a floor and its second run may lie apart before what was compared with them is void.
const FLOOR_TOLERANCE: f64 = 1.05;
/// The median over fewer rounds than these says nothing.
pub(crate) const LEAST_ROUNDS: usize = 8;

/// Says of the runs of one point how their latencies are compared, marks those whose floors disagree or did not keep up, and
/// says whether there are any.
pub(crate) fn mark_void(runs: &mut [Run]) -> bool {
    for transport in [Transport::Tcp, Transport::Udp] {
        let of_transport = |run: &Run| run.arm.transport() == transport;
        let by_rounds = runs.iter().any(|run| of_transport(run) && !run.is_settled());
        for run in runs.iter_mut().filter(|run| of_transport(run)) {
            run.by_rounds = by_rounds;
        }
        let [floor, again] = Arm::floors(transport).map(|arm| runs.iter().find(|run| run.arm == arm));
        let (Some(floor), Some(again)) = (floor, again) else { continue };
        let reason = [floor, again]
            .into_iter()
            .find_map(|floor| Some(format!("{} {}", floor.arm, floor.offer().filter(|_| floor.saturated)?)))
            .or_else(|| disagree_in_latency(floor, again))
            .or_else(|| disagree_in_throughput(floor, again));
        for run in runs.iter_mut().filter(|run| of_transport(run)) {
            run.void = reason.is_some();
            run.void_reason.clone_from(&reason);
        }
    }
    runs.iter().any(|run| run.void)
}

fn disagree_in_latency(floor: &Run, again: &Run) -> Option<String> {
    disagree(floor, again, "us", again.latency_over(floor), floor.by_rounds)
}

/// How a floor and its second run disagree in throughput, where that is compared and they do.
pub(crate) fn disagree_in_throughput(floor: &Run, again: &Run) -> Option<String> {
    let ratio = again.throughput_over(floor);
    floor.compares_throughput().then(|| disagree(floor, again, "requests a second", ratio, true)).flatten()
}

fn disagree(floor: &Run, again: &Run, unit: &str, ratio: Option<f64>, by_rounds: bool) -> Option<String> {
    let Some(ratio) = ratio else { return Some(too_few_rounds(floor.arm, again.arm)) };
    let apart = ratio.max(ratio.recip());
    (apart > FLOOR_TOLERANCE).then(|| {
        let from = match by_rounds {
            true => format!("round by round, {} of them", floor.rounds),
            false => format!("{:.1} and {:.1}", floor.figure_us(), again.figure_us()),
        };
        format!(
            "the two runs of {} in {unit} are {:.1} % apart ({from}), more than {:.0} %",
            floor.arm,
            (apart - 1.0) * 100.0,
            (FLOOR_TOLERANCE - 1.0) * 100.0
        )
    })
}

/// Why there is no ratio of two arms.
pub(crate) fn too_few_rounds(one: Arm, other: Arm) -> String {
    format!("there are fewer than {LEAST_ROUNDS} rounds in which both {one} and {other} answered")
}

impl Run {
    /// The latency that stands for an arm under this load: of one request at a time the 10th percentile of the connections'
    /// medians. Of many connections some are served at the cost of others, and the best tenth of them shows that and no
    /// more: there it is the median over all requests.
    pub(crate) fn figure_us(&self) -> f64 {
        if self.concurrency > 1 { self.latency_us.p50 } else { self.latency_us.p10_of_medians }
    }

    /// Whether that latency would be much the same if a few connections had been slower or faster, so that it can be set
    /// beside another's by itself. The median over all requests is of whatever paces the machine had.
    pub(crate) fn is_settled(&self) -> bool {
        self.concurrency == 1 && self.rounds_us.len() >= LEAST_ROUNDS && self.latency_us.is_settled()
    }

    /// How many times another run's latency this one's is, if that can be told. Where they are compared round by round, it
    /// is the median over the rounds, in each of which both had their turn.
    pub(crate) fn latency_over(&self, other: &Run) -> Option<f64> {
        if self.by_rounds {
            return median_ratio(&self.rounds_us, &other.rounds_us);
        }
        Some(self.figure_us() / other.figure_us()).filter(|&ratio| is_ratio(ratio))
    }

    /// How many times another run's throughput this one's is, if that can be told: the median over the rounds.
    pub(crate) fn throughput_over(&self, other: &Run) -> Option<f64> {
        median_ratio(&self.rounds_rps, &other.rounds_rps)
    }

    /// Whether throughput is compared, too: where connections send as fast as they are answered.
    pub(crate) fn compares_throughput(&self) -> bool {
        self.concurrency > 1 && self.offered_rps.is_none()
    }

    /// Whether its latency can be set beside a floor's: an arm that is offered a share of its own saturation is under
    /// another load than its floor, and of one that does not keep up latency says how long that went on.
    pub(crate) fn compares_latency(&self) -> bool {
        !self.saturated && self.saturation_of != Some(Basis::Own)
    }
}

/// The median of the ratios of two quantities in each round, if there is one in enough of them.
fn median_ratio(of: &[f64], to: &[f64]) -> Option<f64> {
    let mut ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).filter(|&ratio| is_ratio(ratio)).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let n = ratios.len();
    (n >= LEAST_ROUNDS).then(|| f64::midpoint(ratios[(n - 1) / 2], ratios[n / 2]))
}

fn is_ratio(ratio: f64) -> bool {
    ratio.is_finite() && ratio > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run;
    use crate::stats::LatencyUs;

    fn four(floor: f64, again: f64) -> Vec<Run> {
        let arms = [(Arm::FloorTcp, floor), (Arm::FloorTcpAgain, again), (Arm::CommodityTcp, 90.0)];
        let tcp = arms.into_iter().map(|(arm, figure)| run(arm, "p", figure));
        tcp.chain([run(Arm::FloorUdp, "p", 100.0)]).collect()
    }

    fn reason(runs: &mut [Run]) -> Option<&str> {
        mark_void(runs);
        runs[2].void_reason.as_deref()
    }

    #[test]
    fn floors_that_disagree_void_the_comparison() {
        assert_eq!(reason(&mut four(100.0, 104.9)), None);
        assert_eq!(reason(&mut four(104.9, 100.0)), None);
        let why = "the two runs of floor-tcp in us are 5.2 % apart (100.0 and 105.2), more than 5 %";
        assert_eq!(reason(&mut four(100.0, 105.2)), Some(why));
        assert!(reason(&mut four(105.2, 100.0)).is_some());
        assert!(reason(&mut four(0.0, 0.0)).is_some() && reason(&mut four(f64::NAN, 1.0)).is_some());
    }

    #[test]
    fn an_arm_of_two_paces_has_its_floors_compared_as_it_is_itself() {
        let mut runs = four(100.0, 106.0);
        for run in &mut runs {
            run.rounds_us = vec![100.0; 60];
        }
        assert!(reason(&mut runs).is_some());
        runs[2].latency_us = LatencyUs { p5_of_medians: 80.0, p15_of_medians: 100.0, ..runs[2].latency_us };
        assert_eq!(reason(&mut runs), None);
        assert_eq!(runs.iter().map(|run| run.by_rounds).collect::<Vec<_>>(), [true, true, true, false]);
        assert_eq!(runs[2].latency_over(&runs[0]), Some(1.0));
    }

    #[test]
    fn many_connections_are_compared_round_by_round_and_the_best_tenth_of_them_decides_nothing() {
        let mut runs = four(100.0, 100.0);
        for (run, times) in runs.iter_mut().zip([1.0, 1.02, 1.2, 1.0]) {
            run.concurrency = 16;
            run.rounds_us = [100.0, 210.0, 100.0].repeat(4).into_iter().map(|us| us * times).collect();
        }
        // More of its rounds were slow ones.
        runs[1].latency_us.p50 = 210.0;
        assert_eq!(reason(&mut runs), None);
        assert!(runs[2].latency_over(&runs[0]).is_some_and(|ratio| (ratio - 1.2).abs() < 1e-9));
        runs[1].rounds_us.iter_mut().for_each(|us| *us *= 1.1);
        let why = "the two runs of floor-tcp in us are 12.2 % apart (round by round, 60 of them), more than 5 %";
        assert_eq!(reason(&mut runs), Some(why));
    }

    #[test]
    fn nothing_is_made_of_a_few_rounds() {
        let mut runs = four(100.0, 100.0);
        for run in &mut runs {
            run.rounds_us.truncate(LEAST_ROUNDS - 1);
        }
        let why = "there are fewer than 8 rounds in which both floor-tcp and floor-tcp-again answered";
        assert_eq!(reason(&mut runs), Some(why));
        assert_eq!(runs[2].latency_over(&runs[0]), None);
        // Nor of throughput, though the latencies agree.
        let mut runs = four(100.0, 100.0);
        for run in &mut runs {
            run.concurrency = 16;
            run.rounds_rps[LEAST_ROUNDS - 1..].fill(0.0);
        }
        assert_eq!(reason(&mut runs), Some(why));
        assert_eq!(runs[2].throughput_over(&runs[0]), None);
    }

    #[test]
    fn nothing_is_compared_with_a_floor_that_did_not_keep_up() {
        let mut runs = four(100.0, 101.0);
        for run in &mut runs {
            run.concurrency = 16;
            run.offered_rps = Some(9_000.0);
        }
        // Without a second run that disagrees, and whatever the closed loop's throughput.
        runs[1].rounds_rps = vec![5_000.0; 60];
        runs[1].throughput_rps = 8_000.0;
        assert!(!mark_void(&mut runs));
        runs[1].saturated = true;
        assert!(mark_void(&mut runs) && runs[2].void);
        assert_eq!(runs[0].void_reason.as_deref(), Some("floor-tcp-again saturated: offered 9000/s, carried 8000/s"));
    }
}
