//! A client driven by any sequence of calls and any server: it never panics, every request ends once, response data stays
//! inside what the response's manifest says, and datagrams inside what the path was said to carry.
#![allow(missing_docs, unreachable_pub)]

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rig::common::ClientMemory;
use rig::pair::client_config;
use rig::script::Script;
use rig::{Ask, response};
use splitrpc_engine::{
    Client, ClientConfig, ClientEvent, ClientPlacement, ClientVerdict, MS, RequestSpec, SEC, SubmitError, Time,
};
use splitrpc_ring::RequestKey;
use splitrpc_wire::hello::{Abilities, Challenge, HelloAck};
use splitrpc_wire::{
    Flags, HEADER_LEN, Header, Kind, MANIFEST_TENSOR, Manifest, Status, StatusPayload, Train, VERSION, WireError,
};

const NONCE: u64 = 77;
const SESSION: u64 = 0x5e55;

#[test]
fn client_calls() {
    bolero::check!().with_test_time(Duration::from_secs(3)).for_each(|bytes: &[u8]| {
        let mut script = Script::new(bytes);
        let config = ClientConfig {
            datagram: *script.pick(&[1232, 1472, 8256]).unwrap(),
            max_response: 1 << 20,
            ..client_config()
        };
        let now = Time::from_nanos(SEC);
        let mut play = Play {
            client: Client::new(now, &config, ClientMemory::new(1 + script.below(8), 16 << script.below(4)), NONCE)
                .unwrap(),
            config,
            now,
            ids: BTreeMap::new(),
            keys: Vec::new(),
            open: BTreeSet::new(),
            sizes: BTreeMap::new(),
            placements: Vec::new(),
            closed: false,
            most: 1,
        };
        if script.chance(200) {
            play.hello_ack(&mut script);
        }
        while !script.is_over() {
            play.step(&mut script);
            play.events();
            play.check();
        }
        play.end();
    });
}

struct Play {
    client: Client<ClientMemory>,
    config: ClientConfig,
    now: Time,
    /// Number on the wire of each request that was sent.
    ids: BTreeMap<u64, RequestKey>,
    keys: Vec<RequestKey>,
    open: BTreeSet<(u32, u32)>,
    /// Bytes of the response's tensor, once its manifest was accepted.
    sizes: BTreeMap<(u32, u32), u32>,
    placements: Vec<ClientPlacement>,
    closed: bool,
    /// How many frames may leave as one train.
    most: u32,
}

fn name(key: RequestKey) -> (u32, u32) {
    (key.index, key.generation)
}

impl Play {
    fn step(&mut self, script: &mut Script<'_>) {
        match script.below(16) {
            0 => self.any_frame(script),
            1..=4 => self.response(script),
            5 | 6 => self.submit(script),
            7 => self.cancel(script),
            8 | 9 => self.place(script),
            10 => self.time(script),
            11 | 12 => self.transmit(1 + script.below(20)),
            13 => self.acknowledge(script),
            14 => self.error(script),
            _ => self.odds_and_ends(script),
        }
    }

    fn frame(&mut self, header: Header, head: &[u8]) {
        let Ok(header) = Header::parse(&header.to_bytes()) else {
            return self.client.handle_garbage(WireError::BadExtent);
        };
        if !self.client.accepts_frames() {
            self.events();
        }
        let verdict = self.client.handle_frame(self.now, &header, head);
        self.obey(verdict, &header, head);
    }

    /// As many frames as make a train with this one at its head, up to `frames`.
    fn frames(&mut self, first: Header, frames: u32) {
        let train = Train::new(&first);
        let follow = (1..frames).take_while(|n| train.is_nth(*n, &train.nth(*n))).count() as u32;
        if follow == 0 || Header::parse(&first.to_bytes()).is_err() {
            return self.frame(first, &[]);
        }
        if !self.client.accepts_frames() {
            self.events();
        }
        let verdict = self.client.handle_train(self.now, &first, follow + 1);
        self.obey(verdict, &first, &[]);
    }

    fn obey(&mut self, verdict: ClientVerdict, header: &Header, head: &[u8]) {
        if let ClientVerdict::Place(placement) = verdict {
            let key = name(placement.request);
            assert!(self.open.contains(&key), "data for a request that is not open");
            let size = match Manifest::parse(head) {
                Ok(manifest) if header.flags.has(Flags::MANIFEST) => {
                    *self.sizes.entry(key).or_insert(manifest.data_len())
                }
                _ => self.sizes[&key],
            };
            let mut total = 0;
            for piece in self.client.pieces(&placement) {
                assert!(u64::from(piece.offset) + u64::from(piece.length) <= u64::from(size), "{piece:?} of {size}");
                assert!(size <= self.config.max_response);
                total += piece.length;
            }
            let length = match placement.chunk {
                splitrpc_engine::Chunk::First { length, .. } | splitrpc_engine::Chunk::Part { length, .. } => length,
            };
            assert_eq!(total, length);
            self.placements.push(placement);
        }
    }

