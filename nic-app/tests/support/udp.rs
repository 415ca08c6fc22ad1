//! A client over datagrams: the engine's own client half over a socket, sending with segmentation offload.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use splitrpc_engine::{
    Client, ClientConfig, ClientEvent, ClientSlot, ClientStorage, ClientVerdict, RequestSpec, SentFrame, Time,
};
use splitrpc_ring::RequestKey;
use splitrpc_socket::{IoVecSend, UdpOptions, UdpSocket};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Manifest, Path, Status};

use super::client::{Answer, check, manifest};

struct Heap(Vec<ClientSlot>, Vec<SentFrame>);

impl ClientStorage for Heap {
    fn parts(&mut self) -> (&mut [ClientSlot], &mut [SentFrame]) {
        (&mut self.0, &mut self.1)
    }
    fn slots(&self) -> &[ClientSlot] {
        &self.0
    }
    fn flight(&self) -> &[SentFrame] {
        &self.1
    }
}

struct Open {
    tensors: Vec<Vec<u8>>,
    answer: Vec<Vec<u8>>,
    path: Option<Path>,
}

pub struct UdpClient {
    pub socket: UdpSocket,
    server: SocketAddr,
    engine: Client<Heap>,
    open: HashMap<RequestKey, Open>,
    done: HashMap<RequestKey, Answer>,
    start: Instant,
    buffer: Vec<u8>,
    connected: bool,
    /// The session ended.
    pub closed: Option<Status>,
    error_text: String,
}

impl UdpClient {
    pub fn connect(server: SocketAddr, datagram: u16) -> UdpClient {
        let options = UdpOptions { recv_buffer: Some(4 << 20), send_buffer: Some(4 << 20), ..UdpOptions::default() };
        let socket = UdpSocket::bind(([127, 0, 0, 1], 0).into(), &options).unwrap();
        let config = ClientConfig { datagram, ..ClientConfig::default() };
        let storage = Heap(vec![ClientSlot::default(); 32], vec![SentFrame::default(); 1024]);
        let nonce = u64::from(socket.local_addr().port()) << 16 | 1;
        let mut client = UdpClient {
            socket,
            server,
            engine: Client::new(Time::default(), &config, storage, nonce).unwrap(),
            open: HashMap::new(),
            done: HashMap::new(),
            start: Instant::now(),
            buffer: vec![0; 1 << 16],
            connected: false,
            closed: None,
            error_text: String::new(),
        };
        client.drive(|client| client.connected);
        client
    }

    /// Says goodbye, after which the server keeps nothing for this client.
    pub fn close(mut self) {
        self.engine.close();
        self.turn();
    }

