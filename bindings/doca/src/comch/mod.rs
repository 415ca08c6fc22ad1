//! Messages between the card and its host.
//!
//! A [`Server`] runs on the card, a [`Client`] on the host. Over their connection go messages of up to some KiB, and, between a [`Producer`] on one
//! side and a [`Consumer`] on the other, words of up to 32 bytes that cost less. None of them wakes anybody: who waits for them has to look.

mod connection;
mod consumer;
mod endpoint;
mod producer;

pub use connection::Connection;
pub use consumer::{Consumer, Immediate};
pub use endpoint::{Client, Notice, Options, Server};
pub use producer::Producer;

/// Bytes of an immediate at most.
pub const MAX_IMMEDIATE: usize = 32;
