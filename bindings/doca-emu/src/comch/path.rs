//! The fast path's memory: what a consumer has posted, and the ring by which a producer sends.
//!
//! A consumer makes it and a producer of the other side fills it; neither believes the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ring::{self, Kind, Nonsense, Place, Reader, Writer};
use super::socket;
use crate::buffer::Part;
use crate::memory::{Mapping, sealed_file};
use crate::task::MAX_IMMEDIATE;

/// Receives that a consumer may have posted.
pub(super) const MAX_POSTS: u32 = 1024;
/// Bytes that a producer may send at once.
pub(super) const MAX_PAYLOAD: u32 = 256 << 10;

/// Where things lie.
const POSTED: usize = 0;
const IMMEDIATE: usize = 8;
const LENGTHS: usize = 64;
const RING: usize = 8192;
const SIZE: usize = RING + ring::SIZE;
const _: () = assert!(LENGTHS + 4 * MAX_POSTS as usize <= RING);
const _: () = assert!(2 * (MAX_PAYLOAD as usize + size_of::<PayloadHeader>() + 8) <= ring::CAPACITY);

/// What precedes a payload in its record.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct PayloadHeader {
    pub(super) producer: u32,
    pub(super) immediate_len: u32,
    pub(super) immediate: [u8; MAX_IMMEDIATE],
}

/// The consumer's end.
pub(super) struct NearEnd {
    memory: Arc<Mapping>,
    pub(super) file: OwnedFd,
    pub(super) reader: Reader,
    posted: u64,
}

impl NearEnd {
    pub(super) fn new(immediate_len: u32) -> io::Result<NearEnd> {
        let file = sealed_file("splitrpc-bluefield-consumer", SIZE)?;
        let memory = Arc::new(Mapping::of(file.as_fd(), 0, SIZE, true)?);
        memory.half_word(IMMEDIATE).store(immediate_len, Ordering::Release);
        let reader = Reader::new(Place { memory: memory.clone(), offset: RING });
        Ok(NearEnd { memory, file, reader, posted: 0 })
    }

    /// Offers room for so many bytes.
    pub(super) fn post(&mut self, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.memory.half_word(length_of(self.posted)).store(len, Ordering::Relaxed);
        self.posted += 1;
        self.memory.word(POSTED).store(self.posted, Ordering::Release);
    }
}

/// The producers' end.
pub(super) struct FarConsumer {
    memory: Arc<Mapping>,
    sending: Mutex<Sending>,
    expired: AtomicBool,
}

struct Sending {
    writer: Writer,
    /// Posts that are spoken for, and those of them that were used.
    reserved: u64,
    used: u64,
}

/// Why something was not sent.
pub(super) enum NotSent {
    /// There is no room in the ring now.
    Full,
    /// It does not fit into what was posted, or could not be read.
    Refused,
    Nonsense,
}

impl FarConsumer {
    pub(super) fn new(file: &OwnedFd) -> Option<FarConsumer> {
        let memory = Arc::new(socket::map(file, SIZE)?);
        let writer = Writer::new(Place { memory: memory.clone(), offset: RING });
        let sending = Mutex::new(Sending { writer, reserved: 0, used: 0 });
        Some(FarConsumer { memory, sending, expired: AtomicBool::new(false) })
    }

    pub(super) fn expire(&self) {
        self.expired.store(true, Ordering::Release);
    }

    pub(super) fn has_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    /// Speaks for a post, if there is one.
    pub(super) fn reserve(&self) -> Result<bool, Nonsense> {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let posted = self.memory.word(POSTED).load(Ordering::Acquire);
        let left = posted.checked_sub(sending.reserved).ok_or(Nonsense)?;
        sending.reserved += u64::from(left > 0);
        Ok(left > 0)
    }

    /// Lets go of a post that was spoken for.
    pub(super) fn give_back(&self) {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner).reserved -= 1;
    }

    /// Uses a post that was spoken for. Unless the ring is full it is no longer so afterwards.
    pub(super) fn send(&self, header: &PayloadHeader, payload: Option<&Part>) -> Result<(), NotSent> {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.fill(&mut sending, header, payload);
        match outcome {
            Ok(()) => sending.used += 1,
            Err(NotSent::Refused) => sending.reserved -= 1,
            Err(NotSent::Full | NotSent::Nonsense) => {}
        }
        outcome
    }

    fn fill(&self, sending: &mut Sending, header: &PayloadHeader, payload: Option<&Part>) -> Result<(), NotSent> {
        let len = payload.map_or(0, |payload| payload.len);
        let posted = self.memory.half_word(length_of(sending.used)).load(Ordering::Relaxed);
        let immediate = self.memory.half_word(IMMEDIATE).load(Ordering::Acquire);
        if len > posted.min(MAX_PAYLOAD) as usize || header.immediate_len > immediate {
            return Err(NotSent::Refused);
        }
        let header = header.as_bytes();
        let record = header.len() + len;
        let room = sending.writer.room(record).map_err(|Nonsense| NotSent::Nonsense)?.ok_or(NotSent::Full)?;
        // SAFETY: there is room for both, and the other end does not look before they are sent.
        unsafe { room.copy_from_nonoverlapping(header.as_ptr(), header.len()) };
        if let Some(payload) = payload {
            let to = room.wrapping_add(header.len());
            payload.memory.read(payload.address, to, len).map_err(|_| NotSent::Refused)?;
        }
        sending.writer.send(Kind::Payload, record);
        Ok(())
    }
}

/// Where the length of a post stands.
fn length_of(post: u64) -> usize {
    LENGTHS + size_of::<u32>() * (post % u64::from(MAX_POSTS)) as usize
}
