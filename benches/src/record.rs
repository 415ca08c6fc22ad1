//! The JSON file: what a comparison found, one record a run.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use splitrpc_wire::Stage;

use crate::arms::Arm;
use crate::crowd::Crowd;
use crate::load::arrivals::Arrivals;
use crate::load::window::PathSums;
use crate::machine::{Crossed, Machine};
use crate::plan::Basis;
use crate::scope::Scope;
use crate::stats::LatencyUs;
use crate::summary::Summary;
use crate::wait::Wait;

/// Share of the CPU time above which what others used is worth a warning.
const DISTURBING: f64 = 0.05;

/// The whole file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Version of this layout.
    pub(crate) format: u32,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// What lay between client and server.
    pub(crate) crossed: Crossed,
    /// Whether the short plan was run.
    pub(crate) quick: bool,
    /// How much of the plan was run.
    pub(crate) scope: Scope,
    /// What the order of arms and the arrivals were drawn from.
    pub(crate) seed: u64,
    /// Seconds that the comparison took.
    pub(crate) elapsed_s: f64,
    /// Core of the load generator and of the servers, where they were pinned.
    pub(crate) cores: Option<(usize, usize)>,
    /// The figures against their targets.
    pub(crate) figures: Vec<Figure>,
    /// CPU that idle servers used.
    pub(crate) idle: Vec<Idle>,
    /// Many idle clients; null where that was not tried.
    pub(crate) crowd: Option<Crowd>,
    /// Models that compute on a GPU: what each arm adds to them, and how much it carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) workloads: Vec<Summary>,
    /// The runs.
    pub(crate) runs: Vec<Run>,
}

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
    /// The value measured; null where it could not be.
    pub(crate) value: Option<f64>,
    /// Which way it must lie.
    pub(crate) sense: Sense,
    /// The target.
    pub(crate) target: f64,
    /// Whether it is met; null where not measured or void.
    pub(crate) met: Option<bool>,
    /// Why it says nothing: the floors disagree.
    pub(crate) void: Option<String>,
    /// The numbers behind it, or why there are none.
    pub(crate) detail: String,
}

/// An idle server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Idle {
    /// Arm.
    pub(crate) arm: Arm,
    /// How it waits.
    pub(crate) wait: Wait,
    /// Whether its card was a software BlueField.
    pub(crate) emulated: bool,
    /// Share of one core that its process on the host used with nothing to do.
    pub(crate) core_share: f64,
    /// The same of its card; null where it has none.
    pub(crate) nic_core_share: Option<f64>,
}

