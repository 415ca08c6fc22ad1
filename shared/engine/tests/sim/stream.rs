//! A client on a stream, and the port that serves it: frames arrive whole and in order, payload in dribs and drabs, and
//! responses are read from their slots while the stream takes them, however long that is.

use std::collections::{HashMap, HashSet, VecDeque};

use splitrpc_engine::{MS, Peer, Piece, Placement, SEC, Server, Time, Transmit, US, Verdict};
use splitrpc_ring::RequestKey;
use splitrpc_wire::hello::{Abilities, Hello};
use splitrpc_wire::{Header, Kind, Manifest, Status, StatusPayload, VERSION};

use super::client::{Ask, Tally};
use super::host::Host;
use super::manners;
use super::rng::Rng;

/// A frame on its way to the server.
pub struct Up {
    pub header: Header,
    pub head: Vec<u8>,
    pub data: Vec<u8>,
    /// What the engine must say to it, where that is certain.
    pub verdict: Option<Verdict>,
}

impl Up {
    pub fn control(header: Header, head: Vec<u8>) -> Up {
        let header = Header { length: head.len() as u32, ..header };
        Up { header, head, data: Vec::new(), verdict: None }
    }
}

/// A payload of which part has arrived.
struct Arriving {
    data: Vec<u8>,
    done: usize,
    placement: Option<Placement>,
}

/// A frame that the port has taken from the engine, of which part is written.
struct Leaving {
    header: Header,
    head: Vec<u8>,
    pieces: Vec<Piece>,
    /// What its slots held when the port took it.
    data: Vec<u8>,
    written: usize,
    token: Option<RequestKey>,
}

enum Life {
    /// Not connected; connects when there is something to ask.
    Down,
    Greeting,
    Ready,
}

pub struct SimStream {
    id: u32,
    life: Life,
    pub session: u64,
    up: VecDeque<Up>,
    arriving: Option<Arriving>,
    down: VecDeque<Leaving>,
    pub open: HashMap<u64, Ask>,
    /// Requests that this connection gave up, whose answer may be on its way.
    given_up: HashSet<u64>,
    pub next_id: u64,
    left: u32,
    width: usize,
    pub rude: bool,
    slow: bool,
    next_at: Time,
    die_at: Time,
    pub tally: Tally,
}

impl SimStream {
    pub fn new(rng: &mut Rng, id: u32) -> SimStream {
        SimStream {
            id,
            life: Life::Down,
            session: 0,
            up: VecDeque::new(),
            arriving: None,
            down: VecDeque::new(),
            open: HashMap::new(),
            given_up: HashSet::new(),
            next_id: 1,
            left: rng.range(1, 12) as u32,
            width: rng.range(1, 12) as usize,
            rude: rng.chance(300),
            slow: rng.chance(300),
            next_at: Time::default(),
            die_at: if rng.chance(200) { Time::from_nanos(rng.below(100 * MS)) } else { Time::NEVER },
            tally: Tally::default(),
        }
    }

    pub fn is_done(&self) -> bool {
        self.left == 0 && matches!(self.life, Life::Down)
    }

    pub fn next_at(&self) -> Time {
        if self.is_done() { Time::NEVER } else { self.next_at.min(self.die_at) }
    }

    /// The server is gone, and the connection with it.
    pub fn cut(&mut self) {
        self.tally.failed += self.open.len() as u64;
        *self.tally.by_status.entry("StreamLost").or_default() += self.open.len() as u64;
        self.open.clear();
        self.given_up.clear();
        self.up.clear();
        self.arriving = None;
        self.down.clear();
        self.life = Life::Down;
    }

    pub fn step(&mut self, rng: &mut Rng, now: Time, server: &mut Server<'_>, host: &mut Host) {
        if self.is_done() || now < self.next_at() {
            return;
        }
        if now >= self.die_at && !matches!(self.life, Life::Down) {
            self.die_at = Time::NEVER;
            self.close(now, server);
        }
        match self.life {
            Life::Down => self.connect(now, server),
            Life::Greeting => {}
            Life::Ready if self.left == 0 && self.open.is_empty() && self.up.is_empty() && self.arriving.is_none() => {
                let goodbye = Header { session: self.session, ..Header::new(Kind::Goodbye) };
                self.up.push_back(Up { verdict: Some(Verdict::Close), ..Up::control(goodbye, Vec::new()) });
            }
            Life::Ready => self.ask(rng),
        }
        self.read(rng, now, server, host);
        self.write(rng, server, host);
        self.next_at = now
            + match rng.below(1000) {
                // Too slow for the server, which does not wait for it.
                0..3 if self.slow => rng.below(4 * SEC),
                3..100 if self.slow => rng.below(400 * MS),
                _ => rng.range(US, 200 * US),
            };
    }

