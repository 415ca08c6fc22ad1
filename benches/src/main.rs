//! Measures every arm beside its floor and beside the bundled way.
//!
//! May live here: load generators, arms, experiments, reports. May not: anything that a server or a client needs.
#![forbid(unsafe_code)]

mod agent;
mod arms;
mod clock;
mod compare;
mod crowd;
mod gpu_copies;
mod gpu_launch;
mod gpu_priorities;
mod gpu_served;
mod load;
mod machine;
mod plan;
mod process;
mod ratio;
mod record;
mod report;
mod runner;
mod scope;
mod soak;
mod stats;
mod summary;
mod tally;
mod verdict;
mod wait;
mod workloads;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use rustix::process::Pid;

use arms::{Arm, BesideCard, DATAGRAM, RESPONSE_BYTES, ServerOptions};
use clock::CardClock;
use wait::Wait;
use workloads::Workload;

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
    Compare(compare::Options),
    /// Runs the server of one arm, for `compare --server` on another machine.
    ServeArm(ServeArm),
    /// Runs the software BlueField's card beside a server of this program.
    #[command(hide = true)]
    ServeCard(arms::smartnic::ServeCard),
    /// Lists the arms.
    ListArms,
    /// Connects many clients that ask nothing, and says what each costs a commodity-tcp server and whether it still answers.
    IdleClients(IdleClients),
    /// Measures on this machine's GPU what it takes to bring a request into device memory, in one piece and in frames.
    GpuCopies(gpu_copies::Options),
    /// Measures what urgent requests to models on this machine's GPU wait for beside a stream of large ones.
    GpuPriorities(gpu_priorities::Options),
    /// Asks a host agent with models on this machine's GPU for everything at once, for long, and says whether it grows.
    GpuSoak(soak::Options),
    /// Runs a host agent for another of these commands.
    #[command(hide = true)]
    ServeAgent(agent::ServeAgent),
    /// Measures on this machine's GPU what a launch costs, and how much of that is saved by launching before the inputs are there.
    GpuLaunch(gpu_launch::Options),
    /// Measures one model, served, that is launched in each of the ways in which it can be
    GpuServed(gpu_served::Options),
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
    /// What to compute.
    #[arg(long, default_value = "null")]
    workload: Workload,
    /// Core to run on.
    #[arg(long)]
    core: Option<usize>,
    /// With a smartnic arm: a core for the host agent, which else shares that of the card, where that is emulated.
    #[arg(long)]
    agent_core: Option<usize>,
    /// With a smartnic arm: where clients reach the BlueField in this machine, on which nic-app runs. Without this, a software BlueField
    /// stands in for it, and results are labelled emulated.
    #[arg(long, value_name = "IP")]
    card: Option<IpAddr>,
    /// With --card: an address of this machine that the card reaches, for the datagram that rouses a sleeping host agent.
    #[arg(long, value_name = "ADDR", requires = "card")]
    doorbell: Option<SocketAddr>,
    /// With --card: where nic-app answers over HTTP (its listen.http), of which clients are told the card's CPU time.
    #[arg(long, value_name = "ADDR", requires = "card")]
    card_metrics: Option<SocketAddr>,
    /// A client spins on the same core, or on that of the host agent: give way to it.
    #[arg(long)]
    shared_core: bool,
    /// End with the process of this number, which started this one.
    #[arg(long, hide = true)]
    parent: Option<u32>,
    /// The process that is the software BlueField's card.
    #[arg(long, hide = true)]
    card_process: Option<u32>,
}

#[derive(Debug, Args)]
struct IdleClients {
    /// How many.
    #[arg(long, default_value_t = crowd::CLIENTS)]
    clients: usize,
}

/// The first arm's port, unless told otherwise.
const PORT_BASE: u16 = 7_470;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Causes, and no backtrace: what goes wrong here is the machine's or the command line's.
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Compare(options) => compare::run(&options),
        Command::ServeArm(options) => serve_arm(&options),
        Command::ServeCard(options) => arms::smartnic::serve_card(&options),
        Command::ListArms => {
            for arm in Arm::ALL {
                writeln!(std::io::stdout(), "{}  {:<16} {}", arm.port_offset(), arm.name(), arm.about())?;
            }
            Ok(())
        }
        Command::IdleClients(options) => idle_clients(&options),
        Command::GpuCopies(options) => gpu_copies::run(&options),
        Command::GpuPriorities(options) => gpu_priorities::run(&options),
        Command::GpuSoak(options) => soak::run(&options),
        Command::ServeAgent(options) => agent::serve(&options),
        Command::GpuLaunch(options) => gpu_launch::run(&options),
        Command::GpuServed(options) => gpu_served::run(&options),
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
    // Who has it listen anywhere started it, and knows its process.
    if bind.port() != 0 {
        let at = SocketAddr::new(bind.ip(), bind.port().checked_add(clock::BESIDE).context("the port is too high")?);
        let process =
            options.card_process.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).map(CardClock::Process);
        let listener =
            TcpListener::bind(at).with_context(|| format!("listening at {at} for who asks for the CPU time"))?;
        clock::stand(listener, process.or(options.card_metrics.map(CardClock::Metrics)))?;
    }
    let server = ServerOptions {
        bind,
        wait: options.wait,
        datagram: options.datagram,
        drop: options.drop,
        response_bytes: options.response_bytes,
        workload: options.workload,
        core: options.core,
        shared_core: options.shared_core,
        beside_card: BesideCard { core: options.agent_core, card: options.card, doorbell: options.doorbell },
    };
    let served = arms::serve(options.arm, &server, |address, device_bytes| {
        let device = device_bytes.map_or(String::new(), |bytes| format!(" {}{bytes}", process::DEVICE));
        let card = options.card_process.map_or(String::new(), |pid| format!(" {}{pid}", process::CARD));
        println!("{}{address}{device}{card}", process::READY);
        // Whoever started this waits for the line.
        let _ = std::io::stdout().flush();
    });
    served.with_context(|| format!("the server of {} at {bind}", options.arm))
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
}
