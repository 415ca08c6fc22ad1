//! Copies between this side's memory and the host's, in pieces that the device takes.

use std::collections::VecDeque;
use std::sync::Arc;

use splitrpc_arena::Arena;
use splitrpc_doca::{Access, Device, Dma, Error, Inventory, Lines, Memory, ProgressEngine};
use splitrpc_telemetry::CardEvent;

use super::status::Status;

/// Copies under way at once: from 8 on a BlueField-3 is no faster.
const DEPTH: u32 = 32;
/// How often a piece is tried that the device does not get across.
const TRIES: u8 = 4;
/// Bytes of a piece at most, so that what follows a large one need not wait long.
const PIECE: u64 = 1 << 20;

/// Where a piece comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From a slot here into the host's of the same name.
    ToHost,
    /// From one of the host's slots into that here.
    FromHost,
    /// From a line here into the host's ring.
    ToRing,
}

/// Bytes to be copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) way: Way,
    /// Where they lie. Slots are at the same place on both sides.
    pub(super) offset: usize,
    pub(super) len: u32,
    /// Whose they are.
    pub(super) tag: u64,
}

/// All memory that the copies are of.
#[derive(Debug)]
struct Memories {
    near: Memory,
    far: Memory,
    lines: Memory,
    ring: Memory,
    /// How much further on a line lies in the ring than here.
    control: usize,
}

/// A queue of copies.
#[derive(Debug)]
pub(super) struct Carrier {
    engine: ProgressEngine,
    device: Device,
    dma: Dma,
    inventory: Inventory,
    memories: Memories,
    pieces: Box<[(Piece, u8)]>,
    free: Vec<u32>,
    /// Those that failed, to be tried again.
    again: VecDeque<u32>,
    most: u32,
    /// The queue has ended, and the copy with which it did is counted.
    blamed: bool,
    status: Arc<Status>,
}

impl Carrier {
    /// Between these slots and lines here and the host's slots and ring, of which the lines begin behind `control` bytes.
    ///
    /// # Errors
    /// Those of DOCA.
    pub(super) fn new(
        engine: &ProgressEngine,
        device: &Device,
        (near, far): (&Arena, Memory),
        (lines, ring, control): (&Lines, Memory, usize),
        status: &Arc<Status>,
    ) -> Result<Carrier, Error> {
        let library = device.library();
        let memories = Memories {
            near: Memory::of_arena(device, near, Access::Local)?,
            far,
            lines: Memory::of_arena(device, lines.arena(), Access::Local)?,
            ring,
            control,
        };
        let piece = Piece { way: Way::ToRing, offset: 0, len: 0, tag: 0 };
        Ok(Carrier {
            engine: engine.clone(),
            device: device.clone(),
            dma: Dma::new(engine, device, DEPTH)?,
            inventory: Inventory::new(library, 2 * DEPTH as usize)?,
            memories,
            pieces: vec![(piece, 0); DEPTH as usize].into(),
            free: (0..DEPTH).rev().collect(),
            again: VecDeque::with_capacity(DEPTH as usize),
            most: PIECE.min(device.info().can.copy_bytes).max(1) as u32,
            blamed: false,
            status: Arc::clone(status),
        })
    }

    /// Bytes of a piece at most.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Whether another piece can be begun.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether pieces are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.free.len() < self.pieces.len()
    }

    /// Begins a piece, for which there has to be room.
    ///
    /// # Errors
    /// Those of DOCA that are no passing ones.
    pub(super) fn begin(&mut self, piece: Piece) -> Result<(), Error> {
        let index = self.free.pop().expect("the caller has looked");
        self.pieces[index as usize] = (piece, 0);
        self.status.count(CardEvent::CardCopiesSubmitted, 1);
        self.submit(index)
    }

    /// The next piece that has ended: whose it was, and whether it has arrived.
    ///
    /// # Errors
    /// Those of DOCA that are no passing ones.
    pub(super) fn ended(&mut self) -> Result<Option<(Piece, bool)>, Error> {
        if let Some(index) = self.again.pop_front() {
            self.submit(index)?;
        }
        let Some(finished) = self.dma.finished() else { return Ok(None) };
        let index = finished.token as u32;
        let (piece, tries) = &mut self.pieces[index as usize];
        // With one that ends the queue all others come back that were under way, and are not to blame.
        let ended = finished.result.is_err() && !self.dma.is_running();
        if !(ended && std::mem::replace(&mut self.blamed, ended)) {
            *tries += 1;
        }
        if let Err(error) = finished.result {
            tracing::debug!(%error, ?piece, "a copy failed");
            if *tries < TRIES {
                self.status.count(CardEvent::CardCopiesRetried, 1);
                self.again.push_back(index);
                self.revive()?;
                return self.ended();
            }
        }
        self.free.push(index);
        let (piece, arrived) = (self.pieces[index as usize].0, finished.result.is_ok());
        self.note(&piece, arrived);
        Ok(Some((piece, arrived)))
    }

    fn note(&self, piece: &Piece, arrived: bool) {
        if !arrived {
            return self.status.count(CardEvent::CardCopiesFailed, 1);
        }
        let bytes = match piece.way {
            Way::ToHost | Way::ToRing => CardEvent::CardBytesToHost,
            Way::FromHost => CardEvent::CardBytesFromHost,
        };
        self.status.count(CardEvent::CardCopiesCompleted, 1);
        self.status.count(bytes, piece.len.into());
    }

    /// A queue in which a copy failed may have ended.
    fn revive(&mut self) -> Result<(), Error> {
        if !self.dma.is_running() && self.dma.in_flight() == 0 {
            tracing::warn!("the copy engine's queue has ended after an error; a new one is made");
            self.dma = Dma::new(&self.engine, &self.device, DEPTH)?;
            self.blamed = false;
        }
        Ok(())
    }

    fn submit(&mut self, index: u32) -> Result<(), Error> {
        let Piece { way, offset, len, .. } = self.pieces[index as usize].0;
        let Memories { near, far, lines, ring, control } = &self.memories;
        let (from, to, ahead) = match way {
            Way::ToHost => (near, far, 0),
            Way::FromHost => (far, near, 0),
            Way::ToRing => (lines, ring, *control),
        };
        let source = self.inventory.source(from, offset, len as usize)?;
        let target = self.inventory.target(to, offset + ahead, len as usize)?;
        match self.dma.copy(source, target, index.into()) {
            // A queue that is full now, or that ends, is tried again.
            Err(error) if error.is_again() || !self.dma.is_running() => {
                self.again.push_back(index);
                self.revive()
            }
            other => other,
        }
    }
}
