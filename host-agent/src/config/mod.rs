//! The configuration: a TOML file, the environment and the command line, in rising order of precedence.
//!
//! Every key has a default, unknown keys are refused, and [`Config::check`] holds all values against each other and
//! against the [`Machine`] before anything is started.

mod check;
mod require;

use std::net::SocketAddr;
use std::path::PathBuf;

use nic_app::program::settings::{self, address};
pub use nic_app::program::settings::{LoadError, Wait};
use serde::{Deserialize, Serialize};

pub use check::{MOST_REQUEST_BYTES, Machine, Problem, USUAL_SESSIONS};
pub use require::{Offer, Require};

/// Prefix of the environment variables that set configuration keys: `SPLITRPC_LIMITS_SESSIONS` is `limits.sessions`.
pub const ENV_PREFIX: &str = "SPLITRPC_";

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the server listens.
    pub listen: Listen,
    /// What ends the RPCs.
    pub nic: Nic,
    /// The data threads.
    pub data: Data,
    /// Capacities and limits; those of requests and slots hold for each data thread.
    pub limits: Limits,
    /// What is served.
    pub models: Models,
    /// The GPU, where a model computes on one.
    pub gpu: Gpu,
    /// What the path must be for the server to start.
    pub require: Require,
}

/// Where the server listens; each may be `"off"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Requests over TCP.
    #[serde(with = "address")]
    pub tcp: Option<SocketAddr>,
    /// Requests over UDP.
    #[serde(with = "address")]
    pub udp: Option<SocketAddr>,
    /// Metrics, health and status over HTTP.
    #[serde(with = "address")]
    pub http: Option<SocketAddr>,
}

impl Default for Listen {
    fn default() -> Self {
        let loopback = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        Listen { tcp: loopback(7100), udp: loopback(7100), http: loopback(7180) }
    }
}

/// What ends the RPCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicKind {
    /// This process, with whatever NIC the machine has.
    Commodity,
    /// A BlueField, on which nic-app runs.
    Smartnic,
}

/// How requests come into a GPU's slots beside a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuMemory {
    /// The first of these that can be had.
    Auto,
    /// The card writes there, and is shown them by dma-buf.
    DmaBuf,
    /// The card writes there, and is shown them by way of `nvidia-peermem`.
    Peermem,
    /// The card writes the host's slots, and the GPU copies from there.
    Pinned,
}

impl GpuMemory {
    /// As the configuration calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            GpuMemory::Auto => "auto",
            GpuMemory::DmaBuf => "dmabuf",
            GpuMemory::Peermem => "peermem",
            GpuMemory::Pinned => "pinned",
        }
    }
}

/// What ends the RPCs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nic {
    /// Which of both.
    pub kind: NicKind,
    /// PCI address of the card's device on this machine; the first that can, where none is named.
    pub device: Option<String>,
    /// Folder, or file, of DOCA's libraries; where they are installed, if none is named.
    pub libraries: Option<PathBuf>,
    /// Where the card's datagram arrives that rouses a sleeping agent; where it is off, the agent polls.
    #[serde(with = "address")]
    pub doorbell: Option<SocketAddr>,
    /// How requests come from the card into a GPU's slots.
    pub gpu_memory: GpuMemory,
}

impl Default for Nic {
    fn default() -> Self {
        let doorbell = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        Nic { kind: NicKind::Commodity, device: None, libraries: None, doorbell, gpu_memory: GpuMemory::Auto }
    }
}

/// The data threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Data threads, each a shard that shares nothing with the others.
    pub threads: u16,
    /// What they do when idle.
    pub wait: Wait,
    /// How long an adaptive thread polls before it sleeps, in microseconds.
    pub spin_us: u32,
    /// Cores to pin them to, one a thread; empty leaves it to the kernel.
    pub cores: Vec<u16>,
    /// Largest datagram (UDP payload) in bytes.
    pub max_datagram: u16,
    /// Socket receive buffer in bytes, 0 for the kernel's default.
    pub receive_buffer: u32,
    /// Socket send buffer in bytes, 0 for the kernel's default.
    pub send_buffer: u32,
    /// For tests: of 1,000 received datagrams, how many are dropped.
    pub drop_permille: u16,
    /// For tests: seed of the drops.
    pub drop_seed: u64,
}

