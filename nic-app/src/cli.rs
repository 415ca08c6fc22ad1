//! The command line: `serve`, `doctor`, `check-config`.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::card::{self, CardStop, Status};
use crate::config::{Config, ConfigError, Overrides};
use crate::doctor;
use crate::program::checks;
use crate::program::http::{Bounds, Http};
use crate::program::logs::{self, LogFormat};
use crate::program::{say, signals};
use crate::setup::Ready;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs on a BlueField's Arm cores: ends the RPCs there, and carries their payload into the host's memory by DMA.
#[derive(Debug, Parser)]
#[command(name = "nic-app", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines on standard error look.
    #[arg(long, global = true, value_enum, default_value = "text", env = "NIC_APP_LOG_FORMAT", display_order = 100)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Waits for the host agent, serves with it, and waits for it again, until SIGTERM or SIGINT; a second signal ends it at once.
    #[command(after_help = KEYS)]
    Serve(Sources),
    /// Says what this card offers and whether it could serve, and what to do where it falls short.
    #[command(after_help = KEYS)]
    Doctor(Sources),
    /// Shows every key of the configuration with its value. What it prints is a configuration file.
    #[command(after_help = KEYS)]
    CheckConfig(Sources),
}

/// What stands below the options of each command.
const KEYS: &str = "Every key of the configuration can also come from the environment: NIC_APP_CARD_DEVICE is card.device. What \
    the command line says outranks the environment, and that the file. NIC_APP_LOG sets what is logged, such as debug.";

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct Sources {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address for requests over TCP, or "off"; 0.0.0.0:7100 if nothing names another.
    #[arg(long, value_name = "ADDR")]
    tcp: Option<String>,
    /// Address for requests over UDP, or "off"; 0.0.0.0:7100 if nothing names another.
    #[arg(long, value_name = "ADDR")]
    udp: Option<String>,
    /// Address for metrics and health over HTTP, or "off", which it is if nothing names another.
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// PCI address of the card's own device, such as 03:00.0; the first that can if nothing names another.
    #[arg(long, value_name = "PCI")]
    device: Option<String>,
    /// PCI address of the host's device that is served; the only one if nothing names another.
    #[arg(long, value_name = "PCI")]
    representor: Option<String>,
    /// Folder of DOCA's libraries, or one library in their place, as the software BlueField is; where DOCA is installed if nothing names another.
    #[arg(long, value_name = "PATH")]
    doca: Option<PathBuf>,
}

impl Sources {
    fn load(self) -> Result<Config, ConfigError> {
        let Sources { config, tcp, udp, http, device, representor, doca } = self;
        Config::load(&Overrides { config, tcp, udp, http, device, representor, doca })
    }
}

/// Does what the command line says. 0: it went well. 1: it did not, and standard error says why. 2: no such command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logs::start(cli.log_format, "NIC_APP_LOG", &[]);
    let done = match cli.command {
        Command::Serve(sources) => load(sources).and_then(|config| serve(&config)),
        Command::Doctor(sources) => load(sources).map(|config| examine(&config)),
        Command::CheckConfig(sources) => load(sources).map(|config| {
            say(format_args!("{}", config.to_toml()));
            true
        }),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nic-app: {error}");
            ExitCode::FAILURE
        }
    }
}

fn load(sources: Sources) -> Result<Config, String> {
    sources.load().map_err(|error| error.to_string())
}

fn serve(config: &Config) -> Result<bool, String> {
    let (stop, status) = (CardStop::default(), Arc::new(Status::default()));
    let (told, shown) = (stop.clone(), Arc::clone(&status));
    let end = move || {
        notify("STOPPING=1");
        shown.ends();
        told.stop();
    };
    signals::watch(end).map_err(|error| format!("signals: {error}"))?;
    let start = |at| {
        Http::start(at, status.router(), Bounds::USUAL).map_err(|error| format!("cannot listen on http {at}: {error}"))
    };
    let http = config.listen.http.map(start).transpose()?;
    probe("tcp", config.listen.tcp, |at| TcpListener::bind(at).map(drop))?;
    probe("udp", config.listen.udp, |at| UdpSocket::bind(at).map(drop))?;
    let mut waits = false;
    card::serve_watched(&config.card(VERSION), &stop, &status, |ready| match ready {
        None if !waits => {
            waits = true;
            notify("READY=1\nSTATUS=waiting for the host agent");
            let http = show(http.as_ref().map(Http::address));
            say(format_args!("splitrpc nic-app {VERSION}\n  http   {http}\nwaiting for the host agent\n"));
        }
        None => notify("STATUS=waiting for the host agent"),
        Some(ready) => {
            notify("STATUS=serving");
            say(format_args!("{}ready\n", summary(ready)));
        }
    })
    .map_err(|error| error.to_string())?;
    Ok(true)
}

/// Whether requests can be taken there: they are only once a host agent has come, and that is late to learn that they cannot.
fn probe(name: &str, at: Option<SocketAddr>, bind: fn(SocketAddr) -> io::Result<()>) -> Result<(), String> {
    at.map_or(Ok(()), |at| bind(at).map_err(|error| format!("cannot listen on {name} {at}: {error}")))
}

/// What is said once the card listens.
fn summary(ready: &Ready) -> String {
    let Ready { tcp, udp, emulated } = ready;
    let emulated = if *emulated { "  card   emulated: this is the software BlueField\n" } else { "" };
    format!("{emulated}  tcp    {}\n  udp    {}\n", show(*tcp), show(*udp))
}

fn show(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "off".to_owned(), |address| address.to_string())
}

/// Tells systemd, where it is who started the program.
fn notify(state: &str) {
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Custom(state)]) {
        tracing::debug!(%error, "systemd is not told");
    }
}

fn examine(config: &Config) -> bool {
    let checks = doctor::examine(config);
    checks::report(&checks, doctor::conclusion(&checks))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
