//! A model tried out on the GPU before it is called ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::board::groups;
use super::tensors::Tensors;
use super::{Board, Gpu, Program, Stays, Tenant};
use crate::model::spec::ModelSpec;
use crate::plan::{ModelPools, Plan};
use crate::runtime::device::Device;
use crate::worker::Job;
use splitrpc_gpu::Persistent;

/// Device memory comes in pieces of so many bytes.
const GRANULE: u64 = 2 << 20;
/// Kernels may stay on one multiprocessor in so many: on the others there is room for those that are launched, and for a porter.
const STAYING: u64 = 2;

impl Gpu {
    /// Computes a job whose inputs and outputs are the pools 0 and 1 of its arena, and waits for that. Returns whether it has ended, however.
    pub(crate) fn run(&self, spec: &ModelSpec, program: &Arc<dyn Program>, job: &mut Job) -> bool {
        let pools = ModelPools { inputs: vec![0], output: Some(1), owned: Vec::new() };
        // One lane will do.
        let alone = ModelSpec { instances: 1, priority_levels: 0, ..spec.clone() };
        let tenant = Tenant { spec: &alone, pools: &pools, program: Arc::clone(program) };
        let mut board = match Board::new(self, &job.arena, &[Some(tenant)], 1, 1) {
            Ok(board) => board,
            Err(error) => {
                job.error = Some(error.to_string());
                return true;
            }
        };
        let begun = Instant::now();
        board.begin(0, 0, (0, 0), &[0], &job.batch);
        let limit = Duration::from_millis(self.settings.launch_limit_ms.into());
        loop {
            board.pump();
            if let Some(ended) = board.ended(0, 0, &job.batch, &mut job.launch) {
                job.error = ended.err().map(|error| error.0);
                return true;
            }
            if begun.elapsed() > limit {
                job.error = Some(format!("the launch has not ended after {} ms", limit.as_millis()));
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Refuses a model that cannot be computed on a GPU, or that there is no memory for beside what was `reserved` for others, and adds what
    /// it needs to that. `plan` is that of the model alone.
    pub(crate) fn admit(
        &self,
        spec: &ModelSpec,
        plan: &Plan,
        program: &dyn Program,
        shards: u64,
        reserved: &mut Reserved,
    ) -> Result<(), String> {
        if let Some(why) = self.outage() {
            return Err(why.into());
        }
        if plan.outputs.is_empty() {
            return Err(
                "has outputs of unknown size, or larger than limits.max_request_bytes: a GPU writes them into slots"
                    .into(),
            );
        }
        if spec.max_batch > 1 && !spec.fixed_inputs() {
            return Err("batches inputs whose sizes vary, which is not supported on a GPU".into());
        }
        let failed = |error: splitrpc_cuda::Error| error.to_string();
        let (free, total) = self.context.memory_bytes().map_err(failed)?;
        let range = self.context.stream_priorities().map_err(failed)?;
        let lanes = u64::from(spec.instances.max(1)) * u64::from(groups(spec, range));
        let ahead = self.settings.pre_launched.contains(&spec.name);
        let tensors = Tensors::new(spec, program, ahead, self.settings.kernel_bytes);
        let relay = if program.stays().is_some() { granules(Persistent::DEVICE_BYTES) } else { 0 };
        let lane = program.lane_bytes().saturating_add(granules(tensors.staging())).saturating_add(relay);
        let (host, device) = plan.all().iter().fold((0_u64, 0_u64), |(host, device), (_, layout)| {
            (host.saturating_add(layout.bytes()), device.saturating_add(granules(layout.bytes())))
        });
        let stays = program.stays().map_or(Ok(0), Stays::multiprocessors)?;
        let stays = stays.saturating_mul(lanes).saturating_mul(shards);
        let all = u64::from(self.context.device().multiprocessors);
        let left = (all / STAYING).saturating_sub(reserved.multiprocessors);
        if stays > left {
            return Err(format!(
                "has {stays} blocks stay on the GPU, and one for each of half of its {all} multiprocessors may, {left} of which are free: \
                 give it fewer blocks, instances or priority levels, or the agent fewer data threads"
            ));
        }
        let device = device.saturating_add(lane.saturating_mul(lanes)).saturating_mul(shards);
        let host = host.saturating_mul(shards);
        // Reservations are made before anything is taken. Streams, graphs and the driver itself need some too.
        let device_free = free.saturating_sub(total / 50).saturating_sub(reserved.device);
        let host_free = nic_app::program::memory::free().map_or(u64::MAX, |free| free.saturating_sub(reserved.host));
        for (what, needed, free) in
            [("the GPU's memory", device, device_free), ("the host's memory, locked for the GPU", host, host_free)]
        {
            if needed > free {
                return Err(format!(
                    "needs {} MiB of {what}, and {} MiB are free: lower limits.slots_per_model, limits.class_bytes, \
                     limits.max_request_bytes, or max_batch_size",
                    needed.div_ceil(1 << 20),
                    free >> 20
                ));
            }
        }
        reserved.multiprocessors += stays;
        reserved.device += device;
        reserved.host += host;
        Ok(())
    }
}

/// What models were promised: memory, in bytes, and multiprocessors on which their kernels stay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reserved {
    device: u64,
    host: u64,
    multiprocessors: u64,
}

/// What an allocation of so many bytes takes on the device.
pub(crate) fn granules(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX)
}
