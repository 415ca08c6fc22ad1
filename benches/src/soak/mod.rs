//! A mixed load against one host agent with models on the GPU, for long: whether all answers are right, and whether the agent grows.
//!
//! What the agent holds is compared at two moments at which nobody is connected: after the first minute, and at the end.

mod load;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use host_agent::config::{Builtin, Config, Listen};
use serde::Serialize;
use splitrpc_cuda::Driver;

use crate::agent::{Agent, Fold};
use crate::machine::Machine;
use crate::process::resident_bytes;
use crate::report::write_json;
use load::{Counts, Load};

/// How long the agent may take to be as large as it gets.
const FIRST: Duration = Duration::from_secs(60);
/// How long after the last client it is looked at: by then the agent has forgotten the datagram sessions and kept replies.
const SETTLE: Duration = Duration::from_secs(8);
const IDLE_MS: u32 = 4_000;
const SAMPLE: Duration = Duration::from_secs(2);
/// Resident memory may grow by so much: an allocator's pages are not all in use.
const RESIDENT_SLACK: i64 = 4 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long the load lasts, the first minute included.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Seed of what the clients do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the agent holds at a moment.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    /// Seconds since the load began.
    at: f64,
    resident_bytes: u64,
    locked_bytes: u64,
    files: u64,
    threads: u64,
    /// Of the whole device, on which there is nothing else but this program's context.
    device_bytes: u64,
}

/// What it gained between the two moments.
#[derive(Clone, Copy, Debug, Serialize)]
struct Growth {
    resident_bytes: i64,
    locked_bytes: i64,
    files: i64,
    threads: i64,
    device_bytes: i64,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    seconds: f64,
    seed: u64,
    counts: Counts,
    /// Answers that were wrong or did not come, and requests that failed for no reason; a few of them in words.
    faults: u64,
    first_faults: Vec<String>,
    after_first_minute: Sample,
    at_the_end: Sample,
    growth: Growth,
    passed: bool,
    samples: Vec<Sample>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.seconds > FIRST.as_secs(), "--seconds is more than {}", FIRST.as_secs());
    let driver = Driver::load()?;
    let device = driver.devices().first().context("there is no GPU")?;
    let context = driver.context(device)?;
    let folder = tempfile::tempdir()?;
    let repository = folder.path().join("models");
    load::models().iter().try_for_each(|model: &Fold| model.write(&repository))?;
    let agent = Agent::start(&config(repository), folder.path())?;
    let load = Load::new(&agent, options.seed)?;
    let begun = Instant::now();
    let sample = || -> anyhow::Result<Sample> {
        let (free, total) = context.memory_bytes()?;
        Sample::of(agent.pid(), total - free, begun.elapsed())
    };
    let mut samples = vec![sample()?];
    let mut phase = |time: Duration| -> anyhow::Result<Sample> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| -> anyhow::Result<()> {
            let clients = load.start(scope, &over);
            let end = Instant::now() + time;
            let mut sampled = Ok(());
            while Instant::now() < end && sampled.is_ok() {
                thread::sleep(SAMPLE.min(end.saturating_duration_since(Instant::now())));
                sampled = sample().map(|sample| samples.push(sample));
            }
            over.store(true, Ordering::SeqCst);
            clients.into_iter().for_each(|client| client.join().expect("a client does not panic"));
            sampled
        })?;
        thread::sleep(SETTLE);
        let quiet = sample()?;
        samples.push(quiet);
        Ok(quiet)
    };
    let first = phase(FIRST)?;
    let (_, faults, words) = load.found();
    ensure!(faults == 0, "{faults} faults in the first minute:\n{}", words.join("\n"));
    let last = phase(Duration::from_secs(options.seconds) - FIRST)?;
    let growth = Growth::between(&first, &last);
    let (counts, faults, first_faults) = load.found();
    let report = Report {
        machine: Machine { gpu: Some(device.name.clone()), ..Machine::this() },
        seconds: begun.elapsed().as_secs_f64(),
        seed: options.seed,
        passed: faults == 0 && counts.all_happened() && growth.is_none(),
        counts,
        faults,
        first_faults,
        after_first_minute: first,
        at_the_end: last,
        growth,
        samples,
    };
    write_json(options.json.as_deref(), &report)?;
    let Report { counts, faults, first_faults, after_first_minute, at_the_end, growth, passed, .. } = &report;
    println!("{counts:#?}\nafter the first minute: {after_first_minute:?}\nat the end: {at_the_end:?}\n{growth:?}");
    first_faults.iter().for_each(|fault| println!("fault: {fault}"));
    ensure!(passed, "the soak has failed: {faults} faults, {growth:?}");
    Ok(())
}

/// Every port and every sort of model, and limits under which what clients leave behind is forgotten before it is counted.
fn config(repository: PathBuf) -> Config {
    let any = Some(([127, 0, 0, 1], 0).into());
    let mut config = Config { listen: Listen { tcp: any, udp: any, http: None }, ..Config::default() };
    config.limits.sessions = 256;
    config.limits.idle_timeout_ms = IDLE_MS;
    config.models.builtins = vec![Builtin::Echo, Builtin::NullGpu];
    config.models.repository = Some(repository);
    config
}

impl Sample {
    fn of(pid: u32, device_bytes: u64, at: Duration) -> anyhow::Result<Sample> {
        let folder = Path::new("/proc").join(pid.to_string());
        let status = std::fs::read_to_string(folder.join("status")).context("the agent has ended")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        Ok(Sample {
            at: at.as_secs_f64(),
            resident_bytes: resident_bytes(pid)?,
            locked_bytes: (field("VmLck") + field("VmPin")) << 10,
            files: std::fs::read_dir(folder.join("fd"))?.count() as u64,
            threads: field("Threads"),
            device_bytes,
        })
    }
}

impl Growth {
    fn between(first: &Sample, last: &Sample) -> Growth {
        let gained = |of: fn(&Sample) -> u64| of(last) as i64 - of(first) as i64;
        Growth {
            resident_bytes: gained(|s| s.resident_bytes),
            locked_bytes: gained(|s| s.locked_bytes),
            files: gained(|s| s.files),
            threads: gained(|s| s.threads),
            device_bytes: gained(|s| s.device_bytes),
        }
    }

    fn is_none(&self) -> bool {
        let Growth { resident_bytes, locked_bytes, files, threads, device_bytes } = *self;
        resident_bytes <= RESIDENT_SLACK
            && [locked_bytes, files, threads, device_bytes].iter().all(|gained| *gained <= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_grows_is_told() {
        let first =
            Sample { at: 1.0, resident_bytes: 9 << 20, locked_bytes: 5, files: 7, threads: 3, device_bytes: 100 };
        let grown = |change: fn(&mut Sample)| {
            let mut last = first;
            change(&mut last);
            !Growth::between(&first, &last).is_none()
        };
        assert!(!grown(|_| {}) && !grown(|s| s.files = 6) && !grown(|s| s.resident_bytes += 1 << 20));
        assert!(grown(|s| s.files = 8) && grown(|s| s.threads = 4) && grown(|s| s.device_bytes = 101));
        assert!(grown(|s| s.locked_bytes = 6) && grown(|s| s.resident_bytes += 5 << 20));
    }

    #[test]
    fn a_process_is_looked_at_from_outside() {
        let sample = Sample::of(std::process::id(), 3, Duration::from_secs(2)).unwrap();
        assert!(sample.resident_bytes > 1 << 20 && sample.files >= 3 && sample.threads >= 1);
        assert_eq!((sample.device_bytes, sample.at), (3, 2.0));
    }
}
