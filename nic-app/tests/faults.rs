//! Bad input and faults: whatever others do, the honest client beside them is served, and no slot is lost.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nic_app::WaitMode;
use splitrpc_engine::ServerConfig;
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Status, StatusPayload};
use support::client::{Answer, Client, check, manifest, noise, request_bytes};
use support::datagrams::Datagrams;
use support::udp::UdpClient;
use support::{ECHO, NULL, SLOTS, Server, assert_no_slot_lost, config};

/// An honest client that asks all the time, and checks what it gets.
struct Honest {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Honest {
    fn start(server: SocketAddr) -> Honest {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(server);
            let mut asked = 0;
            while !stopped.load(Ordering::SeqCst) || asked < 10 {
                client.ask(NULL, &[&noise(asked, 100 + 20_000 * (asked as usize % 3))]);
                asked += 1;
            }
            asked
        });
        Honest { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the honest client was not served");
    }
}

/// Whether the server closes the connection, whatever it says before.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn mangled(mangle: impl Fn(&mut Header)) -> impl Fn(&Client) -> Vec<u8> {
    move |client| {
        let mut bytes = request_bytes(client.session, 1, ECHO, &[&noise(1, 300)]);
        let mut header = Header::parse(&bytes).unwrap();
        mangle(&mut header);
        bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        bytes
    }
}

#[test]
fn streams_that_break_the_protocol_are_closed() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    let honest = Honest::start(server.tcp);
    for seed in 0..20 {
        let mut stream = TcpStream::connect(server.tcp).unwrap();
        let _ = stream.write_all(&noise(seed, 64 + 500 * seed as usize));
        assert!(is_closed(&mut stream));
    }
    type Breach = Box<dyn Fn(&Client) -> Vec<u8>>;
    let broken: Vec<Breach> = vec![
        Box::new(|_| noise(5, 1000)),
        // A manifest that is longer than its frame.
        Box::new(mangled(|h| h.length = 10)),
        Box::new(mangled(|h| h.session ^= 1)),
        Box::new(mangled(|h| h.kind = Kind::Response)),
        Box::new(mangled(|h| h.flags = h.flags.with(Flags::SEALED))),
        // More than a frame without tensors may carry.
        Box::new(|c| Header { session: c.session, length: 1 << 20, ..Header::new(Kind::Ping) }.to_bytes().to_vec()),
        // Data that lies outside its message.
        Box::new(|c| {
            let mut bytes = request_bytes(c.session, 1, ECHO, &[&noise(1, 300)]);
            let header =
                Header { flags: Flags::MANIFEST, length: manifest(&[&[0; 300]]).len() as u32, ..header_of(&bytes) };
            bytes.truncate(HEADER_LEN + header.length as usize);
            bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
            let stray = Header { flags: Flags::NONE, tensor: 1, length: 8, ..header };
            [&bytes[..], &stray.to_bytes(), &[0; 8]].concat()
        }),
    ];
    for (case, bytes) in broken.iter().enumerate() {
        let mut client = Client::connect(server.tcp);
        client.ask(ECHO, &[&noise(9, 300)]);
        let bytes = bytes(&client);
        let _ = client.stream.write_all(&bytes);
        assert!(is_closed(&mut client.stream), "case {case}");
    }
    honest.finish();
    assert_no_slot_lost(&mut server.stop());
}

fn header_of(bytes: &[u8]) -> Header {
    Header::parse(bytes).unwrap()
}

