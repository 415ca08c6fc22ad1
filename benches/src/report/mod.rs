//! What people read: a table on the terminal and one HTML page.

pub(crate) mod html;
pub(crate) mod plots;
pub(crate) mod split;
pub(crate) mod table;
pub(crate) mod workloads;

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::arms::Arm;
use crate::record::Run;

/// Writes figures to a file, if one was asked for.
pub(crate) fn write_json(file: Option<&Path>, figures: &impl Serialize) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, serde_json::to_string_pretty(figures)?).with_context(|| format!("writing {}", file.display()))
}

/// How many times its floor's latency and throughput a run's are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Ratios {
    /// Latency, where the comparison is not void and both kept up with what was offered.
    pub(crate) latency: Option<f64>,
    /// Throughput, where that is compared.
    pub(crate) throughput: Option<f64>,
}

impl Ratios {
    /// Those of a run, beside the floor among `runs`.
    pub(crate) fn of(run: &Run, runs: &[Run]) -> Ratios {
        let floor = Arm::floors(run.arm.transport())[0];
        let Some(floor) = runs.iter().find(|other| other.arm == floor && other.point == run.point) else {
            return Ratios::default();
        };
        let comparable = !run.void && run.compares_latency() && floor.compares_latency();
        if !comparable {
            return Ratios::default();
        }
        Ratios {
            latency: run.latency_over(floor),
            throughput: run.throughput_over(floor).filter(|_| run.compares_throughput()),
        }
    }
}

/// Why runs of a load are void, each reason once.
pub(crate) fn void_reasons<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<&'a str> {
    let mut reasons: Vec<&str> = Vec::new();
    for reason in runs.into_iter().filter_map(|run| run.void_reason.as_deref()) {
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    reasons
}

/// What a run was asked, as people say it.
pub(crate) fn asked(run: &Run) -> String {
    let size = size(run.request_bytes);
    if run.model.starts_with("null") { size } else { format!("{}, {size}", run.model) }
}

/// Bytes as people say them.
pub(crate) fn size(bytes: u32) -> String {
    let digits = bytes.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + " B"
}

/// Microseconds with as many digits as say something.
pub(crate) fn micros(us: f64) -> String {
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Basis;
    use crate::record::tests::run;

    #[test]
    fn ratios_are_those_of_what_is_compared_under_a_load() {
        let one = [run(Arm::FloorTcp, "one", 100.0), run(Arm::CommodityTcp, "one", 120.0)];
        assert_eq!(Ratios::of(&one[1], &one), Ratios { latency: Some(1.2), throughput: None });
        let sixteen = one.map(|run| Run { concurrency: 16, ..run });
        let ratios = Ratios::of(&sixteen[1], &sixteen);
        assert!((ratios.latency.unwrap() - 1.2).abs() < 1e-9 && (ratios.throughput.unwrap() - 1.0 / 1.2).abs() < 1e-9);
        // What is void says nothing, and what has no floor beside it neither.
        let void = Run { void: true, ..sixteen[1].clone() };
        assert_eq!(Ratios::of(&void, &sixteen), Ratios::default());
        let open =
            sixteen.clone().map(|run| Run { offered_rps: Some(5_000.0), saturation_of: Some(Basis::Slowest), ..run });
        assert!(Ratios::of(&open[1], &open).latency.is_some_and(|ratio| (ratio - 1.2).abs() < 1e-9));
        let saturated = Run { saturated: true, ..open[1].clone() };
        assert_eq!(Ratios::of(&saturated, &open), Ratios::default());
        let own = open.map(|run| Run { saturation_of: Some(Basis::Own), ..run });
        assert_eq!(Ratios::of(&own[1], &own), Ratios::default());
        assert_eq!(Ratios::of(&run(Arm::CommodityTcp, "other", 120.0), &sixteen), Ratios::default());
    }

    #[test]
    fn each_transports_reason_is_given_once() {
        let runs =
            ["tcp", "udp", "tcp"].map(|why| Run { void_reason: Some(why.into()), ..run(Arm::FloorTcp, "p", 1.0) });
        assert_eq!(void_reasons(&runs), ["tcp", "udp"]);
    }

    #[test]
    fn sizes_are_grouped() {
        assert_eq!(size(64), "64 B");
        assert_eq!(size(602_112), "602,112 B");
        assert_eq!(size(3_244_800), "3,244,800 B");
    }
}
