//! Triton's `config.pbtxt`, read as it is: what this server cannot honour is refused by name, never ignored.

use std::collections::BTreeMap;

use splitrpc_wire::DType;

use super::pbtxt;
use super::spec::BatchingSpec;

mod fields;
mod warmup;

pub use fields::ConfigError;
use fields::{Item, PLAIN, Result, Schema, walk};
pub use warmup::{Warmup, WarmupInput};

/// What a `config.pbtxt` says. Absent fields are `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelConfig {
    /// The model's name, which must be its folder's.
    pub name: Option<String>,
    /// Most rows in a batch; 0 says that the model has no batch dimension.
    pub max_batch_size: Option<u16>,
    /// Inputs that are described.
    pub inputs: Vec<TensorConfig>,
    /// Outputs that are described.
    pub outputs: Vec<TensorConfig>,
    /// Which versions are served.
    pub version_policy: VersionPolicy,
    /// Dynamic batching, where the file turns it on.
    pub dynamic_batching: Option<DynamicBatching>,
    /// Parallel instances, all groups together; 0 where the file says nothing.
    pub instances: u16,
    /// The line that asks for instances on a GPU, and the one that asks for some on a CPU.
    pub gpu_line: Option<u32>,
    /// See `gpu_line`.
    pub cpu_line: Option<u32>,
    /// What computes the model, where the file names it.
    pub backend: Option<String>,
    /// `platform`, where it is set.
    pub platform: Option<String>,
    /// File name of the model inside its version folder.
    pub default_model_filename: Option<String>,
    /// Requests to compute before the model is called ready.
    pub warmup: Vec<Warmup>,
    /// Free-form parameters, which no runtime here reads.
    pub parameters: BTreeMap<String, String>,
}

/// A tensor as the configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorConfig {
    /// Its name in the model.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions without the batch dimension; `None` varies.
    pub dims: Vec<Option<u32>>,
    /// The dimensions that the model itself has, where they differ from those on the wire.
    pub reshape: Option<Vec<u32>>,
    /// The line where it stands.
    pub line: u32,
}

/// Which of a model's versions are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionPolicy {
    /// This many of the highest.
    Latest(u32),
    /// All of them.
    All,
    /// These.
    Specific(Vec<u32>),
}

impl Default for VersionPolicy {
    fn default() -> Self {
        VersionPolicy::Latest(1)
    }
}

/// Dynamic batching and priorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicBatching {
    /// Delay, preferred sizes and the queue's limit.
    pub batching: BatchingSpec,
    /// Number of priority levels, 0 for none.
    pub priority_levels: u8,
    /// Priority of requests that name none.
    pub default_priority: u8,
}

impl Default for DynamicBatching {
    /// Greedy, with a queue that slots alone bound, and no priorities.
    fn default() -> Self {
        let batching = BatchingSpec { max_queue_delay_us: 0, preferred: Vec::new(), max_queue: 0 };
        DynamicBatching { batching, priority_levels: 0, default_priority: 0 }
    }
}

const MODEL: Schema = Schema {
    repeated: &["input", "output", "instance_group", "model_warmup", "parameters"],
    unsupported: &[
        "runtime",
        "batch_input",
        "batch_output",
        "sequence_batching",
        "ensemble_scheduling",
        "cc_model_filenames",
        "metric_tags",
        "model_operations",
        "model_repository_agents",
        "model_metrics",
    ],
};

/// Parameters that tune ONNX Runtime, which is not what computes here.
const RUNTIME_PARAMETERS: [&str; 9] = [
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
    "memory.enable_memory_arena_shrinkage",
    "cudnn_conv_algo_search",
    "gpu_mem_limit",
    "arena_extend_strategy",
];

