//! A server driven by any sequence of calls, honest or not: it never panics, never names bytes outside the slots that it
//! handed out, sends little to addresses that proved nothing, and in the end holds nothing.
#![allow(missing_docs, unreachable_pub)]

mod rig;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use rig::script::Script;
use rig::{Ask, OUTPUT_POOL, Rig, addr, config, hello, response, serve};
use splitrpc_engine::{CompletionHead, MS, Peer, Placement, SEC, Verdict};
use splitrpc_ring::{Completion, RequestKey, Run, Submission};
use splitrpc_wire::hello::Challenge;
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Manifest, Status, StatusPayload, Train, WireError};

const PEERS: usize = 6;

#[test]
fn server_calls() {
    bolero::check!().with_test_time(Duration::from_secs(3)).for_each(|bytes: &[u8]| {
        let mut script = Script::new(bytes);
        let mut config = config();
        config.requests = 4 + script.below(20) as u32;
        config.kept_replies = script.below(8) as u32;
        config.receive_window = 64 << 10;
        serve(&config, |rig| {
            let mut play = Play::new(rig);
            play.greet();
            while !script.is_over() {
                play.step(&mut script);
                play.check();
            }
            play.end();
        });
    });
}

struct Play<'r, 'a> {
    rig: &'r mut Rig<'a>,
    /// What each datagram address sent and was sent before it was proved.
    unproven: HashMap<Peer, (u64, u64)>,
    proven: BTreeSet<u16>,
    tokens: Vec<u64>,
    sessions: HashMap<Peer, u64>,
    placements: Vec<Placement>,
    tokens_out: Vec<RequestKey>,
    /// Requests that the orchestrator has, and its outputs that it has not got back.
    held: Vec<(RequestKey, Run)>,
    outputs: Vec<Run>,
    next_output: u32,
    /// How many frames may leave as one train.
    most: u32,
}

fn peer(at: usize) -> Peer {
    match at {
        0..=2 => Peer::Datagram(addr(at as u16)),
        3 | 4 => Peer::Stream(at as u32 - 3),
        _ => Peer::Stream(u32::MAX),
    }
}

/// Whether slots are the orchestrator's.
fn is_own(output: Run) -> bool {
    output != Run::NONE && usize::from(output.pool) >= rig::SLOTS.len()
}

fn asks() -> [Ask; 8] {
    [
        Ask::rows(1),
        Ask::rows(4),
        Ask::bytes(0),
        Ask::bytes(100),
        Ask::bytes(4000),
        Ask::bytes(60_000),
        Ask::rows(9),
        Ask { model: 7, ..Ask::rows(1) },
    ]
}

impl<'r, 'a> Play<'r, 'a> {
    fn new(rig: &'r mut Rig<'a>) -> Play<'r, 'a> {
        Play {
            rig,
            unproven: HashMap::new(),
            proven: BTreeSet::new(),
            tokens: vec![0],
            sessions: HashMap::new(),
            placements: Vec::new(),
            tokens_out: Vec::new(),
            held: Vec::new(),
            outputs: Vec::new(),
            next_output: 0,
            most: 1,
        }
    }

    /// Two sessions to begin with.
    fn greet(&mut self) {
        self.sessions.insert(peer(3), self.rig.open_stream(0));
        self.sessions.insert(peer(0), self.rig.open_datagram(addr(0), 0, 1 << 20));
        self.proven.insert(0);
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.below(22) {
            20 | 21 => self.connect(peer(script.below(5)), script.below(3) as u64),
            0 => self.hello(script),
            1 => self.any_frame(script),
            2..=6 => self.request(script),
            7 | 8 => self.place(script),
            9 | 10 => self.submissions(),
            11 | 12 => self.complete(script),
            13 => self.time(script),
            14 | 15 => self.transmit(1 + script.below(20)),
            16 => self.acknowledge(script),
            17 => self.simple(script),
            18 => self.streams(script),
            _ => self.odds_and_ends(script),
        }
    }