impl Default for Data {
    fn default() -> Self {
        Data {
            threads: 1,
            wait: Wait::Adaptive,
            spin_us: 50,
            cores: Vec::new(),
            max_datagram: 1472,
            receive_buffer: 4 << 20,
            send_buffer: 4 << 20,
            drop_permille: 0,
            drop_seed: 0,
        }
    }
}

/// Capacities and limits, of each data thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// TCP connections. Where no source names them [`Config::load`] takes [`Limits::usual_sessions`].
    pub sessions: u32,
    /// Datagram sessions.
    pub datagram_sessions: u32,
    /// Requests at once, kept replies included.
    pub requests: u32,
    /// Requests that one client may have in flight.
    pub requests_per_client: u16,
    /// Input slots of a model, in each of its size classes; rounded up to whole windows.
    pub slots_per_model: u32,
    /// Bytes that one size class of one model may take; larger slots get fewer, but always a few.
    pub class_bytes: u64,
    /// Largest request, in bytes.
    pub max_request_bytes: u32,
    /// Outputs in the runtimes' own memory at once.
    pub external_outputs: u32,
    /// Datagrams in flight towards one client; a power of two.
    pub datagrams_in_flight: u32,
    /// Data bytes that one datagram client may have in flight towards the server.
    pub receive_window_bytes: u64,
    /// Bytes a second that a request under way must gain.
    pub min_progress_bytes_per_s: u32,
    /// How long a request may stall before that is asked of it, in milliseconds.
    pub progress_grace_ms: u32,
    /// A session that is silent for longer is forgotten, in milliseconds.
    pub idle_timeout_ms: u32,
    /// How long a reply is kept to answer a duplicate, in milliseconds.
    pub keep_reply_ms: u32,
    /// Replies that are kept at once.
    pub kept_replies: u32,
    /// How long shutting down may wait for requests in flight, in milliseconds.
    pub drain_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sessions: Limits::usual_sessions(1),
            datagram_sessions: 256,
            requests: 1024,
            requests_per_client: 64,
            slots_per_model: 256,
            class_bytes: 256 << 20,
            max_request_bytes: 64 << 20,
            external_outputs: 256,
            datagrams_in_flight: 1024,
            receive_window_bytes: 1 << 20,
            min_progress_bytes_per_s: 16 << 10,
            progress_grace_ms: 5_000,
            idle_timeout_ms: 60_000,
            keep_reply_ms: 1_000,
            kept_replies: 128,
            drain_ms: 10_000,
        }
    }
}

impl Limits {
    /// TCP connections of each of so many data threads by default: [`USUAL_SESSIONS`], or as many as this process may have
    /// files open for.
    #[must_use]
    pub fn usual_sessions(threads: u16) -> u32 {
        check::sessions_for(check::open_files_limit(), threads)
    }
}

/// A model that the program itself brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Takes anything and answers with a fixed number of bytes.
    Null,
    /// Answers with what it was sent.
    Echo,
    /// Recognises handwritten digits.
    Digits,
    /// As `null`, with its inputs taken into the memory of a GPU, and its answer from there.
    #[serde(rename = "null-gpu")]
    NullGpu,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Models {
    /// Directory with a folder for each model.
    pub repository: Option<PathBuf>,
    /// Models that the program itself brings.
    pub builtins: Vec<Builtin>,
    /// Bytes with which the null model answers.
    pub response_bytes: u32,
}

impl Default for Models {
    fn default() -> Self {
        Models {
            repository: None,
            builtins: vec![Builtin::Null, Builtin::Echo, Builtin::Digits],
            response_bytes: 4_000,
        }
    }
}

