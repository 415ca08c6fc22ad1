//! An urgent request beside a stream of large ones: what it waits for, and what the stream loses by it.
//!
//! Three loads take turns: urgent requests alone, the same beside the stream, and the stream alone. The agent is a process of its own; it, the
//! urgent client and the stream's have a core each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Args;
use host_agent::config::{Config, Data, Listen, Wait};
use serde::Serialize;
use splitrpc_client::{ConnectOptions, Connection, Event, Request, Tensor, Transport};
use splitrpc_wire::{DType, Path, Stage};

use crate::agent::{Agent, Fold};
use crate::machine::{self, Machine, gpu_name};
use crate::report::write_json;

/// What is promised: the urgent requests' 99th percentile beside the stream, as a multiple of that alone.
const TARGET: f64 = 3.0;
/// Requests of the stream that are under way at once, so that there is always one.
const AHEAD: usize = 2;
const URGENT: u8 = 1;
const ORDINARY: u8 = 2;
/// Rounds of each load before any counts.
const WARM_UP: usize = 1;

const LEVELS: &str = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Bytes of an urgent request.
    #[arg(long, default_value_t = 64 << 10)]
    urgent_bytes: u32,
    /// Bytes of each of the stream's.
    #[arg(long, default_value_t = 64 << 20)]
    stream_bytes: u32,
    /// Rounds of each load.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// How long each of them is.
    #[arg(long, default_value_t = 250)]
    window_ms: u64,
    /// A TOML file with other settings of the agent, such as those of its section `gpu`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to write the figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Of urgent requests, in microseconds.
#[derive(Debug, Serialize)]
struct Times {
    requests: usize,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    most: f64,
    /// Of each stage at the server.
    stages: Vec<StageTimes>,
    /// Of what is not the server's: from the call that sends the request to the answer's being there, less the stages.
    network: StageTimes,
}

#[derive(Debug, Serialize)]
struct StageTimes {
    stage: &'static str,
    mean: f64,
    p99: f64,
    /// Its mean in the slowest hundredth of the requests.
    mean_of_slowest: f64,
}

#[derive(Debug, Serialize)]
struct Stream {
    requests: u64,
    seconds: f64,
    gb_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    urgent_bytes: u32,
    stream_bytes: u32,
    rounds: usize,
    window_ms: u64,
    alone_us: Times,
    beside_us: Times,
    /// Of the 99th percentiles.
    ratio: f64,
    target: f64,
    is_met: bool,
    stream_alone: Stream,
    stream_beside: Stream,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { rounds, window_ms, .. } = *options;
    ensure!(rounds > 0 && window_ms > 0, "--rounds and --window-ms are at least 1");
    ensure!(
        options.urgent_bytes.is_multiple_of(16) && options.stream_bytes.is_multiple_of(16),
        "multiples of 16 bytes"
    );
    // Before this thread has one core alone.
    let machine = Machine { gpu: Some(gpu_name()?), ..Machine::this() };
    let folder = tempfile::tempdir()?;
    let fold = |name, bytes, blocks| Fold { name, bytes, blocks, max_batch: 1, more: LEVELS, stays: false };
    let urgent = fold("urgent", options.urgent_bytes, 4);
    let large = fold("large", options.stream_bytes, 256);
    let repository = folder.path().join("models");
    [urgent, large].iter().try_for_each(|model| model.write(&repository))?;
    let cores: Option<[usize; 3]> = machine::cores_apart();
    let config = config(options, repository, cores.map(|[server, ..]| server))?;
    let agent = Agent::start(&config, folder.path())?;
    let address = agent.tcp.context("the agent does not listen")?;
    let switch = Switch::default();
    let window = Duration::from_millis(window_ms);
    let mut found = Found::default();
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let streamed = stream(address, &large, &switch, cores.map(|[.., core]| core));
            switch.ended.store(true, Ordering::SeqCst);
            streamed
        });
        let measured = measure(address, &urgent, &switch, cores.map(|[_, core, _]| core), rounds, window, &mut found);
        switch.over.store(true, Ordering::SeqCst);
        let streamed = stream.join().expect("the stream does not panic");
        // Where the stream has broken, that is why the others did.
        streamed.context("the stream")?;
        measured
    })?;
    let Found { alone, beside, stream_alone, stream_beside } = found;
    let (alone_us, beside_us) = (alone.times(), beside.times());
    let ratio = beside_us.p99 / alone_us.p99;
    let streamed = |(requests, time): (u64, Duration)| Stream {
        requests,
        seconds: time.as_secs_f64(),
        gb_per_s: requests as f64 * f64::from(options.stream_bytes) / time.as_secs_f64() / 1e9,
    };
    let report = Report {
        machine,
        urgent_bytes: options.urgent_bytes,
        stream_bytes: options.stream_bytes,
        rounds,
        window_ms,
        alone_us,
        beside_us,
        ratio,
        target: TARGET,
        is_met: ratio <= TARGET,
        stream_alone: streamed(stream_alone),
        stream_beside: streamed(stream_beside),
    };
    print(&report);
    write_json(options.json.as_deref(), &report)
}

