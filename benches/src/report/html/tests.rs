use super::*;
use crate::machine::Machine;
use crate::plan::Basis;
use crate::record::tests::run;
use crate::scope::Scope;

fn report(runs: Vec<Run>) -> Report {
    Report {
        format: 1,
        machine: Machine::this(),
        crossed: Crossed::Loopback,
        quick: true,
        scope: Scope::default(),
        seed: 1,
        elapsed_s: 1.0,
        cores: None,
        figures: Vec::new(),
        idle: Vec::new(),
        crowd: None,
        workloads: Vec::new(),
        runs,
    }
}

#[test]
fn every_part_has_something_in_it_and_says_what_it_shows() {
    let one = run(Arm::CommodityTcp, "one", 100.0);
    let many = Run { section: Section::Concurrent.name(), concurrency: 16, ..run(Arm::CommodityTcp, "many", 1e3) };
    let light = Run { section: Section::Light.name(), offered_rps: Some(250.0), ..one.clone() };
    let light = |arm, wait| Run { arm, wait, point: "light".into(), ..light.clone() };
    let light = [light(Arm::FloorTcp, Wait::Block), light(Arm::CommodityTcp, Wait::Adaptive)];
    let page = page(&report([one, many].into_iter().chain(light).collect())).unwrap();
    assert!(page.contains("602,112 B, spin, closed loops; connections: 1, 16<"));
    assert!(page.contains("250 requests a second; adaptive, floors block<"));
    assert_eq!(page.matches("<section>").count(), page.matches("</section>").count());
    assert!(!page.contains("<div class=\"plots\"></div>"));
}

#[test]
fn parts_that_would_be_empty_are_left_out() {
    let loss = Run { section: Section::Loss.name(), ..run(Arm::CommodityUdp, "loss", 100.0) };
    let page = page(&report(vec![loss])).unwrap();
    assert!(!page.contains("Disturbed"));
    assert!(!page.contains("<svg") && !page.contains("Throughput against latency"));
    assert!(page.contains("No such load was run") && page.contains("All runs"));
}

#[test]
fn arms_are_explained_and_it_is_seen_why_runs_are_void_or_have_no_latency() {
    let open = |arm| Run {
        section: Section::Open.name(),
        concurrency: 16,
        offered_rps: Some(9_000.0),
        of_saturation: Some(0.7),
        saturation_of: Some(Basis::Slowest),
        ..run(arm, "open", 100.0)
    };
    let void = Run { void: true, void_reason: Some("the two runs are far apart".into()), ..open(Arm::CommodityTcp) };
    let saturated = Run { saturated: true, throughput_rps: 8_000.0, ..open(Arm::CommodityUdp) };
    let page = page(&report(vec![open(Arm::FloorUdp), void, saturated])).unwrap();
    assert!(page.contains(Arm::CommodityUdp.about()) && !page.contains(Arm::BundledTcp.about()));
    // In the table of open loops and in that of all runs, and for the eye.
    assert_eq!(page.matches(">void: the two runs are far apart<").count(), 2);
    assert!(!page.contains(" title="));
    assert!(page.contains("9000</td><td class=\"n\">8000</td><td class=\"n\" colspan=\"4\">saturated<"));
}

#[test]
fn a_comparison_that_was_disturbed_says_so() {
    let during = |point, share| Run { others_cpu_share: Some(share), ..run(Arm::CommodityTcp, point, 100.0) };
    let page = page(&report(vec![during("calm", 0.01), during("busy", 0.5), during("busy", 0.5), during("full", 0.2)]));
    let page = page.unwrap();
    assert!(page.contains("during 2 of the loads") && page.contains("the most was 50 %, during busy."), "{page}");
}
