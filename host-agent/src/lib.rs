//! The host agent: model repository, runtimes, orchestrator, metrics and health, configuration, command line.
//!
//! May live here: what decides (which model, when to batch, when to launch, what to answer) and what computes. May not:
//! sockets of the data path, frames, protocol state, payload copies other than a runtime's own, which it counts.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod doctor;
pub mod gpu;
mod http;
pub mod metrics;
pub mod model;
pub mod orchestrator;
pub mod plan;
pub mod quiet;
mod restart;
pub mod runtime;
pub mod serve;
pub mod shard;
pub mod smartnic;
pub mod warmup;
pub mod worker;
