//! What arrives on a stream: frames, with response data read by the kernel straight into its response's buffer.
//!
//! A response like the last one costs a single system call: one scatter read takes its header and manifest into the
//! carry buffer and its data into a response buffer that lies ready. A guess that turns out wrong is mended by a copy.

use std::io::{self, IoSliceMut, Read};
use std::net::TcpStream;
use std::time::Instant;

use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, MANIFEST_TENSOR, Manifest, WireError};

use crate::flight::Flights;
use crate::{Error, Response};

/// Longest payload of a frame that is not a response.
const MAX_CONTROL: u32 = 1 << 20;
/// Bytes read beyond what is expected while several requests are in flight: the next small responses.
const READAHEAD: usize = 16 << 10;
/// Bytes that are let land in a response buffer on a guess.
const MAX_GUESS: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Inbox {
    /// Received and not yet consumed: `carry[start..end]`.
    carry: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that the frame at `start` needs before it can be looked at.
    need: usize,
    body: Body,
    /// Manifest and data bytes of the last response.
    guess: Option<(usize, usize)>,
    pool: Vec<Response>,
    max_response: u32,
    late: u64,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    /// A header comes next.
    Head,
    /// Data of a response in flight.
    Data { id: u64, left: usize },
    /// Data that nobody waits for.
    Discard { left: usize },
}

/// What a stream brought.
pub(crate) enum Incoming<'a> {
    Control(Header, &'a [u8]),
    Done(Response),
    /// Larger than this side takes; it is being discarded.
    TooLarge {
        id: u64,
        bytes: u32,
    },
}

impl Inbox {
    pub(crate) fn new(max_response: u32) -> Inbox {
        Inbox {
            carry: Vec::new(),
            start: 0,
            end: 0,
            need: HEADER_LEN,
            body: Body::Head,
            guess: None,
            pool: Vec::new(),
            max_response,
            late: 0,
        }
    }

    /// Responses that came after their request had been given up.
    pub(crate) fn late(&self) -> u64 {
        self.late
    }

    pub(crate) fn recycle(&mut self, response: Response, keep: usize) {
        if self.pool.len() < keep {
            self.pool.push(response);
        }
    }