    fn frame(&mut self, from: Peer, header: Header, head: &[u8]) {
        // A driver hands in only what parses, and only while there is room.
        let Ok(header) = Header::parse(&header.to_bytes()) else {
            assert_eq!(self.rig.server.handle_garbage(self.rig.now, from, WireError::BadExtent), Verdict::Close);
            return;
        };
        if !self.rig.server.accepts_frames() {
            self.submissions();
            self.transmit(usize::MAX);
        }
        self.unproven.entry(from).or_default().0 += HEADER_LEN as u64 + u64::from(header.length);
        let verdict = self.rig.frame(from, header, head);
        self.obey(from, verdict);
    }

    /// As many frames as make a train with this one at its head, up to `frames`.
    fn frames(&mut self, from: Peer, first: Header, frames: u32) {
        let train = Train::new(&first);
        let follow = (1..frames).take_while(|n| train.is_nth(*n, &train.nth(*n))).count() as u32;
        if follow == 0 || Header::parse(&first.to_bytes()).is_err() {
            return self.frame(from, first, &[]);
        }
        if !self.rig.server.accepts_frames() {
            self.submissions();
            self.transmit(usize::MAX);
        }
        let bytes = HEADER_LEN as u64 + u64::from(first.length);
        self.unproven.entry(from).or_default().0 += bytes * u64::from(follow + 1);
        let verdict = self.rig.server.handle_train(self.rig.now, from, &first, follow + 1);
        if let Verdict::Place(placement) = verdict {
            assert_eq!(placement.length(), first.length * (follow + 1));
        }
        self.obey(from, verdict);
    }

    fn obey(&mut self, from: Peer, verdict: Verdict) {
        match verdict {
            Verdict::Place(placement) => {
                let pool = usize::from(placement.run.pool);
                let (rows, slots) = ([&[16u32, 16][..], &[4096], &[1 << 20]][pool], rig::SLOTS[pool]);
                assert!(placement.run.first + u32::from(placement.run.rows) <= slots);
                let mut total = 0;
                for piece in self.rig.server.pieces(&placement) {
                    let row = u64::from(rows[usize::from(piece.tensor)]);
                    assert_eq!(piece.run, placement.run);
                    let end = u64::from(piece.offset) + u64::from(piece.length);
                    assert!(end <= row * u64::from(piece.run.rows), "{piece:?} lies outside its slots");
                    total += piece.length;
                }
                assert_eq!(total, placement.length());
                self.placements.push(placement);
            }
            Verdict::Close => {
                if let Peer::Stream(id) = from {
                    self.rig.server.stream_closed(id);
                }
            }
            Verdict::Done | Verdict::Discard => {}
        }
    }

    fn hello(&mut self, script: &mut Script<'_>) {
        let from = peer(script.below(PEERS));
        let token = match script.pick(&self.tokens) {
            Some(token) if script.chance(200) => *token,
            _ => script.number(),
        };
        let hello = hello(script.below(3) as u64, token, script.number());
        let mut payload = hello.to_bytes().to_vec();
        if script.chance(220) {
            payload.resize(1168, 0);
        }
        self.frame(from, Header { length: payload.len() as u32, ..Header::new(Kind::Hello) }, &payload);
    }

    /// What a client does that wants a session.
    fn connect(&mut self, from: Peer, nonce: u64) {
        if let Peer::Stream(id) = from {
            self.rig.server.stream_opened(self.rig.now, id);
        }
        let hellos = if matches!(from, Peer::Stream(_)) { 1 } else { 2 };
        for _ in 0..hellos {
            let hello = hello(nonce, *self.tokens.last().unwrap(), 1 << 20);
            let mut payload = hello.to_bytes().to_vec();
            payload.resize(1168, 0);
            self.frame(from, Header { length: payload.len() as u32, ..Header::new(Kind::Hello) }, &payload);
            self.transmit(usize::MAX);
        }
    }

