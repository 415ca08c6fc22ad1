//! A model tried out on the GPU before it is called ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Board, Gpu, Program, Tenant};
use crate::model::spec::ModelSpec;
use crate::plan::{ModelPools, Plan};
use crate::runtime::device::Device;
use crate::worker::Job;

impl Gpu {
    /// Computes a job whose inputs and outputs are the pools 0 and 1 of its arena, and waits for that.
    pub(crate) fn run(&self, spec: &ModelSpec, program: &Arc<dyn Program>, job: &mut Job) {
        let pools = ModelPools { inputs: vec![0], output: Some(1) };
        let tenant = Tenant { spec, pools: &pools, program: Arc::clone(program) };
        let mut board = match Board::new(self, &job.arena, &[Some(tenant)], 1) {
            Ok(board) => board,
            Err(error) => return job.error = Some(error.to_string()),
        };
        let begun = Instant::now();
        board.begin(0, 0, (0, 0), &[0], &job.batch);
        let limit = Duration::from_millis(self.settings.launch_limit_ms.into());
        job.error = loop {
            board.pump();
            match board.ended(0, 0, &job.batch, &mut job.launch) {
                Some(ended) => break ended.err().map(|error| error.0),
                None if begun.elapsed() > limit => {
                    break Some(format!("the launch has not ended after {} ms", limit.as_millis()));
                }
                None => std::thread::yield_now(),
            }
        };
    }

    /// Refuses a model that cannot be computed on a GPU, or that its memory has no room for beside what was `reserved`, and adds what
    /// it needs to that. `plan` is that of the model alone.
    pub(crate) fn admit(
        &self,
        spec: &ModelSpec,
        plan: &Plan,
        program: &dyn Program,
        shards: u64,
        reserved: &mut u64,
    ) -> Result<(), String> {
        if plan.outputs.is_empty() {
            return Err(
                "has outputs of unknown size, or larger than limits.max_request_bytes: a GPU writes them into slots"
                    .into(),
            );
        }
        if spec.max_batch > 1 && !spec.fixed_inputs() {
            return Err("batches inputs whose sizes vary, which is not supported on a GPU".into());
        }
        let slots: u64 = plan.all().iter().map(|(_, layout)| layout.bytes()).sum();
        let lanes = u64::from(spec.instances.max(1)) * u64::from(spec.priority_levels.max(1));
        let (free, total) = self.context.memory_bytes().map_err(|error| error.to_string())?;
        // Reservations are made before anything is taken. Streams, graphs and the driver itself need some too.
        let free = free.saturating_sub(total / 50).saturating_sub(*reserved);
        let needed = (slots + lanes * program.lane_bytes()).saturating_mul(shards);
        if needed > free {
            return Err(format!(
                "needs {} MiB of the GPU's memory, and {} MiB are free: lower limits.slots_per_model, limits.class_bytes, \
                 limits.max_request_bytes, or max_batch_size",
                needed.div_ceil(1 << 20),
                free >> 20
            ));
        }
        *reserved += needed;
        Ok(())
    }
}
