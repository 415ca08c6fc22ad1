//! Putting together what a file, its configuration and tract say about a model, or saying where they disagree.

use std::path::PathBuf;

use super::config_pbtxt::{ConfigError, ModelConfig, TensorConfig, Warmup};
use super::onnx::{Dim, GraphTensor, OnnxFile};
use super::spec::{BatchingSpec, ModelSpec, TensorSpec};
use crate::runtime::tract::program::{Found, FoundDim, Program, ProgramInput, Shapes};
use crate::runtime::tract::{Model, probe};

/// Largest batch of a model whose file has a batch dimension and whose configuration says nothing; Triton's default.
pub const DEFAULT_MAX_BATCH: u16 = 4;

/// What a varying dimension is taken to be where one is needed to try a model out.
const TRIAL_DIM: u32 = 8;

/// Whose fault it is that a model cannot be served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Config(ConfigError),
    File(String),
}

type Result<T> = std::result::Result<T, Fault>;

/// The model that a folder, its file and its configuration make together.
pub(crate) fn resolve(
    name: &str,
    version: u16,
    path: PathBuf,
    file: &OnnxFile,
    config: Option<&ModelConfig>,
) -> Result<Model> {
    let nothing = ModelConfig::default();
    let config = config.unwrap_or(&nothing);
    let inputs = described(&file.inputs, &config.inputs, "input", true)?;
    let outputs = described(&file.outputs, &config.outputs, "output", false)?;
    let plan = Resolver { name, version, path, file, config, inputs, outputs };
    match config.max_batch_size {
        Some(max_batch) => plan.model(max_batch, Asked::Plainly),
        None if !config.inputs.is_empty() || !config.outputs.is_empty() => plan.model(0, Asked::Plainly),
        None if !plan.all_first_dims_vary() => plan.model(0, Asked::Plainly),
        None => match plan.model(DEFAULT_MAX_BATCH, Asked::ByDefault) {
            Err(Fault::File(why)) if why == NOT_BY_ROWS => plan.model(0, Asked::Plainly),
            other => other,
        },
    }
}

/// Marks a model that would be batched by default and cannot be.
const NOT_BY_ROWS: &str = "rows are not independent";

/// Who wants a model batched, or not.
#[derive(Clone, Copy, PartialEq)]
enum Asked {
    Plainly,
    ByDefault,
}

/// A tensor of the file, where it stands there, and what the configuration says of it.
struct Described<'a> {
    at: usize,
    tensor: &'a GraphTensor,
    config: Option<&'a TensorConfig>,
}

/// Pairs the file's tensors with the configuration's. Where the configuration describes inputs it describes all; of the
/// outputs it may leave some out, which are then not served.
fn described<'a>(
    tensors: &'a [GraphTensor],
    configs: &'a [TensorConfig],
    what: &str,
    all: bool,
) -> Result<Vec<Described<'a>>> {
    for (index, config) in configs.iter().enumerate() {
        let name = &config.name;
        let wrong = |why: String| Err(at(config.line, format!("{what} {name:?} {why}")));
        if configs[..index].iter().any(|c| c.name == *name) {
            return wrong("is described twice".into());
        }
        let Some(tensor) = tensors.iter().find(|t| t.name == *name) else {
            let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
            return wrong(format!("is not in the model, which has {}", names.join(", ")));
        };
        if tensor.dtype != config.dtype {
            return wrong(format!("is {} here and {} in the model", config.dtype.name(), tensor.dtype.name()));
        }
    }
    let mut paired = Vec::new();
    for (at_index, tensor) in tensors.iter().enumerate() {
        let config = configs.iter().find(|c| c.name == tensor.name);
        if config.is_some() || configs.is_empty() {
            paired.push(Described { at: at_index, tensor, config });
        } else if all {
            return Err(at(0, format!("{what} {:?} of the model is not described", tensor.name)));
        }
    }
    Ok(paired)
}

fn at(line: u32, what: String) -> Fault {
    Fault::Config(ConfigError::at(line, what))
}

struct Resolver<'a> {
    name: &'a str,
    version: u16,
    path: PathBuf,
    file: &'a OnnxFile,
    config: &'a ModelConfig,
    inputs: Vec<Described<'a>>,
    outputs: Vec<Described<'a>>,
}