/// Reads a configuration.
///
/// # Errors
/// [`ConfigError`] with the line: a syntax error, an unknown or unsupported field, a value out of range.
pub fn parse(text: &str) -> Result<ModelConfig> {
    let message = pbtxt::parse(text)?;
    let mut config = ModelConfig::default();
    let mut batching_line = 0;
    walk(&message, "", &MODEL, |item| {
        match item.name {
            "name" => config.name = Some(item.text()?),
            "platform" => {
                known_value(item, &["onnxruntime_onnx", "torch_aoti"])?;
                config.platform = Some(item.text()?).filter(|name| !name.is_empty());
            }
            "backend" => {
                known_value(item, &["onnxruntime", "tract", "cuda", "pytorch"])?;
                config.backend = Some(item.text()?).filter(|name| !name.is_empty());
            }
            "max_batch_size" => config.max_batch_size = Some(item.integer(0, u16::MAX.into())?),
            "input" => config.inputs.push(tensor(item, &INPUT)?),
            "output" => config.outputs.push(tensor(item, &OUTPUT)?),
            "version_policy" => config.version_policy = version_policy(item)?,
            "dynamic_batching" => {
                batching_line = item.line();
                config.dynamic_batching = Some(dynamic_batching(item)?);
            }
            "instance_group" => {
                let (count, kind) = instance_group(item)?;
                match kind {
                    Kind::Any => {}
                    Kind::Gpu => config.gpu_line = Some(item.line()),
                    Kind::Cpu => config.cpu_line = Some(item.line()),
                }
                let sum = u32::from(config.instances) + count;
                config.instances =
                    u16::try_from(sum).map_err(|_| item.error("asks for more instances than are supported"))?;
            }
            "default_model_filename" => config.default_model_filename = Some(file_name(item)?),
            "model_warmup" => config.warmup.push(warmup::read(item)?),
            "parameters" => {
                let (key, value) = parameter(item)?;
                config.parameters.insert(key, value);
            }
            "optimization" => walk(item.message()?, &item.path, &OPTIMIZATION, |_| Ok(false))?,
            "response_cache" => switch_off(item, "enable")?,
            "model_transaction_policy" => switch_off(item, "decoupled")?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if let Some(dynamic) = &config.dynamic_batching {
        let most = config.max_batch_size.unwrap_or(u16::MAX);
        if most == 0 {
            return Err(ConfigError::at(batching_line, "dynamic_batching needs a max_batch_size of at least 1"));
        }
        if let Some(size) = dynamic.batching.preferred.iter().find(|&&size| size > most) {
            let what = format!("dynamic_batching.preferred_batch_size {size} exceeds max_batch_size {most}");
            return Err(ConfigError::at(batching_line, what));
        }
    }
    Ok(config)
}

fn known_value(item: &Item<'_>, known: &[&str]) -> Result<()> {
    let value = item.text()?;
    if value.is_empty() || known.contains(&value.as_str()) {
        Ok(())
    } else {
        Err(item.error(&format!("{value:?} is not supported, only {}", known.join(" and "))))
    }
}

const OPTIMIZATION: Schema = Schema {
    repeated: &[],
    unsupported: &[
        "graph",
        "priority",
        "cuda",
        "execution_accelerators",
        "input_pinned_memory",
        "output_pinned_memory",
        "gather_kernel_buffer_threshold",
        "eager_batching",
    ],
};

fn switch_off(item: &Item<'_>, switch: &str) -> Result<()> {
    walk(
        item.message()?,
        &item.path,
        &PLAIN,
        |inner| {
            if inner.name == switch { inner.must_be_off() } else { Ok(false) }
        },
    )
}

fn file_name(item: &Item<'_>) -> Result<String> {
    let name = item.text()?;
    let plain = !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != "..";
    if plain { Ok(name) } else { Err(item.error("must be a file name without folders")) }
}

/// Every element type by Triton's name and number.
const DATA_TYPES: [(&str, i128, DType); 14] = [
    ("TYPE_BOOL", 1, DType::Bool),
    ("TYPE_UINT8", 2, DType::Uint8),
    ("TYPE_UINT16", 3, DType::Uint16),
    ("TYPE_UINT32", 4, DType::Uint32),
    ("TYPE_UINT64", 5, DType::Uint64),
    ("TYPE_INT8", 6, DType::Int8),
    ("TYPE_INT16", 7, DType::Int16),
    ("TYPE_INT32", 8, DType::Int32),
    ("TYPE_INT64", 9, DType::Int64),
    ("TYPE_FP16", 10, DType::Fp16),
    ("TYPE_FP32", 11, DType::Fp32),
    ("TYPE_FP64", 12, DType::Fp64),
    ("TYPE_STRING", 13, DType::Bytes),
    ("TYPE_BF16", 14, DType::Bf16),
];

#[derive(Clone, Copy, PartialEq)]
enum Format {
    None,
    Image,
}

const INPUT: Schema = Schema { repeated: &["dims"], unsupported: &[] };
const OUTPUT: Schema = Schema { repeated: &["dims"], unsupported: &["label_filename"] };

fn tensor(parent: &Item<'_>, schema: &Schema) -> Result<TensorConfig> {
    let (mut name, mut dtype, mut format, mut reshape) = (String::new(), None, Format::None, None);
    let mut dims = Vec::new();
    let is_input = parent.name == "input";
    walk(parent.message()?, &parent.path, schema, |item| {
        match item.name {
            "name" => name = item.text()?,
            "data_type" => dtype = Some(item.choice(&DATA_TYPES)?),
            "dims" => dims.push(dim(item)?),
            "reshape" => reshape = Some((item.line(), shape(item)?)),
            "format" if is_input => {
                format = item.choice(&[
                    ("FORMAT_NONE", 0, Format::None),
                    ("FORMAT_NHWC", 1, Format::Image),
                    ("FORMAT_NCHW", 2, Format::Image),
                ])?;
            }
            "is_shape_tensor" | "is_non_linear_format_io" => return item.must_be_off(),
            "allow_ragged_batch" | "optional" if is_input => return item.must_be_off(),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if name.is_empty() {
        return Err(parent.error("has no name"));
    }
    let dtype = dtype.ok_or_else(|| parent.error(&format!("{name:?} has no data_type")))?;
    if format == Format::Image && dims.len() != 3 {
        return Err(parent.error(&format!("{name:?} has an image format, which needs 3 dims")));
    }
    let reshape = reshape.map(|(line, shape)| checked_reshape(parent, line, &dims, shape)).transpose()?;
    Ok(TensorConfig { name, dtype, dims, reshape, line: parent.line() })
}

fn dim(item: &Item<'_>) -> Result<Option<u32>> {
    let dim: i64 = item.integer(-1, i128::from(u32::MAX))?;
    match dim {
        -1 => Ok(None),
        0 => Err(item.error("must be at least 1, or -1 where it varies")),
        _ => Ok(Some(dim as u32)),
    }
}

fn shape(parent: &Item<'_>) -> Result<Vec<u32>> {
    let mut shape = Vec::new();
    walk(parent.message()?, &parent.path, &Schema { repeated: &["shape"], ..PLAIN }, |item| {
        if item.name == "shape" {
            shape.push(dim(item)?.ok_or_else(|| item.error("of -1 is not supported"))?);
        }
        Ok(item.name == "shape")
    })?;
    Ok(shape)
}

fn checked_reshape(parent: &Item<'_>, line: u32, dims: &[Option<u32>], shape: Vec<u32>) -> Result<Vec<u32>> {
    let fail = |what: &str| Err(ConfigError::at(line, format!("{}.reshape {what}", parent.path)));
    let elements = |dims: &[u32]| dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.into()));
    let Some(fixed) = dims.iter().copied().collect::<Option<Vec<u32>>>() else {
        return fail("is not supported where dims vary");
    };
    if elements(&fixed) != elements(&shape) {
        return fail(&format!("{shape:?} has not as many elements as dims {fixed:?}"));
    }
    Ok(shape)
}

fn version_policy(parent: &Item<'_>) -> Result<VersionPolicy> {
    let mut policy = None;
    walk(parent.message()?, &parent.path, &PLAIN, |item| {
        if policy.is_some() {
            return Err(item.error("is a second policy"));
        }
        let mut versions = Vec::new();
        let mut latest = 1;
        let schema = Schema { repeated: &["versions"], ..PLAIN };
        walk(item.message()?, &item.path, &schema, |inner| {
            match (item.name, inner.name) {
                ("latest", "num_versions") => latest = inner.integer(1, u32::MAX.into())?,
                ("specific", "versions") => versions.push(inner.integer(1, u32::MAX.into())?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        policy = Some(match item.name {
            "latest" => VersionPolicy::Latest(latest),
            "all" => VersionPolicy::All,
            "specific" => VersionPolicy::Specific(versions),
            _ => return Ok(false),
        });
        Ok(true)
    })?;
    Ok(policy.unwrap_or_default())
}

fn dynamic_batching(parent: &Item<'_>) -> Result<DynamicBatching> {
    let mut out = DynamicBatching::default();
    let schema = Schema { repeated: &["preferred_batch_size"], unsupported: &["priority_queue_policy"] };
    walk(parent.message()?, &parent.path, &schema, |item| {
        match item.name {
            "preferred_batch_size" => out.batching.preferred.push(item.integer(1, u16::MAX.into())?),
            "max_queue_delay_microseconds" => out.batching.max_queue_delay_us = item.integer(0, u64::MAX.into())?,
            "preserve_ordering" => return item.must_be_off(),
            "priority_levels" => out.priority_levels = item.integer(0, u8::MAX.into())?,
            "default_priority_level" => out.default_priority = item.integer(0, u8::MAX.into())?,
            "default_queue_policy" => out.batching.max_queue = queue_policy(item)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    out.batching.preferred.sort_unstable();
    out.batching.preferred.dedup();
    let levels = out.priority_levels;
    if levels > 0 && !(1..=levels).contains(&out.default_priority) {
        return Err(parent.error(&format!("has {levels} priority_levels and no default_priority_level among them")));
    }
    if levels == 0 && out.default_priority > 0 {
        return Err(parent.error("has a default_priority_level and no priority_levels"));
    }
    Ok(out)
}

fn queue_policy(parent: &Item<'_>) -> Result<u32> {
    let mut max_queue = 0;
    walk(parent.message()?, &parent.path, &PLAIN, |item| {
        match item.name {
            "max_queue_size" => max_queue = item.integer(0, u32::MAX.into())?,
            "timeout_action" => item.choice(&[("REJECT", 0, ())])?,
            "default_timeout_microseconds" => {
                let timeout: u64 = item.integer(0, u64::MAX.into())?;
                if timeout > 0 {
                    return Err(item.error("is not supported; requests bring their own deadline"));
                }
            }
            "allow_timeout_override" => return item.must_be_off(),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(max_queue)
}

/// Where the instances of a group compute.
#[derive(Clone, Copy)]
enum Kind {
    Any,
    Gpu,
    Cpu,
}

fn instance_group(parent: &Item<'_>) -> Result<(u32, Kind)> {
    const KINDS: [(&str, i128, Kind); 4] = [
        ("KIND_AUTO", 0, Kind::Any),
        ("KIND_GPU", 1, Kind::Gpu),
        ("KIND_CPU", 2, Kind::Cpu),
        ("KIND_MODEL", 3, Kind::Any),
    ];
    let (mut count, mut kind) = (1, Kind::Any);
    let schema =
        Schema { repeated: &[], unsupported: &["rate_limiter", "gpus", "secondary_devices", "profile", "host_policy"] };
    walk(parent.message()?, &parent.path, &schema, |item| {
        match item.name {
            // A label that shows in nothing else.
            "name" => drop(item.text()?),
            "count" => count = item.integer::<u32>(0, 1024)?.max(1),
            "kind" => kind = item.choice(&KINDS)?,
            "passive" => return item.must_be_off(),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((count, kind))
}

fn parameter(parent: &Item<'_>) -> Result<(String, String)> {
    let (key, entry) = parent.entry()?;
    if RUNTIME_PARAMETERS.contains(&key.as_str()) {
        return Err(entry.error("is not supported"));
    }
    let mut value = String::new();
    walk(entry.message()?, &entry.path, &PLAIN, |item| {
        if item.name == "string_value" {
            value = item.text()?;
        }
        Ok(item.name == "string_value")
    })?;
    Ok((key, value))
}

#[cfg(test)]
mod tests;
