//! What joins two processes once they have met, shared by a connection and by the consumers and producers on it, each with a thread of its own.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{Shutdown, shutdown};
use zerocopy::IntoBytes;

use super::MAX_CONSUMERS;
use super::path::FarConsumer;
use super::ring::{Kind, Nonsense, Writer};
use super::socket::{self, Announcement, Received};

/// One side's end.
pub(crate) struct Link {
    pub(super) socket: OwnedFd,
    outgoing: Mutex<Writer>,
    /// The other side's consumers.
    consumers: Mutex<BTreeMap<u32, Arc<FarConsumer>>>,
    down: AtomicBool,
    /// The longest message that both sides take.
    pub(super) max_message: u32,
    /// Messages that the other side has room for.
    queue: u32,
}

impl Link {
    pub(super) fn new(socket: OwnedFd, outgoing: Writer, max_message: u32, queue: u32) -> Link {
        let (consumers, down) = (Mutex::default(), AtomicBool::new(false));
        Link { socket, outgoing: Mutex::new(outgoing), consumers, down, max_message, queue }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Ends it, after what was sent before.
    pub(super) fn end(&self) {
        if !self.down.swap(true, Ordering::AcqRel) {
            self.outgoing().close();
            // It tells the other side what the ring says too. It fails if that has ended.
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }

    /// Whether the other side has no room for a message now.
    pub(super) fn is_full(&self) -> Result<bool, Nonsense> {
        Ok(self.outgoing().unread()? >= u64::from(self.queue))
    }

    /// Sends a record, if there is room.
    pub(super) fn send(&self, kind: Kind, bytes: &[u8]) -> Result<bool, Nonsense> {
        self.outgoing().write(kind, bytes)
    }

    /// Tells the other side of a consumer, if there is room.
    pub(super) fn announce(&self, consumer: u32, memory: &OwnedFd) -> Result<bool, Nonsense> {
        // Under the lock, so that packets and records come in the same order.
        let mut outgoing = self.outgoing();
        if outgoing.room(size_of::<u32>())?.is_none() {
            return Ok(false);
        }
        match socket::send(&self.socket, Announcement::new(consumer).as_bytes(), Some(memory.as_fd())) {
            Ok(()) => outgoing.write(Kind::NewConsumer, &consumer.to_le_bytes()),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(_) => Err(Nonsense),
        }
    }

    /// Takes the memory of a consumer that the other side has announced.
    pub(super) fn meet(&self, consumer: u32) -> Result<(), Nonsense> {
        let Received::Packet(announcement, Some(memory)) = socket::receive::<Announcement>(&self.socket) else {
            return Err(Nonsense);
        };
        let far = FarConsumer::new(&memory).filter(|_| announcement.is_of(consumer)).ok_or(Nonsense)?;
        let mut consumers = self.consumers();
        if consumers.len() >= MAX_CONSUMERS as usize || consumers.insert(consumer, Arc::new(far)).is_some() {
            return Err(Nonsense);
        }
        Ok(())
    }

    pub(super) fn part(&self, consumer: u32) -> Result<(), Nonsense> {
        self.consumers().remove(&consumer).map(|far| far.expire()).ok_or(Nonsense)
    }

    pub(super) fn consumer(&self, consumer: u32) -> Option<Arc<FarConsumer>> {
        self.consumers().get(&consumer).cloned()
    }

    fn outgoing(&self) -> MutexGuard<'_, Writer> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn consumers(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<FarConsumer>>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
