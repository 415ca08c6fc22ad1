//! The UDP connection against a server that loses, repeats and reorders datagrams at will.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::{Greeting, SESSION, catalogue, hello_ack, pattern};
use splitrpc_client::wire::ack::{Ack, AckRange, MAX_ACK_RANGES};
use splitrpc_client::wire::hello::{Challenge, Hello};
use splitrpc_client::wire::{DType, Flags, HEADER_LEN, Header, Kind, Manifest, Status, StatusPayload, TensorDesc};
use splitrpc_client::{
    AsyncClient, CallOptions, Client, ClientOptions, ConnectOptions, Error, Event, Input, Request, RequestId, Response,
    Tensor, Transport, UdpConnection, Wait,
};

const TOKEN: u64 = 7;
/// Requests to the model of this handle are refused.
const REFUSED_MODEL: u16 = 9;
/// Requests to the model of this handle are answered with the server's end, in good order,
const DRAINED_MODEL: u16 = 10;
/// and those to this one's with its sudden end.
const ENDED_MODEL: u16 = 11;
/// Of those to this one's it knows the session no more.
const FORGOTTEN_MODEL: u16 = 12;

/// What the network does: of so many datagrams about one is lost, one comes twice, two change places. 0 is never.
#[derive(Clone, Copy, Default)]
struct Faults {
    lose: usize,
    repeat: usize,
    swap: usize,
    /// Of the first so many pings none is answered.
    deaf_to_pings: usize,
}

/// A server for one client that answers requests with their tensors.
struct Server {
    socket: UdpSocket,
    client: Option<SocketAddr>,
    faults: Faults,
    random: u64,
    held: Option<Vec<u8>>,
    received: BTreeSet<u32>,
    requests: BTreeMap<u64, Collected>,
    executed: usize,
    packet: u32,
    /// By the last number under which it was sent, each with those before.
    unacknowledged: BTreeMap<u32, (Header, Vec<u8>, Vec<u32>)>,
    largest: usize,
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Server>,
}

impl Running {
    fn join(self) -> thread::Result<Server> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join()
    }
}

#[derive(Default)]
struct Collected {
    model: u16,
    manifest: Vec<u8>,
    stretches: BTreeMap<(u16, u32), Vec<u8>>,
    total: usize,
    answered: bool,
}

impl Collected {
    /// All of its data, once it is there.
    fn data(&self) -> Option<Vec<u8>> {
        let bytes: usize = self.stretches.values().map(Vec::len).sum();
        if self.manifest.is_empty() || bytes + self.manifest.len() < self.total {
            return None;
        }
        let mut data = Vec::new();
        for (i, tensor) in Manifest::parse(&self.manifest).unwrap().tensors().enumerate() {
            let mut have = 0;
            for (&(_, offset), stretch) in self.stretches.range((i as u16, 0)..=(i as u16, u32::MAX)) {
                let new = have - usize::min(have, offset as usize);
                if offset as usize > have {
                    return None;
                }
                if new < stretch.len() {
                    data.extend_from_slice(&stretch[new..]);
                    have = offset as usize + stretch.len();
                }
            }
            if have < tensor.bytes as usize {
                return None;
            }
        }
        Some(data)
    }
}

