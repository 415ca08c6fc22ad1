//! The figures: what the project promises, read off the runs of one comparison.

use crate::arms::{Arm, DATAGRAM, JUMBO_DATAGRAM};
use crate::crowd::{self, Crowd};
use crate::plan::{Entrant, IMAGE, Point, Section};
use crate::ratio::{disagree_in_throughput, too_few_rounds};
use crate::record::{Figure, Idle, Run, Sense};
use crate::wait::Wait;
use crate::workloads::Workload;

mod gpu;
mod smartnic;

/// What a comparison set out to measure, and what came of it.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    /// The loads that were planned.
    pub(crate) points: &'a [Point],
    /// The runs made.
    pub(crate) runs: &'a [Run],
    /// Idle servers; `None` where they run elsewhere.
    pub(crate) idle: Option<&'a [Idle]>,
    /// Many idle clients, or why there were none; `None` where that was not asked for.
    pub(crate) crowd: Option<&'a Result<Crowd, String>>,
}

impl<'a> Found<'a> {
    fn planned(&self, section: Section, entrant: impl Fn(&Point, &Entrant) -> bool) -> bool {
        let mut points = self.points.iter().filter(|point| point.section == section);
        points.any(|point| point.entrants.iter().any(|e| entrant(point, e)))
    }

    /// One request at a time, at a size.
    fn single(self, size: u32, wait: Wait, datagram: Option<u16>) -> Picked<'a> {
        let (section, workload) = (Section::Single, Workload::Null);
        Picked { found: self, section, workload, size, concurrency: 1, wait: Some(wait), datagram }
    }
}

/// The runs of one point.
#[derive(Clone, Copy)]
struct Picked<'a> {
    found: Found<'a>,
    section: Section,
    workload: Workload,
    size: u32,
    concurrency: usize,
    wait: Option<Wait>,
    datagram: Option<u16>,
}

impl<'a> Picked<'a> {
    fn planned(&self, arm: Arm) -> bool {
        self.found.planned(self.section, |point, entrant| {
            entrant.arm == arm
                && point.workload == self.workload
                && point.request_bytes == self.size
                && point.concurrency == self.concurrency
                && self.wait.is_none_or(|wait| entrant.wait == wait)
                && self.datagram.is_none_or(|datagram| entrant.datagram == datagram)
        })
    }

    fn any_run(&self, arm: Arm) -> Option<&'a Run> {
        self.found.runs.iter().find(|run| {
            run.arm == arm
                && run.section == self.section.name()
                && run.model == self.workload.name()
                && run.request_bytes == self.size
                && run.concurrency == self.concurrency
                && self.wait.is_none_or(|wait| run.wait == wait)
                && self.datagram.is_none_or(|datagram| run.datagram == Some(datagram))
        })
    }

    /// The run of an arm in which something was answered.
    fn run(&self, arm: Arm) -> Option<&'a Run> {
        self.any_run(arm).filter(|run| run.requests > 0)
    }

    /// Why there is none.
    fn unmeasured(&self, arm: Arm) -> String {
        let errors = self.any_run(arm).and_then(|run| run.error_kinds.iter().max_by_key(|(_, count)| **count));
        errors.map_or_else(|| unmeasured(arm), |(kind, count)| format!("{arm} answered nothing right: {count}x {kind}"))
    }

    /// The runs of two arms, or why one is missing; `None` where not both were to run.
    fn pair(&self, one: Arm, other: Arm) -> Option<Result<(&'a Run, &'a Run), String>> {
        let both = [one, other];
        both.iter().all(|&arm| self.planned(arm)).then(|| match both.map(|arm| self.run(arm)) {
            [Some(one), Some(other)] => Ok((one, other)),
            [None, _] => Err(self.unmeasured(one)),
            [_, None] => Err(self.unmeasured(other)),
        })
    }

    /// How many times the floor's latency an arm's is.
    fn latency(&self, what: String, arm: Arm, target: f64) -> Option<Figure> {
        let [floor, _] = Arm::floors(arm.transport());
        let measured = self.pair(arm, floor)?.and_then(|(run, floor)| {
            let (us, floor_us) = (run.latency_us.p10_of_medians, floor.latency_us.p10_of_medians);
            let mut detail = format!("{us:.1} us, floor {floor_us:.1} us");
            if run.by_rounds {
                detail += "; the machine changed its pace, so round by round";
            }
            let ratio = run.latency_over(floor).ok_or_else(|| too_few_rounds(run.arm, floor.arm))?;
            Ok((ratio, detail, run.void_reason.clone()))
        });
        Some(Figure::new(what, Sense::AtMost, target, measured))
    }

    /// How many times another arm's bytes a second an arm carries.
    fn throughput(&self, what: String, arm: Arm, other: Arm, target: f64) -> Option<Figure> {
        let measured = self.pair(arm, other)?.and_then(|(run, other)| {
            let [floor, again] = Arm::floors(arm.transport()).map(|arm| self.run(arm));
            let void = floor.zip(again).and_then(|(floor, again)| disagree_in_throughput(floor, again));
            let detail = format!("{}; {other} {}", carried(run), carried(other), other = other.arm);
            let ratio = run.throughput_over(other).ok_or_else(|| too_few_rounds(run.arm, other.arm))?;
            Ok((ratio, detail, void))
        });
        Some(Figure::new(what, Sense::AtLeast, target, measured))
    }
}

