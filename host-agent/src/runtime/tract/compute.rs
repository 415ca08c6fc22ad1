//! Running a plan, and saying which node failed and whose fault that is.

use std::cell::Cell;
use std::sync::Arc;

use splitrpc_wire::Status;
use tract_onnx::prelude::{
    DatumType, SymbolValues, TDim, TValue, TVec, Tensor, TractResult, TypedNode, TypedRunnableModel,
};
use tract_onnx::tract_core::ops::array::{Gather, GatherElements, GatherNd, Range, ScatterElements, ScatterNd, Topk};
use tract_onnx::tract_core::ops::cast::Cast;

use crate::model::onnx::{brief, panic_text};
use crate::quiet::caught;
use crate::runtime::RuntimeError;

/// A graph made ready for certain shapes.
pub(crate) type Plan = Arc<TypedRunnableModel>;

/// Why a request was not computed: what its client is told.
#[derive(Debug)]
pub(crate) struct Failure {
    /// [`Status::BadTensor`] where the request's own values are at fault, else [`Status::ModelFailed`].
    pub(crate) status: Status,
    pub(crate) text: String,
}

impl From<RuntimeError> for Failure {
    fn from(RuntimeError(text): RuntimeError) -> Failure {
        Failure { status: Status::ModelFailed, text }
    }
}

impl From<Failure> for RuntimeError {
    fn from(failure: Failure) -> RuntimeError {
        RuntimeError(failure.text)
    }
}

/// Computes. Every run starts from a fresh state, so that nothing of one request is left for the next. `describe` gives the
/// words for a node, by its name and its operator.
pub(super) fn run(
    plan: &Plan,
    inputs: TVec<TValue>,
    describe: impl Fn(&str, &str) -> String,
) -> Result<TVec<TValue>, Failure> {
    // Here and not in the closure's state: a panic has to leave them behind.
    let (at, status) = (Cell::new(None), Cell::new(Status::ModelFailed));
    let outputs = guarded(|| {
        let run = plan.spawn().and_then(|mut state| {
            state.run_plan_with_eval(inputs, |context, op_state, node, inputs| {
                at.set(Some(node.id));
                if let Some(why) = astray(node, &inputs, context.symbols)?.or_else(|| oversized(node, context.symbols))
                {
                    status.set(Status::BadTensor);
                    return Err(anyhow::anyhow!(why));
                }
                match op_state {
                    Some(op_state) => op_state.eval(context, node.op(), inputs),
                    None => node.op().eval(context, inputs),
                }
            })
        });
        run.map_err(|e| format!("{e:#}"))
    });
    outputs.map_err(|error| {
        let node = at.get().map(|id| plan.model().node(id));
        let node = node.map(|node| format!("{}: ", describe(&node.name, &node.op().name())));
        Failure { status: status.get(), text: brief(&format!("{}{error}", node.unwrap_or_default())) }
    })
}

/// Turns a panic inside tract into an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // tract's plans and graphs are only read inside, and what was being made is dropped.
    caught(work).unwrap_or_else(|panic| Err(panic_text(&*panic)))
}

/// Bytes of a range, whose length follows from a request's values.
const MOST_BY_VALUE: u64 = 64 << 20;
/// Bytes of any tensor, whatever its size follows from. One with more could not be sent either.
const MOST: u64 = u32::MAX as u64;