    fn session(&self, script: &mut Script<'_>, from: Peer) -> u64 {
        match script.byte() {
            0..=239 => self.sessions.get(&from).copied().unwrap_or(0),
            240..=249 => self.sessions.values().max().copied().unwrap_or(0),
            _ => script.number(),
        }
    }

    fn any_frame(&mut self, script: &mut Script<'_>) {
        let from = peer(script.below(PEERS));
        let header = Header {
            flags: script.flags(),
            priority: script.byte(),
            model: script.number() as u16,
            session: self.session(script, from),
            request: script.number(),
            tensor: script.number() as u16,
            credit: script.byte().into(),
            packet: script.number() as u32,
            length: script.number() as u32,
            deadline_us: script.number() as u32,
            offset: script.number() as u32,
            total: script.number() as u32,
            ..Header::new(*script.pick(&Kind::ALL).unwrap())
        };
        let ask = script.pick(&asks()).unwrap().manifest.clone();
        let noise: Vec<u8> = (0..script.below(100)).map(|_| script.byte()).collect();
        let head = *script.pick(&[&ask[..], &noise, &[]]).unwrap();
        self.frame(from, header, head);
    }

    /// A frame of a request as an honest client might send it, or nearly so.
    fn request(&mut self, script: &mut Script<'_>) {
        let from = peer(script.below(5));
        let (session, id) = (self.session(script, from), 1 + script.below(12) as u64);
        let ask = script.pick(&asks()).unwrap().clone();
        let ask = Ask { deadline_us: if script.chance(40) { script.number() as u32 } else { 0 }, ..ask };
        let (offset, length) = ((script.number() as u32).wrapping_mul(16), (script.number() as u32).wrapping_mul(16));
        let header = match script.below(4) {
            0 | 1 => ask.whole(session, id),
            2 => ask.first(session, id, length.min(ask.data)),
            _ => ask.part(session, id, script.below(3) as u16, offset, length),
        };
        let head: &[u8] = if header.flags.has(Flags::MANIFEST) { &ask.manifest } else { &[] };
        self.frame(from, Header { packet: script.number() as u32, ..header }, head);
    }

    /// Several frames that go on with one tensor, as an honest client sends them, or nearly so.
    fn train(&mut self, script: &mut Script<'_>) {
        let from = peer(script.below(5));
        let (session, id) = (self.session(script, from), 1 + script.below(12) as u64);
        let ask = script.pick(&[Ask::rows(4), Ask::bytes(4000), Ask::bytes(60_000)]).unwrap().clone();
        if script.chance(150) {
            self.frame(from, ask.first(session, id, 0), &ask.manifest);
        }
        let length = *script.pick(&[4, 16, 100, 1408, 1 << 30]).unwrap();
        let offset = length * script.below(4) as u32;
        let header = ask.part(session, id, u16::from(script.chance(60)), offset, length);
        let flags = if script.chance(30) { script.flags() } else { Flags::NONE };
        let frames = 2 + script.below(66) as u32;
        self.frames(from, Header { packet: script.number() as u32, flags, ..header }, frames);
    }

    fn place(&mut self, script: &mut Script<'_>) {
        let Some(placement) = script.pick(&self.placements).copied() else { return };
        let live = self.rig.server.still_placing(&placement);
        assert!(live || self.rig.server.pieces(&placement).count() == 0);
        let before = self.rig.server.stats().bytes_placed;
        match script.below(8) {
            0 => self.rig.server.progressed(&placement, script.number() as u32),
            _ => self.rig.server.placed(self.rig.now, &placement, script.number() as u32, 0),
        }
        let new = self.rig.server.stats().bytes_placed - before;
        assert!(new <= u64::from(placement.length()) && (live || new == 0));
    }