/// Why a run that was planned is not there.
fn unmeasured(arm: Arm) -> String {
    format!("the time was over before {arm} had answered a request under this load; --limit gives more")
}

fn carried(run: &Run) -> String {
    let gigabytes = run.bytes_per_s / 1e9;
    match run.cpu_s_per_gb {
        Some(cpu) => format!("{gigabytes:.2} GB/s at {cpu:.2} CPU s/GB"),
        None => format!("{gigabytes:.2} GB/s"),
    }
}

/// A value, the numbers behind it and why they are void, or why there is no value.
type Outcome = Result<(f64, String, Option<String>), String>;

impl Figure {
    fn new(what: String, sense: Sense, target: f64, outcome: Outcome) -> Figure {
        let (value, detail, void) = match outcome {
            Ok((value, detail, void)) => (Some(value).filter(|value| value.is_finite()), detail, void),
            Err(why) => (None, why, None),
        };
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

/// The figures that the project promises of this machine, as far as what was planned is to show them.
pub(crate) fn figures(found: &Found<'_>) -> Vec<Figure> {
    if found.points.iter().any(|point| point.workload.is_on_gpu()) {
        return gpu::figures(found);
    }
    let mut figures = Vec::new();
    let (tcp, udp) = (Arm::CommodityTcp, Arm::CommodityUdp);
    for (size, target) in [(IMAGE, 1.15), (64, 1.5)] {
        let what = format!("{tcp} against its floor, {size} B, one at a time, spin");
        figures.extend(found.single(size, Wait::Spin, None).latency(what, tcp, target));
    }
    for (size, datagram, target) in [(IMAGE, DATAGRAM, 1.5), (64, DATAGRAM, 1.5), (IMAGE, JUMBO_DATAGRAM, 1.3)] {
        let what = format!("{udp} against its floor, {size} B, one at a time, spin, {datagram}-byte datagrams");
        figures.extend(found.single(size, Wait::Spin, Some(datagram)).latency(what, udp, target));
    }
    for size in [64, IMAGE] {
        let light = Picked { section: Section::Light, wait: None, ..found.single(size, Wait::Spin, None) };
        let what = format!("{tcp}, adaptive, against a blocking floor, {size} B, 250 requests a second");
        figures.extend(light.latency(what, tcp, 1.15));
    }
    figures.extend([tcp, udp].into_iter().filter_map(|arm| idle(found, arm)));
    figures.extend(found.crowd.map(crowded));
    let sixteen = Picked { section: Section::Concurrent, concurrency: 16, ..found.single(IMAGE, Wait::Spin, None) };
    for (other, target) in [(Arm::BundledTcp, 1.0), (Arm::FloorTcp, 0.85)] {
        let what = format!("{tcp}, bytes a second against {other}, {IMAGE} B, 16 at once");
        figures.extend(sixteen.throughput(what, tcp, other, target));
    }
    figures.extend(copies(&found.single(IMAGE, Wait::Spin, None), tcp));
    figures.extend(copies(&found.single(IMAGE, Wait::Spin, Some(DATAGRAM)), udp));
    figures.extend(loss(found).into_iter().flatten());
    figures.extend(smartnic::figures(found).into_iter().flatten());
    figures
}

fn idle(found: &Found<'_>, arm: Arm) -> Option<Figure> {
    let idle = found.idle?;
    // Any load starts the server that is then left idle.
    let starts = |e: &Entrant| e.arm == arm && e.wait == Wait::Adaptive && e.datagram == DATAGRAM && e.drop == 0.0;
    found.points.iter().any(|point| point.entrants.iter().any(starts)).then(|| {
        let idle = idle.iter().find(|idle| idle.arm == arm && idle.wait == Wait::Adaptive);
        let measured = idle.map(|idle| {
            let (percent, emulated) = (idle.core_share * 100.0, if idle.emulated { "; emulated" } else { "" });
            (percent, format!("{percent:.3} % of a core{emulated}"), None)
        });
        let what = format!("{arm}, an idle adaptive server's share of a core, in %");
        Figure::new(what, Sense::AtMost, 1.0, measured.ok_or_else(|| unmeasured(arm)))
    })
}

fn crowded(crowd: &Result<Crowd, String>) -> Figure {
    let what = format!("{}, bytes of the server for each idle client", Arm::CommodityTcp);
    let measured = crowd.clone().map(|crowd| (crowd.bytes_each, crowd.to_string(), None));
    Figure::new(what, Sense::AtMost, crowd::TARGET_BYTES, measured)
}

fn copies(picked: &Picked<'_>, arm: Arm) -> Option<Figure> {
    let path = picked.run(arm).and_then(|run| run.path.as_ref());
    let measured = path.map(|path| {
        let detail =
            format!("{}, of which {:.4} fix-up; runtime {:.4}", path.mover, path.fixup_copies, path.runtime_copies);
        (path.cpu_copies + path.runtime_copies, detail, None)
    });
    // Frames out of order or lost on the way are put right by counted copies; none is expected here, and few allowed.
    let what = format!("{arm}, CPU copies of each request byte, the kernel's included");
    let figure = Figure::new(what, Sense::AtMost, 1.001, measured.ok_or_else(|| picked.unmeasured(arm)));
    picked.planned(arm).then_some(figure)
}

fn loss(found: &Found<'_>) -> [Option<Figure>; 2] {
    let udp = Arm::CommodityUdp;
    let planned = |drops: &[f64]| drops.iter().all(|&drop| found.planned(Section::Loss, |_, e| e.drop == drop));
    let lossy = |drop: f64| {
        let run = found.runs.iter().find(|run| run.section == Section::Loss.name() && run.drop == drop);
        run.ok_or_else(|| unmeasured(udp))
    };
    let kept = || {
        let (one, whole) = (lossy(0.01)?, lossy(0.0)?);
        let detail = format!("{:.0} of {:.0} requests a second", one.throughput_rps, whole.throughput_rps);
        // Of all rounds together: what recovery costs are single long waits, which a median would leave out.
        let kept = one.throughput_rps / whole.throughput_rps;
        if kept.is_finite() { Ok((kept, detail, None)) } else { Err(unmeasured(udp)) }
    };
    let unended = || {
        let ten = lossy(0.1)?;
        let named = ["no answer in time", "wrong bytes in the response"];
        let count = named.iter().filter_map(|&kind| ten.error_kinds.get(kind)).sum::<u64>();
        Ok((count as f64, format!("{} right, {} with an error", ten.requests, ten.errors), None))
    };
    [
        planned(&[0.0, 0.01]).then(|| {
            Figure::new(format!("{udp}, throughput kept with 1 % of datagrams lost"), Sense::AtLeast, 0.7, kept())
        }),
        planned(&[0.1]).then(|| {
            let what = format!("{udp}, requests without a right end with 10 % of datagrams lost");
            Figure::new(what, Sense::AtMost, 0.0, unended())
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::ratio::mark_void;
    use crate::record::tests::run;
    use crate::stats::LatencyUs;

    fn four(floor: f64, again: f64, commodity: f64) -> Vec<Run> {
        let arms = [(Arm::FloorTcp, floor), (Arm::FloorTcpAgain, again), (Arm::CommodityTcp, commodity)];
        let mut runs: Vec<Run> = arms.iter().map(|&(arm, figure)| run(arm, "p", figure)).collect();
        runs.push(Run { datagram: Some(DATAGRAM), ..run(Arm::FloorUdp, "p", 100.0) });
        runs
    }

    fn of(points: &[Point], runs: &[Run]) -> Vec<Figure> {
        figures(&Found { points, runs, idle: Some(&[]), crowd: None })
    }

    fn large_tcp(runs: &[Run]) -> Figure {
        of(&plan::quick(&Arm::NETWORK), runs).remove(0)
    }

    #[test]
    fn a_figure_is_met_missed_or_not_measured() {
        let met = large_tcp(&four(100.0, 101.0, 114.0));
        assert_eq!((met.verdict(), met.value), ("met", Some(1.14)));
        assert_eq!(large_tcp(&four(100.0, 101.0, 116.0)).verdict(), "missed");
        let none = large_tcp(&[]);
        assert!(none.verdict() == "not measured" && none.detail.contains("the time was over"), "{none:?}");
    }

    #[test]
    fn an_arm_that_answered_nothing_has_no_latency_to_be_praised_for() {
        let mut runs = four(100.0, 101.0, 0.0);
        runs[2].requests = 0;
        runs[2].error_kinds.insert("no answer in time".into(), 3);
        let figure = large_tcp(&runs);
        assert_eq!(figure.verdict(), "not measured");
        assert!(figure.detail.contains("3x no answer in time"), "{}", figure.detail);
    }

    #[test]
    fn what_was_not_to_be_measured_is_no_figure() {
        let all = of(&plan::quick(&Arm::NETWORK), &[]);
        assert_eq!(of(&plan::full(&Arm::NETWORK), &[]).len(), all.len());
        let tcp = of(&plan::quick(&[Arm::FloorTcp, Arm::FloorTcpAgain, Arm::CommodityTcp]), &[]);
        assert!(tcp.len() > 5 && tcp.iter().all(|figure| figure.what.starts_with("commodity-tcp")), "{tcp:?}");
        assert!(tcp.iter().all(|figure| !figure.what.contains("bundled-tcp")));
        let mut light = plan::quick(&Arm::NETWORK);
        light.retain(|point| point.section == Section::Light);
        let light = of(&light, &[]);
        let names: Vec<&str> = light.iter().map(|figure| figure.what.as_str()).collect();
        assert!(names.len() == 3 && names[0].contains(" 64 B") && names[2].contains("idle"), "{names:?}");
        let found = Found { points: &[], runs: &[], idle: None, crowd: Some(&Err("too few descriptors".into())) };
        let crowd = figures(&found);
        assert_eq!((crowd.len(), crowd[0].verdict(), &*crowd[0].detail), (1, "not measured", "too few descriptors"));
    }

    #[test]
    fn an_idle_server_is_judged_in_the_unit_in_which_it_is_told() {
        let share = |core_share| Idle {
            arm: Arm::CommodityTcp,
            emulated: false,
            wait: Wait::Adaptive,
            core_share,
            nic_core_share: None,
        };
        let points = plan::quick(&Arm::NETWORK);
        let judged = |idle: &Idle| {
            let found = Found { points: &points, runs: &[], idle: Some(std::slice::from_ref(idle)), crowd: None };
            super::idle(&found, Arm::CommodityTcp).unwrap()
        };
        let figure = judged(&share(0.0002));
        assert_eq!((figure.verdict(), figure.value, &*figure.detail), ("met", Some(0.02), "0.020 % of a core"));
        assert_eq!(judged(&share(0.011)).verdict(), "missed");
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
    fn throughput_is_that_of_all_rounds_and_no_more_than_the_cores_carry() {
        let sixteen = |arm, rate: f64| Run {
            section: Section::Concurrent.name(),
            concurrency: 16,
            bytes_per_s: rate * 1e9,
            throughput_rps: rate,
            rounds_rps: vec![rate; 10],
            // Two cores, busy all the time.
            cpu_s_per_gb: Some(2.0 / rate),
            ..run(arm, "c", 1e3)
        };
        let arms = [(Arm::FloorTcp, 5.0), (Arm::FloorTcpAgain, 5.1), (Arm::BundledTcp, 4.0), (Arm::CommodityTcp, 5.5)];
        let mut runs = arms.map(|(arm, rate)| sixteen(arm, rate));
        let verdicts = |runs: &[Run]| {
            let mut figures = of(&plan::quick(&Arm::NETWORK), runs);
            figures.retain(|figure| figure.what.contains("bytes a second"));
            figures
        };
        let [bundled, floor] = &verdicts(&runs)[..] else { panic!("two verdicts") };
        assert_eq!((bundled.value, floor.value), (Some(1.375), Some(1.1)));
        assert_eq!(bundled.detail, "5.50 GB/s at 0.36 CPU s/GB; bundled-tcp 4.00 GB/s at 0.50 CPU s/GB");
        runs[1].rounds_rps = vec![5.3; 10];
        assert!(mark_void(&mut runs));
        assert!(verdicts(&runs).iter().all(|figure| figure.verdict() == "void"));
        assert!(runs[3].void_reason.as_ref().is_some_and(|why| why.contains("floor-tcp in requests a second")));
        // The machine stood still for a part of the second floor's rounds, and was at half its pace in others.
        for (run, pace) in runs.iter_mut().zip([1.0, 1.02, 0.8, 1.1]) {
            run.rounds_rps = [5.0, 2.5, 2.5, 5.0, 5.0].repeat(2).into_iter().map(|rps| rps * pace).collect();
        }
        runs[1].rounds_rps[0] = 0.5;
        mark_void(&mut runs);
        let figures = verdicts(&runs);
        assert!(figures.iter().all(|figure| figure.verdict() == "met"), "{figures:?}");
        assert!((figures[1].value.unwrap() - 1.1).abs() < 1e-9);
    }

    #[test]
    fn figures_of_two_paces_are_compared_round_by_round() {
        let mut runs = four(100.0, 150.0, 160.0);
        for (run, times) in runs.iter_mut().zip([1.0, 1.01, 1.1]) {
            run.latency_us = LatencyUs { p5_of_medians: 100.0, p15_of_medians: 150.0, ..run.latency_us };
            run.rounds_us = [100.0, 150.0, 0.0, 150.0].repeat(3).into_iter().map(|us| us * times).collect();
        }
        assert!(!mark_void(&mut runs));
        let figure = large_tcp(&runs);
        assert!((figure.value.unwrap() - 1.1).abs() < 1e-9 && figure.detail.contains("round by round"), "{figure:?}");
        // One that is settled is as it was measured.
        for run in &mut runs {
            run.latency_us.p15_of_medians = 105.0;
        }
        assert!(mark_void(&mut runs));
        assert_eq!(large_tcp(&runs).value, Some(1.6));
    }

    #[test]
    fn an_unanswered_request_under_loss_is_held_against_it() {
        let mut ten = Run { section: Section::Loss.name(), drop: 0.1, ..run(Arm::CommodityUdp, "l", 1.0) };
        let points = plan::quick(&Arm::NETWORK);
        let ends = |run: &Run| {
            let runs = std::slice::from_ref(run);
            let [_, unended] = loss(&Found { points: &points, runs, idle: None, crowd: None });
            unended.unwrap().verdict()
        };
        ten.error_kinds.insert("deadline exceeded".into(), 3);
        assert_eq!(ends(&ten), "met");
        ten.error_kinds.insert("no answer in time".into(), 1);
        assert_eq!(ends(&ten), "missed");
    }
}
