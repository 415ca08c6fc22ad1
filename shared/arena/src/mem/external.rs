//! Outputs that live in a runtime's own memory until they have left.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::span::Span;
use crate::{EXTERNAL_POOL, MAX_TENSORS, META_BYTES, Run};

/// Outputs to be adopted: one buffer a tensor, and what their meta area begins with.
#[derive(Debug, Default)]
pub struct External {
    /// One buffer a tensor, in the order of the model's outputs.
    pub tensors: Vec<Vec<u8>>,
    /// The beginning of the meta area, at most [`META_BYTES`]; the rest is zero.
    pub meta: Vec<u8>,
}

/// Why outputs could not be adopted; the buffers are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdoptError {
    /// As many as the arena allows are adopted already.
    Full,
    /// More tensors than [`MAX_TENSORS`], a tensor of 4 GiB or more, or a meta area larger than [`META_BYTES`].
    TooLarge,
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AdoptError::Full => "as many external outputs as the arena allows are waiting to be sent",
            AdoptError::TooLarge => "an external output has too many tensors, or one that is too large",
        })
    }
}

impl std::error::Error for AdoptError {}

/// A bounded table of adopted outputs. Each entry has a lock of its own, held for a few instructions, so a worker that
/// adopts does not hold up the thread that sends.
pub(super) struct Externals {
    entries: Box<[Mutex<Entry>]>,
    vacant: Mutex<Vec<u32>>,
}

struct Entry {
    generation: u32,
    block: Option<Arc<Block>>,
}

/// The buffers of one adopted output. Freed when the table has dropped it and the last lease is gone.
pub(super) struct Block {
    tensors: Vec<Buffer>,
    meta: Buffer,
}

/// A `Vec<u8>` taken apart, so that no reference to its bytes exists beside the spans.
struct Buffer {
    base: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: a buffer owns its memory as a `Vec<u8>` does, and gives access to it through spans only.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Externals {
    pub(super) fn new(capacity: u32) -> Externals {
        let entry = || Mutex::new(Entry { generation: 1, block: None });
        Externals {
            entries: (0..capacity).map(|_| entry()).collect(),
            // The last is taken first, so the lowest entries are used first.
            vacant: Mutex::new((0..capacity).rev().collect()),
        }
    }

    pub(super) fn adopt(&self, external: External) -> Result<Run, AdoptError> {
        let External { tensors, mut meta } = external;
        if tensors.len() > MAX_TENSORS
            || tensors.iter().any(|tensor| u32::try_from(tensor.len()).is_err())
            || meta.len() > META_BYTES as usize
        {
            return Err(AdoptError::TooLarge);
        }
        let first = lock(&self.vacant).pop().ok_or(AdoptError::Full)?;
        meta.resize(META_BYTES as usize, 0);
        let tensors = tensors.into_iter().map(Buffer::from).collect();
        let block = Arc::new(Block { tensors, meta: Buffer::from(meta) });
        let mut entry = lock(&self.entries[first as usize]);
        entry.block = Some(block);
        Ok(Run { pool: EXTERNAL_POOL, rows: 1, first, generation: entry.generation })
    }

    pub(super) fn release(&self, run: Run) -> bool {
        let Some(mut entry) = self.entry(run) else { return false };
        let block = entry.block.take();
        if block.is_some() {
            entry.generation = entry.generation.wrapping_add(1);
            drop(entry);
            lock(&self.vacant).push(run.first);
        }
        // The buffers themselves go here, outside the locks, unless a lease still holds them.
        block.is_some()
    }

    pub(super) fn release_all(&self) {
        for (first, entry) in (0..).zip(&self.entries) {
            let generation = lock(entry).generation;
            self.release(Run { pool: EXTERNAL_POOL, rows: 1, first, generation });
        }
    }

    pub(super) fn block(&self, run: Run) -> Option<Arc<Block>> {
        self.entry(run)?.block.clone()
    }

    fn entry(&self, run: Run) -> Option<MutexGuard<'_, Entry>> {
        if run.pool != EXTERNAL_POOL || run.rows != 1 {
            return None;
        }
        let entry = lock(self.entries.get(run.first as usize)?);
        (entry.generation == run.generation).then_some(entry)
    }
}

impl Block {
    pub(super) fn tensor(&self, tensor: u16) -> Option<Span<'_>> {
        self.tensors.get(usize::from(tensor)).map(Buffer::span)
    }

    pub(super) fn meta(&self) -> Span<'_> {
        self.meta.span()
    }
}

impl Buffer {
    fn span(&self) -> Span<'_> {
        // SAFETY: the buffer owns `len` initialised bytes from `base`, for as long as it is borrowed, and nothing
        // accesses them but spans.
        unsafe { Span::new(self.base, self.len) }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        let mut bytes = ManuallyDrop::new(bytes);
        let base = NonNull::new(bytes.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Buffer { base, len: bytes.len(), capacity: bytes.capacity() }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the three parts come from the `Vec` in `from`, which was forgotten there, and are given back once.
        drop(unsafe { Vec::from_raw_parts(self.base.as_ptr(), self.len, self.capacity) });
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
