//! A server with two small models, driven call by call.
#![allow(missing_docs, unreachable_pub, dead_code)]

#[path = "../common/mod.rs"]
pub mod common;
pub mod pair;
pub mod script;

use std::net::SocketAddr;

use splitrpc_arena::PoolLayout;
use splitrpc_engine::{
    CompletionHead, MS, ModelPlan, Peer, Piece, Placement, SEC, Server, ServerConfig, Time, Verdict,
};
use splitrpc_ring::{Completion, RequestKey, Run, Submission};
use splitrpc_wire::hello::{Abilities, Challenge, Hello, HelloAck, MIN_DATAGRAM};
use splitrpc_wire::{
    DType, Flags, HEADER_LEN, Header, Kind, MANIFEST_TENSOR, Manifest, ManifestWriter, Shape, Status, StatusPayload,
    TensorDesc, VERSION,
};

use common::{ServerMemory, input};

/// Up to 4 rows of 4 FP32 and 2 INT64; 16 slots.
pub const ROWS: u16 = 0;
/// Bytes, as many as one likes up to 1 MiB; 16 slots up to 4 KiB, 8 larger ones.
pub const BYTES: u16 = 1;
/// Where the orchestrator's own slots begin.
pub const OUTPUT_POOL: u16 = 1000;
/// Slots of each input pool.
pub const SLOTS: [u32; 3] = [16, 16, 8];

pub fn config() -> ServerConfig {
    ServerConfig {
        stream_sessions: 4,
        datagram_sessions: 4,
        requests: 24,
        requests_per_client: 8,
        flight: 64,
        max_request: 2 << 20,
        receive_window: 256 << 10,
        idle_timeout: 60 * SEC,
        keep_reply: 300 * MS,
        kept_replies: 16,
        min_progress: 1000,
        progress_grace: SEC,
        ..ServerConfig::small()
    }
}

/// Runs `test` with a fresh server.
pub fn serve<R>(config: &ServerConfig, test: impl FnOnce(&mut Rig<'_>) -> R) -> R {
    let pools = [
        (0, PoolLayout::new(&[16, 16], 4, 4).unwrap()),
        (1, PoolLayout::new(&[4096], 1, 16).unwrap()),
        (2, PoolLayout::new(&[1 << 20], 1, 8).unwrap()),
    ];
    let rows = [input(DType::Fp32, &[-1, 4]), input(DType::Int64, &[-1, 2])];
    let bytes = [input(DType::Uint8, &[-1])];
    let models = [
        ModelPlan { inputs: &rows, max_batch: 4, priority_levels: 3, default_priority: 2, classes: &[0] },
        ModelPlan { inputs: &bytes, max_batch: 0, priority_levels: 0, default_priority: 2, classes: &[1, 2] },
    ];
    let mut memory = ServerMemory::new(config, models.len(), &pools);
    let (slots, storage) = memory.lend(&pools);
    let server = Server::new(config, &models, &[b'c'; 5000], &pools, slots, storage, [7; 16], 99).unwrap();
    test(&mut Rig { server, now: Time::from_nanos(SEC), config: *config })
}

/// A frame that the server handed out.
#[derive(Debug)]
pub struct Sent {
    pub peer: Peer,
    pub header: Header,
    pub head: Vec<u8>,
    pub pieces: Vec<Piece>,
    pub token: Option<RequestKey>,
    pub answers: bool,
}

impl Sent {
    pub fn len(&self) -> usize {
        HEADER_LEN + self.header.length as usize
    }

    /// The status of an error frame.
    pub fn status(&self) -> StatusPayload<'_> {
        assert_eq!(self.header.kind, Kind::Error);
        StatusPayload::parse(&self.head).unwrap()
    }
}

pub struct Rig<'a> {
    pub server: Server<'a>,
    pub now: Time,
    pub config: ServerConfig,
}

