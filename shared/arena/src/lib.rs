//! Where tensors live: windows of packed slots.
//!
//! What may live here: the arithmetic of pools, windows and slots, their allocator (index only, `no_std`, safe), and
//! with the feature `mem` the memory itself and the bounded views of it. What may not: sockets, the protocol, or
//! knowledge of what a tensor means.
//!
//! A pool has `windows` windows of `max_batch` slots (rows). Each tensor of a pool has an area of its own, in which the
//! rows of one window lie packed back to back, so that a run of rows is one contiguous batch for every tensor.
#![cfg_attr(not(any(test, feature = "mem")), no_std)]
#![deny(unsafe_code)]

mod allocator;
mod layout;
#[cfg(feature = "mem")]
#[allow(unsafe_code)]
mod mem;
mod runs;

pub use allocator::{AllocatorError, SlotAllocator, SlotEntry, StaleRun};
pub use layout::{EXTERNAL_POOL, LayoutError, MAX_POOL_BYTES, MAX_TENSORS, META_BYTES, PoolLayout, TensorRows};
#[cfg(feature = "count-copies")]
pub use mem::bytes_copied_by_this_thread;
#[cfg(feature = "forbid")]
pub use mem::forbid;
#[cfg(feature = "mem")]
pub use mem::{
    AdoptError, Arena, ArenaError, Extent, External, IoVec, IoVecBuf, IoVecSend, IoVecSendBuf, Lease, MAX_ARENA_BYTES,
    Span,
};
pub use runs::merge_runs;
pub use splitrpc_ring::Run;
