//! First launches, made before a model is called ready, so that no client pays for them.

use splitrpc_arena::{Arena, PoolLayout};
use splitrpc_ring::Run;
use splitrpc_wire::{Shape, TensorDesc};

use crate::model::spec::{ModelSpec, TensorSpec};
use crate::runtime::{Batch, Output, RuntimeError};
use crate::worker::{Instance, Job};

/// Launches the instance with zeros: one row, and where it batches as many as it takes. Dimensions that vary are 1.
///
/// # Errors
/// What the model says, if its input shapes are fixed. One whose shapes vary may have reason to refuse those made up
/// here; that is logged.
pub fn warm_up(instance: &mut Instance, spec: &ModelSpec) -> Result<(), RuntimeError> {
    for _ in 0..spec.warmup_launches {
        for rows in [1, spec.max_batch.max(1)] {
            match launch(instance, spec, rows) {
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

fn launch(instance: &mut Instance, spec: &ModelSpec, rows: u16) -> Result<(), RuntimeError> {
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
    let run = |pool| Run { pool, rows, first: 0, generation: 0 };
    let mut job = Job::new(arena, 0, 1);
    job.batch = Batch::default();
    job.batch.push(run(0), rows, outputs.map(|_| run(1)), &tensors);
    job.run(instance);
    match (job.error, job.launch.take(0)) {
        (Some(error), _) | (None, Some((Output::Failed(_, error), _))) => Err(refuse(&error)),
        (None, _) => Ok(()),
    }
}

fn dims(spec: &ModelSpec, tensor: &TensorSpec, rows: u16) -> Vec<u32> {
    let batch = (spec.max_batch > 0).then_some(u32::from(rows));
    batch.into_iter().chain(spec.row_dims(tensor).iter().map(|d| d.unwrap_or(1))).collect()
}
