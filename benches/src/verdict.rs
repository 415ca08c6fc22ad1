//! The figures: what the project promises, read off the runs of one comparison.

use serde::Serialize;

use crate::arms::{Arm, DATAGRAM, JUMBO_DATAGRAM, Transport};
use crate::crowd::{self, Crowd};
use crate::plan::{IMAGE, Section};
use crate::record::{Idle, Run};
use crate::stats::void_reason;
use crate::wait::Wait;

/// Which way a figure must lie from its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sense {
    /// No more than the target.
    AtMost,
    /// No less.
    AtLeast,
}

/// A figure against its target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// What is promised.
    pub(crate) what: String,
    /// The value measured; null where the runs that it needs were not made.
    pub(crate) value: Option<f64>,
    /// Which way it must lie.
    pub(crate) sense: Sense,
    /// The target.
    pub(crate) target: f64,
    /// Whether it is met; null where not measured or void.
    pub(crate) met: Option<bool>,
    /// Why it says nothing: the floors disagree.
    pub(crate) void: Option<String>,
    /// The numbers behind it.
    pub(crate) detail: String,
}

/// Marks the runs whose floors disagree, among runs of one point.
pub(crate) fn mark_void(runs: &mut [Run]) {
    for transport in [Transport::Tcp, Transport::Udp] {
        let [floor, again] = Arm::floors(transport).map(|arm| runs.iter().find(|run| run.arm == arm));
        let (Some(floor), Some(again)) = (floor, again) else { continue };
        let name = floor.arm.name();
        let reason = void_reason(name, floor.latency_us.p10_of_medians, again.latency_us.p10_of_medians);
        for run in runs.iter_mut().filter(|run| run.arm.transport() == transport) {
            run.void = reason.is_some();
            run.void_reason.clone_from(&reason);
        }
    }
}

/// The runs of one point.
#[derive(Clone, Copy)]
struct Picked<'a> {
    runs: &'a [Run],
    section: Section,
    size: u32,
    concurrency: usize,
    wait: Option<Wait>,
    datagram: Option<u16>,
}

impl<'a> Picked<'a> {
    fn run(&self, arm: Arm) -> Option<&'a Run> {
        self.runs.iter().find(|run| {
            run.arm == arm
                && run.section == self.section.name()
                && run.request_bytes == self.size
                && run.concurrency == self.concurrency
                && self.wait.is_none_or(|wait| run.wait == wait)
                && self.datagram.is_none_or(|datagram| run.datagram == Some(datagram))
        })
    }

    /// How many times the floor's latency an arm's is.
    fn latency(&self, what: String, arm: Arm, target: f64) -> Figure {
        let floor = Arm::floors(arm.transport())[0];
        let pair = self.run(arm).zip(self.run(floor));
        let value = pair.map(|(run, floor)| run.latency_us.p10_of_medians / floor.latency_us.p10_of_medians);
        let detail = pair.map_or(String::new(), |(run, floor)| {
            let (run, floor) = (run.latency_us.p10_of_medians, floor.latency_us.p10_of_medians);
            format!("{run:.1} us, floor {floor:.1} us")
        });
        let void = pair.and_then(|(run, _)| run.void_reason.clone());
        Figure::new(what, value, Sense::AtMost, target, void, detail)
    }

    /// How many times another arm's bytes a second an arm carries.
    fn throughput(&self, what: String, arm: Arm, other: Arm, target: f64) -> Figure {
        let pair = self.run(arm).zip(self.run(other));
        let value = pair.map(|(run, other)| run.p90_of_rounds_rps / other.p90_of_rounds_rps);
        let detail = pair.map_or(String::new(), |(run, other)| {
            format!("{}; {other} {}", carried(run), carried(other), other = other.arm)
        });
        let [floor, again] = Arm::floors(arm.transport()).map(|arm| self.run(arm));
        let void = floor
            .zip(again)
            .and_then(|(floor, again)| void_reason(floor.arm.name(), floor.p90_of_rounds_rps, again.p90_of_rounds_rps));
        Figure::new(what, value, Sense::AtLeast, target, void, detail)
    }
}

