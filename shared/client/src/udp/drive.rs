//! Driving the engine: what arrives, what leaves, what comes of it.

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use splitrpc_engine::{ClientEvent, ClientPlacement, ClientVerdict, Time};
use splitrpc_ring::RequestKey;
use splitrpc_socket::{MAX_GSO_SEGMENTS, MAX_UDP_PAYLOAD};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Manifest, Status, StatusPayload, WireError};

use super::UdpConnection;
use super::calls::id_of;
use super::inbox::{Arrived, Foreseen};
use crate::{Catalogue, Error, Event, Failure, Response};

/// Why nothing may come back for a hello, which is as long as the smallest datagram that a path must take.
const NO_ANSWER: &str = "no server may listen there for UDP, or the path may lose it or take no datagrams of 1,232 bytes \
                         (its MTU must be at least 1,280)";
/// Why a reply may not have come, though it was sent again and again.
const NO_REPLY: &str = "no part of it has come; the path from the server may take no datagrams of 1,232 bytes (its MTU must \
                        be at least 1,280)";
/// Refusals in a row that end a session. One may be forged, or of a moment.
const REFUSALS: u32 = 3;
/// Reads that one poll makes before it lets its caller do something else.
const POLL_BUDGET: usize = 64;

impl UdpConnection {
    /// Sends and receives until there is an event, or nothing more to do.
    pub(super) fn drive(&mut self) -> Result<(), Error> {
        self.more = false;
        for _ in 0..POLL_BUDGET {
            let now = self.now();
            if !self.ready && now.nanos() >= self.options.timeout.as_nanos() as u64 {
                return Err(self.set_up_failed());
            }
            if self.quiet_until <= now {
                if self.engine.next_timeout() <= now {
                    self.engine.handle_timeout(now);
                }
                self.transmit(now);
                self.mind_refusals()?;
                self.take_events(now)?;
                if !self.events.is_empty() {
                    return Ok(());
                }
            }
            match self.inbox.receive(&self.socket, &mut self.calls) {
                Ok(arrived) => {
                    self.quiet_until = Time::default();
                    (self.refusals, self.network_error) = (0, None);
                    self.take_in(&arrived)?;
                    if !self.events.is_empty() {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.quiet_until <= now && self.batch.is_empty() {
                        self.quiet_until = self.engine.next_timeout();
                    }
                    return Ok(());
                }
                Err(e) => {
                    self.note_opinion(e);
                    self.mind_refusals()?;
                }
            }
        }
        self.more = true;
        Ok(())
    }

    /// What the network thinks of an earlier datagram.
    fn note_opinion(&mut self, e: io::Error) {
        self.refusals += u32::from(e.kind() == io::ErrorKind::ConnectionRefused);
        self.network_error = Some(e);
    }

    /// A server that is gone is not waited for as one that is silent.
    fn mind_refusals(&mut self) -> Result<(), Error> {
        match (self.refusals, self.ready) {
            (0, _) => Ok(()),
            (_, false) => Err(self.set_up_failed()),
            (REFUSALS.., true) => Err(self.closed(Status::ConnectionLost)),
            _ => Ok(()),
        }
    }

    fn take_in(&mut self, arrived: &Arrived) -> Result<(), Error> {
        let now = self.now();
        let mut index = 0;
        while let Some((header, frames)) = self.inbox.train(index, arrived.in_place) {
            if let ClientVerdict::Place(placement) = self.engine.handle_train(now, &header, frames) {
                let length = header.length * frames;
                self.placed(now, &placement, header.tensor, header.offset, length);
                self.bytes_in_place += u64::from(length);
            }
            self.take_events(now)?;
            index += frames as usize;
        }
        let side = self.inbox.take_side();
        let mut result = Ok(());
        for datagram in side[..arrived.aside].chunks(arrived.segment.max(1)) {
            let mut rest = datagram;
            while !rest.is_empty() && result.is_ok() {
                let frame = Header::parse(rest).ok().and_then(|header| {
                    let (frame, after) = rest.split_at_checked(HEADER_LEN + header.length as usize)?;
                    Some((header, &frame[HEADER_LEN..], after))
                });
                let Some((header, payload, after)) = frame else {
                    self.engine.handle_garbage(WireError::Truncated);
                    break;
                };
                self.take_frame(now, &header, payload);
                result = self.take_events(now);
                rest = after;
            }
        }
        self.inbox.put_side(side);
        result
    }

    fn take_frame(&mut self, now: Time, header: &Header, payload: &[u8]) {
        let head = match header.kind {
            Kind::Response if !header.flags.has(Flags::MANIFEST) => 0,
            Kind::Response => Manifest::peek_len(payload).map_or(payload.len(), |len| len.min(payload.len())),
            _ => payload.len(),
        };
        if header.kind == Kind::Error {
            self.words = StatusPayload::parse(payload).ok().map(|s| {
                let after = Duration::from_micros(s.retry_after_us.into());
                (s.text.to_owned(), (!after.is_zero()).then_some(after))
            });
        }
        self.dismissed |= header.kind == Kind::Goodbye;
        match self.engine.handle_frame(now, header, &payload[..head]) {
            ClientVerdict::Place(placement) => self.place(now, header, payload, head, &placement),
            ClientVerdict::Catalog { offset, total } => self.take_listing(now, offset, total, payload),
            ClientVerdict::Done | ClientVerdict::Discard => {}
        }
    }

    /// Copies a frame's data to where it belongs.
    fn place(&mut self, now: Time, header: &Header, payload: &[u8], head: usize, placement: &ClientPlacement) {
        let (head, data) = payload.split_at(head);
        let Some(call) = self.calls.get_mut(placement.request) else { return };
        if call.response.is_none() {
            let Ok(manifest) = Manifest::parse(head) else { return };
            let mut response = self.pool.pop().unwrap_or_else(Response::empty);
            response.begin(id_of(placement.request).0, call.model, call.submitted, self.looked, &manifest, 0);
            call.response = Some(response);
            call.wire_id = header.request;
        }
        let Some(response) = call.response.as_mut() else { return };
        let mut rest = data;
        let mut last = None;
        for piece in self.engine.pieces(placement) {
            let Some(at) = response.position(piece.tensor, piece.offset, piece.length) else { return };
            let Some((bytes, after)) = rest.split_at_checked(piece.length as usize) else { return };
            response.span(at, bytes.len()).copy_from_slice(bytes);
            self.bytes_copied += bytes.len() as u64;
            rest = after;
            last = Some(piece);
        }
        match last {
            Some(piece) => self.placed(now, placement, piece.tensor, piece.offset, piece.length),
            None => self.placed(now, placement, 0, 0, 0),
        }
    }

    /// Data lies in place: `length` bytes of a tensor, or of the last one of several.
    fn placed(&mut self, now: Time, placement: &ClientPlacement, tensor: u16, offset: u32, length: u32) {
        if let Some(call) = self.calls.get_mut(placement.request) {
            let end = (tensor, offset + length);
            call.frontier = call.frontier.max(end);
            // A manifest's frame has less data than those behind it, so it foretells nothing but that they come.
            let full = u32::from(self.limits_datagram()) - HEADER_LEN as u32;
            let (tensor, offset) = end;
            self.inbox.foreseen = Some(Foreseen { key: placement.request, tensor, offset, length: full });
        }
        self.engine.placed(now, placement);
    }

    fn take_listing(&mut self, now: Time, offset: u32, total: u32, payload: &[u8]) {
        let fits = offset as usize == self.listing.len()
            && total <= self.options.max_catalogue
            && self.listing.len() + payload.len() <= total as usize
            && (!payload.is_empty() || total as usize == self.listing.len());
        if !fits {
            // Another catalogue than the one begun: start again.
            self.listing.clear();
            self.engine.list(now + splitrpc_engine::MS, 0);
            return;
        }
        self.listing.extend_from_slice(payload);
        if self.listing.len() < total as usize {
            self.engine.list(now, self.listing.len() as u32);
            return;
        }
        match Catalogue::parse(&self.listing) {
            Ok(catalogue) => {
                self.catalogue = Arc::new(catalogue);
                self.ready = true;
                let first = mem::take(&mut self.first_listing);
                self.events.push_back(if first { Event::Ready } else { Event::Catalogue });
            }
            Err(error) => self.dead = Some(Error::Protocol { error, context: "model catalogue" }),
        }
    }

    fn take_events(&mut self, now: Time) -> Result<(), Error> {
        while let Some(event) = self.engine.poll_event() {
            match event {
                ClientEvent::Connected(ack) if self.options.catalogue && ack.catalog_len > 0 => {
                    self.listing.clear();
                    self.engine.list(now, 0);
                }
                ClientEvent::Connected(_) => {
                    (self.ready, self.first_listing) = (true, false);
                    self.events.push_back(Event::Ready);
                }
                ClientEvent::Response(key) => {
                    if let Some(mut response) = self.calls.end(key) {
                        response.finish(self.looked);
                        self.events.push_back(Event::Response(response));
                    }
                }
                ClientEvent::Failed(key, status) => {
                    let partial = self.calls.end(key);
                    let mut failure = self.failure(Some(key), status);
                    if status == Status::ReplyGone && partial.is_none() && failure.text.is_empty() {
                        failure.text = NO_REPLY.into();
                    }
                    if let Some(partial) = partial {
                        self.recycle(partial);
                    }
                    self.events.push_back(Event::Failed(failure));
                }
                ClientEvent::Pong(token) => {
                    if let Some(at) = self.pings.iter().position(|(t, _)| *t == token) {
                        let elapsed = self.pings[at].1.elapsed();
                        self.pings.drain(..=at);
                        self.events.push_back(Event::Pong { elapsed });
                    }
                }
                ClientEvent::Closed(status) => return Err(self.closed(status)),
            }
            self.words = None;
        }
        Ok(())
    }

    fn failure(&mut self, key: Option<RequestKey>, status: Status) -> Failure {
        let (text, retry_after) = self.words.take().unwrap_or_default();
        Failure { id: key.map(id_of), status, retry_after, text }
    }

    fn closed(&mut self, status: Status) -> Error {
        match (status, self.ready) {
            (Status::ConnectionLost, false) => self.set_up_failed(),
            (Status::ConnectionLost | Status::UnknownSession, true) => {
                let reason = match self.network_error.take() {
                    Some(e) => e.to_string(),
                    None if status == Status::UnknownSession => status.to_string(),
                    None if self.dismissed => "the server closed the session".into(),
                    None => "the server is silent".into(),
                };
                Error::Lost { peer: self.peer, may_have_executed: self.calls.keys().next().is_some(), reason }
            }
            _ => Error::Refused(self.failure(None, status)),
        }
    }

    fn set_up_failed(&mut self) -> Error {
        match self.network_error.take() {
            Some(e) => Error::Unreachable { peer: self.peer, kind: e.kind(), reason: e.to_string() },
            None => {
                let (waiting_for, hint) = match self.limits() {
                    Some(_) => ("model catalogue", ""),
                    None => ("answer to the hello", NO_ANSWER),
                };
                Error::TimedOut { waiting_for, after: self.options.timeout, hint }
            }
        }
    }

    /// Sends what may be sent now, as far as the socket takes it.
    pub(super) fn transmit(&mut self, now: Time) {
        self.quiet_until = Time::default();
        loop {
            if self.batch.is_empty() {
                if !self.next.is_empty() {
                    mem::swap(&mut self.batch, &mut self.next);
                }
                let datagram = usize::from(self.limits_datagram());
                // A train is no longer than what one call sends, so that the next batch takes what this one does not.
                let most = (MAX_UDP_PAYLOAD / datagram).clamp(1, MAX_GSO_SEGMENTS) as u32;
                while self.next.is_empty()
                    && let Some(frame) = self.engine.poll_train(now, most)
                {
                    let taken = self.batch.push(&frame, 0, datagram, &self.calls);
                    self.next.push(&frame, taken, datagram, &self.calls);
                }
            }
            if self.batch.is_empty() {
                return;
            }
            match self.batch.send(&self.socket, self.peer, &self.calls) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => self.note_opinion(e),
                Ok(()) => {}
            }
            self.batch.clear();
        }
    }
}
