//! Safe handles over DOCA: a BlueField's devices, memory that both sides reach, copies over PCIe, and messages.
//!
//! May live here: what makes a call of DOCA that is out of order impossible to write, or a named error. May not: what the copies and messages are
//! for, and anything that a request means.
//!
//! Each handle holds what it depends on, so that parents outlive their children whatever is dropped first. What belongs to a progress engine stays on
//! its thread:
//!
//! ```compile_fail,E0277
//! fn on_another_thread(engine: splitrpc_doca::ProgressEngine) {
//!     std::thread::spawn(move || engine.progress());
//! }
//! ```
//!
//! Memory is described and started in one step, so nothing can be said of it too late, and a copy takes its two buffers with it until it is done:
//!
//! ```compile_fail,E0382
//! # use splitrpc_doca::{Buffer, Dma, Error};
//! fn twice(dma: &mut Dma, from: Buffer, to: Buffer) -> Result<(), Error> {
//!     dma.copy(from, to, 1)?;
//!     dma.copy(from, to, 2)
//! }
//! ```
//!
//! A message is read where it was received, and not kept there:
//!
//! ```compile_fail,E0521
//! # use splitrpc_doca::{Client, Notice};
//! fn keep(client: &mut Client, kept: &mut Vec<&[u8]>) {
//!     client.notices(|notice| {
//!         if let Notice::Message(_, message) = notice {
//!             kept.push(message);
//!         }
//!     });
//! }
//! ```
#![deny(unsafe_code)]

mod buffer;
mod comch;
mod context;
mod device;
mod dma;
mod error;
mod library;
mod lines;
mod memory;
mod task;

pub use buffer::{Buffer, Inventory};
pub use comch::{Client, Connection, Consumer, Immediate, MAX_IMMEDIATE, Notice, Options, Producer, Server};
pub use context::{ContextState, ProgressEngine};
pub use device::{Capabilities, Device, DeviceInfo, Representor};
pub use dma::{Dma, Finished};
pub use doca_sys::LoadError;
pub use error::{Code, Error};
pub use library::Library;
pub use lines::Lines;
pub use memory::{Access, Memory};
