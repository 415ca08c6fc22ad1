//! Requests over TCP, as clients send them: all of them answered, and with the right bytes.

mod support;

use std::io::Write;
use std::time::Duration;

use nic_app::WaitMode;
use splitrpc_wire::{Flags, Header, Kind, Status};
use support::client::{Answer, Client, check, manifest, noise};
use support::{ECHO, NULL, PAIR, Server, assert_no_slot_lost, config};

const MODES: [WaitMode; 3] = [WaitMode::Spin, WaitMode::ADAPTIVE, WaitMode::Block];

#[test]
fn requests_of_all_sizes_are_answered_in_every_wait_mode() {
    for mode in MODES {
        let server = Server::start(&config(), mode);
        let mut client = Client::connect(server.tcp);
        for size in [0, 1, 64, 4096, 4097, 16 << 10, (16 << 10) + 1, 602_112, 4 << 20, 16 << 20 >> 1] {
            for seed in 0..3 {
                let bytes = noise(seed, size);
                let path = client.ask(ECHO, &[&bytes]);
                assert!(seed == 0 || path.fixup_bytes == 0, "{size} bytes, like those before, were moved");
            }
            let bytes = noise(9, size);
            for _ in 0..3 {
                client.ask(NULL, &[&bytes]);
            }
        }
        drop(client);
        let mut thread = server.stop();
        assert_no_slot_lost(&mut thread);
        assert_eq!(thread.host().answered, 60);
    }
}

#[test]
fn each_of_several_tensors_lands_in_its_own_place() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Client::connect(server.tcp);
    for (a, b) in [(10, 20), (0, 5), (5, 0), (0, 0), (100_000, 7), (3, 100_000), (4096, 4096), (9000, 7000)] {
        let (a, b) = (noise(1, a), noise(2, b));
        client.ask(PAIR, &[&a, &b]);
        client.ask(PAIR, &[&a, &b]);
    }
    drop(client);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn pipelined_requests_of_changing_shapes_are_all_answered() {
    for mode in MODES {
        let server = Server::start(&config(), mode);
        let mut client = Client::connect(server.tcp);
        let shapes = [(ECHO, 64, 0), (ECHO, 64, 0), (PAIR, 64, 100), (NULL, 64, 0), (ECHO, 5000, 0), (PAIR, 9, 8000)];
        let mut asked = Vec::new();
        for round in 0..40 {
            let mut bytes = Vec::new();
            // No more than there are slots for, or some would be refused.
            for n in 0..8 {
                let (model, a, b) = shapes[(round * 5 + n * (1 + round % 3)) % shapes.len()];
                let tensors = [noise(n as u32, a), noise(round as u32, b)];
                let tensors = if model == PAIR { tensors.to_vec() } else { tensors[..1].to_vec() };
                let (id, frame) = client.request(model, &slices(&tensors));
                bytes.extend(frame);
                asked.push((id, model, tensors));
            }
            client.stream.write_all(&bytes).unwrap();
            while !asked.is_empty() {
                let (id, answer) = client.answer();
                let at = asked.iter().position(|a| a.0 == id).unwrap();
                let (_, model, tensors) = asked.swap_remove(at);
                check(model, &slices(&tensors), answer);
            }
        }
        drop(client);
        let mut thread = server.stop();
        assert_no_slot_lost(&mut thread);
        assert!(thread.tcp().unwrap().stats().misjudged > 0, "no guess ever failed, so nothing was tested");
    }
}

#[test]
fn a_request_in_dribbles_is_put_together() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    let mut client = Client::connect(server.tcp);
    let mut honest = Client::connect(server.tcp);
    for (model, size) in [(ECHO, 50), (ECHO, 50), (PAIR, 300), (PAIR, 300), (PAIR, 301)] {
        let (a, b) = (noise(3, size), noise(4, size / 2));
        let tensors: &[&[u8]] = if model == PAIR { &[&a, &b] } else { &[&a] };
        let (_, bytes) = client.request(model, tensors);
        for (n, chunk) in bytes.chunks(7).enumerate() {
            client.stream.write_all(chunk).unwrap();
            if n % 4 == 0 {
                std::thread::sleep(Duration::from_micros(200));
                honest.ask(ECHO, &[b"beside it"]);
            }
        }
        check(model, tensors, client.answer().1);
    }
    drop((client, honest));
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn a_request_of_many_frames_may_come_in_any_order() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Client::connect(server.tcp);
    let (a, b) = (noise(5, 70_000), noise(6, 30_000));
    let manifest = manifest(&[&a, &b]);
    let total = (manifest.len() + a.len() + b.len()) as u32;
    let header = Header { model: PAIR, session: client.session, request: 900, total, ..Header::new(Kind::Request) };
    client.send_frame(Header { flags: Flags::MANIFEST, tensor: 0xffff, ..header }, &manifest);
    let parts = [(1, 20_000, 30_000), (0, 0, 1), (0, 30_000, 70_000), (1, 0, 20_000), (0, 1, 30_000)];
    for (tensor, start, end) in parts {
        let data = if tensor == 0 { &a[start..end] } else { &b[start..end] };
        client.send_frame(Header { tensor, offset: start as u32, ..header }, data);
    }
    let (id, answer) = client.answer();
    assert_eq!(id, 900);
    check(PAIR, &[&a, &b], answer);
    drop(client);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn a_model_that_fails_says_why_and_the_next_request_is_served() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    let mut client = Client::connect(server.tcp);
    client.send(ECHO, &[&[0xEE, 1, 2]]);
    let (_, answer) = client.answer();
    let Answer::Error(Status::ModelFailed, text) = answer else { panic!("{answer:?}") };
    assert_eq!(text, "as it was asked to");
    client.ask(ECHO, &[&[1, 2]]);
    drop(client);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn pings_and_the_catalogue_are_answered_between_requests() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Client::connect(server.tcp);
    let session = client.session;
    for round in 0..3 {
        client.ask(ECHO, &[&noise(round, 100)]);
        client.send_frame(Header { session, request: 5, ..Header::new(Kind::Ping) }, &[]);
        assert_eq!(client.receive().0.kind, Kind::Pong);
        client.send_frame(Header { session, offset: 1000, ..Header::new(Kind::List) }, &[]);
        let (header, slice) = client.receive();
        assert_eq!((header.kind, header.total, slice), (Kind::ListAck, 3000, vec![7; 2000]));
    }
    drop(client);
    assert_no_slot_lost(&mut server.stop());
}

fn slices(tensors: &[Vec<u8>]) -> Vec<&[u8]> {
    tensors.iter().map(Vec::as_slice).collect()
}
