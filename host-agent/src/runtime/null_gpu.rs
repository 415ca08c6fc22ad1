//! The null model on a GPU: takes its inputs into the device's memory, and answers from there with a fixed pattern. It measures
//! everything but computing.

use std::sync::Arc;

use splitrpc_arena::Run;
use splitrpc_cuda::Context;
use splitrpc_gpu::{GpuError, Work, filled};

use super::Factory;
use super::null::{Null, pattern};
use crate::gpu::{GpuModel, Program, Resources, Rows, granules};
use crate::model::spec::ModelSpec;

/// A null model on a GPU, whose output has this many bytes.
#[must_use]
pub fn null_gpu(context: &Context, response_bytes: u32) -> GpuModel {
    let spec = ModelSpec { name: "null-gpu".into(), ..Null::new(response_bytes).spec().clone() };
    let program = Arc::new(Answer { context: context.clone(), bytes: response_bytes });
    GpuModel { spec, file: None, program }
}

#[derive(Debug)]
struct Answer {
    context: Context,
    bytes: u32,
}

impl Program for Answer {
    fn resources(&self) -> Result<Resources, GpuError> {
        if self.bytes == 0 {
            return Ok(Resources::default());
        }
        let pattern: Vec<u8> = (0..self.bytes as usize).map(pattern).collect();
        Ok(Resources { buffers: vec![filled(&self.context, &pattern)?], ..Resources::default() })
    }

    fn lane_bytes(&self) -> u64 {
        granules(self.bytes.into())
    }

    fn launches(&self) -> bool {
        false
    }

    /// Nothing else is ever written to this model's output slots on the device.
    fn prepare(&self, work: &Work<'_>, output_slots: &mut dyn Iterator<Item = Run>) -> Result<(), GpuError> {
        for slot in output_slots.filter(|_| self.bytes > 0) {
            work.spread(0, 0, slot, 0, self.bytes)?;
        }
        Ok(())
    }

    fn submit(&self, _: &Work<'_>, _: &Rows<'_>) -> Result<(), GpuError> {
        Ok(())
    }
}
