//! The engine's edges: ports, the data thread that runs all of it to completion, and a card's way to its host.
//!
//! May live here: what moves bytes between sockets and slots, how a data thread polls and sleeps, the storage that the
//! engine works in, and, in `program`, what this program and the host agent's have in common. May not: protocol decisions (the
//! engine's), what a request means or when it runs (the host's), and payload bytes outside slots, except those that landed in the
//! wrong place, which are counted.
#![forbid(unsafe_code)]

mod arrivals;
pub mod card;
pub mod cli;
mod completion;
pub mod config;
mod data_thread;
pub mod doctor;
mod frame;
pub mod program;
mod publish;
mod settings;
pub mod setup;
mod storage;
mod tcp;
mod udp;
mod wait;

pub use arrivals::Arrival;
pub use completion::{Meta, copy_manifest};
pub use data_thread::DataThread;
pub use settings::{DataThreadConfig, Host, Stop};
pub use storage::{BuildError, BuiltEngine, Engine, EngineMemory, build_engine};
pub use tcp::{TcpPort, TcpPortConfig, TcpStats};
pub use udp::{UdpPort, UdpPortConfig, UdpStats};
pub use wait::{WaitMode, Waker};
