//! The plans for models on a GPU.

use std::time::Duration;

use super::{Basis, Drive, IMAGE, PARTS, Planner, Point, Section, millis};
use crate::arms::{Arm, Transport};
use crate::load::arrivals::Arrivals;
use crate::wait::Wait;
use crate::workloads::Workload;

/// The plan for these workloads.
pub(crate) fn gpu(arms: &[Arm], workloads: &[Workload]) -> Vec<Point> {
    workloads
        .iter()
        .flat_map(|&workload| match workload.sizes() {
            None => null(arms, workload),
            Some(sizes) => model(arms, workload, sizes),
        })
        .collect()
}

/// How long it takes to open a GPU for the servers of a workload, and to load its model in each of them.
const STARTING: Duration = Duration::from_secs(8);

/// How long it takes, about, until the servers of a part of a point have started: those of a workload do so for its first point.
pub(crate) fn starting(points: &[Point], at: usize, part: u32) -> Duration {
    let first = part == 0 && (at == 0 || points[at - 1].workload != points[at].workload);
    if first && points[at].workload.is_on_gpu() { STARTING } else { Duration::ZERO }
}

/// Requests of many sizes to a model that computes nothing.
fn null(arms: &[Arm], workload: Workload) -> Vec<Point> {
    let mut planner = Planner { arms, points: Vec::new() };
    for (size, rounds, measure) in [(64, 60, 5), (IMAGE, 90, 8), (4_096, 60, 5), (65_536, 60, 6), (3_244_800, 60, 20)] {
        planner.closed(size, 1, Wait::Spin, rounds, measure);
    }
    for concurrency in [4, 16] {
        planner.closed(IMAGE, concurrency, Wait::Spin, 32, 12);
    }
    let mut points = planner.points;
    for point in &mut points {
        point.workload = workload;
        // There is one model, and it takes one request at a time.
        point.entrants.retain(|e| point.concurrency == 1 || e.arm.transport() != Transport::None);
        if [64, IMAGE].contains(&point.request_bytes) {
            point.parts = PARTS;
        }
    }
    points
}

/// One request at a time, from there to saturation, and at 70 % of that.
fn model(arms: &[Arm], workload: Workload, (request_bytes, response_bytes): (u32, u32)) -> Vec<Point> {
    let arms: Vec<Arm> =
        arms.iter().copied().filter(|&arm| arm != Arm::PinnedCopy && Arm::GPU.contains(&arm)).collect();
    let mut planner = Planner { arms: &arms, points: Vec::new() };
    // Rounds, and milliseconds that count in each. Of the largest there are fewer, which still hold several requests each.
    let (rounds, measure, crowds): (u32, u64, &[usize]) = match request_bytes + response_bytes {
        0..1_000_000 => (60, 6, &[4, 16]),
        1_000_000..8_000_000 => (60, 10, &[4, 16]),
        8_000_000..20_000_000 => (40, 30, &[4, 8]),
        _ => (24, 80, &[2, 4]),
    };
    planner.closed(request_bytes, 1, Wait::Spin, rounds, measure);
    // A server that sleeps where it can shows what CPU time it needs.
    for &crowd in crowds {
        planner.closed(request_bytes, crowd, Wait::Adaptive, rounds / 3, measure * 2);
    }
    let most = crowds.iter().copied().max().unwrap_or(1);
    let drive = Drive::Saturation(Arrivals::Poisson, 0.7, Basis::Own);
    planner.open(Section::Open, request_bytes, most, drive, rounds / 3);
    let mut points = planner.points;
    for point in &mut points {
        (point.workload, point.response_bytes) = (workload, response_bytes);
        point.entrants.retain(|e| point.concurrency == 1 || e.arm.transport() != Transport::None);
        if point.section == Section::Open {
            // Long enough for one in a hundred to be several.
            (point.warm_up, point.measure) = (millis(measure * 2), millis(measure * 4));
            // Between requests threads would fall asleep, and on a virtual machine some of them wake up a millisecond late.
            point.entrants.iter_mut().for_each(|entrant| entrant.wait = Wait::Spin);
        }
        point.timeout = millis(if request_bytes + response_bytes < 20_000_000 { 2_000 } else { 5_000 });
    }
    points.retain(|point| !point.entrants.is_empty());
    points
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn all() -> Vec<Point> {
        gpu(&Arm::GPU, &Workload::MODELS)
    }

    #[test]
    fn all_workloads_fit_into_ten_minutes_and_each_load_has_its_name() {
        let points = gpu(&Arm::GPU, &[&[Workload::NullGpu], &Workload::MODELS[..]].concat());
        for (at, point) in points.iter().enumerate() {
            eprintln!("{:?} {:?} {}", starting(&points, at, 0), point.cost(), point.id());
        }
        let cost: Duration = (0..points.len()).map(|at| starting(&points, at, 0) + points[at].cost()).sum();
        eprintln!("{cost:?}");
        assert!(cost < Duration::from_secs(540), "{cost:?}");
        let ids: HashSet<String> = points.iter().map(Point::id).collect();
        assert_eq!(ids.len(), points.len());
        assert!(ids.contains("one-at-a-time/lstm/8192/spin"), "{ids:?}");
    }

    #[test]
    fn each_workload_is_measured_alone_in_crowds_and_at_a_share_of_saturation() {
        let points = all();
        for workload in Workload::MODELS {
            let own: Vec<&Point> = points.iter().filter(|point| point.workload == workload).collect();
            let sizes = workload.sizes().unwrap();
            assert!(own.iter().all(|point| (point.request_bytes, point.response_bytes) == sizes));
            let single = own.iter().find(|point| point.concurrency == 1).unwrap();
            assert!(single.entrants.iter().any(|e| e.arm == Arm::Local));
            let most = own.iter().map(|point| point.concurrency).max().unwrap();
            let open = own.iter().find(|point| point.section == Section::Open).unwrap();
            assert!(open.concurrency == most && open.calibration().is_some(), "{}", workload.name());
            assert!(open.entrants.iter().all(|e| e.wait == Wait::Spin));
            for point in own.iter().filter(|point| point.concurrency > 1) {
                assert!(point.entrants.iter().all(|e| e.arm.transport() != Transport::None), "{}", point.id());
                assert!(point.entrants.iter().any(|e| e.arm == Arm::CommodityTcp), "{}", point.id());
            }
        }
        assert!(points.iter().flat_map(|p| &p.entrants).all(|e| e.arm != Arm::PinnedCopy));
    }

    #[test]
    fn a_workload_is_done_before_the_next_begins() {
        let points = gpu(&Arm::GPU, &[Workload::NullGpu, Workload::Lstm]);
        let order: Vec<Workload> =
            super::super::parts(&points).into_iter().map(|(at, _)| points[at].workload).collect();
        assert_eq!(order.chunk_by(|one, next| one == next).count(), 2);
        let parts: u32 = points.iter().map(|point| point.parts).sum();
        assert_eq!(order.len(), parts as usize);
    }

    #[test]
    fn arms_that_are_not_asked_for_do_not_run() {
        let points = gpu(&[Arm::Local], &[Workload::Lstm]);
        assert_eq!(points.len(), 1);
        assert_eq!(points[0].entrants.len(), 1);
        assert!(gpu(&[Arm::PinnedCopy], &[Workload::Lstm]).is_empty());
    }
}
