//! Copies that are not part of a launch: of requests that arrive or wait, and of large outputs.

use splitrpc_arena::Run;
use splitrpc_gpu::{Copies, GpuError};
use splitrpc_wire::TensorDesc;

use super::board::ORDINARY;
use crate::config;

/// Tensors of a request that are copied while it arrives; further ones are copied with the launch.
const EARLY_TENSORS: usize = 4;

/// Bytes that are copied at once while a request arrives, at least: each copy costs calls of the driver.
const EARLY_COPY: u32 = 256 << 10;

/// The copies of one board.
pub(super) struct Transfers {
    pub(super) incoming: Copies,
    pub(super) outgoing: Copies,
    /// What was begun of each request, by its number.
    begun: Vec<Begun>,
    /// Copies up to so many bytes are part of the launch.
    pub(super) direct: u64,
    /// Requests of so many bytes at least are copied while they arrive; 0 is none.
    early: u32,
    /// Outputs up to so many bytes are written by a kernel.
    pub(super) by_kernel: u64,
    /// Lanes that wait for copies.
    pub(super) waited_for: usize,
    /// Why copies failed.
    pub(super) failed: Option<GpuError>,
    /// Pools whose slots a launch may still use that was given up.
    closed: Vec<u16>,
}

/// What was begun of a request's copies.
#[derive(Clone, Copy)]
struct Begun {
    /// Its slots; `NONE` where nothing was begun.
    run: Run,
    /// Bytes of each tensor from its beginning on that are copied or on their way.
    covered: [u32; EARLY_TENSORS],
    /// All of it is.
    whole: bool,
}

impl Begun {
    const NOTHING: Begun = Begun { run: Run::NONE, covered: [0; EARLY_TENSORS], whole: false };
}

impl Transfers {
    pub(super) fn new(incoming: Copies, outgoing: Copies, requests: usize, settings: &config::Gpu) -> Transfers {
        Transfers {
            incoming,
            outgoing,
            begun: vec![Begun::NOTHING; requests],
            direct: settings.chunk_bytes.into(),
            early: settings.early_bytes,
            by_kernel: settings.kernel_out_bytes.into(),
            waited_for: 0,
            failed: None,
            closed: Vec::new(),
        }
    }

    pub(super) fn early_bytes(&self) -> u32 {
        if self.early == 0 { u32::MAX } else { self.early }
    }

    /// Bytes of a request, which is whole, that are not on their way yet.
    pub(super) fn left(&self, request: u32, input: Run, tensors: &[TensorDesc]) -> u64 {
        let begun = match self.begun[request as usize] {
            begun if begun.run == input => begun,
            _ => Begun::NOTHING,
        };
        let covered = |tensor: usize, bytes: u32| match begun.whole {
            true => bytes,
            false => begun.covered.get(tensor).copied().unwrap_or(0).min(bytes),
        };
        tensors.iter().enumerate().map(|(tensor, desc)| u64::from(desc.bytes - covered(tensor, desc.bytes))).sum()
    }

    /// Whether no copies to the device are under way.
    pub(super) fn is_in_idle(&mut self) -> bool {
        if !self.incoming.is_idle() {
            // Nobody may have looked for a while.
            self.failed = self.incoming.pump().err().or(self.failed.take());
        }
        self.incoming.is_idle()
    }

    /// Whether copies of a request in these slots have begun.
    pub(super) fn has_begun(&self, request: u32, input: Run) -> bool {
        self.begun[request as usize].run == input
    }

    /// Part of a request is there; others may say so as well of slots that are not this request's any more.
    pub(super) fn arriving(&mut self, request: u32, input: Run, tensor: u16, offset: u32, len: u32) {
        if self.closed.contains(&input.pool) {
            return;
        }
        let Some(begun) = self.begun.get(request as usize) else { return };
        if begun.run != input {
            // Of one that came to nothing before it was submitted.
            self.forget(request);
            self.begun[request as usize].run = input;
        }
        let begun = &mut self.begun[request as usize];
        let Some(covered) = begun.covered.get_mut(usize::from(tensor)).filter(|_| !begun.whole) else { return };
        let end = offset.saturating_add(len);
        // What lies between was not told of; and small pieces are not worth a copy each.
        if offset > *covered || end < covered.saturating_add(self.early.max(EARLY_COPY)) {
            return;
        }
        let from = std::mem::replace(covered, end);
        // Behind those that are whole.
        self.push(request, (ORDINARY, u64::MAX), input, tensor, from, end - from);
        if let Err(error) = self.incoming.feed() {
            self.failed.get_or_insert(error);
        }
    }