fn carried(run: &Run) -> String {
    let gigabytes = run.p90_of_rounds_rps * f64::from(run.request_bytes + run.response_bytes) / 1e9;
    match run.cpu_s_per_gb {
        Some(cpu) => format!("{gigabytes:.2} GB/s at {cpu:.2} CPU s/GB"),
        None => format!("{gigabytes:.2} GB/s"),
    }
}

impl Figure {
    fn new(
        what: String,
        value: Option<f64>,
        sense: Sense,
        target: f64,
        void: Option<String>,
        detail: String,
    ) -> Figure {
        let value = value.filter(|value| value.is_finite());
        let void = void.filter(|_| value.is_some());
        let met = value.filter(|_| void.is_none()).map(|value| match sense {
            Sense::AtMost => value <= target,
            Sense::AtLeast => value >= target,
        });
        Figure { what, value, sense, target, met, void, detail }
    }

    /// The verdict in a word.
    pub(crate) fn verdict(&self) -> &'static str {
        match (self.value, &self.void, self.met) {
            (None, ..) => "not measured",
            (_, Some(_), _) => "void",
            (.., Some(true)) => "met",
            (..) => "missed",
        }
    }
}

/// All figures that the project promises of this machine.
pub(crate) fn figures(runs: &[Run], idle: &[Idle], crowd: Option<&Crowd>) -> Vec<Figure> {
    let single = |size, wait, datagram| Picked {
        runs,
        section: Section::Single,
        size,
        concurrency: 1,
        wait: Some(wait),
        datagram,
    };
    let mut figures = Vec::new();
    let (tcp, udp) = (Arm::CommodityTcp, Arm::CommodityUdp);
    for (size, target) in [(IMAGE, 1.15), (64, 1.5)] {
        let what = format!("{tcp} against its floor, {size} B, one at a time, spin");
        figures.push(single(size, Wait::Spin, None).latency(what, tcp, target));
    }
    for (size, datagram, target) in [(IMAGE, DATAGRAM, 1.5), (64, DATAGRAM, 1.5), (IMAGE, JUMBO_DATAGRAM, 1.3)] {
        let what = format!("{udp} against its floor, {size} B, one at a time, spin, {datagram}-byte datagrams");
        figures.push(single(size, Wait::Spin, Some(datagram)).latency(what, udp, target));
    }
    for size in [64, IMAGE] {
        let light = Picked { runs, section: Section::Light, size, concurrency: 1, wait: None, datagram: None };
        let what = format!("{tcp}, adaptive, against a blocking floor, {size} B, 250 requests a second");
        let figure = light.latency(what, tcp, 1.15);
        if figure.value.is_some() || size == IMAGE {
            figures.push(figure);
        }
    }
    for arm in [tcp, udp] {
        let share = idle.iter().find(|idle| idle.arm == arm && idle.wait == Wait::Adaptive).map(|idle| idle.core_share);
        let detail = share.map_or(String::new(), |share| format!("{:.2} % of a core", share * 100.0));
        let what = format!("{arm}, an idle adaptive server's share of a core");
        figures.push(Figure::new(what, share, Sense::AtMost, 0.01, None, detail));
    }
    let bytes = crowd.map(|crowd| crowd.bytes_each);
    let detail = crowd.map_or(String::new(), ToString::to_string);
    let what = format!("{tcp}, bytes of the server for each of {} idle clients", crowd::CLIENTS);
    figures.push(Figure::new(what, bytes, Sense::AtMost, crowd::TARGET_BYTES, None, detail));
    let sixteen = Picked { concurrency: 16, ..single(IMAGE, Wait::Spin, None) };
    let sixteen = Picked { section: Section::Concurrent, ..sixteen };
    for (other, target) in [(Arm::BundledTcp, 1.0), (Arm::FloorTcp, 0.85)] {
        let what = format!("{tcp}, bytes a second against {other}, {IMAGE} B, 16 at once");
        figures.push(sixteen.throughput(what, tcp, other, target));
    }
    figures.extend(copies(&single(IMAGE, Wait::Spin, None), tcp));
    figures.extend(copies(&single(IMAGE, Wait::Spin, Some(DATAGRAM)), udp));
    figures.extend(loss(runs));
    figures
}