    /// The port takes a frame from the engine.
    pub fn take(&mut self, transmit: Transmit<'_>, host: &mut Host) {
        assert!(!matches!(self.life, Life::Down), "a frame for a closed stream: {:?}", transmit.header);
        let pieces: Vec<Piece> = transmit.data.collect();
        let data = pieces.iter().flat_map(|p| host.read(p)).collect();
        let (header, head, token) = (transmit.header, transmit.head.to_vec(), transmit.token);
        self.down.push_back(Leaving { header, head, pieces, data, written: 0, token });
    }

    fn connect(&mut self, now: Time, server: &mut Server<'_>) {
        server.stream_opened(now, self.id);
        let hello = Hello {
            version_min: u16::from(VERSION),
            version_max: u16::from(VERSION),
            abilities: Abilities(0),
            datagram: 1472,
            max_response: 1 << 20,
            nonce: self.next_id,
            token: 0,
            key_id: 0,
            window: 0,
        };
        self.up.push_back(Up::control(Header::new(Kind::Hello), hello.to_bytes().to_vec()));
        self.life = Life::Greeting;
    }

    /// Closes the connection. Whatever the port still had of it reaches nobody any more.
    fn close(&mut self, now: Time, server: &mut Server<'_>) {
        let placing = self.arriving.take().and_then(|a| a.placement);
        let unsent: Vec<RequestKey> = self.down.iter().filter_map(|l| l.token).collect();
        self.cut();
        server.stream_closed(self.id);
        if let Some(placement) = placing {
            assert!(!server.still_placing(&placement), "a closed stream may still place");
            assert_eq!(server.pieces(&placement).count(), 0, "a closed stream still has a place");
            let before = server.stats().bytes_placed;
            server.progressed(&placement, 1);
            server.placed(now, &placement, placement.length(), 0);
            assert_eq!(server.stats().bytes_placed, before, "a closed stream placed something");
        }
        unsent.into_iter().for_each(|token| server.sent(token));
    }

    fn ask(&mut self, rng: &mut Rng) {
        while self.left > 0 && self.open.len() < self.width {
            self.left -= 1;
            let batched = rng.chance(500);
            let ask = Ask::random(rng, batched);
            self.up.extend(manners::request(rng, self.session, self.next_id, &ask));
            self.open.insert(self.next_id, ask);
            self.next_id += 1;
        }
        if rng.chance(10)
            && let Some(id) = self.open.keys().min().copied()
        {
            // Requests are written whole, so the cancellation comes after all of it.
            self.open.remove(&id);
            self.given_up.insert(id);
            self.tally.cancelled += 1;
            let cancel = Header { session: self.session, request: id, ..Header::new(Kind::Cancel) };
            self.up.push_back(Up { verdict: Some(Verdict::Done), ..Up::control(cancel, Vec::new()) });
        }
        if self.rude && rng.chance(20) {
            let frames = manners::offend(rng, self);
            self.up.extend(frames);
        }
    }

    /// The port reads what has arrived.
    fn read(&mut self, rng: &mut Rng, now: Time, server: &mut Server<'_>, host: &mut Host) {
        for _ in 0..rng.range(1, 8) {
            if let Some(arriving) = &mut self.arriving {
                let left = arriving.data.len() - arriving.done;
                let some = if rng.chance(500) { left } else { rng.below(left as u64 + 1) as usize };
                if arrive(arriving, some, now, server, host) {
                    self.arriving = None;
                }
                continue;
            }
            if !server.accepts_frames() {
                return;
            }
            let Some(up) = self.up.pop_front() else { return };
            let verdict = server.handle_frame(now, Peer::Stream(self.id), &up.header, &up.head);
            if let Some(wanted) = up.verdict {
                assert_eq!(verdict, wanted, "{:?}", up.header);
            }
            let placement = match verdict {
                Verdict::Close => return self.close(now, server),
                Verdict::Place(placement) => {
                    assert_eq!(placement.length() as usize, up.data.len());
                    Some(placement)
                }
                Verdict::Done | Verdict::Discard => None,
            };
            let mut arriving = Arriving { data: up.data, done: 0, placement };
            if !arriving.data.is_empty() || !arrive(&mut arriving, 0, now, server, host) {
                self.arriving = Some(arriving);
            }
        }
    }

