//! A path that stops carrying large datagrams, and one that is only slow.

use splitrpc_engine::{ClientConfig, MS, Peer, SEC, ServerConfig};
use splitrpc_wire::hello::{Challenge, HelloAck, MIN_DATAGRAM};
use splitrpc_wire::{DType, Kind, Status};

use crate::rig::pair::{Pair, client_config, pair};
use crate::rig::{Ask, addr, config, hello, serve};

const LARGE: u16 = 8256;

fn large() -> (ServerConfig, ClientConfig) {
    (ServerConfig { datagram: LARGE, ..config() }, ClientConfig { datagram: LARGE, ..client_config() })
}

fn answers(pair: &mut Pair<'_, '_>, requests: usize, nanos: u64) {
    pair.events.clear();
    let until = pair.now() + nanos;
    for _ in 0..requests {
        pair.ask(&Ask::bytes(100_000));
    }
    pair.run_while(until, |p| p.ended().0 < requests);
    assert_eq!(pair.ended().0, requests, "{:?}", pair.events);
}

fn largest(pair: &Pair<'_, '_>, up: bool) -> usize {
    pair.log.iter().filter(|w| w.up == up).map(|w| w.len).max().unwrap()
}

#[test]
fn goes_on_with_small_ones() {
    let (server, client) = large();
    pair(&server, &client, |pair| {
        pair.model = Box::new(|_| (0, Ok(100_000)));
        answers(pair, 2, SEC);
        assert_eq!((largest(pair, true), largest(pair, false)), (8256, 8256));
        for up in [true, false] {
            // First in one direction only.
            pair.wire = Box::new(move |way| way.len > 1232 && (way.up == up || !up));
            // That takes as long as it takes to be sure, and hardly longer.
            answers(pair, 2, 160 * MS);
        }
        pair.log.clear();
        answers(pair, 2, SEC);
        assert_eq!((largest(pair, true), largest(pair, false)), (1232, 1232));
        assert_eq!(pair.rig.server.stats().datagram_shrunk, 1);
    });
}

#[test]
fn is_told_by_what_is_lost_where_small_ones_arrive_all_the_time() {
    let (server, client) = large();
    pair(&server, &client, |pair| {
        pair.model = Box::new(|_| (0, Ok(100)));
        pair.wire = Box::new(|way| way.len > 1232);
        let (mut small, until) = (0, pair.now() + SEC);
        pair.ask(&Ask::bytes(10_000));
        while pair.now() < until && pair.ended().0 < 1 + small {
            if pair.client.open_requests() < 3 {
                pair.ask(&Ask::bytes(100));
                small += 1;
            }
            pair.run(5 * MS);
        }
        assert!(small > 20 && pair.ended().0 == 1 + small, "{small} {:?}", pair.events);
    });
}

/// Asks again and again for so many seconds. Returns how many large datagrams that took.
fn tries(pair: &mut Pair<'_, '_>, seconds: u64, mut ask: impl FnMut(&mut Pair<'_, '_>)) -> usize {
    pair.log.clear();
    let end = pair.now() + seconds * SEC;
    while pair.now() < end {
        ask(pair);
    }
    pair.log.iter().filter(|w| w.up && w.len > 1232).count()
}

#[test]
fn is_tried_again_ever_more_rarely_while_it_stays_so_and_used_once_it_does_not() {
    let (server, client) = large();
    pair(&server, &client, |pair| {
        pair.model = Box::new(|_| (0, Ok(100)));
        pair.wire = Box::new(|way| way.len > 1232);
        answers(pair, 1, SEC);
        let ask = |pair: &mut Pair<'_, '_>| {
            // A try does not hold it up for long.
            answers(pair, 1, 20 * MS);
            pair.run(SEC / 10);
        };
        // After 1, 3, 7, 15 and 31 seconds.
        assert_eq!(tries(pair, 32, ask), 5);
        assert!(tries(pair, 32, ask) <= 1);
        pair.wire = Box::new(|_| false);
        tries(pair, 64, ask);
        pair.log.clear();
        answers(pair, 1, SEC);
        assert_eq!(largest(pair, true), 8256);
    });
}

#[test]
fn is_tried_again_by_who_never_stops_sending_with_one_datagram_at_a_time() {
    let (server, client) = large();
    pair(&ServerConfig { receive_window: 64 << 10, ..server }, &client, |pair| {
        pair.model = Box::new(|_| (0, Ok(100)));
        pair.delay = 5 * MS;
        pair.wire = Box::new(|way| way.len > 1232);
        answers(pair, 1, SEC);
        let ask = |pair: &mut Pair<'_, '_>| {
            // There is always more to send than may be under way.
            while pair.client.open_requests() < 3 {
                pair.ask(&Ask::bytes(500_000));
            }
            let (open, until) = (pair.client.open_requests(), pair.now() + SEC);
            pair.run_while(until, |p| p.client.open_requests() == open);
            assert!(pair.client.open_requests() < open);
        };
        assert_eq!(tries(pair, 16, ask), 4);
        pair.wire = Box::new(|_| false);
        tries(pair, 16, ask);
        assert!(tries(pair, 1, ask) > 100);
    });
}

