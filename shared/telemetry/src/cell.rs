//! A number that one thread writes and others read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A 64-bit number with one writer. Readers may see it a little late, never torn. With two writers updates can be lost,
/// which is why each data thread has cells of its own.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Zero.
    #[must_use]
    pub const fn new() -> Cell {
        Cell(AtomicU64::new(0))
    }

    /// The value.
    #[must_use]
    pub fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Replaces the value.
    pub fn store(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds to the value, wrapping.
    pub fn add(&self, n: u64) {
        // A plain load and store instead of a locked instruction: there is one writer.
        self.store(self.load().wrapping_add(n));
    }
}