impl Server {
    fn start(faults: Faults) -> (SocketAddr, Running) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(3))).unwrap();
        let addr = socket.local_addr().unwrap();
        let mut server = Server {
            socket,
            client: None,
            faults,
            random: 1,
            held: None,
            received: BTreeSet::new(),
            requests: BTreeMap::new(),
            executed: 0,
            packet: 1,
            unacknowledged: BTreeMap::new(),
            largest: 0,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&stop);
        let run = move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                // Read before the socket: what was sent before the end is taken in.
                let ends = end.load(Ordering::Relaxed);
                match server.socket.recv_from(&mut buffer) {
                    Ok((len, from)) => {
                        server.client = Some(from);
                        server.largest = server.largest.max(len);
                        if !server.take_in(&buffer[..len]) {
                            return server;
                        }
                    }
                    Err(_) => {
                        server.resend();
                        // The client's goodbye may have been lost.
                        if ends {
                            return server;
                        }
                    }
                }
            }
        };
        (addr, Running { stop, thread: thread::spawn(run) })
    }

    fn chance(&mut self, of: usize) -> bool {
        // A counter would fall into step with the repetitions and lose each of them.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        of > 0 && ((self.random >> 33) as usize).is_multiple_of(of)
    }

    fn take_in(&mut self, datagram: &[u8]) -> bool {
        if self.chance(self.faults.lose) {
            return true;
        }
        let mut rest = datagram;
        while !rest.is_empty() {
            let header = Header::parse(rest).unwrap();
            let (frame, after) = rest.split_at(HEADER_LEN + header.length as usize);
            rest = after;
            if !self.frame(&header, &frame[HEADER_LEN..], datagram.len()) {
                return false;
            }
        }
        true
    }

    fn frame(&mut self, header: &Header, payload: &[u8], datagram: usize) -> bool {
        if header.packet != 0 {
            self.received.insert(header.packet);
        }
        let session = Header { session: SESSION, ..Header::new(Kind::Pong) };
        match header.kind {
            Kind::Hello => {
                assert!(datagram >= 1232, "a hello is padded");
                let hello = Hello::parse(payload).unwrap();
                if hello.token == TOKEN {
                    let ack = hello_ack(&hello, &Greeting::default(), catalogue().len());
                    self.send(&Header { kind: Kind::HelloAck, ..session }, &ack.to_bytes());
                } else {
                    let challenge = Challenge { token: TOKEN, nonce: hello.nonce };
                    self.send(&Header::new(Kind::Challenge), &challenge.to_bytes());
                }
            }
            Kind::List => {
                let (all, from) = (catalogue(), header.offset as usize);
                let page = &all[from..(from + 50).min(all.len())];
                let total = all.len() as u32;
                self.send(&Header { kind: Kind::ListAck, offset: header.offset, total, ..session }, page);
            }
            Kind::Ping if self.faults.deaf_to_pings > 0 => self.faults.deaf_to_pings -= 1,
            Kind::Ping => self.send(&Header { request: header.request, ..session }, &[]),
            Kind::Request => {
                assert_eq!(header.session, SESSION);
                self.request(header, payload);
                self.acknowledge();
            }
            Kind::Ack => {
                let ack = Ack::parse(payload).unwrap();
                for range in ack.ranges {
                    let acknowledged = range.first()..=range.last();
                    self.unacknowledged.retain(|last, (_, _, before)| {
                        !acknowledged.contains(last) && !before.iter().any(|number| acknowledged.contains(number))
                    });
                }
            }
            Kind::Goodbye => return false,
            _ => {}
        }
        true
    }

    fn request(&mut self, header: &Header, payload: &[u8]) {
        let request = self.requests.entry(header.request).or_default();
        let mut data = payload;
        if header.flags.has(Flags::MANIFEST) {
            let manifest = Manifest::parse(payload).unwrap();
            request.manifest = manifest.as_bytes().to_vec();
            request.model = header.model;
            data = &payload[request.manifest.len()..];
        }
        request.total = header.total as usize;
        if header.is_whole() {
            let manifest = Manifest::parse(payload).unwrap();
            for (i, tensor) in manifest.tensors().enumerate() {
                let (stretch, after) = data.split_at(tensor.bytes as usize);
                request.stretches.insert((i as u16, 0), stretch.to_vec());
                data = after;
            }
        } else {
            // What is sent again may be cut otherwise.
            let stretch = request.stretches.entry((header.tensor, header.offset)).or_default();
            if stretch.len() < data.len() {
                *stretch = data.to_vec();
            }
        }
        if !request.answered && request.data().is_some() {
            request.answered = true;
            self.executed += 1;
            self.answer(header.request);
        }
    }

    fn answer(&mut self, id: u64) {
        let request = &self.requests[&id];
        let end = match request.model {
            REFUSED_MODEL => Some((id, StatusPayload { status: Status::Busy, retry_after_us: 9000, text: "full" })),
            DRAINED_MODEL => Some((0, StatusPayload { status: Status::Draining, retry_after_us: 0, text: "" })),
            FORGOTTEN_MODEL => Some((0, StatusPayload { status: Status::UnknownSession, retry_after_us: 0, text: "" })),
            ENDED_MODEL => return self.send(&Header { session: SESSION, ..Header::new(Kind::Goodbye) }, &[]),
            _ => None,
        };
        if let Some((request, status)) = end {
            let mut payload = [0; 300];
            let len = status.write(&mut payload);
            return self.send(&Header { request, session: SESSION, ..Header::new(Kind::Error) }, &payload[..len]);
        }
        let tensors: Vec<TensorDesc> = Manifest::parse(&request.manifest).unwrap().tensors().collect();
        let data = request.data().unwrap();
        let manifest = common::manifest(&tensors, Some(&common::path(data.len())));
        let total = (manifest.len() + data.len()) as u32;
        let base = Header { request: id, session: SESSION, total, ..Header::new(Kind::Response) };
        let room = 1472 - HEADER_LEN;
        let mut frames = Vec::new();
        let whole = manifest.len() + data.len() <= room;
        let first = if whole { data.len() } else { (room - manifest.len()).min(tensors[0].bytes as usize) };
        frames.push((Header { flags: Flags::MANIFEST, ..base }, [&manifest, &data[..first]].concat()));
        let (mut at, mut skip) = (0, first);
        for (i, tensor) in tensors.iter().enumerate().filter(|_| !whole) {
            let bytes = &data[at..at + tensor.bytes as usize];
            for (n, chunk) in bytes[skip..].chunks(room).enumerate() {
                let offset = (skip + n * room) as u32;
                frames.push((Header { tensor: i as u16, offset, ..base }, chunk.to_vec()));
            }
            (at, skip) = (at + bytes.len(), 0);
        }
        for (header, payload) in frames {
            let packet = self.packet;
            self.packet += 1;
            self.unacknowledged.insert(packet, (header, payload.clone(), Vec::new()));
            self.send(&Header { packet, ..header }, &payload);
        }
    }

    /// Sends again, under new numbers, what the client has not acknowledged.
    fn resend(&mut self) {
        let again: Vec<u32> = self.unacknowledged.keys().copied().take(200).collect();
        for number in again {
            let Some((header, payload, mut before)) = self.unacknowledged.remove(&number) else { continue };
            before.push(number);
            let packet = self.packet;
            self.packet += 1;
            self.unacknowledged.insert(packet, (header, payload.clone(), before));
            self.send(&Header { packet, flags: header.flags.with(Flags::ACK_NOW), ..header }, &payload);
        }
        if let Some(held) = self.held.take() {
            self.out(&held);
        }
    }

    fn acknowledge(&mut self) {
        let mut ranges: Vec<AckRange> = Vec::new();
        let mut run: Option<(u32, u32)> = None;
        for &packet in self.received.iter().rev() {
            run = match run {
                Some((first, last)) if packet + 1 == first => Some((packet, last)),
                Some((first, last)) => {
                    ranges.push(AckRange::new(first, last));
                    Some((packet, packet))
                }
                None => Some((packet, packet)),
            };
        }
        ranges.extend(run.map(|(first, last)| AckRange::new(first, last)));
        ranges.truncate(MAX_ACK_RANGES);
        let mut payload = [0; 512];
        let len = Ack { window: u64::MAX, delay_us: 0, ranges: &ranges }.write(&mut payload);
        self.send(&Header { session: SESSION, ..Header::new(Kind::Ack) }, &payload[..len]);
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        let bytes = common::frame(header, payload);
        if self.chance(self.faults.lose) {
            return;
        }
        if self.chance(self.faults.repeat) {
            self.out(&bytes);
        }
        if self.held.is_none() && self.chance(self.faults.swap) {
            self.held = Some(bytes);
            return;
        }
        self.out(&bytes);
        if let Some(held) = self.held.take() {
            self.out(&held);
        }
    }

    fn out(&self, bytes: &[u8]) {
        if let Some(client) = self.client {
            let _ = self.socket.send_to(bytes, client);
        }
    }
}