#[test]
fn is_not_taken_for_mended_because_a_request_fails_whose_frame_was_a_try() {
    let (server, client) = large();
    pair(&server, &client, |pair| {
        pair.model = Box::new(|_| (0, Ok(100)));
        pair.wire = Box::new(|way| way.len > 1232);
        answers(pair, 1, SEC);
        pair.run(2 * SEC);
        pair.log.clear();
        // Refused for its first frame, which is small, while the rest is under way.
        pair.ask(&Ask::of(99, &[(DType::Uint8, &[10]), (DType::Uint8, &[100_000])]));
        pair.run(SEC / 2);
        assert_eq!(pair.ended().1, [Status::UnknownModel]);
        assert_eq!(pair.log.iter().filter(|w| w.up && w.len > 1232).count(), 1);
        pair.log.clear();
        answers(pair, 1, SEC);
        assert_eq!(largest(pair, true), 1232);
    });
}

#[test]
fn is_not_what_keeps_a_peer_silent_that_has_stood_still() {
    let (server, client) = large();
    pair(&server, &client, |pair| {
        pair.model = Box::new(|_| (0, Ok(100_000)));
        answers(pair, 2, SEC);
        let (from, to) = (pair.now(), pair.now() + 200 * MS);
        pair.wire = Box::new(move |way| (from..to).contains(&way.at));
        answers(pair, 2, SEC);
        // What is small enough for every path tells nothing of it.
        let before = pair.rig.server.stats().datagram_shrunk;
        pair.model = Box::new(|_| (0, Ok(100)));
        let (from, to) = (pair.now(), pair.now() + 200 * MS);
        pair.wire = Box::new(move |way| !way.up && (from..to).contains(&way.at));
        answers(pair, 2, 2 * SEC);
        assert_eq!(pair.rig.server.stats().datagram_shrunk, before);
        pair.run(2 * SEC);
        pair.log.clear();
        pair.model = Box::new(|_| (0, Ok(100_000)));
        answers(pair, 2, SEC);
        assert_eq!((largest(pair, true), largest(pair, false)), (8256, 8256));
    });
}

#[test]
fn is_not_mistaken_for_a_peer_that_waits_for_its_core() {
    let (server, client) = large();
    pair(&server, &client, |pair| {
        pair.model = Box::new(|_| (0, Ok(100_000)));
        answers(pair, 2, SEC);
        // Many round trips, but not long.
        let (from, to) = (pair.now(), pair.now() + 40 * MS);
        pair.wire = Box::new(move |way| (from..to).contains(&way.at));
        answers(pair, 2, SEC);
        pair.log.clear();
        answers(pair, 2, SEC);
        assert_eq!((largest(pair, true), largest(pair, false)), (8256, 8256));
    });
}

#[test]
fn does_not_change_what_a_repeated_hello_is_told() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        rig.say_hello(from, &hello(5, 0, 1 << 20));
        let token = Challenge::parse(&rig.sent_one().head).unwrap().token;
        rig.say_hello(from, &hello(5, token, 1 << 20));
        let first = rig.sent_one();
        let (request, _) = rig.submit(from, first.header.session, 1, &Ask::rows(1));
        rig.answer(request, 100_000);
        for _ in 0..60 {
            rig.sent();
            rig.pass(10 * MS);
        }
        assert_eq!(rig.server.stats().datagram_shrunk, 1);
        rig.say_hello(from, &hello(5, token, 1 << 20));
        let sent = rig.sent();
        let again = sent.iter().find(|s| s.header.kind == Kind::HelloAck).unwrap();
        let datagram = HelloAck::parse(&again.head).unwrap().datagram;
        assert!(datagram > MIN_DATAGRAM && again.head == first.head, "now {datagram} bytes");
    });
}

#[test]
fn is_not_taken_for_mended_because_an_answer_comes_while_a_question_for_it_is_a_try() {
    let (server, client) = large();
    pair(&server, &client, |pair| {
        // Answers come just after their client has asked for news of them.
        pair.delay = 20 * MS;
        pair.model = Box::new(|_| (70 * MS, Ok(100)));
        pair.wire = Box::new(|way| way.len > 1232);
        let answer = |pair: &mut Pair<'_, '_>| {
            pair.events.clear();
            pair.ask(&Ask::bytes(5000));
            pair.run_while(pair.now() + SEC, |p| p.ended().0 < 1);
            assert_eq!(pair.ended().0, 1, "{:?}", pair.events);
        };
        answer(pair);
        // After 1, 3, 7, 15, 31 and 63 seconds.
        assert!(tries(pair, 64, answer) <= 6);
    });
}