    fn submissions(&mut self) {
        for submission in self.rig.submissions() {
            match submission {
                Submission::Submit { request, input, .. } => {
                    assert_eq!(self.rig.server.input_of(request), Some(input));
                    assert!(!self.held.iter().any(|h| h.0 == request || h.1 == input), "submitted twice");
                    self.held.push((request, input));
                }
                Submission::Cancel { request } => assert!(self.held.iter().any(|h| h.0 == request)),
                Submission::Release { output } => {
                    let at = self.outputs.iter().position(|o| *o == output);
                    self.outputs
                        .swap_remove(at.unwrap_or_else(|| panic!("given back twice or never made: {output:?}")));
                }
            }
        }
    }

    fn complete(&mut self, script: &mut Script<'_>) {
        // Nobody can forge a completion of what has not left the engine.
        self.submissions();
        let at = script.below(self.held.len());
        let forged = script.chance(30) || self.held.is_empty();
        let (request, input) = match forged {
            true => {
                let request = RequestKey { index: script.number() as u32, generation: script.number() as u32 };
                (request, Run { pool: script.below(4) as u16, rows: 1, first: script.number() as u32, generation: 1 })
            }
            false => self.held[at],
        };
        let output = match script.below(6) {
            0..=2 => {
                self.next_output += 1;
                Run { pool: OUTPUT_POOL, rows: 1, first: self.next_output, generation: 1 }
            }
            3 => Run::NONE,
            4 => input,
            _ => Run {
                pool: script.below(4) as u16,
                rows: 1,
                first: script.byte().into(),
                generation: script.byte().into(),
            },
        };
        if let Some(held) = self.held.iter().position(|h| h.0 == request) {
            self.held.swap_remove(held);
            if is_own(output) {
                self.outputs.push(output);
            }
        }
        let manifest = response(*script.pick(&[0, 10, 4000, 60_000, 3 << 20]).unwrap());
        let head = match script.below(8) {
            0 => CompletionHead::Nonsense,
            1 => CompletionHead::Status(StatusPayload { status: Status::ModelFailed, retry_after_us: 0, text: "no" }),
            _ => CompletionHead::Manifest(Manifest::parse(&manifest).unwrap()),
        };
        let status = if script.chance(230) { Status::Ok } else { Status::ModelFailed };
        self.rig.server.handle_completion(self.rig.now, &Completion { request, status, output }, &head);
    }

    fn time(&mut self, script: &mut Script<'_>) {
        let long = if script.chance(20) { 61 * SEC } else { 20 * MS };
        let step = *script.pick(&[1000, 100_000, MS, 50 * MS, 400 * MS, 1100 * MS, long]).unwrap();
        self.rig.now = self.rig.now + step;
        self.rig.server.handle_timeout(self.rig.now);
    }

    fn transmit(&mut self, frames: usize) {
        for frame in 0..frames {
            assert!(frame < 10_000, "it never ends");
            let Some(sent) = self.rig.server.poll_train(self.rig.now, self.most) else { return };
            let (to, header, token, frames) = (sent.peer, sent.header, sent.token, sent.frames);
            let bytes = HEADER_LEN as u64 + u64::from(header.length);
            let data: u32 = sent.data.map(|p| p.length).sum();
            assert_eq!(u64::from(header.length) * u64::from(frames), sent.head.len() as u64 + u64::from(data));
            assert!((1..=self.most).contains(&frames));
            let train = Train::new(&header);
            assert!((1..frames).all(|n| train.is_nth(n, &train.nth(n))), "not a train: {header:?}");
            let challenge = (header.kind == Kind::Challenge).then(|| Challenge::parse(sent.head).unwrap().token);
            if let Peer::Datagram(addr) = to {
                assert!(bytes <= 1472, "a datagram of {bytes} bytes");
                if header.kind == Kind::HelloAck {
                    self.proven.insert(addr.port());
                }
                if !self.proven.contains(&addr.port()) {
                    let (received, sent) = self.unproven.entry(to).or_default();
                    *sent += bytes * u64::from(frames);
                    assert!(*sent <= 3 * *received, "{sent} bytes for {received}");
                }
            }
            if header.kind == Kind::HelloAck {
                self.sessions.insert(to, header.session);
            }
            self.tokens.extend(challenge);
            self.tokens_out.extend(token);
        }
    }

