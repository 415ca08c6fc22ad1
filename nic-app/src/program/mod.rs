//! What a program is beside what it does: settings, log, signals, checks, and what is told over HTTP. The host agent's is made of it too.

pub mod checks;
pub mod http;
pub mod logs;
pub mod memory;
pub mod process;
pub mod settings;
pub mod signals;

use std::io::Write;

/// Prints. That nobody reads it keeps no program from its work.
pub fn say(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout();
    let _ = out.write_fmt(text).and_then(|()| out.flush());
}