/// One arm under one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// The arm.
    pub(crate) arm: Arm,
    /// Whether a software BlueField stood in for a card.
    pub(crate) emulated: bool,
    /// The model.
    pub(crate) model: &'static str,
    /// Payload of a request.
    pub(crate) request_bytes: u32,
    /// Payload of a response.
    pub(crate) response_bytes: u32,
    /// Connections, each with at most one request under way.
    pub(crate) concurrency: usize,
    /// Requests a second that were meant to be sent; null in a closed loop.
    pub(crate) offered_rps: Option<f64>,
    /// How client and server waited.
    pub(crate) wait: Wait,
    /// Requests answered right.
    pub(crate) requests: u64,
    /// Requests that failed, wrong bytes and timeouts included.
    pub(crate) errors: u64,
    /// Latencies of the requests answered right.
    pub(crate) latency_us: LatencyUs,
    /// Requests answered a second, over all rounds.
    pub(crate) throughput_rps: f64,
    /// The same of each round.
    pub(crate) rounds_rps: Vec<f64>,
    /// Median latency of each round in microseconds, 0 where nothing was answered.
    pub(crate) rounds_us: Vec<f64>,
    /// The median over the rounds of what all but one in a hundred took at most in each: a stall of the machine spoils one of them.
    pub(crate) rounds_p99_us: Option<f64>,
    /// Whether latencies under this load are compared round by round, on this transport.
    pub(crate) by_rounds: bool,
    /// CPU time for each request.
    pub(crate) cpu_us_per_request: CpuUs,
    /// Memory that the server has; null where it runs elsewhere, or there is none.
    pub(crate) server_memory: Option<ServerMemory>,
    /// Mean time in each of the server's stages, for arms that tell.
    pub(crate) stages_us: Option<BTreeMap<&'static str, f64>>,
    /// The path that requests took, for arms that tell.
    pub(crate) path: Option<PathRecord>,
    /// What lay between client and server.
    pub(crate) crossed: Crossed,
    /// Name of the load; runs with the same name are compared.
    pub(crate) point: String,
    /// Kind of load.
    pub(crate) section: &'static str,
    /// Spacing of an open loop's requests; null in a closed one.
    pub(crate) arrivals: Option<Arrivals>,
    /// Share of a closed loop's throughput at which an arm was driven.
    pub(crate) of_saturation: Option<f64>,
    /// Whose throughput that is.
    pub(crate) saturation_of: Option<Basis>,
    /// Requests a second that this arm answered in the closed loops between an open loop's rounds.
    pub(crate) saturation_rps: Option<f64>,
    /// Whether requests came faster than they were answered: its latencies then say how long that went on.
    pub(crate) saturated: bool,
    /// Bytes of UDP payload in a datagram; null for streams.
    pub(crate) datagram: Option<u16>,
    /// Share of datagrams that the server's port threw away.
    pub(crate) drop: f64,
    /// How often it was measured.
    pub(crate) rounds: u32,
    /// Fresh connections with at least one latency.
    pub(crate) connections: usize,
    /// Seconds of load that counted.
    pub(crate) measured_s: f64,
    /// Payload bytes a second, both ways.
    pub(crate) bytes_per_s: f64,
    /// CPU seconds of client and server together for each gigabyte of payload.
    pub(crate) cpu_s_per_gb: Option<f64>,
    /// What a request may take for its answer to be of use.
    pub(crate) latency_target_us: Option<f64>,
    /// Answers a second within that.
    pub(crate) goodput_rps: Option<f64>,
    /// Share of this machine's CPU time that other programs used, or a host took away, while this load was run.
    pub(crate) others_cpu_share: Option<f64>,
    /// Whether the floors of this comparison disagree.
    pub(crate) void: bool,
    /// How they disagree.
    pub(crate) void_reason: Option<String>,
    /// The errors by what went wrong.
    pub(crate) error_kinds: BTreeMap<String, u64>,
    /// The distribution: percentile and microseconds.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// Memory of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ServerMemory {
    /// Resident memory: what the kernel keeps for its sockets is no part of that.
    pub(crate) host_bytes: u64,
    /// What it has taken of a GPU's memory for its model and its tensors; null where it computes on none. What the driver takes for
    /// itself is no part of that.
    pub(crate) device_bytes: Option<u64>,
}

/// CPU time for each request in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CpuUs {
    /// Load generator.
    pub(crate) client: f64,
    /// Server; null where it runs elsewhere.
    pub(crate) server: Option<f64>,
    /// Processor of the network card; null where there is none.
    pub(crate) nic: Option<f64>,
}

/// The path that requests took.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PathRecord {
    /// Network edge.
    pub(crate) port: &'static str,
    /// What carried the payload in.
    pub(crate) mover: &'static str,
    /// Where the model read it.
    pub(crate) memory: &'static str,
    /// What joins engine and orchestrator.
    pub(crate) link: &'static str,
    /// Whether a software BlueField stood in for a card.
    pub(crate) emulated: bool,
    /// CPU copies of each payload byte on the way in, the kernel's included, on average.
    pub(crate) cpu_copies: f64,
    /// Of those, second copies of bytes that had landed in the wrong place.
    pub(crate) fixup_copies: f64,
    /// Copies of each payload byte in the runtime.
    pub(crate) runtime_copies: f64,
    /// Rows of the batch of the last request.
    pub(crate) batch_rows: u16,
}

impl Report {
    /// An arm, and whether it was emulated.
    pub(crate) fn name(&self, arm: Arm) -> String {
        name(arm, self.runs.iter().any(|run| run.arm == arm && run.emulated))
    }

    /// How much CPU other programs used, where that was enough to disturb what was measured.
    pub(crate) fn disturbance(&self) -> Option<String> {
        let disturbed = |run: &&Run| run.others_cpu_share.is_some_and(|share| share > DISTURBING);
        let share = |run: &Run| run.others_cpu_share.unwrap_or_default();
        let most = self.runs.iter().max_by(|one, other| share(one).total_cmp(&share(other))).filter(disturbed)?;
        let names: BTreeSet<&str> = self.runs.iter().filter(disturbed).map(|run| run.point.as_str()).collect();
        Some(format!(
            "Disturbed: during {} of the loads other programs, or the host, took more than {:.0} % of the CPU time; the most \
             was {:.0} %, during {}.",
            names.len(),
            DISTURBING * 100.0,
            share(most) * 100.0,
            most.point
        ))
    }
}

impl Idle {
    /// The arm, and whether it was emulated.
    pub(crate) fn name(&self) -> String {
        name(self.arm, self.emulated)
    }
}

/// An arm by name, and whether it was emulated.
fn name(arm: Arm, emulated: bool) -> String {
    format!("{arm}{}", if emulated { " (emulated)" } else { "" })
}