#[test]
fn requests_that_cannot_be_are_refused_by_name_and_the_stream_goes_on() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Client::connect(server.tcp);
    type Lie = fn(&mut Header);
    let lies: [(Lie, Status); 2] = [(|h| h.model = 99, Status::UnknownModel), (|h| h.total += 7, Status::BadTensor)];
    for (lie, status) in lies {
        let bytes = mangled(lie)(&client);
        client.stream.write_all(&bytes).unwrap();
        let (_, Answer::Error(told, _)) = client.answer() else { panic!("answered") };
        assert_eq!(told, status);
        client.ask(ECHO, &[&noise(1, 300)]);
    }
    // Larger than the limit: refused at its head, and its bytes are read past.
    let id = client.send(ECHO, &[&noise(1, 17 << 20)]);
    let (refused, Answer::Error(Status::TooLarge, text)) = client.answer() else { panic!("answered") };
    assert_eq!((refused, text.contains("max_request")), (id, true));
    client.ask(ECHO, &[&noise(1, 300)]);
    // An error of the request with the number that none may have is one of the session.
    client.stream.write_all(&mangled(|h| h.request = 0)(&client)).unwrap();
    let (0, Answer::Error(Status::BadFrame, _)) = client.answer() else { panic!("answered") };
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    drop(client);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn clients_that_die_in_the_middle_leave_nothing_behind() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    let honest = Honest::start(server.tcp);
    for cut in [1, 63, 64, 70, 88, 89, 5000, 100_000, 599_999] {
        let mut client = Client::connect(server.tcp);
        client.ask(ECHO, &[&noise(1, 100)]);
        let (_, bytes) = client.request(ECHO, &[&noise(cut as u32, 600_000)]);
        client.stream.write_all(&bytes[..cut]).unwrap();
    }
    // And some that die while their request waits for the model, or its answer for them.
    server.hold.close();
    let mut waiting = Vec::new();
    for seed in 0..4 {
        let mut client = Client::connect(server.tcp);
        client.send(ECHO, &[&noise(seed, 400_000)]);
        waiting.push(client);
    }
    let until = Instant::now() + Duration::from_secs(20);
    while server.hold.waiting() < 4 {
        assert!(Instant::now() < until, "the requests were not submitted");
        std::thread::yield_now();
    }
    drop(waiting);
    server.hold.open();
    honest.finish();
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn slow_senders_are_given_up_and_do_not_hold_up_others() {
    let server = Server::start(&config(), WaitMode::Block);
    let honest = Honest::start(server.tcp);
    // One stalls in its tensor data: the request fails, and the rest of it is read past.
    let mut stalled = Client::connect(server.tcp);
    let (id, bytes) = stalled.request(ECHO, &[&noise(1, 600_000)]);
    stalled.stream.write_all(&bytes[..1000]).unwrap();
    let (failed, Answer::Error(Status::TooSlow, _)) = stalled.answer() else { panic!("answered") };
    assert_eq!(failed, id);
    stalled.stream.write_all(&bytes[1000..]).unwrap();
    stalled.ask(ECHO, &[&noise(2, 600)]);
    // One stalls in a head: its connection is closed.
    let mut half = Client::connect(server.tcp);
    half.stream.write_all(&bytes[..40]).unwrap();
    assert!(is_closed(&mut half.stream));
    honest.finish();
    let mut thread = server.stop();
    assert!(thread.tcp().unwrap().stats().stalled >= 1);
    drop(stalled);
    assert_no_slot_lost(&mut thread);
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    let honest = Honest::start(server.tcp);
    let mut deaf = Client::connect(server.tcp);
    let bytes = noise(1, 8 << 20);
    // Far more than the kernel buffers for it; it blocks until the server gives up.
    for _ in 0..8 {
        let (_, request) = deaf.request(ECHO, &[&bytes]);
        if deaf.stream.write_all(&request).is_err() {
            break;
        }
    }
    let mut seen = 0;
    let until = Instant::now() + Duration::from_secs(20);
    while seen == 0 {
        assert!(Instant::now() < until, "the connection was not given up");
        std::thread::sleep(Duration::from_millis(20));
        seen = server.telemetry.event(splitrpc_telemetry::Event::StreamsClosed);
    }
    honest.finish();
    drop(deaf);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn a_slow_reader_gets_all_of_a_large_answer() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Client::connect(server.tcp);
    let bytes = noise(7, 12 << 20);
    let id = client.send(ECHO, &[&bytes]);
    // More waits behind it, also what needs no slot.
    let session = client.session;
    for n in 0..5 {
        client.send_frame(Header { session, request: n, ..Header::new(Kind::Ping) }, &[]);
        client.send_frame(Header { session, ..Header::new(Kind::List) }, &[]);
    }
    std::thread::sleep(Duration::from_millis(100));
    let (mut answers, mut pongs, mut listings) = (0, 0, 0);
    for _ in 0..11 {
        let (header, payload) = client.receive();
        match header.kind {
            Kind::Response => {
                assert_eq!(header.request, id);
                check(ECHO, &[&bytes], support::client::parse(&header, &payload));
                answers += 1;
            }
            Kind::Pong => pongs += 1,
            Kind::ListAck => {
                assert_eq!(payload, [7; 3000]);
                listings += 1;
            }
            kind => panic!("{kind:?}"),
        }
    }
    assert_eq!((answers, pongs, listings), (1, 5, 5));
    drop(client);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn a_burst_of_small_frames_is_answered_frame_by_frame() {
    const PINGS: u64 = 900;
    for mode in [WaitMode::Spin, WaitMode::ADAPTIVE, WaitMode::Block] {
        let server = Server::start(&config(), mode);
        let mut client = Client::connect(server.tcp);
        // The next request is expected to be like these, so that what comes is read in large pieces.
        let bytes = noise(1, 16_000);
        for _ in 0..2 {
            client.ask(NULL, &[&bytes]);
        }
        let session = client.session;
        let ping = |n| Header { session, request: n, ..Header::new(Kind::Ping) }.to_bytes();
        let mut burst: Vec<u8> = (0..PINGS).flat_map(ping).collect();
        let (id, request) = client.request(NULL, &[&bytes]);
        burst.extend(request);
        client.stream.write_all(&burst).unwrap();
        for n in 0..PINGS {
            let (header, _) = client.receive();
            assert_eq!((header.kind, header.request), (Kind::Pong, n), "{mode:?}");
        }
        let (answered, answer) = client.answer();
        assert_eq!(answered, id);
        check(NULL, &[&bytes], answer);
        drop(client);
        let mut thread = server.stop();
        assert_eq!(thread.engine().stats().control_dropped, 0);
        assert_no_slot_lost(&mut thread);
    }
}

#[test]
fn more_requests_than_a_client_has_a_share_for_are_refused_and_served_later() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    server.hold.close();
    let mut client = Client::connect(server.tcp);
    let bytes = noise(1, 30_000);
    for _ in 0..SLOTS / 2 + 5 {
        client.send(ECHO, &[&bytes]);
    }
    for _ in 0..5 {
        let (_, answer) = client.answer();
        assert!(matches!(answer, Answer::Error(Status::Quota, _)), "{answer:?}");
    }
    server.hold.open();
    for _ in 0..SLOTS / 2 {
        check(ECHO, &[&bytes], client.answer().1);
    }
    client.ask(ECHO, &[&bytes]);
    drop(client);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn connections_past_the_limit_are_refused_and_places_are_used_again() {
    let server = Server::start(&ServerConfig { stream_sessions: 4, ..config() }, WaitMode::Block);
    let mut honest = Client::connect(server.tcp);
    let others: Vec<_> = (0..3).map(|_| Client::connect(server.tcp)).collect();
    for _ in 0..5 {
        // It is told why before it has said anything.
        let mut refused = TcpStream::connect(server.tcp).unwrap();
        let mut told = Vec::new();
        refused.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        refused.read_to_end(&mut told).unwrap();
        let header = Header::parse(&told).unwrap();
        assert_eq!((header.kind, header.session, header.request), (Kind::Error, 0, 0));
        let why = StatusPayload::parse(&told[HEADER_LEN..]).unwrap();
        assert_eq!((why.status, why.text), (Status::TooManySessions, "limits.sessions is reached"));
        honest.ask(ECHO, &[&noise(1, 10)]);
    }
    for other in others {
        other.stream.shutdown(Shutdown::Both).unwrap();
        drop(other);
        honest.ask(ECHO, &[&noise(1, 10)]);
    }
    let mut again: Vec<_> = (0..3).map(|_| Client::connect(server.tcp)).collect();
    for client in &mut again {
        client.ask(ECHO, &[&noise(2, 10)]);
    }
    drop((honest, again));
    let mut thread = server.stop();
    assert!(thread.tcp().unwrap().stats().refused >= 5);
    assert_no_slot_lost(&mut thread);
}

#[test]
fn random_and_mangled_datagrams_harm_nobody() {
    let server = Server::start(&ServerConfig { progress_grace: 2_000_000_000, ..config() }, WaitMode::ADAPTIVE);
    let honest = Honest::start(server.tcp);
    let mut client = UdpClient::connect(server.udp, 1472);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut member = Datagrams::connect(server.udp, 1472);
    for seed in 0..200_u32 {
        stranger.send_to(&noise(seed, seed as usize * 7 % 1472), server.udp).unwrap();
        // Frames of a real session, bent in every field, and with strange tails.
        let mut datagrams = member.request(ECHO, &noise(seed, 4000));
        let at = seed as usize % HEADER_LEN;
        for datagram in &mut datagrams {
            datagram[at] ^= 1 << (seed % 8);
            if seed % 5 == 0 {
                datagram.truncate(HEADER_LEN + seed as usize % 300);
            }
        }
        let size = datagrams[0].len();
        datagrams.retain(|d| d.len() == size);
        member.send(&datagrams);
        if seed % 10 == 0 {
            client.ask(ECHO, &[&noise(seed, 10_000)]);
        }
    }
    honest.finish();
    client.close();
    let mut thread = server.stop();
    assert!(thread.engine().stats().malformed.iter().sum::<u64>() > 100);
    // The bent requests are given up in time.
    assert_no_slot_lost(&mut thread);
}
