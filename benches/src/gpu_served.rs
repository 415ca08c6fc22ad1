//! The ways to launch one model, served: the same kernel is launched, launched as a graph, waits at a gate, or stays, and answers one small request
//! after the other over loopback TCP.
//!
//! The ways take turns of some requests each. The agent is a process of its own; it and the client have a core each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;
use host_agent::config::{Config, Data, Listen, Wait};
use serde::Serialize;
use splitrpc_client::{ConnectOptions, Connection, Event, Request, Tensor, Transport};
use splitrpc_wire::{DType, STAGES, Stage};

use crate::agent::Agent;
use crate::gpu_copies::{Samples, Times};
use crate::machine::{self, Machine, gpu_name};
use crate::report::write_json;
use crate::workloads::{STAYS, STEP};

/// Words of input and output.
const WORDS: u32 = 1_000;
/// Requests of a turn, of which the first are not counted.
const TURN: usize = 80;
const SETTLING: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Turns of each way.
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Where to write the figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A model, by how its manifest has it launched.
struct Way {
    name: &'static str,
    launch: &'static str,
    in_place: bool,
    /// It is named in `gpu.pre_launched`.
    waits: bool,
}

const fn way(name: &'static str, launch: &'static str, in_place: bool) -> Way {
    Way { name, launch, in_place, waits: false }
}

const WAYS: [Way; 7] = [
    way("kernel", "kernel", false),
    way("graph", "graph", false),
    Way { waits: true, ..way("graph-pre-launched", "graph", false) },
    way("persistent", "persistent", false),
    way("kernel-in-place", "kernel", true),
    way("graph-in-place", "graph", true),
    way("persistent-in-place", "persistent", true),
];

impl Way {
    /// Adds its model to a repository.
    fn write(&self, repository: &Path) -> anyhow::Result<()> {
        let folder = repository.join(self.name);
        std::fs::create_dir_all(folder.join("1"))?;
        let tensor = |kind: &str, name: &str| {
            format!("{kind} {{ name: \"{name}\" data_type: TYPE_UINT32 dims: [ {WORDS} ] }}\n")
        };
        std::fs::write(folder.join("config.pbtxt"), tensor("input", "IN") + &tensor("output", "OUT"))?;
        let code = if self.launch == "persistent" { STAYS } else { STEP };
        let manifest = format!(
            "module = \"{}\"\nlaunch = \"{}\"\nin_place = {}\n[[kernel]]\nfunction = \"step\"\ngrid = [1]\n\
             block = [1024]\narguments = [{{ input = \"IN\" }}, {{ output = \"OUT\" }}, {{ u32 = {WORDS} }}]\n",
            code.name, self.launch, self.in_place
        );
        std::fs::write(folder.join("1/kernels.toml"), manifest)?;
        std::fs::write(folder.join("1").join(code.name), code.text)?;
        Ok(())
    }
}

