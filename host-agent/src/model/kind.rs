//! What a model is made of, and which file that is.

use std::path::{Path, PathBuf};

use super::config_pbtxt::ModelConfig;
use crate::runtime::{cuda, torch};

/// What a model is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A graph for the CPU.
    Onnx,
    /// CUDA kernels.
    Kernels,
    /// What PyTorch compiled.
    Package,
}

impl Kind {
    /// By the name of the file.
    pub(super) fn of(path: &Path) -> Kind {
        let is = |kind: &Kind| path.extension().is_some_and(|extension| extension == kind.extension());
        [Kind::Kernels, Kind::Package].into_iter().find(is).unwrap_or(Kind::Onnx)
    }

    /// What a configuration asks for, and by which of its fields.
    pub(super) fn asked(config: &ModelConfig) -> Option<(&'static str, Kind)> {
        match (config.backend.as_deref(), config.platform.as_deref()) {
            (Some("cuda"), _) => Some(("backend \"cuda\"", Kind::Kernels)),
            (Some("pytorch"), _) => Some(("backend \"pytorch\"", Kind::Package)),
            (Some(_), _) => Some(("the backend", Kind::Onnx)),
            (None, Some("torch_aoti")) => Some(("platform \"torch_aoti\"", Kind::Package)),
            (None, Some(_)) => Some(("the platform", Kind::Onnx)),
            (None, None) => None,
        }
    }

    /// How its file ends.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Kind::Onnx => "onnx",
            Kind::Kernels => "toml",
            Kind::Package => "pt2",
        }
    }

    fn usual_file(self) -> &'static str {
        match self {
            Kind::Onnx => "model.onnx",
            Kind::Kernels => cuda::MANIFEST,
            Kind::Package => torch::PACKAGE,
        }
    }
}

/// The file that makes the model: the one that its configuration names, else the usual one of the kind that the configuration asks
/// for, else of what there is: ONNX before all others.
pub(super) fn model_file(version: &Path, config: Option<&ModelConfig>) -> PathBuf {
    if let Some(name) = config.and_then(|c| c.default_model_filename.as_deref()) {
        return version.join(name);
    }
    let usual = |kind: Kind| version.join(kind.usual_file());
    if let Some((_, kind)) = config.and_then(Kind::asked) {
        return usual(kind);
    }
    [Kind::Onnx, Kind::Kernels, Kind::Package]
        .into_iter()
        .map(usual)
        .find(|path| path.exists())
        .unwrap_or_else(|| usual(Kind::Onnx))
}
