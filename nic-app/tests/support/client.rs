//! A client that speaks the wire by hand, over a blocking stream.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use splitrpc_wire::hello::{Abilities, Hello, HelloAck};
use splitrpc_wire::{
    DType, Flags, HEADER_LEN, Header, Kind, Manifest, ManifestWriter, Path, Shape, Status, StatusPayload, TensorDesc,
};

#[derive(Debug)]
pub struct Client {
    pub stream: TcpStream,
    pub session: u64,
    next: u64,
}

/// What came back for a request.
#[derive(Debug)]
pub enum Answer {
    Response { path: Path, tensors: Vec<Vec<u8>> },
    Error(Status, String),
}

impl Client {
    pub fn connect(server: SocketAddr) -> Client {
        let (mut client, header, payload) = Client::say_hello(server);
        assert_eq!(header.kind, Kind::HelloAck);
        assert_eq!(HelloAck::parse(&payload).unwrap().nonce, 77);
        client.session = header.session;
        client
    }

    /// A stream whose hello has been answered, and with what.
    pub fn say_hello(server: SocketAddr) -> (Client, Header, Vec<u8>) {
        let mut client = Client::greet(server);
        let (header, payload) = client.receive();
        (client, header, payload)
    }

    /// A stream on which hello has been said.
    pub fn greet(server: SocketAddr) -> Client {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Client { stream, session: 0, next: 0 };
        let hello = Hello {
            version_min: 0,
            version_max: 0,
            abilities: Abilities(0),
            datagram: 1472,
            max_response: 64 << 20,
            nonce: 77,
            token: 0,
            key_id: 0,
            window: 1 << 20,
        };
        client.send_frame(Header::new(Kind::Hello), &hello.to_bytes());
        client
    }

    pub fn send_frame(&mut self, header: Header, payload: &[u8]) {
        let header = Header { length: payload.len() as u32, ..header };
        self.stream.write_all(&[&header.to_bytes()[..], payload].concat()).unwrap();
    }

    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        self.try_receive().unwrap()
    }

    pub fn try_receive(&mut self) -> io::Result<(Header, Vec<u8>)> {
        let mut bytes = [0; HEADER_LEN];
        self.stream.read_exact(&mut bytes)?;
        let header = Header::parse(&bytes).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((header, payload))
    }

    /// The bytes of a whole request in one frame, and its number.
    pub fn request(&mut self, model: u16, tensors: &[&[u8]]) -> (u64, Vec<u8>) {
        self.next += 1;
        (self.next, request_bytes(self.session, self.next, model, tensors))
    }

    pub fn send(&mut self, model: u16, tensors: &[&[u8]]) -> u64 {
        let (id, bytes) = self.request(model, tensors);
        self.stream.write_all(&bytes).unwrap();
        id
    }

    /// The answer that comes next, whichever request it belongs to.
    pub fn answer(&mut self) -> (u64, Answer) {
        let (header, payload) = self.receive();
        (header.request, parse(&header, &payload))
    }

    /// Sends a request, expects its answer, and that the answer is right.
    pub fn ask(&mut self, model: u16, tensors: &[&[u8]]) -> Path {
        let id = self.send(model, tensors);
        let (answered, answer) = self.answer();
        assert_eq!(answered, id);
        check(model, tensors, answer)
    }
}

/// Fails unless the answer is what the model gives for these tensors.
pub fn check(model: u16, asked: &[&[u8]], answer: Answer) -> Path {
    let Answer::Response { path, tensors } = answer else { panic!("{answer:?}") };
    if model == super::NULL {
        assert!(tensors.len() == 1 && tensors[0].iter().enumerate().all(|(i, b)| *b == i as u8));
        assert_eq!(tensors[0].len(), super::host::NULL_BYTES as usize);
    } else {
        assert!(tensors.iter().map(Vec::as_slice).eq(asked.iter().copied()), "wrong bytes came back");
    }
    assert_eq!(path.payload_bytes as usize, asked.iter().map(|t| t.len()).sum::<usize>());
    assert_eq!(path.copied_bytes, path.payload_bytes);
    path
}

pub fn parse(header: &Header, payload: &[u8]) -> Answer {
    match header.kind {
        Kind::Response => {
            let manifest = Manifest::parse(payload).unwrap();
            let mut rest = &payload[manifest.as_bytes().len()..];
            let tensors = manifest.tensors().map(|t| {
                let (tensor, after) = rest.split_at(t.bytes as usize);
                rest = after;
                tensor.to_vec()
            });
            let tensors = tensors.collect();
            assert!(rest.is_empty());
            Answer::Response { path: *manifest.path().unwrap(), tensors }
        }
        Kind::Error => {
            let StatusPayload { status, text, .. } = StatusPayload::parse(payload).unwrap();
            Answer::Error(status, text.to_owned())
        }
        kind => panic!("{kind:?} is no answer"),
    }
}

pub fn manifest(tensors: &[&[u8]]) -> Vec<u8> {
    let mut manifest = ManifestWriter::new();
    for (handle, tensor) in tensors.iter().enumerate() {
        let shape = Shape::new(&[tensor.len() as u32]).unwrap();
        manifest.push(&TensorDesc::fixed(handle as u16, DType::Uint8, shape).unwrap()).unwrap();
    }
    manifest.finish().to_vec()
}

/// A whole request in one frame.
pub fn request_bytes(session: u64, id: u64, model: u16, tensors: &[&[u8]]) -> Vec<u8> {
    let manifest = manifest(tensors);
    let total = (manifest.len() + tensors.iter().map(|t| t.len()).sum::<usize>()) as u32;
    let header = Header {
        flags: Flags::MANIFEST,
        model,
        session,
        request: id,
        length: total,
        total,
        ..Header::new(Kind::Request)
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(manifest);
    tensors.iter().for_each(|t| bytes.extend(*t));
    bytes
}

/// Bytes that tell themselves apart.
pub fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        // Not the byte that makes the test's model fail.
        (state >> 8) as u8 & 0x7f
    };
    (0..len).map(byte).collect()
}
