//! Putting together what a file, its configuration and tract say about a model, or saying where they disagree.

use std::path::PathBuf;
use std::sync::Arc;

use super::config_pbtxt::{ConfigError, ModelConfig, TensorConfig, Warmup};
use super::onnx::{Dim, GraphTensor, OnnxFile};
use super::spec::{BatchingSpec, ModelSpec, TensorSpec, least_request_bytes};
use crate::config::MOST_REQUEST_BYTES;
use crate::runtime::tract::program::{Found, FoundDim, Program, ProgramInput, Shapes};
use crate::runtime::tract::{Model, probe};

mod dims;

use dims::{input_dims, output_dims, shown, with_batch_of};

/// Largest batch of a model whose file has a batch dimension and whose configuration says nothing; Triton's default.
pub const DEFAULT_MAX_BATCH: u16 = 4;

/// What varying dimensions are taken to be, one after the other, until the model can be tried out.
const TRIAL_DIMS: [u32; 5] = [8, 3, 64, 224, 1];

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
    if let Some(line) = config.gpu_line {
        return Err(at(
            line,
            "instance_group.kind KIND_GPU is not supported for ONNX, which is computed on the CPU".into(),
        ));
    }
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
    /// Whether every input and output may have a batch dimension. Inputs that call their first dimensions by different
    /// names have none in common.
    fn all_first_dims_vary(&self) -> bool {
        let mut names = self.inputs.iter().filter_map(|d| match d.tensor.dims.as_deref() {
            Some([Dim::Named(name), ..]) => Some(name),
            _ => None,
        });
        let one_name = names.next().is_none_or(|first| names.all(|name| name == first));
        one_name
            && self.inputs.iter().chain(&self.outputs).all(|d| {
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
        // Before anything so large is tried out.
        let least = least_request_bytes(&inputs, batched);
        if least > u64::from(MOST_REQUEST_BYTES) {
            return Err(Fault::File(format!(
                "takes {least} bytes or more in a request, where limits.max_request_bytes allows {MOST_REQUEST_BYTES} at most"
            )));
        }
        let mut graph = self.file.graph.clone();
        let outlets: Vec<_> = self.outputs.iter().map(|o| graph.outputs[o.at]).collect();
        graph.select_output_outlets(&outlets).map_err(|e| Fault::File(format!("is not understood: {e:#}")))?;
        let program = Program::new(graph, Arc::clone(&self.file.operators), program_inputs, batched);
        program.check().map_err(|e| Fault::File(format!("cannot be computed: {e}")))?;
        let (found, exact) = self.found_outputs(&program, max_batch, asked)?;
        let outputs = self.outputs.iter().zip(found).map(|(output, found)| {
            let meant = asked == Asked::Plainly || self.bears_batch_name(output);
            output_dims(output, found, exact, batched, meant)
        });
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

    /// Tries the model out: what its outputs look like, and whether it computes rows one by one. The flag says that the
    /// outputs were found with the sizes that the model will always have.
    fn found_outputs(&self, program: &Program, max_batch: u16, asked: Asked) -> Result<(Vec<Found>, bool)> {
        let batched = max_batch > 0;
        let rows = |input: &ProgramInput| input.dims[usize::from(batched)..].iter().all(|d| d.fixed().is_some());
        let fixed = program.inputs().iter().all(rows);
        let trials = if fixed { &TRIAL_DIMS[..1] } else { &TRIAL_DIMS };
        let failed = |e| Fault::File(format!("cannot be computed: {e}"));
        if max_batch <= 1 {
            let mut tried = Ok(Vec::new());
            for &size in trials {
                tried = probe::unbatched(program, &shapes(program, batched, 1, size));
                if tried.is_ok() {
                    break;
                }
            }
            return match tried {
                Err(error) if fixed => Err(failed(error)),
                Ok(found) if fixed && !batched => Ok((found, true)),
                _ => Ok((program.found_outputs(), false)),
            };
        }
        for &size in trials {
            let error = match probe::batched(program, |rows| shapes(program, true, rows, size)) {
                Ok(probed) => return self.judge(program, probed, fixed, asked),
                Err(error) => error,
            };
            let one = program.exact(&shapes(program, true, 1, size));
            match asked {
                Asked::ByDefault if one.is_ok() => return Err(self.not_by_rows("two rows cannot be computed at once")),
                Asked::Plainly if one.is_ok() => return Err(failed(error)),
                _ if fixed => return Err(failed(error)),
                _ => {}
            }
        }
        if asked == Asked::ByDefault {
            return Err(self.not_by_rows("whether its rows are independent cannot be found out"));
        }
        Ok((program.found_outputs(), false))
    }

    fn judge(&self, program: &Program, probed: probe::Probed, fixed: bool, asked: Asked) -> Result<(Vec<Found>, bool)> {
        if probed.independent == Some(false) {
            if asked == Asked::ByDefault && !self.names_batch_of_another_size(&probed.outputs) {
                return Err(self.not_by_rows("a row's results depend on the other rows"));
            }
            tracing::warn!(model = self.name, "a row's results depend on the other rows of its batch");
        }
        // A trial's sizes are not the model's own; then only what it says of the batch holds.
        let found = if fixed { probed.outputs } else { with_batch_of(program.found_outputs(), probed.outputs) };
        Ok((found, fixed))
    }

    /// Whether the file says of an output that it has the batch dimension, by its name, and it has not.
    fn names_batch_of_another_size(&self, found: &[Found]) -> bool {
        self.outputs.iter().zip(found).any(|(output, found)| {
            self.bears_batch_name(output) && found.as_ref().is_some_and(|dims| dims.first() != Some(&FoundDim::Batch))
        })
    }

    /// Whether an output's first dimension has the name that an input's first dimension has.
    fn bears_batch_name(&self, output: &Described<'_>) -> bool {
        fn first<'d>(described: &'d Described<'_>) -> Option<&'d Dim> {
            described.tensor.dims.as_deref()?.first().filter(|dim| matches!(dim, Dim::Named(_)))
        }
        first(output).is_some_and(|name| self.inputs.iter().any(|input| first(input) == Some(name)))
    }

    fn not_by_rows(&self, why: &str) -> Fault {
        tracing::info!(
            model = self.name,
            why,
            "served without batching; max_batch_size in config.pbtxt overrules this"
        );
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
                let what =
                    format!("dynamic_batching.preferred_batch_size {size} exceeds the largest batch, {max_batch}");
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
            return wrong(format!(
                "does not fit input {:?}, which is {} {}",
                input.name,
                input.dtype.name(),
                shown(row)
            ));
        }
    }
    Ok(())
}
