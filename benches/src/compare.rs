//! The comparison from its options to its files.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::arms::{self, Arm, DATAGRAM};
use crate::crowd::{self, Crowd};
use crate::machine::{self, Crossed, Machine, gpu_name};
use crate::plan::{self, Point};
use crate::record::{Idle, Report, Run};
use crate::runner::{IDLE, Runner, Servers, Session};
use crate::scope::Scope;
use crate::summary::summaries;
use crate::verdict::{self, Found};
use crate::wait::{self, Wait};
use crate::workloads::Workload;
use crate::{PORT_BASE, address, report};

/// Times of [`idle_time`] that idle servers take, with a quarter for each to come to rest.
const IDLE_WINDOWS: u32 = IDLE.len() as u32 * 5 / 4 + 1;

/// What to compare, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// At most one minute: only the sizes and settings at which figures are read.
    #[arg(long)]
    quick: bool,
    /// Models on this machine's first GPU, instead of the CPU.
    #[arg(long, conflicts_with_all = ["quick", "server"])]
    gpu: bool,
    /// With --gpu: only these models, separated by commas; all unless given.
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD", requires = "gpu")]
    workload: Vec<Workload>,
    /// Only these arms, separated by commas. A floor's second run comes with the floor.
    #[arg(long, value_delimiter = ',', value_name = "ARM")]
    arms: Vec<Arm>,
    /// Only loads whose name, as the table's first column shows it, contains one of these, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "TEXT")]
    loads: Vec<String>,
    /// Where to write the JSON.
    #[arg(long, value_name = "FILE", default_value = "target/compare/compare.json")]
    json: PathBuf,
    /// Where to write the report.
    #[arg(long, value_name = "FILE", default_value = "target/compare/compare.html")]
    html: PathBuf,
    /// With --gpu: a folder for the plots of the models as files of their own.
    #[arg(long, value_name = "FOLDER", requires = "gpu")]
    svg: Option<PathBuf>,
    /// Use servers that run elsewhere: each arm's `serve-arm` at the port base (7470) plus the arm's number in `list-arms`.
    #[arg(long, value_name = "HOST[:PORT BASE]")]
    server: Option<String>,
    /// With --server: how those servers wait. Only loads of this wait mode are run.
    #[arg(long, default_value = "adaptive", requires = "server")]
    server_wait: Wait,
    /// What the order of arms and the arrivals are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Time limit in seconds; 54 with --quick, 540 with --gpu, and else 285 unless given.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: Option<u64>,
}

