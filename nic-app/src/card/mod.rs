//! The engine's edge towards a host on the other side of PCIe: on a card the link's submissions and all payload go over by DMA.
//!
//! [`Far`] is what the data thread takes for its host. It carries what has arrived in this side's slots into the host's slots of the same name, then
//! writes the submission's line into the host's ring, and brings an answer back when the host has told of it. [`serve`] is a card's life: it waits for
//! its host agent, is told what to serve, serves until one of both ends, and begins again.

mod bell;
mod carrier;
mod device;
mod far;
mod flight;
mod greeting;
mod serve;
mod status;

pub use far::Far;
pub use serve::{CardConfig, CardError, CardPorts, CardStop, open, serve, serve_watched};
pub use status::{CardState, Loss, Status};
