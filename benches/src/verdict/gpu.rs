//! The figures of models on a GPU.

use splitrpc_wire::Stage;

use super::{Figure, Found, Outcome, Picked};
use crate::arms::Arm;
use crate::plan::IMAGE;
use crate::record::{Run, Sense};
use crate::wait::Wait;
use crate::workloads::Workload;

/// The figures that the project promises of a machine with a GPU.
pub(super) fn figures(found: &Found<'_>) -> Vec<Figure> {
    let picked = Picked { workload: Workload::NullGpu, ..found.single(IMAGE, Wait::Spin, None) };
    let mut figures = Vec::new();
    for (other, target) in [(Arm::BundledTcp, 0.3), (Arm::BundledTcpPinned, 0.5)] {
        let arms = [Arm::CommodityTcp, other, Arm::FloorTcp, Arm::PinnedCopy];
        if arms.iter().all(|&arm| picked.planned(arm)) {
            let what = format!(
                "{}, time above its floor and a copy to the GPU, as a share of {other}'s, {IMAGE} B",
                Arm::CommodityTcp
            );
            figures.push(Figure::new(what, Sense::AtMost, target, share(&picked, arms)));
        }
    }
    if [Arm::CommodityTcp, Arm::PinnedCopy].iter().all(|&arm| picked.planned(arm)) {
        let what = format!("{}, its copies in against a copy alone, {IMAGE} B", Arm::CommodityTcp);
        figures.push(Figure::new(what, Sense::AtMost, 1.2, copies(&picked)));
    }
    // A model that PyTorch compiled, where there is one.
    if let Some(point) = found.points.iter().find(|point| point.workload == Workload::Resnet50) {
        let picked = Picked { workload: point.workload, ..found.single(point.request_bytes, Wait::Spin, None) };
        if [Arm::CommodityTcp, Arm::Local].iter().all(|&arm| picked.planned(arm)) {
            let what = format!("{}, resnet-50, time above the model alone, us", Arm::CommodityTcp);
            figures.push(Figure::new(what, Sense::AtMost, 200.0, tax(&picked)));
        }
    }
    figures
}

/// Microseconds that a request takes beyond the model alone.
fn tax(picked: &Picked<'_>) -> Outcome {
    let run = |arm: Arm| picked.run(arm).ok_or_else(|| picked.unmeasured(arm));
    let (ours, local) = (run(Arm::CommodityTcp)?, run(Arm::Local)?);
    let detail = format!("{:.1} us, local {:.1} us", ours.figure_us(), local.figure_us());
    Ok((ours.figure_us() - local.figure_us(), detail, ours.void_reason.clone()))
}

/// What two arms take beyond a floor and a copy, the one over the other.
fn share(picked: &Picked<'_>, arms: [Arm; 4]) -> Outcome {
    let run = |arm: Arm| picked.run(arm).ok_or_else(|| picked.unmeasured(arm));
    let [ours, theirs, floor, copy] = arms.map(run);
    let (ours, theirs, floor, copy) = (ours?, theirs?, floor?, copy?);
    let least = floor.figure_us() + copy.figure_us();
    let above = |run: &Run| run.figure_us() - least;
    let detail = format!(
        "{:.1} us above {:.1} us ({:.1} and {:.1}); {} {:.1} us",
        above(ours),
        least,
        floor.figure_us(),
        copy.figure_us(),
        theirs.arm,
        above(theirs)
    );
    Ok((above(ours) / above(theirs), detail, ours.void_reason.clone()))
}

fn copies(picked: &Picked<'_>) -> Outcome {
    let copy_in = |arm: Arm| {
        let run = picked.run(arm).ok_or_else(|| picked.unmeasured(arm))?;
        let stages = run.stages_us.as_ref().and_then(|stages| stages.get(Stage::CopyIn.name()));
        stages.copied().ok_or_else(|| format!("{arm} does not tell how long its copies take"))
    };
    let (ours, alone) = (copy_in(Arm::CommodityTcp)?, copy_in(Arm::PinnedCopy)?);
    Ok((ours / alone, format!("{ours:.1} us, alone {alone:.1} us"), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::record::tests::run;

    #[test]
    fn verdicts_are_read_off_the_model_that_computes_nothing_whatever_else_is_measured() {
        let points = plan::gpu(&Arm::GPU, &[Workload::NullGpu, Workload::Lstm]);
        let of = |model, arm, us| Run { model, ..run(arm, "p", us) };
        let null =
            [(Arm::FloorTcp, 70.0), (Arm::PinnedCopy, 20.0), (Arm::CommodityTcp, 110.0), (Arm::BundledTcp, 190.0)];
        // As many bytes, of another model.
        let mut runs = vec![of("lstm", Arm::CommodityTcp, 5_000.0)];
        runs.extend(null.map(|(arm, us)| of("null-gpu", arm, us)));
        let figures = figures(&Found { points: &points, runs: &runs, idle: None, crowd: None });
        assert_eq!((figures.len(), figures[0].value), (3, Some(0.2)), "{figures:?}");
        let mut points = plan::gpu(&Arm::GPU, &[Workload::Lstm]);
        points.iter_mut().for_each(|point| (point.workload, point.request_bytes) = (Workload::Resnet50, IMAGE));
        let runs = [(Arm::Local, 400.0), (Arm::CommodityTcp, 455.0)].map(|(arm, us)| of("resnet-50", arm, us));
        let resnet = super::figures(&Found { points: &points, runs: &runs, idle: None, crowd: None });
        assert_eq!((resnet.len(), resnet[0].value), (1, Some(55.0)), "{resnet:?}");
        assert_eq!(figures[1].verdict(), "not measured");
        let lstm = plan::gpu(&Arm::GPU, &[Workload::Lstm]);
        assert!(super::figures(&Found { points: &lstm, runs: &runs, idle: None, crowd: None }).is_empty());
    }
}
