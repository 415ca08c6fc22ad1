//! How a server goes: what is new is refused, what is under way is finished, and who is told what.

use splitrpc_engine::{Peer, Verdict};
use splitrpc_ring::Run;
use splitrpc_wire::ack::{Ack, AckRange};
use splitrpc_wire::{Header, Kind, Status};

use crate::rig::{Ask, Rig, Sent, addr, config, hello, serve};

fn refused(rig: &mut Rig<'_>, from: Peer, session: u64, id: u64, ask: &Ask) -> Status {
    assert_eq!(rig.request(from, session, id, ask), Verdict::Discard);
    let error = rig.sent_one();
    assert_eq!((error.header.request, error.header.session), (id, session));
    error.status().status
}

fn is_draining(sent: &Sent, session: u64) {
    assert_eq!((sent.header.session, sent.header.request), (session, 0));
    assert_eq!(sent.status().status, Status::Draining);
}

fn acknowledge(rig: &mut Rig<'_>, from: Peer, session: u64, packet: u32) {
    let mut ack = [0; splitrpc_wire::ack::MAX_ACK_LEN];
    let ranges = [AckRange::new(packet, packet)];
    let length = Ack { window: 1 << 20, delay_us: 0, ranges: &ranges }.write(&mut ack);
    rig.control(from, Header { session, ..Header::new(Kind::Ack) }, &ack[..length]);
}

#[test]
fn what_is_under_way_is_finished_and_what_is_new_refused() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let ask = Ask::rows(1);
        let (request, _) = rig.submit(Peer::Stream(0), session, 1, &ask);
        rig.server.begin_drain();
        assert_eq!(refused(rig, Peer::Stream(0), session, 2, &ask), Status::Draining);
        assert!(!rig.server.is_idle());
        rig.answer(request, 10);
        assert!(!rig.server.is_idle());
        let sent = rig.sent_one();
        assert!(!rig.server.is_idle(), "its slots are still being read");
        rig.server.sent(sent.token.unwrap());
        rig.submissions();
        assert!(rig.server.is_idle());
        rig.assert_empty();
    });
}

#[test]
fn no_session_is_opened_any_more() {
    serve(&config(), |rig| {
        rig.server.stream_opened(rig.now, 0);
        rig.server.begin_drain();
        rig.control(Peer::Stream(0), Header::new(Kind::Hello), &hello(1, 0, 0).to_bytes());
        is_draining(&rig.sent_one(), 0);
        rig.say_hello(Peer::Datagram(addr(1)), &hello(1, 0, 1 << 20));
        is_draining(&rig.sent_one(), 0);
        assert_eq!(rig.server.stats().sessions_opened, 0);
        rig.server.say_farewell(true);
        assert!(rig.sent().is_empty(), "it was told already");
    });
}

#[test]
fn each_session_is_told_once_nothing_of_it_is_under_way() {
    serve(&config(), |rig| {
        let (busy, quiet, datagram) = (Peer::Stream(0), Peer::Stream(1), Peer::Datagram(addr(1)));
        let sessions = [rig.open_stream(0), rig.open_stream(1), rig.open_datagram(addr(1), 1, 1 << 20)];
        rig.server.stream_opened(rig.now, 2);
        let (of_stream, _) = rig.submit(busy, sessions[0], 1, &Ask::rows(1));
        let (of_datagram, _) = rig.submit(datagram, sessions[2], 1, &Ask::rows(1));
        rig.sent();
        rig.server.begin_drain();
        rig.server.say_farewell(false);
        let told = rig.sent();
        assert_eq!(told.iter().map(|s| s.peer).collect::<Vec<_>>(), [quiet, Peer::Stream(2)]);
        is_draining(&told[0], sessions[1]);
        is_draining(&told[1], 0);

        rig.answer(of_stream, 10);
        rig.answer(of_datagram, 10);
        rig.server.say_farewell(false);
        let answers = rig.sent();
        assert!(answers.iter().all(|s| s.header.kind == Kind::Response), "{answers:?}");
        rig.server.sent(answers[0].token.unwrap());
        rig.server.say_farewell(false);
        let told = rig.sent_one();
        assert_eq!(told.peer, busy);
        is_draining(&told, sessions[0]);

        // Whether the answer arrived is not known before it is acknowledged.
        acknowledge(rig, datagram, sessions[2], answers[1].header.packet);
        rig.server.say_farewell(false);
        let told = rig.sent_one();
        assert_eq!(told.peer, datagram);
        is_draining(&told, sessions[2]);
        rig.server.say_farewell(true);
        assert!(rig.sent().is_empty());
        rig.submissions();
        rig.assert_empty();
    });
}

