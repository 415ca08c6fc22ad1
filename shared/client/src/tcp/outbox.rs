//! Bytes that the socket did not take at once.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;

use bytes::{Buf, Bytes};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::Data;

/// Slices handed to the kernel at once.
const MAX_SLICES: usize = 16;

/// A queue of unsent bytes: copies of what was lent, references to what is shared. Its buffers are kept and reused.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    copies: VecDeque<u8>,
    unsent: usize,
}

#[derive(Debug)]
enum Chunk {
    /// So many bytes from the front of `copies`.
    Copied(usize),
    Shared(Bytes),
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn unsent(&self) -> usize {
        self.unsent
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.copies.extend(bytes);
        self.unsent += bytes.len();
        match self.chunks.back_mut() {
            Some(Chunk::Copied(len)) => *len += bytes.len(),
            _ => self.chunks.push_back(Chunk::Copied(bytes.len())),
        }
    }

    /// Queues `data` without its first `skip` bytes, which have left already.
    pub(crate) fn push_data(&mut self, data: Data<'_>, skip: usize) {
        match data {
            Data::Borrowed(bytes) => self.push(&bytes[skip..]),
            Data::Shared(bytes) if bytes.len() > skip => {
                self.unsent += bytes.len() - skip;
                self.chunks.push_back(Chunk::Shared(bytes.slice(skip..)));
            }
            Data::Shared(_) => {}
        }
    }

    /// Queues what `other` holds behind everything else.
    pub(crate) fn append(&mut self, mut other: Outbox) {
        self.unsent += other.unsent;
        self.copies.append(&mut other.copies);
        self.chunks.append(&mut other.chunks);
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.copies.clear();
        self.unsent = 0;
    }

    /// Writes until all has left (true) or the socket takes no more (false).
    pub(crate) fn flush(&mut self, stream: &TcpStream) -> io::Result<bool> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.gather(&mut slices);
            match send(stream, &slices[..count]) {
                Ok(sent) => self.consume(sent),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut count = 0;
        let mut put = |bytes: &'a [u8]| {
            if !bytes.is_empty() && count < MAX_SLICES {
                slices[count] = IoSlice::new(bytes);
                count += 1;
            }
            count < MAX_SLICES
        };
        let (front, back) = self.copies.as_slices();
        let mut at = 0;
        for chunk in &self.chunks {
            let more = match chunk {
                Chunk::Shared(bytes) => put(bytes),
                Chunk::Copied(len) => {
                    let (from, to) = (at, at + len);
                    at = to;
                    let split = front.len();
                    put(&front[from.min(split)..to.min(split)])
                        && put(&back[from.saturating_sub(split)..to.saturating_sub(split)])
                }
            };
            if !more {
                break;
            }
        }
        count
    }

    fn consume(&mut self, mut sent: usize) {
        self.unsent -= sent;
        while let Some(chunk) = self.chunks.front_mut() {
            let left = match chunk {
                Chunk::Copied(len) => {
                    let gone = sent.min(*len);
                    self.copies.drain(..gone);
                    *len -= gone;
                    sent -= gone;
                    *len
                }
                Chunk::Shared(bytes) => {
                    let gone = sent.min(bytes.len());
                    bytes.advance(gone);
                    sent -= gone;
                    bytes.len()
                }
            };
            if left > 0 {
                break;
            }
            self.chunks.pop_front();
        }
    }
}

/// One vectored write that neither blocks nor raises a signal.
pub(crate) fn send(stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn copies_and_references_leave_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut inn, _) = listener.accept().unwrap();
        out.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::default();
        let mut expected = Vec::new();
        for round in 0..40u8 {
            let bytes: Vec<u8> = (0..100_000u32).map(|i| (i as u8).wrapping_mul(3).wrapping_add(round)).collect();
            outbox.push(&bytes[..77]);
            outbox.push_data(Data::Shared(&Bytes::from(bytes.clone())), 5);
            outbox.push_data(Data::Borrowed(&bytes), 50_000);
            expected.extend_from_slice(&bytes[..77]);
            expected.extend_from_slice(&bytes[5..]);
            expected.extend_from_slice(&bytes[50_000..]);
        }
        assert_eq!(outbox.unsent(), expected.len());
        assert!(!outbox.flush(&out).unwrap(), "nobody reads yet, so the socket must fill");
        let mut got = vec![0; expected.len()];
        let mut at = 0;
        while at < got.len() {
            at += inn.read(&mut got[at..]).unwrap();
            outbox.flush(&out).unwrap();
        }
        assert!(got == expected && outbox.is_empty() && outbox.unsent() == 0);
    }
}
