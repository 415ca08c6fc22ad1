//! Either side may ask the other for a sign of life.

use splitrpc_engine::{ClientEvent, MS, Peer, Verdict};
use splitrpc_ring::Run;
use splitrpc_wire::{Header, Kind, Status};

use crate::rig::pair::{client_config, pair};
use crate::rig::{Ask, Rig, addr, config, serve};

#[test]
fn a_client_asks() {
    pair(&config(), &client_config(), |pair| {
        pair.client.ping(42);
        pair.run(MS);
        assert_eq!(pair.events, [ClientEvent::Pong(42)]);
    });
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let ping = Header { session, request: 42, ..Header::new(Kind::Ping) };
        assert_eq!(rig.control(Peer::Stream(0), ping, &[]), Verdict::Done);
        let pong = rig.sent_one().header;
        assert_eq!((pong.kind, pong.session, pong.request), (Kind::Pong, session, 42));
    });
}

#[test]
fn a_server_asks() {
    pair(&config(), &client_config(), |pair| {
        let now = pair.now();
        pair.client.ping(1);
        let session = pair.client.poll_transmit(now).unwrap().header.session;
        pair.client.handle_frame(now, &Header { session, request: 42, ..Header::new(Kind::Ping) }, &[]);
        let pong = pair.client.poll_transmit(now).unwrap().header;
        assert_eq!((pong.kind, pong.session, pong.request), (Kind::Pong, session, 42));
        assert!(pair.client.poll_transmit(now).is_none());
    });
}

#[test]
fn a_client_that_is_forgotten_hears_of_it_when_it_asks() {
    pair(&config(), &client_config(), |pair| {
        pair.run(1500 * MS);
        // The last of these takes the place of the pair's client, which has port 1.
        for n in 2..=5 {
            pair.rig.open_datagram(addr(n), 1, 0);
        }
        assert_eq!(pair.rig.server.stats().sessions_expired, 1);
        pair.client.ping(42);
        pair.run(MS);
        assert_eq!(pair.events, [ClientEvent::Closed(Status::UnknownSession)]);
    });
}

/// Asks `count` times for a sign of life, the catalogue and the impossible, as one receive brings it: nothing is sent meanwhile.
fn flood(rig: &mut Rig<'_>, from: Peer, session: u64, count: u64) {
    let ask = Ask { model: 99, ..Ask::rows(1) };
    for n in 1..=count {
        rig.control(from, Header { session, request: n, ..Header::new(Kind::Ping) }, &[]);
        rig.control(from, Header { session, ..Header::new(Kind::List) }, &[0; 8]);
        assert_eq!(rig.request(from, session, n, &ask), Verdict::Discard);
        let cancel = Header { session, request: n, packet: 5000 + n as u32, ..Header::new(Kind::Cancel) };
        rig.control(from, cancel, &[]);
    }
}

#[test]
fn who_asks_without_end_is_answered_as_often_as_it_may_have_requests() {
    let config = config();
    serve(&config, |rig| {
        let (loud, other) = (Peer::Datagram(addr(1)), Peer::Datagram(addr(2)));
        let sessions = [rig.open_datagram(addr(1), 1, 1 << 20), rig.open_datagram(addr(2), 1, 1 << 20)];
        for _ in 0..3 {
            flood(rig, loud, sessions[0], 2000);
            assert!(rig.server.accepts_frames() && rig.server.stats().control_dropped > 0);
            rig.control(other, Header { session: sessions[1], request: 7, ..Header::new(Kind::Ping) }, &[]);
            let sent = rig.sent();
            let (to_loud, to_other): (Vec<_>, Vec<_>) = sent.iter().partition(|s| s.peer == loud);
            let answers = to_loud.iter().filter(|s| s.header.kind != Kind::Ack).count();
            assert_eq!(answers, usize::from(config.requests_per_client) + 3);
            assert_eq!(to_other.iter().map(|s| s.header.kind).collect::<Vec<_>>(), [Kind::Pong]);
        }
        rig.control(loud, Header { session: sessions[0], request: 7, ..Header::new(Kind::Ping) }, &[]);
        assert!(rig.sent().iter().any(|s| (s.header.kind, s.header.request) == (Kind::Pong, 7)), "it is heard again");
    });
}

#[test]
fn more_questions_at_once_than_there_is_room_for_cost_who_asks_and_nobody_else() {
    serve(&config(), |rig| {
        let quiet = Peer::Stream(0);
        let (loud, session) = (Peer::Stream(1), rig.open_stream(1));
        let own = rig.open_stream(0);
        let request = rig.submit(quiet, own, 1, &Ask::rows(1)).0;
        for n in 1..=6000 {
            rig.control(loud, Header { session, request: n, ..Header::new(Kind::Ping) }, &[]);
        }
        rig.complete(request, Status::ModelFailed, Run::NONE, &[]);
        assert!(!rig.server.accepts_frames() && rig.server.stats().control_dropped > 0);
        assert!(rig.sent().iter().all(|s| s.peer == loud));
        rig.pass(2 * MS);
        let told = rig.sent();
        assert!(
            told.iter().any(|s| s.peer == quiet && s.header.request == 1 && s.status().status == Status::ModelFailed)
        );
        rig.assert_empty();
        rig.control(loud, Header { session, request: 7, ..Header::new(Kind::Ping) }, &[]);
        assert!(rig.sent().iter().any(|s| (s.header.kind, s.header.request) == (Kind::Pong, 7)), "it is heard again");
    });
}