/// The agent's settings: room for a few large requests, and one data thread on a core of its own.
fn config(options: &Options, repository: PathBuf, core: Option<usize>) -> anyhow::Result<Config> {
    let overrides = host_agent::config::Overrides { config: options.config.clone(), ..Default::default() };
    let mut config = Config::load(&overrides)?;
    config.listen = Listen { tcp: Some(([127, 0, 0, 1], 0).into()), udp: None, http: None };
    let cores = core.and_then(|core| u16::try_from(core).ok()).into_iter().collect();
    config.data = Data { wait: Wait::Spin, cores, ..config.data };
    config.limits.sessions = 16;
    config.limits.slots_per_model = 8;
    config.limits.kept_replies = 8;
    // The manifest counts too.
    config.limits.max_request_bytes = config.limits.max_request_bytes.max(options.stream_bytes.saturating_add(4096));
    config.limits.class_bytes = config.limits.class_bytes.max(8 * u64::from(options.stream_bytes));
    (config.models.builtins, config.models.repository) = (Vec::new(), Some(repository));
    Ok(config)
}

/// What the stream is told, and tells.
#[derive(Default)]
struct Switch {
    runs: AtomicBool,
    over: AtomicBool,
    /// None of its requests is under way.
    quiet: AtomicBool,
    /// It has ended, by itself or not.
    ended: AtomicBool,
    answered: AtomicU64,
}

impl Switch {
    /// Starts the stream, and waits until it flows.
    fn start(&self) -> anyhow::Result<()> {
        let before = self.answered.load(Ordering::SeqCst);
        self.runs.store(true, Ordering::SeqCst);
        self.wait(|| self.answered.load(Ordering::SeqCst) > before)
    }

    /// Stops it, and waits until nothing of it is under way.
    fn stop(&self) -> anyhow::Result<()> {
        self.runs.store(false, Ordering::SeqCst);
        self.wait(|| self.quiet.load(Ordering::SeqCst))
    }

