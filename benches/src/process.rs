//! Server processes: this program again, one for each arm, each on a core of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};

use crate::arms::{Arm, ServerOptions};

/// What a server prints before its address once it listens, and before the bytes that it has taken of a GPU's memory, if any.
pub(crate) const READY: &str = "ready ";

/// Bytes of what a process says that are kept for when it fails.
const LAST_WORDS: usize = 16 << 10;

/// Whose CPU time is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CpuClock {
    /// This process's.
    Own,
    /// That of a process on this machine.
    Process(Pid),
    /// That of a process elsewhere: not known.
    Elsewhere,
}

impl CpuClock {
    /// CPU time used so far, user and system.
    pub(crate) fn read(&self) -> Option<Duration> {
        match self {
            CpuClock::Own => Some(splitrpc_socket::cpu_time_process()),
            CpuClock::Process(pid) => splitrpc_socket::cpu_time_of(pid.as_raw_nonzero().get() as u32).ok(),
            CpuClock::Elsewhere => None,
        }
    }
}

/// This program.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("this program's own path")
}

/// Has the kernel end this process when the one that started it ends, however that comes about.
pub(crate) fn end_with_parent(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the line above.
    let lives = rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get() as u32 == parent);
    anyhow::ensure!(lives, "the process that wanted this server is gone");
    Ok(())
}

/// Resident memory of a process in bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let file = format!("/proc/{pid}/statm");
    let statm = std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    let pages: Option<u64> = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    Ok(pages.with_context(|| format!("{file} is not understood"))? * rustix::param::page_size() as u64)
}

/// Starts a program that prints a line beginning with [`READY`] once it is. Returns what follows in that line.
pub(crate) fn spawn(command: &mut Command, what: &str) -> anyhow::Result<(Child, String)> {
    let mut child = command.spawn().with_context(|| format!("starting {what}"))?;
    // Read all the time: who is not listened to stops once the pipe is full.
    let words = child.stderr.take().map(|stderr| thread::spawn(move || last_words(stderr)));
    let mut line = String::new();
    let read = child.stdout.take().map_or(Ok(0), |stdout| BufReader::new(stdout).read_line(&mut line));
    if let (Ok(_), Some(rest)) = (&read, line.strip_prefix(READY)) {
        return Ok((child, rest.trim().to_owned()));
    }
    let _ = child.kill();
    let _ = child.wait();
    let why = words.and_then(|words| words.join().ok()).unwrap_or_default();
    anyhow::bail!("{what} did not start: {}", why.trim());
}

/// The end of what somebody says.
fn last_words(mut from: impl Read) -> String {
    let (mut words, mut more) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut more) {
        words.extend_from_slice(&more[..read]);
        words.drain(..words.len().saturating_sub(LAST_WORDS));
    }
    String::from_utf8_lossy(&words).into_owned()
}

/// A server process. Stopped, not ended, while others are measured; ended when dropped.
pub(crate) struct Server {
    child: Child,
    pid: Pid,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Bytes of a GPU's memory that it has taken, where its model computes on one.
    pub(crate) device_bytes: Option<u64>,
}

impl Server {
    /// Starts a server and waits until it listens.
    pub(crate) fn start(arm: Arm, options: &ServerOptions) -> anyhow::Result<Server> {
        let mut command = Command::new(own_program()?);
        command
            .arg("serve-arm")
            .arg(arm.name())
            .args(["--bind", &options.bind.to_string()])
            .args(["--wait", options.wait.name()])
            .args(["--datagram", &options.datagram.to_string()])
            .args(["--drop", &options.drop.to_string()])
            .args(["--response-bytes", &options.response_bytes.to_string()])
            .args(["--workload", options.workload.name()])
            .args(["--parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        match options.core {
            Some(core) => command.args(["--core", &core.to_string()]),
            None => command.arg("--shared-core"),
        };
        let (child, line) = spawn(&mut command, &format!("the server of {arm}"))?;
        let mut words = line.split_whitespace();
        let address = words.next().unwrap_or_default().parse();
        let address = address.with_context(|| format!("the server of {arm} listens at {line:?}"))?;
        let (pid, device_bytes) = (Pid::from_child(&child), words.next().and_then(|word| word.parse().ok()));
        Ok(Server { child, pid, address, device_bytes })
    }

    /// Its CPU time.
    pub(crate) fn cpu(&self) -> CpuClock {
        CpuClock::Process(self.pid)
    }

    /// Its resident memory in bytes: what the kernel keeps for its sockets is no part of that.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        resident_bytes(self.pid.as_raw_nonzero().get() as u32)
    }

    /// Takes the CPU away from it: a server that spins would disturb the others.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        Ok(rustix::process::kill_process(self.pid, Signal::STOP)?)
    }

    /// Lets it run again.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        Ok(rustix::process::kill_process(self.pid, Signal::CONT)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