/// Microseconds from the call that sends a request to the answer's being there.
#[derive(Debug, Serialize)]
struct Row {
    way: &'static str,
    #[serde(flatten)]
    times: Times,
    /// The mean of each stage at the server.
    stages_us: BTreeMap<&'static str, f64>,
    /// Of the medians, of the first way's.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    bytes: u32,
    rounds: usize,
    rows: Vec<Row>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rounds > 0, "--rounds is at least 1");
    // Before this thread has one core alone.
    let machine = Machine { gpu: Some(gpu_name()?), ..Machine::this() };
    let folder = tempfile::tempdir()?;
    let repository = folder.path().join("models");
    WAYS.iter().try_for_each(|way| way.write(&repository))?;
    let cores: Option<[usize; 2]> = machine::cores_apart();
    let agent = Agent::start(&config(repository, cores.map(|[server, _]| server)), folder.path())?;
    if let Some([_, core]) = cores {
        splitrpc_socket::pin_current_thread(core)?;
    }
    let found = measure(agent.tcp.context("the agent does not listen")?, options.rounds)?;
    let found = found.map(|Found { samples, stages_ns, count }| {
        let mean = |stage: &Stage| (stage.name(), stages_ns[*stage as usize] as f64 / count.max(1) as f64 / 1e3);
        (samples.times(), Stage::ALL.iter().map(mean).collect())
    });
    let first = found.first().map_or(0.0, |(times, _)| times.p50);
    let row = |(way, (times, stages_us)): (&Way, (Times, _))| {
        let ratio = times.p50 / first;
        Row { way: way.name, times, stages_us, ratio }
    };
    let rows = WAYS.iter().zip(found).map(row).collect();
    let report = Report { machine, bytes: 4 * WORDS, rounds: options.rounds, rows };
    println!("{:<20} {:>6} {:>6} {:>6} {:>6}   stages, mean", "us", "p10", "p50", "p90", "ratio");
    for Row { way, times: Times { p10, p50, p90, .. }, stages_us, ratio } in &report.rows {
        let stages = stages_us.iter().filter(|(_, us)| **us >= 0.05).map(|(stage, us)| format!("{stage} {us:.1}"));
        let stages = stages.collect::<Vec<_>>().join(", ");
        println!("{way:<20} {p10:>6.1} {p50:>6.1} {p90:>6.1} {ratio:>6.2}   {stages}");
    }
    write_json(options.json.as_deref(), &report)
}

/// One data thread on a core of its own.
fn config(repository: PathBuf, core: Option<usize>) -> Config {
    let listen = Listen { tcp: Some(([127, 0, 0, 1], 0).into()), udp: None, http: None };
    let mut config = Config { listen, ..Config::default() };
    let cores = core.and_then(|core| u16::try_from(core).ok()).into_iter().collect();
    config.data = Data { wait: Wait::Spin, cores, ..config.data };
    config.limits.sessions = 16;
    config.limits.slots_per_model = 16;
    config.limits.kept_replies = 16;
    config.gpu.pre_launched = WAYS.iter().filter(|way| way.waits).map(|way| way.name.to_owned()).collect();
    (config.models.builtins, config.models.repository) = (Vec::new(), Some(repository));
    config
}

/// What was found of a way.
#[derive(Default)]
struct Found {
    samples: Samples,
    stages_ns: [u64; STAGES],
    count: u64,
}

fn measure(address: SocketAddr, rounds: usize) -> anyhow::Result<[Found; WAYS.len()]> {
    let mut connection = Connection::connect(&address.to_string(), Transport::Tcp, &ConnectOptions::default())?;
    let handles = WAYS.iter().map(|way| Ok(connection.catalogue().model(way.name)?.handle));
    let handles = handles.collect::<anyhow::Result<Vec<u16>>>()?;
    let bytes = |add: u32| (0..WORDS).flat_map(|word| (word * 7 + add).to_le_bytes()).collect::<Vec<u8>>();
    let (input, expected) = (bytes(0), bytes(1));
    let mut found: [Found; WAYS.len()] = Default::default();
    let mut order: Vec<usize> = (0..WAYS.len()).collect();
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..=rounds {
        rng.shuffle(&mut order);
        for &way in &order {
            for number in 0..TURN {
                let tensors = [Tensor::new(0, DType::Uint32, &[WORDS], &input)?];
                let start = Instant::now();
                connection.submit(&Request::new(handles[way], &tensors))?;
                let sent = start.elapsed();
                let response = loop {
                    match connection.poll()? {
                        Some(Event::Response(response)) => break response,
                        Some(Event::Failed(failure)) => anyhow::bail!("a request has failed: {failure}"),
                        _ => std::hint::spin_loop(),
                    }
                };
                let took = start.elapsed();
                ensure!(response.data() == expected, "{} answers wrong", WAYS[way].name);
                if round > 0 && number >= SETTLING {
                    let found = &mut found[way];
                    found.samples.add(sent.as_nanos() as u64, took.as_nanos() as u64);
                    let stages = response.path().context("an answer without its path")?.stages_ns;
                    found.stages_ns.iter_mut().zip(stages).for_each(|(sum, ns)| *sum += u64::from(ns));
                    found.count += 1;
                }
                connection.recycle(response);
            }
        }
    }
    Ok(found)
}