    /// Copies what is not on its way yet of a request.
    pub(super) fn fetch(&mut self, request: u32, rank: (u8, u64), input: Run, tensors: &[TensorDesc]) {
        self.rest(request, input, tensors, |this, tensor, from, len| {
            this.push(request, rank, input, tensor, from, len);
        });
    }

    /// Has `copy` copy, given tensor, first byte and length, what is not on its way yet of a request, which is whole then.
    pub(super) fn rest(
        &mut self,
        request: u32,
        input: Run,
        tensors: &[TensorDesc],
        mut copy: impl FnMut(&mut Transfers, u16, u32, u32),
    ) {
        let begun = match self.begun[request as usize] {
            begun if begun.run == input => begun,
            _ => {
                self.forget(request);
                Begun::NOTHING
            }
        };
        for (tensor, desc) in tensors.iter().enumerate().filter(|_| !begun.whole) {
            let covered = begun.covered.get(tensor).copied().unwrap_or(0).min(desc.bytes);
            if covered < desc.bytes {
                copy(self, tensor as u16, covered, desc.bytes - covered);
            }
        }
        self.begun[request as usize] = Begun { run: input, whole: true, ..begun };
    }

    fn push(&mut self, request: u32, rank: (u8, u64), input: Run, tensor: u16, from: u32, len: u32) {
        if let Err(error) = self.incoming.push(request, rank, input, tensor, from, len) {
            self.failed.get_or_insert(error);
        }
    }

    /// Why copies have failed, if they have. Once nothing is under way any more all that was begun is forgotten, and copied anew: which of it is
    /// missing is not known.
    pub(super) fn failure(&mut self) -> Option<GpuError> {
        let error = self.failed.clone()?;
        // What comes of that is in what has failed already.
        let _ = (self.incoming.pump(), self.outgoing.pump());
        if self.waited_for == 0 && self.incoming.is_idle() && self.outgoing.is_idle() {
            self.begun.fill(Begun::NOTHING);
            self.failed = None;
        }
        Some(error)
    }

    /// Nothing more goes into slots of these pools.
    pub(super) fn close(&mut self, pools: &[u16]) {
        self.closed.extend(pools);
    }

    /// Undoes one [`Transfers::close`]. What was begun there is begun anew.
    pub(super) fn open(&mut self, pools: &[u16]) {
        for pool in pools {
            if let Some(place) = self.closed.iter().position(|closed| closed == pool) {
                self.closed.swap_remove(place);
            }
        }
        for request in 0..self.begun.len() {
            if pools.contains(&self.begun[request].run.pool) {
                self.forget(request as u32);
            }
        }
    }

    /// A request is in a launch, or will never be.
    pub(super) fn forget(&mut self, request: u32) {
        let begun = std::mem::replace(&mut self.begun[request as usize], Begun::NOTHING);
        if begun.run != Run::NONE {
            self.incoming.forget(request);
        }
    }

    /// Whether to look how far copies have come: somebody waits for them, or they for the copy engine.
    pub(super) fn are_awaited(&self) -> bool {
        self.waited_for > 0 || !self.incoming.all_given()
    }

    pub(super) fn pump(&mut self) -> bool {
        if !self.are_awaited() {
            return false;
        }
        // Those that wait for copies are told.
        let mut pump = |copies: &mut Copies| {
            copies.pump().unwrap_or_else(|error| {
                self.failed.get_or_insert(error);
                false
            })
        };
        pump(&mut self.incoming) | pump(&mut self.outgoing)
    }
}
