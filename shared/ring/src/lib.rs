//! Descriptor rings between the engine and the orchestrator, over memory that the other side may corrupt.
//!
//! May live here: what crosses a link, the rings that carry it, the links that are nothing but such rings, and how one end
//! knows that the other has to be roused. May not: payload, sockets, devices, decisions about requests.
#![cfg_attr(not(any(test, loom)), no_std)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod cursor;
mod descriptor;
mod entry;
mod immediate;
#[cfg(feature = "alloc")]
mod in_process;
mod link;
mod nap;
mod sync;

pub use cursor::{BadSize, CONTROL_LINES, Consumer, Faults, MAX_CAPACITY, Producer};
pub use descriptor::{COMPLETION_WORDS, Completion, DESCRIPTOR_WORDS, RequestKey, Run, Submission};
pub use entry::{LINE_WORDS, Line, NoEntry, open, seal};
pub use immediate::{IMMEDIATE_BYTES, Immediate, Tells};
#[cfg(feature = "alloc")]
pub use in_process::{InProcessHost, InProcessNic, in_process};
pub use link::{Full, HostLink, NicLink};
pub use nap::Nap;