/// Runs the comparison.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    options.workload.iter().try_for_each(|workload| workload.check())?;
    let started = Instant::now();
    if cfg!(debug_assertions) {
        eprintln!("This is a debug build: its times say nothing. Use `cargo run --release`.");
    }
    let all = if options.gpu { &Arm::GPU[..] } else { &Arm::NETWORK };
    let arms = with_second_floors(&options.arms, all);
    let (cores, agent_core) = (machine::core_pair(), machine::agent_core());
    let points = points(options, &arms)?;
    let whole = plan(options, all);
    let server_wait = options.server.is_some().then_some(options.server_wait);
    let mut scope = Scope::new(options.quick, &points, &whole, (&arms, all), server_wait);
    let (source, crossed) = match &options.server {
        None => (Servers::Local(cores.map(|(_, server)| server), agent_core), Crossed::Loopback),
        Some(server) => {
            let address = address(server, PORT_BASE)?;
            all_answer(address.ip(), address.port(), &points, options.server_wait)?;
            (Servers::Remote(address.ip(), address.port()), machine::crossed(address))
        }
    };
    // Better now than after all has been measured.
    for file in [&options.json, &options.html] {
        writable(file)?;
    }
    let usual = match (options.quick, options.gpu) {
        (true, _) => 54,
        (_, true) => 540,
        _ => 285,
    };
    let limit = Duration::from_secs(options.limit.unwrap_or(usual));
    let machine = if options.gpu { Machine { gpu: Some(gpu_name()?), ..Machine::this() } } else { Machine::this() };
    if let Some((client, _)) = cores {
        splitrpc_socket::pin_current_thread(client)?;
    }
    if options.server.is_none() && (cores.is_none() || cores.map(|(client, _)| client) == agent_core) {
        wait::share_core();
    }
    // Wakes on time, not within the usual 50 us of it.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;

    let local = options.server.is_none();
    let clients = (local && !options.gpu && options.loads.is_empty() && arms.contains(&Arm::CommodityTcp))
        .then(|| crowd::within_limit(if options.quick { crowd::FEW_CLIENTS } else { crowd::CLIENTS }));
    let besides = clients.map_or(Duration::ZERO, crowd::time) + idle_time(options.quick) * IDLE_WINDOWS;
    let progress = progress_bar(&points, besides, limit);
    let mut runner = Runner::new(source, crossed, options.seed, progress.clone());
    let deadline = started + limit.saturating_sub(clients.map_or(Duration::ZERO, crowd::time));
    let (runs, idle) = run_all(&mut runner, &points, deadline, &mut scope)?;
    drop(runner);
    let crowd = clients.map(|clients| {
        progress.set_message(format!("{clients} idle clients"));
        crowd::measure(clients, cores.map(|(_, server)| server)).map_err(|error| format!("{error:#}"))
    });
    progress.finish_and_clear();

    let idle_servers = (local || !idle.is_empty()).then_some(&*idle);
    let figures = verdict::figures(&Found { points: &points, runs: &runs, idle: idle_servers, crowd: crowd.as_ref() });
    let all = Found { points: &whole, runs: &[], idle: Some(&[]), crowd: Some(&Err(String::new())) };
    let given: Vec<&str> = figures.iter().map(|figure| &*figure.what).collect();
    scope.judge(&given, verdict::figures(&all).into_iter().map(|figure| figure.what));
    let report = Report {
        format: 1,
        machine,
        crossed,
        quick: options.quick,
        scope,
        seed: options.seed,
        elapsed_s: started.elapsed().as_secs_f64(),
        cores,
        figures,
        idle,
        crowd: crowd.and_then(Result::<Crowd, _>::ok),
        workloads: summaries(&runs),
        runs,
    };
    write(&options.json, serde_json::to_string_pretty(&report)?.as_bytes())?;
    write(&options.html, report::html::page(&report)?.as_bytes())?;
    if let Some(folder) = &options.svg {
        for (name, svg) in report::workloads::plots(&report)? {
            let file = folder.join(format!("{name}.svg"));
            make_folder(&file)?;
            // The page has a colour of its own behind its plots.
            write(&file, svg.replacen("<svg ", "<svg style=\"background:white\" ", 1).as_bytes())?;
        }
    }
    let mut out = std::io::stdout().lock();
    report::table::print(&report, &mut out)?;
    writeln!(out, "\nReport: {}\nJSON:   {}", options.html.display(), options.json.display())?;
    Ok(())
}

/// A floor without its second run says nothing.
fn with_second_floors(asked: &[Arm], all: &[Arm]) -> Vec<Arm> {
    let wants = |arm: Arm| {
        asked.is_empty()
            || asked.contains(&arm)
            || arm == Arm::FloorTcpAgain && asked.contains(&Arm::FloorTcp)
            || arm == Arm::FloorUdpAgain && asked.contains(&Arm::FloorUdp)
    };
    all.iter().copied().filter(|&arm| wants(arm)).collect()
}

/// The loads that are left of the plan.
fn points(options: &Options, arms: &[Arm]) -> anyhow::Result<Vec<Point>> {
    let mut points = plan(options, arms);
    if options.server.is_some() {
        remote_only(&mut points, options.server_wait);
    }
    let names: BTreeSet<String> = points.iter().map(Point::id).collect();
    anyhow::ensure!(!names.is_empty(), "--arms and --server-wait leave no load");
    if let Some(part) = options.loads.iter().find(|part| !names.iter().any(|name| name.contains(part.as_str()))) {
        let names: Vec<String> = names.into_iter().collect();
        anyhow::bail!("no load has {part} in its name; there are\n  {}", names.join("\n  "));
    }
    if !options.loads.is_empty() {
        points.retain(|point| options.loads.iter().any(|part| point.id().contains(part)));
    }
    Ok(points)
}

fn plan(options: &Options, arms: &[Arm]) -> Vec<Point> {
    match (options.quick, options.gpu) {
        (true, _) => plan::quick(arms),
        (_, true) => plan::gpu(arms, &workloads(options)),
        _ => plan::full(arms),
    }
}

