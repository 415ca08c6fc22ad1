//! The host's side of a BlueField: what the card is shown, what it is told, and the thread that serves with it.
//!
//! The orchestrator is the one that also serves beside a commodity NIC. Here its end of the link is a ring that the card writes by DMA, and
//! completions go back in comch immediates.

pub(crate) mod doctor;
mod link;
mod reach;
mod shows;
mod thread;
mod visit;

pub use link::CardLink;
pub use shows::{DeviceSlots, GpuWay, ToldWay};
pub use thread::{Parts, Told, start};

use splitrpc_arena::ArenaError;
use splitrpc_doca::{Error, Library, LoadError};

use crate::config::Nic;

/// Why there is no card to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// There is no DOCA.
    #[error("nic.kind is smartnic, and {0}")]
    Library(#[from] LoadError),
    /// A call of DOCA.
    #[error("DOCA: {0}")]
    Doca(#[from] Error),
    /// There is no card, or it is not the one that is meant.
    #[error("{0}")]
    NoCard(String),
    /// Memory for the ring.
    #[error("ring: {0}")]
    Arena(#[from] ArenaError),
    /// The doorbell's address.
    #[error("cannot listen on nic.doorbell {address}: {error}")]
    Doorbell {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The card does not want this agent.
    #[error("the card refuses: {0}")]
    Refused(String),
    /// How the GPU's slots are to be shown to the card cannot be had.
    #[error("nic.gpu_memory is {wanted}, and that cannot be had: {why}")]
    GpuMemory {
        /// What it is.
        wanted: &'static str,
        /// Why.
        why: String,
    },
    /// The card cannot reach the GPU's slots as they are shown.
    #[error("{0}")]
    Unreached(String),
    /// What the card says makes no sense, or it says nothing.
    #[error("the card {0}")]
    Strange(&'static str),
}

/// Whether the software BlueField would stand in for a card; `None` where there is neither.
#[must_use]
pub fn is_emulated(nic: &Nic) -> Option<bool> {
    Library::load(nic.libraries.as_deref()).ok().map(|library| library.is_emulated())
}