    fn wait(&self, until: impl Fn() -> bool) -> anyhow::Result<()> {
        while !until() {
            ensure!(!self.ended.load(Ordering::SeqCst), "the stream has ended");
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// Large requests one after the other, each of which is on its way before the one before is answered.
fn stream(address: SocketAddr, model: &Fold, switch: &Switch, core: Option<usize>) -> anyhow::Result<()> {
    let mut client = Asker::connect(address, model, ORDINARY, core)?;
    while !switch.over.load(Ordering::SeqCst) {
        let runs = switch.runs.load(Ordering::SeqCst);
        if runs {
            // Whoever started it goes on once something has been answered, which is later.
            switch.quiet.store(false, Ordering::SeqCst);
        }
        while runs && client.connection.in_flight() < AHEAD {
            client.ask()?;
        }
        if client.connection.in_flight() == 0 {
            switch.quiet.store(true, Ordering::SeqCst);
        } else if client.answer()?.is_some() {
            switch.answered.fetch_add(1, Ordering::SeqCst);
        }
        std::hint::spin_loop();
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    alone: Samples,
    beside: Samples,
    stream_alone: (u64, Duration),
    stream_beside: (u64, Duration),
}

fn measure(
    address: SocketAddr,
    model: &Fold,
    switch: &Switch,
    core: Option<usize>,
    rounds: usize,
    window: Duration,
    found: &mut Found,
) -> anyhow::Result<()> {
    let mut client = Asker::connect(address, model, URGENT, core)?;
    let mut unwanted = Found::default();
    for round in 0..WARM_UP + rounds {
        let Found { alone, beside, stream_alone, stream_beside } =
            if round < WARM_UP { &mut unwanted } else { &mut *found };
        client.ask_for(window, alone)?;
        switch.start()?;
        let counted = |of: &mut (u64, Duration), run: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<()> {
            let (before, since) = (switch.answered.load(Ordering::SeqCst), Instant::now());
            run()?;
            of.0 += switch.answered.load(Ordering::SeqCst) - before;
            of.1 += since.elapsed();
            Ok(())
        };
        counted(stream_beside, &mut || client.ask_for(window, beside))?;
        counted(stream_alone, &mut || {
            std::thread::sleep(window);
            Ok(())
        })?;
        switch.stop()?;
    }
    Ok(())
}

/// A client that asks the same over and over, and looks at every answer.
struct Asker {
    connection: Connection,
    handle: u16,
    dims: [u32; 2],
    input: Bytes,
    expected: Vec<u8>,
    priority: u8,
}

impl Asker {
    fn connect(address: SocketAddr, model: &Fold, priority: u8, core: Option<usize>) -> anyhow::Result<Asker> {
        if let Some(core) = core {
            splitrpc_socket::pin_current_thread(core)?;
        }
        let (input, expected) = model.example(u32::from(priority));
        // What waits to be sent is shared and not copied, so there may be much of it.
        let options = ConnectOptions { max_unsent: usize::MAX, ..ConnectOptions::default() };
        let connection = Connection::connect(&address.to_string(), Transport::Tcp, &options)?;
        let handle = connection.catalogue().model(model.name)?.handle;
        Ok(Asker { connection, handle, dims: [1, model.bytes / 4], input: input.into(), expected, priority })
    }

    fn ask(&mut self) -> anyhow::Result<()> {
        let tensors = [Tensor::new(0, DType::Uint32, &self.dims, &self.input)?];
        let request = Request { priority: self.priority, ..Request::new(self.handle, &tensors) };
        self.connection.submit(&request)?;
        Ok(())
    }

    /// The next answer's path, if there is one.
    fn answer(&mut self) -> anyhow::Result<Option<Path>> {
        match self.connection.poll()? {
            Some(Event::Response(response)) => {
                ensure!(response.data() == self.expected, "an answer is wrong");
                let path = *response.path().context("an answer without its path")?;
                self.connection.recycle(response);
                Ok(Some(path))
            }
            Some(Event::Failed(failure)) => anyhow::bail!("a request has failed: {failure}"),
            _ => Ok(None),
        }
    }

    /// One request after the other for so long.
    fn ask_for(&mut self, time: Duration, samples: &mut Samples) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        loop {
            let start = Instant::now();
            if start >= end {
                return Ok(());
            }
            self.ask()?;
            let path = loop {
                match self.answer()? {
                    Some(path) => break path,
                    None => std::hint::spin_loop(),
                }
            };
            samples.0.push((start.elapsed().as_nanos() as u64, path));
        }
    }
}

/// Nanoseconds of each request, and how they were spent.
#[derive(Default)]
struct Samples(Vec<(u64, Path)>);

impl Samples {
    fn times(mut self) -> Times {
        self.0.sort_unstable_by_key(|(took, _)| *took);
        let took = |share| self.at(share, |(took, _)| *took);
        let server = |path: &Path| Stage::ALL.iter().map(|stage| u64::from(path.stage(*stage))).sum::<u64>();
        let stages = Stage::ALL.iter().map(|stage| self.stage(stage.name(), |(_, path)| path.stage(*stage).into()));
        Times {
            requests: self.0.len(),
            p50: took(0.5),
            p90: took(0.9),
            p99: took(0.99),
            p999: took(0.999),
            most: took(1.0),
            stages: stages.collect(),
            network: self.stage("network", |(took, path)| took.saturating_sub(server(path))),
        }
    }

    fn at(&self, share: f64, of: impl Fn(&(u64, Path)) -> u64) -> f64 {
        let mut sorted: Vec<u64> = self.0.iter().map(of).collect();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).map_or(0.0, |ns| *ns as f64 / 1e3)
    }

    /// `self` is sorted by what requests took in all.
    fn stage(&self, stage: &'static str, of: impl Fn(&(u64, Path)) -> u64) -> StageTimes {
        let mean = |some: &[(u64, Path)]| some.iter().map(&of).sum::<u64>() as f64 / some.len().max(1) as f64 / 1e3;
        let slowest = &self.0[self.0.len() * 99 / 100..];
        StageTimes { stage, mean: mean(&self.0), p99: self.at(0.99, &of), mean_of_slowest: mean(slowest) }
    }
}

fn print(report: &Report) {
    let Report { alone_us, beside_us, stream_alone, stream_beside, ratio, target, .. } = report;
    println!("{:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9}", "us", "requests", "p50", "p90", "p99", "p99.9", "most");
    for (name, times) in [("alone", alone_us), ("beside", beside_us)] {
        let Times { requests, p50, p90, p99, p999, most, .. } = times;
        println!("{name:>8} {requests:>9} {p50:>8.1} {p90:>8.1} {p99:>8.1} {p999:>8.1} {most:>9.1}");
    }
    println!("p99 beside the stream is {ratio:.2} times that alone; it is to be {target} at most");
    println!("{:>10} {:>27} {:>27}", "stage, us", "alone: mean p99 slowest", "beside: mean p99 slowest");
    let both = alone_us.stages.iter().chain([&alone_us.network]);
    for (a, b) in both.zip(beside_us.stages.iter().chain([&beside_us.network])) {
        println!(
            "{:>10} {:>9.1} {:>8.1} {:>8.1} {:>9.1} {:>8.1} {:>8.1}",
            a.stage, a.mean, a.p99, a.mean_of_slowest, b.mean, b.p99, b.mean_of_slowest
        );
    }
    for (name, Stream { requests, gb_per_s, .. }) in [("alone", stream_alone), ("beside urgent ones", stream_beside)] {
        println!("the stream {name}: {requests} requests, {gb_per_s:.2} GB/s");
    }
}
