//! `splitrpc infer`.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use splitrpc_client::npy::{self, Array, NpyError};
use splitrpc_client::{CallOptions, Client, Input, Response};

use crate::files::file_names;
use crate::{Failed, Reach, Summary, TransportArg, explain, plain};

/// Largest input that is read from a file.
const MAX_INPUT: u64 = u32::MAX as u64;

#[derive(Args)]
pub(crate) struct Infer {
    #[command(flatten)]
    reach: Reach,
    /// The model's name.
    model: String,
    /// An input as NAME=FILE.npy, once for each; FILE.npy alone where the model has one input. Where there are several `=`, the name ends at
    /// the first behind which stands a file that exists. `a=b=./c.npy` is `a=b` even where there is a file `b=c.npy`.
    #[arg(long = "input", value_name = "[NAME=]FILE.npy")]
    inputs: Vec<String>,
    /// Where to write one NAME.npy for each output; created if need be. With --explain it may be left out: then the outputs
    /// are not written, and listed only.
    #[arg(long, value_name = "DIR", required_unless_present = "explain")]
    output_dir: Option<PathBuf>,
    /// Print the path that the request took and the time in each stage.
    #[arg(long)]
    explain: bool,
    /// Milliseconds within which the answer is of use.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=4_000_000))]
    deadline: Option<u64>,
    /// 1 is the highest, 0 the model's default.
    #[arg(long, value_name = "N", default_value_t = 0)]
    priority: u8,
    /// Executing it twice does no harm: send it again where the connection is lost before the answer has come.
    #[arg(long)]
    repeatable: bool,
    /// Run it so many times, one after the other, and print the times; the last answer is written.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
}

impl Infer {
    pub(crate) fn run(&self) -> Result<(), Failed> {
        if let Some(dir) = self.output_dir.as_deref().filter(|dir| dir.exists() && !dir.is_dir()) {
            return Err(Failed::Usage(format!(
                "{} is a file; --output-dir wants a folder, which is made if need be",
                dir.display()
            )));
        }
        let files = self.inputs.iter().map(|input| read_input(input)).collect::<Result<Vec<_>, _>>()?;
        let mut client = self.reach.connect()?;
        let inputs: Vec<Input<'_>> =
            files.iter().map(|(name, array)| Input::new(name, array.dtype, &array.dims, &array.data)).collect();
        let deadline = self.deadline.map(Duration::from_millis);
        let options =
            CallOptions { deadline, priority: self.priority, repeatable: self.repeatable, ..CallOptions::default() };
        let mut response = client.infer_with(&self.model, &inputs, &options)?;
        let mut times = vec![response.elapsed()];
        // Why it was not asked as often as it was to be.
        let mut ended = None;
        for _ in 1..self.repeat {
            match client.infer_with(&self.model, &inputs, &options) {
                Ok(next) => client.recycle(std::mem::replace(&mut response, next)),
                Err(error) => {
                    ended = Some(error);
                    break;
                }
            }
            times.push(response.elapsed());
        }
        let answered = times.len();
        self.write_outputs(&client, &response)?;
        if self.repeat > 1
            && let Some(summary) = Summary::of(times)
        {
            say!("{answered} times: {summary}");
        }
        if self.explain {
            let transport = match self.reach.transport {
                TransportArg::Tcp => "tcp",
                TransportArg::Udp => "udp",
            };
            crate::show(format_args!("\n{}", explain::table(&response, transport)));
        }
        ended.map_or(Ok(()), |error| Err(Failed::After(answered, error)))
    }

