//! The `splitrpc` command: ask a server from the shell.
#![forbid(unsafe_code)]

mod explain;
mod files;
mod infer;
mod models;
mod ping;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use splitrpc_client::{Client, ClientOptions, ConnectOptions, Error, Transport, Wait};

/// Runs models on a splitrpc server.
///
/// ADDR is host or host:port; without a port it is 7100.
#[derive(Parser)]
#[command(
    name = "splitrpc",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 the request failed, 2 the command was \
    used wrongly (or a file cannot be read or written), 3 the server cannot be reached."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a model on .npy files and writes one .npy file for each of its outputs.
    #[command(
        after_help = "Example: splitrpc infer HOST digits --input IMAGE=sample.npy --output-dir /tmp/out --explain"
    )]
    Infer(infer::Infer),
    /// Lists the models that the server serves, with what they take and give.
    Models(models::Models),
    /// Measures how long the server takes to answer nothing.
    Ping(ping::Ping),
}

/// How to reach the server.
#[derive(Args)]
struct Reach {
    /// The server, as host or host:port.
    addr: String,
    /// What carries the session.
    #[arg(long, value_enum, default_value_t = TransportArg::Tcp)]
    transport: TransportArg,
    /// Seconds until an unreachable server is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    timeout: f64,
    /// How to wait for answers: spin costs a core and is fastest.
    #[arg(long, value_enum, default_value_t = WaitArg::Adaptive)]
    wait: WaitArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum TransportArg {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitArg {
    Spin,
    Adaptive,
    Block,
}

impl Reach {
    fn connect(&self) -> Result<Client, Failed> {
        let transport = match self.transport {
            TransportArg::Tcp => Transport::Tcp,
            TransportArg::Udp => Transport::Udp,
        };
        let wait = match self.wait {
            WaitArg::Spin => Wait::Spin,
            WaitArg::Adaptive => Wait::default(),
            WaitArg::Block => Wait::Block,
        };
        let timeout = Duration::from_secs_f64(self.timeout);
        // One answer at a time: it may be as large as the protocol allows.
        let connect = ConnectOptions { timeout, max_response: u32::MAX - 1, ..ConnectOptions::default() };
        Ok(Client::connect(&self.addr, ClientOptions { transport, wait, connect })?)
    }
}

/// Why the command ends without success.
enum Failed {
    /// The library's error decides the exit code.
    Call(Error),
    /// Used wrongly, or a file's fault.
    Usage(String),
}

impl Failed {
    fn exit_code(&self) -> u8 {
        match self {
            Failed::Usage(_) => 2,
            Failed::Call(e) if e.is_unreachable() => 3,
            Failed::Call(_) => 1,
        }
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Failed::Call(e)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Call(e) => e.fmt(f),
            Failed::Usage(text) => f.write_str(text),
        }
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Infer(infer) => infer.run(),
        Command::Models(models) => models.run(),
        Command::Ping(ping) => ping.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("splitrpc: {failed}");
            ExitCode::from(failed.exit_code())
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("give a number of seconds above 0, at most a day".into()),
    }
}

/// Text from a server for a terminal: control characters, which could steer it, are replaced.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The middle, the best, and the worst of some durations.
struct Summary {
    min: Duration,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Summary {
    /// `None` of none.
    fn of(mut times: Vec<Duration>) -> Option<Summary> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        let at = |q: usize| times[last * q / 100];
        Some(Summary { min: times[0], p50: at(50), p99: at(99), max: times[last] })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |d: Duration| d.as_nanos() as f64 / 1e3;
        let (min, p50, p99, max) = (us(self.min), us(self.p50), us(self.p99), us(self.max));
        write!(f, "min {min:.1} us, p50 {p50:.1} us, p99 {p99:.1} us, max {max:.1} us")
    }
}
