//! How a batch that is under way goes on, each time that the data thread comes round.

use std::time::{Duration, Instant};

use splitrpc_gpu::GpuError;

use super::persistent::Resident;
use super::{Flight, PATIENCE, Phase};
use crate::gpu::Program;
use crate::gpu::tensors::Tensors;
use crate::gpu::transfers::Transfers;
use crate::runtime::{Batch, Launch};

impl Flight {
    /// Goes on. Returns how the batch has ended, once it has.
    pub(in crate::gpu) fn advance(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &mut Transfers,
        batch: &Batch,
        launch: &mut Launch,
    ) -> Option<Result<(), GpuError>> {
        match self.step(tensors, program, copies, batch, launch) {
            Ok(false) => None,
            Ok(true) => {
                self.phase = Phase::Idle;
                Some(Ok(()))
            }
            Err(error) if error.is_sticky() || matches!(self.phase, Phase::Idle) => {
                self.let_go();
                self.phase = Phase::Idle;
                Some(Err(error))
            }
            Err(error) => {
                self.let_go();
                self.phase = Phase::Failing(error);
                None
            }
        }
    }

    /// Whether all is done. An error that comes with the lane idle is what the batch has ended with.
    fn step(
        &mut self,
        tensors: &Tensors,
        program: &dyn Program,
        copies: &mut Transfers,
        batch: &Batch,
        launch: &mut Launch,
    ) -> Result<bool, GpuError> {
        match &self.phase {
            Phase::Idle => Ok(false),
            &Phase::Filling { since, asked, filled, outputs } => {
                if let Some(error) = copies.failed.clone() {
                    self.forget(copies);
                    copies.waited_for -= 1;
                    return Err(error);
                }
                let now = Instant::now();
                let inputs = filled.is_some() || self.requests.iter().all(|request| copies.are_done(*request));
                let filled = filled.or(inputs.then_some(now));
                let ready = inputs && outputs.is_none_or(|order| copies.is_carried(order));
                if !ready {
                    let overdue = now.saturating_duration_since(asked) > PATIENCE;
                    if overdue {
                        // A porter that has failed says nothing.
                        copies.check();
                    }
                    let asked = if overdue { now } else { asked };
                    self.phase = Phase::Filling { since, asked, filled, outputs };
                    return Ok(false);
                }
                let filled = filled.unwrap_or(now);
                let copy_in = Some(filled.saturating_duration_since(since));
                self.forget(copies);
                copies.waited_for -= 1;
                if outputs.is_some() {
                    (self.timed, self.compactions) = (false, 0);
                    let copy_out = now.saturating_duration_since(filled);
                    self.answer(tensors, copy_in, Duration::ZERO, copy_out, batch, launch)?;
                    return Ok(true);
                }
                let since = Instant::now();
                if self.serves() {
                    self.open();
                } else if self.resident.is_some() {
                    self.hand_over(tensors, program, batch)?;
                } else {
                    self.mark(&self.marks.filled)?;
                    self.launch(tensors, program, copies, batch)?;
                }
                self.phase = Phase::Computing { copy_in, since, asked: since };
                Ok(false)
            }
            Phase::Computing { copy_in, since, asked } => {
                let (copy_in, since, asked) = (*copy_in, *since, *asked);
                // Where the porter had no room for all outputs, it still brings some of them.
                if !self.is_reached() || !copies.is_carried(self.ordered) {
                    let now = Instant::now();
                    if now.saturating_duration_since(asked) > PATIENCE {
                        self.check(copies)?;
                        self.phase = Phase::Computing { copy_in, since, asked: now };
                    }
                    return Ok(false);
                }
                if self.was_in_vain() && !self.given_up {
                    if self.present {
                        self.launch(tensors, program, copies, batch)?;
                    } else {
                        self.launch_whole(tensors, program, copies, batch)?;
                    }
                    return Ok(false);
                }
                if self.goes_on(tensors, program)? {
                    return Ok(false);
                }
                let took = since.elapsed();
                if !self.brings(tensors, copies)? {
                    if self.in_place || self.empties_directly(tensors, copies) {
                        self.answer(tensors, copy_in, took, Duration::ZERO, batch, launch)?;
                        return Ok(true);
                    }
                    for (run, tensor, bytes) in self.each_output(tensors) {
                        copies.outgoing.push(self.ticket, self.rank, run, tensor, 0, bytes)?;
                    }
                }
                copies.waited_for += 1;
                let since = Instant::now();
                self.phase = Phase::Emptying { copy_in, launch: took, since, asked: since };
                Ok(false)
            }
            Phase::Emptying { copy_in, launch: took, since, asked } => {
                if let Some(error) = copies.failed.clone() {
                    copies.outgoing.forget(self.ticket);
                    copies.waited_for -= 1;
                    return Err(error);
                }
                let (copy_in, took, since, asked) = (*copy_in, *took, *since, *asked);
                let signalled = self.lane.signalled() == self.number;
                if !(signalled && copies.outgoing.are_done(self.ticket) && copies.is_carried(self.ordered)) {
                    let now = Instant::now();
                    if now.saturating_duration_since(asked) > PATIENCE {
                        if let Err(error) = self.check(copies) {
                            copies.outgoing.forget(self.ticket);
                            copies.waited_for -= 1;
                            return Err(error);
                        }
                        self.phase = Phase::Emptying { copy_in, launch: took, since, asked: now };
                    }
                    return Ok(false);
                }
                let copy_out = since.elapsed();
                copies.waited_for -= 1;
                self.answer(tensors, copy_in, took, copy_out, batch, launch)?;
                Ok(true)
            }
            Phase::Failing(error) => {
                let error = error.clone();
                if error.is_sticky() {
                    self.phase = Phase::Idle;
                    return Err(error);
                }
                // What comes of that is in what is under way.
                let _ = (copies.incoming.pump(), copies.outgoing.pump());
                let engines = copies.incoming.are_settled() && copies.outgoing.are_settled();
                let carried = copies.is_carried(self.ordered);
                if !carried {
                    copies.check();
                }
                let computed = self.resident.as_mut().is_none_or(Resident::is_over);
                let settled = engines && carried && computed;
                // Copies in front of a launch are on either stream.
                if settled && copies.incoming.lane().is_done()? && self.lane.is_done()? {
                    self.phase = Phase::Idle;
                    return Err(error);
                }
                Ok(false)
            }
        }
    }

    /// Fails where the device does: what has failed never signals, nor does a porter that has say so.
    fn check(&mut self, copies: &mut Transfers) -> Result<(), GpuError> {
        self.lane.is_done()?;
        copies.check();
        self.resident.as_mut().map_or(Ok(()), Resident::check)
    }
}
