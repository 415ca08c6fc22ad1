//! However often its frames arrive, a datagram request is executed once, and a duplicate gets what the original got.

use splitrpc_engine::{MS, Peer, SEC, Verdict};
use splitrpc_ring::{Run, Submission};
use splitrpc_wire::ack::Ack;
use splitrpc_wire::{Header, Kind, Status};

use crate::rig::{Ask, Rig, Sent, addr, config, serve};

fn again(rig: &mut Rig<'_>, session: u64, id: u64, packet: u32, ask: &Ask) -> Vec<Sent> {
    let header = Header { packet, ..ask.whole(session, id) };
    assert_eq!(rig.frame(Peer::Datagram(addr(1)), header, &ask.manifest), Verdict::Discard);
    assert!(rig.submissions().is_empty(), "executed twice");
    rig.sent()
}

fn of(sent: &[Sent], kind: Kind) -> Vec<&Sent> {
    sent.iter().filter(|s| s.header.kind == kind).collect()
}

/// Requests that were counted as not answered.
fn failures(rig: &Rig<'_>) -> u64 {
    let ended = rig.server.stats().ended.iter().zip(Status::ALL);
    ended.filter(|(_, status)| **status != Status::Ok).map(|(n, _)| n).sum()
}

#[test]
fn in_every_state() {
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let ask = Ask::rows(1);
        let (request, _) = rig.submit(Peer::Datagram(addr(1)), session, 1, &ask);
        again(rig, session, 1, 1, &ask);
        again(rig, session, 1, 2, &ask);
        rig.pass(MS);
        let acks = rig.sent();
        assert_eq!(of(&acks, Kind::Ack).len(), 1, "the client is told that it arrived: {acks:?}");
        let output = rig.answer(request, 100);
        let answer = rig.sent();
        assert!(matches!(of(&answer, Kind::Response)[..], [Sent { answers: true, .. }]), "{answer:?}");

        rig.pass(20 * MS);
        rig.sent();
        let twice = again(rig, session, 1, 3, &ask);
        let responses = of(&twice, Kind::Response);
        assert_eq!(responses.len(), 1, "the reply was kept");
        assert!(!responses[0].answers, "that was before");
        assert_eq!((responses[0].header.request, responses[0].pieces[0].run), (1, output));

        rig.pass(SEC);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        let late = again(rig, session, 1, 4, &ask);
        assert_eq!(of(&late, Kind::Error)[0].status().status, Status::ReplyGone);
        rig.assert_empty();
        assert_eq!(failures(rig), 0, "it was answered");
    });
}

#[test]
fn when_the_reply_was_confirmed() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let ask = Ask::rows(1);
        let (request, _) = rig.submit(from, session, 1, &ask);
        let output = rig.answer(request, 100);
        let sent = rig.sent();
        let packet = of(&sent, Kind::Response)[0].header.packet;
        let ranges = [splitrpc_wire::ack::AckRange::new(packet, packet)];
        let mut payload = [0; 64];
        let length = Ack { window: 1 << 20, delay_us: 0, ranges: &ranges }.write(&mut payload);
        rig.control(from, Header { session, ..Header::new(Kind::Ack) }, &payload[..length]);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        rig.assert_empty();
        let late = again(rig, session, 1, 1, &ask);
        assert_eq!(of(&late, Kind::Error)[0].status().status, Status::ReplyGone);
    });
}

#[test]
fn when_it_failed() {
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let ask = Ask::rows(1);
        let (request, _) = rig.submit(Peer::Datagram(addr(1)), session, 1, &ask);
        rig.complete(request, Status::ModelFailed, Run::NONE, &[]);
        let first = rig.sent();
        let twice = again(rig, session, 1, 2, &ask);
        for sent in [&first, &twice] {
            let error = of(sent, Kind::Error)[0].status();
            assert_eq!((error.status, error.text), (Status::ModelFailed, "because"));
        }
        rig.pass(SEC);
        rig.assert_empty();
        let late = again(rig, session, 1, 3, &ask);
        assert_eq!(of(&late, Kind::Error)[0].status().status, Status::ReplyGone);
        assert_eq!(failures(rig), 1);
    });
}

#[test]
fn when_it_was_refused() {
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let ask = Ask { model: 99, ..Ask::rows(1) };
        for (failed, id) in [(1, 1), (1, 1), (2, 2), (2, 1)] {
            let refused = again(rig, session, id, 0, &ask);
            assert_eq!(of(&refused, Kind::Error)[0].status().status, Status::UnknownModel);
            assert_eq!(failures(rig), failed, "after {id}");
        }
        // A client that starts anew counts anew too.
        let session = rig.open_datagram(addr(1), 2, 1 << 20);
        again(rig, session, 1, 0, &ask);
        assert_eq!(failures(rig), 3);
    });
}

#[test]
fn when_it_failed_while_it_arrived() {
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let ask = Ask { deadline_us: 1000, ..Ask::rows(1) };
        let first = ask.first(session, 1, 0);
        let Verdict::Place(p) = rig.frame(Peer::Datagram(addr(1)), first, &ask.manifest) else { panic!() };
        rig.place(&p);
        rig.pass(SEC);
        rig.sent();
        rig.assert_empty();
        // Its late frames do not start it again.
        let part = Header { packet: 9, ..ask.part(session, 1, 0, 0, 16) };
        assert_eq!(rig.frame(Peer::Datagram(addr(1)), part, &[]), Verdict::Discard);
        again(rig, session, 1, 10, &ask);
        rig.assert_empty();
    });
}

#[test]
fn in_parts_that_overlap_and_repeat() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let ask = Ask::bytes(3000);
        let mut packet = 0;
        let mut part = |rig: &mut Rig<'_>, offset, length| {
            packet += 1;
            let header = match offset {
                None => ask.first(session, 1, length),
                Some(offset) => ask.part(session, 1, 0, offset, length),
            };
            let head: &[u8] = if offset.is_none() { &ask.manifest } else { &[] };
            match rig.frame(from, Header { packet, ..header }, head) {
                Verdict::Place(placement) => {
                    rig.place(&placement);
                    // A port that says so twice changes nothing.
                    rig.server.placed(rig.now, &placement, 0, 0);
                    true
                }
                other => {
                    assert_eq!(other, Verdict::Discard);
                    false
                }
            }
        };
        assert!(part(rig, None, 1000));
        assert!(!part(rig, None, 1000), "in place already");
        assert!(part(rig, Some(2000), 500));
        assert!(part(rig, Some(900), 600), "overlaps on one side");
        assert!(!part(rig, Some(2900), 101), "past the end");
        assert!(!part(rig, Some(2000), 500));
        assert!(rig.submissions().is_empty());
        assert!(part(rig, Some(1400), 1600), "overlaps on both sides");
        assert!(!part(rig, Some(1400), 1600));
        let Submission::Submit { payload_bytes, .. } = rig.submissions()[0] else { panic!() };
        assert_eq!(payload_bytes, 3000);
        assert_eq!(rig.server.stats().bytes_placed, 3000);
    });
}
