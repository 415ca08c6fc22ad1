//! Safe handles over the CUDA driver: the ground for memory, movers and runtimes on a GPU.
//!
//! What may live here: thin handles of the driver's objects (contexts, streams, events, memory, modules, graphs), each
//! of which keeps alive what it depends on. What may not: arenas, copies with a meaning, batches, threads, or a policy.
//!
//! Building needs no toolkit: the driver's library is loaded at run time, and [`Driver::load`] says what is missing
//! where it cannot be. `cudarc` supplies the declarations. Its own handles are not used: they keep an error of one call
//! for the next caller, track events for each buffer, and know neither exportable memory nor waits for a value.
//!
//! Work on a stream goes on after the call that asked for it has returned. What must live until then cannot be said
//! with lifetimes, so those calls are `unsafe`, and all have one contract: see [`Stream`]. Calls that wait are safe.
//!
//! ```no_run
//! use splitrpc_cuda::{DeviceMemory, Driver, MemoryOptions, Stream};
//!
//! let driver = Driver::load()?;
//! let context = driver.context(&driver.devices()[0])?;
//! let memory = DeviceMemory::new(&context, 4096, MemoryOptions::default())?;
//! let stream = Stream::new(&context)?;
//! stream.upload(memory.range(0, 5)?, b"hello")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every handle may be used from every thread, unless it says otherwise; a call makes its context current on the
//! calling thread and leaves it so. A process that has loaded the driver must not go on with it in a child after
//! `fork`.

mod context;
mod copy;
mod device;
mod driver;
mod error;
mod event;
mod found;
mod graph;
mod host;
mod launch;
mod memory;
mod memory_ops;
mod module;
mod pinned;
mod range;
mod stream;
mod symbols;

pub use context::{Context, FlushScope, StreamPriorities};
pub use copy::CopyBatch;
pub use device::{DeviceInfo, WritesOrdering};
pub use driver::{Driver, NEEDED_VERSION, Unavailable, Version};
pub use error::{DriverError, Error};
pub use event::Event;
pub use found::FoundMemory;
pub use graph::{Executable, Graph, Update};
pub use host::HostRegistration;
pub use launch::{Arg, Launch};
pub use memory::{DeviceMemory, MemoryOptions};
pub use memory_ops::WaitCondition;
pub use module::{Function, Module};
pub use pinned::PinnedBuffer;
pub use range::{DeviceRange, HostRange, RangeError, Word};
pub use stream::Stream;