impl Rig<'_> {
    /// Lets time go by; what is due on the way is done when it is due.
    pub fn pass(&mut self, nanos: u64) {
        let until = self.now + nanos;
        while self.server.next_timeout() <= until {
            self.now = self.now.max(self.server.next_timeout());
            self.server.handle_timeout(self.now);
            if self.server.next_timeout() <= self.now {
                self.now = self.now + 1000;
            }
        }
        self.now = until.max(self.now);
        self.server.handle_timeout(self.now);
    }

    /// Hands a frame in.
    pub fn frame(&mut self, from: Peer, header: Header, head: &[u8]) -> Verdict {
        self.server.handle_frame(self.now, from, &header, head)
    }

    /// A frame whose payload is all head.
    pub fn control(&mut self, from: Peer, header: Header, head: &[u8]) -> Verdict {
        self.frame(from, Header { length: head.len() as u32, ..header }, head)
    }

    /// Everything that the server wants to send now.
    pub fn sent(&mut self) -> Vec<Sent> {
        let mut all = Vec::new();
        while let Some(transmit) = self.server.poll_transmit(self.now) {
            assert!(all.len() < 100_000, "it never ends");
            all.push(Sent {
                peer: transmit.peer,
                header: transmit.header,
                head: transmit.head.to_vec(),
                pieces: transmit.data.collect(),
                token: transmit.token,
                answers: transmit.answers,
            });
        }
        all
    }

    /// The one frame that the server wants to send now.
    pub fn sent_one(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.pop().unwrap()
    }

    pub fn submissions(&mut self) -> Vec<Submission> {
        let mut all = Vec::new();
        while let Some(submission) = self.server.next_submission().copied() {
            self.server.submission_taken();
            all.push(submission);
        }
        all
    }

    /// The key and input of the one request that was submitted.
    pub fn submitted(&mut self) -> (RequestKey, Run) {
        let mut submissions = self.submissions();
        submissions.retain(|s| matches!(s, Submission::Submit { .. }));
        match submissions[..] {
            [Submission::Submit { request, input, .. }] => (request, input),
            ref other => panic!("{other:?}"),
        }
    }

    /// The orchestrator answers with `bytes` bytes in slots of its own.
    pub fn answer(&mut self, request: RequestKey, bytes: u32) -> Run {
        let output = Run { pool: OUTPUT_POOL, rows: 1, first: request.index, generation: request.generation };
        self.complete(request, Status::Ok, output, &response(bytes));
        output
    }

    pub fn complete(&mut self, request: RequestKey, status: Status, output: Run, manifest: &[u8]) {
        let head = match status {
            Status::Ok => CompletionHead::Manifest(Manifest::parse(manifest).unwrap()),
            status => CompletionHead::Status(StatusPayload { status, retry_after_us: 0, text: "because" }),
        };
        self.server.handle_completion(self.now, &Completion { request, status, output }, &head);
    }

    pub fn open_stream(&mut self, id: u32) -> u64 {
        self.server.stream_opened(self.now, id);
        self.control(Peer::Stream(id), Header::new(Kind::Hello), &hello(1, 0, 0).to_bytes());
        let ack = self.sent_one();
        assert_eq!((ack.header.kind, ack.peer), (Kind::HelloAck, Peer::Stream(id)));
        ack.header.session
    }

    /// Opens a datagram session whose client takes `window` bytes.
    pub fn open_datagram(&mut self, addr: SocketAddr, nonce: u64, window: u64) -> u64 {
        let from = Peer::Datagram(addr);
        self.sent();
        self.say_hello(from, &hello(nonce, 0, window));
        let challenge = self.sent_one();
        let token = Challenge::parse(&challenge.head).unwrap().token;
        self.say_hello(from, &hello(nonce, token, window));
        let ack = self.sent_one();
        assert_eq!(HelloAck::parse(&ack.head).unwrap().nonce, nonce);
        ack.header.session
    }

    /// A padded hello.
    pub fn say_hello(&mut self, from: Peer, hello: &Hello) -> Verdict {
        let mut payload = vec![0; usize::from(MIN_DATAGRAM) - HEADER_LEN];
        payload[..Hello::LEN].copy_from_slice(&hello.to_bytes());
        self.control(from, Header::new(Kind::Hello), &payload)
    }

    /// Hands a request in as one frame.
    pub fn request(&mut self, from: Peer, session: u64, id: u64, ask: &Ask) -> Verdict {
        let verdict = self.frame(from, ask.whole(session, id), &ask.manifest);
        if let Verdict::Place(placement) = verdict {
            self.place(&placement);
        }
        verdict
    }

    pub fn place(&mut self, placement: &Placement) {
        assert!(self.server.pieces(placement).map(|p| p.length).sum::<u32>() == placement.length());
        self.server.placed(self.now, placement, placement.length(), 0);
    }

    /// A request that the orchestrator has.
    pub fn submit(&mut self, from: Peer, session: u64, id: u64, ask: &Ask) -> (RequestKey, Run) {
        assert!(matches!(self.request(from, session, id, ask), Verdict::Place(_)));
        self.submitted()
    }

    /// No request is left, and every slot is free.
    pub fn assert_empty(&self) {
        assert_eq!(self.server.live_requests(), 0);
        self.assert_slots_free();
    }

    pub fn assert_slots_free(&self) {
        for (pool, slots) in SLOTS.iter().enumerate() {
            assert_eq!(self.server.free_slots(pool as u16), *slots, "slots of pool {pool}");
        }
    }
}