fn next(connection: &mut UdpConnection) -> Result<Event, Error> {
    let mut waiter = Wait::Block.waiter();
    loop {
        match connection.poll()? {
            Some(event) => return Ok(event),
            None => waiter.wait(connection.as_fd(), connection.wants_write(), connection.next_timeout()),
        }
    }
}

fn submit(connection: &mut UdpConnection, model: u16, data: &[u8]) -> RequestId {
    let tensor = Tensor::new(0, DType::Uint8, &[data.len() as u32], data).unwrap();
    connection.submit(&Request::new(model, &[tensor])).unwrap()
}

fn next_response(connection: &mut UdpConnection) -> Response {
    match next(connection).unwrap() {
        Event::Response(response) => response,
        other => panic!("{other:?}"),
    }
}

fn sizes_come_back_whole(faults: Faults) {
    let (addr, server) = Server::start(faults);
    let mut connection = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
    assert_eq!(connection.catalogue().models().len(), 2);
    let sizes = [0, 1, 64, 1300, 1400, 1408, 4000, 70_000, 602_112, 602_112, 5, 300_000];
    for (seed, len) in sizes.into_iter().enumerate() {
        let data = pattern(len, seed);
        let id = submit(&mut connection, 0, &data);
        let response = next_response(&mut connection);
        assert_eq!(response.id(), id);
        assert!(response.data() == data, "{len} bytes differ");
        connection.recycle(response);
    }
    drop(connection);
    let server = server.join().unwrap();
    assert_eq!(server.executed, sizes.len());
    assert!(server.largest <= 1472);
}

