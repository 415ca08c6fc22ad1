//! A GPU's side of the arena: slots in device memory, the movers that fill and empty them, and lanes, on which a
//! model's kernels run over them in place.
//!
//! What may live here: memory that stays where a GPU works on it for as long as it does, and what is submitted over
//! that memory. What may not: sockets, the protocol, models, batches, or which request goes first.
//!
//! The driver's handles ([`splitrpc_cuda`]) leave it to their caller to keep memory until the work on it is done. Here
//! that is settled, once: see [`Lane`].

mod arena;
mod carry;
mod code;
mod copies;
mod error;
mod gate;
mod infer;
mod keep;
mod kernel;
mod lane;
mod pages;
mod persistent;
mod porter;
mod schedule;
mod told;
mod work;

pub use arena::GpuArena;
pub use carry::Piece;
pub use code::load_code;
pub use copies::{Chunking, Copies, Direction, Rank};
pub use error::GpuError;
pub use gate::Gate;
pub use infer::Shaped;
pub use keep::Keep;
pub use kernel::{Kernel, MAX_ARGUMENTS, Operand};
pub use lane::{Buffer, Lane, Recording, filled};
pub use persistent::{MAX_VALUES, Persistent};
pub use porter::Porter;
pub use told::{Carried, ForAll};
pub use work::Work;
