//! Measures every arm beside its floor and beside the bundled way.
//!
//! May live here: load generators, arms, experiments, reports. May not: anything that a server or a client needs.
#![forbid(unsafe_code)]

mod arms;
mod crowd;
mod load;
mod machine;
mod plan;
mod process;
mod record;
mod report;
mod runner;
mod stats;
mod verdict;
mod wait;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use arms::{Arm, DATAGRAM, RESPONSE_BYTES, ServerOptions};
use machine::{Crossed, Machine};
use plan::Point;
use record::{Report, Run};
use runner::{Runner, Servers};
use wait::Wait;

/// Measures every arm beside its floor and beside the bundled way.
#[derive(Debug, Parser)]
#[command(name = "benches", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compares arms: starts what it needs, prints a table, writes an HTML report and the JSON behind it.
    Compare(Compare),
    /// Runs the server of one arm, for `compare --server` on another machine.
    ServeArm(ServeArm),
    /// Lists the arms.
    ListArms,
    /// Connects many clients that ask nothing, and says what each costs a commodity-tcp server and whether it still answers.
    IdleClients(IdleClients),
}

#[derive(Debug, Args)]
struct Compare {
    /// At most one minute: only the sizes and settings at which figures are read.
    #[arg(long)]
    quick: bool,
    /// Only these arms. A floor's second run comes with the floor.
    #[arg(long, value_delimiter = ',')]
    arms: Vec<Arm>,
    /// Only loads whose name, as the table shows it, contains one of these.
    #[arg(long, value_delimiter = ',', value_name = "TEXT")]
    loads: Vec<String>,
    /// Where to write the JSON.
    #[arg(long, value_name = "FILE", default_value = "target/compare/compare.json")]
    json: PathBuf,
    /// Where to write the report.
    #[arg(long, value_name = "FILE", default_value = "target/compare/compare.html")]
    html: PathBuf,
    /// Use servers that run elsewhere: each arm's `serve-arm` at the port base plus the arm's number in `list-arms`.
    #[arg(long, value_name = "HOST[:PORT BASE]")]
    server: Option<String>,
    /// With --server: how those servers wait. Only loads of this wait mode are run.
    #[arg(long, default_value = "adaptive", requires = "server")]
    server_wait: Wait,
    /// What the order of arms and the arrivals are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Time limit in seconds; 54 with --quick and 285 without it unless given.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
}

#[derive(Debug, Args)]
struct ServeArm {
    /// The arm.
    arm: Arm,
    /// Where to listen; without a port, at 7470 plus the arm's number.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0")]
    bind: String,
    /// How to wait.
    #[arg(long, default_value = "adaptive")]
    wait: Wait,
    /// Bytes of UDP payload in each datagram.
    #[arg(long, default_value_t = DATAGRAM)]
    datagram: u16,
    /// Share of arriving datagrams to throw away, where the arm can (commodity-udp).
    #[arg(long, default_value_t = 0.0)]
    drop: f64,
    /// Bytes that the null model answers with.
    #[arg(long, default_value_t = RESPONSE_BYTES)]
    response_bytes: u32,
    /// Core to run on.
    #[arg(long)]
    core: Option<usize>,
    /// A client spins on the same core: give way to it.
    #[arg(long)]
    shared_core: bool,
    /// End with the process of this number, which started this one.
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

#[derive(Debug, Args)]
struct IdleClients {
    /// How many.
    #[arg(long, default_value_t = crowd::CLIENTS)]
    clients: usize,
}

/// The first arm's port, unless told otherwise.
const PORT_BASE: u16 = 7_470;
/// What connecting many idle clients takes, about.
const CROWD_TIME: Duration = Duration::from_secs(6);

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Compare(options) => compare(&options),
        Command::ServeArm(options) => serve_arm(&options),
        Command::ListArms => {
            for arm in Arm::ALL {
                println!("{}  {:<16} {}", arm.port_offset(), arm.name(), arm.about());
            }
            Ok(())
        }
        Command::IdleClients(options) => idle_clients(&options),
    }
}

fn idle_clients(options: &IdleClients) -> anyhow::Result<()> {
    let crowd = crowd::measure(options.clients, None)?;
    println!("{crowd}");
    let target = crowd::TARGET_BYTES;
    anyhow::ensure!(crowd.bytes_each <= target, "that is more than {target} bytes each");
    Ok(())
}

fn serve_arm(options: &ServeArm) -> anyhow::Result<()> {
    if let Some(parent) = options.parent {
        process::end_with_parent(parent)?;
    }
    if options.shared_core {
        wait::share_core();
    }
    let bind = address(&options.bind, PORT_BASE + options.arm.port_offset())?;
    let server = ServerOptions {
        bind,
        wait: options.wait,
        datagram: options.datagram,
        drop: options.drop,
        response_bytes: options.response_bytes,
        core: options.core,
    };
    arms::serve(options.arm, &server, |address| {
        println!("{}{address}", process::READY);
        // Whoever started this waits for the line.
        let _ = std::io::stdout().flush();
    })
}

/// An address with or without a port.
fn address(text: &str, port: u16) -> anyhow::Result<SocketAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let mut found = match text.to_socket_addrs() {
        Ok(found) => found,
        Err(_) => (text, port).to_socket_addrs().with_context(|| format!("{text} is no address"))?,
    };
    found.next().with_context(|| format!("{text} has no address"))
}

