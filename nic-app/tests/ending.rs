//! What clients hear of a server that is told to stop.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nic_app::WaitMode;
use splitrpc_wire::{Header, Kind, Status, StatusPayload};
use support::client::{Answer, Client, check, noise, request_bytes};
use support::datagrams::Datagrams;
use support::{ECHO, Server, Thread, config};

const MODES: [WaitMode; 2] = [WaitMode::Block, WaitMode::Spin];

fn wait_for(mut is_so: impl FnMut() -> bool) {
    assert!((0..5000).any(|_| is_so() || {
        thread::sleep(Duration::from_millis(1));
        false
    }));
}

/// Has the server stop, and returns once it refuses what is new.
fn stop(server: Server) -> JoinHandle<Thread> {
    let address = server.tcp;
    let stopping = thread::spawn(move || server.stop());
    wait_for(|| {
        let (mut client, header, payload) = Client::say_hello(address);
        if header.kind == Kind::Error {
            is_end(&header, &payload, 0);
            assert_eq!(client.stream.read(&mut [0; 1]).unwrap(), 0);
        }
        header.kind == Kind::Error
    });
    stopping
}

fn is_end(header: &Header, payload: &[u8], session: u64) {
    assert_eq!((header.kind, header.request, header.session), (Kind::Error, 0, session));
    assert_eq!(StatusPayload::parse(payload).unwrap().status, Status::Draining);
}

