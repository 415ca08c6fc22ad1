//! A loaded model that computes on a GPU.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Program;
use crate::model::spec::ModelSpec;
use crate::runtime::{Execution, Factory, Runtime, RuntimeError};

/// A model of a GPU's: what it takes and gives, and its program.
pub struct GpuModel {
    /// What it takes and gives.
    pub spec: ModelSpec,
    /// Where it comes from.
    pub file: Option<PathBuf>,
    /// What it computes.
    pub program: Arc<dyn Program>,
}

impl Factory for GpuModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    fn execution(&self) -> Execution {
        Execution::Gpu(Arc::clone(&self.program))
    }

    fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError> {
        Err(RuntimeError("computes on a GPU alone".into()))
    }
}

impl fmt::Debug for GpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuModel").field("model", &self.spec.name).finish_non_exhaustive()
    }
}
