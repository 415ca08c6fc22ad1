//! What a lane has recorded of its model's computing, and what it knows of how many rows that takes.

use std::collections::HashMap;

use splitrpc_gpu::{Carried, ForAll, GpuError, Lane, Recording, Work};

use super::habits::Habits;
use crate::gpu::Program;

/// No first slot: the tensor's rows were put together elsewhere.
pub(super) const ELSEWHERE: u32 = u32::MAX;

/// What a recording is of. A model's slots are in one pool each for inputs and outputs where its requests are recorded, and its rows are of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) rows: u32,
    /// The first slot of the inputs, or [`ELSEWHERE`].
    pub(super) input: u32,
    /// The first slot of the outputs, or [`ELSEWHERE`].
    pub(super) output: u32,
    pub(super) part: Part,
}

/// How much of a batch a recording does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Computing,
    /// With the copies from and to the host.
    Whole,
    /// The same, behind the lane's gate.
    Ahead,
}

impl Key {
    /// Of the computing alone.
    pub(super) fn new(rows: u32, input: u32, output: u32) -> Key {
        Key { rows, input, output, part: Part::Computing }
    }

    /// With all rows put together elsewhere.
    pub(super) fn elsewhere(rows: u32) -> Key {
        Key::new(rows, ELSEWHERE, ELSEWHERE)
    }
}

/// How a batch is submitted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// As it was recorded.
    Known(Recording),
    /// Recorded first.
    Common,
    /// Piece by piece, or by what was recorded for all slots.
    Rare,
}

/// The recordings of a lane.
#[derive(Debug)]
pub(super) struct Recordings {
    known: HashMap<Key, Recording>,
    /// By rows: small batches as a whole, in whatever slots they lie.
    for_all: HashMap<u32, ForAll>,
    habits: Habits<Key>,
    /// Something could not be recorded, so nothing is tried any more.
    impossible: bool,
    /// Nor is anything where as much as may be is recorded.
    is_full: bool,
    /// The fewest rows that the program computes. A smaller batch is computed as so many, the further ones its own once more.
    pub(super) fewest: u32,
}

impl Recordings {
    pub(super) fn new() -> Recordings {
        Recordings {
            known: HashMap::new(),
            for_all: HashMap::new(),
            habits: Habits::new(),
            impossible: false,
            is_full: false,
            fewest: 1,
        }
    }

    pub(super) fn known(&self, key: Key) -> Option<Recording> {
        self.known.get(&key).copied()
    }

    /// Counts a batch that comes, and says how it is to be submitted.
    pub(super) fn way(&mut self, program: &dyn Program, key: Key) -> Way {
        if let Some(known) = self.known(key) {
            self.habits.count_any();
            return Way::Known(known);
        }
        // The first call of one that rehearses takes long in each thread, so it is recorded before the first batch only.
        let may_be = program.is_recorded() && !program.rehearses();
        match may_be && self.habits.count(key) && !self.impossible && !self.is_full {
            true => Way::Common,
            false => Way::Rare,
        }
    }

    /// What does a batch of so many rows as a whole, in whatever slots it lies.
    pub(super) fn for_all(&self, rows: u32) -> Option<ForAll> {
        self.for_all.get(&rows).copied()
    }

    /// Does what `batch` submits for a batch of a program: as it was recorded, and recorded first if it is common, or piece by piece.
    pub(super) fn submit(
        &mut self,
        lane: &mut Lane,
        (key, way): (Key, Way),
        batch: impl Fn(&Work<'_>) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        if let Way::Known(recording) = way {
            return lane.replay(recording);
        }
        if matches!(way, Way::Common)
            && let Some(recording) = self.record(lane, key, &batch)?
        {
            return lane.replay(recording);
        }
        batch(&lane.work())
    }

    /// Records what `batch` submits, if anything more can be.
    pub(super) fn record(
        &mut self,
        lane: &mut Lane,
        key: Key,
        batch: impl Fn(&Work<'_>) -> Result<(), GpuError>,
    ) -> Result<Option<Recording>, GpuError> {
        if self.impossible || self.is_full {
            return Ok(None);
        }
        let recording = self.made(lane.record(&batch))?;
        match recording {
            Some(recording) => {
                tracing::debug!(?key, "recorded");
                self.known.insert(key, recording);
            }
            None if self.impossible => {}
            None => {
                tracing::warn!(
                    "a lane has recorded as much as it may; batches at other places are submitted piece by piece"
                );
                self.is_full = true;
            }
        }
        Ok(recording)
    }

    /// Records batches of so many rows as a whole, for all slots, if that can be. Inputs and outputs are those of their kernels.
    pub(super) fn record_for_all(
        &mut self,
        lane: &mut Lane,
        rows: u32,
        (inputs, outputs): (&[Carried], &[Carried]),
        compute: impl Fn(&Work<'_>) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        if self.impossible || self.is_full {
            return Ok(());
        }
        if let Some(recorded) = self.made(lane.record_for_all(inputs, outputs, compute))? {
            self.for_all.insert(rows, recorded);
        }
        Ok(())
    }

    /// What was recorded, if anything was.
    fn made<R>(&mut self, recorded: Result<Option<R>, GpuError>) -> Result<Option<R>, GpuError> {
        recorded.or_else(|error| {
            if error.is_sticky() {
                return Err(error);
            }
            tracing::warn!(%error, "batches cannot be recorded on a lane, and are submitted piece by piece from now on");
            self.impossible = true;
            Ok(None)
        })
    }
}
