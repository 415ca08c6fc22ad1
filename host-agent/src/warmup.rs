//! First launches, made before a model is called ready, so that no client pays for them.

use splitrpc_arena::{Arena, PoolLayout};
use splitrpc_ring::Run;
use splitrpc_wire::{DType, Shape, TensorDesc};

use crate::model::spec::{ModelSpec, TensorSpec};
use crate::runtime::{Batch, Output, RuntimeError};
use crate::worker::Job;

/// Has `run` launch the model with values made up: one row, and where it batches as many as it takes. Dimensions that vary are 1. The
/// job's inputs are in pool 0 of its arena, and its outputs in pool 1 where their sizes are known.
///
/// # Errors
/// What the model says, if its input shapes are fixed, and it takes neither zeros nor small numbers. One whose shapes vary
/// may have reason to refuse those made up here; that is logged.
pub fn warm_up(run: &mut dyn FnMut(&mut Job), spec: &ModelSpec) -> Result<(), RuntimeError> {
    for _ in 0..spec.warmup_launches {
        for rows in [1, spec.max_batch.max(1)] {
            // Zero divides nothing, and is no range.
            match launch(run, spec, rows, |_| 0).or_else(|_| launch(run, spec, rows, |input| input + 1)) {
                Ok(()) => {}
                Err(error) if spec.fixed_inputs() => return Err(error),
                Err(error) => {
                    tracing::warn!(model = spec.name, %error, "warm-up launch failed");
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Launches with inputs all of whose elements are what `value` says, given which input it is.
fn launch(run: &mut dyn FnMut(&mut Job), spec: &ModelSpec, rows: u16, value: fn(u8) -> u8) -> Result<(), RuntimeError> {
    let refuse = |what: &dyn std::fmt::Display| RuntimeError(format!("warm-up: {what}"));
    let tensors = spec.inputs.iter().enumerate().map(|(handle, input)| {
        let shape = Shape::new(&dims(spec, input, rows)).ok()?;
        TensorDesc::fixed(handle as u16, input.dtype, shape).ok()
    });
    // Elements of variable length cannot be made up.
    let Some(tensors) = tensors.collect::<Option<Vec<_>>>() else { return Ok(()) };
    let row: Vec<u32> = tensors.iter().map(|t| t.bytes.div_ceil(u32::from(rows))).collect();
    let mut pools = vec![(0, PoolLayout::new(&row, rows, 1).map_err(|e| refuse(&e))?)];
    let outputs: Option<Vec<u32>> = spec.outputs.iter().map(|t| spec.row_bytes(t)).collect();
    if let Some(row) = &outputs {
        pools.push((1, PoolLayout::new(row, rows, 1).map_err(|e| refuse(&e))?));
    }
    let arena = Arena::new("warm-up", &pools, 0).map_err(|e| refuse(&e))?;
    let slots = |pool| Run { pool, rows, first: 0, generation: 0 };
    for (handle, tensor) in tensors.iter().enumerate() {
        let element = element(tensor.dtype, value(handle as u8));
        let bytes = element.repeat(tensor.bytes as usize / element.len());
        if let Some(span) = arena.span(slots(0), handle as u16, 0, tensor.bytes) {
            span.copy_from(&bytes);
        }
    }
    let mut job = Job::new(arena, 0, 1);
    job.batch = Batch::default();
    job.batch.push(slots(0), rows, outputs.map(|_| slots(1)), &tensors);
    run(&mut job);
    match (job.error, job.launch.take(0)) {
        (Some(error), _) | (None, Some((Output::Failed(_, error), _))) => Err(refuse(&error)),
        (None, _) => Ok(()),
    }
}

/// A number below 128 as an element of this type.
fn element(dtype: DType, value: u8) -> Vec<u8> {
    let single = f32::from(value).to_bits();
    // Exact, and never too small to be written so.
    let half = value.checked_ilog2().map_or(0, |e| (e as u16 + 15) << 10 | (u16::from(value) << 10 >> e) & 0x3ff);
    match dtype {
        DType::Bool => vec![value.min(1)],
        DType::Uint8 | DType::Int8 | DType::Bytes => vec![value],
        DType::Uint16 | DType::Int16 => u16::from(value).to_le_bytes().into(),
        DType::Uint32 | DType::Int32 => u32::from(value).to_le_bytes().into(),
        DType::Uint64 | DType::Int64 => u64::from(value).to_le_bytes().into(),
        DType::Fp16 => half.to_le_bytes().into(),
        DType::Bf16 => ((single >> 16) as u16).to_le_bytes().into(),
        DType::Fp32 => single.to_le_bytes().into(),
        DType::Fp64 => f64::from(value).to_bits().to_le_bytes().into(),
    }
}

fn dims(spec: &ModelSpec, tensor: &TensorSpec, rows: u16) -> Vec<u32> {
    let batch = (spec.max_batch > 0).then_some(u32::from(rows));
    batch.into_iter().chain(spec.row_dims(tensor).iter().map(|d| d.unwrap_or(1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_are_written_as_their_type_has_them() {
        let as_half = |value| u16::from_le_bytes(element(DType::Fp16, value).try_into().unwrap());
        assert_eq!([0, 1, 2, 3, 33, 127].map(as_half), [0, 0x3c00, 0x4000, 0x4200, 0x5020, 0x57f0]);
        assert_eq!(element(DType::Bf16, 1), 0x3f80u16.to_le_bytes());
        assert_eq!((element(DType::Fp32, 3), element(DType::Int64, 3).len()), (3f32.to_le_bytes().to_vec(), 8));
        assert_eq!(element(DType::Bool, 9), [1]);
    }
}
