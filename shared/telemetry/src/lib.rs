//! Counters and histograms of the data path, and their Prometheus text.
//!
//! Each data thread owns one [`Shard`] and is the only one to write it; whoever exports reads all shards and adds them
//! up with [`render`]. Recording takes no lock, allocates nothing and uses no read-modify-write instruction. What can
//! be counted is declared once in [`Event`], [`CardEvent`] and [`Level`]; names and help texts follow from there.
//!
//! May live here: what is measured and how it is shown. May not: sockets, clocks, threads, per-packet logging.
#![forbid(unsafe_code)]

mod cell;
mod event;
mod histogram;
mod render;
mod shard;

pub use cell::Cell;
pub use event::{CardEvent, Event, Level};
pub use histogram::{Histogram, Snapshot};
pub use render::{Writer, render};
pub use shard::{MAX_PATHS, Model, Outage, PathKey, Shard};
