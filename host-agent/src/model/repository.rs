//! The model repository, in Triton's folder layout: `MODEL/VERSION/model.onnx`, with an optional `MODEL/config.pbtxt`; or
//! `MODEL/VERSION/kernels.toml` or `MODEL/VERSION/model.pt2`, and then the configuration is needed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use splitrpc_wire::catalog::MAX_NAME;

use super::config_pbtxt::{self, ConfigError, ModelConfig, VersionPolicy};
use super::kind::{Kind, model_file};
use super::of_config::of_config;
use super::onnx;
use super::resolve::{Fault, resolve};
use crate::gpu::{GpuModel, LazyGpu};
use crate::runtime::tract::TractModel;
use crate::runtime::{Factory, cuda, image, torch};

/// Largest `config.pbtxt` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The parameter of models that take their outputs as further inputs, and write them.
const OUTPUTS_AS_INPUTS: &str = "outputs_as_inputs";

/// Why a model, or a whole repository, is not served: which file, where in it, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelError {
    /// The file or folder at fault.
    pub path: PathBuf,
    /// The line of a text file, from 1.
    pub line: Option<u32>,
    /// The column, for syntax errors.
    pub column: Option<u32>,
    /// What is wrong.
    pub reason: String,
}

impl ModelError {
    fn new(path: impl Into<PathBuf>, reason: impl Into<String>) -> ModelError {
        ModelError { path: path.into(), line: None, column: None, reason: reason.into() }
    }

