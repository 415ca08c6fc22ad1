//! How the models' tensors are laid out: which pools there are, and which belong to whom.

use splitrpc_arena::{LayoutError, MAX_ARENA_BYTES, PoolLayout};
use splitrpc_engine::{InputPlan, ModelPlan};
use splitrpc_wire::catalog::{TensorInfo, write_model};
use splitrpc_wire::manifest::{MANIFEST_ENTRY_LEN, MANIFEST_HEAD_LEN};
use splitrpc_wire::{MAX_RANK, WireError};

use crate::config::Limits;
use crate::model::spec::{ModelSpec, TensorSpec};

/// Smallest size class of models whose inputs vary in size; the next ones are sixteen times as large each up to 1 MiB,
/// then four times, then twice.
const CLASSES: [u32; 4] = [4 << 10, 64 << 10, 1 << 20, 4 << 20];
/// Slots that even the largest class has.
const FEW: u32 = 4;

/// The pools of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPools {
    /// Input pools, smallest class first; a model whose inputs have a fixed size has one.
    pub inputs: Vec<u16>,
    /// The output pool, where the outputs' sizes are known beforehand.
    pub output: Option<u16>,
    /// Output pools, smallest class first, for outputs of other sizes, where these cannot be sent from the runtime's own memory.
    pub owned: Vec<u16>,
}

/// The pools of one shard. Ids ascend: first all inputs, then all outputs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Allocated by the engine.
    pub inputs: Vec<(u16, PoolLayout)>,
    /// Allocated by the orchestrator.
    pub outputs: Vec<(u16, PoolLayout)>,
    /// By model handle.
    pub models: Vec<ModelPools>,
}

impl Plan {
    /// The pools for these models, whose handles are their places.
    ///
    /// # Errors
    /// [`PlanError`] naming the model whose tensors do not fit.
    pub fn new<'s>(specs: impl IntoIterator<Item = &'s ModelSpec>, limits: &Limits) -> Result<Plan, PlanError> {
        let specs: Vec<&ModelSpec> = specs.into_iter().collect();
        let mut plan = Plan { inputs: Vec::new(), outputs: Vec::new(), models: Vec::new() };
        for spec in &specs {
            check_size(spec, limits)?;
            let mut inputs = Vec::new();
            for layout in input_layouts(spec, limits)? {
                inputs.push(plan.inputs.len() as u16);
                plan.inputs.push((plan.inputs.len() as u16, layout));
            }
            plan.models.push(ModelPools { inputs, output: None, owned: Vec::new() });
        }
        for (spec, pools) in specs.iter().zip(&mut plan.models) {
            let Some(row) = row_bytes(spec, &spec.outputs) else { continue };
            // Outputs larger than a request may be are left to the runtime's own memory.
            if row.iter().map(|b| u64::from(*b)).sum::<u64>() > u64::from(limits.max_request_bytes) {
                continue;
            }
            // Replies stay in their slots while they are sent, and for duplicates.
            let slots = limits.slots_per_model.saturating_add(limits.kept_replies);
            let id = (plan.inputs.len() + plan.outputs.len()) as u16;
            plan.outputs.push((id, layout(spec, ("output", &spec.outputs), &row, slots, limits)?));
            pools.output = Some(id);
        }
        plan.check_bytes(&specs)?;
        Ok(plan)
    }

    /// The same with slots for all outputs, those too whose sizes are not known beforehand: a card cannot reach the runtimes' own memory.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn with_all_in_slots<'s>(
        mut self,
        specs: impl IntoIterator<Item = &'s ModelSpec>,
        limits: &Limits,
    ) -> Result<Plan, PlanError> {
        let specs: Vec<&ModelSpec> = specs.into_iter().collect();
        for (spec, pools) in specs.iter().zip(&mut self.models).filter(|(_, pools)| pools.output.is_none()) {
            for class in classes(limits) {
                let id = (self.inputs.len() + self.outputs.len()) as u16;
                let row = vec![class; spec.outputs.len()];
                let layout = layout(spec, ("output", &spec.outputs), &row, limits.external_outputs.max(FEW), limits)?;
                self.outputs.push((id, layout));
                pools.owned.push(id);
            }
        }
        self.check_bytes(&specs)?;
        Ok(self)
    }

    fn check_bytes(&self, specs: &[&ModelSpec]) -> Result<(), PlanError> {
        // No pool has more than 2^48 bytes, and no plan more than 2^16 pools.
        let bytes = self.all().iter().map(|(_, layout)| layout.bytes()).sum();
        if bytes > MAX_ARENA_BYTES {
            return Err(PlanError::TooMuch { models: specs.iter().map(|s| s.name.clone()).collect(), bytes });
        }
        Ok(())
    }

    /// All pools, ids ascending.
    #[must_use]
    pub fn all(&self) -> Vec<(u16, PoolLayout)> {
        self.inputs.iter().chain(&self.outputs).copied().collect()
    }
}

