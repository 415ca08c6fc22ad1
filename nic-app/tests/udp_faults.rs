//! Bad input and faults over UDP: whatever others do, the honest client beside them is served, and no slot is lost.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nic_app::WaitMode;
use splitrpc_telemetry::{Event, Writer, render};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Status, StatusPayload};
use support::client::{Answer, check, noise};
use support::datagrams::Datagrams;
use support::udp::UdpClient;
use support::{ECHO, NULL, SLOTS, Server, assert_no_slot_lost, config};

/// The next error that comes: the request's number, and what it says.
fn error(client: &Datagrams) -> (u64, Status) {
    loop {
        let frames = client.receive();
        if let Some((header, payload)) = frames.iter().find(|(header, _)| header.kind == Kind::Error) {
            return (header.request, StatusPayload::parse(payload).unwrap().status);
        }
    }
}

#[test]
fn clients_that_die_in_the_middle_leave_nothing_behind() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    let mut honest = UdpClient::connect(server.udp, 1472);
    for part in [1, 10, 40] {
        let mut client = Datagrams::connect(server.udp, 1472);
        let datagrams = client.request(ECHO, &noise(part as u32, 60_000));
        client.send(&datagrams[..part]);
        honest.ask(ECHO, &[&noise(1, 5000)]);
    }
    // And some that die while their request waits for the model.
    server.hold.close();
    for seed in 0..4 {
        let mut client = Datagrams::connect(server.udp, 1472);
        let datagrams = client.request(ECHO, &noise(seed, 3000));
        client.send(&datagrams);
    }
    let until = Instant::now() + Duration::from_secs(20);
    while server.hold.waiting() < 4 {
        assert!(Instant::now() < until, "the requests were not submitted");
        std::thread::yield_now();
    }
    server.hold.open();
    honest.ask(ECHO, &[&noise(2, 5000)]);
    honest.close();
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn slow_senders_are_told_so_and_do_not_hold_up_others() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut honest = UdpClient::connect(server.udp, 1472);
    let mut slow = Datagrams::connect(server.udp, 1472);
    let datagrams = slow.request(ECHO, &noise(1, 60_000));
    slow.send(&datagrams[..3]);
    honest.ask(ECHO, &[&noise(2, 100_000)]);
    assert_eq!(error(&slow), (1, Status::TooSlow));
    // The rest does not start it again.
    slow.send(&datagrams[3..]);
    let next = slow.request(NULL, &noise(3, 500));
    slow.send(&next);
    assert_eq!(slow.path().payload_bytes, 500);
    honest.ask(ECHO, &[&noise(4, 100_000)]);
    honest.close();
    let mut thread = server.stop();
    assert_eq!(thread.engine().stats().submitted, 3);
    assert_no_slot_lost(&mut thread);
}

#[test]
fn more_requests_than_a_client_has_a_share_for_are_refused_and_served_later() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    server.hold.close();
    let mut client = UdpClient::connect(server.udp, 1472);
    let bytes = noise(1, 30_000);
    let keys: Vec<_> = (0..SLOTS / 2 + 5).map(|_| client.submit(ECHO, &[&bytes])).collect();
    client.drive(|client| client.answered() == 5);
    server.hold.open();
    let mut refused = 0;
    for key in keys {
        match client.answer(key) {
            Answer::Error(Status::Quota, _) => refused += 1,
            answer => {
                check(ECHO, &[&bytes], answer);
            }
        }
    }
    assert_eq!(refused, 5);
    client.ask(ECHO, &[&bytes]);
    client.close();
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn datagrams_that_lie_are_refused_by_name_or_dropped() {
    let server = Server::start(&config(), WaitMode::ADAPTIVE);
    let mut honest = UdpClient::connect(server.udp, 1472);
    let mut liar = Datagrams::connect(server.udp, 1472);
    type Lie = fn(&mut Header);
    let lies: [(Lie, Option<Status>); 10] = [
        (|h| h.model = 99, Some(Status::UnknownModel)),
        (|h| h.total += 7, Some(Status::BadTensor)),
        (|h| h.request = 0, Some(Status::BadFrame)),
        (|h| h.total = 17 << 20, Some(Status::TooLarge)),
        (|h| h.total = u32::MAX, Some(Status::Unsupported)),
        (|h| h.session ^= 1 << 40, Some(Status::UnknownSession)),
        // Longer than its datagram, and shorter than its manifest.
        (|h| h.length += 1, None),
        (|h| h.length = 9, None),
        (|h| h.offset = 8, None),
        (|h| h.flags = h.flags.with(Flags::TAGGED), None),
    ];
    for (case, (lie, told)) in lies.into_iter().enumerate() {
        let mut datagram = liar.request(ECHO, &noise(case as u32, 3000)).remove(0);
        let mut header = Header::parse(&datagram).unwrap();
        lie(&mut header);
        datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        liar.send(&[datagram]);
        if let Some(status) = told {
            assert_eq!(error(&liar).1, status, "case {case}");
        }
        honest.ask(ECHO, &[&noise(case as u32, 3000)]);
    }
    // After all of them the session is as good as before.
    let next = liar.request(NULL, &noise(3, 500));
    liar.send(&next);
    assert_eq!(liar.path().payload_bytes, 500);
    honest.close();
    let mut thread = server.stop();
    assert!(thread.engine().stats().malformed.iter().sum::<u64>() >= 4);
    assert_eq!(thread.engine().stats().submitted, 11);
    assert_no_slot_lost(&mut thread);
}

#[test]
fn an_answer_sent_again_is_one_answered_request() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Datagrams::connect(server.udp, 1472);
    let request = client.request(ECHO, &noise(1, 100));
    // It confirms nothing, so the answer comes again and again by itself, and also where the request does.
    for _ in 0..2 {
        client.send(&request);
        let mut answers = 0;
        while answers < 2 {
            answers += client.receive().iter().filter(|(header, _)| header.kind == Kind::Response).count();
        }
    }
    let telemetry = Arc::clone(&server.telemetry);
    server.stop();
    let mut out = Writer::new();
    render(&mut out, &["echo", "pair", "null"], &[&telemetry]);
    let metrics = out.finish();
    let answered: Vec<_> = metrics.lines().filter(|line| line.starts_with("splitrpc_requests_total{")).collect();
    assert!(matches!(answered[..], [line] if line.ends_with(" 1")), "{answered:?}");
    assert_eq!(telemetry.event(Event::RequestsRefused), 0);
}
