//! Server processes: this program again, one for each arm, each on a core of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::arms::smartnic::BUS;
use crate::arms::{Arm, ServerOptions};
use crate::clock::FarClock;

/// What a server prints before its address once it listens, then before the bytes that it has taken of a GPU's memory, and before the
/// number of the process that is its card, if any.
pub(crate) const READY: &str = "ready ";
pub(crate) const DEVICE: &str = "device=";
pub(crate) const CARD: &str = "card=";

/// Bytes of what a process says that are kept for when it fails.
const LAST_WORDS: usize = 16 << 10;

/// Whose CPU time is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CpuClock {
    /// This process's.
    Own,
    /// That of a process on this machine.
    Process(Pid),
}

impl CpuClock {
    /// CPU time used so far, user and system.
    pub(crate) fn read(&self) -> Option<Duration> {
        match self {
            CpuClock::Own => Some(splitrpc_socket::cpu_time_process()),
            CpuClock::Process(pid) => splitrpc_socket::cpu_time_of(pid.as_raw_nonzero().get() as u32).ok(),
        }
    }
}

/// CPU time of a server: of its process on the host, and of that on its card, each as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ServerCpu {
    pub(crate) host: Option<Duration>,
    pub(crate) nic: Option<Duration>,
}

impl ServerCpu {
    /// What was used since an earlier look.
    pub(crate) fn since(self, earlier: ServerCpu) -> ServerCpu {
        let used = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
        ServerCpu { host: used(self.host, earlier.host), nic: used(self.nic, earlier.nic) }
    }

    /// Adds what was used in another time.
    pub(crate) fn and(self, more: ServerCpu) -> ServerCpu {
        let sum = |one: Option<Duration>, other: Option<Duration>| Some(one? + other?);
        ServerCpu { host: sum(self.host, more.host), nic: sum(self.nic, more.nic) }
    }

    /// All of it that is known.
    pub(crate) fn sum(self) -> Duration {
        self.host.unwrap_or_default() + self.nic.unwrap_or_default()
    }
}

/// By what a server's CPU time is known.
#[derive(Debug)]
pub(crate) enum Clocks {
    /// On this machine.
    Here {
        /// Of its process on the host.
        host: CpuClock,
        /// Of that on its card.
        nic: Option<CpuClock>,
    },
    /// It is elsewhere, and tells.
    Far(FarClock),
    /// It is elsewhere, and does not.
    Unknown,
}

/// What was used so far, or a question after it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    Known(ServerCpu),
    Asked,
}

impl Clocks {
    /// Of one on this machine that has no card.
    pub(crate) fn of(host: CpuClock) -> Clocks {
        Clocks::Here { host, nic: None }
    }

    /// Reads, or asks where an answer would have to be waited for.
    pub(crate) fn look(&self) -> Reading {
        match self {
            Clocks::Here { host, nic } => {
                Reading::Known(ServerCpu { host: host.read(), nic: nic.and_then(|nic| nic.read()) })
            }
            Clocks::Far(clock) => {
                clock.ask();
                Reading::Asked
            }
            Clocks::Unknown => Reading::Known(ServerCpu::default()),
        }
    }

    /// What was read. Those that were asked are to be given in their order.
    pub(crate) fn told(&self, reading: Reading) -> ServerCpu {
        match (reading, self) {
            (Reading::Known(cpu), _) => cpu,
            (Reading::Asked, Clocks::Far(clock)) => clock.answer(),
            (Reading::Asked, _) => ServerCpu::default(),
        }
    }

    /// What was used so far.
    pub(crate) fn read(&self) -> ServerCpu {
        self.told(self.look())
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
    /// The process that is its card, which ends with it.
    card: Option<Pid>,
    /// What joins the two.
    _bus: Option<TempDir>,
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
        let core = options.core.map(|core| ("--core", core));
        let beside = options.beside_card.core.filter(|_| arm.is_smartnic()).map(|core| ("--agent-core", core));
        for (option, core) in core.into_iter().chain(beside) {
            command.args([option, &core.to_string()]);
        }
        if options.shared_core {
            command.arg("--shared-core");
        }
        let bus =
            arm.is_smartnic().then(tempfile::tempdir).transpose().context("a folder for the software BlueField")?;
        if let Some(bus) = &bus {
            command.env(BUS, bus.path());
        }
        let (child, line) = spawn(&mut command, &format!("the server of {arm}"))?;
        let address = line.split_whitespace().next().unwrap_or_default().parse();
        let address = address.with_context(|| format!("the server of {arm} listens at {line:?}"))?;
        let told = |name| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u64>().ok());
        let card = told(CARD).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Ok(Server { pid: Pid::from_child(&child), child, card, _bus: bus, address, device_bytes: told(DEVICE) })
    }

    /// Its CPU time.
    pub(crate) fn cpu(&self) -> Clocks {
        Clocks::Here { host: CpuClock::Process(self.pid), nic: self.card.map(CpuClock::Process) }
    }

    /// Its resident memory in bytes: what the kernel keeps for its sockets is no part of that.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        resident_bytes(self.pid.as_raw_nonzero().get() as u32)
    }

    /// Takes the CPU away from it: a server that spins would disturb the others.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run again.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let mut processes = [Some(self.pid), self.card].into_iter().flatten();
        Ok(processes.try_for_each(|pid| rustix::process::kill_process(pid, signal))?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
