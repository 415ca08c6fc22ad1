//! A client that keeps requests in flight and checks every answer.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use splitrpc_engine::{Client, ClientConfig, ClientEvent, ClientVerdict, MS, RequestSpec, SEC, Time};
use splitrpc_ring::RequestKey;
use splitrpc_wire::{DType, HEADER_LEN, Header, Manifest, ManifestWriter, Shape, Status, TensorDesc};

use super::common::ClientMemory;
use super::frames::{encode_all, split};
use super::rng::Rng;

struct Open {
    tensors: Vec<Vec<u8>>,
    answer: Vec<Vec<u8>>,
}

/// How a request ended.
#[derive(Default, Debug)]
pub struct Tally {
    pub answered: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub reconnects: u64,
    pub by_status: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.reconnects += other.reconnects;
        for (status, count) in &other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
    }
}

pub struct SimClient {
    pub addr: SocketAddr,
    server: SocketAddr,
    engine: Client<ClientMemory>,
    open: HashMap<RequestKey, Open>,
    /// Requests still to be made.
    pub left: u32,
    width: usize,
    vanished: bool,
    vanish_at: Time,
    /// There was no place for it, and it tries again in a while.
    refused: bool,
    /// When it opens another session.
    again_at: Time,
    /// Started over on the same address; a late frame of its former self may then cost it the session.
    pub rebooted: bool,
    pub tally: Tally,
    batched_model: bool,
}

impl SimClient {
    pub fn new(rng: &mut Rng, now: Time, addr: SocketAddr, server: SocketAddr, left: u32) -> SimClient {
        SimClient {
            addr,
            server,
            engine: engine(rng, now),
            open: HashMap::new(),
            left,
            width: rng.range(1, 6) as usize,
            vanished: false,
            rebooted: false,
            refused: false,
            again_at: Time::NEVER,
            vanish_at: if rng.chance(150) { now + rng.below(200 * MS) } else { Time::NEVER },
            tally: Tally::default(),
            batched_model: rng.chance(500),
        }
    }

    pub fn is_done(&self) -> bool {
        self.vanished || (self.left == 0 && self.open.is_empty())
    }

    pub fn next_at(&self) -> Time {
        if self.vanished { Time::NEVER } else { self.engine.next_timeout().min(self.vanish_at).min(self.again_at) }
    }

    /// Takes a datagram in, or several that make a train.
    pub fn deliver(&mut self, now: Time, datagrams: &[Vec<u8>]) {
        if self.vanished {
            return;
        }
        let (bytes, others) = datagrams.split_first().unwrap();
        for frame in split(bytes) {
            let Ok((header, payload)) = frame else { return };
            let head = match head_of(&header, payload) {
                Some(head) => head,
                None => return,
            };
            let verdict = match others.len() {
                0 => self.engine.handle_frame(now, &header, &payload[..head]),
                more => self.engine.handle_train(now, &header, more as u32 + 1),
            };
            if let ClientVerdict::Place(placement) = verdict {
                let open = self.open.get_mut(&placement.request).expect("placed for a request that is not open");
                if header.flags.has(splitrpc_wire::Flags::MANIFEST) && open.answer.is_empty() {
                    let manifest = Manifest::parse(&payload[..head]).unwrap();
                    open.answer = manifest.tensors().map(|t| vec![0; t.bytes as usize]).collect();
                }
                let mut data = payload[head..].to_vec();
                data.extend(others.iter().flat_map(|datagram| &datagram[HEADER_LEN..]));
                let mut data = &data[..];
                for piece in self.engine.pieces(&placement) {
                    let (now_piece, rest) = data.split_at(piece.length as usize);
                    let at = piece.offset as usize;
                    open.answer[piece.tensor as usize][at..at + now_piece.len()].copy_from_slice(now_piece);
                    data = rest;
                }
                assert!(data.is_empty());
                self.engine.placed(now, &placement);
            }
            self.take_events();
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            match event {
                ClientEvent::Connected(_) | ClientEvent::Pong(_) => {}
                ClientEvent::Response(key) => {
                    let open = self.open.remove(&key).expect("answered twice");
                    let wanted: Vec<Vec<u8>> = open.tensors.iter().map(|t| t.iter().map(|b| !b).collect()).collect();
                    assert!(open.answer == wanted, "a wrong byte was delivered");
                    self.tally.answered += 1;
                }
                ClientEvent::Failed(key, status) => {
                    *self.tally.by_status.entry(status.name()).or_default() += 1;
                    assert!(self.open.remove(&key).is_some(), "failed after it had ended");
                    self.tally.failed += 1;
                }
                ClientEvent::Closed(status) => {
                    self.refused = status == Status::TooManySessions;
                    *self.tally.by_status.entry(status.name()).or_default() += self.open.len() as u64;
                    self.tally.failed += self.open.len() as u64;
                    self.open.clear();
                }
            }
        }
    }