fn copies(picked: &Picked<'_>, arm: Arm) -> Option<Figure> {
    let path = picked.run(arm).and_then(|run| run.path.as_ref());
    let value = path.map(|path| path.cpu_copies + path.runtime_copies);
    let detail = path.map_or(String::new(), |path| {
        format!("{}, of which {:.4} fix-up; runtime {:.4}", path.mover, path.fixup_copies, path.runtime_copies)
    });
    // Frames out of order or lost on the way are put right by counted copies; none is expected here, and few allowed.
    let what = format!("{arm}, CPU copies of each request byte, the kernel's included");
    Some(Figure::new(what, value, Sense::AtMost, 1.001, None, detail))
}

fn loss(runs: &[Run]) -> [Figure; 2] {
    let lossy = |drop: f64| runs.iter().find(|run| run.section == Section::Loss.name() && run.drop == drop);
    let (whole, one, ten) = (lossy(0.0), lossy(0.01), lossy(0.1));
    let kept = one.zip(whole).map(|(one, whole)| one.p90_of_rounds_rps / whole.p90_of_rounds_rps);
    let rates = one.zip(whole).map_or(String::new(), |(one, whole)| {
        format!("{:.0} of {:.0} requests a second", one.p90_of_rounds_rps, whole.p90_of_rounds_rps)
    });
    let unended = ten.map(|run| {
        let named = ["no answer in time", "wrong bytes in the response"];
        named.iter().filter_map(|&kind| run.error_kinds.get(kind)).sum::<u64>() as f64
    });
    let ends = ten.map_or(String::new(), |run| format!("{} right, {} with an error", run.requests, run.errors));
    let udp = Arm::CommodityUdp;
    [
        Figure::new(
            format!("{udp}, throughput kept with 1 % of datagrams lost"),
            kept,
            Sense::AtLeast,
            0.7,
            None,
            rates,
        ),
        Figure::new(
            format!("{udp}, requests without a right end with 10 % of datagrams lost"),
            unended,
            Sense::AtMost,
            0.0,
            None,
            ends,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run;

    fn four(floor: f64, again: f64, commodity: f64) -> Vec<Run> {
        let arms = [(Arm::FloorTcp, floor), (Arm::FloorTcpAgain, again), (Arm::CommodityTcp, commodity)];
        let mut runs: Vec<Run> = arms.iter().map(|&(arm, figure)| run(arm, "p", figure)).collect();
        runs.push(Run { datagram: Some(DATAGRAM), ..run(Arm::FloorUdp, "p", 100.0) });
        runs
    }

    fn large_tcp(runs: &[Run]) -> Figure {
        figures(runs, &[], None).remove(0)
    }

    #[test]
    fn a_figure_is_met_missed_or_not_measured() {
        let met = large_tcp(&four(100.0, 101.0, 114.0));
        assert_eq!((met.verdict(), met.value), ("met", Some(1.14)));
        assert_eq!(large_tcp(&four(100.0, 101.0, 116.0)).verdict(), "missed");
        assert_eq!(large_tcp(&[]).verdict(), "not measured");
    }

    #[test]
    fn floors_that_disagree_void_their_own_transport_only() {
        let mut runs = four(100.0, 106.0, 90.0);
        mark_void(&mut runs);
        assert_eq!(runs.iter().map(|run| run.void).collect::<Vec<_>>(), [true, true, true, false]);
        let figure = large_tcp(&runs);
        assert_eq!((figure.verdict(), figure.met), ("void", None));
        let json = serde_json::to_value(&runs[2]).unwrap();
        assert_eq!(json["void"], true);
        assert!(json["void_reason"].as_str().unwrap().contains("floor-tcp"));
    }

    #[test]
    fn an_unanswered_request_under_loss_is_held_against_it() {
        let mut ten = Run { section: Section::Loss.name(), drop: 0.1, ..run(Arm::CommodityUdp, "l", 1.0) };
        let ends = |run: &Run| loss(std::slice::from_ref(run))[1].verdict();
        ten.error_kinds.insert("deadline exceeded".into(), 3);
        assert_eq!(ends(&ten), "met");
        ten.error_kinds.insert("no answer in time".into(), 1);
        assert_eq!(ends(&ten), "missed");
    }
}
