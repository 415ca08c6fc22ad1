//! Launches that wait on a device for requests which are yet to come.

use splitrpc_arena::Run;
use splitrpc_telemetry::Event;

use super::{Exec, ModelState};
use crate::orchestrator::desk::Desk;

/// What a lane launches ahead.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ahead {
    /// Where the last request lay that was launched there and alone, until something is launched ahead for the next one: slots that were
    /// given back last are handed out first, so it probably comes to the same.
    pub(super) last: Option<Run>,
    /// Slots for the answer of what waits, or has waited for nothing and may still write there.
    pub(super) output: Option<Run>,
}

impl ModelState {
    /// Has lanes that have nothing to do launch what probably comes next. Returns whether any has.
    pub(in crate::orchestrator) fn launch_ahead(&mut self, desk: &mut Desk<'_>) -> bool {
        let (Exec::Device(lanes), Some(pool)) = (&mut self.exec, self.pools.output) else { return false };
        if lanes.given_up > 0 || self.queue.first().is_some() {
            return false;
        }
        let mut any = false;
        for (lane, (job, ahead)) in lanes.jobs.iter().zip(&mut lanes.ahead).enumerate() {
            let (None, None, Some(input)) = (job, ahead.output, ahead.last) else { continue };
            let Some(output) = desk.alloc_beside(pool, 1, input) else { return any };
            // Not again before something else was launched there, if it does not want to.
            ahead.last = None;
            let device = desk.device.as_mut();
            if device.is_some_and(|device| device.launch_ahead(self.handle, lane as u16, input, output)) {
                ahead.output = Some(output);
                any = true;
            } else {
                desk.free(output);
            }
        }
        any
    }

    /// The lane whose launch waits for the batch that was put together, and the slots for its answer.
    pub(super) fn take_waiting(&mut self, desk: &mut Desk<'_>) -> Option<(u16, Run)> {
        let (Exec::Device(lanes), [waiting]) = (&mut self.exec, &self.batch[..]) else { return None };
        let input = desk.record(waiting.request).input;
        let lane = desk.device.as_ref()?.waiting_lane(self.handle, waiting.rank.priority, input)?;
        let output = lanes.ahead.get_mut(usize::from(lane))?.output.take()?;
        desk.telemetry.count(Event::PreLaunchesUsed, 1);
        Some((lane, output))
    }

    /// Lets go what waits: it is for nothing, and its output slots are needed, or the end is near.
    pub(in crate::orchestrator) fn withdraw(&self, desk: &mut Desk<'_>) {
        let (Exec::Device(lanes), Some(device)) = (&self.exec, &mut desk.device) else { return };
        for (lane, _) in lanes.ahead.iter().enumerate().filter(|(_, ahead)| ahead.output.is_some()) {
            device.withdraw(self.handle, lane as u16);
        }
    }

    /// Takes output slots back from what has waited for nothing.
    pub(super) fn collect_ahead(&mut self, desk: &mut Desk<'_>) -> bool {
        let Exec::Device(lanes) = &mut self.exec else { return false };
        let mut any = false;
        for (lane, ahead) in lanes.ahead.iter_mut().enumerate().filter(|(_, ahead)| ahead.output.is_some()) {
            if !desk.device.as_mut().is_some_and(|device| device.is_over(self.handle, lane as u16)) {
                continue;
            }
            if let Some(output) = ahead.output.take() {
                desk.free(output);
            }
            desk.telemetry.count(Event::PreLaunchesWasted, 1);
            any = true;
        }
        if any && self.wants_outputs {
            self.look_now();
        }
        any
    }
}
