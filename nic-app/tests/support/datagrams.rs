//! A datagram client that sends frames by hand: no timers, nothing sent twice.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use splitrpc_socket::{IoVec, IoVecSend, UdpOptions, UdpSocket};
use splitrpc_wire::ack::{Ack, AckRange, MAX_ACK_LEN};
use splitrpc_wire::hello::{Abilities, Challenge, Hello, MIN_DATAGRAM};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Manifest, Path};

use super::client::manifest;

pub struct Datagrams {
    pub socket: UdpSocket,
    server: SocketAddr,
    session: u64,
    request: u64,
    packet: u32,
    size: usize,
}

impl Datagrams {
    pub fn connect(server: SocketAddr, size: u16) -> Datagrams {
        let socket = UdpSocket::bind(([127, 0, 0, 1], 0).into(), &UdpOptions::default()).unwrap();
        let mut client = Datagrams { socket, server, session: 0, request: 0, packet: 0, size: size.into() };
        let mut hello = Hello {
            version_min: 0,
            version_max: 0,
            abilities: Abilities(0),
            datagram: size,
            max_response: 64 << 20,
            nonce: 5,
            token: 0,
            key_id: 0,
            window: 1 << 20,
        };
        client.hello(&hello);
        let (header, payload) = client.receive().remove(0);
        assert_eq!(header.kind, Kind::Challenge);
        hello.token = Challenge::parse(&payload).unwrap().token;
        client.hello(&hello);
        let (header, _) = client.receive().remove(0);
        assert_eq!(header.kind, Kind::HelloAck);
        client.session = header.session;
        client
    }

    fn hello(&self, hello: &Hello) {
        let mut payload = hello.to_bytes().to_vec();
        payload.resize(usize::from(MIN_DATAGRAM) - HEADER_LEN, 0);
        let header = Header { length: payload.len() as u32, ..Header::new(Kind::Hello) };
        self.send(&[[&header.to_bytes()[..], &payload].concat()]);
    }

    /// Sends datagrams of equal size, the last one perhaps shorter, with as few calls as possible.
    pub fn send(&self, datagrams: &[Vec<u8>]) {
        for burst in datagrams.chunks((60_000 / datagrams[0].len()).min(60)) {
            let list: Vec<_> = burst.iter().map(|d| IoVecSend::from(&d[..])).collect();
            let segment = (burst.len() > 1).then_some(burst[0].len() as u16);
            assert_eq!(self.socket.send(self.server, &list, segment).unwrap(), burst.concat().len());
        }
    }

    /// The frames of the next datagrams.
    pub fn receive(&self) -> Vec<(Header, Vec<u8>)> {
        let mut buffer = vec![0; 1 << 16];
        let until = Instant::now() + Duration::from_secs(20);
        let received = loop {
            assert!(Instant::now() < until, "no answer");
            match self.socket.recv(&mut [IoVec::from(&mut buffer[..])]) {
                Ok(received) => break received,
                Err(_) => std::thread::yield_now(),
            }
        };
        let mut frames = Vec::new();
        let segment = received.segment.map_or(received.len, usize::from);
        for mut datagram in buffer[..received.len].chunks(segment) {
            while !datagram.is_empty() {
                let header = Header::parse(datagram).unwrap();
                let (frame, rest) = datagram.split_at(HEADER_LEN + header.length as usize);
                frames.push((header, frame[HEADER_LEN..].to_vec()));
                datagram = rest;
            }
        }
        frames
    }

    /// The datagrams of a request with one tensor, in order.
    pub fn request(&mut self, model: u16, tensor: &[u8]) -> Vec<Vec<u8>> {
        self.request += 1;
        let manifest = manifest(&[tensor]);
        let total = (manifest.len() + tensor.len()) as u32;
        let base = Header { model, session: self.session, request: self.request, total, ..Header::new(Kind::Request) };
        let room = self.size - HEADER_LEN;
        let first = tensor.len().min(room - manifest.len());
        let mut datagrams = Vec::new();
        let mut frame = |header: Header, head: &[u8], data: &[u8]| {
            self.packet += 1;
            let length = (head.len() + data.len()) as u32;
            let header = Header { packet: self.packet, length, ..header };
            datagrams.push([&header.to_bytes()[..], head, data].concat());
        };
        frame(Header { flags: Flags::MANIFEST, ..base }, &manifest, &tensor[..first]);
        for (index, data) in tensor[first..].chunks(room).enumerate() {
            frame(Header { offset: (first + index * room) as u32, ..base }, &[], data);
        }
        datagrams
    }

    /// The path of the response to the last request. What arrives is acknowledged.
    pub fn path(&self) -> Path {
        let mut path = None;
        while path.is_none() {
            let frames = self.receive();
            for (header, payload) in frames.iter().filter(|(header, _)| header.kind == Kind::Response) {
                if header.request == self.request && header.flags.has(Flags::MANIFEST) {
                    path = Manifest::parse(payload).unwrap().path().copied();
                }
                let ranges = [AckRange::new(header.packet, header.packet)];
                let mut body = [0; MAX_ACK_LEN];
                let length = Ack { window: 1 << 30, delay_us: 0, ranges: &ranges }.write(&mut body);
                let ack = Header { session: self.session, length: length as u32, ..Header::new(Kind::Ack) };
                self.send(&[[&ack.to_bytes()[..], &body[..length]].concat()]);
            }
        }
        path.unwrap()
    }
}