fn compare(options: &Compare) -> anyhow::Result<()> {
    let started = Instant::now();
    let arms = with_second_floors(&options.arms);
    let cores = machine::core_pair();
    let (source, crossed) = match &options.server {
        None => (Servers::Local(cores.map(|(_, server)| server)), Crossed::Loopback),
        Some(server) => {
            let address = address(server, PORT_BASE)?;
            (Servers::Remote(address.ip(), address.port()), machine::crossed(address))
        }
    };
    let mut points = if options.quick { plan::quick(&arms) } else { plan::full(&arms) };
    if options.server.is_some() {
        remote_only(&mut points, options.server_wait);
    }
    if !options.loads.is_empty() {
        points.retain(|point| options.loads.iter().any(|part| point.id().contains(part)));
    }
    anyhow::ensure!(!points.is_empty(), "no load is left: --arms, --loads and --server-wait exclude all of them");
    let limit = Duration::from_secs(options.limit.unwrap_or(if options.quick { 54 } else { 285 }));
    let machine = Machine::this();
    match cores {
        Some((client, _)) => splitrpc_socket::pin_current_thread(client)?,
        None => wait::share_core(),
    }
    // Wakes on time, not within the usual 50 us of it.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;

    let progress = progress_bar(&points);
    let mut runner = Runner::new(source, crossed, options.seed, progress.clone());
    // Connecting that many takes time that --quick does not have.
    let crowded = !options.quick && options.loads.is_empty() && matches!(source, Servers::Local(_));
    let crowded = crowded && arms.contains(&Arm::CommodityTcp);
    let crowd_time = if crowded { CROWD_TIME } else { Duration::ZERO };
    let (runs, idle) = run_all(&mut runner, &points, started + limit.saturating_sub(crowd_time), options)?;
    drop(runner);
    let crowd = if crowded {
        progress.set_message(format!("{} idle clients", crowd::CLIENTS));
        crowd::measure(crowd::CLIENTS, cores.map(|(_, server)| server))
            .map_err(|error| progress.println(format!("idle clients not measured: {error:#}")))
            .ok()
    } else {
        None
    };
    progress.finish_and_clear();

    let figures = verdict::figures(&runs, &idle, crowd.as_ref());
    let report = Report {
        format: 1,
        machine,
        crossed,
        quick: options.quick,
        seed: options.seed,
        elapsed_s: started.elapsed().as_secs_f64(),
        cores,
        figures,
        idle,
        crowd,
        runs,
    };
    report::table::print(&report, &mut std::io::stdout().lock())?;
    write(&options.json, serde_json::to_string_pretty(&report)?.as_bytes())?;
    write(&options.html, report::html::page(&report)?.as_bytes())?;
    println!("\nReport: {}\nJSON:   {}", options.html.display(), options.json.display());
    Ok(())
}

/// A floor without its second run says nothing.
fn with_second_floors(asked: &[Arm]) -> Vec<Arm> {
    let wants = |arm: Arm| {
        asked.is_empty()
            || asked.contains(&arm)
            || arm == Arm::FloorTcpAgain && asked.contains(&Arm::FloorTcp)
            || arm == Arm::FloorUdpAgain && asked.contains(&Arm::FloorUdp)
    };
    Arm::ALL.into_iter().filter(|&arm| wants(arm)).collect()
}

/// Keeps what servers elsewhere can take part in: they have one wait mode, ordinary datagrams, and lose nothing.
fn remote_only(points: &mut Vec<Point>, wait: Wait) {
    for point in &mut *points {
        point.entrants.retain(|e| e.wait == wait && e.datagram == DATAGRAM && e.drop == 0.0);
    }
    points.retain(|point| !point.entrants.is_empty());
}

fn run_all(
    runner: &mut Runner,
    points: &[Point],
    deadline: Instant,
    options: &Compare,
) -> anyhow::Result<(Vec<Run>, Vec<record::Idle>)> {
    let idle_time = Duration::from_millis(if options.quick { 400 } else { 1_000 });
    // For idle servers, the report, and a last window that takes longer than planned.
    let end = deadline.checked_sub(5 * idle_time + Duration::from_secs(1)).unwrap_or(deadline);
    let mut runs = Vec::new();
    let mut left: Duration = points.iter().map(Point::cost).sum();
    for point in points {
        let time = end.saturating_duration_since(Instant::now());
        let share = (point.cost().as_secs_f64() / left.as_secs_f64().max(1e-9)).min(1.0);
        left = left.saturating_sub(point.cost());
        if time.is_zero() || !runner.knows_saturation(point) {
            continue;
        }
        let mut found = runner.run(point, time.mul_f64(share), end)?;
        verdict::mark_void(&mut found);
        runs.append(&mut found);
    }
    Ok((runs, runner.idle(idle_time)?))
}

fn progress_bar(points: &[Point]) -> ProgressBar {
    let windows = points.iter().map(|point| u64::from(point.rounds) * point.entrants.len() as u64).sum();
    let style = ProgressStyle::with_template("{elapsed:>4} [{bar:32}] {percent:>3} %  {msg}");
    let bar = ProgressBar::new(windows);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_lack_a_port() {
        assert_eq!(address("127.0.0.1", 7).unwrap(), "127.0.0.1:7".parse().unwrap());
        assert_eq!(address("127.0.0.1:9", 7).unwrap().port(), 9);
        assert_eq!(address("::1", 7).unwrap().port(), 7);
        assert!(address("no such host!", 7).is_err());
    }

    #[test]
    fn a_floor_brings_its_second_run() {
        assert_eq!(with_second_floors(&[Arm::FloorUdp]), [Arm::FloorUdp, Arm::FloorUdpAgain]);
        assert_eq!(with_second_floors(&[Arm::BundledTcp]), [Arm::BundledTcp]);
        assert_eq!(with_second_floors(&[]).len(), Arm::ALL.len());
    }
}