    /// The stream takes what waits to be written.
    fn write(&mut self, rng: &mut Rng, server: &mut Server<'_>, host: &mut Host) {
        while let Some(leaving) = self.down.front_mut() {
            let now_held: Vec<u8> = leaving.pieces.iter().flat_map(|p| host.read(p)).collect();
            assert!(now_held == leaving.data, "slots changed hands while their response was being written");
            let left = leaving.data.len() - leaving.written;
            let some = if rng.chance(700) { left } else { rng.below(left as u64 + 1) as usize };
            leaving.written += some;
            if some < left {
                return;
            }
            let Leaving { header, head, data, token, .. } = self.down.pop_front().unwrap();
            token.into_iter().for_each(|token| server.sent(token));
            self.receive(&header, &head, &data);
        }
    }

    fn receive(&mut self, header: &Header, head: &[u8], data: &[u8]) {
        if header.kind == Kind::HelloAck {
            assert!(matches!(self.life, Life::Greeting), "greeted twice");
            self.session = header.session;
            self.life = Life::Ready;
            return;
        }
        assert_eq!(header.session, self.session, "a frame of another connection: {header:?}");
        match header.kind {
            Kind::Response => {
                let manifest = Manifest::parse(head).unwrap();
                assert_eq!(manifest.data_len() as usize, data.len());
                match self.open.remove(&header.request) {
                    Some(ask) => {
                        assert!(ask.answer() == data, "a wrong byte was delivered");
                        self.tally.answered += 1;
                    }
                    None => assert!(self.given_up.contains(&header.request), "answered twice: {header:?}"),
                }
            }
            Kind::Error => {
                let status = StatusPayload::parse(head).unwrap().status;
                if self.open.remove(&header.request).is_some() {
                    *self.tally.by_status.entry(status.name()).or_default() += 1;
                    self.tally.failed += 1;
                } else {
                    let excused = self.given_up.contains(&header.request) || self.rude;
                    assert!(excused, "failed after it had ended: {header:?} {status}");
                }
                assert!(status != Status::ReplyGone && status != Status::UnknownSession, "{status} on a stream");
            }
            Kind::Pong | Kind::ListAck => {}
            other => panic!("{other:?} on a stream"),
        }
    }
}

/// `some` more bytes arrive. Returns whether that was all.
fn arrive(arriving: &mut Arriving, some: usize, now: Time, server: &mut Server<'_>, host: &mut Host) -> bool {
    if let Some(placement) = arriving.placement {
        if server.still_placing(&placement) {
            place(server, host, &placement, arriving.done, &arriving.data[arriving.done..arriving.done + some]);
            arriving.done += some;
            if arriving.done == arriving.data.len() {
                server.placed(now, &placement, placement.length(), 0);
            } else {
                server.progressed(&placement, arriving.done as u32);
            }
            return arriving.done == arriving.data.len();
        }
        assert_eq!(server.pieces(&placement).count(), 0, "a stale placement has a place");
        arriving.placement = None;
    }
    arriving.done += some;
    arriving.done == arriving.data.len()
}

fn place(server: &Server<'_>, host: &mut Host, placement: &Placement, skip: usize, mut bytes: &[u8]) {
    let mut skip = skip as u32;
    for piece in server.pieces(placement) {
        let skipped = skip.min(piece.length);
        skip -= skipped;
        let length = ((piece.length - skipped) as usize).min(bytes.len());
        let (these, rest) = bytes.split_at(length);
        host.place(&Piece { offset: piece.offset + skipped, length: length as u32, ..piece }, these);
        bytes = rest;
    }
    assert!(bytes.is_empty());
}
