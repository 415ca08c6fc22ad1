//! Configuration held against itself and against the machine.

use std::fmt;
use std::net::SocketAddr;

use nic_app::program::memory;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use splitrpc_engine::{MS, PathInfo, ServerConfig, StorageSizes};
use splitrpc_socket::{UdpOptions, UdpSocket};
use splitrpc_wire::path::{Link, Memory, Mover, Port};

use super::{Config, NicKind, Offer};
use crate::smartnic;

/// TCP connections of a data thread by default, where so many files may be open.
pub const USUAL_SESSIONS: u32 = 16_384;
/// The most that `limits.max_request_bytes` may be.
pub const MOST_REQUEST_BYTES: u32 = 1 << 30;
/// Open files besides the clients' sockets: listeners, pollers, logs, model files.
const OTHER_FILES: u64 = 64;

/// A configuration key, and why it cannot be as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: String,
    /// What is wrong, and what to do.
    pub why: String,
}

impl Problem {
    pub(crate) fn new(key: impl Into<String>, why: impl Into<String>) -> Problem {
        Problem { key: key.into(), why: why.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

/// What the machine has, as far as the configuration depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may run on, by number.
    pub cores: Vec<u16>,
    /// File descriptors that this process may have open, once it has raised its own limit ([`Machine::raise_limits`]).
    pub open_files: u64,
    /// Whether the kernel segments and merges datagrams (UDP GSO and GRO).
    pub udp_offload: bool,
    /// Bytes of memory that are free; `None` where the kernel does not say.
    pub memory: Option<u64>,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Machine {
        let cores = splitrpc_socket::allowed_cores().unwrap_or_default();
        Machine {
            cores: cores.into_iter().filter_map(|core| u16::try_from(core).ok()).collect(),
            open_files: open_files_limit(),
            udp_offload: udp_offload(),
            memory: memory::free(),
        }
    }
}

impl Machine {
    /// Raises this process's limit of open files as far as it may; the usual one is for programs that use `select`.
    pub fn raise_limits() {
        let limit = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
}

/// Files that this process may have open once it has raised its own limit.
pub(super) fn open_files_limit() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// The default of `limits.sessions` where so many files may be open and so many data threads share them.
pub(super) fn sessions_for(open_files: u64, threads: u16) -> u32 {
    let clients = (open_files.saturating_sub(OTHER_FILES) / u64::from(threads.max(1))).max(1);
    u32::try_from(clients).map_or(USUAL_SESSIONS, |clients| clients.min(USUAL_SESSIONS))
}

/// Asks the kernel by setting both options on a socket that is never used.
fn udp_offload() -> bool {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let options = UdpOptions { gro: true, gso: true, ..UdpOptions::default() };
    UdpSocket::bind(any, &options).is_ok_and(|s| s.gso_supported() && s.gro_supported())
}

impl Config {
    /// Everything that is wrong with this configuration on this machine; empty where it can be served.
    #[must_use]
    pub fn check(&self, machine: &Machine) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut wrong = |key: &str, why: String| found.push(Problem::new(key, why));
        if self.listen.tcp.is_none() && self.listen.udp.is_none() {
            wrong("listen.tcp", "both tcp and udp are off, so nobody could send a request".into());
        }
        if let (Some(tcp), Some(http)) = (self.listen.tcp, self.listen.http)
            && tcp == http
            && tcp.port() != 0
        {
            wrong("listen.http", format!("{http} is where requests are taken (listen.tcp); give it another port"));
        }
        let data = &self.data;
        let most_threads = machine.cores.len().max(1) * 4;
        let threads_fit = (1..=most_threads).contains(&usize::from(data.threads));
        if !threads_fit {
            let (threads, cores) = (data.threads, machine.cores.len());
            wrong(
                "data.threads",
                format!("is {threads}, and must be 1 to {most_threads}, four for each of {cores} cores"),
            );
        }
        if !data.cores.is_empty() && data.cores.len() != usize::from(data.threads) {
            let (cores, threads) = (data.cores.len(), data.threads);
            wrong("data.cores", format!("names {cores} cores for {threads} threads; name one a thread, or none"));
        }
        for (i, core) in data.cores.iter().enumerate() {
            if !machine.cores.contains(core) {
                wrong("data.cores", format!("core {core} is not among those of this process: {:?}", machine.cores));
            }
            if data.cores[..i].contains(core) {
                wrong("data.cores", format!("core {core} is named twice"));
            }
        }
        if self.nic.kind == NicKind::Smartnic && data.threads != 1 {
            wrong("data.threads", format!("is {}, and beside a card (nic.kind) it must be 1", data.threads));
        }
        if data.drop_permille > 1000 {
            wrong("data.drop_permille", format!("is {}, and must be 0 to 1,000", data.drop_permille));
        }
        let limits = &self.limits;
        if limits.slots_per_model == 0 || limits.slots_per_model > 1 << 20 {
            wrong("limits.slots_per_model", format!("is {}, and must be 1 to 1,048,576", limits.slots_per_model));
        }
        if limits.max_request_bytes < 4096 || limits.max_request_bytes > MOST_REQUEST_BYTES {
            let bytes = limits.max_request_bytes;
            wrong("limits.max_request_bytes", format!("is {bytes}, and must be 4,096 to 1,073,741,824"));
        }
        if limits.external_outputs > 1 << 20 {
            wrong("limits.external_outputs", format!("is {}, and must be 0 to 1,048,576", limits.external_outputs));
        }
        if limits.sessions == 0 && self.listen.tcp.is_some() {
            wrong("limits.sessions", "is 0, so listen.tcp could accept nobody; turn one of them off or up".into());
        }
        if limits.datagram_sessions == 0 && self.listen.udp.is_some() {
            let why = "is 0, so listen.udp could serve nobody; turn one of them off or up";
            wrong("limits.datagram_sessions", why.into());
        }
        let threads = u64::from(data.threads.max(1));
        let files = self.open_files();
        if self.listen.tcp.is_some() && threads_fit && files > machine.open_files {
            let (sessions, have) = (limits.sessions, machine.open_files);
            let fit = have.saturating_sub(OTHER_FILES) / threads;
            wrong(
                "limits.sessions",
                format!(
                    "{sessions} for each of {threads} data threads need {files} open files, and this process may have \
                     {have}: set it to at most {fit}, or raise the hard limit (`ulimit -Hn {files}`, or systemd's \
                     LimitNOFILE)"
                ),
            );
        }
        if self.models.builtins.is_empty() && self.models.repository.is_none() {
            wrong("models.builtins", "empty, and models.repository is not set: nothing to serve".into());
        }
        for (i, builtin) in self.models.builtins.iter().enumerate() {
            if self.models.builtins[..i].contains(builtin) {
                wrong("models.builtins", format!("names {builtin:?} twice"));
            }
        }
        if self.models.response_bytes == 0 || self.models.response_bytes > 1 << 30 {
            let bytes = self.models.response_bytes;
            wrong("models.response_bytes", format!("is {bytes}, and must be 1 to 1,073,741,824"));
        }
        let gpu = &self.gpu;
        if gpu.chunk_bytes < 4096 || gpu.chunk_bytes > 1 << 30 {
            wrong("gpu.chunk_bytes", format!("is {}, and must be 4,096 to 1,073,741,824", gpu.chunk_bytes));
        }
        if gpu.chunks_ahead == 0 || gpu.chunks_ahead > 64 {
            wrong("gpu.chunks_ahead", format!("is {}, and must be 1 to 64", gpu.chunks_ahead));
        }
        if gpu.early_bytes > 0 && gpu.early_bytes < 4096 {
            wrong("gpu.early_bytes", format!("is {}, and must be 0 or at least 4,096", gpu.early_bytes));
        }
        if gpu.kernel_bytes > 1 << 20 {
            wrong("gpu.kernel_bytes", format!("is {}, and must be at most 1,048,576", gpu.kernel_bytes));
        }
        if gpu.launch_limit_ms == 0 {
            wrong("gpu.launch_limit_ms", "is 0, so no launch would be in time".into());
        }
        if let Some(folder) = &self.models.repository
            && let Err(error) = std::fs::read_dir(folder)
        {
            let shown = folder.display();
            wrong(
                "models.repository",
                format!(
                    "{shown} cannot be read: {error}; it must hold MODEL/VERSION/model.onnx, kernels.toml or model.pt2"
                ),
            );
        }
        match self.engine().check() {
            Ok(()) if self.nic.kind == NicKind::Smartnic => {
                let on_card = nic_app::setup::card_has_room(&self.engine(), 0, 0);
                found.extend(
                    on_card.err().map(|why| Problem::new("limits.requests", format!("and what goes with it: {why}"))),
                );
            }
            Ok(()) if threads_fit => found.extend(machine.memory.and_then(|free| self.check_tables(free))),
            Ok(()) => {}
            Err(error) => {
                let key = engine_key(error.field);
                // What stands above may have said it already, in the user's terms.
                let nobody = found.iter().any(|p| p.key == "listen.tcp" || p.key == "limits.datagram_sessions");
                let said = key == "limits.sessions" && nobody;
                if !said && found.iter().all(|p| p.key != key) {
                    found.push(Problem::new(key, format!("is {}, and {}", self.value(key), error.why)));
                }
            }
        }
        found.extend(self.require.check(&self.offer(machine)));
        found
    }

    /// Whether what the engines work in fits so many bytes of free memory. All of it is taken at start, unlike the arenas,
    /// of which only what requests touch is.
    fn check_tables(&self, free: u64) -> Option<Problem> {
        let (engine, threads) = (self.engine(), u64::from(self.data.threads));
        let bytes = |engine: ServerConfig| StorageSizes::of(&engine, 0, 0).bytes() * threads;
        let needed = bytes(engine);
        if needed <= free {
            return None;
        }
        let without = [
            ("limits.datagrams_in_flight", "it or limits.datagram_sessions", ServerConfig { flight: 0, ..engine }),
            ("limits.requests", "it", ServerConfig { requests: 0, ..engine }),
            ("limits.sessions", "it", ServerConfig { stream_sessions: 0, ..engine }),
        ];
        let (key, what, _) = without.into_iter().min_by_key(|(_, _, rest)| bytes(*rest))?;
        let why = format!(
            "is {}, which takes most of the {} MiB that the tables of all data threads ({threads}) need at start, and {} MiB \
             are free: lower {what}",
            self.value(key),
            needed >> 20,
            free >> 20
        );
        Some(Problem::new(key, why))
    }

    /// What stands at a key, as TOML has it.
    fn value(&self, key: &str) -> String {
        let all = toml::Table::try_from(self).unwrap_or_default();
        let at = key.split_once('.').and_then(|(section, name)| all.get(section)?.get(name));
        at.map_or_else(|| "not set".into(), ToString::to_string)
    }

    /// Files that a server with this configuration may have open at once.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        let streams = if self.listen.tcp.is_some() { self.limits.sessions } else { 0 };
        u64::from(streams) * u64::from(self.data.threads) + OTHER_FILES
    }

    /// What the path of each open port would be on this machine.
    #[must_use]
    pub fn offer(&self, machine: &Machine) -> Offer {
        let ports = [(self.listen.tcp, Port::Tcp), (self.listen.udp, Port::Udp)];
        let path: &dyn Fn(Port) -> PathInfo = match self.nic.kind {
            NicKind::Commodity => &commodity,
            NicKind::Smartnic => {
                let emulated = smartnic::is_emulated(&self.nic).unwrap_or(false);
                &move |port| PathInfo { mover: Mover::DocaDma, link: Link::Doca, emulated, ..commodity(port) }
            }
        };
        let paths = ports.into_iter().filter(|(open, _)| open.is_some()).map(|(_, port)| path(port)).collect();
        Offer { paths, udp_offload: machine.udp_offload }
    }

    /// The limits as the engine of one data thread takes them.
    #[must_use]
    pub fn engine(&self) -> ServerConfig {
        let (limits, data) = (&self.limits, &self.data);
        ServerConfig {
            stream_sessions: if self.listen.tcp.is_some() { limits.sessions } else { 0 },
            datagram_sessions: if self.listen.udp.is_some() { limits.datagram_sessions } else { 0 },
            requests: limits.requests,
            requests_per_client: limits.requests_per_client,
            flight: limits.datagrams_in_flight,
            max_request: limits.max_request_bytes,
            datagram: data.max_datagram,
            receive_window: limits.receive_window_bytes,
            receive_room: u64::MAX,
            idle_timeout: u64::from(limits.idle_timeout_ms) * MS,
            keep_reply: u64::from(limits.keep_reply_ms) * MS,
            kept_replies: limits.kept_replies,
            min_progress: limits.min_progress_bytes_per_s,
            progress_grace: u64::from(limits.progress_grace_ms) * MS,
            stream_path: commodity(Port::Tcp),
            datagram_path: commodity(Port::Udp),
        }
    }
}

/// The path beside a commodity NIC.
fn commodity(port: Port) -> PathInfo {
    PathInfo { port, mover: Mover::KernelToSlot, memory: Memory::Host, link: Link::InProcess, emulated: false }
}

/// The key that sets a field of the engine's configuration.
fn engine_key(field: &str) -> &'static str {
    match field {
        "stream_sessions" => "limits.sessions",
        "datagram_sessions" => "limits.datagram_sessions",
        "requests" => "limits.requests",
        "requests_per_client" => "limits.requests_per_client",
        "flight" => "limits.datagrams_in_flight",
        "max_request" => "limits.max_request_bytes",
        "datagram" => "data.max_datagram",
        "receive_window" => "limits.receive_window_bytes",
        "idle_timeout" => "limits.idle_timeout_ms",
        "keep_reply" => "limits.keep_reply_ms",
        _ => "limits",
    }
}