    fn config(path: PathBuf, error: ConfigError) -> ModelError {
        let line = Some(error.line).filter(|&line| line > 0);
        ModelError { path, line, column: error.column, reason: error.what }
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        for place in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{place}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for ModelError {}

/// A model, or why it cannot be served.
pub type Loaded = Result<Arc<dyn Factory>, ModelError>;

/// Loads every model of a repository, in the order of their names; one that cannot be served does not keep the others
/// from it. Plain files and hidden folders in it are passed over.
///
/// # Errors
/// [`ModelError`] where the folder itself cannot be read.
pub fn load_repository(folder: &Path, gpu: &LazyGpu) -> Result<Vec<Loaded>, ModelError> {
    let models = folders(folder)?;
    Ok(models.iter().filter(|name| !name.starts_with('.')).map(|name| load_model(&folder.join(name), gpu)).collect())
}

/// Loads one model from its folder, whose name is the model's.
///
/// # Errors
/// [`ModelError`] with the file at fault: no version, a configuration that is not supported or does not fit the file, a
/// file that is missing, cut short, not what it should be or not supported; a model for a GPU where there is none.
pub fn load_model(folder: &Path, gpu: &LazyGpu) -> Loaded {
    let name = folder.file_name().and_then(|n| n.to_str());
    let name = name.ok_or_else(|| ModelError::new(folder, "has a name that is not UTF-8"))?;
    if name.len() > MAX_NAME {
        return Err(ModelError::new(folder, format!("has a name of more than {MAX_NAME} bytes")));
    }
    let config_path = folder.join("config.pbtxt");
    let config = read_config(&config_path)?;
    if let Some(named) = config.as_ref().and_then(|c| c.name.as_deref())
        && !named.is_empty()
        && named != name
    {
        let reason = format!("names the model {named:?}, but its folder is {name:?}");
        return Err(ModelError::new(config_path, reason));
    }
    let policy = config.as_ref().map_or_else(VersionPolicy::default, |c| c.version_policy.clone());
    let version = choose_version(folder, &policy)?;
    let path = model_file(&folder.join(version.to_string()), config.as_ref());
    let served = u16::try_from(version).map_err(|_| {
        ModelError::new(folder.join(version.to_string()), "is a version above 65535, which is not supported")
    })?;
    let kind = Kind::of(&path);
    if let Some((asked, wanted)) = config.as_ref().and_then(Kind::asked).filter(|(_, wanted)| *wanted != kind) {
        let reason = format!("{asked} wants a default_model_filename that ends in .{}, or none", wanted.extension());
        return Err(ModelError::new(config_path, reason));
    }
    if kind != Kind::Onnx {
        let Some(config) = config else {
            return Err(ModelError::new(
                config_path,
                "is missing, and has to say what tensors the model takes and gives",
            ));
        };
        let spec = of_config(name, served, &config).map_err(|error| ModelError::config(config_path, error))?;
        let program = match kind {
            Kind::Package => {
                let as_inputs = config.parameters.get(OUTPUTS_AS_INPUTS).is_some_and(|value| value == "true");
                torch::load(&path, &spec, as_inputs, gpu).map_err(|reason| (path.clone(), reason))
            }
            Kind::Kernels | Kind::Onnx => cuda::load(&path, &spec, gpu),
        };
        let model = program.and_then(|program| image::before(GpuModel { spec, file: Some(path), program }, gpu));
        return Ok(Arc::new(model.map_err(|(path, reason)| ModelError::new(path, reason))?));
    }
    let images = path.with_file_name(image::FILE);
    if images.exists() {
        return Err(ModelError::new(images, "is there for models on a GPU, and ONNX is computed on the CPU"));
    }
    let file = onnx::read(&path).map_err(|reason| ModelError::new(&path, reason))?;
    let model = resolve(name, served, path.clone(), &file, config.as_ref()).map_err(|fault| match fault {
        Fault::Config(error) => ModelError::config(config_path, error),
        Fault::File(reason) => ModelError::new(path, reason),
    })?;
    Ok(Arc::new(TractModel::new(model)))
}

fn read_config(path: &Path) -> Result<Option<ModelConfig>, ModelError> {
    let bytes = match onnx::read_plain(path, MAX_CONFIG_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ModelError::new(path, format!("cannot be read: {error}"))),
    };
    let text = String::from_utf8(bytes).map_err(|_| ModelError::new(path, "is not UTF-8 text"))?;
    config_pbtxt::parse(&text).map(Some).map_err(|error| ModelError::config(path.to_owned(), error))
}

/// The version that the policy and the folders make the one to serve.
fn choose_version(folder: &Path, policy: &VersionPolicy) -> Result<u32, ModelError> {
    let mut present: Vec<u32> = folders(folder)?.iter().filter_map(|name| version_number(name)).collect();
    present.sort_unstable();
    let error = |reason: String| Err(ModelError::new(folder, reason));
    let Some(&highest) = present.last() else {
        return error("has no version folder, such as 1".into());
    };
    let several = "serving several versions at once is not supported";
    match policy {
        VersionPolicy::Latest(count) if *count > 1 && present.len() > 1 => {
            error(format!("version_policy.latest asks for {count}, and {several}"))
        }
        VersionPolicy::All if present.len() > 1 => error(format!("version_policy.all: {several}")),
        VersionPolicy::Latest(_) | VersionPolicy::All => Ok(highest),
        VersionPolicy::Specific(wanted) => match wanted[..] {
            [one] if present.contains(&one) => Ok(one),
            [one] => error(format!("version_policy.specific asks for version {one}, which has no folder")),
            [] => error("version_policy.specific names no version".into()),
            _ => error(format!("version_policy.specific: {several}")),
        },
    }
}

/// A version is a whole number from 1, written without anything before it; other folders are none of ours.
fn version_number(name: &str) -> Option<u32> {
    let plain = name.starts_with(|c| ('1'..='9').contains(&c)) && name.bytes().all(|b| b.is_ascii_digit());
    if plain { name.parse().ok() } else { None }
}

/// Names of the folders in a folder, sorted; names that are not UTF-8 are shown as nearly as can be.
fn folders(folder: &Path) -> Result<Vec<String>, ModelError> {
    let failed = |e: std::io::Error| ModelError::new(folder, format!("cannot be read: {e}"));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
