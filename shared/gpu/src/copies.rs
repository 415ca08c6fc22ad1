//! Copies of one direction, ahead of launches or behind them.

use splitrpc_arena::Run;
use splitrpc_cuda::Event;

use crate::error::GpuError;
use crate::lane::Lane;
use crate::schedule::{Chunk, Schedule};

pub use crate::schedule::Rank;

/// Where copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host's slots to the device's.
    In,
    /// From the device's slots to the host's.
    Out,
}

/// How copies are cut up and how far they run ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Bytes that are copied in one go.
    pub bytes: u32,
    /// Chunks that the copy engine is given before the first of them is done.
    pub depth: usize,
}

impl Default for Chunking {
    /// 1 MiB takes 20 us over PCIe 5, so that an urgent copy waits for 40 us at most; the engine is never idle between
    /// two chunks.
    fn default() -> Chunking {
        Chunking { bytes: 1 << 20, depth: 2 }
    }
}

/// Copies of one direction on a lane of their own. The caller [pumps](Copies::pump) as long as some wait.
#[derive(Debug)]
pub struct Copies {
    lane: Lane,
    direction: Direction,
    schedule: Schedule,
    /// Chunk number `n` is marked by event `n % depth`.
    marks: Box<[Event]>,
    submitted: usize,
}

impl Copies {
    /// For tickets below `tickets`, each with up to `copies` copies at a time.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(
        lane: Lane,
        direction: Direction,
        chunking: Chunking,
        tickets: usize,
        copies: usize,
    ) -> Result<Copies, GpuError> {
        let mark = |_| Event::new(lane.arena().context());
        let marks = (0..chunking.depth.max(1)).map(mark).collect::<Result<_, _>>()?;
        let schedule = Schedule::new(chunking.bytes, tickets, tickets * copies);
        Ok(Copies { lane, direction, schedule, marks, submitted: 0 })
    }

    /// Adds a copy of the first `len` bytes of a run's tensor, as part of what `ticket` stands for.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`].
    ///
    /// # Panics
    /// Where the ticket is none of those that there are, as [`Copies::waits`] and [`Copies::forget`] do.
    pub fn push(&mut self, ticket: u32, rank: Rank, run: Run, tensor: u16, len: u32) -> Result<(), GpuError> {
        self.lane.arena().device(run, tensor, 0, len).ok_or(GpuError::NoSlots)?;
        self.schedule.push(ticket, rank, Chunk { run, tensor, offset: 0, len });
        Ok(())
    }

    /// Gives the copy engine as much as it may have. Returns whether that was anything.
    ///
    /// # Errors
    /// The driver's, also those of earlier work: then a chunk may be missing, of whichever ticket, and none of the copies that
    /// have not been waited for is to be relied on.
    pub fn pump(&mut self) -> Result<bool, GpuError> {
        let mut any = false;
        loop {
            let mark = &self.marks[self.submitted % self.marks.len()];
            // What was never recorded has happened.
            if !mark.has_happened()? {
                return Ok(any);
            }
            let Some(Chunk { run, tensor, offset, len }) = self.schedule.next() else { return Ok(any) };
            let work = self.lane.work();
            match self.direction {
                Direction::In => work.copy_in(run, tensor, offset, len),
                Direction::Out => work.copy_out(run, tensor, offset, len),
            }?;
            self.lane.mark(mark)?;
            self.submitted += 1;
            any = true;
        }
    }

    /// Whether part of a ticket's copies has not been given to the copy engine.
    #[must_use]
    pub fn waits(&self, ticket: u32) -> bool {
        self.schedule.waits(ticket)
    }

    /// Forgets what the copy engine has not been given of a ticket.
    pub fn forget(&mut self, ticket: u32) {
        self.schedule.forget(ticket);
    }

    /// Bytes that the copy engine has not been given.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.schedule.bytes()
    }

    /// The lane, for others to wait for what was given to the copy engine.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        &self.lane
    }
}