impl Resolver<'_> {
    /// Whether every input and output may have a batch dimension.
    fn all_first_dims_vary(&self) -> bool {
        self.inputs.iter().chain(&self.outputs).all(|d| {
            let dims = d.tensor.dims.as_deref();
            dims.is_none_or(|dims| dims.first().is_some_and(|first| first.fixed().is_none()))
        })
    }

    fn model(&self, max_batch: u16, asked: Asked) -> Result<Model> {
        let batched = max_batch > 0;
        let mut program_inputs = Vec::new();
        let mut inputs = Vec::new();
        for input in &self.inputs {
            let (graph, spec) = input_dims(input, batched)?;
            program_inputs.push(ProgramInput { dtype: input.tensor.dtype, dims: graph });
            inputs.push(TensorSpec { name: input.tensor.name.clone(), dtype: input.tensor.dtype, dims: spec });
        }
        let mut graph = self.file.graph.clone();
        let outlets: Vec<_> = self.outputs.iter().map(|o| graph.outputs[o.at]).collect();
        graph.select_output_outlets(&outlets).map_err(|e| Fault::File(format!("is not understood: {e:#}")))?;
        let program = Program::new(graph, program_inputs, batched);
        let found = self.found_outputs(&program, max_batch, asked)?;
        let outputs = self.outputs.iter().zip(found).map(|(output, found)| output_dims(output, found, batched, asked));
        let outputs = outputs.collect::<Result<Vec<TensorSpec>>>()?;
        let spec = self.spec(max_batch, asked, inputs, outputs)?;
        self.config.warmup.iter().try_for_each(|w| check_warmup(w, &spec))?;
        let reshapes = |tensors: &[Described<'_>]| tensors.iter().map(|d| d.config?.reshape.clone()).collect();
        Ok(Model {
            spec,
            file: self.path.clone(),
            program,
            input_rows: reshapes(&self.inputs),
            output_rows: reshapes(&self.outputs),
            warmup: self.config.warmup.clone(),
        })
    }

    /// Tries the model out: what its outputs look like, and whether it computes rows one by one.
    fn found_outputs(&self, program: &Program, max_batch: u16, asked: Asked) -> Result<Vec<Found>> {
        let general = || program.found_outputs();
        let trial = |rows: u32| shapes(program, max_batch > 0, rows, TRIAL_DIM);
        let fixed = program.inputs().iter().all(|i| i.dims[usize::from(max_batch > 0)..].iter().all(|d| d.fixed().is_some()));
        let failed = |e| Fault::File(format!("cannot be computed: {e}"));
        if max_batch == 0 {
            if fixed {
                return probe::unbatched(program, &trial(1)).map_err(failed);
            }
            probe::general(program, &trial(1));
            return Ok(general());
        }
        if max_batch == 1 {
            if fixed {
                program.exact(&trial(1)).map_err(failed)?;
            }
            return Ok(general());
        }
        let (found, independent) = match probe::batched(program, trial) {
            Ok(probed) if fixed => (probed.outputs, probed.independent),
            // The trial's sizes are not the model's own; only what it says of the batch holds.
            Ok(probed) => (with_batch_of(general(), probed.outputs), probed.independent),
            Err(_) if !fixed => (general(), None),
            Err(error) if asked == Asked::Plainly || program.exact(&trial(1)).is_err() => return Err(failed(error)),
            Err(_) => return Err(self.not_by_rows("two rows cannot be computed at once")),
        };
        if independent == Some(false) {
            if asked == Asked::ByDefault {
                return Err(self.not_by_rows("a row's results depend on the other rows"));
            }
            tracing::warn!(model = self.name, "a row's results depend on the other rows of its batch");
        }
        Ok(found)
    }

    fn not_by_rows(&self, why: &str) -> Fault {
        tracing::info!(model = self.name, why, "served without batching; max_batch_size in config.pbtxt overrules this");
        Fault::File(NOT_BY_ROWS.into())
    }

    fn spec(
        &self,
        max_batch: u16,
        asked: Asked,
        inputs: Vec<TensorSpec>,
        outputs: Vec<TensorSpec>,
    ) -> Result<ModelSpec> {
        let dynamic = self.config.dynamic_batching.as_ref();
        if let Some(dynamic) = dynamic {
            if max_batch == 0 {
                return Err(at(0, "dynamic_batching is asked for, but the model has no batch dimension".into()));
            }
            if let Some(size) = dynamic.batching.preferred.iter().find(|&&size| size > max_batch) {
                let what = format!("dynamic_batching.preferred_batch_size {size} exceeds the largest batch, {max_batch}");
                return Err(at(0, what));
            }
        }
        let by_default = BatchingSpec { max_queue_delay_us: 0, preferred: Vec::new(), max_queue: 0 };
        Ok(ModelSpec {
            name: self.name.to_owned(),
            version: self.version,
            max_batch,
            inputs,
            outputs,
            batching: dynamic.map(|d| d.batching.clone()).or((asked == Asked::ByDefault).then_some(by_default)),
            priority_levels: dynamic.map_or(0, |d| d.priority_levels),
            default_priority: dynamic.map_or(0, |d| d.default_priority),
            instances: self.config.instances.max(1),
            warmup_launches: 1,
        })
    }
}

