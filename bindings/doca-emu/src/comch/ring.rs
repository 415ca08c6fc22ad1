//! Records from one process to the other, through memory that both have mapped.
//!
//! Each end keeps its own position and publishes it; what it reads of the other's is checked before use, since the other may write anything. A
//! record lies in one piece: where it would not fit before the end of the ring, what is left there is skipped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::Mapping;

/// Bytes for records: twice the largest, so that there is room for any once the ring is empty.
pub(super) const CAPACITY: usize = 1 << 20;
/// What a ring takes of its mapping.
pub(super) const SIZE: usize = RECORDS + CAPACITY;
/// Where things lie in it. Each end writes to cache lines of its own.
const WRITTEN: usize = 0;
const CLOSED: usize = 8;
const READ: usize = 64;
const MESSAGES_READ: usize = 72;
const RECORDS: usize = 4096;
/// A record's length and kind, before its bytes.
const HEADER: usize = 8;

/// The other end wrote what makes no sense.
#[derive(Debug)]
pub(super) struct Nonsense;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// Nothing, up to the end of the ring.
    Skip = 1,
    Message = 2,
    /// A consumer has started: its memory comes by the socket.
    NewConsumer = 3,
    /// A consumer has stopped: its number.
    ExpiredConsumer = 4,
    /// What a producer sends.
    Payload = 5,
}

impl Kind {
    fn of(number: u32) -> Option<Kind> {
        [Kind::Skip, Kind::Message, Kind::NewConsumer, Kind::ExpiredConsumer, Kind::Payload]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// Where a ring lies.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) memory: Arc<Mapping>,
    pub(super) offset: usize,
}

impl Place {
    fn word(&self, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.memory.word(self.offset + offset)
    }

    fn record(&self, position: u64, len: usize) -> *mut u8 {
        self.memory.pointer(self.offset + RECORDS + position as usize % CAPACITY, len)
    }
}

/// The end that writes.
pub(super) struct Writer {
    place: Place,
    written: u64,
    messages: u64,
}

impl Writer {
    pub(super) fn new(place: Place) -> Writer {
        Writer { place, written: 0, messages: 0 }
    }

    /// Where to write the bytes of a record of this length, if there is room now. It is sent by [`Self::send`].
    pub(super) fn room(&mut self, len: usize) -> Result<Option<*mut u8>, Nonsense> {
        let needed = HEADER + len.next_multiple_of(8);
        let to_end = CAPACITY - self.written as usize % CAPACITY;
        let skipped = if needed > to_end { to_end } else { 0 };
        let used = self.written.checked_sub(self.place.word(READ).load(Ordering::Acquire)).ok_or(Nonsense)?;
        let free = (CAPACITY as u64).checked_sub(used).ok_or(Nonsense)?;
        if ((needed + skipped) as u64) > free {
            return Ok(None);
        }
        if skipped > 0 {
            self.publish(Kind::Skip, skipped - HEADER);
        }
        Ok(Some(self.place.record(self.written, needed).wrapping_add(HEADER)))
    }

    /// Sends the record for which there was room.
    pub(super) fn send(&mut self, kind: Kind, len: usize) {
        self.publish(kind, len);
        self.messages += u64::from(kind == Kind::Message);
    }

    /// Sends a record of these bytes, if there is room.
    pub(super) fn write(&mut self, kind: Kind, bytes: &[u8]) -> Result<bool, Nonsense> {
        let Some(room) = self.room(bytes.len())? else { return Ok(false) };
        // SAFETY: there is room for as many, and the other end does not look before it is sent.
        unsafe { room.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.send(kind, bytes.len());
        Ok(true)
    }

    /// Messages that the other end has not yet read.
    pub(super) fn unread(&self) -> Result<u64, Nonsense> {
        self.messages.checked_sub(self.place.word(MESSAGES_READ).load(Ordering::Acquire)).ok_or(Nonsense)
    }

    /// Says that nothing follows.
    pub(super) fn close(&self) {
        self.place.word(CLOSED).store(1, Ordering::Release);
    }

    fn publish(&mut self, kind: Kind, len: usize) {
        let header = (len as u64) | (kind as u64) << 32;
        let at = self.place.offset + RECORDS + self.written as usize % CAPACITY;
        self.place.memory.word(at).store(header, Ordering::Relaxed);
        self.written += (HEADER + len.next_multiple_of(8)) as u64;
        self.place.word(WRITTEN).store(self.written, Ordering::Release);
    }
}

/// The end that reads.
pub(super) struct Reader {
    place: Place,
    read: u64,
    messages: u64,
}

/// A record that is there, until it is taken.
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) bytes: *const u8,
    pub(super) len: usize,
}

impl Reader {
    pub(super) fn new(place: Place) -> Reader {
        Reader { place, read: 0, messages: 0 }
    }