/// A model whose tensors cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// They fit no pool.
    #[error("model {model}: {error}")]
    Layout {
        /// Its name.
        model: String,
        /// Why.
        error: LayoutError,
    },
    /// A full batch of one tensor cannot be addressed.
    #[error(
        "model {model}: {rows} rows (max_batch_size) of {what} {tensor:?}, {bytes} bytes each{}, are more than a batch can \
         have, 4294967295 bytes: lower max_batch_size to {most}{}",
        if *.varies { " (its size varies, up to limits.max_request_bytes)" } else { "" },
        if *.varies { ", or lower limits.max_request_bytes" } else { "" }
    )]
    Window {
        /// Its name.
        model: String,
        /// Input or output.
        what: &'static str,
        /// The tensor's name.
        tensor: String,
        /// Bytes of one row.
        bytes: u32,
        /// Rows of a batch.
        rows: u16,
        /// Rows that fit.
        most: u32,
        /// Whether rows differ in size.
        varies: bool,
    },
    /// There are not so many addresses.
    #[error(
        "requests of {} may take {bytes} bytes, and there is room for {MAX_ARENA_BYTES}: lower limits.class_bytes, \
         limits.slots_per_model, limits.max_request_bytes, or max_batch_size of the models",
        .models.join(", ")
    )]
    TooMuch {
        /// The models.
        models: Vec<String>,
        /// What they would take.
        bytes: u64,
    },
    /// No request could ever be taken.
    #[error("model {model}: its smallest request has {bytes} bytes, and limits.max_request_bytes is {limit}")]
    TooLarge {
        /// Its name.
        model: String,
        /// Bytes of the smallest request, manifest included.
        bytes: u64,
        /// The limit.
        limit: u32,
    },
}

/// A model that no request fits is not worth serving.
fn check_size(spec: &ModelSpec, limits: &Limits) -> Result<(), PlanError> {
    let entry = |t: &TensorSpec| MANIFEST_ENTRY_LEN + 4 * t.dims.len();
    let manifest = MANIFEST_HEAD_LEN + spec.inputs.iter().map(entry).sum::<usize>();
    let bytes = spec.least_request_bytes().saturating_add(manifest as u64);
    let limit = limits.max_request_bytes;
    match bytes <= u64::from(limit) {
        true => Ok(()),
        false => Err(PlanError::TooLarge { model: spec.name.clone(), bytes, limit }),
    }
}

/// Bytes of one row of each tensor, where all are known.
fn row_bytes(spec: &ModelSpec, tensors: &[TensorSpec]) -> Option<Vec<u32>> {
    tensors.iter().map(|t| spec.row_bytes(t)).collect()
}

fn input_layouts(spec: &ModelSpec, limits: &Limits) -> Result<Vec<PoolLayout>, PlanError> {
    if let Some(row) = row_bytes(spec, &spec.inputs) {
        return Ok(vec![layout(spec, ("input", &spec.inputs), &row, limits.slots_per_model, limits)?]);
    }
    classes(limits)
        .into_iter()
        .map(|class| {
            // A tensor of fixed size takes that; the others may each be as large as the whole class.
            let row: Vec<u32> = spec.inputs.iter().map(|t| spec.row_bytes(t).unwrap_or(class)).collect();
            layout(spec, ("input", &spec.inputs), &row, limits.slots_per_model, limits)
        })
        .collect()
}

/// Bytes of the size classes, smallest first.
fn classes(limits: &Limits) -> Vec<u32> {
    let mut classes: Vec<u32> = CLASSES.into_iter().filter(|c| *c < limits.max_request_bytes).collect();
    while let Some(next) = classes.last().and_then(|c| c.checked_mul(2)) {
        if classes.len() < CLASSES.len() || next >= limits.max_request_bytes {
            break;
        }
        classes.push(next);
    }
    classes.push(limits.max_request_bytes.next_multiple_of(4096));
    classes
}

