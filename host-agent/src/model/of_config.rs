//! A model whose tensors only its configuration describes.

use splitrpc_wire::{DType, MAX_RANK};

use super::config_pbtxt::{ConfigError, ModelConfig, TensorConfig};
use super::spec::{ModelSpec, TensorSpec};

/// What a model takes and gives, by its configuration alone, with every size fixed.
///
/// # Errors
/// What the configuration lacks, or has too much of, with the line.
pub(super) fn of_config(name: &str, version: u16, config: &ModelConfig) -> Result<ModelSpec, ConfigError> {
    let max_batch = config.max_batch_size.unwrap_or(0);
    let tensors = |configs: &[TensorConfig], what: &str| {
        if configs.is_empty() {
            return Err(ConfigError::at(0, format!("has no {what}, which nothing else describes")));
        }
        let repeated = |(index, tensor): (usize, &TensorConfig)| configs[..index].iter().any(|t| t.name == tensor.name);
        if let Some((_, tensor)) = configs.iter().enumerate().find(|pair| repeated(*pair)) {
            return Err(ConfigError::at(tensor.line, format!("{what} {:?} is described twice", tensor.name)));
        }
        configs.iter().map(|tensor| fixed(tensor, what, max_batch > 0)).collect::<Result<Vec<_>, _>>()
    };
    if let Some(warmup) = config.warmup.first() {
        return Err(ConfigError::at(warmup.line, "model_warmup is not supported for models on a GPU".to_owned()));
    }
    if let Some(line) = config.cpu_line {
        return Err(ConfigError::at(
            line,
            "instance_group.kind KIND_CPU is not supported for models on a GPU".to_owned(),
        ));
    }
    if config.dynamic_batching.is_some() && max_batch == 0 {
        let what = "dynamic_batching is asked for, but there is no max_batch_size".to_owned();
        return Err(ConfigError::at(0, what));
    }
    let dynamic = config.dynamic_batching.as_ref();
    Ok(ModelSpec {
        name: name.to_owned(),
        version,
        max_batch,
        inputs: tensors(&config.inputs, "input")?,
        outputs: tensors(&config.outputs, "output")?,
        batching: dynamic.map(|d| d.batching.clone()),
        priority_levels: dynamic.map_or(0, |d| d.priority_levels),
        default_priority: dynamic.map_or(0, |d| d.default_priority),
        instances: config.instances.max(1),
        warmup_launches: 1,
    })
}

fn fixed(tensor: &TensorConfig, what: &str, has_rows: bool) -> Result<TensorSpec, ConfigError> {
    let wrong = |why: &str| Err(ConfigError::at(tensor.line, format!("{what} {:?} {why}", tensor.name)));
    if tensor.reshape.is_some() {
        return wrong("has a reshape, which is not supported for models on a GPU");
    }
    if tensor.dtype == DType::Bytes || tensor.dims.iter().any(Option::is_none) {
        return wrong("varies in size, which is not supported for models on a GPU");
    }
    if tensor.dims.len() + usize::from(has_rows) > MAX_RANK {
        return wrong("has more dimensions than a request may have");
    }
    let mut dims = tensor.dims.clone();
    if has_rows {
        dims.insert(0, None);
    }
    Ok(TensorSpec { name: tensor.name.clone(), dtype: tensor.dtype, dims })
}