    /// What the bytes that have arrived amount to; `None` when more must be read first.
    pub(crate) fn next(&mut self, flights: &mut Flights) -> Result<Option<Incoming<'_>>, Error> {
        loop {
            let available = self.end - self.start;
            match self.body {
                Body::Discard { left } => {
                    let gone = left.min(available);
                    self.start += gone;
                    if gone < left {
                        self.body = Body::Discard { left: left - gone };
                        return Ok(None);
                    }
                    self.body = Body::Head;
                }
                Body::Data { id, left } => {
                    let Some(partial) = flights.get_mut(id).and_then(|f| f.partial.as_mut()) else {
                        self.body = Body::Discard { left };
                        continue;
                    };
                    let taken = left.min(available);
                    partial.rest()[..taken].copy_from_slice(&self.carry[self.start..self.start + taken]);
                    partial.advance(taken);
                    self.start += taken;
                    if taken < left {
                        self.body = Body::Data { id, left: left - taken };
                        return Ok(None);
                    }
                    self.body = Body::Head;
                    if partial.is_complete()
                        && let Some(mut response) = flights.remove(id).and_then(|f| f.partial)
                    {
                        response.finish(Instant::now());
                        return Ok(Some(Incoming::Done(response)));
                    }
                }
                Body::Head => {
                    let Some(header) = self.peek_header()? else { return Ok(None) };
                    if header.kind == Kind::Response {
                        match self.begin_response(&header, flights)? {
                            Begun::Wait => return Ok(None),
                            Begun::Yes => {}
                            Begun::TooLarge => {
                                return Ok(Some(Incoming::TooLarge { id: header.request, bytes: header.total }));
                            }
                        }
                    } else {
                        let from = self.start + HEADER_LEN;
                        self.start = from + header.length as usize;
                        return Ok(Some(Incoming::Control(header, &self.carry[from..self.start])));
                    }
                }
            }
        }
    }

    /// Reads once. Returns the number of bytes; an error of kind `WouldBlock` when none are there.
    pub(crate) fn receive(&mut self, stream: &TcpStream, flights: &mut Flights) -> io::Result<usize> {
        let readahead = if flights.len() > 1 { READAHEAD } else { 0 };
        if let Body::Data { id, left } = self.body
            && let Some(partial) = flights.get_mut(id).and_then(|f| f.partial.as_mut())
        {
            // `next` has emptied the carry buffer.
            (self.start, self.end) = (0, 0);
            let carry = grown(&mut self.carry, readahead);
            let count = read(stream, &mut [IoSliceMut::new(&mut partial.rest()[..left]), IoSliceMut::new(carry)])?;
            let direct = count.min(left);
            partial.advance(direct);
            self.body = Body::Data { id, left: left - direct };
            self.end = count - direct;
            return Ok(count);
        }
        let available = self.end - self.start;
        self.carry.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, available);
        if let (Body::Head, Some((manifest, data))) = (self.body, self.guess)
            && flights.len() > 0
            && available < HEADER_LEN + manifest
        {
            return self.receive_guessing(stream, flights, HEADER_LEN + manifest, data.min(MAX_GUESS), readahead);
        }
        let room = match self.body {
            Body::Discard { left } => left.clamp(2048, 64 << 10),
            _ => self.need.saturating_sub(available).max(2048).max(readahead),
        };
        let carry = grown(&mut self.carry, available + room);
        let count = read(stream, &mut [IoSliceMut::new(&mut carry[available..])])?;
        self.end += count;
        Ok(count)
    }

    /// One read for a response whose head is `head` bytes long and whose data begins with `data` bytes.
    fn receive_guessing(
        &mut self,
        stream: &TcpStream,
        flights: &mut Flights,
        head: usize,
        data: usize,
        readahead: usize,
    ) -> io::Result<usize> {
        let have = self.end;
        let mut landing = self.pool.pop().unwrap_or_else(Response::empty);
        landing.grow(data, 0);
        let (front, back) = grown(&mut self.carry, head + readahead).split_at_mut(head);
        let mut slices = [&mut front[have..], landing.landing(data), back].map(IoSliceMut::new);
        let count = match read(stream, &mut slices) {
            Ok(count) => count,
            Err(e) => {
                self.pool.push(landing);
                return Err(e);
            }
        };
        let first = count.min(head - have);
        let landed = (count - first).min(data);
        let tail = count - first - landed;
        self.end += first;
        if landed == 0 {
            self.end += tail;
            self.pool.push(landing);
            return Ok(count);
        }
        if let Err(landing) = self.adopt(landing, landed, flights) {
            // Not what was guessed: put the bytes back where they would have been read.
            let carry = grown(&mut self.carry, head + landed + tail);
            carry.copy_within(head..head + tail, head + landed);
            let mut landing = landing;
            carry[head..head + landed].copy_from_slice(landing.landing(landed));
            self.end = head + landed + tail;
            self.pool.push(landing);
        } else {
            (self.start, self.end) = (head, head + tail);
        }
        Ok(count)
    }

    /// Makes `landing`, which holds `landed` bytes of data, the response that the carry buffer's head announces.
    fn adopt(&mut self, mut landing: Response, landed: usize, flights: &mut Flights) -> Result<(), Response> {
        let head = &self.carry[..self.end];
        let (Ok(header), Ok(manifest)) = (Header::parse(head), Manifest::parse(&head[HEADER_LEN..])) else {
            return Err(landing);
        };
        let data = manifest.data_len() as usize;
        let as_guessed = header.kind == Kind::Response
            && header.is_whole()
            && !header.flags.has(Flags::MORE)
            && header.total <= self.max_response
            && manifest.as_bytes().len() == head.len() - HEADER_LEN
            && header.length as usize == manifest.as_bytes().len() + data
            && data >= landed;
        match flights.get_mut(header.request) {
            Some(flight) if as_guessed && flight.partial.is_none() => {
                landing.begin(flight.id, flight.model, flight.submitted, Instant::now(), &manifest, landed);
                self.guess = Some((manifest.as_bytes().len(), data));
                self.body = Body::Data { id: flight.id, left: data - landed };
                flight.partial = Some(landing);
                Ok(())
            }
            _ => Err(landing),
        }
    }

    /// The header at the front, once as much has arrived as looking at its frame takes.
    fn peek_header(&mut self) -> Result<Option<Header>, Error> {
        let bytes = &self.carry[self.start..self.end];
        self.need = HEADER_LEN;
        if bytes.len() < HEADER_LEN {
            return Ok(None);
        }
        let header = Header::parse(bytes).map_err(Error::protocol("frame header"))?;
        if header.flags.has(Flags::TAGGED) || header.flags.has(Flags::SEALED) {
            return Err(Error::Protocol { error: WireError::NotNegotiated, context: "frame header" });
        }
        if header.kind != Kind::Response {
            if header.length > MAX_CONTROL {
                return Err(Error::Protocol { error: WireError::TooLong, context: "control frame" });
            }
            self.need += header.length as usize;
        }
        Ok((bytes.len() >= self.need).then_some(header))
    }

    fn begin_response(&mut self, header: &Header, flights: &mut Flights) -> Result<Begun, Error> {
        let broken = |error| Error::Protocol { error, context: "response" };
        let payload = &self.carry[self.start + HEADER_LEN..self.end];
        let length = header.length as usize;
        let Some(flight) = flights.get_mut(header.request) else {
            self.late += u64::from(header.flags.has(Flags::MANIFEST));
            self.start += HEADER_LEN;
            self.body = Body::Discard { left: length };
            return Ok(Begun::Yes);
        };
        if header.flags.has(Flags::MORE) {
            return Err(broken(WireError::NotNegotiated));
        }
        if header.total > self.max_response {
            // Also where the total is unknown, which this side never agreed to.
            self.start += HEADER_LEN;
            self.body = Body::Discard { left: length };
            flights.remove(header.request);
            return Ok(Begun::TooLarge);
        }
        if !header.flags.has(Flags::MANIFEST) {
            let partial = flight.partial.as_ref().ok_or(broken(WireError::BadManifest))?;
            partial.check_next(header.tensor, header.offset, header.length)?;
            self.start += HEADER_LEN;
            self.body = Body::Data { id: flight.id, left: length };
            return Ok(Begun::Yes);
        }
        self.need = HEADER_LEN + splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
        if HEADER_LEN + payload.len() < self.need {
            return Ok(Begun::Wait);
        }
        let manifest_len = Manifest::peek_len(payload).map_err(broken)?;
        if manifest_len > length || flight.partial.is_some() {
            return Err(broken(WireError::BadManifest));
        }
        self.need = HEADER_LEN + manifest_len;
        if payload.len() < manifest_len {
            return Ok(Begun::Wait);
        }
        let manifest = Manifest::parse(payload).map_err(broken)?;
        let left = length - manifest_len;
        let consistent = header.total as usize == manifest_len + manifest.data_len() as usize
            && (header.tensor != MANIFEST_TENSOR || left == 0);
        if !consistent {
            return Err(broken(WireError::BadExtent));
        }
        let mut response = self.pool.pop().unwrap_or_else(Response::empty);
        response.begin(flight.id, flight.model, flight.submitted, Instant::now(), &manifest, 0);
        flight.partial = Some(response);
        self.guess = header.is_whole().then_some((manifest_len, manifest.data_len() as usize));
        self.start += HEADER_LEN + manifest_len;
        self.body = Body::Data { id: flight.id, left };
        Ok(Begun::Yes)
    }
}

enum Begun {
    /// More of the head must arrive first.
    Wait,
    Yes,
    TooLarge,
}

/// The first `len` bytes of a buffer that never shrinks.
fn grown(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

fn read(stream: &TcpStream, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let mut stream = stream;
    loop {
        match stream.read_vectored(slices) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it")),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
