//! A request is cancelled in each state that it can be in.

use splitrpc_engine::{Peer, SEC, Verdict};
use splitrpc_ring::Submission;
use splitrpc_wire::{Header, Kind, Status};

use crate::rig::{Ask, Rig, addr, config, serve};

fn everywhere(test: impl Fn(&mut Rig<'_>, Peer, u64)) {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        test(rig, Peer::Stream(0), session);
    });
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        test(rig, Peer::Datagram(addr(1)), session);
    });
}

fn cancel(rig: &mut Rig<'_>, from: Peer, session: u64, id: u64) {
    let header = Header { session, request: id, packet: 50, ..Header::new(Kind::Cancel) };
    assert_eq!(rig.control(from, header, &[]), Verdict::Done);
}

fn cancelled(rig: &Rig<'_>) -> u64 {
    let at = Status::ALL.iter().position(|s| *s == Status::Cancelled).unwrap();
    rig.server.stats().ended[at]
}

fn nothing_of(rig: &mut Rig<'_>, id: u64) {
    assert!(rig.sent().iter().all(|s| s.header.request != id));
}

#[test]
fn while_it_arrives() {
    everywhere(|rig, from, session| {
        let ask = Ask::rows(2);
        let Verdict::Place(placement) = rig.frame(from, ask.first(session, 1, 8), &ask.manifest) else { panic!() };
        cancel(rig, from, session, 1);
        assert!(!rig.server.still_placing(&placement));
        rig.server.placed(rig.now, &placement, 8, 0);
        rig.assert_empty();
        // What was still on its way does not start it again.
        let rest = Header { packet: 51, ..ask.part(session, 1, 0, 8, 24) };
        assert_eq!(rig.frame(from, rest, &[]), Verdict::Discard);
        nothing_of(rig, 1);
        assert_eq!(cancelled(rig), 1);
        rig.assert_empty();
    });
}

#[test]
fn while_the_orchestrator_has_it() {
    everywhere(|rig, from, session| {
        let (request, _) = rig.submit(from, session, 1, &Ask::rows(2));
        cancel(rig, from, session, 1);
        cancel(rig, from, session, 1);
        assert_eq!(rig.submissions(), [Submission::Cancel { request }]);
        assert_eq!(rig.server.free_slots(0), 14, "the orchestrator may still read them");
        let output = rig.answer(request, 100);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        nothing_of(rig, 1);
        assert_eq!(cancelled(rig), 1);
        rig.assert_empty();
    });
}

#[test]
fn while_its_response_waits() {
    everywhere(|rig, from, session| {
        let (request, _) = rig.submit(from, session, 1, &Ask::rows(2));
        let output = rig.answer(request, 100);
        cancel(rig, from, session, 1);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        nothing_of(rig, 1);
        rig.assert_empty();
    });
}

#[test]
fn while_its_response_is_its_own_input() {
    everywhere(|rig, from, session| {
        let (request, input) = rig.submit(from, session, 1, &Ask::bytes(100));
        rig.complete(request, Status::Ok, input, &crate::rig::response(100));
        assert_eq!(rig.server.free_slots(1), 15);
        cancel(rig, from, session, 1);
        assert!(rig.submissions().is_empty());
        nothing_of(rig, 1);
        rig.assert_empty();
    });
}

#[test]
fn while_a_stream_is_being_given_its_response() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let (request, input) = rig.submit(from, session, 1, &Ask::bytes(100));
        rig.complete(request, Status::Ok, input, &crate::rig::response(100));
        let token = rig.sent_one().token.unwrap();
        cancel(rig, from, session, 1);
        assert_eq!(rig.server.free_slots(1), 15, "the port is reading these slots");
        rig.server.sent(token);
        rig.assert_empty();
        rig.server.sent(token);
        rig.assert_empty();
    });
}

#[test]
fn while_its_response_is_on_its_way() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20));
        let (request, _) = rig.submit(from, session, 1, &Ask::rows(2));
        let output = rig.answer(request, 100);
        assert!(rig.sent().iter().any(|s| s.header.kind == Kind::Response));
        cancel(rig, from, session, 1);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        rig.assert_empty();
        // Nothing is sent again, though nobody confirms anything.
        for _ in 0..20 {
            rig.pass(SEC / 10);
            nothing_of(rig, 1);
        }
    });
}

#[test]
fn after_it_failed() {
    everywhere(|rig, from, session| {
        let (request, _) = rig.submit(from, session, 1, &Ask::rows(2));
        rig.complete(request, Status::ModelFailed, splitrpc_ring::Run::NONE, &[]);
        cancel(rig, from, session, 1);
        nothing_of(rig, 1);
        assert_eq!(cancelled(rig), 0, "it had ended");
        rig.assert_empty();
    });
}

#[test]
fn before_the_server_ever_heard_of_it() {
    everywhere(|rig, from, session| {
        cancel(rig, from, session, 7);
        cancel(rig, from, session, u64::MAX);
        rig.assert_empty();
    });
}

#[test]
fn with_a_number_that_nobody_has_got_to_and_the_others_do_not_become_old() {
    everywhere(|rig, from, session| {
        for far in [u64::MAX, 1 << 40, 1024, 513] {
            cancel(rig, from, session, far);
        }
        for id in 1..=3 {
            let (request, _) = rig.submit(from, session, id, &Ask::rows(1));
            rig.answer(request, 10);
            rig.sent().iter().filter_map(|s| s.token).collect::<Vec<_>>().into_iter().for_each(|t| rig.server.sent(t));
        }
        // As far as it may be it counts, and those before it still do too.
        let last = 3 + 512;
        cancel(rig, from, session, last);
        if let Peer::Datagram(_) = from {
            assert_eq!(rig.request(from, session, last, &Ask::rows(1)), Verdict::Discard);
            assert!(rig.sent().iter().any(|s| s.header.request == last && s.status().status == Status::ReplyGone));
        }
        rig.submit(from, session, 4, &Ask::rows(1));
    });
}

#[test]
fn and_the_others_of_its_client_go_on() {
    everywhere(|rig, from, session| {
        let keys: Vec<_> = (1..=5).map(|id| rig.submit(from, session, id, &Ask::rows(1)).0).collect();
        for id in [3, 1, 5] {
            cancel(rig, from, session, id);
        }
        rig.submissions();
        for key in keys {
            rig.answer(key, 10);
        }
        let mut answered: Vec<u64> =
            rig.sent().iter().filter(|s| s.header.kind == Kind::Response).map(|s| s.header.request).collect();
        answered.sort_unstable();
        assert_eq!(answered, [2, 4]);
    });
}