    fn hello_ack(&mut self, script: &mut Script<'_>) {
        let ack = HelloAck {
            version: u16::from(VERSION),
            max_requests: 1 + script.below(10) as u16,
            abilities: Abilities(0),
            datagram: *script.pick(&[1232, 1472, 65_000]).unwrap(),
            max_request: 2 << 20,
            catalog_len: 0,
            idle_timeout_ms: 1000,
            keep_reply_ms: 1000,
            nonce: NONCE,
            epoch: 0,
            window: script.number() << script.below(16),
        };
        let payload = ack.to_bytes();
        let header = Header { session: SESSION, length: payload.len() as u32, ..Header::new(Kind::HelloAck) };
        self.frame(header, &payload);
    }

    fn any_frame(&mut self, script: &mut Script<'_>) {
        let header = Header {
            flags: script.flags(),
            session: if script.chance(220) { SESSION } else { script.number() },
            request: script.number(),
            tensor: script.number() as u16,
            packet: script.number() as u32,
            length: script.number() as u32,
            deadline_us: script.number() as u32,
            offset: script.number() as u32,
            total: script.number() as u32,
            // A goodbye would end too many scripts.
            ..Header::new(*script.pick(&Kind::ALL[..13]).unwrap())
        };
        let noise: Vec<u8> = (0..script.below(100)).map(|_| script.byte()).collect();
        let manifest = response(script.number() as u32 % 100_000);
        let head = *script.pick(&[&manifest[..], &noise, &[]]).unwrap();
        self.frame(header, head);
    }

    fn response(&mut self, script: &mut Script<'_>) {
        let Some(id) = script.pick(&self.ids.keys().collect::<Vec<_>>()).map(|id| **id) else {
            return;
        };
        // Mostly the same size for all frames of a response.
        let bytes = match script.byte() {
            0..=239 => [0, 100, 5000, 70_000, 500_000][(id % 5) as usize],
            _ => script.number() as u32 % 2_000_000,
        };
        let manifest = response(bytes);
        let total = manifest.len() as u32 + bytes;
        let base = Header {
            session: SESSION,
            request: id,
            packet: script.number() as u32,
            total,
            ..Header::new(Kind::Response)
        };
        match script.below(4) {
            0 => self.frame(Header { flags: Flags::MANIFEST, length: total, ..base }, &manifest),
            1 => {
                let length = manifest.len() as u32 + (script.number() as u32).min(bytes);
                self.frame(Header { flags: Flags::MANIFEST.with(Flags::ACK_NOW), length, ..base }, &manifest);
            }
            _ => {
                let (offset, length) =
                    ((script.number() as u32).wrapping_mul(8) % 600_000, script.number() as u32 % 100_000);
                self.frame(Header { tensor: u16::from(script.chance(5)), offset, length, ..base }, &[]);
            }
        }
    }

    /// Several frames that go on with the tensor of a response.
    fn train(&mut self, script: &mut Script<'_>) {
        let Some(id) = script.pick(&self.ids.keys().collect::<Vec<_>>()).map(|id| **id) else {
            return;
        };
        let bytes = [0, 100, 5000, 70_000, 500_000][(id % 5) as usize];
        let manifest = response(bytes);
        let (head, total) = (manifest.len() as u32, manifest.len() as u32 + bytes);
        let base = Header { session: SESSION, request: id, total, ..Header::new(Kind::Response) };
        if script.chance(150) {
            let tensor = if bytes == 0 { 0 } else { MANIFEST_TENSOR };
            let packet = script.number() as u32;
            self.frame(Header { flags: Flags::MANIFEST, tensor, packet, length: head, ..base }, &manifest);
        }
        let length = *script.pick(&[1, 10, 100, 1408, 1 << 30]).unwrap();
        let header = Header {
            flags: if script.chance(30) { script.flags() } else { Flags::NONE },
            tensor: u16::from(script.chance(5)),
            packet: script.number() as u32,
            offset: length * script.below(4) as u32,
            length,
            ..base
        };
        self.frames(header, 2 + script.below(66) as u32);
    }

    fn submit(&mut self, script: &mut Script<'_>) {
        let ask = script.pick(&[Ask::rows(1), Ask::bytes(0), Ask::bytes(4000), Ask::bytes(100_000)]).unwrap().clone();
        let ask = if script.chance(10) { Ask::bytes(3 << 20) } else { ask };
        let spec = RequestSpec {
            model: ask.model,
            manifest: Manifest::parse(&ask.manifest).unwrap(),
            priority: script.byte(),
            deadline_us: if script.chance(40) { script.number() as u32 } else { 0 },
            repeatable: script.chance(128),
        };
        match self.client.submit(self.now, &spec) {
            Ok(key) => {
                assert!(!self.closed && self.open.insert(name(key)), "two requests with one key");
                self.keys.push(key);
            }
            Err(SubmitError::TooLarge) => assert!(ask.total() > 2 << 20),
            Err(SubmitError::Full | SubmitError::NotConnected) => {}
        }
    }

