//! What is promised of a SmartNIC beside a commodity card.

use super::{Found, Picked, idle};
use crate::arms::Arm;
use crate::plan::{HOST_CPU_RPS, IMAGE, Section};
use crate::record::{Figure, Run, Sense};
use crate::wait::Wait;

/// How many times the commodity card's processor time of the host, and its median latency, a SmartNIC's are at most.
const HOST_CPU: f64 = 0.5;
const LATENCY: f64 = 1.5;

pub(super) fn figures(found: &Found<'_>) -> [Option<Figure>; 3] {
    let (arm, other) = (Arm::SmartnicTcp, Arm::CommodityTcp);
    let single = found.single(IMAGE, Wait::Adaptive, None);
    let latency = single.pair(arm, other).map(|runs| {
        let measured = runs.map(|(run, other)| {
            let (us, other_us) = (run.latency_us.p50, other.latency_us.p50);
            (us / other_us, format!("{us:.1} us, {} {other_us:.1} us{}", other.arm, emulated(run)), None)
        });
        let what = format!("{arm}, median latency against {other}, {IMAGE} B, one at a time, adaptive");
        Figure::new(what, Sense::AtMost, LATENCY, measured)
    });
    let steady = Picked { section: Section::HostCpu, ..single };
    let host_cpu = steady.pair(arm, other).map(|runs| {
        let measured = runs.and_then(|(run, other)| {
            let host_us = |run: &Run| {
                run.cpu_us_per_request
                    .server
                    .ok_or_else(|| format!("the CPU time of {} is not seen from here", run.arm))
            };
            let (us, other_us) = (host_us(run)?, host_us(other)?);
            Ok((us / other_us, format!("{us:.1} us a request, {} {other_us:.1} us{}", other.arm, emulated(run)), None))
        });
        let what = format!(
            "{arm}, the host's CPU time against {other}, {IMAGE} B, {HOST_CPU_RPS} requests a second, adaptive"
        );
        Figure::new(what, Sense::AtMost, HOST_CPU, measured)
    });
    [latency, host_cpu, idle(found, arm)]
}

fn emulated(run: &Run) -> &'static str {
    if run.emulated { "; emulated" } else { "" }
}