    fn write_outputs(&self, client: &Client, response: &Response) -> Result<(), Failed> {
        let catalogue = Arc::clone(client.catalogue());
        let model = catalogue.by_handle(response.model());
        let name = |handle: u16| model.map_or_else(|| format!("output-{handle}"), |m| m.output_name(handle));
        let names: Vec<String> = response.outputs().map(|o| name(o.desc.handle)).collect();
        let Some(dir) = &self.output_dir else {
            for (output, name) in response.outputs().zip(&names) {
                say!("{}: {} {:?}, not written", plain(name), output.desc.dtype.name(), output.desc.shape.dims());
            }
            return Ok(());
        };
        let cannot =
            |path: &Path, e: &dyn std::fmt::Display| Failed::Usage(format!("cannot write {}: {e}", path.display()));
        fs::create_dir_all(dir).map_err(|e| cannot(dir, &e))?;
        for (output, file) in response.outputs().zip(file_names(names.iter().map(String::as_str))) {
            let path = dir.join(file);
            let dims = output.desc.shape.dims();
            write_npy(&path, output.desc.dtype, dims, output.data).map_err(|e| cannot(&path, &e))?;
            say!("{}: {} {dims:?}", plain(&path.display().to_string()), output.desc.dtype.name());
        }
        Ok(())
    }
}

fn read_input(argument: &str) -> Result<(String, Array), Failed> {
    let (name, file) = name_and_file(argument, |file| Path::new(file).exists())?;
    if Path::new(file).is_dir() {
        return Err(Failed::Usage(format!(
            "{file} is a folder; --input wants one .npy file of it, as [NAME=]FILE.npy"
        )));
    }
    let failed = |e: NpyError| Failed::Usage(format!("cannot read the input file {file}: {e}"));
    let mut input = BufReader::new(File::open(file).map_err(|e| failed(e.into()))?);
    Ok((name.to_owned(), npy::read(&mut input, MAX_INPUT).map_err(failed)?))
}

/// The parts of an input's argument. Names and paths may both contain the sign, so what exists decides: all of the argument,
/// which then has no name, or what stands behind the first sign that is followed by a file.
fn name_and_file(argument: &str, exists: impl Fn(&str) -> bool) -> Result<(&str, &str), Failed> {
    if exists(argument) {
        return Ok(("", argument));
    }
    let splits: Vec<_> = argument.match_indices('=').map(|(at, _)| (&argument[..at], &argument[at + 1..])).collect();
    match splits[..] {
        [] => Ok(("", argument)),
        // Reading it says what is wrong with the file.
        [only] => Ok(only),
        _ => splits.iter().find(|(_, file)| exists(file)).copied().ok_or_else(|| {
            let tried: Vec<_> = splits.iter().map(|(_, file)| *file).collect();
            Failed::Usage(format!("no input file stands behind a `=` in {argument}: looked for {}", tried.join(", ")))
        }),
    }
}

fn write_npy(path: &Path, dtype: splitrpc_client::wire::DType, dims: &[u32], data: &[u8]) -> Result<(), NpyError> {
    let mut file = BufWriter::new(File::create(path)?);
    npy::write(&mut file, dtype, dims, data)?;
    Ok(file.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_tells_a_name_from_a_file() {
        let files = ["x.npy", "k=v/x.npy", "b=c.npy", "c.npy", "./c.npy", "a=b"];
        let parts = |argument| name_and_file(argument, |file| files.contains(&file)).map_err(|e| e.to_string());
        for (argument, name, file) in [
            ("x.npy", "", "x.npy"),
            ("IN=x.npy", "IN", "x.npy"),
            ("IN=missing.npy", "IN", "missing.npy"),
            ("missing.npy", "", "missing.npy"),
            // Names with the sign, paths with it, and both.
            ("a=b=x.npy", "a=b", "x.npy"),
            ("=a==x.npy", "=a=", "x.npy"),
            ("IN=k=v/x.npy", "IN", "k=v/x.npy"),
            ("a=b=k=v/x.npy", "a=b", "k=v/x.npy"),
            ("k=v/x.npy", "", "k=v/x.npy"),
            ("a=b", "", "a=b"),
            // Where several would do the name is the shortest, and `./` says otherwise.
            ("a=b=c.npy", "a", "b=c.npy"),
            ("a=b=./c.npy", "a=b", "./c.npy"),
        ] {
            assert_eq!(parts(argument), Ok((name, file)), "{argument}");
        }
        let error = parts("a=b=d.npy").unwrap_err();
        assert!(error.ends_with("looked for b=d.npy, d.npy"), "{error}");
    }
}