    fn cancel(&mut self, script: &mut Script<'_>) {
        let Some(key) = script.pick(&self.keys).copied() else { return };
        self.client.cancel(key);
        self.open.remove(&name(key));
    }

    fn place(&mut self, script: &mut Script<'_>) {
        let Some(placement) = script.pick(&self.placements).copied() else { return };
        if !self.client.accepts_frames() {
            self.events();
        }
        if !self.open.contains(&name(placement.request)) {
            assert_eq!(self.client.pieces(&placement).count(), 0);
        }
        self.client.placed(self.now, &placement);
    }

    fn time(&mut self, script: &mut Script<'_>) {
        let long = if script.chance(20) { 6 * SEC } else { 150 * MS };
        self.now = self.now + *script.pick(&[1000, 100_000, MS, 20 * MS, long]).unwrap();
        self.client.handle_timeout(self.now);
    }

    fn transmit(&mut self, frames: usize) {
        for _ in 0..frames {
            let Some(sent) = self.client.poll_train(self.now, self.most) else { return };
            let data: u32 = sent.data.map(|p| p.length).sum();
            assert_eq!(sent.header.length * sent.frames, sent.head.len() as u32 + data);
            assert!((1..=self.most).contains(&sent.frames));
            let train = Train::new(&sent.header);
            assert!((1..sent.frames).all(|n| train.is_nth(n, &train.nth(n))), "not a train: {:?}", sent.header);
            assert!(HEADER_LEN + sent.header.length as usize <= usize::from(self.config.datagram));
            assert_eq!(sent.request.is_some(), sent.header.kind == Kind::Request);
            if let Some(key) = sent.request {
                assert!(self.open.contains(&name(key)), "data of a request that is not open");
                self.ids.insert(sent.header.request, key);
            }
        }
    }

    fn acknowledge(&mut self, script: &mut Script<'_>) {
        let payload = script.ack();
        let kind = if script.chance(200) { Kind::Ack } else { Kind::Credit };
        self.frame(Header { session: SESSION, length: payload.len() as u32, ..Header::new(kind) }, &payload);
    }

    fn error(&mut self, script: &mut Script<'_>) {
        let status = *script.pick(Status::ALL).unwrap();
        let request = match script.pick(&self.ids.keys().collect::<Vec<_>>()) {
            Some(id) if script.chance(250) => **id,
            _ => script.number().max(1),
        };
        let mut payload = [0; 300];
        let length = StatusPayload { status, retry_after_us: 0, text: "so" }.write(&mut payload);
        let header = Header { session: SESSION, request, length: length as u32, ..Header::new(Kind::Error) };
        self.frame(header, &payload[..length]);
    }

    fn odds_and_ends(&mut self, script: &mut Script<'_>) {
        match script.below(64) {
            0 => self.client.close(),
            1 => self.frame(Header { session: SESSION, ..Header::new(Kind::Goodbye) }, &[]),
            2..=5 => self.client.list(self.now, script.number() as u32),
            6..=9 => self.client.ping(script.number()),
            10..=20 => self.hello_ack(script),
            21..=25 => {
                let payload = Challenge { token: script.number().max(1), nonce: NONCE }.to_bytes();
                self.frame(Header { length: payload.len() as u32, ..Header::new(Kind::Challenge) }, &payload);
            }
            26..=41 => self.train(script),
            42..=45 => self.most = 1 + script.below(70) as u32,
            _ => self.transmit(2),
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Response(key) => {
                    assert!(self.open.remove(&name(key)), "answered twice");
                    assert!(self.sizes.contains_key(&name(key)), "answered without an answer");
                }
                ClientEvent::Failed(key, _) => assert!(self.open.remove(&name(key)), "failed twice"),
                ClientEvent::Closed(_) => {
                    self.closed = true;
                    self.open.clear();
                }
                ClientEvent::Connected(_) | ClientEvent::Pong(_) => {}
            }
        }
    }

    fn check(&self) {
        let open = self.client.open_requests() as usize;
        assert!(open == self.open.len() || self.closed || open == 0, "{open} and {}", self.open.len());
    }

    /// The server is heard of no more: everything ends.
    fn end(&mut self) {
        for _ in 0..10 {
            self.now = self.now + self.config.silence_limit;
            self.client.handle_timeout(self.now);
            self.events();
            self.transmit(1000);
        }
        assert!(self.client.poll_transmit(self.now).is_none_or(|t| t.header.kind != Kind::Request));
    }
}