/// The models that are to compute on a GPU.
fn workloads(options: &Options) -> Vec<Workload> {
    let has = |workload: &Workload| workload.check().is_ok();
    let all = [Workload::NullGpu, Workload::Resnet50].into_iter().filter(has).chain(Workload::MODELS);
    all.filter(|workload| options.workload.is_empty() || options.workload.contains(workload)).collect()
}

/// Keeps what servers elsewhere can take part in: they have one wait mode, ordinary datagrams, and lose nothing.
fn remote_only(points: &mut Vec<Point>, wait: Wait) {
    for point in &mut *points {
        point.entrants.retain(|e| e.wait == wait && e.datagram == DATAGRAM && e.drop == 0.0);
    }
    points.retain(|point| !point.entrants.is_empty());
}

/// Asks every server elsewhere once, and names all that do not answer.
fn all_answer(host: IpAddr, base: u16, points: &[Point], wait: Wait) -> anyhow::Result<()> {
    let arms: BTreeSet<Arm> = points.iter().flat_map(|point| &point.entrants).map(|entrant| entrant.arm).collect();
    let mut silent = String::new();
    for &arm in &arms {
        let port = base.checked_add(arm.port_offset()).context("the port base is too high")?;
        let server = SocketAddr::new(host, port);
        if let Err(error) = arms::ask_once(arm, server) {
            let wait = wait.name();
            silent += &format!("\n  {server}: {error:#}; wanted there: benches serve-arm {arm} --wait {wait}");
            if base != PORT_BASE {
                silent += &format!(" --bind ADDR:{port}");
            }
        }
    }
    anyhow::ensure!(silent.is_empty(), "not every server answers (--arms leaves some out):{silent}");
    Ok(())
}

