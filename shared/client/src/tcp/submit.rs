//! Sending requests.

use std::io::{self, IoSlice};
use std::time::Instant;

use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, MAX_TENSORS};

use super::TcpConnection;
use super::outbox::send;
use crate::request::{deadline_us, describe};
use crate::{Error, Request, RequestId};

impl TcpConnection {
    /// Submits a request: header, manifest and tensors as one frame in one vectored write. What the socket does not
    /// take at once is kept (see [`crate::Data`]) and leaves with later polls.
    ///
    /// # Errors
    /// Nothing was submitted: [`Error::NotReady`], [`Error::TooManyInFlight`], [`Error::Backpressure`],
    /// [`Error::TooLarge`], [`Error::BadInput`], or the connection's own error.
    pub fn submit(&mut self, request: &Request<'_>) -> Result<RequestId, Error> {
        let (id, total) = self.prepare(request)?;
        let sent = if self.outbox.is_empty() { self.write(request, 0) } else { 0 };
        if sent < total {
            self.keep_rest(request, sent);
        }
        Ok(RequestId(id))
    }

    /// Like [`TcpConnection::submit`], but returns only when all has left, and never copies or keeps anything of the
    /// tensors. Whenever the socket is full, `blocked` is called to wait until it can be read or written. What arrives
    /// meanwhile is kept for the next poll.
    ///
    /// # Errors
    /// As for [`TcpConnection::submit`]; and those of `blocked`, after which the request is cancelled.
    pub fn submit_with(
        &mut self,
        request: &Request<'_>,
        mut blocked: impl FnMut(&TcpConnection) -> Result<(), Error>,
    ) -> Result<RequestId, Error> {
        let (id, total) = self.prepare(request)?;
        let mut sent = 0;
        loop {
            if self.torn || self.outbox.is_empty() {
                sent += self.write(request, sent);
            }
            self.torn = sent > 0 && sent < total;
            if sent == total {
                // What had to wait for the frame's end.
                self.flush();
                return Ok(RequestId(id));
            }
            if let Err(e) = self.drive() {
                self.die(e.clone());
                return Err(e);
            }
            if self.flights.get_mut(id).is_none() {
                // It has ended already, by its deadline or by the server; the frame must be completed all the same.
                self.keep_rest(request, sent);
                return Ok(RequestId(id));
            }
            if let Err(e) = blocked(self) {
                self.keep_rest(request, sent);
                self.cancel(RequestId(id));
                return Err(e);
            }
        }
    }

    /// Checks a request, encodes its head and enters it among those in flight. Returns its id and its bytes.
    fn prepare(&mut self, request: &Request<'_>) -> Result<(u64, usize), Error> {
        self.check_ready()?;
        if self.flights.is_full() {
            return Err(Error::TooManyInFlight { limit: self.flights.limit() });
        }
        describe(request.tensors, &mut self.manifest)?;
        let length = self.manifest.finish().len() as u64 + u64::from(self.manifest.data_len());
        let limit = self.session.limits.map_or(0, |l| l.max_request);
        if length > u64::from(limit) {
            return Err(Error::TooLarge { bytes: length, limit });
        }
        let total = HEADER_LEN + length as usize;
        if !self.outbox.is_empty() {
            self.flush();
            if !self.outbox.is_empty() && self.outbox.unsent() + total > self.session.options.max_unsent {
                return Err(Error::Backpressure { unsent: self.outbox.unsent() });
            }
        }
        let now = Instant::now();
        let id = self.flights.insert(request.model, now, request.deadline.map(|d| now + d));
        let flags = if request.repeatable { Flags::MANIFEST.with(Flags::REPEATABLE) } else { Flags::MANIFEST };
        let header = Header {
            flags,
            priority: request.priority,
            model: request.model,
            session: self.session.id,
            request: id,
            length: length as u32,
            total: length as u32,
            deadline_us: deadline_us(request.deadline),
            ..Header::new(Kind::Request)
        };
        self.head.clear();
        self.head.extend_from_slice(&header.to_bytes());
        self.head.extend_from_slice(self.manifest.finish());
        Ok((id, total))
    }

    /// Writes what the socket takes of a prepared request from byte `from` on. A socket that fails takes nothing; why
    /// is found out by reading.
    fn write(&mut self, request: &Request<'_>, from: usize) -> usize {
        let mut slices = [IoSlice::new(&[]); MAX_TENSORS + 1];
        let mut skip = from;
        let parts = std::iter::once(&self.head[..]).chain(request.tensors.iter().map(|t| t.data.as_slice()));
        let mut count = 0;
        for part in parts {
            let rest = &part[skip.min(part.len())..];
            skip -= skip.min(part.len());
            if !rest.is_empty() {
                slices[count] = IoSlice::new(rest);
                count += 1;
            }
        }
        match send(&self.stream, &slices[..count]) {
            Ok(sent) => {
                self.written += sent as u64;
                sent
            }
            Err(e) => {
                if e.kind() != io::ErrorKind::WouldBlock {
                    self.write_error = Some(e);
                }
                0
            }
        }
    }

    /// Queues a prepared request from byte `from` on: at the end, or at the front where its first bytes have left.
    fn keep_rest(&mut self, request: &Request<'_>, from: usize) {
        let behind = std::mem::take(&mut self.torn).then(|| std::mem::take(&mut self.outbox));
        let mut skip = from;
        self.outbox.push(&self.head[skip.min(self.head.len())..]);
        skip -= skip.min(self.head.len());
        for tensor in request.tensors {
            let len = tensor.data.as_slice().len();
            self.outbox.push_data(tensor.data, skip.min(len));
            skip -= skip.min(len);
        }
        if let Some(behind) = behind {
            self.outbox.append(behind);
        }
    }
}
