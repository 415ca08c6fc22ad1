//! The memory itself. All of this crate's `unsafe` is below here.

mod arena;
mod copy;
#[cfg(feature = "count-copies")]
mod count;
mod extent;
mod external;
#[cfg(feature = "forbid")]
mod forbid;
mod iovec;
mod map;
mod span;

pub use arena::{Arena, ArenaError, Lease, MAX_ARENA_BYTES};
#[cfg(feature = "count-copies")]
pub use count::bytes_copied_by_this_thread;
pub use extent::Extent;
pub use external::{AdoptError, External};
#[cfg(feature = "forbid")]
pub use forbid::forbid;
pub use iovec::{IoVec, IoVecBuf, IoVecSend, IoVecSendBuf};
pub use span::Span;
