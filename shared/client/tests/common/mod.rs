//! A server made of a socket and the wire crate, which does what a test tells it to.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use splitrpc_client::wire::catalog::{TensorInfo, write_model};
use splitrpc_client::wire::hello::{Abilities, Hello, HelloAck};
use splitrpc_client::wire::path::{Link, Memory, Mover, Path, Port, Stage};
use splitrpc_client::wire::{
    DType, Flags, HEADER_LEN, Header, Kind, Manifest, ManifestWriter, Shape, Status, StatusPayload, TensorDesc,
};

/// Handle of the model that answers with its input.
pub(crate) const ECHO: u16 = 0;
pub(crate) const SESSION: u64 = 0x5e55;

/// The catalogue of the fake server: `echo`, and `pair` with two inputs and two outputs.
pub(crate) fn catalogue() -> Vec<u8> {
    let tensor = |name, dtype, dims| TensorInfo::new(name, dtype, dims).unwrap();
    let mut bytes = vec![0; 4096];
    let (input, output) = (tensor("INPUT", DType::Uint8, &[-1]), tensor("OUTPUT", DType::Uint8, &[-1]));
    let mut at = write_model(&mut bytes, ECHO, "echo", 1, 0, &[input], &[output]).unwrap();
    let inputs = [tensor("a", DType::Fp32, &[-1, 2]), tensor("b", DType::Int64, &[-1])];
    let outputs = [tensor("../sum", DType::Fp32, &[-1, 2]), tensor("..\\sum", DType::Int64, &[-1])];
    at += write_model(&mut bytes[at..], 1, "pair", 1, 8, &inputs, &outputs).unwrap();
    bytes.truncate(at);
    bytes
}

/// One accepted connection.
pub(crate) struct Peer(pub(crate) TcpStream);

pub(crate) struct Greeting {
    pub(crate) max_requests: u16,
    pub(crate) max_request: u32,
    /// Bytes of the catalogue in one page.
    pub(crate) page: usize,
}

impl Default for Greeting {
    fn default() -> Self {
        Greeting { max_requests: 64, max_request: 64 << 20, page: 1000 }
    }
}

pub(crate) fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

impl Peer {
    /// Accepts a client and sets up its session, catalogue included.
    pub(crate) fn accept(listener: &TcpListener, greeting: &Greeting) -> Peer {
        let stream = listener.accept().unwrap().0;
        stream.set_nodelay(true).unwrap();
        let mut peer = Peer(stream);
        peer.greet(greeting);
        peer
    }

    pub(crate) fn greet(&mut self, greeting: &Greeting) {
        let catalogue = catalogue();
        let (header, payload) = self.frame().expect("a hello");
        assert_eq!(header.kind, Kind::Hello);
        let ack = hello_ack(&Hello::parse(&payload).unwrap(), greeting, catalogue.len());
        self.send(&Header { session: SESSION, ..Header::new(Kind::HelloAck) }, &ack.to_bytes());
        let mut sent = 0;
        while sent < catalogue.len() {
            let Some((header, _)) = self.frame() else { return };
            assert_eq!((header.kind, header.session), (Kind::List, SESSION));
            let from = header.offset as usize;
            let page = &catalogue[from..(from + greeting.page).min(catalogue.len())];
            sent = from + page.len();
            let total = catalogue.len() as u32;
            self.send(&Header { offset: from as u32, total, session: SESSION, ..Header::new(Kind::ListAck) }, page);
        }
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn frame(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.0.read_exact(&mut head).ok()?;
        let header = Header::parse(&head).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((header, payload))
    }

    /// The next request, answering what else comes.
    pub(crate) fn request(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            let (header, payload) = self.frame()?;
            match header.kind {
                Kind::Request => return Some((header, payload)),
                Kind::Ping => self.send(&Header::new(Kind::Pong), &[]),
                Kind::Goodbye => return None,
                _ => {}
            }
        }
    }

    pub(crate) fn send(&mut self, header: &Header, payload: &[u8]) {
        // A client that has gone away is the test's business.
        let _ = self.0.write_all(&frame(header, payload));
    }

    pub(crate) fn fail(&mut self, request: u64, status: Status, retry_after_us: u32, text: &str) {
        let mut payload = [0; 300];
        let len = StatusPayload { status, retry_after_us, text }.write(&mut payload);
        self.send(&Header { request, ..Header::new(Kind::Error) }, &payload[..len]);
    }

    /// Answers requests with their own tensors until the client goes.
    pub(crate) fn echo(&mut self) {
        while let Some((header, payload)) = self.request() {
            self.answer(&header, &payload);
        }
    }

    /// Answers a request with its own tensors.
    pub(crate) fn answer(&mut self, header: &Header, payload: &[u8]) {
        self.0.write_all(&echo_of(header, payload)).unwrap();
    }
}

pub(crate) fn hello_ack(hello: &Hello, greeting: &Greeting, catalogue: usize) -> HelloAck {
    HelloAck {
        version: 0,
        max_requests: greeting.max_requests,
        abilities: Abilities::default(),
        datagram: 1472,
        max_request: greeting.max_request,
        catalog_len: catalogue as u32,
        idle_timeout_ms: 60_000,
        keep_reply_ms: 1000,
        nonce: hello.nonce,
        epoch: 1,
        window: u64::MAX,
    }
}

/// A frame with its length filled in; where the total is 0, it is the length.
pub(crate) fn frame(header: &Header, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let total = if header.total == 0 { length } else { header.total };
    let mut bytes = Header { length, total, ..*header }.to_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn manifest(tensors: &[TensorDesc], path: Option<&Path>) -> Vec<u8> {
    let mut writer = if path.is_some() { ManifestWriter::with_path() } else { ManifestWriter::new() };
    for tensor in tensors {
        writer.push(tensor).unwrap();
    }
    if let Some(path) = path {
        writer.set_path(path);
    }
    writer.finish().to_vec()
}

pub(crate) fn bytes_desc(handle: u16, len: usize) -> TensorDesc {
    TensorDesc::fixed(handle, DType::Uint8, Shape::new(&[len as u32]).unwrap()).unwrap()
}

/// A whole response of one UINT8 output.
pub(crate) fn response(request: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = manifest(&[bytes_desc(0, data.len())], Some(&path(data.len())));
    payload.extend_from_slice(data);
    frame(&Header { request, session: SESSION, flags: Flags::MANIFEST, ..Header::new(Kind::Response) }, &payload)
}

/// The response that returns a request's tensors as outputs.
pub(crate) fn echo_of(header: &Header, payload: &[u8]) -> Vec<u8> {
    assert!(header.is_whole());
    let request = Manifest::parse(payload).unwrap();
    let tensors: Vec<TensorDesc> = request.tensors().collect();
    let data = &payload[request.as_bytes().len()..];
    let mut out = manifest(&tensors, Some(&path(data.len())));
    out.extend_from_slice(data);
    let header = Header { request: header.request, session: SESSION, ..Header::new(Kind::Response) };
    frame(&Header { flags: Flags::MANIFEST, ..header }, &out)
}

pub(crate) fn path(payload: usize) -> Path {
    let mut path = Path {
        port: Port::Tcp,
        mover: Mover::KernelToSlot,
        memory: Memory::Host,
        link: Link::InProcess,
        batch_rows: 1,
        payload_bytes: payload as u32,
        copied_bytes: payload as u32,
        ..Path::default()
    };
    path.set_stage(Stage::Receive, 1500);
    path.set_stage(Stage::Compute, 4000);
    path
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i.wrapping_mul(31) >> 3) ^ i ^ (seed * 41)) as u8).collect()
}
