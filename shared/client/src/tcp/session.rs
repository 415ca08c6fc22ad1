//! What the two sides agreed on, and every frame that carries no tensors.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitrpc_wire::hello::{Abilities, Hello, HelloAck, MAX_DATAGRAM};
use splitrpc_wire::{Header, Kind, Status, StatusPayload, VERSION, WireError};

use super::outbox::Outbox;
use crate::flight::Flights;
use crate::{Catalogue, ConnectOptions, Error, Event, Failure, RequestId};

/// Pings that may be under way.
const MAX_PINGS: usize = 64;
/// The value of pings that ask for a sign of life only; those of the caller have 0.
const SIGN_OF_LIFE: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Hello sent (or waiting for the connection to be made).
    Hello,
    /// The catalogue is being fetched for the first time.
    Listing,
    /// Requests may be sent.
    Ready,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) peer: SocketAddr,
    pub(crate) state: State,
    pub(crate) options: ConnectOptions,
    /// The session's number from the server.
    pub(crate) id: u64,
    pub(crate) limits: Option<HelloAck>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) credit: u16,
    nonce: u64,
    /// The catalogue's bytes so far, while it is being fetched.
    listing: Option<Vec<u8>>,
    pings: VecDeque<Instant>,
}

impl Session {
    pub(crate) fn new(peer: SocketAddr, options: ConnectOptions) -> Result<Session, Error> {
        let nonce = getrandom::u64().map_err(|e| Error::Unreachable {
            peer,
            kind: std::io::ErrorKind::Other,
            reason: format!("no random numbers: {e}"),
        })?;
        Ok(Session {
            peer,
            state: State::Hello,
            options,
            id: 0,
            limits: None,
            catalogue: Arc::default(),
            events: VecDeque::with_capacity(4),
            credit: 0,
            nonce,
            listing: None,
            pings: VecDeque::new(),
        })
    }

    pub(crate) fn hello(&self, outbox: &mut Outbox) {
        let hello = Hello {
            version_min: u16::from(VERSION),
            version_max: u16::from(VERSION),
            abilities: Abilities::default(),
            datagram: MAX_DATAGRAM,
            max_response: self.options.max_response,
            nonce: self.nonce,
            token: 0,
            key_id: 0,
            window: u64::MAX,
        };
        let length = Hello::LEN as u32;
        outbox.push(&Header { length, ..Header::new(Kind::Hello) }.to_bytes());
        outbox.push(&hello.to_bytes());
    }

    pub(crate) fn ping(&mut self, outbox: &mut Outbox) -> Result<(), Error> {
        if self.pings.len() >= MAX_PINGS {
            return Err(Error::TooManyInFlight { limit: MAX_PINGS });
        }
        self.pings.push_back(Instant::now());
        self.send(outbox, Header::new(Kind::Ping));
        Ok(())
    }

    pub(crate) fn ask_for_life(&self, outbox: &mut Outbox) {
        self.send(outbox, Header { request: SIGN_OF_LIFE, ..Header::new(Kind::Ping) });
    }

    pub(crate) fn cancel(&self, outbox: &mut Outbox, id: u64) {
        self.send(outbox, Header { request: id, ..Header::new(Kind::Cancel) });
    }

    pub(crate) fn fetch_catalogue(&mut self, outbox: &mut Outbox) {
        if self.listing.is_none() {
            self.listing = Some(Vec::new());
            self.send(outbox, Header::new(Kind::List));
        }
    }

    fn send(&self, outbox: &mut Outbox, header: Header) {
        outbox.push(&Header { session: self.id, ..header }.to_bytes());
    }