/// The session ends, and with it the stream: without a reset, which might overtake what the server has said.
fn expect_end(mut client: Client) {
    let (header, payload) = client.receive();
    is_end(&header, &payload, client.session);
    assert_eq!(client.stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn what_is_under_way_is_finished_before_everyone_hears_of_the_end() {
    for mode in MODES {
        let server = Server::start(&config(), mode);
        let (idle, mut busy) = (Client::connect(server.tcp), Client::connect(server.tcp));
        let mut datagrams = Datagrams::connect(server.udp, 1472);
        let hold = server.hold.clone();
        hold.close();
        let (first, second) = (noise(1, 100_000), noise(2, 100));
        let under_way = busy.send(ECHO, &[&first]);
        let request = datagrams.request(ECHO, &second);
        datagrams.send(&request);
        wait_for(|| hold.waiting() == 2);
        let stopping = stop(server);

        let refused = busy.send(ECHO, &[&first]);
        let (answered, answer) = busy.answer();
        assert!(answered == refused && matches!(answer, Answer::Error(Status::Draining, _)), "{answer:?}");
        hold.open();
        let (answered, answer) = busy.answer();
        assert_eq!(answered, under_way);
        check(ECHO, &[&first], answer);
        expect_end(busy);
        expect_end(idle);
        datagrams.path();
        let frames = datagrams.receive();
        let (header, payload) = frames.iter().find(|(header, _)| header.kind == Kind::Error).unwrap();
        is_end(header, payload, header.session);
        assert_eq!(stopping.join().unwrap().engine().live_requests(), 0);
    }
}

#[test]
fn who_is_in_the_middle_of_sending_hears_of_it_too() {
    for mode in MODES {
        let server = Server::start(&config(), mode);
        let mut client = Client::connect(server.tcp);
        client.ask(ECHO, &[&noise(1, 100)]);
        let mut flood = client.stream.try_clone().unwrap();
        let session = client.session;
        // It sends as long as the server takes anything, however that looks upon it.
        let flooding = thread::spawn(move || {
            let data = noise(2, 50_000);
            (2..).take_while(|id| flood.write_all(&request_bytes(session, *id, ECHO, &[&data])).is_ok()).count()
        });
        for _ in 0..5 {
            client.receive();
        }
        let stopping = thread::spawn(move || server.stop());
        let mut last = client.receive();
        // Nothing is lost of what the server has said, though there is always something of the client's that it has not read.
        while last.0.request != 0 {
            last = client.receive();
        }
        is_end(&last.0, &last.1, session);
        stopping.join().unwrap();
        assert!(flooding.join().unwrap() > 0);
    }
}

#[test]
fn what_is_not_done_in_time_is_left_open() {
    for mode in MODES {
        let server = Server::start_to_drain(mode, Duration::from_millis(100));
        let mut client = Client::connect(server.tcp);
        let datagrams = {
            let mut datagrams = Datagrams::connect(server.udp, 1472);
            server.hold.close();
            let request = datagrams.request(ECHO, &noise(2, 100));
            datagrams.send(&request);
            datagrams
        };
        client.send(ECHO, &[&noise(1, 100)]);
        let hold = server.hold.clone();
        wait_for(|| hold.waiting() == 2);
        let mut thread = server.stop();
        assert_eq!(client.receive().0.kind, Kind::Goodbye);
        let goodbye = |frames: &[(Header, Vec<u8>)]| frames.iter().any(|(header, _)| header.kind == Kind::Goodbye);
        // It may have been told before that its request has arrived.
        assert!((0..10).any(|_| goodbye(&datagrams.receive())));
        hold.open();
        support::assert_no_slot_lost(&mut thread);
    }
}

#[test]
fn who_is_told_that_time_is_up_is_listened_to() {
    for mode in MODES {
        let server = Server::start_to_drain(mode, Duration::from_millis(400));
        let mut client = Client::connect(server.tcp);
        server.hold.close();
        client.send(ECHO, &[&noise(1, 100)]);
        let hold = server.hold.clone();
        wait_for(|| hold.waiting() == 1);
        let telling = thread::spawn(move || server.stop());
        assert_eq!(client.receive().0.kind, Kind::Goodbye);
        hold.open();
        // Left unread, this would have the kernel break the stream off.
        client.stream.write_all(&[0; 1000]).unwrap();
        let mut thread = telling.join().unwrap();
        assert!(thread.tcp().unwrap().stats().bytes_in > 1000, "nobody listened");
        assert_eq!(client.stream.read(&mut [0; 1]).unwrap(), 0, "the answer came too late");
        support::assert_no_slot_lost(&mut thread);
    }
}

#[test]
fn who_comes_while_a_server_without_time_ends_hears_of_it() {
    // One that spins is over before its host is polled so often.
    for polls in 0..4 {
        let server = Server::start_to_drain(WaitMode::Block, Duration::ZERO);
        let hold = server.hold.clone();
        hold.visit_after(polls, server.tcp);
        drop(server.stop());
        let mut client = hold.visitor().expect("a host is polled in each step");
        let (header, payload) = client.receive();
        is_end(&header, &payload, 0);
        assert_eq!(client.stream.read(&mut [0; 1]).unwrap(), 0, "after {polls} polls");
    }
}

#[test]
fn threads_of_one_server_end_together() {
    let busy = Arc::new(AtomicUsize::new(2));
    let [quiet, working] = [(); 2].map(|()| Server::start_among(&busy));
    let mut client = Client::connect(working.tcp);
    let hold = working.hold.clone();
    hold.close();
    let id = client.send(ECHO, &[&noise(1, 100)]);
    wait_for(|| hold.waiting() == 1);
    let address = quiet.tcp;
    let stopping = [stop(quiet), stop(working)];
    // As long as the quiet one would listen if it were alone, and longer.
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(100));
        let (_, header, payload) = Client::say_hello(address);
        is_end(&header, &payload, 0);
    }
    hold.open();
    assert_eq!(client.answer().0, id);
    expect_end(client);
    for stopping in stopping {
        stopping.join().unwrap();
    }
}

#[test]
fn who_was_told_and_goes_on_sending_is_hung_up_on() {
    let server = Server::start(&config(), WaitMode::Spin);
    let mut client = Client::connect(server.tcp);
    client.stream.write_all(&request_bytes(client.session, 0, ECHO, &[&noise(1, 100)])).unwrap();
    assert_eq!((client.receive().0.request, client.stream.read(&mut [0; 1]).unwrap()), (0, 0));
    let junk = vec![0; 1 << 16];
    let ended = (0..60_000).any(|_| {
        thread::sleep(Duration::from_micros(100));
        client.stream.write_all(&junk).is_err()
    });
    assert!(ended, "it is listened to for ever");
    server.stop();
}

#[test]
fn nobody_is_waited_for_when_nobody_is_there() {
    let server = Server::start(&config(), WaitMode::Block);
    let address: SocketAddr = server.tcp;
    let thread = server.stop();
    assert_eq!(thread.engine().stats().sessions_opened, 0);
    drop(thread);
    assert!(std::net::TcpStream::connect(address).is_err());
}
