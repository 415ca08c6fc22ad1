//! This program started anew in its own place, without a model.
//!
//! What a kernel does that faults, or does not end, is known to the process alone in which it was tried: with that the GPU is
//! lost to it, but not to another one. Nobody is served yet, so nothing else is.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::metrics::ModelReport;

/// The option by which the next start is told.
const LEFT_OUT: &str = "--left-out";

/// Starts the program anew, as the same process, and has it leave this model out. Returns why that cannot be done.
pub(crate) fn without(model: &ModelReport) -> io::Error {
    let mut args = env::args_os();
    let (program, called) = (env::current_exe(), args.next());
    let program = match program {
        Ok(program) => program,
        Err(error) => return error,
    };
    let reason = model.reason.as_deref().unwrap_or_default();
    tracing::warn!(
        model = model.name,
        reason,
        "the GPU is lost to this process: the agent starts anew without the model"
    );
    let mut again = Command::new(program);
    if let Some(called) = called {
        again.arg0(called);
    }
    again.args(args).arg(LEFT_OUT).arg(format!("{}={reason}", model.name)).exec()
}

/// What [`without`] says.
pub(crate) fn parse(said: &str) -> Result<ModelReport, &'static str> {
    let (name, reason) = said.split_once('=').ok_or("is to be NAME=REASON")?;
    Ok(ModelReport::failed(name, reason))
}
