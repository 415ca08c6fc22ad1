//! An address is proved before anything is kept for it; hellos may be lost, duplicated and repeated.

use splitrpc_engine::{MS, Peer, SEC, Verdict};
use splitrpc_wire::ack::{Ack, AckRange, MAX_ACK_LEN};
use splitrpc_wire::hello::{Challenge, HelloAck};
use splitrpc_wire::{Header, Kind, Status};

use crate::rig::pair::{client_config, lose, pair};
use crate::rig::{Ask, Rig, Sent, addr, config, hello, serve};

fn token(sent: &Sent) -> u64 {
    Challenge::parse(&sent.head).unwrap().token
}

#[test]
fn an_unproven_address_gets_little_and_costs_nothing() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        rig.say_hello(from, &hello(5, 0, 0));
        let challenge = rig.sent_one();
        assert_eq!(challenge.header.kind, Kind::Challenge);
        assert!(challenge.len() <= 1232);
        rig.say_hello(from, &hello(5, 1234, 0));
        assert_eq!(rig.sent_one().header.kind, Kind::Challenge, "a wrong token");
        rig.say_hello(from, &hello(6, token(&challenge), 0));
        assert_eq!(rig.sent_one().header.kind, Kind::Challenge, "another nonce's token");
        rig.say_hello(Peer::Datagram(addr(2)), &hello(5, token(&challenge), 0));
        assert_eq!(rig.sent_one().header.kind, Kind::Challenge, "another address's token");
        assert_eq!(rig.server.open_sessions(), 0);
        rig.say_hello(from, &hello(5, token(&challenge), 0));
        assert_eq!(rig.sent_one().header.kind, Kind::HelloAck);
        assert_eq!(rig.server.open_sessions(), 1);
    });
}

#[test]
fn a_token_does_not_last() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        rig.say_hello(from, &hello(5, 0, 0));
        let challenge = rig.sent_one();
        rig.pass(25 * SEC);
        rig.say_hello(from, &hello(5, token(&challenge), 0));
        assert_eq!(rig.sent_one().header.kind, Kind::Challenge);
    });
}

#[test]
fn a_hello_without_padding_is_not_answered() {
    serve(&config(), |rig| {
        let verdict = rig.control(Peer::Datagram(addr(1)), Header::new(Kind::Hello), &hello(5, 0, 0).to_bytes());
        assert_eq!(verdict, Verdict::Close);
        assert!(rig.sent().is_empty());
    });
}

#[test]
fn a_repeated_hello_gets_the_same_session() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        rig.say_hello(from, &hello(5, 0, 0));
        let token = token(&rig.sent_one());
        rig.say_hello(from, &hello(5, token, 0));
        let first = rig.sent_one();
        let (_, input) = rig.submit(from, first.header.session, 1, &Ask::rows(1));
        rig.say_hello(from, &hello(5, token, 0));
        let second = rig.sent_one();
        assert_eq!(first.header.session, second.header.session);
        assert_eq!(HelloAck::parse(&first.head), HelloAck::parse(&second.head));
        assert_eq!((rig.server.open_sessions(), rig.server.live_requests()), (1, 1), "{input:?}");
    });
}

#[test]
fn a_client_that_starts_over_on_its_address_leaves_nothing_behind() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let old = rig.open_datagram(addr(1), 5, 1 << 20);
        assert!(matches!(rig.frame(from, Ask::rows(2).first(old, 1, 0), &Ask::rows(2).manifest), Verdict::Place(_)));
        let (held, _) = rig.submit(from, old, 2, &Ask::rows(1));
        let new = rig.open_datagram(addr(1), 6, 1 << 20);
        assert_ne!(old, new);
        assert_eq!(rig.server.open_sessions(), 1);
        assert_eq!(rig.control(from, Header { session: old, ..Header::new(Kind::Ping) }, &[]), Verdict::Close);
        // What the orchestrator has comes back from it.
        rig.submissions();
        rig.answer(held, 100);
        rig.assert_empty();
    });
}

#[test]
fn clients_that_start_over_again_and_again_do_not_crowd_out_the_others() {
    serve(&config(), |rig| {
        let honest = rig.open_datagram(addr(9), 1, 1 << 20);
        let mut tokens = Vec::new();
        for nonce in 0..20 {
            rig.say_hello(Peer::Datagram(addr(1)), &hello(nonce, 0, 0));
            tokens.push(token(&rig.sent_one()));
        }
        // The server never gets to send more than its answer to the hello.
        let ask = Ask::bytes(100);
        for (nonce, token) in tokens.iter().enumerate() {
            let from = Peer::Datagram(addr(1));
            rig.say_hello(from, &hello(nonce as u64, *token, 0));
            let session = rig.server.poll_transmit(rig.now).unwrap().header.session;
            match rig.frame(from, ask.first(session, 1, 0), &ask.manifest) {
                Verdict::Place(placement) => rig.place(&placement),
                other => panic!("{other:?}"),
            }
        }
        let (request, _) = rig.submit(Peer::Datagram(addr(9)), honest, 1, &Ask::rows(1));
        rig.answer(request, 100);
        let answered = rig.sent().iter().any(|s| s.header.kind == Kind::Response);
        assert!(answered, "the honest client's response was never sent");
    });
}

