//! The `splitrpc` command: ask a server from the shell.
#![forbid(unsafe_code)]

/// Prints a line.
macro_rules! say {
    ($($line:tt)*) => { crate::show(format_args!("{}\n", format_args!($($line)*))) };
}

mod explain;
mod files;
mod infer;
mod models;
mod ping;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use splitrpc_client::{Client, ClientOptions, ConnectOptions, Error, Transport, Wait};

#[derive(Parser)]
#[command(
    name = "splitrpc",
    version,
    about = "Runs models on a splitrpc server",
    long_about = "Runs models on a splitrpc server\n\nADDR is host or host:port; without a port it is 7100.",
    after_help = "Exit codes: 0 done, 1 the request failed, 2 the command was \
    used wrongly (or a file cannot be read or written), 3 the server cannot be reached, and nothing was executed."
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
    /// Seconds until a server is given up that cannot be reached, or that says nothing at all while an answer is due. One
    /// that is asked and computes says that it lives.
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
    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

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
        let timeout = self.timeout();
        // One answer at a time: it may be as large as the protocol allows.
        let connect =
            ConnectOptions { timeout, silence: timeout, max_response: u32::MAX - 1, ..ConnectOptions::default() };
        Ok(Client::connect(&self.addr, ClientOptions { transport, wait, connect })?)
    }
}

/// Why the command ends without success.
enum Failed {
    /// The library's error decides the exit code.
    Call(Error),
    /// Earlier ones of several requests, so many, were answered.
    After(usize, Error),
    /// Used wrongly, or a file's fault.
    Usage(String),
    /// Not one ping was answered.
    Silent,
}

impl Failed {
    fn exit_code(&self) -> u8 {
        match self {
            Failed::Usage(_) => 2,
            Failed::Silent => 3,
            Failed::Call(Error::Lost { may_have_executed: true, .. }) => 1,
            Failed::Call(e) if e.is_unreachable() => 3,
            Failed::Call(_) | Failed::After(..) => 1,
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
            // In the words of the command rather than of the library.
            Failed::Call(Error::Lost { peer, may_have_executed: true, reason }) => write!(
                f,
                "connection to {peer} lost ({reason}); the request may have been executed: with --repeatable it is sent \
                 again, where executing it twice does no harm"
            ),
            Failed::Call(Error::Lost { peer, may_have_executed: false, reason }) => {
                write!(f, "connection to {peer} lost ({reason}); nothing was executed")
            }
            Failed::Call(e) => e.fmt(f),
            Failed::After(answered, e) => write!(f, "after {answered} answers: {e}"),
            Failed::Usage(text) => f.write_str(text),
            Failed::Silent => f.write_str("the server opened a session and answered no ping"),
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

/// Prints. Who reads it and has gone has seen enough.
fn show(text: fmt::Arguments<'_>) {
    let mut out = io::stdout();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("splitrpc: standard output: {error}");
        std::process::exit(2);
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
        let (min, max) = (*times.first()?, *times.last()?);
        // The least that so many of a hundred do not exceed.
        let at = |q: usize| times[(times.len() * q).div_ceil(100) - 1];
        Some(Summary { min, p50: at(50), p99: at(99), max })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |d: Duration| d.as_nanos() as f64 / 1e3;
        let (min, p50, p99, max) = (us(self.min), us(self.p50), us(self.p99), us(self.max));
        write!(f, "min {min:.1} us, p50 {p50:.1} us, p99 {p99:.1} us, max {max:.1} us")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured_and_not_better_than_they_were() {
        let of = |n: u64| Summary::of((1..=n).rev().map(Duration::from_micros).collect()).unwrap();
        for (n, p50, p99) in
            [(1, 1, 1), (2, 1, 2), (4, 2, 4), (99, 50, 99), (100, 50, 99), (101, 51, 100), (200, 100, 198)]
        {
            let summary = of(n);
            assert_eq!((summary.p50, summary.p99), (Duration::from_micros(p50), Duration::from_micros(p99)), "of {n}");
        }
        assert!(Summary::of(Vec::new()).is_none());
    }
}
