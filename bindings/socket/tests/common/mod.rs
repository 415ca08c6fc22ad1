//! What the socket tests share.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use splitrpc_socket::{Events, Interest, Poller};

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn loopback_v6() -> SocketAddr {
    "[::1]:0".parse().unwrap()
}

/// Waits, long enough for any machine, until the descriptor is ready.
pub(crate) fn ready(fd: impl AsFd, interest: Interest) {
    let poller = Poller::new().unwrap();
    poller.add(fd, 0, interest).unwrap();
    let mut events = Events::with_capacity(1);
    assert_eq!(poller.wait(&mut events, Some(Duration::from_secs(20))).unwrap(), 1, "not ready after 20 s");
}

pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| ((index + seed) * 31 % 251) as u8).collect()
}