#[test]
fn a_full_table_refuses_and_a_later_version_too() {
    serve(&config(), |rig| {
        for n in 0..4 {
            rig.open_datagram(addr(n), 1, 0);
        }
        let from = Peer::Datagram(addr(10));
        rig.say_hello(from, &hello(1, 0, 0));
        let token = token(&rig.sent_one());
        rig.say_hello(from, &hello(1, token, 0));
        let refusal = rig.sent_one();
        assert_eq!(refusal.status().status, Status::TooManySessions);
        // The hint holds.
        let wait = u64::from(refusal.status().retry_after_us) * 1000;
        rig.now = rig.now + (wait - 1000);
        rig.say_hello(from, &hello(1, token, 0));
        assert_eq!((rig.sent_one().status().status, rig.server.stats().sessions_refused), (Status::TooManySessions, 2));
        rig.now = rig.now + 1000;
        rig.say_hello(from, &hello(1, token, 0));
        assert_eq!(rig.sent_one().header.kind, Kind::HelloAck);
        let mut later = hello(1, 0, 0);
        (later.version_min, later.version_max) = (900, 901);
        rig.say_hello(from, &later);
        assert_eq!(rig.sent_one().status().status, Status::BadVersion);
    });
}

/// Whether the server still knows this session; asking counts as a sign of life.
fn knows(rig: &mut Rig<'_>, port: u16, session: u64) -> bool {
    let known = rig.control(Peer::Datagram(addr(port)), Header { session, ..Header::new(Kind::Ping) }, &[]);
    rig.sent();
    known == Verdict::Done
}

#[test]
fn a_full_table_makes_room_for_who_comes_by_forgetting_who_is_missed_least() {
    serve(&config(), |rig| {
        let sessions = [1, 2, 3, 4].map(|n| {
            rig.now = rig.now + SEC / 100;
            rig.open_datagram(addr(n), 1, 1 << 20)
        });
        let ask = Ask::rows(1);
        // 1 asked something and has its answer, 2 is being answered, 3 and 4 never asked anything.
        for n in [1, 2] {
            let (request, _) = rig.submit(Peer::Datagram(addr(n)), sessions[usize::from(n) - 1], 1, &ask);
            if n == 1 {
                rig.answer(request, 10);
                rig.sent();
            }
        }
        // Its client does not confirm it, and so it is kept for a while.
        rig.pass(2 * SEC);
        rig.sent();
        // That it was heard does not keep it.
        assert!(knows(rig, 4, sessions[3]));
        for (n, missed_least) in [(5, 3), (6, 4), (7, 1)] {
            assert!(knows(rig, missed_least, sessions[usize::from(missed_least) - 1]));
            let new = rig.open_datagram(addr(n), 1, 0);
            assert!(!knows(rig, missed_least, sessions[usize::from(missed_least) - 1]), "{n} came");
            assert!(knows(rig, 2, sessions[1]) && knows(rig, n, new));
        }
        assert_eq!((rig.server.stats().sessions_refused, rig.server.open_sessions()), (0, 4));
    });
}

#[test]
fn one_that_pings_from_many_ports_does_not_lock_the_others_out() {
    serve(&config(), |rig| {
        let sessions = [1, 2, 3, 4].map(|n| (n, rig.open_datagram(addr(n), 1, 1 << 20)));
        let ask = Ask::rows(1);
        // 1 works, slowly: its model takes a while, and then so does its client.
        let (request, _) = rig.submit(Peer::Datagram(addr(1)), sessions[0].1, 1, &ask);
        for second in 0..5 {
            rig.pass(SEC);
            assert!(sessions.iter().all(|(n, session)| knows(rig, *n, *session)), "in second {second}");
        }
        rig.answer(request, 10);
        rig.sent();
        let ranges = [AckRange::new(1, 1)];
        let mut payload = [0; MAX_ACK_LEN];
        let length = Ack { window: 1 << 20, delay_us: 0, ranges: &ranges }.write(&mut payload);
        let header = Header { session: sessions[0].1, ..Header::new(Kind::Ack) };
        rig.control(Peer::Datagram(addr(1)), header, &payload[..length]);
        assert_eq!(rig.server.live_requests(), 0);
        for n in 5..8 {
            assert!(sessions.iter().skip(n - 4).all(|(n, session)| knows(rig, *n, *session)));
            rig.open_datagram(addr(n as u16), 1, 0);
        }
        assert!(knows(rig, 1, sessions[0].1), "it had its answer just now");
    });
}