    /// The next record, if it has been sent.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Nonsense> {
        loop {
            let sent = self.place.word(WRITTEN).load(Ordering::Acquire);
            if sent == self.read {
                return Ok(None);
            }
            let there = sent.checked_sub(self.read).filter(|there| *there <= CAPACITY as u64).ok_or(Nonsense)?;
            let at = self.place.offset + RECORDS + self.read as usize % CAPACITY;
            let header = self.place.memory.word(at).load(Ordering::Relaxed);
            let (len, kind) = (header as u32 as usize, Kind::of((header >> 32) as u32).ok_or(Nonsense)?);
            let to_end = CAPACITY - self.read as usize % CAPACITY;
            let needed = HEADER + len.next_multiple_of(8);
            if needed > to_end || needed as u64 > there {
                return Err(Nonsense);
            }
            if kind != Kind::Skip {
                let bytes = self.place.record(self.read, needed).wrapping_add(HEADER);
                return Ok(Some(Record { kind, bytes, len }));
            }
            self.advance(needed);
        }
    }

    /// Gives back the room of a record.
    pub(super) fn take(&mut self, record: &Record) {
        if record.kind == Kind::Message {
            self.messages += 1;
            self.place.word(MESSAGES_READ).store(self.messages, Ordering::Release);
        }
        self.advance(HEADER + record.len.next_multiple_of(8));
    }

    /// Whether nothing follows what has been sent.
    pub(super) fn is_closed(&self) -> bool {
        self.place.word(CLOSED).load(Ordering::Acquire) != 0
    }

    fn advance(&mut self, bytes: usize) {
        self.read += bytes as u64;
        self.place.word(READ).store(self.read, Ordering::Release);
    }
}

impl Record {
    /// Copies its bytes; the other end may have changed them since they were sent, and after this no more.
    ///
    /// # Errors
    /// Where there are more than there is room for.
    pub(super) fn copy_to(&self, place: &mut [u8]) -> Result<usize, Nonsense> {
        let place = place.get_mut(..self.len).ok_or(Nonsense)?;
        // SAFETY: the reader checked that they lie inside the ring, and the place has as much room.
        unsafe { place.as_mut_ptr().copy_from_nonoverlapping(self.bytes, self.len) };
        Ok(self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::memory::sealed_file;

    fn ring() -> Place {
        let file = sealed_file("ring", SIZE).unwrap();
        Place { memory: Arc::new(Mapping::of(file.as_fd(), 0, SIZE, true).unwrap()), offset: 0 }
    }

    /// What was sent comes, in order and whole, over many ends of the ring.
    #[test]
    fn records_come_as_they_were_sent() {
        let place = ring();
        let (mut writer, mut reader) = (Writer::new(place.clone()), Reader::new(place));
        let (mut sent, mut came, mut bytes) = (0_usize, 0_usize, vec![0; CAPACITY / 2]);
        let len_of = |number: usize| number * 7919 % (CAPACITY / 2 - HEADER);
        while came < 500 {
            while sent < 500 && writer.write(Kind::Message, &vec![sent as u8; len_of(sent)]).unwrap() {
                sent += 1;
            }
            let record = reader.next().unwrap().expect("there is always room for one");
            assert_eq!(record.copy_to(&mut bytes).unwrap(), len_of(came));
            assert!(bytes[..len_of(came)].iter().all(|byte| *byte == came as u8));
            reader.take(&record);
            came += 1;
            assert_eq!(writer.unread().unwrap(), (sent - came) as u64);
        }
    }

    #[test]
    fn a_record_over_the_end_of_the_ring_is_refused() {
        let place = ring();
        let read = CAPACITY as u64 - 16;
        let mut reader = Reader { place: place.clone(), read, messages: 0 };
        place.word(WRITTEN).store(read + 64, Ordering::Relaxed);
        let mut next = |len: u64| {
            place.word(RECORDS + CAPACITY - 16).store(len | (Kind::Message as u64) << 32, Ordering::Relaxed);
            reader.next().map(|record| record.map(|record| record.len))
        };
        assert_eq!(next(8).unwrap(), Some(8));
        assert!(next(9).is_err());
    }

    /// A fuzz target: whatever the other end writes, an end stays inside the ring, and makes sense of it or says that there is none. The input is
    /// words, and where they go: the positions and the records.
    #[test]
    fn the_other_end_may_write_anything() {
        let place = ring();
        let places = [WRITTEN, READ, MESSAGES_READ, RECORDS, RECORDS + 8, RECORDS + 16, RECORDS + CAPACITY - 8];
        bolero::check!().for_each(|input: &[u8]| {
            let (mut writer, mut reader) = (Writer::new(place.clone()), Reader::new(place.clone()));
            for bytes in input.chunks_exact(9) {
                let word = u64::from_le_bytes(bytes[1..].try_into().expect("eight of nine"));
                place.word(places[usize::from(bytes[0]) % places.len()]).store(word, Ordering::Relaxed);
                let Ok(record) = reader.next() else { return };
                if let Some(record) = record {
                    assert!(record.len <= CAPACITY);
                    let _ = record.copy_to(&mut [0; 64]);
                    reader.take(&record);
                }
                let outcome = writer.write(Kind::Message, &[7; 40]).and_then(|_| writer.unread());
                if outcome.is_err() {
                    return;
                }
            }
        });
    }
}