/// Says which index points past what it is an index into, or that more values are wanted than there are. tract itself notices
/// only where an index lies past the whole tensor, for some ways of keeping a tensor not even then, and makes values up.
fn astray(node: &TypedNode, inputs: &[TValue], sizes: &SymbolValues) -> TractResult<Option<String>> {
    if let (Some(op), [data, k]) = (node.op_as::<Topk>(), inputs) {
        let k = k.cast_to_scalar::<i64>()?;
        let size = data.shape().get(op.axis).copied().unwrap_or(0);
        let fits = usize::try_from(k).is_ok_and(|k| k <= size);
        return Ok((!fits).then(|| format!("k is {k}, and there are {size} values")));
    }
    if let (true, [start, limit, delta]) = (node.op_is::<Range>(), inputs) {
        return too_long(start, limit, delta, sizes);
    }
    if let (true, [value]) = (node.op_as::<Cast>().is_some_and(|op| op.to.is_tdim()), inputs) {
        return not_a_size(value);
    }
    // For each operator: the axis at which its indexes point, or the first of the axes, and whether one may count from the end.
    let (axis, each, from_end) = if let Some(op) = node.op_as::<Gather>() {
        (op.axis, false, true)
    } else if let Some(op) = node.op_as::<GatherElements>() {
        (op.axis, false, true)
    } else if let Some(op) = node.op_as::<ScatterElements>() {
        (op.axis, false, true)
    } else if let Some(op) = node.op_as::<GatherNd>() {
        (op.batch_dims, true, false)
    } else if node.op_is::<ScatterNd>() {
        (0, true, false)
    } else {
        return Ok(None);
    };
    let [data, indexes, ..] = inputs else { return Ok(None) };
    let indexes = indexes.cast_to_dt(DatumType::I64)?;
    let indexes = indexes.to_plain_array_view::<i64>()?;
    let coordinates = if each { indexes.shape().last().copied().unwrap_or(1).max(1) } else { 1 };
    for (place, &index) in indexes.iter().enumerate() {
        let size = data.shape().get(axis + place % coordinates).copied().unwrap_or(0);
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        // What is packed for multiplication is not read from its end.
        let least = if from_end && data.is_plain_ram() { -size } else { 0 };
        if !(least..size).contains(&index) {
            return Ok(Some(format!("index {index} is outside of {least} to {}", size - 1)));
        }
    }
    Ok(None)
}

/// Says which value is put beside sizes and is none: tract keeps 32 bits of it.
fn not_a_size(value: &Tensor) -> TractResult<Option<String>> {
    if value.datum_type().is_tdim() {
        return Ok(None);
    }
    let values = value.cast_to_dt(DatumType::I64)?;
    let values = values.to_plain_array_view::<i64>()?;
    let wrong = values.iter().find(|&&value| i32::try_from(value).is_err());
    Ok(wrong.map(|value| format!("{value} is put beside sizes, which have at most 32 bits")))
}

/// Says so where a range is not one, or is longer than may be.
fn too_long(start: &Tensor, limit: &Tensor, delta: &Tensor, sizes: &SymbolValues) -> TractResult<Option<String>> {
    let size = start.datum_type().size_of() as u64;
    let [start, limit, delta] = [start, limit, delta].map(|value| scalar(value, sizes));
    let (start, limit, delta) = (start?, limit?, delta?);
    let values = ((limit - start) / delta).ceil();
    let most = MOST_BY_VALUE / size;
    Ok(if delta == 0.0 || values.is_nan() {
        Some(format!("there are no values from {start} to {limit} in steps of {delta}"))
    } else if values > most as f64 {
        Some(format!("there are {values} values from {start} to {limit} in steps of {delta}, where {most} may be"))
    } else {
        None
    })
}

/// A number that may be a size, which may follow from those of the inputs.
fn scalar(value: &Tensor, sizes: &SymbolValues) -> TractResult<f64> {
    if !value.datum_type().is_tdim() {
        return value.cast_to_scalar::<f64>();
    }
    let value = value.to_plain_array_view::<TDim>()?;
    let value = value.first().ok_or_else(|| anyhow::anyhow!("a bound of no value"))?;
    Ok(value.eval(sizes).to_i64()? as f64)
}

/// Says which tensor a node would make that is larger than any may be.
fn oversized(node: &TypedNode, sizes: &SymbolValues) -> Option<String> {
    node.outputs.iter().find_map(|output| {
        let dims = output.fact.shape.eval_to_usize(sizes).ok()?;
        let size = output.fact.datum_type.size_of() as u64;
        let bytes = dims.iter().try_fold(size, |bytes, &dim| bytes.checked_mul(dim as u64));
        let fits = dims.contains(&0) || bytes.is_some_and(|bytes| bytes <= MOST);
        (!fits).then(|| format!("a tensor of {dims:?} with {size} bytes each would have 4 GiB or more"))
    })
}
