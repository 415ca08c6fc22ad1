//! Log lines, on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How they look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// Begins to write them. `variable` of the environment filters them, such as `debug` or `host_agent=debug,warn`; of the `quiet` crates only warnings
/// are told.
pub fn start(format: LogFormat, variable: &str, quiet: &[&str]) {
    let filter = EnvFilter::builder()
        .with_env_var(variable)
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let warnings = |name: &&str| format!("{name}=warn").parse().expect("a directive");
    let filter = quiet.iter().map(warnings).fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
