//! What each arm adds to the models that compute on a GPU, and how much it carries: read off the runs of a comparison.

use serde::Serialize;

use crate::arms::{Arm, Transport};
use crate::plan::Section;
use crate::record::{Run, ServerMemory};

/// An arm with a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// What is computed.
    pub(crate) workload: &'static str,
    /// The arm.
    pub(crate) arm: Arm,
    /// Payload of a request.
    pub(crate) request_bytes: u32,
    /// Payload of its answer.
    pub(crate) response_bytes: u32,
    /// Microseconds of the model alone, with its copies and no network.
    pub(crate) local_us: Option<f64>,
    /// Microseconds of one request at a time.
    pub(crate) latency_us: Option<f64>,
    /// What the arm adds to the model: the one less the other.
    pub(crate) rpc_tax_us: Option<f64>,
    /// The closed loops that carried most.
    pub(crate) saturation: Option<Saturation>,
    /// The open loop at 70 % of the arm's own saturation.
    pub(crate) at_70_percent: Option<Loaded>,
    /// Memory of the server.
    pub(crate) memory: Option<ServerMemory>,
}

/// What an arm carries at most, and what that takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Saturation {
    /// Requests a second.
    pub(crate) rps: f64,
    /// By so many connections.
    pub(crate) connections: usize,
    /// The server's CPU time for each.
    pub(crate) server_cpu_us: Option<f64>,
    /// Cores that the server keeps busy, for the one GPU that there is.
    pub(crate) host_cores: Option<f64>,
}

/// An arm under a load that it can carry.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Loaded {
    /// Requests a second that came.
    pub(crate) offered_rps: f64,
    /// Microseconds within which all but one in a hundred were answered; null where the arm fell behind.
    pub(crate) p99_us: Option<f64>,
    /// The median of the same over the rounds: a stall of the machine spoils one of them.
    pub(crate) rounds_p99_us: Option<f64>,
    /// What a request may take for its answer to be of use.
    pub(crate) target_us: Option<f64>,
    /// Answers a second within that.
    pub(crate) goodput_rps: Option<f64>,
    /// The server's CPU time for each request.
    pub(crate) server_cpu_us: Option<f64>,
}

/// Those of all workloads whose model was measured alone or over a network, in the order of the runs.
pub(crate) fn summaries(runs: &[Run]) -> Vec<Summary> {
    let mut all: Vec<Summary> = Vec::new();
    // A null model has many sizes, and the loads of its own to show them.
    for run in runs.iter().filter(|run| !run.model.starts_with("null") && run.arm.transport() != Transport::None) {
        if !all.iter().any(|summary| (summary.workload, summary.arm) == (run.model, run.arm)) {
            all.push(summary(run, runs));
        }
    }
    all
}

/// That of the workload and the arm of a run.
fn summary(of: &Run, runs: &[Run]) -> Summary {
    let own = || runs.iter().filter(|run| run.model == of.model && run.requests > 0);
    let single =
        |arm: Arm| own().find(|run| run.arm == arm && run.section == Section::Single.name()).map(Run::figure_us);
    let closed = |run: &&Run| run.arm == of.arm && run.offered_rps.is_none();
    let (local_us, latency_us) = (single(Arm::Local), single(of.arm));
    let most = own().filter(closed).max_by(|one, other| one.throughput_rps.total_cmp(&other.throughput_rps));
    let open = own().find(|run| run.arm == of.arm && run.section == Section::Open.name());
    Summary {
        workload: of.model,
        arm: of.arm,
        request_bytes: of.request_bytes,
        response_bytes: of.response_bytes,
        local_us,
        latency_us,
        rpc_tax_us: latency_us.zip(local_us).filter(|_| of.arm.computes()).map(|(whole, local)| whole - local),
        saturation: most.map(|run| Saturation {
            rps: run.throughput_rps,
            connections: run.concurrency,
            server_cpu_us: run.cpu_us_per_request.server,
            host_cores: run.cpu_us_per_request.server.map(|us| us * run.throughput_rps / 1e6),
        }),
        at_70_percent: open.and_then(|run| {
            Some(Loaded {
                offered_rps: run.offered_rps?,
                p99_us: Some(run.latency_us.p99).filter(|_| !run.saturated),
                rounds_p99_us: run.rounds_p99_us.filter(|_| !run.saturated),
                target_us: run.latency_target_us,
                goodput_rps: run.goodput_rps,
                server_cpu_us: run.cpu_us_per_request.server,
            })
        }),
        memory: own().filter(|run| run.arm == of.arm).filter_map(|run| run.server_memory).max_by_key(|m| m.host_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::CpuUs;
    use crate::record::tests::run;
    use crate::stats::LatencyUs;
    use crate::wait::Wait;

    fn of_lstm(arm: Arm, figure_us: f64) -> Run {
        Run { model: "lstm", ..run(arm, "p", figure_us) }
    }

    fn crowd(arm: Arm, connections: usize, rps: f64) -> Run {
        let cpu_us_per_request = CpuUs { client: 1.0, server: Some(50.0), nic: None };
        let section = Section::Concurrent.name();
        let run = of_lstm(arm, 100.0);
        Run { section, concurrency: connections, throughput_rps: rps, cpu_us_per_request, wait: Wait::Adaptive, ..run }
    }

    #[test]
    fn an_arm_adds_what_it_takes_beyond_the_model_alone() {
        let tcp = Arm::CommodityTcp;
        let runs = [
            of_lstm(Arm::FloorTcp, 20.0),
            of_lstm(tcp, 130.0),
            of_lstm(Arm::Local, 100.0),
            crowd(tcp, 4, 15_000.0),
            crowd(tcp, 16, 12_000.0),
            run(tcp, "null", 7.0),
        ];
        let all = summaries(&runs);
        assert_eq!(all.iter().map(|summary| summary.arm).collect::<Vec<_>>(), [Arm::FloorTcp, tcp]);
        assert_eq!((all[0].rpc_tax_us, all[0].latency_us), (None, Some(20.0)));
        assert_eq!((all[1].rpc_tax_us, all[1].local_us), (Some(30.0), Some(100.0)));
        let saturation = all[1].saturation.unwrap();
        assert_eq!((saturation.rps, saturation.connections), (15_000.0, 4));
        assert!((saturation.host_cores.unwrap() - 0.75).abs() < 1e-9);
        assert_eq!(all[1].at_70_percent, None);
    }

    #[test]
    fn what_fell_behind_has_no_latency_and_what_answered_nothing_no_figure() {
        let section = Section::Open.name();
        let latency_us = LatencyUs { p99: 400.0, ..LatencyUs::default() };
        let open = Run { section, offered_rps: Some(9.0), latency_us, ..of_lstm(Arm::BundledTcp, 1.0) };
        let p99 = |run: Run| summaries(&[run])[0].at_70_percent.map(|loaded| loaded.p99_us);
        assert_eq!(p99(open.clone()), Some(Some(400.0)));
        assert_eq!(p99(Run { saturated: true, ..open.clone() }), Some(None));
        assert_eq!(p99(Run { requests: 0, ..open }), None);
        let local = Run { requests: 0, ..of_lstm(Arm::Local, 1.0) };
        assert_eq!(summaries(&[of_lstm(Arm::BundledTcp, 9.0), local])[0].rpc_tax_us, None);
    }
}
