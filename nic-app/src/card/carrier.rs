//! Copies between this side's memory and the host's, in pieces that the device takes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitrpc_arena::Arena;
use splitrpc_doca::{Access, Device, Dma, Error, Inventory, Lines, Memory, ProgressEngine};
use splitrpc_telemetry::CardEvent;

use super::device::OnDevice;
use super::status::Status;

/// Copies under way at once: from 8 on a BlueField-3 is no faster.
const DEPTH: u32 = 32;
/// How often a piece is tried that the device does not get across.
const TRIES: u8 = 4;
/// Bytes of a piece at most, so that what follows a large one need not wait long.
const PIECE: u64 = 1 << 20;
/// Bytes by which a device's memory is tried, and how long that may take.
const PROOF: usize = 64;
const PROVEN_WITHIN: Duration = Duration::from_secs(5);

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
    /// Where they lie. Slots are at the same place on both sides, but for tensors that the host has on a device.
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
    device: OnDevice<Memory>,
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
    /// Between these slots and lines here and the host's slots, some of which are on its device, and ring, of which the lines begin behind `control`
    /// bytes.
    ///
    /// # Errors
    /// Those of DOCA.
    pub(super) fn new(
        engine: &ProgressEngine,
        device: &Device,
        (near, far, on_device): (&Arena, Memory, OnDevice<Memory>),
        (lines, ring, control): (&Lines, Memory, usize),
        status: &Arc<Status>,
    ) -> Result<Carrier, Error> {
        let library = device.library();
        let memories = Memories {
            near: Memory::of_arena(device, near, Access::Local)?,
            far,
            device: on_device,
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

    /// Whether the host has the tensors of a pool on its device.
    pub(super) fn is_on_device(&self, pool: u16) -> bool {
        self.memories.device.holds(pool)
    }

    /// Copies something to each of the device's memories and back, before anything else is done with slots.
    ///
    /// # Errors
    /// Which of them could not be reached so, and why.
    pub(super) fn prove(&mut self, near: &Arena) -> Result<(), String> {
        let extents: Vec<_> = self.memories.device.extents().collect();
        for (pool, offset, bytes) in extents {
            let len = PROOF.min(bytes);
            let Some(span) = near.whole().slice(offset, len).filter(|_| len > 0) else { continue };
            let written: Vec<u8> =
                (0..len).map(|byte| (byte as u8).wrapping_mul(151).wrapping_add(pool as u8)).collect();
            span.copy_from(&written);
            self.copy_alone(Way::ToHost, offset, len).map_err(|why| format!("pool {pool}: writing there: {why}"))?;
            span.fill(0);
            self.copy_alone(Way::FromHost, offset, len).map_err(|why| format!("pool {pool}: reading there: {why}"))?;
            let mut read = vec![0; len];
            span.copy_to(&mut read);
            span.fill(0);
            if read != written {
                return Err(format!("pool {pool}: what was written there is not what is read there"));
            }
        }
        Ok(())
    }

    /// Makes one copy, and waits for it.
    fn copy_alone(&mut self, way: Way, offset: usize, len: usize) -> Result<(), String> {
        let broken = |error: Error| format!("DOCA: {error}");
        self.begin(Piece { way, offset, len: len as u32, tag: 0 }).map_err(broken)?;
        let end = Instant::now() + PROVEN_WITHIN;
        loop {
            self.engine.progress();
            match self.ended().map_err(broken)? {
                Some((_, true)) => return Ok(()),
                Some((_, false)) => return Err("the copy failed".to_owned()),
                None if Instant::now() > end => return Err("the copy does not end".to_owned()),
                None => {}
            }
        }
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
        let Memories { near, far, device, lines, ring, control } = &self.memories;
        let there = device.place(offset).unwrap_or((far, offset));
        let (from, to) = match way {
            Way::ToHost => ((near, offset), there),
            Way::FromHost => (there, (near, offset)),
            Way::ToRing => ((lines, offset), (ring, offset + control)),
        };
        let source = self.inventory.source(from.0, from.1, len as usize)?;
        let target = self.inventory.target(to.0, to.1, len as usize)?;
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