#[test]
fn requests_of_all_sizes_come_back_whole() {
    sizes_come_back_whole(Faults::default());
}

#[test]
fn loss_is_made_good() {
    sizes_come_back_whole(Faults { lose: 11, ..Faults::default() });
}

#[test]
fn repeated_and_reordered_datagrams_do_no_harm() {
    sizes_come_back_whole(Faults { repeat: 5, swap: 7, ..Faults::default() });
    sizes_come_back_whole(Faults { repeat: 6, swap: 5, lose: 17, ..Faults::default() });
}

#[test]
fn many_requests_share_a_session() {
    let (addr, server) = Server::start(Faults { lose: 50, ..Faults::default() });
    let mut connection = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
    let shared = Bytes::from(pattern(20_000, 99));
    let mut expected = BTreeMap::new();
    for seed in 0..20 {
        let lent = pattern([10, 3000, 50_000][seed % 3], seed);
        let tensors = [
            Tensor::new(0, DType::Uint8, &[lent.len() as u32], &lent).unwrap(),
            Tensor::new(1, DType::Uint8, &[20_000], &shared).unwrap(),
        ];
        let id = connection.submit(&Request::new(0, &tensors)).unwrap();
        expected.insert(id, [&lent[..], &shared].concat());
    }
    while !expected.is_empty() {
        let response = next_response(&mut connection);
        let data = expected.remove(&response.id()).expect("each is answered once");
        assert!(response.data() == data);
        assert_eq!(response.outputs().count(), 2);
        connection.recycle(response);
    }
    assert_eq!(connection.in_flight(), 0);
    drop(connection);
    server.join().unwrap();
}

#[test]
fn refusals_and_pings_arrive() {
    let (addr, server) = Server::start(Faults::default());
    let mut connection = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
    let id = submit(&mut connection, REFUSED_MODEL, b"abc");
    match next(&mut connection).unwrap() {
        Event::Failed(f) => {
            assert_eq!((f.id, f.status, f.text.as_str()), (Some(id), Status::Busy, "full"));
            assert_eq!(f.retry_after, Some(Duration::from_micros(9000)));
        }
        other => panic!("{other:?}"),
    }
    connection.ping().unwrap();
    assert!(matches!(next(&mut connection).unwrap(), Event::Pong { .. }));
    let id = submit(&mut connection, 0, &pattern(100_000, 0));
    assert!(connection.cancel(id) && !connection.cancel(id));
    submit(&mut connection, 0, b"after");
    assert_eq!(next_response(&mut connection).data(), b"after");
    drop(connection);
    server.join().unwrap();
}

