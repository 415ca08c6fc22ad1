//! What the model tests share: writing small ONNX files, and running a loaded model on slots of an arena.
#![allow(dead_code, unreachable_pub)]

pub mod onnx;
pub mod rig;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use host_agent::gpu::LazyGpu;
use host_agent::model::ModelError;
use host_agent::runtime::Factory;

/// Puts a model file into a repository folder, version 1, with an optional configuration; returns the model's folder.
pub fn put(repository: &Path, name: &str, file: &[u8], config: Option<&str>) -> PathBuf {
    let folder = repository.join(name);
    put_version(&folder, 1, file);
    if let Some(config) = config {
        std::fs::write(folder.join("config.pbtxt"), config).unwrap();
    }
    folder
}

/// Puts one version of a model into its folder.
pub fn put_version(folder: &Path, version: u32, file: &[u8]) {
    let version = folder.join(version.to_string());
    std::fs::create_dir_all(&version).unwrap();
    std::fs::write(version.join("model.onnx"), file).unwrap();
}

/// Loads a model from its folder, on a machine that may have no GPU.
pub fn load_model(folder: &Path) -> Result<Arc<dyn Factory>, ModelError> {
    host_agent::model::load_model(folder, &LazyGpu::default())
}
