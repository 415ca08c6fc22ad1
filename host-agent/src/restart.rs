//! This program started anew in its own place, without a model.
//!
//! What a kernel does that faults, or does not end, is known to the process alone in which it was tried: with that the GPU is
//! lost to it, but not to another one. Nobody is served yet, so nothing else is.

use std::env;
use std::ffi::OsString;
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
    again.args(with(args.collect(), say(&model.name, reason))).exec()
}

/// These arguments and one more option, which comes before what is no option.
fn with(mut args: Vec<OsString>, option: String) -> Vec<OsString> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    args.insert(end, option.into());
    args
}

/// A model's folder may have any name.
fn say(name: &str, reason: &str) -> String {
    format!("{LEFT_OUT}={}={reason}", name.replace('%', "%25").replace('=', "%3D"))
}

/// What [`without`] says.
pub(crate) fn parse(said: &str) -> Result<ModelReport, &'static str> {
    let (name, reason) = said.split_once('=').ok_or("is to be NAME=REASON")?;
    Ok(ModelReport::failed(name.replace("%3D", "=").replace("%25", "%"), reason))
}

#[cfg(test)]
mod tests {
    use super::{LEFT_OUT, parse, say, with};

    #[test]
    fn a_model_of_any_name_is_understood() {
        for name in ["plain", "a=b", "-x", "100%", "%3D", "%253D=", "two words", ""] {
            let said = say(name, "because: a=b");
            let report = parse(said.strip_prefix(LEFT_OUT).unwrap().strip_prefix('=').unwrap()).unwrap();
            assert_eq!((report.name.as_str(), report.reason.as_deref()), (name, Some("because: a=b")));
        }
        assert!(parse("nothing").is_err());
    }

    #[test]
    fn the_option_comes_before_what_is_none() {
        let with = |args: &[&str]| with(args.iter().map(Into::into).collect(), "-o".to_owned());
        assert_eq!(with(&["serve", "--tcp", "off"]), ["serve", "--tcp", "off", "-o"]);
        assert_eq!(with(&["serve", "--"]), ["serve", "-o", "--"]);
    }
}
