//! How many bytes the calling thread has copied through spans: for tests that prove which copies are not made.

use std::cell::Cell;

thread_local! {
    static COPIED: Cell<u64> = const { Cell::new(0) };
}

pub(super) fn add(bytes: usize) {
    COPIED.set(COPIED.get() + bytes as u64);
}

/// Bytes that this thread has copied into, out of and between spans so far. What the kernel copies is not among them.
#[must_use]
pub fn bytes_copied_by_this_thread() -> u64 {
    COPIED.get()
}