#[test]
fn the_blocking_client_works_over_datagrams() {
    let (addr, server) = Server::start(Faults::default());
    let options = ClientOptions { transport: Transport::Udp, ..ClientOptions::default() };
    let mut client = Client::connect(&addr.to_string(), options).unwrap();
    let data = pattern(10_000, 4);
    let input = Input::new("INPUT", DType::Uint8, &[10_000], &data);
    let response = client.infer("echo", &[input]).unwrap();
    assert!(response.data() == data);
    assert!(client.ping().unwrap() > Duration::ZERO);
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_ping_that_is_lost_is_told_or_sent_again() {
    let (addr, server) = Server::start(Faults { deaf_to_pings: 3, ..Faults::default() });
    let options = ClientOptions { transport: Transport::Udp, ..ClientOptions::default() };
    let mut client = Client::connect(&addr.to_string(), options).unwrap();
    let soon = Duration::from_millis(50);
    assert_eq!([client.ping_once(soon).unwrap(), client.ping_once(soon).unwrap()], [None, None]);
    assert!(client.ping().is_ok(), "it is sent again");
    assert!(client.ping_once(Duration::from_secs(5)).unwrap().is_some());
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_blocking_call_leaves_nothing_to_be_acknowledged() {
    for len in [64, 70_000] {
        let (addr, server) = Server::start(Faults::default());
        let options = ClientOptions { transport: Transport::Udp, ..ClientOptions::default() };
        let mut client = Client::connect(&addr.to_string(), options).unwrap();
        let data = pattern(len, 4);
        client.infer("echo", &[Input::new("INPUT", DType::Uint8, &[len as u32], &data)]).unwrap();
        // The client is still there, but nobody polls it.
        let server = server.join().unwrap();
        assert!(server.unacknowledged.is_empty(), "{len} bytes: {:?}", server.unacknowledged.keys());
        drop(client);
    }
}

#[test]
fn data_in_order_lands_in_its_response() {
    let (addr, server) = Server::start(Faults::default());
    let mut connection = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
    submit(&mut connection, 0, &pattern(602_112, 0));
    assert!(next_response(&mut connection).data() == pattern(602_112, 0));
    let (in_place, copied) = connection.landed();
    assert!(in_place > copied, "{in_place} bytes in place, {copied} copied");
    drop(connection);
    server.join().unwrap();
}

#[test]
fn requests_of_like_shape_allocate_nothing() {
    let (addr, server) = Server::start(Faults::default());
    let mut connection = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
    let data = pattern(20_000, 0);
    let mut round = || {
        for _ in 0..3 {
            submit(&mut connection, 0, &data);
        }
        for _ in 0..3 {
            let response = next_response(&mut connection);
            assert!(response.data() == data);
            connection.recycle(response);
        }
    };
    (0..30).for_each(|_| round());
    // The server runs on a thread of its own and is not counted.
    let counted = allocation_counter::measure(|| (0..50).for_each(|_| round()));
    assert_eq!(counted.count_total, 0, "{counted:?}");
    drop(connection);
    server.join().unwrap();
}

#[test]
fn futures_work_over_datagrams() {
    let (addr, server) = Server::start(Faults { lose: 30, ..Faults::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = addr.to_string();
        let client = AsyncClient::connect(&address, Transport::Udp, ConnectOptions::default()).await.unwrap();
        for len in [10, 50_000, 300] {
            let (data, dims) = (pattern(len, len), [len as u32]);
            let input = Input::new("INPUT", DType::Uint8, &dims, &data);
            let response = client.infer("echo", &[input], &CallOptions::default()).await.unwrap();
            assert!(response.data() == data);
        }
    });
    drop(runtime);
    server.join().unwrap();
}

#[test]
fn the_end_of_a_server_is_told_in_its_words() {
    let (addr, server) = Server::start(Faults::default());
    let mut drained = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
    submit(&mut drained, DRAINED_MODEL, b"abc");
    match next(&mut drained).unwrap_err() {
        Error::Refused(failure) => assert_eq!((failure.id, failure.status), (None, Status::Draining)),
        other => panic!("{other:?}"),
    }
    drop(drained);
    server.join().unwrap();
    // Whether an answer was lost that it had given, neither of these says.
    for (model, reason) in [(ENDED_MODEL, "the server closed the session"), (FORGOTTEN_MODEL, "session unknown")] {
        let (addr, server) = Server::start(Faults::default());
        let mut ended = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
        submit(&mut ended, model, b"abc");
        let lost = next(&mut ended).unwrap_err();
        assert!(matches!(lost, Error::Lost { may_have_executed: true, .. }), "{lost:?}");
        assert!(lost.to_string().contains(reason), "{lost}");
        drop(ended);
        server.join().unwrap();
    }
}

#[test]
fn a_server_that_is_gone_is_not_waited_for_like_a_silent_one() {
    let (addr, server) = Server::start(Faults::default());
    let mut connection = UdpConnection::connect(addr, ConnectOptions::default()).unwrap();
    submit(&mut connection, 0, b"abc");
    next_response(&mut connection);
    let sent = connection.stats().frames_out;
    drop(server.join().unwrap());
    submit(&mut connection, 0, b"abc");
    let lost = next(&mut connection).unwrap_err();
    assert!(matches!(lost, Error::Lost { may_have_executed: true, .. }), "{lost:?}");
    assert!(lost.to_string().contains("refused"), "{lost}");
    let sent = connection.stats().frames_out - sent;
    assert!(sent <= 8, "{sent} frames were sent to nobody");
}

#[test]
fn nobody_there_is_told_soon() {
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = UdpConnection::connect(gone, ConnectOptions::default()).unwrap_err();
    assert!(matches!(refused, Error::Unreachable { .. }), "{refused:?}");
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let options = ConnectOptions { timeout: Duration::from_millis(50), ..ConnectOptions::default() };
    let late = UdpConnection::connect(silent.local_addr().unwrap(), options).unwrap_err();
    assert!(matches!(late, Error::TimedOut { .. }), "{late:?}");
    assert!(late.to_string().contains("MTU"), "{late}");
}
