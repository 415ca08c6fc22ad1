//! The port's numbers for streams are used again; nothing of one stream reaches the next.

use splitrpc_engine::{MS, Peer, ServerConfig, Verdict};
use splitrpc_ring::Submission;
use splitrpc_wire::{Header, Kind, Status};

use crate::rig::{Ask, addr, config, serve};

#[test]
fn what_a_closed_stream_did_not_read_does_not_reach_its_successor() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        rig.control(Peer::Stream(0), Header { session, ..Header::new(Kind::Ping) }, &[]);
        rig.request(Peer::Stream(0), session, 1, &Ask { model: 9, ..Ask::rows(1) });
        let (request, _) = rig.submit(Peer::Stream(0), session, 2, &Ask::rows(1));
        rig.complete(request, Status::ModelFailed, splitrpc_ring::Run::NONE, &[]);
        let (request, _) = rig.submit(Peer::Stream(0), session, 3, &Ask::rows(1));
        rig.answer(request, 10);
        let other = {
            rig.server.stream_opened(rig.now, 1);
            Peer::Stream(1)
        };
        rig.control(other, Header::new(Kind::Hello), &crate::rig::hello(1, 0, 0).to_bytes());
        rig.server.stream_closed(0);
        rig.server.stream_opened(rig.now, 0);
        let sent = rig.sent_one();
        assert_eq!((sent.peer, sent.header.kind), (other, Kind::HelloAck), "the others still get theirs");
        rig.submissions();
        rig.assert_empty();
    });
}

#[test]
fn a_stream_closed_in_each_state_gives_everything_back() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(3), rig.open_stream(3));
        let ask = Ask::bytes(100);
        let Verdict::Place(placement) = rig.frame(from, ask.first(session, 1, 8), &ask.manifest) else { panic!() };
        let (held, _) = rig.submit(from, session, 2, &ask);
        let (answered, _) = rig.submit(from, session, 3, &ask);
        let output = rig.answer(answered, 10);
        let (handed, input) = rig.submit(from, session, 4, &ask);
        rig.complete(handed, Status::Ok, input, &crate::rig::response(100));
        let sent = rig.sent();
        assert_eq!(sent.len(), 2);
        let (echo, _) = rig.submit(from, session, 5, &ask);
        rig.complete(echo, Status::ModelFailed, splitrpc_ring::Run::NONE, &[]);
        rig.server.stream_closed(3);
        assert!(!rig.server.still_placing(&placement));
        assert_eq!(rig.server.pieces(&placement).count(), 0);
        rig.server.placed(rig.now, &placement, 8, 0);
        sent.iter().for_each(|s| rig.server.sent(s.token.unwrap()));
        let submissions = rig.submissions();
        assert!(submissions.contains(&Submission::Cancel { request: held }));
        assert!(submissions.contains(&Submission::Release { output }));
        assert_eq!(rig.server.live_requests(), 1);
        rig.answer(held, 10);
        rig.assert_empty();
        assert!(rig.sent().is_empty());
    });
}

#[test]
fn a_number_opened_twice_inherits_nothing() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        rig.frame(Peer::Stream(0), Ask::rows(1).first(session, 1, 0), &Ask::rows(1).manifest);
        rig.open_stream(0);
        rig.assert_empty();
    });
}

#[test]
fn numbers_that_are_not_streams_change_nothing() {
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 1, 0);
        let index = session as u32 & 0xf_ffff;
        assert!(index >= 4);
        for id in [index, 4, 1000, u32::MAX] {
            rig.server.stream_opened(rig.now, id);
            rig.server.stream_closed(id);
        }
        assert_eq!(rig.server.open_sessions(), 1);
        let ping = Header { session, ..Header::new(Kind::Ping) };
        assert_eq!(rig.control(Peer::Datagram(addr(1)), ping, &[]), Verdict::Done);
    });
}

#[test]
fn failures_for_which_there_is_no_room_are_told_later() {
    let config = ServerConfig { requests: 700, ..config() };
    serve(&config, |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let ask = Ask { deadline_us: 1000, ..Ask::bytes(10) };
        let mut id = 0;
        // Requests that fail by themselves while nothing can be sent.
        while rig.server.accepts_frames() {
            for _ in 0..6 {
                id += 1;
                assert!(matches!(rig.frame(from, ask.first(session, id, 0), &ask.manifest), Verdict::Place(_)));
            }
            rig.pass(2 * MS);
        }
        assert!(rig.server.stats().control_dropped > 0, "{id} failures had room");
        let mut told = 0;
        for _ in 0..3 {
            told += rig.sent().iter().filter(|s| s.status().status == Status::DeadlineExceeded).count() as u64;
            rig.pass(10 * MS);
        }
        assert_eq!(told, id);
        rig.assert_empty();
    });
}

#[test]
fn what_is_said_of_a_former_request_does_not_touch_the_one_that_has_its_record() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let ask = Ask::bytes(100);
        // One request at a time, so that each gets the record of the one before it.
        let Verdict::Place(placement) = rig.frame(from, ask.first(session, 1, 8), &ask.manifest) else { panic!() };
        rig.control(from, Header { session, request: 1, ..Header::new(Kind::Cancel) }, &[]);
        let Verdict::Place(next) = rig.frame(from, ask.first(session, 2, 8), &ask.manifest) else { panic!() };
        assert_eq!(placement.request.index, next.request.index);
        assert!(!rig.server.still_placing(&placement));
        rig.server.progressed(&placement, 8);
        rig.server.placed(rig.now, &placement, 8, 0);
        assert_eq!(rig.server.stats().bytes_placed, 0);
        rig.control(from, Header { session, request: 2, ..Header::new(Kind::Cancel) }, &[]);

        let mut tokens = Vec::new();
        for id in 3..6 {
            let (request, input) = rig.submit(from, session, id, &ask);
            rig.complete(request, Status::Ok, input, &crate::rig::response(100));
            let token = rig.sent_one().token.unwrap();
            tokens.iter().for_each(|stale| rig.server.sent(*stale));
            assert_eq!((token.index, rig.server.live_requests(), rig.server.free_slots(1)), (0, 1, 15));
            rig.server.sent(token);
            tokens.push(token);
        }
        rig.assert_empty();
    });
}
