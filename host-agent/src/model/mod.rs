//! Models: what they take and give, and where they come from.

pub mod config_pbtxt;
pub mod embedded;
mod kind;
mod of_config;
pub mod onnx;
pub mod pbtxt;
pub mod repository;
mod resolve;
pub mod spec;

pub(crate) use onnx::read_plain;
pub use repository::{ModelError, load_model, load_repository};
pub use resolve::DEFAULT_MAX_BATCH;
