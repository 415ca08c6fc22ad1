//! The command line: `serve`, `doctor`, `check-config`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nic_app::program::checks;
use nic_app::program::logs::{self, LogFormat};
use nic_app::program::{say, signals};

use crate::config::{Config, LoadError, Machine, Overrides};
use crate::doctor;
use crate::metrics::ModelReport;
use crate::restart;
use crate::serve::{self, Server};

/// Serves models over the split path: tensors go from the network into the memory where the model reads them.
#[derive(Debug, Parser)]
#[command(name = "host-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines on standard error look.
    #[arg(long, global = true, value_enum, default_value = "text", env = "SPLITRPC_LOG_FORMAT", display_order = 100)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves models until SIGTERM or SIGINT, then finishes what is in flight; a second signal ends it at once.
    ///
    /// Without arguments it serves the built-in models null, echo and digits on loopback.
    #[command(after_help = KEYS)]
    Serve(Serve),
    /// Says what this machine offers and whether a server could start on it, and what to do where it falls short.
    ///
    /// ok: as it should be, or not needed. warn: it works, with something lost. runs: a splitrpc server has the address already.
    /// FAIL: the server could not start, and the exit status is 1.
    #[command(after_help = KEYS)]
    Doctor(Sources),
    /// Shows every key of a configuration with its value, and what this machine cannot serve of it.
    ///
    /// What it prints is a configuration file. The exit status is 1 where something is wrong, which standard error tells by key.
    #[command(after_help = KEYS)]
    CheckConfig(Sources),
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    sources: Sources,
    /// A model that is not served, and why: as the program names it to itself where it starts anew.
    #[arg(long, value_name = "NAME=REASON", value_parser = restart::parse, hide = true)]
    left_out: Vec<ModelReport>,
}

/// What stands below the options of each command.
const KEYS: &str = "Every key of the configuration can also come from the environment: SPLITRPC_LIMITS_SESSIONS is \
    limits.sessions. What the command line says outranks the environment, and that the file. check-config shows all keys, and \
    docs/operating.md explains them. SPLITRPC_LOG sets what is logged, such as debug or host_agent=debug,warn.";

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct Sources {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory with a folder for each model, laid out as MODEL/VERSION/model.onnx (or kernels.toml, model.pt2); none by default.
    #[arg(long, value_name = "DIR")]
    model_repository: Option<PathBuf>,
    /// What ends the RPCs: "commodity" is this process, "smartnic" a BlueField on which nic-app runs; commodity if nothing names another.
    #[arg(long, value_name = "KIND")]
    nic: Option<String>,
    /// Address for requests over TCP, or "off"; 127.0.0.1:7100 if nothing names another.
    #[arg(long, value_name = "ADDR")]
    tcp: Option<String>,
    /// Address for requests over UDP, or "off"; 127.0.0.1:7100 if nothing names another.
    #[arg(long, value_name = "ADDR")]
    udp: Option<String>,
    /// Address for metrics, health and model states over HTTP, or "off"; 127.0.0.1:7180 if nothing names another.
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
}

impl Sources {
    fn load(self) -> Result<Config, LoadError> {
        let Sources { config, model_repository, nic, tcp, udp, http } = self;
        Config::load(&Overrides { config, model_repository, nic, tcp, udp, http })
    }
}

/// Does what the command line says. 0: it went well. 1: it did not, and standard error says why. 2: no such command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // tract tells every optimisation that it makes.
    logs::start(cli.log_format, "SPLITRPC_LOG", &["tract_core", "tract_hir", "tract_onnx"]);
    tracing::debug!(command = ?cli.command, "command line");
    let outcome = match cli.command {
        Command::Serve(Serve { sources, left_out }) => {
            sources.load().map_err(anyhow::Error::new).and_then(|config| serve(config, &left_out))
        }
        Command::Doctor(sources) => sources.load().map(|config| doctor(&config)).map_err(anyhow::Error::new),
        Command::CheckConfig(sources) => sources.load().map(|config| check(&config)).map_err(anyhow::Error::new),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Every error of this program says what it came from; its sources would say that again.
            eprintln!("host-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config, left_out: &[ModelReport]) -> anyhow::Result<bool> {
    crate::gpu::prepare(&config.gpu);
    // Before anything slow: a signal during start-up ends the program as well.
    let (told, signalled) = mpsc::channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&is_over);
    signals::watch(move || {
        ended.store(true, Ordering::Relaxed);
        // Whoever listened has ended, and the program with it.
        let _ = told.send(());
    })?;
    let mut spoils = |model: &ModelReport| {
        // The next start would know nothing of a signal.
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let error = restart::without(model);
        tracing::error!(%error, "the agent cannot start anew, and goes on without its models on the GPU");
    };
    let server = Server::start(serve::build_without(config, left_out, &mut spoils)?)?;
    say(format_args!("{}ready\n", server.summary()));
    Ok(serve::run(server, |wait: Duration| signalled.recv_timeout(wait).is_ok()))
}

fn doctor(config: &Config) -> bool {
    let checks = doctor::examine(config);
    checks::report(&checks, &doctor::conclusion(&checks))
}

fn check(config: &Config) -> bool {
    say(format_args!("{}", config.to_toml()));
    let problems = config.check(&Machine::here());
    for problem in &problems {
        // Who reads no further learns it by the exit code.
        let _ = writeln!(std::io::stderr(), "{problem}");
    }
    problems.is_empty()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_become_overrides() {
        let cli = Cli::parse_from(["host-agent", "serve", "--tcp", "127.0.0.1:0", "--udp", "off", "--http", "off"]);
        let Command::Serve(serve) = cli.command else { panic!("not serve") };
        let config = serve.sources.load().unwrap();
        assert_eq!(config.listen.tcp, Some("127.0.0.1:0".parse().unwrap()));
        assert_eq!((config.listen.udp, config.listen.http), (None, None));
    }
}