#[test]
fn at_last_those_are_told_too_whose_requests_are_not_done() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let datagram = rig.open_datagram(addr(1), 1, 1 << 20);
        let (key, _) = rig.submit(from, session, 1, &Ask::rows(1));
        let (written, _) = rig.submit(from, session, 2, &Ask::rows(1));
        let (failed, _) = rig.submit(Peer::Datagram(addr(1)), datagram, 1, &Ask::rows(1));
        let large = Ask::bytes(100_000);
        rig.frame(from, large.first(session, 3, 1000), &large.manifest);
        rig.complete(failed, Status::ModelFailed, Run::NONE, &[]);
        rig.answer(written, 10);
        let token = rig.sent().iter().find_map(|s| s.token).unwrap();
        rig.server.begin_drain();
        rig.server.say_farewell(false);
        assert!(rig.sent().is_empty());
        rig.server.say_farewell(true);
        let told = rig.sent();
        let told: Vec<_> = told.iter().map(|s| (s.header.kind, s.header.session)).collect();
        assert_eq!(told, [(Kind::Goodbye, session), (Kind::Goodbye, datagram)]);
        // Nothing comes after that, whatever is done meanwhile.
        rig.submissions();
        rig.answer(key, 10);
        assert!(rig.sent().is_empty());
        assert_eq!(rig.server.live_requests(), 1, "it is still being written");
        rig.server.sent(token);
        rig.control(Peer::Datagram(addr(1)), Header { session: datagram, ..Header::new(Kind::Ping) }, &[]);
        assert_eq!(rig.sent_one().header.kind, Kind::Goodbye, "what was said once is said again");
        rig.submissions();
        rig.assert_empty();
    });
}

#[test]
fn an_answer_that_was_given_up_unconfirmed_is_not_forgotten() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20));
        let (key, _) = rig.submit(from, session, 1, &Ask::rows(1));
        rig.answer(key, 10);
        rig.sent();
        rig.pass(2 * rig.config.keep_reply);
        rig.sent();
        assert_eq!(rig.server.live_requests(), 0);
        rig.server.begin_drain();
        rig.server.say_farewell(false);
        assert_eq!(rig.sent_one().header.kind, Kind::Goodbye);
        rig.control(from, Header { session, ..Header::new(Kind::Ping) }, &[]);
        assert_eq!(rig.sent_one().header.kind, Kind::Goodbye, "what was said once is said again");
    });
}

#[test]
fn who_has_not_heard_is_told_again_when_it_asks() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20));
        rig.server.begin_drain();
        rig.server.say_farewell(false);
        is_draining(&rig.sent_one(), session);
        let ask = Ask::bytes(3000);
        assert_eq!(rig.frame(from, ask.first(session, 1, 1000), &ask.manifest), Verdict::Discard);
        is_draining(&rig.sent_one(), session);
        rig.control(from, Header { session, ..Header::new(Kind::Ping) }, &[]);
        is_draining(&rig.sent_one(), session);
        acknowledge(rig, from, session, 1);
        assert!(rig.sent().is_empty());
        rig.control(from, Header { session, ..Header::new(Kind::Goodbye) }, &[]);
        assert_eq!(rig.server.open_sessions(), 0);
        rig.assert_empty();
    });
}