/// An input's dimensions in the graph and on the wire.
fn input_dims(input: &Described<'_>, batched: bool) -> Result<(Vec<Dim>, Vec<Option<u32>>)> {
    let name = &input.tensor.name;
    let (batch, rows) = split(input, "input", batched)?;
    let Some(config) = input.config else {
        let rows = rows.ok_or_else(|| {
            Fault::File(format!("does not say what shape input {name:?} has; config.pbtxt can"))
        })?;
        let wire = batch.iter().map(|_| None).chain(rows.iter().map(Dim::fixed)).collect();
        return Ok((batch.into_iter().chain(rows).collect(), wire));
    };
    let wire = batch.iter().map(|_| None).chain(config.dims.iter().copied()).collect();
    let graph = graph_dims(config);
    let graph = match rows {
        Some(rows) => agree(config, "input", &graph, &rows)?,
        None => graph.iter().map(|d| d.map_or(Dim::Free, Dim::Fixed)).collect(),
    };
    Ok((batch.into_iter().chain(graph).collect(), wire))
}

/// A tensor's batch dimension, where it is to have one, and the others, where the file tells.
fn split(described: &Described<'_>, what: &str, batched: bool) -> Result<(Option<Dim>, Option<Vec<Dim>>)> {
    let dims = described.tensor.dims.clone();
    if !batched {
        return Ok((None, dims));
    }
    let Some(mut dims) = dims else { return Ok((Some(Dim::Free), None)) };
    let line = described.config.map_or(0, |c| c.line);
    let name = &described.tensor.name;
    if dims.is_empty() {
        return Err(at(line, format!("max_batch_size is above 0, but {what} {name:?} of the model is a scalar")));
    }
    match dims.remove(0) {
        Dim::Fixed(size) => {
            let what = format!("max_batch_size is above 0, but {what} {name:?} of the model has {size} as its first dimension");
            Err(at(line, what))
        }
        batch => Ok((Some(batch), Some(dims))),
    }
}

fn graph_dims(config: &TensorConfig) -> Vec<Option<u32>> {
    match &config.reshape {
        Some(shape) => shape.iter().map(|&d| Some(d)).collect(),
        None => config.dims.clone(),
    }
}

/// The file's dimensions, narrowed to what the configuration fixes.
fn agree(config: &TensorConfig, what: &str, wanted: &[Option<u32>], rows: &[Dim]) -> Result<Vec<Dim>> {
    let fits = wanted.len() == rows.len()
        && wanted.iter().zip(rows).all(|(wanted, dim)| dim.fixed().is_none_or(|size| *wanted == Some(size)));
    if !fits {
        let of_model: Vec<Option<u32>> = rows.iter().map(Dim::fixed).collect();
        let (here, there) = (shown(wanted), shown(&of_model));
        return Err(at(config.line, format!("{what} {:?} is {here} here and {there} in the model", config.name)));
    }
    let narrowed = wanted.iter().zip(rows).map(|(wanted, dim)| wanted.map_or_else(|| dim.clone(), Dim::Fixed));
    Ok(narrowed.collect())
}

/// What is served of an output, from what the file declares, what the configuration says and what was found.
fn output_dims(output: &Described<'_>, found: Found, batched: bool, asked: Asked) -> Result<TensorSpec> {
    let name = &output.tensor.name;
    if let (true, Some(found)) = (batched, &found)
        && matches!(found.first(), None | Some(FoundDim::Fixed(_) | FoundDim::Other))
    {
        let first = match found.first() {
            None => "a scalar".to_owned(),
            Some(FoundDim::Fixed(size)) => format!("{size} as the first dimension"),
            _ => "another first dimension".to_owned(),
        };
        return Err(if asked == Asked::ByDefault && !is_named(output) {
            Fault::File(NOT_BY_ROWS.into())
        } else {
            Fault::File(format!("declares a batch dimension, but computes {first} of output {name:?} whatever the batch"))
        });
    }
    let (_, rows) = split(output, "output", batched)?;
    let found = found.map(|mut dims| dims.split_off(usize::from(batched)));
    let graph: Vec<Option<u32>> = match (&output.config, rows, &found) {
        (Some(config), Some(rows), _) => {
            let agreed = agree(config, "output", &graph_dims(config), &rows)?;
            agreed.iter().map(Dim::fixed).collect()
        }
        (Some(config), None, _) => graph_dims(config),
        (None, Some(rows), _) => rows.iter().map(Dim::fixed).collect(),
        (None, None, Some(found)) => found.iter().map(|_| None).collect(),
        (None, None, None) => {
            return Err(Fault::File(format!("does not say what shape output {name:?} has; config.pbtxt can")));
        }
    };
    let graph = with_found(name, graph, found.as_deref())?;
    let row = match output.config {
        Some(config) if config.reshape.is_some() => config.dims.clone(),
        _ => graph,
    };
    let dims = batched.then_some(None).into_iter().chain(row).collect();
    Ok(TensorSpec { name: name.clone(), dtype: output.tensor.dtype, dims })
}