/// The pool of a model's inputs or outputs, `row` being the bytes of a row of each.
fn layout(
    spec: &ModelSpec,
    (what, tensors): (&'static str, &[TensorSpec]),
    row: &[u32],
    slots: u32,
    limits: &Limits,
) -> Result<PoolLayout, PlanError> {
    let max_batch = spec.max_batch.max(1);
    if let Some((tensor, &bytes)) = tensors.iter().zip(row).find(|(_, b)| b.checked_mul(max_batch.into()).is_none()) {
        return Err(PlanError::Window {
            model: spec.name.clone(),
            what,
            tensor: tensor.name.clone(),
            bytes,
            rows: max_batch,
            most: u32::MAX / bytes,
            varies: spec.row_bytes(tensor).is_none(),
        });
    }
    let row_total = row.iter().map(|b| u64::from(*b)).sum::<u64>().max(1);
    let fit = u32::try_from(limits.class_bytes / row_total).unwrap_or(u32::MAX);
    let slots = slots.min(fit.max(FEW));
    // A second window, so that one batch can gather while another is computed.
    let windows = slots.div_ceil(u32::from(max_batch)).max(2);
    PoolLayout::new(row, max_batch, windows).map_err(|error| PlanError::Layout { model: spec.name.clone(), error })
}

/// What the engine needs to know of a model, owned.
#[derive(Clone, Debug)]
pub struct EngineModel {
    inputs: Vec<InputPlan>,
    classes: Vec<u16>,
    max_batch: u16,
    priority_levels: u8,
    default_priority: u8,
}

impl EngineModel {
    /// Of a model with these pools.
    #[must_use]
    pub fn new(spec: &ModelSpec, pools: &ModelPools) -> EngineModel {
        let inputs = spec.inputs.iter().map(|t| {
            let dims = wire_dims(t);
            let mut plan = InputPlan { dtype: t.dtype, dims: [0; MAX_RANK], rank: dims.len() as u8 };
            plan.dims[..dims.len()].copy_from_slice(&dims);
            plan
        });
        EngineModel {
            inputs: inputs.collect(),
            classes: pools.inputs.clone(),
            max_batch: spec.max_batch,
            priority_levels: spec.priority_levels,
            default_priority: spec.default_priority,
        }
    }

    /// As the engine borrows it.
    #[must_use]
    pub fn plan(&self) -> ModelPlan<'_> {
        ModelPlan {
            inputs: &self.inputs,
            max_batch: self.max_batch,
            priority_levels: self.priority_levels,
            default_priority: self.default_priority,
            classes: &self.classes,
        }
    }
}

/// Dimensions as the wire has them: -1 varies. Models with more than [`MAX_RANK`] are refused when they are loaded.
fn wire_dims(tensor: &TensorSpec) -> Vec<i32> {
    tensor.dims.iter().take(MAX_RANK).map(|d| d.and_then(|d| i32::try_from(d).ok()).unwrap_or(-1)).collect()
}

/// The catalogue of these models, whose handles are their places.
///
/// # Errors
/// The rule of the catalogue's format that a model breaks, with the model's name.
pub fn catalog<'s>(specs: impl IntoIterator<Item = &'s ModelSpec>) -> Result<Vec<u8>, (String, WireError)> {
    let mut catalog = Vec::new();
    // A record's length has 16 bits.
    let mut record = vec![0; 1 << 16];
    for (handle, spec) in specs.into_iter().enumerate() {
        let refuse = |error| (spec.name.clone(), error);
        let infos = |tensors: &'s [TensorSpec]| -> Result<Vec<TensorInfo<'s>>, WireError> {
            tensors.iter().map(|t| TensorInfo::new(&t.name, t.dtype, &wire_dims(t))).collect()
        };
        let inputs = infos(&spec.inputs).map_err(refuse)?;
        let outputs = infos(&spec.outputs).map_err(refuse)?;
        let len = write_model(&mut record, handle as u16, &spec.name, spec.version, spec.max_batch, &inputs, &outputs)
            .map_err(refuse)?;
        catalog.extend_from_slice(&record[..len]);
    }
    Ok(catalog)
}

#[cfg(test)]
mod tests {
    use splitrpc_wire::DType;
    use splitrpc_wire::catalog::Catalog;

    use super::*;

    fn spec(max_batch: u16, input: &[Option<u32>], output: &[Option<u32>]) -> ModelSpec {
        let tensor = |name: &str, dims: &[Option<u32>]| TensorSpec {
            name: name.into(),
            dtype: DType::Fp32,
            dims: dims.to_vec(),
        };
        ModelSpec {
            name: "m".into(),
            version: 3,
            max_batch,
            inputs: vec![tensor("IN", input)],
            outputs: vec![tensor("OUT", output)],
            batching: None,
            priority_levels: 0,
            default_priority: 0,
            instances: 1,
            warmup_launches: 0,
        }
    }