    /// Takes in a frame that is not a response.
    pub(crate) fn control(
        &mut self,
        header: &Header,
        payload: &[u8],
        outbox: &mut Outbox,
        flights: &mut Flights,
    ) -> Result<(), Error> {
        self.credit = header.credit;
        match (header.kind, self.state) {
            (Kind::Error, _) => return self.error(header, payload, flights),
            (Kind::Goodbye, _) => return Err(self.lost("the server closed the session", flights)),
            (Kind::HelloAck, State::Hello) => self.hello_ack(header, payload, outbox, flights)?,
            (_, State::Hello) => return Err(unexpected("before the hello's answer")),
            (Kind::ListAck, _) => self.list_ack(header, payload, outbox)?,
            (Kind::Pong, _) if header.request == SIGN_OF_LIFE => {}
            (Kind::Pong, _) => {
                if let Some(sent) = self.pings.pop_front() {
                    self.events.push_back(Event::Pong { elapsed: sent.elapsed() });
                }
            }
            (Kind::Ping, _) => {
                // A server that asks without ever taking the answers must not fill this side's memory.
                if outbox.unsent() > self.options.max_unsent {
                    return Err(unexpected("unread answers to pings"));
                }
                let pong = Header { request: header.request, packet: header.packet, ..Header::new(Kind::Pong) };
                self.send(outbox, pong);
            }
            // Acknowledgements carry nothing that a stream needs beyond the credit.
            (Kind::Credit | Kind::Ack, _) => {}
            _ => return Err(unexpected("a frame that only clients send")),
        }
        Ok(())
    }

    fn hello_ack(
        &mut self,
        header: &Header,
        payload: &[u8],
        outbox: &mut Outbox,
        flights: &mut Flights,
    ) -> Result<(), Error> {
        let ack = HelloAck::parse(payload).map_err(Error::protocol("answer to the hello"))?;
        if ack.version != u16::from(VERSION) {
            return Err(Error::Protocol { error: WireError::BadVersion, context: "answer to the hello" });
        }
        if ack.nonce != self.nonce || header.session == 0 {
            return Err(unexpected("an answer to another hello"));
        }
        self.id = header.session;
        flights.set_limit(usize::from(ack.max_requests.min(self.options.max_in_flight)));
        self.limits = Some(ack);
        if self.options.catalogue && ack.catalog_len > 0 {
            self.state = State::Listing;
            self.fetch_catalogue(outbox);
        } else {
            self.state = State::Ready;
            self.events.push_back(Event::Ready);
        }
        Ok(())
    }

    fn list_ack(&mut self, header: &Header, payload: &[u8], outbox: &mut Outbox) -> Result<(), Error> {
        let mut listing = self.listing.take().ok_or(unexpected("a catalogue that nobody asked for"))?;
        let have = listing.len() as u64;
        if header.total > self.options.max_catalogue {
            return Err(Error::Protocol { error: WireError::TooLong, context: "model catalogue" });
        }
        let end = have + payload.len() as u64;
        let progress = !payload.is_empty() || end == u64::from(header.total);
        if u64::from(header.offset) != have || end > u64::from(header.total) || !progress {
            return Err(Error::Protocol { error: WireError::BadExtent, context: "model catalogue" });
        }
        listing.extend_from_slice(payload);
        if end < u64::from(header.total) {
            self.listing = Some(listing);
            self.send(outbox, Header { offset: end as u32, ..Header::new(Kind::List) });
            return Ok(());
        }
        self.catalogue = Arc::new(Catalogue::parse(&listing).map_err(Error::protocol("model catalogue"))?);
        let first = self.state == State::Listing;
        self.state = State::Ready;
        self.events.push_back(if first { Event::Ready } else { Event::Catalogue });
        Ok(())
    }

    fn error(&mut self, header: &Header, payload: &[u8], flights: &mut Flights) -> Result<(), Error> {
        let status = StatusPayload::parse(payload).map_err(Error::protocol("error frame"))?;
        let failure = Failure {
            id: (header.request != 0).then_some(RequestId(header.request)),
            status: status.status,
            retry_after: (status.retry_after_us > 0).then(|| Duration::from_micros(status.retry_after_us.into())),
            text: status.text.to_owned(),
        };
        if failure.id.is_none() {
            return Err(Error::Refused(failure));
        }
        // An unknown request is one that was given up before.
        if flights.remove(header.request).is_some() {
            self.events.push_back(Event::Failed(failure));
        }
        Ok(())
    }

    /// A request ends on this side's own account.
    pub(crate) fn fail(&mut self, id: u64, status: Status, text: String) {
        let failure = Failure { id: Some(RequestId(id)), status, retry_after: None, text };
        self.events.push_back(Event::Failed(failure));
    }

    pub(crate) fn lost(&self, reason: impl Into<String>, flights: &Flights) -> Error {
        Error::Lost { peer: self.peer, may_have_executed: flights.len() > 0, reason: reason.into() }
    }
}

fn unexpected(context: &'static str) -> Error {
    Error::Protocol { error: WireError::BadKind, context }
}