    /// Does what is due and returns the datagrams to send.
    pub fn step(&mut self, rng: &mut Rng, now: Time) -> Vec<Vec<u8>> {
        if now >= self.vanish_at {
            self.vanish_at = Time::NEVER;
            if rng.chance(500) {
                // Its process starts over on the same address, and remembers nothing.
                self.start_over(rng, now);
                self.tally.failed += self.open.len() as u64;
                self.open.clear();
            } else {
                self.vanished = true;
            }
        }
        if self.vanished {
            return Vec::new();
        }
        self.engine.handle_timeout(now);
        self.take_events();
        while self.left > 0 && self.open.len() < self.width {
            match self.submit(rng, now) {
                Ok(()) => self.left -= 1,
                Err(splitrpc_engine::SubmitError::NotConnected) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
        if !self.open.is_empty() && rng.chance(2) {
            let key = *self.open.keys().min_by_key(|k| k.index).unwrap();
            self.engine.cancel(key);
            self.open.remove(&key);
            self.tally.cancelled += 1;
        }
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        while let Some(transmit) = self.engine.poll_train(now, rng.range(1, 70) as u32) {
            let mut data = Vec::new();
            for piece in transmit.data {
                let open = &self.open[&transmit.request.unwrap()];
                let at = piece.offset as usize;
                data.extend_from_slice(&open.tensors[piece.tensor as usize][at..at + piece.length as usize]);
            }
            for frame in encode_all(&transmit.header, transmit.frames, transmit.head, &data) {
                match datagrams.last_mut() {
                    Some(last) if transmit.rides_along && last.len() + frame.len() <= 1232 => last.extend(frame),
                    _ => datagrams.push(frame),
                }
            }
        }
        if self.engine.next_timeout() == Time::NEVER && self.left > 0 && self.open.is_empty() {
            // The session is over: a client library opens another.
            if self.again_at == Time::NEVER {
                self.again_at = if self.refused { now + rng.range(MS, 300 * MS) } else { now };
            }
            if self.again_at <= now {
                self.start_over(rng, now);
                self.tally.reconnects += 1;
            }
        }
        datagrams
    }

    fn start_over(&mut self, rng: &mut Rng, now: Time) {
        self.engine = engine(rng, now);
        self.rebooted = true;
        self.refused = false;
        self.again_at = Time::NEVER;
    }

    /// Nothing uses up the server's credit.
    pub fn is_at_rest(&self) -> bool {
        self.vanished || self.engine.bytes_under_way() == 0
    }

    pub fn server(&self) -> SocketAddr {
        self.server
    }

    fn submit(&mut self, rng: &mut Rng, now: Time) -> Result<(), splitrpc_engine::SubmitError> {
        let Ask { model, manifest: bytes, tensors } = Ask::random(rng, self.batched_model);
        let manifest = Manifest::parse(&bytes).unwrap();
        let spec = RequestSpec {
            model,
            manifest,
            priority: rng.below(4) as u8,
            deadline_us: deadline_us(rng),
            repeatable: false,
        };
        let key = self.engine.submit(now, &spec)?;
        self.open.insert(key, Open { tensors, answer: Vec::new() });
        Ok(())
    }
}

fn engine(rng: &mut Rng, now: Time) -> Client<ClientMemory> {
    let config = ClientConfig {
        datagram: *rng.pick(&[1232, 1472, 8256]),
        receive_window: 256 << 10,
        silence_limit: 5 * SEC,
        ..ClientConfig::default()
    };
    Client::new(now, &config, ClientMemory::new(8, 256), rng.next()).unwrap()
}

/// What a request asks, whoever sends it.
pub struct Ask {
    pub model: u16,
    pub manifest: Vec<u8>,
    pub tensors: Vec<Vec<u8>>,
}

impl Ask {
    pub fn random(rng: &mut Rng, batched: bool) -> Ask {
        let mut writer = ManifestWriter::new();
        let mut sizes = Vec::new();
        let mut push = |handle, dtype, dims: &[u32]| {
            let tensor = TensorDesc::fixed(handle, dtype, Shape::new(dims).unwrap()).unwrap();
            writer.push(&tensor).unwrap();
            sizes.push(tensor.bytes as usize);
        };
        if batched {
            let rows = rng.range(1, 4) as u32;
            push(0, DType::Fp32, &[rows, 300]);
            push(1, DType::Int64, &[rows, 7]);
        } else {
            push(0, DType::Uint8, &[*rng.pick(&[16, 64, 900, 4000, 30_000, 120_000])]);
        }
        // The first 16 random bytes mark the request.
        let mut bytes = |n: usize| (0..n.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes()).take(n).collect();
        let tensors = sizes.into_iter().map(&mut bytes).collect();
        Ask { model: u16::from(!batched), manifest: writer.finish().to_vec(), tensors }
    }

    /// What the simulated models answer.
    pub fn answer(&self) -> Vec<u8> {
        self.tensors.iter().flatten().map(|b| !b).collect()
    }
}

/// Few requests have a short deadline; some have none, and end all the same.
pub fn deadline_us(rng: &mut Rng) -> u32 {
    match rng.below(10) {
        0 => rng.range(100, 100_000) as u32,
        1..=5 => 30_000_000,
        _ => 0,
    }
}

/// Where a frame's head ends and its data begins.
pub fn head_of(header: &Header, payload: &[u8]) -> Option<usize> {
    use splitrpc_wire::{Flags, Kind};
    match header.kind {
        Kind::Request | Kind::Response if header.flags.has(Flags::MANIFEST) => {
            Manifest::peek_len(payload).ok().filter(|len| *len <= payload.len())
        }
        Kind::Request | Kind::Response => Some(0),
        _ => Some(payload.len()),
    }
}

const _: () = assert!(HEADER_LEN == 64);