    #[test]
    fn inputs_come_first_and_fixed_models_have_one_class() {
        let specs = [spec(8, &[None, Some(4)], &[None, Some(2)]), spec(0, &[None], &[None])];
        let limits = Limits { slots_per_model: 20, max_request_bytes: 20 << 20, ..Limits::default() };
        let plan = Plan::new(&specs, &limits).unwrap();
        let ids: Vec<u16> = plan.all().iter().map(|p| p.0).collect();
        assert_eq!(ids, (0..ids.len() as u16).collect::<Vec<_>>());
        assert_eq!(
            plan.models[0],
            ModelPools { inputs: vec![0], output: Some(plan.inputs.len() as u16), owned: vec![] }
        );
        assert_eq!(plan.inputs[0].1, PoolLayout::new(&[16], 8, 3).unwrap());
        assert_eq!(plan.models[1].output, None);
        let classes: Vec<u32> =
            plan.models[1].inputs.iter().map(|id| plan.inputs[usize::from(*id)].1.all_row_bytes()[0]).collect();
        assert_eq!(classes, [4 << 10, 64 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20, 20 << 20]);
    }

    #[test]
    fn larger_slots_are_fewer_but_there_are_always_some() {
        let limits = Limits { class_bytes: 8 << 20, ..Limits::default() };
        let plan = Plan::new(&[spec(0, &[None], &[None])], &limits).unwrap();
        let slots: Vec<u32> = plan.inputs.iter().map(|p| p.1.slots()).collect();
        assert!(slots.is_sorted_by(|a, b| a >= b), "{slots:?}");
        assert_eq!((slots[0], slots[slots.len() - 1]), (256, FEW));
    }

    #[test]
    fn a_model_that_no_request_fits_is_refused_with_the_limit() {
        let limits = Limits { max_request_bytes: 4096, ..Limits::default() };
        let plan = |input: &[Option<u32>], max_batch| Plan::new(&[spec(max_batch, input, &[None])], &limits);
        // 8 bytes of head and 12 or 16 of the only entry are the manifest.
        assert!(plan(&[Some(1019)], 0).is_ok());
        let error = plan(&[Some(1020)], 0).unwrap_err();
        assert_eq!(error, PlanError::TooLarge { model: "m".into(), bytes: 4100, limit: 4096 });
        assert!(error.to_string().contains("limits.max_request_bytes is 4096"), "{error}");
        // One row of several is enough; what varies may be nothing.
        assert!(plan(&[None, Some(1018)], 4).is_ok());
        assert!(plan(&[None, Some(1019)], 4).is_err());
        assert!(plan(&[None, Some(1 << 20)], 0).is_ok());
        // More than 32 bits, and than 64.
        assert!(plan(&[Some(3_500_000_000)], 0).is_err());
        assert!(plan(&[Some(u32::MAX); 4], 0).is_err());
    }

    #[test]
    fn a_batch_that_cannot_be_addressed_is_refused_with_what_to_lower() {
        let plan = |max_batch, input: &[Option<u32>], output: &[Option<u32>]| {
            Plan::new(&[spec(max_batch, input, output)], &Limits::default()).map_err(|e| e.to_string())
        };
        // 64 MB a row.
        let large = [None, Some(16_000_000)];
        assert!(plan(67, &large, &[None]).is_ok());
        let said = plan(68, &large, &[None]).unwrap_err();
        for part in ["model m: 68 rows", "input \"IN\", 64000000 bytes each,", "max_batch_size to 67"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!said.contains("limits."), "{said}");
        let said = plan(68, &[None, Some(1)], &large).unwrap_err();
        assert!(said.contains("output \"OUT\""), "{said}");
        let said = plan(64, &[None, None], &[None]).unwrap_err();
        assert!(said.contains("to 63, or lower limits.max_request_bytes"), "{said}");
    }

    #[test]
    fn more_memory_than_there_are_addresses_is_refused_with_what_to_lower() {
        let limits = Limits { class_bytes: u64::MAX, slots_per_model: 1 << 20, ..Limits::default() };
        let said = Plan::new(&[spec(0, &[None], &[None])], &limits).unwrap_err().to_string();
        assert!(said.starts_with("requests of m may take ") && said.contains("limits.class_bytes"), "{said}");
    }

    #[test]
    fn the_catalogue_says_what_the_models_say() {
        let specs = [spec(8, &[None, Some(4)], &[None, Some(2)])];
        let bytes = catalog(&specs).unwrap();
        let model = Catalog::new(&bytes).next().unwrap().unwrap();
        assert_eq!((model.handle, model.name, model.version, model.max_batch), (0, "m", 3, 8));
        assert_eq!(model.inputs().next().unwrap().dims(), [-1, 4]);
        assert_eq!(model.outputs().next().unwrap().name, "OUT");
    }
}