/// The GPU, where a model computes on one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// Which of the machine's GPUs, as the driver counts them.
    pub device: u16,
    /// Larger copies are cut into pieces of so many bytes, between which more urgent ones can pass.
    pub chunk_bytes: u32,
    /// Pieces that the copy engine is given before the first of them is done.
    pub chunks_ahead: u16,
    /// While requests to models that launch nothing follow each other closely, has a kernel that stays on the GPU carry those of at most
    /// `chunk_bytes`, instead of the copy engines.
    pub porter: bool,
    /// Larger requests are copied while they arrive over TCP, in pieces of at least so many bytes; 0 is none.
    pub early_bytes: u32,
    /// Where a model launches kernels, inputs of at most so many bytes, and outputs of as many, are carried from and to the host by a kernel in
    /// front of these and behind them, and not by a copy engine; 0 is none.
    pub kernel_bytes: u32,
    /// How long a launch may take before its requests are answered as failed, in milliseconds.
    pub launch_limit_ms: u32,
    /// Models whose next launch waits on the GPU for its request.
    pub pre_launched: Vec<String>,
    /// The folder of PyTorch's libraries, for models that it compiled.
    pub torch: Option<PathBuf>,
    /// The memory of slots on the GPU is such that other processes can map it.
    pub shared: bool,
}

impl Default for Gpu {
    fn default() -> Self {
        Gpu {
            device: 0,
            chunk_bytes: 1 << 20,
            chunks_ahead: 2,
            porter: true,
            early_bytes: 256 << 10,
            kernel_bytes: 64 << 10,
            launch_limit_ms: 10_000,
            pre_launched: Vec::new(),
            torch: None,
            shared: false,
        }
    }
}

/// What the command line sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// `models.repository`.
    pub model_repository: Option<PathBuf>,
    /// `nic.kind`.
    pub nic: Option<String>,
    /// `listen.tcp`.
    pub tcp: Option<String>,
    /// `listen.udp`.
    pub udp: Option<String>,
    /// `listen.http`.
    pub http: Option<String>,
}

impl Config {
    /// Reads the configuration from all its sources.
    ///
    /// # Errors
    /// [`LoadError`] for a file that cannot be read, an unknown key, or a value of the wrong type.
    pub fn load(overrides: &Overrides) -> Result<Config, LoadError> {
        let repository = overrides.model_repository.as_ref().map(|p| p.display().to_string());
        let options = [
            ("models.repository", "--model-repository", repository.as_ref()),
            ("nic.kind", "--nic", overrides.nic.as_ref()),
            ("listen.tcp", "--tcp", overrides.tcp.as_ref()),
            ("listen.udp", "--udp", overrides.udp.as_ref()),
            ("listen.http", "--http", overrides.http.as_ref()),
        ];
        let (mut config, sources) = settings::load::<Config>(ENV_PREFIX, overrides.config.as_deref(), &options)?;
        if !sources.contains("limits.sessions") {
            config.limits.sessions = Limits::usual_sessions(config.data.threads);
        }
        Ok(config)
    }

    /// The configuration as TOML, every key with its value; those that have none stand in comments that say what this means.
    /// What is shown can be read again.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Config { nic, models, gpu, require, .. } = self;
        let unset = [
            ("[nic]", "device", nic.device.is_none(), "the first that can"),
            ("[nic]", "libraries", nic.libraries.is_none(), "where DOCA is installed"),
            ("[models]", "repository", models.repository.is_none(), "no models but the built-in ones"),
            ("[gpu]", "torch", gpu.torch.is_none(), "no models that PyTorch compiled"),
            ("[require]", "mover", require.mover.is_none(), "any will do"),
            ("[require]", "memory", require.memory.is_none(), "any will do"),
            ("[require]", "link", require.link.is_none(), "any will do"),
            ("[require]", "emulated", require.emulated.is_none(), "a card may be emulated or not"),
        ];
        settings::to_toml(self, &unset)
    }
}

#[cfg(test)]
mod tests;
