//! A host agent in a process of its own, with models that compute on the GPU and whose answers are known.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use clap::Args;
use host_agent::config::{Config, Overrides};
use host_agent::serve::{Server, build, run};
use std::io::Write;

use crate::process::{READY, end_with_parent, own_program, spawn};
use crate::workloads::FOLD;

/// How the process is started.
#[derive(Debug, Args)]
pub(crate) struct ServeAgent {
    /// Its configuration.
    #[arg(long)]
    config: std::path::PathBuf,
    /// End with the process of this number, which started this one.
    #[arg(long)]
    parent: u32,
}

/// Serves until the process is ended.
pub(crate) fn serve(options: &ServeAgent) -> anyhow::Result<()> {
    end_with_parent(options.parent)?;
    let config = Config::load(&Overrides { config: Some(options.config.clone()), ..Overrides::default() })?;
    let built = build(config)?;
    for model in built.status.models() {
        anyhow::ensure!(
            model.reason.is_none(),
            "{} is not served: {}",
            model.name,
            model.reason.as_deref().unwrap_or("")
        );
    }
    let server = Server::start(built)?;
    let show = |address: Option<SocketAddr>| address.map_or_else(|| "off".to_owned(), |a| a.to_string());
    println!("{READY}{} {}", show(server.tcp()), show(server.udp()));
    std::io::stdout().flush()?;
    run(server, |look| {
        std::thread::sleep(look);
        false
    });
    anyhow::bail!("the server has ended by itself")
}

/// The process.
pub(crate) struct Agent {
    child: Child,
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) udp: Option<SocketAddr>,
}

impl Agent {
    /// Starts it, by a configuration file that is written to `folder`.
    pub(crate) fn start(config: &Config, folder: &Path) -> anyhow::Result<Agent> {
        let file = folder.join("agent.toml");
        std::fs::write(&file, config.to_toml()).with_context(|| format!("writing {}", file.display()))?;
        let mut command = Command::new(own_program()?);
        command.arg("serve-agent").arg("--config").arg(&file).args(["--parent", &std::process::id().to_string()]);
        // Every stream has a queue of the device of its own then.
        command.env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (child, addresses) = spawn(&mut command, "the host agent")?;
        let mut addresses = addresses.split(' ').map(|address| address.parse().ok());
        let mut next = || addresses.next().flatten();
        Ok(Agent { child, tcp: next(), udp: next() })
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A model that reads all of its input: each of its threads adds up every so manieth vector of four 32-bit numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fold {
    pub(crate) name: &'static str,
    /// Bytes of its input, a multiple of 16.
    pub(crate) bytes: u32,
    /// Blocks of [`THREADS`] threads; each thread answers with one number.
    pub(crate) blocks: u32,
    /// Rows of a batch.
    pub(crate) max_batch: u16,
    /// What `config.pbtxt` says besides.
    pub(crate) more: &'static str,
    /// Its kernel is persistent.
    pub(crate) stays: bool,
}

const THREADS: u32 = 256;

impl Fold {
    /// Adds it to a repository.
    pub(crate) fn write(&self, repository: &Path) -> anyhow::Result<()> {
        let Fold { name, bytes, blocks, max_batch, more, stays } = self;
        let folder = repository.join(name);
        std::fs::create_dir_all(folder.join("1"))?;
        let (words, sums) = (bytes / 4, self.sums());
        let config = format!(
            "backend: \"cuda\" max_batch_size: {max_batch} {more}\n\
             input {{ name: \"IN\" data_type: TYPE_UINT32 dims: [ {words} ] }}\n\
             output {{ name: \"OUT\" data_type: TYPE_UINT32 dims: [ {sums} ] }}\n"
        );
        let (launch, function, grid) = match stays {
            true => ("persistent", "fold_stays", blocks.to_string()),
            false => ("graph", "fold", format!("{{ per_row = {sums}, per_block = {THREADS} }}")),
        };
        let manifest = format!(
            "module = \"{}\"\nlaunch = \"{launch}\"\n[[kernel]]\nfunction = \"{function}\"\n\
             grid = [{grid}]\nblock = [{THREADS}]\n\
             arguments = [{{ input = \"IN\" }}, {{ output = \"OUT\" }}, {{ u32 = {} }}, {{ u32 = {sums} }}]\n",
            FOLD.name,
            words / 4
        );
        std::fs::write(folder.join("config.pbtxt"), config)?;
        std::fs::write(folder.join("1/kernels.toml"), manifest)?;
        std::fs::write(folder.join("1").join(FOLD.name), FOLD.text)?;
        Ok(())
    }

    /// Numbers of an answer's row.
    pub(crate) fn sums(&self) -> u32 {
        self.blocks * THREADS
    }

    /// Its input, as `seed` says, and the answer to that.
    pub(crate) fn example(&self, seed: u32) -> (Vec<u8>, Vec<u8>) {
        let number = |at: u32| (at ^ seed).wrapping_mul(0x9e37_79b1).rotate_left(seed % 31);
        let mut sums = vec![0_u32; self.sums() as usize];
        let input = (0..self.bytes / 4).flat_map(|at| {
            let sum = &mut sums[(at / 4 % (self.blocks * THREADS)) as usize];
            *sum = sum.wrapping_add(number(at));
            number(at).to_le_bytes()
        });
        let input = input.collect();
        (input, sums.into_iter().flat_map(u32::to_le_bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_adds_up() {
        let fold = Fold { name: "fold", bytes: 64 << 10, blocks: 1, max_batch: 1, more: "", stays: false };
        let (input, answer) = fold.example(3);
        let all = |bytes: &[u8]| {
            bytes
                .chunks_exact(4)
                .fold(0_u32, |sum, word| sum.wrapping_add(u32::from_le_bytes(word.try_into().unwrap())))
        };
        assert_eq!((input.len(), answer.len()), (64 << 10, 1024));
        assert_eq!(all(&input), all(&answer));
        assert_ne!(answer[..4], answer[4..8]);
        assert_ne!(fold.example(4).0, input);
    }
}
