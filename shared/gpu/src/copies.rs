//! Copies of one direction, ahead of launches or behind them.

use std::time::{Duration, Instant};

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
    /// Chunks that the copy engine was given.
    submitted: u64,
    /// How many of those are done.
    done: u64,
    /// By ticket: what `submitted` was when the last of its chunks had been given to the copy engine.
    last: Box<[u64]>,
    /// The greatest of those of tickets that were forgotten.
    forgotten: u64,
    /// Bytes of the chunks that the events mark.
    lens: Box<[u32]>,
    /// When the first chunk that is not done came to be that.
    begun: Instant,
    pace: Pace,
}

/// How fast bytes were copied of late.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    ns: u64,
    bytes: u64,
}

impl Pace {
    /// Bytes after which it is known, and ones that lie back twice as far count half as much.
    const ENOUGH: u64 = 4 << 20;

    fn add(&mut self, took: Duration, bytes: u32) {
        self.ns += u64::try_from(took.as_nanos()).unwrap_or(0);
        self.bytes += u64::from(bytes);
        if self.bytes >= 2 * Pace::ENOUGH {
            (self.ns, self.bytes) = (self.ns / 2, self.bytes / 2);
        }
    }

    fn time_for(&self, bytes: u64) -> Option<Duration> {
        let ns = u128::from(bytes) * u128::from(self.ns) / u128::from(self.bytes.max(1));
        (self.bytes >= Pace::ENOUGH).then(|| Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
    }
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
        let (last, lens) = (vec![0; tickets].into(), vec![0; chunking.depth.max(1)].into());
        let (begun, pace) = (Instant::now(), Pace::default());
        Ok(Copies { lane, direction, schedule, marks, submitted: 0, done: 0, last, forgotten: 0, lens, begun, pace })
    }

    /// Adds a copy of `len` bytes at `offset` of a run's tensor, as part of what `ticket` stands for.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`].
    ///
    /// # Panics
    /// Where the ticket is none of those that there are, as [`Copies::are_done`] and [`Copies::forget`] do.
    pub fn push(
        &mut self,
        ticket: u32,
        rank: Rank,
        run: Run,
        tensor: u16,
        offset: u32,
        len: u32,
    ) -> Result<(), GpuError> {
        self.lane.arena().device(run, tensor, offset, len).ok_or(GpuError::NoSlots)?;
        self.schedule.push(ticket, rank, Chunk { run, tensor, offset, len });
        Ok(())
    }

    /// Gives the copy engine as much as it may have, without a look at what is done unless it has its fill.
    ///
    /// # Errors
    /// As [`Copies::pump`].
    pub fn feed(&mut self) -> Result<(), GpuError> {
        let depth = self.marks.len() as u64;
        if self.submitted - self.done == depth && self.marks[(self.done % depth) as usize].has_happened()? {
            self.is_done();
        }
        self.submit().map(drop)
    }

    /// Gives the copy engine as much as it may have. Returns whether that was anything.
    ///
    /// # Errors
    /// The driver's, also those of earlier work: then a chunk may be missing, of whichever ticket, and none of the copies that
    /// have not been waited for is to be relied on.
    pub fn pump(&mut self) -> Result<bool, GpuError> {
        let depth = self.marks.len() as u64;
        let mut any = false;
        while self.done < self.submitted && self.marks[(self.done % depth) as usize].has_happened()? {
            self.is_done();
            any = true;
        }
        Ok(any | self.submit()?)
    }

    /// The first chunk under way is done.
    fn is_done(&mut self) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.begun);
        self.pace.add(took, self.lens[(self.done % self.marks.len() as u64) as usize]);
        self.begun = now;
        self.done += 1;
    }

    /// Gives the copy engine chunks as long as it has not got its fill.
    fn submit(&mut self) -> Result<bool, GpuError> {
        let depth = self.marks.len() as u64;
        let mut any = false;
        while self.submitted - self.done < depth {
            let Some((ticket, Chunk { run, tensor, offset, len })) = self.schedule.next() else { break };
            let work = self.lane.work();
            match self.direction {
                Direction::In => work.copy_in(run, tensor, offset, len),
                Direction::Out => work.copy_out(run, tensor, offset, len),
            }?;
            self.lane.mark(&self.marks[(self.submitted % depth) as usize])?;
            self.lens[(self.submitted % depth) as usize] = len;
            if self.submitted == self.done {
                self.begun = Instant::now();
            }
            self.submitted += 1;
            self.last[ticket as usize] = self.submitted;
            any = true;
        }
        Ok(any)
    }

    /// Whether all copies of a ticket were done when [`Copies::pump`] last looked.
    #[must_use]
    pub fn are_done(&self, ticket: u32) -> bool {
        !self.schedule.waits(ticket) && self.last[ticket as usize] <= self.done
    }

    /// How many chunks the copy engine has been given. It carries them out in order.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.submitted
    }

    /// How many of those were done when [`Copies::pump`] last looked.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Whether the copy engine has been given everything.
    #[must_use]
    pub fn all_given(&self) -> bool {
        self.schedule.is_empty()
    }

    /// Whether nothing is left to pump.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.submitted == self.done && self.schedule.is_empty()
    }

    /// Forgets what the copy engine has not been given of a ticket. What it has been given it still carries out: whoever copies to the
    /// same slots by another way waits until [`Copies::are_settled`].
    pub fn forget(&mut self, ticket: u32) {
        self.schedule.forget(ticket);
        self.forgotten = self.forgotten.max(self.last[ticket as usize]);
    }

    /// Whether nothing is under way any more of what was forgotten.
    #[must_use]
    pub fn are_settled(&self) -> bool {
        self.forgotten <= self.done
    }

    /// Bytes that the copy engine has not been given.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.schedule.bytes()
    }

    /// How long it will be until so many bytes are copied that are added now with this rank, at the pace of late; `None` where that is not known.
    #[must_use]
    pub fn time_until(&self, rank: Rank, bytes: u64) -> Option<Duration> {
        let under_way =
            (self.done..self.submitted).map(|number| self.lens[(number % self.marks.len() as u64) as usize]);
        let before = under_way.map(u64::from).sum::<u64>() + self.schedule.bytes_before(rank);
        self.pace.time_for(before + bytes)
    }

    /// The lane, for others to wait for what was given to the copy engine.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        &self.lane
    }
}