fn run_all(
    runner: &mut Runner,
    points: &[Point],
    deadline: Instant,
    scope: &mut Scope,
) -> anyhow::Result<(Vec<Run>, Vec<Idle>)> {
    let idle_time = idle_time(scope.quick);
    // For idle servers, the report, and a last window that takes longer than planned.
    let end = deadline.checked_sub(IDLE_WINDOWS * idle_time + Duration::from_secs(1)).unwrap_or(deadline);
    let mut runs: Vec<Vec<Run>> = points.iter().map(|_| Vec::new()).collect();
    let mut sessions: Vec<Option<Session<'_>>> = points.iter().map(|_| None).collect();
    let mut failed = BTreeSet::new();
    let cost = |at: usize, part: u32| {
        plan::starting(points, at, part) + points[at].cost_of(points[at].openings_of(part).len() as u32)
    };
    let mut left: Duration = plan::parts(points).into_iter().map(|(at, part)| cost(at, part)).sum();
    for (at, part) in plan::parts(points) {
        let point = &points[at];
        let openings = point.openings_of(part);
        let cost = cost(at, part);
        let time = end.saturating_duration_since(Instant::now());
        let share = (cost.as_secs_f64() / left.as_secs_f64().max(1e-9)).min(1.0);
        left = left.saturating_sub(cost);
        if failed.contains(&at) {
            continue;
        }
        if !time.is_zero() {
            let session = sessions[at].get_or_insert_with(|| Session::new(point));
            match runner.part(session, openings, time.mul_f64(share), end) {
                Ok(()) => {}
                // A GPU may lack memory for one model and have it for the next.
                Err(error) if point.workload.is_on_gpu() => {
                    scope.failed.push(format!("{}: {error:#}", point.id()));
                    failed.insert(at);
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        if part + 1 < point.parts {
            continue;
        }
        // Floors that disagree get more rounds, but not in time that loads to come are to have; and those may take longer
        // than planned.
        let spare = end.checked_sub(left.mul_f64(1.05)).unwrap_or(end);
        match sessions[at].take() {
            Some(session) => runs[at] = runner.finish(session, spare)?,
            None => scope.not_run.push(point.id()),
        }
    }
    Ok((runs.concat(), runner.idle(idle_time, scope.server_wait)?))
}

/// How long each server is watched while nobody asks it anything.
fn idle_time(quick: bool) -> Duration {
    Duration::from_millis(if quick { 400 } else { 1_000 })
}

/// How long a comparison will take, about, if no rounds are added.
fn expected(points: &[Point], besides: Duration, limit: Duration) -> Duration {
    let starting = |at| plan::starting(points, at, 0);
    (points.iter().map(Point::cost).chain((0..points.len()).map(starting)).sum::<Duration>() + besides).min(limit)
}

fn progress_bar(points: &[Point], besides: Duration, limit: Duration) -> ProgressBar {
    let windows = points.iter().map(|point| u64::from(point.openings()) * point.entrants.len() as u64).sum();
    let most = limit.as_secs();
    // Whoever sees no bar, since this is no terminal, is told what to expect, too.
    let expected = expected(points, besides, limit).as_secs_f64();
    eprintln!("{} loads, about {expected:.0} s, at most {most} s", points.len());
    let template = format!("{{elapsed:>4}} of at most {most} s [{{bar:32}}] {{percent:>3}} %  {{msg}}");
    let bar = ProgressBar::new(windows);
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

/// Fails where `path` cannot be written. What is in it stays.
fn writable(path: &Path) -> anyhow::Result<()> {
    make_folder(path)?;
    let existed = path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).with_context(|| format!("writing {}", path.display()))?;
    // An empty one is no report.
    if existed { Ok(()) } else { std::fs::remove_file(path).with_context(|| format!("removing {}", path.display())) }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn planned(line: &str) -> anyhow::Result<Vec<Point>> {
        planned_of(line, &Arm::NETWORK)
    }

    fn planned_of(line: &str, all: &[Arm]) -> anyhow::Result<Vec<Point>> {
        let options = Line::parse_from(line.split(' ')).options;
        points(&options, &with_second_floors(&options.arms, all))
    }

    #[test]
    fn a_floor_brings_its_second_run() {
        assert_eq!(with_second_floors(&[Arm::FloorUdp], &Arm::NETWORK), [Arm::FloorUdp, Arm::FloorUdpAgain]);
        assert_eq!(with_second_floors(&[Arm::BundledTcp], &Arm::NETWORK), [Arm::BundledTcp]);
        assert_eq!(with_second_floors(&[], &Arm::NETWORK).len(), Arm::NETWORK.len());
    }

    #[test]
    fn a_load_that_is_not_there_is_named_with_those_that_are() {
        assert_eq!(planned("compare --quick --loads light,loss").unwrap().len(), 3);
        let error = planned("compare --quick --loads light,nonsense").unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("\n  one-at-a-time/64/spin"), "{error}");
    }

    #[test]
    fn a_gpu_computes_all_workloads_or_those_that_are_named() {
        let of = |line: &str| {
            let points = planned_of(line, &Arm::GPU).unwrap();
            points.iter().map(|point| point.workload).collect::<BTreeSet<_>>()
        };
        assert_eq!(of("compare --gpu").len(), 1 + Workload::MODELS.len());
        let two = BTreeSet::from([Workload::Vecadd1k, Workload::DeeplabShaped]);
        assert_eq!(of("compare --gpu --workload deeplab-shaped,vecadd-1k"), two);
        assert!(Line::try_parse_from("compare --workload lstm".split(' ')).is_err());
    }

    #[test]
    fn what_a_plan_takes_is_said_and_is_within_the_limit() {
        let besides = Duration::from_secs(11);
        let few = planned("compare --quick --loads one-at-a-time/64/spin").unwrap();
        assert_eq!(expected(&few, besides, Duration::from_secs(54)), besides + few[0].cost());
        let limit = Duration::from_secs(20);
        assert_eq!(expected(&plan::full(&Arm::NETWORK), besides, limit), limit);
    }

    #[test]
    fn servers_elsewhere_take_part_in_loads_of_their_wait_mode() {
        let points = planned("compare --server h --server-wait block").unwrap();
        assert!(points.iter().flat_map(|point| &point.entrants).all(|e| e.wait == Wait::Block));
        let error = planned("compare --server h --server-wait block --arms commodity-tcp").unwrap_err().to_string();
        assert!(error.contains("leave no load"), "{error}");
    }

    #[test]
    fn servers_that_are_not_there_are_named_all_at_once() {
        // Nobody may listen at ports 1 to 7 without being asked to.
        let points = planned("compare --quick --arms floor-tcp,commodity-tcp,floor-udp").unwrap();
        let error = all_answer([127, 0, 0, 1].into(), 1, &points, Wait::Spin).unwrap_err().to_string();
        for wanted in
            ["127.0.0.1:1: ", "serve-arm floor-tcp --wait spin --bind ADDR:1", "127.0.0.1:6: ", "127.0.0.1:4: "]
        {
            assert!(error.contains(wanted), "{wanted} in {error}");
        }
    }
}
