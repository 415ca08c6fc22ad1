//! The splitrpc protocol as state machines without sockets, clock, heap or payload.
//!
//! A [`Server`] takes parsed frame headers and says where each frame's payload belongs; it hands complete requests to
//! a link, takes completions back, and says which frames to send. A [`Client`] is its other half over datagrams.
//! Both are told the time, use only the storage that they are lent, and never see a payload byte.
//!
//! May live here: protocol state and its rules. May not: system calls, clocks, allocation, `unsafe`, tensor data.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod channel;
mod client;
mod config;
mod congestion;
mod cookie;
mod flight;
mod incoming;
mod message;
mod model;
mod outgoing;
mod pacer;
mod queue;
mod ranges;
mod received;
mod rtt;
mod server;
mod size;
mod time;

pub use client::{
    Client, ClientConfig, ClientEvent, ClientPlacement, ClientSlot, ClientStats, ClientStorage, ClientTransmit,
    ClientVerdict, RequestSpec, SubmitError,
};
pub use config::{ConfigError, PathInfo, ServerConfig};
pub use congestion::{AckSample, Congestion, DelayControl};
pub use flight::SentFrame;
pub use message::{Chunk, Piece, Pieces, Sizes};
pub use model::{InputPlan, ModelPlan};
pub use server::{
    ChannelSlot, CompletionHead, Control, Ended, LEVELS, OriginSlot, Peer, Placement, RequestSlot, Server, SessionSlot,
    Stats, Storage, StorageSizes, Transmit, Verdict,
};
pub use time::{MS, SEC, Time, US};