pub fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], port))
}

pub fn hello(nonce: u64, token: u64, window: u64) -> Hello {
    Hello {
        version_min: u16::from(VERSION),
        version_max: u16::from(VERSION),
        abilities: Abilities(0),
        datagram: 1472,
        max_response: 2 << 20,
        nonce,
        token,
        key_id: 0,
        window,
    }
}

/// What a request asks.
#[derive(Clone, Debug)]
pub struct Ask {
    pub model: u16,
    pub manifest: Vec<u8>,
    pub data: u32,
    pub priority: u8,
    pub deadline_us: u32,
}

impl Ask {
    pub fn rows(rows: u32) -> Ask {
        Ask::of(ROWS, &[(DType::Fp32, &[rows, 4]), (DType::Int64, &[rows, 2])])
    }

    pub fn bytes(bytes: u32) -> Ask {
        Ask::of(BYTES, &[(DType::Uint8, &[bytes])])
    }

    pub fn of(model: u16, tensors: &[(DType, &[u32])]) -> Ask {
        let mut writer = ManifestWriter::new();
        for (handle, (dtype, dims)) in tensors.iter().enumerate() {
            writer.push(&TensorDesc::fixed(handle as u16, *dtype, Shape::new(dims).unwrap()).unwrap()).unwrap();
        }
        let data = writer.data_len();
        Ask { model, manifest: writer.finish().to_vec(), data, priority: 0, deadline_us: 0 }
    }

    pub fn total(&self) -> u32 {
        self.manifest.len() as u32 + self.data
    }

    fn base(&self, session: u64, id: u64) -> Header {
        Header {
            session,
            request: id,
            model: self.model,
            priority: self.priority,
            deadline_us: self.deadline_us,
            total: self.total(),
            packet: id as u32,
            ..Header::new(Kind::Request)
        }
    }

    /// The request as one frame.
    pub fn whole(&self, session: u64, id: u64) -> Header {
        Header { flags: Flags::MANIFEST, length: self.total(), ..self.base(session, id) }
    }

    /// The manifest and the first `data` bytes.
    pub fn first(&self, session: u64, id: u64, data: u32) -> Header {
        let tensor = if data == 0 { MANIFEST_TENSOR } else { 0 };
        let length = self.manifest.len() as u32 + data;
        Header { flags: Flags::MANIFEST, tensor, length, ..self.base(session, id) }
    }

    pub fn part(&self, session: u64, id: u64, tensor: u16, offset: u32, length: u32) -> Header {
        Header { tensor, offset, length, ..self.base(session, id) }
    }
}

/// A response's manifest.
pub fn response(bytes: u32) -> Vec<u8> {
    let mut writer = ManifestWriter::with_path();
    writer.push(&TensorDesc::fixed(0, DType::Uint8, Shape::new(&[bytes]).unwrap()).unwrap()).unwrap();
    writer.finish().to_vec()
}
