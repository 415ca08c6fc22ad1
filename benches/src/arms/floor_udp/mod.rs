//! The UDP floor: the least that moves these bytes there and back in datagrams, with the kernel's segmentation and
//! receive offloads, and no protocol.
//!
//! A client sets the sizes up once; after that both sides count bytes, and a message has ended when as many have come as
//! it is long. Nothing is sent again: when a datagram is lost the request times out, its sample is void, and the client
//! starts afresh. Where a message is larger than a share of the server's receive buffer, the server tells the client
//! from time to time how far it has come, and the client keeps no more than that share under way: without this a floor
//! would measure its own losses.

mod client;
mod server;

use std::io;

pub(crate) use client::Client;
pub(crate) use server::serve;
use splitrpc_socket::{MAX_GSO_SEGMENTS, MAX_UDP_PAYLOAD, UdpOptions};

use super::{MAX_MESSAGE, UDP_BUFFER};

const SETUP: &[u8; 8] = b"floorU1\0";
const GO: &[u8; 8] = b"floorG1\0";
const SETUP_LEN: usize = 32;
const GO_LEN: usize = 16;

/// The socket options of client and server.
fn options() -> UdpOptions {
    UdpOptions { recv_buffer: Some(UDP_BUFFER), send_buffer: Some(UDP_BUFFER), ..UdpOptions::default() }
}

/// Bytes of the largest send that the kernel cuts into datagrams.
fn burst(datagram: u16) -> usize {
    let datagram = usize::from(datagram.max(1));
    (MAX_UDP_PAYLOAD / datagram).min(MAX_GSO_SEGMENTS) * datagram
}

/// What client and server agree on, sent both ways before anything else. With a request of 0 bytes the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setup {
    request: u32,
    response: u32,
    /// Bytes of payload in each datagram.
    datagram: u32,
    /// How many bytes the client keeps under way at most.
    window: u32,
    /// From the server: bytes of its receive buffer.
    buffer: u32,
}

impl Setup {
    fn encode(&self) -> [u8; SETUP_LEN] {
        let mut bytes = [0; SETUP_LEN];
        bytes[..8].copy_from_slice(SETUP);
        let words = [self.request, self.response, self.datagram, self.window, self.buffer];
        for (to, word) in bytes[8..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// `None` for payload.
    fn parse(bytes: &[u8]) -> Option<Setup> {
        let words = bytes.strip_prefix(SETUP).filter(|words| words.len() == SETUP_LEN - 8)?;
        let mut words = words.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word));
        let mut next = || words.next();
        let setup = Setup { request: next()?, response: next()?, datagram: next()?, window: next()?, buffer: next()? };
        let fits = setup.request <= MAX_MESSAGE
            && (1..=MAX_MESSAGE).contains(&setup.response)
            && (1..=MAX_UDP_PAYLOAD as u32).contains(&setup.datagram);
        fits.then_some(setup)
    }
}

/// How much of which request has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Go {
    sequence: u32,
    received: u32,
}

impl Go {
    fn encode(&self) -> [u8; GO_LEN] {
        let mut bytes = [0; GO_LEN];
        bytes[..8].copy_from_slice(GO);
        bytes[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[12..].copy_from_slice(&self.received.to_le_bytes());
        bytes
    }

    /// `None` for payload.
    fn parse(bytes: &[u8]) -> Option<Go> {
        let words = bytes.strip_prefix(GO).filter(|words| words.len() == GO_LEN - 8)?;
        let (sequence, received) = words.split_first_chunk::<4>()?;
        let received = u32::from_le_bytes(received.try_into().ok()?);
        Some(Go { sequence: u32::from_le_bytes(*sequence), received })
    }
}

/// Whether an error of a send or receive means no more than "later".
fn later(error: &io::Error) -> bool {
    // A full device queue says so with ENOBUFS; an answer from a port now closed is of a client that has left.
    let no_buffers = rustix::io::Errno::NOBUFS.raw_os_error();
    error.kind() == io::ErrorKind::WouldBlock
        || error.kind() == io::ErrorKind::ConnectionRefused
        || error.raw_os_error() == Some(no_buffers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setups_and_goes_survive_the_wire_and_payload_is_neither() {
        let setup = Setup { request: 602_112, response: 4_000, datagram: 1_472, window: 65_536, buffer: 1 << 20 };
        assert_eq!(Setup::parse(&setup.encode()), Some(setup));
        let go = Go { sequence: 7, received: 99_000 };
        assert_eq!(Go::parse(&go.encode()), Some(go));
        assert_eq!((Setup::parse(&go.encode()), Go::parse(&setup.encode())), (None, None));
        for length in 0..64 {
            let payload = super::super::request_payload(length);
            assert_eq!((Setup::parse(&payload), Go::parse(&payload)), (None, None));
        }
        assert_eq!(Setup::parse(&Setup { datagram: 0, ..setup }.encode()), None);
    }

    #[test]
    fn a_burst_keeps_the_kernels_limits() {
        for datagram in [1, 1_472, 8_256, 65_507] {
            let burst = burst(datagram);
            assert!(burst <= MAX_UDP_PAYLOAD && burst <= MAX_GSO_SEGMENTS * usize::from(datagram) && burst > 0);
        }
        assert_eq!(burst(1_472), 44 * 1_472);
    }
}