impl Run {
    /// The arm, and whether it was emulated.
    pub(crate) fn name(&self) -> String {
        name(self.arm, self.emulated)
    }

    /// In an open loop, what came, and whether it was too much.
    pub(crate) fn offer(&self) -> Option<String> {
        let offered = self.offered_rps?;
        if self.saturated {
            return Some(format!("saturated: offered {offered:.0}/s, carried {:.0}/s", self.throughput_rps));
        }
        let share = self.saturation_rps.filter(|&rps| rps > 0.0);
        let share = share.map(|rps| format!(", {:.0} % of its {rps:.0}/s", offered / rps * 100.0));
        Some(format!("offered {offered:.0}/s{}", share.unwrap_or_default()))
    }
}

impl PathRecord {
    /// The averages of what responses told, if any did.
    pub(crate) fn of(sums: &PathSums) -> Option<PathRecord> {
        let last = sums.last?;
        let per_byte = |bytes: u64| bytes as f64 / sums.payload.max(1) as f64;
        Some(PathRecord {
            port: last.port.name(),
            mover: last.mover.name(),
            memory: last.memory.name(),
            link: last.link.name(),
            emulated: last.emulated,
            cpu_copies: per_byte(sums.copied),
            fixup_copies: per_byte(sums.fixup),
            runtime_copies: per_byte(sums.runtime_copied),
            batch_rows: last.batch_rows,
        })
    }
}

/// Mean microseconds by stage.
pub(crate) fn stages(sums: &PathSums) -> Option<BTreeMap<&'static str, f64>> {
    let mean = |stage: Stage| sums.stages_ns[stage as usize] as f64 / sums.count as f64 / 1e3;
    (sums.count > 0).then(|| Stage::ALL.into_iter().map(|stage| (stage.name(), mean(stage))).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run for other tests.
    pub(crate) fn run(arm: Arm, point: &str, figure_us: f64) -> Run {
        Run {
            arm,
            emulated: false,
            model: "null",
            request_bytes: 602_112,
            response_bytes: 4_000,
            concurrency: 1,
            offered_rps: None,
            wait: Wait::Spin,
            requests: 1_000,
            errors: 0,
            latency_us: LatencyUs { p50: figure_us * 1.1, p10_of_medians: figure_us, ..LatencyUs::default() },
            throughput_rps: 1e6 / figure_us,
            rounds_rps: vec![1e6 / figure_us; 60],
            rounds_us: vec![figure_us * 1.1; 60],
            rounds_p99_us: None,
            by_rounds: false,
            cpu_us_per_request: CpuUs { client: 10.0, server: Some(11.0), nic: None },
            server_memory: None,
            stages_us: None,
            path: None,
            crossed: Crossed::Loopback,
            point: point.to_owned(),
            section: "one at a time",
            arrivals: None,
            of_saturation: None,
            saturation_of: None,
            saturation_rps: None,
            saturated: false,
            datagram: None,
            drop: 0.0,
            rounds: 60,
            connections: 60,
            measured_s: 0.6,
            bytes_per_s: 1e9,
            cpu_s_per_gb: Some(0.4),
            latency_target_us: None,
            goodput_rps: None,
            others_cpu_share: None,
            void: false,
            void_reason: None,
            error_kinds: BTreeMap::new(),
            curve: vec![(50.0, figure_us)],
        }
    }

    #[test]
    fn a_run_has_the_fields_that_readers_rely_on() {
        let json = serde_json::to_value(run(Arm::FloorTcpAgain, "p", 100.0)).unwrap();
        let names = [
            "arm",
            "emulated",
            "model",
            "request_bytes",
            "response_bytes",
            "concurrency",
            "offered_rps",
            "wait",
            "requests",
            "errors",
            "latency_us",
            "throughput_rps",
            "cpu_us_per_request",
            "stages_us",
            "path",
            "crossed",
        ];
        for name in names {
            assert!(json.get(name).is_some(), "{name}");
        }
        for name in ["p50", "p90", "p99", "p999", "mean", "max", "p10_of_medians"] {
            assert!(json["latency_us"][name].is_f64(), "{name}");
        }
        assert!(json["cpu_us_per_request"]["client"].is_f64() && json["cpu_us_per_request"]["server"].is_f64());
        assert!(json["cpu_us_per_request"]["nic"].is_null() && json["offered_rps"].is_null());
        assert_eq!(
            (&json["arm"], &json["wait"], &json["crossed"]),
            (&"floor-tcp-again".into(), &"spin".into(), &"loopback".into())
        );
    }
}