/// Whether the file gives an output's first dimension a name: then it is meant to be the batch's.
fn is_named(output: &Described<'_>) -> bool {
    matches!(output.tensor.dims.as_deref(), Some([Dim::Named(_), ..]))
}

fn with_found(name: &str, declared: Vec<Option<u32>>, found: Option<&[FoundDim]>) -> Result<Vec<Option<u32>>> {
    let Some(found) = found else { return Ok(declared) };
    let fixed: Vec<Option<u32>> =
        found.iter().map(|d| if let FoundDim::Fixed(size) = d { Some(*size) } else { None }).collect();
    let clash = |(declared, found): (&Option<u32>, &Option<u32>)| declared.is_some() && found.is_some() && declared != found;
    if declared.len() != found.len() || declared.iter().zip(&fixed).any(clash) {
        let (declared, fixed) = (shown(&declared), shown(&fixed));
        return Err(Fault::File(format!("declares output {name:?} as {declared}, but computes {fixed}")));
    }
    Ok(declared.iter().zip(fixed).map(|(declared, found)| declared.or(found)).collect())
}

/// The general findings, with the first dimensions that were found by trying.
fn with_batch_of(general: Vec<Found>, tried: Vec<Found>) -> Vec<Found> {
    let both = general.into_iter().zip(tried).map(|pair| match pair {
        (Some(mut general), Some(tried)) if general.len() == tried.len() => {
            if let (Some(general), Some(tried)) = (general.first_mut(), tried.first()) {
                *general = *tried;
            }
            Some(general)
        }
        (None, Some(tried)) => {
            let only_batch = |(axis, dim): (usize, FoundDim)| if axis == 0 { dim } else { FoundDim::Unknown };
            Some(tried.into_iter().enumerate().map(only_batch).collect())
        }
        (general, _) => general,
    });
    both.collect()
}

/// Dimensions of the program's inputs for so many rows, with a stand-in for what varies.
fn shapes(program: &Program, batched: bool, rows: u32, stand_in: u32) -> Shapes {
    let size = |(axis, dim): (usize, &Dim)| if batched && axis == 0 { rows } else { dim.fixed().unwrap_or(stand_in) };
    program.inputs().iter().map(|input| input.dims.iter().enumerate().map(size).collect()).collect()
}

fn check_warmup(warmup: &Warmup, spec: &ModelSpec) -> Result<()> {
    let wrong = |what: String| Err(at(warmup.line, format!("model_warmup {:?} {what}", warmup.name)));
    if warmup.batch_size > spec.max_batch.max(1) {
        return wrong(format!("has batch_size {}, where {} is the most", warmup.batch_size, spec.max_batch));
    }
    if let Some(extra) = warmup.inputs.iter().find(|i| spec.inputs.iter().all(|s| s.name != i.name)) {
        return wrong(format!("has input {:?}, which is not in the model", extra.name));
    }
    for input in &spec.inputs {
        let Some(given) = warmup.inputs.iter().find(|i| i.name == input.name) else {
            return wrong(format!("lacks input {:?}", input.name));
        };
        let row = spec.row_dims(input);
        let fits = given.dims.len() == row.len() && given.dims.iter().zip(row).all(|(g, d)| d.is_none_or(|d| d == *g));
        if given.dtype != input.dtype || !fits {
            return wrong(format!("does not fit input {:?}, which is {} {}", input.name, input.dtype.name(), shown(row)));
        }
    }
    Ok(())
}

fn shown(dims: &[Option<u32>]) -> String {
    let dims: Vec<String> = dims.iter().map(|d| d.map_or("-1".into(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}
