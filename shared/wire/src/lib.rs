//! The splitrpc wire format.
//!
//! Everything that crosses a network is defined here and in `docs/wire.md`, which is its prose twin: the fixed
//! 64-byte [`Header`], the tensor [`manifest`], the session set-up in [`hello`], acknowledgements, the model
//! catalogue, and the [`Status`] codes. Parsing turns bytes into validated types or into a named [`WireError`];
//! past this crate no length, offset or index that came from a peer is looked at again.
//!
//! May live here: layouts, their validation, their encoding. May not: sockets, clocks, heap, state.
#![no_std]
#![forbid(unsafe_code)]

pub mod ack;
pub mod catalog;
mod error;
pub mod header;
pub mod hello;
pub mod manifest;
pub mod path;
mod status;
pub mod tensor;
mod train;

pub use error::WireError;
pub use header::{Flags, HEADER_LEN, Header, Kind, MANIFEST_TENSOR, TOTAL_UNKNOWN};
pub use manifest::{MAX_MANIFEST_LEN, Manifest, ManifestWriter, TensorDesc};
pub use path::{Path, STAGES, Stage};
pub use status::{Fault, MAX_STATUS_TEXT, Status, StatusPayload};
pub use tensor::{DType, MAX_RANK, MAX_TENSORS, Shape};
pub use train::Train;

/// The protocol version that this crate speaks. A draft until version 1 is frozen.
pub const VERSION: u8 = 0;
