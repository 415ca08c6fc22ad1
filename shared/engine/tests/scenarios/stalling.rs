//! Nobody holds slots or records for ever by being slow.

use splitrpc_engine::{MS, Peer, SEC, Time, Verdict};
use splitrpc_ring::Submission;
use splitrpc_wire::{Header, Kind, Status};

use crate::rig::{Ask, Rig, addr, config, serve};

fn errors(rig: &mut Rig<'_>) -> Vec<(u64, Status)> {
    rig.sent().iter().filter(|s| s.header.kind == Kind::Error).map(|s| (s.header.request, s.status().status)).collect()
}

#[test]
fn a_deadline_passes_while_the_request_arrives() {
    for stream in [true, false] {
        serve(&config(), |rig| {
            let (from, session) = match stream {
                true => (Peer::Stream(0), rig.open_stream(0)),
                false => (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 0)),
            };
            let ask = Ask { deadline_us: 20_000, ..Ask::rows(4) };
            let Verdict::Place(placement) = rig.frame(from, ask.first(session, 1, 8), &ask.manifest) else { panic!() };
            rig.pass(19 * MS);
            assert!(errors(rig).is_empty() && rig.server.still_placing(&placement));
            rig.pass(2 * MS);
            assert_eq!(errors(rig), [(1, Status::DeadlineExceeded)]);
            assert!(!rig.server.still_placing(&placement));
            assert_eq!(rig.server.pieces(&placement).count(), 0);
            rig.server.placed(rig.now, &placement, 8, 0);
            rig.assert_slots_free();
            rig.pass(SEC);
            rig.assert_empty();
        });
    }
}

#[test]
fn a_deadline_that_remains_goes_along_to_the_orchestrator() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let ask = Ask { deadline_us: 20_000, ..Ask::rows(1) };
        let Verdict::Place(placement) = rig.frame(Peer::Stream(0), ask.whole(session, 1), &ask.manifest) else {
            panic!()
        };
        rig.pass(5 * MS);
        rig.place(&placement);
        let Submission::Submit { deadline_ns, .. } = rig.submissions()[0] else { panic!() };
        assert_eq!(deadline_ns, 15 * MS);
    });
}

#[test]
fn a_request_that_makes_no_progress_is_given_up() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let ask = Ask::bytes(100_000);
        let Verdict::Place(slow) = rig.frame(from, ask.whole(session, 1), &ask.manifest) else { panic!() };
        // 2,000 bytes a second are asked of it: at first it is faster, then not.
        for n in 1..=20 {
            rig.server.progressed(&slow, n * 400);
            rig.pass(200 * MS);
            assert!(errors(rig).is_empty(), "after {n} steps");
        }
        rig.pass(3 * SEC);
        let error = rig.sent_one();
        assert_eq!((error.header.request, error.status().status), (1, Status::TooSlow));
        assert_eq!(error.status().retry_after_us, 0, "waiting makes nobody faster");
        assert!(!rig.server.still_placing(&slow));
        rig.assert_empty();
        // The stream goes on.
        rig.submit(from, session, 2, &Ask::rows(1));
    });
}

#[test]
fn a_request_of_which_only_the_beginning_came_is_given_up_over_datagrams_too() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let session = rig.open_datagram(addr(1), 1, 0);
        let ask = Ask::bytes(100_000);
        for id in 1..=4 {
            let Verdict::Place(p) = rig.frame(from, ask.first(session, id, 8), &ask.manifest) else { panic!() };
            rig.place(&p);
        }
        let mut given_up = 0;
        for _ in 0..30 {
            rig.pass(100 * MS);
            given_up += errors(rig).iter().filter(|e| e.1 == Status::TooSlow).count();
        }
        assert_eq!(given_up, 4);
        rig.assert_empty();
    });
}

#[test]
fn a_client_that_lets_nothing_be_sent_does_not_keep_its_responses() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let session = rig.open_datagram(addr(1), 1, 0);
        let (request, _) = rig.submit(from, session, 1, &Ask::rows(1));
        let output = rig.answer(request, 5000);
        for _ in 0..30 {
            rig.pass(100 * MS);
            rig.control(from, Header { session, ..Header::new(Kind::Ping) }, &[]);
            rig.sent();
        }
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        rig.assert_empty();
    });
}

#[test]
fn a_client_that_confirms_nothing_does_not_keep_its_responses() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let (request, _) = rig.submit(from, session, 1, &Ask::rows(1));
        // More than the first window.
        let output = rig.answer(request, 900_000);
        for _ in 0..300 {
            rig.pass(10 * MS);
            rig.control(from, Header { session, ..Header::new(Kind::Ping) }, &[]);
            rig.sent();
        }
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        rig.assert_empty();
    });
}

#[test]
fn an_idle_datagram_session_is_forgotten_and_an_idle_stream_is_not() {
    serve(&config(), |rig| {
        rig.open_stream(0);
        rig.open_datagram(addr(1), 1, 0);
        rig.pass(59 * SEC);
        assert_eq!(rig.server.open_sessions(), 2);
        rig.pass(4 * SEC);
        assert_eq!(rig.server.open_sessions(), 1);
        assert_eq!(rig.server.stats().sessions_expired, 1);
    });
}

#[test]
fn streams_that_never_say_hello_are_named_once_each() {
    serve(&config(), |rig| {
        (0..4).for_each(|id| rig.server.stream_opened(rig.now, id));
        rig.control(Peer::Stream(2), Header::new(Kind::Hello), &crate::rig::hello(1, 0, 0).to_bytes());
        rig.pass(9 * SEC);
        assert_eq!(rig.server.poll_stale_stream(rig.now), None);
        rig.pass(2 * SEC);
        let mut stale = Vec::new();
        while let Some(id) = rig.server.poll_stale_stream(rig.now) {
            stale.push(id);
        }
        assert_eq!(stale, [0, 1, 3]);
        assert_eq!(rig.server.poll_stale_stream(rig.now), Some(0));
    });
}

#[test]
fn a_server_at_rest_sleeps() {
    serve(&config(), |rig| {
        assert_eq!(rig.server.next_timeout(), Time::NEVER);
        rig.open_stream(0);
        rig.server.stream_closed(0);
        rig.pass(2 * SEC);
        assert_eq!(rig.server.next_timeout(), Time::NEVER);
    });
}
