//! How long the stages of a launch take.

use std::time::Duration;

use splitrpc_cuda::{Context, Event};
use splitrpc_gpu::GpuError;
use splitrpc_wire::path::{Memory, Mover};

use super::Flight;
use crate::gpu::tensors::Tensors;
use crate::runtime::{Batch, Launch};

/// The stages of one launch in so many are timed by the device's clock, which takes longer than all else about a small one. The others are
/// taken to be shared out alike.
const TIMED_EVERY: u32 = 128;

/// Points in time on the device.
pub(super) struct Marks {
    pub(super) begun: Event,
    pub(super) filled: Event,
    pub(super) computed: Event,
    pub(super) emptied: Event,
}

impl Marks {
    pub(super) fn new(context: &Context) -> Result<Marks, GpuError> {
        let mark = || Event::timed(context);
        Ok(Marks { begun: mark()?, filled: mark()?, computed: mark()?, emptied: mark()? })
    }
}

/// How the time of a launch is shared out, by the last one that was timed.
#[derive(Clone, Copy, Default)]
pub(super) struct Split {
    /// Launches since then, and before the first that was.
    launches: u32,
    /// Whether there was one.
    is_known: bool,
    /// Shares of the whole.
    copy_in: f32,
    compute: f32,
    copy_out: f32,
}

impl Split {
    /// Counts a launch. Returns whether it is to be timed.
    pub(super) fn count(&mut self) -> bool {
        self.launches += 1;
        // Not the first, for which code may have to be loaded.
        self.launches > 1 && (self.launches % TIMED_EVERY == 2 || !self.is_known)
    }

    /// Whether the next launch may be submitted before its request has come: it is not to be timed.
    pub(super) fn may_wait(&self) -> bool {
        self.is_known && (self.launches + 1) % TIMED_EVERY != 2
    }
}

impl Flight {
    /// Notes on the device when it gets there, if the batch is timed.
    pub(super) fn mark(&self, event: &Event) -> Result<(), GpuError> {
        if self.timed { self.lane.mark(event) } else { Ok(()) }
    }

    /// Answers all items. `took` is from the launch, of which the copies in are part where they have no time of their own, until its end
    /// was seen; `copy_out` comes on top of that.
    pub(super) fn answer(
        &mut self,
        tensors: &Tensors,
        copy_in: Option<Duration>,
        took: Duration,
        copy_out: Duration,
        batch: &Batch,
        launch: &mut Launch,
    ) -> Result<(), GpuError> {
        if self.timed {
            self.split(copy_in.is_none(), took)?;
        }
        let split = self.splits[self.size];
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let share = |of: f32| (took.as_nanos() as f32 * of) as u64;
        launch.copy_in_ns = copy_in.map_or_else(|| share(split.copy_in), ns);
        launch.copy_out_ns = share(split.copy_out) + ns(copy_out);
        launch.compute_ns = share(split.compute);
        if !split.is_known {
            launch.compute_ns = ns(took);
        }
        // Who brought what was there already, the port knows.
        let mover = if self.present || self.in_place { Mover::Unknown } else { Mover::GpuCopy };
        launch.moved = Some((mover, if self.in_place { Memory::Pinned } else { Memory::Cuda }));
        launch.compactions = self.compactions;
        for item in batch.items() {
            launch.push_in_place(tensors.describe(item.rows));
        }
        Ok(())
    }

    /// Keeps how the time of a launch that was timed was shared out.
    fn split(&mut self, copies_in: bool, took: Duration) -> Result<(), GpuError> {
        let Marks { begun, filled, computed, emptied } = &self.marks;
        let share = |from: &Event, to: &Event| {
            let time = to.elapsed_since(from)?.unwrap_or_default();
            Ok::<_, GpuError>((time.as_secs_f32() / took.as_secs_f32().max(1e-9)).min(1.0))
        };
        let copy_in = if copies_in { share(begun, filled)? } else { 0.0 };
        let (compute, copy_out) = (share(filled, computed)?, share(computed, emptied)?);
        let split = &mut self.splits[self.size];
        *split = Split { launches: split.launches, is_known: true, copy_in, compute, copy_out };
        Ok(())
    }
}
