//! What rouses a host agent that sleeps: comch has no events, and a DMA write wakes nobody, so a datagram does.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use splitrpc_engine::{MS, Time};
use splitrpc_telemetry::CardEvent;

use super::status::Status;

/// How soon a bell that has not been heard is rung again, and how late at most.
const AGAIN: core::ops::RangeInclusive<u64> = MS..=100 * MS;

/// A doorbell, and what is known of whoever listens to it.
#[derive(Debug)]
pub(super) struct Bell {
    socket: Option<UdpSocket>,
    knock: [u8; 8],
    sleeps: bool,
    wants_slots: bool,
    /// When it is rung again, if it was rung and nothing was heard.
    again: Time,
    wait: u64,
    status: Arc<Status>,
}

impl Bell {
    /// The bell of a host agent that listens there, or that never sleeps.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn new(listens: Option<SocketAddr>, knock: u64, status: &Arc<Status>) -> io::Result<Bell> {
        let open = |to: SocketAddr| {
            let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        let socket = listens.map(open).transpose()?;
        let knock = knock.to_le_bytes();
        Ok(Bell {
            socket,
            knock,
            sleeps: false,
            wants_slots: false,
            again: Time::NEVER,
            wait: *AGAIN.start(),
            status: Arc::clone(status),
        })
    }

    /// The host agent sleeps.
    pub(super) fn sleeps(&mut self, wants_slots: bool) {
        (self.sleeps, self.wants_slots) = (true, wants_slots);
    }

    /// Whether the host agent sleeps in want of slots.
    pub(super) fn wants_slots(&self) -> bool {
        self.sleeps && self.wants_slots
    }

    /// The host agent was heard, so it is awake.
    pub(super) fn heard(&mut self) {
        (self.sleeps, self.again, self.wait) = (false, Time::NEVER, *AGAIN.start());
    }

    /// There is something for the host agent to see.
    pub(super) fn ring(&mut self, now: Time) {
        if self.sleeps && self.again == Time::NEVER {
            self.knock(now);
        }
    }

    /// Rings once more where it may not have been heard.
    pub(super) fn remind(&mut self, now: Time) {
        if self.again <= now {
            self.knock(now);
        }
    }

    /// When it is to be rung once more.
    pub(super) fn next(&self) -> Time {
        self.again
    }

    fn knock(&mut self, now: Time) {
        if let Some(socket) = &self.socket {
            // What is lost or refused is rung again.
            let _ = socket.send(&self.knock);
            self.status.count(CardEvent::CardDoorbellKnocks, 1);
        }
        self.again = now + self.wait;
        self.wait = (2 * self.wait).min(*AGAIN.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_for_sleepers_only_until_it_is_heard() {
        let door = UdpSocket::bind("127.0.0.1:0").unwrap();
        door.set_nonblocking(true).unwrap();
        let status = Arc::default();
        let mut bell = Bell::new(Some(door.local_addr().unwrap()), 77, &status).unwrap();
        let heard = || {
            let mut bytes = [0; 9];
            let mut count = 0;
            while let Ok(len) = door.recv(&mut bytes) {
                assert_eq!(bytes[..len], 77_u64.to_le_bytes());
                count += 1;
            }
            count
        };
        let at = |ms: u64| Time::from_nanos(ms * MS);
        bell.ring(at(0));
        assert_eq!(heard(), 0);
        bell.sleeps(false);
        bell.ring(at(0));
        bell.ring(at(0));
        assert_eq!(heard(), 1);
        bell.remind(at(0));
        assert_eq!((heard(), bell.next()), (0, at(1)));
        // 1, 2, 4, ... up to 100 ms later.
        for (ms, next) in [(1, 3), (3, 7), (7, 15), (15, 31), (31, 63), (63, 127), (127, 227)] {
            bell.remind(at(ms));
            assert_eq!((heard(), bell.next()), (1, at(next)), "at {ms} ms");
        }
        bell.heard();
        bell.ring(at(300));
        bell.remind(at(300));
        assert_eq!((heard(), bell.next()), (0, Time::NEVER));
        assert_eq!(status.event(CardEvent::CardDoorbellKnocks), 8);
    }
}