    pub fn stats(&self) -> String {
        format!("{:?}", self.engine.stats())
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.start.elapsed().as_nanos() as u64)
    }

    pub fn submit(&mut self, model: u16, tensors: &[&[u8]]) -> RequestKey {
        let bytes = manifest(tensors);
        let spec = RequestSpec {
            model,
            manifest: Manifest::parse(&bytes).unwrap(),
            priority: 0,
            deadline_us: 0,
            repeatable: false,
        };
        let key = self.engine.submit(self.now(), &spec).unwrap();
        let tensors = tensors.iter().map(|t| t.to_vec()).collect();
        self.open.insert(key, Open { tensors, answer: Vec::new(), path: None });
        key
    }

    /// How many answers have come that nobody took yet.
    pub fn answered(&self) -> usize {
        self.done.len()
    }

    /// Waits for the answer to a request.
    pub fn answer(&mut self, key: RequestKey) -> Answer {
        self.drive(|client| client.done.contains_key(&key) || client.closed.is_some());
        self.done.remove(&key).unwrap_or_else(|| panic!("the session closed: {:?}", self.closed))
    }

    pub fn ask(&mut self, model: u16, tensors: &[&[u8]]) -> Path {
        let key = self.submit(model, tensors);
        let answer = self.answer(key);
        check(model, tensors, answer)
    }

    /// Sends and receives until `done` says so.
    pub fn drive(&mut self, done: impl Fn(&UdpClient) -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < until, "nothing came of it in a minute");
            self.turn();
        }
    }

    pub fn turn(&mut self) {
        let now = self.now();
        self.send(now);
        let mut buffer = std::mem::take(&mut self.buffer);
        match self.socket.recv(&mut [splitrpc_socket::IoVec::from(&mut buffer[..])]) {
            Ok(received) => {
                let segment = received.segment.map_or(received.len, usize::from);
                buffer[..received.len].chunks(segment.max(1)).for_each(|datagram| self.datagram(now, datagram));
            }
            Err(_) => std::thread::yield_now(),
        }
        self.buffer = buffer;
        if self.engine.next_timeout() <= now {
            self.engine.handle_timeout(now);
        }
        self.events();
    }

    fn send(&mut self, now: Time) {
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        while let Some(frame) = self.engine.poll_transmit(now) {
            let mut bytes = frame.header.to_bytes().to_vec();
            bytes.extend(frame.head);
            for piece in frame.data {
                let tensor = &self.open[&frame.request.unwrap()].tensors[usize::from(piece.tensor)];
                bytes.extend(&tensor[piece.offset as usize..(piece.offset + piece.length) as usize]);
            }
            match datagrams.last_mut() {
                Some(last) if frame.rides_along && last.len() + bytes.len() <= 1232 => last.extend(bytes),
                _ => datagrams.push(bytes),
            }
        }
        let mut rest = &datagrams[..];
        while let Some(first) = rest.first() {
            // Equal ones and a shorter last one leave together.
            let most = (64_000 / first.len()).clamp(1, 60);
            let equal = rest.iter().take(most).take_while(|d| d.len() == first.len()).count();
            let tail = usize::from(equal < most && rest.get(equal).is_some_and(|d| d.len() < first.len()));
            let list: Vec<_> = rest[..equal + tail].iter().map(|d| IoVecSend::from(&d[..])).collect();
            let segment = (equal + tail > 1).then_some(first.len() as u16);
            let _ = self.socket.send(self.server, &list, segment);
            rest = &rest[equal + tail..];
        }
    }

    fn datagram(&mut self, now: Time, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let header = Header::parse(bytes).unwrap();
            let (frame, rest) = bytes.split_at(HEADER_LEN + header.length as usize);
            bytes = rest;
            self.frame(now, &header, &frame[HEADER_LEN..]);
        }
    }

    fn frame(&mut self, now: Time, header: &Header, payload: &[u8]) {
        let head = match header.kind {
            Kind::Response if header.flags.has(Flags::MANIFEST) => Manifest::peek_len(payload).unwrap(),
            Kind::Response => 0,
            _ => payload.len(),
        };
        if header.kind == Kind::Error {
            self.error_text = splitrpc_wire::StatusPayload::parse(payload).unwrap().text.to_owned();
        }
        if let ClientVerdict::Place(placement) = self.engine.handle_frame(now, header, &payload[..head]) {
            let open = self.open.get_mut(&placement.request).unwrap();
            if head > 0 && open.path.is_none() {
                let manifest = Manifest::parse(&payload[..head]).unwrap();
                open.path = manifest.path().copied();
                open.answer = manifest.tensors().map(|t| vec![0; t.bytes as usize]).collect();
            }
            let mut data = &payload[head..];
            for piece in self.engine.pieces(&placement) {
                let (part, rest) = data.split_at(piece.length as usize);
                let at = piece.offset as usize;
                open.answer[usize::from(piece.tensor)][at..at + part.len()].copy_from_slice(part);
                data = rest;
            }
            self.engine.placed(now, &placement);
        }
        self.events();
    }

    fn events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            match event {
                ClientEvent::Connected(_) => self.connected = true,
                ClientEvent::Pong(_) => {}
                ClientEvent::Response(key) => {
                    let Open { answer: tensors, path, .. } = self.open.remove(&key).unwrap();
                    self.done.insert(key, Answer::Response { path: path.unwrap(), tensors });
                }
                ClientEvent::Failed(key, status) => {
                    self.open.remove(&key);
                    self.done.insert(key, Answer::Error(status, self.error_text.clone()));
                }
                ClientEvent::Closed(status) => self.closed = Some(status),
            }
        }
    }
}