#[test]
fn one_that_opens_sessions_from_many_ports_and_leaves_does_not_lock_the_others_out() {
    serve(&config(), |rig| {
        let honest = rig.open_datagram(addr(1), 1, 1 << 20);
        for n in 100..103 {
            rig.open_datagram(addr(n), 1, 0);
        }
        for n in 103..120 {
            // It comes back at once and again; who is at work is not forgotten for it.
            rig.now = rig.now + SEC / 2;
            let (request, _) = rig.submit(Peer::Datagram(addr(1)), honest, u64::from(n), &Ask::rows(1));
            rig.answer(request, 10);
            rig.sent();
            let from = Peer::Datagram(addr(n));
            rig.say_hello(from, &hello(1, 0, 0));
            let token = token(&rig.sent_one());
            rig.say_hello(from, &hello(1, token, 0));
            rig.sent();
        }
        rig.now = rig.now + SEC;
        rig.open_datagram(addr(2), 1, 0);
    });
}

#[test]
fn a_client_that_is_forgotten_while_all_of_its_requests_are_lost_hears_of_it() {
    pair(&config(), &client_config(), |pair| {
        let heals = pair.now() + 2 * SEC;
        pair.wire = lose(true, Kind::Request, move |way| way.at < heals);
        for ask in [Ask::rows(1), Ask::bytes(0), Ask::bytes(100_000)] {
            pair.ask(&ask);
        }
        pair.run(1500 * MS);
        // The pair's client has port 1; who comes last takes its place, as the others were opened since.
        for n in 2..=5 {
            pair.rig.open_datagram(addr(n), 1, 0);
        }
        assert_eq!(pair.rig.server.stats().sessions_expired, 1);
        let until = heals + 2 * SEC;
        pair.run_while(until, |p| p.ended().1.is_empty());
        assert_eq!(pair.ended(), (0, vec![Status::UnknownSession]));
        assert_eq!(pair.client.open_requests(), 0);
    });
}

#[test]
fn a_client_that_is_forgotten_while_all_of_its_answers_are_lost_hears_no_more_than_that() {
    pair(&config(), &client_config(), |pair| {
        let heals = pair.now() + 2 * SEC;
        let mut asked = false;
        pair.wire = Box::new(move |way| way.at < heals && (!way.up || std::mem::replace(&mut asked, true)));
        pair.ask(&Ask::rows(1));
        pair.run(1500 * MS);
        let stats = *pair.rig.server.stats();
        assert_eq!((stats.submitted, stats.replies_evicted, pair.rig.server.live_requests()), (1, 1, 0));
        for n in 2..=5 {
            pair.rig.open_datagram(addr(n), 1, 0);
        }
        let until = heals + 2 * SEC;
        pair.run_while(until, |p| p.ended().1.is_empty());
        // Nothing is said of the request, and nothing is known of it any more.
        assert_eq!(pair.ended(), (0, vec![Status::UnknownSession]));
        assert_eq!(pair.rig.server.stats().submitted, 1);
    });
}

#[test]
fn sessions_are_counted_once_when_they_open_and_once_when_they_end() {
    serve(&config(), |rig| {
        let counts = |rig: &Rig<'_>| {
            let stats = rig.server.stats();
            (stats.sessions_opened, stats.sessions_closed, stats.sessions_expired)
        };
        // A stream that says goodbye, and one that never said hello.
        let session = rig.open_stream(0);
        let goodbye = Header { session, ..Header::new(Kind::Goodbye) };
        assert_eq!(rig.control(Peer::Stream(0), goodbye, &[]), Verdict::Close);
        rig.server.stream_closed(0);
        rig.server.stream_opened(rig.now, 1);
        rig.server.stream_closed(1);
        assert_eq!(counts(rig), (1, 1, 0));
        // A client that starts over, and says goodbye then.
        rig.open_datagram(addr(1), 1, 0);
        let session = rig.open_datagram(addr(1), 2, 0);
        assert_eq!(counts(rig), (3, 2, 0));
        rig.control(Peer::Datagram(addr(1)), Header { session, ..Header::new(Kind::Goodbye) }, &[]);
        assert_eq!(counts(rig), (3, 3, 0));
        rig.open_datagram(addr(1), 3, 0);
        rig.pass(63 * SEC);
        assert_eq!(counts(rig), (4, 3, 1));
    });
}

#[test]
fn the_catalogue_comes_in_datagrams_that_every_path_takes() {
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 5, 1 << 20);
        let list = Header { session, ..Header::new(Kind::List) };
        rig.control(Peer::Datagram(addr(1)), list, &[]);
        let slice = rig.sent_one();
        assert_eq!((slice.header.kind, slice.header.total), (Kind::ListAck, 5000));
        assert_eq!(slice.len(), 1232);
    });
}
