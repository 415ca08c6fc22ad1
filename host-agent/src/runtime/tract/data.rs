//! Tensors as tract has them, and the way between them and the slots.

use std::sync::Arc;

use splitrpc_arena::Arena;
use splitrpc_wire::DType;
use tract_onnx::prelude::{DatumType, TValue, TVec, Tensor};

use super::program::datum_type;
use super::{Prepared, fail};
use crate::model::onnx::brief;
use crate::model::spec::{ModelSpec, TensorSpec};
use crate::runtime::{Batch, BatchItem, RuntimeError};

/// Copies the items' inputs, one after the other, into the tensors prepared for them.
pub(super) fn copy_in(
    prepared: &mut Prepared,
    arena: &Arena,
    batch: &Batch,
    items: &[BatchItem],
) -> Result<u64, RuntimeError> {
    let mut copied = 0;
    for (t, input) in prepared.inputs.iter_mut().enumerate() {
        if Arc::get_mut(input).is_none() {
            // Something still holds the last launch's; leave it to them.
            *input = Arc::new(Tensor::zero_dt(input.datum_type(), input.shape()).map_err(words)?);
        }
        let Some(tensor) = Arc::get_mut(input) else { return fail("an input tensor is shared") };
        let is_bool = tensor.datum_type() == DatumType::Bool;
        let mut room = tensor.as_bytes_mut();
        for item in items {
            let bytes = batch.tensors(item).get(t).map_or(0, |d| d.bytes);
            let (part, rest) =
                room.split_at_mut_checked(bytes as usize).ok_or_else(|| RuntimeError("inputs do not add up".into()))?;
            if bytes > 0 {
                let span = arena.span(item.input, t as u16, 0, bytes);
                span.ok_or_else(|| RuntimeError("an input exceeds its slot".into()))?.copy_to(part);
            }
            if is_bool {
                // A client's bytes are not to be trusted to be 0 or 1, and nothing else is a bool.
                part.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
            }
            copied += u64::from(bytes);
            room = rest;
        }
        if !room.is_empty() {
            return fail("inputs do not add up");
        }
    }
    Ok(copied)
}

/// An output in the type that the model declares. tract computes shapes in a type of its own.
pub(super) fn plain(output: &TValue, declared: &TensorSpec) -> Result<TValue, RuntimeError> {
    let wanted = datum_type(declared.dtype);
    let is = output.datum_type().unquantized();
    if is == DatumType::TDim {
        return Ok(output.cast_to_dt(wanted).map_err(words)?.into_owned().into());
    }
    if is != wanted || !output.is_plain_ram() {
        return fail(format!(
            "output {:?} came as {is:?}, where {} was declared",
            declared.name,
            declared.dtype.name()
        ));
    }
    Ok(output.clone())
}

/// An item's dimensions on the wire of an output that the graph computed for the whole batch.
pub(super) fn wire_dims(
    spec: &ModelSpec,
    declared: &TensorSpec,
    graph_row: Option<&[u32]>,
    computed: &[usize],
    rows: u32,
    item_rows: u16,
) -> Result<TVec<u32>, RuntimeError> {
    let wrong = || {
        let batch = if spec.max_batch > 0 { format!(" for a batch of {rows}") } else { String::new() };
        RuntimeError(format!(
            "output {:?} came with shape {computed:?}{batch}, which is not what it declares",
            declared.name
        ))
    };
    let row = if spec.max_batch > 0 {
        let (&first, row) = computed.split_first().ok_or_else(wrong)?;
        if first != rows as usize {
            return Err(wrong());
        }
        row
    } else {
        computed
    };
    let mut dims = TVec::new();
    if spec.max_batch > 0 {
        dims.push(item_rows.into());
    }
    let row_dims = spec.row_dims(declared);
    if let Some(graph_row) = graph_row {
        if !graph_row.iter().map(|&d| d as usize).eq(row.iter().copied()) {
            return Err(wrong());
        }
        // A reshape is accepted only between fixed dimensions.
        dims.extend(row_dims.iter().map(|d| d.unwrap_or(0)));
        return Ok(dims);
    }
    if row.len() != row_dims.len() {
        return Err(wrong());
    }
    for (&computed, declared) in row.iter().zip(row_dims) {
        let computed = u32::try_from(computed).map_err(|_| wrong())?;
        if declared.is_some_and(|declared| declared != computed) {
            return Err(wrong());
        }
        dims.push(computed);
    }
    Ok(dims)
}

/// Bytes of a tensor, or `None` past `u64`.
pub(super) fn bytes_of(shape: &[u32], dtype: DType) -> Option<u64> {
    shape.iter().try_fold(u64::from(dtype.size()?), |n, &d| n.checked_mul(d.into()))
}

/// A tensor of zeroes.
pub(super) fn tensor(dtype: DType, shape: &[u32]) -> Result<Tensor, RuntimeError> {
    let shape: TVec<usize> = shape.iter().map(|&d| d as usize).collect();
    Tensor::zero_dt(datum_type(dtype), &shape).map_err(words)
}

pub(super) fn words(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError(brief(&format!("{error:#}")))
}