    fn acknowledge(&mut self, script: &mut Script<'_>) {
        let from = peer(script.below(5));
        let payload = script.ack();
        let session = self.session(script, from);
        self.frame(from, Header { session, length: payload.len() as u32, ..Header::new(Kind::Ack) }, &payload);
    }

    fn simple(&mut self, script: &mut Script<'_>) {
        let from = peer(script.below(PEERS));
        let kind = *script.pick(&[Kind::Cancel, Kind::Cancel, Kind::Ping, Kind::List, Kind::Goodbye]).unwrap();
        let header = Header {
            session: self.session(script, from),
            request: script.below(13) as u64,
            packet: script.number() as u32,
            offset: script.number() as u32,
            ..Header::new(kind)
        };
        self.frame(from, header, &[]);
    }

    fn streams(&mut self, script: &mut Script<'_>) {
        match (script.below(3), script.below(6) as u32) {
            (0, id) => self.rig.server.stream_closed(id),
            (1, id) => self.rig.server.stream_opened(self.rig.now, id),
            _ => {
                let token = match script.pick(&self.tokens_out) {
                    Some(token) if script.chance(240) => *token,
                    _ => RequestKey { index: script.number() as u32, generation: script.number() as u32 },
                };
                self.rig.server.sent(token);
            }
        }
    }

    fn odds_and_ends(&mut self, script: &mut Script<'_>) {
        match script.below(256) {
            0 => match script.below(4) {
                0..=1 => self.rig.server.begin_drain(),
                at_last => self.rig.server.say_farewell(at_last == 3),
            },
            1 => {
                self.rig.server.poll_stale_stream(self.rig.now);
            }
            2 => {
                let ask = script.pick(&asks()).unwrap().clone();
                let manifest = Manifest::parse(&ask.manifest).unwrap();
                let run = self.rig.server.class_of(&ask.whole(0, 1), &manifest);
                let run = run.and_then(|(pool, rows)| self.rig.server.peek_run(pool, rows));
                assert!(run.is_none_or(|run| self.rig.server.free_slots(run.pool) >= u32::from(run.rows)));
            }
            3..=119 => self.train(script),
            120..=139 => self.most = 1 + script.below(70) as u32,
            _ => self.transmit(3),
        }
    }

    fn check(&self) {
        assert!(self.rig.server.live_requests() <= self.rig.config.requests);
        for (pool, slots) in rig::SLOTS.iter().enumerate() {
            assert!(self.rig.server.free_slots(pool as u16) <= *slots);
        }
        assert!(self.rig.server.open_sessions() <= 8);
    }

    /// Everybody leaves, and the orchestrator gives back what it has.
    fn end(&mut self) {
        (0..8).for_each(|id| self.rig.server.stream_closed(id));
        for _ in 0..10 {
            self.submissions();
            for (request, _) in std::mem::take(&mut self.held) {
                let completion = Completion { request, status: Status::ModelFailed, output: Run::NONE };
                self.rig.server.handle_completion(self.rig.now, &completion, &CompletionHead::Nonsense);
            }
            self.transmit(usize::MAX);
            self.rig.now = self.rig.now + 30 * SEC;
            self.rig.server.handle_timeout(self.rig.now);
        }
        self.submissions();
        assert!(self.outputs.is_empty(), "outputs never given back: {:?}", self.outputs);
        assert_eq!(self.rig.server.open_sessions(), 0);
        let stats = self.rig.server.stats();
        assert_eq!(stats.sessions_opened, stats.sessions_closed + stats.sessions_expired);
        self.rig.assert_empty();
        assert!(self.rig.server.is_idle());
        assert!(self.rig.server.poll_transmit(self.rig.now).is_none());
    }
}
