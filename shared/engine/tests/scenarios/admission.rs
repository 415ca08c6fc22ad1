//! Who is let in: quota, busy, draining, limits; and that refusals cost the refused, not the others.

use splitrpc_engine::{Peer, ServerConfig, Verdict};
use splitrpc_ring::Run;
use splitrpc_wire::{Header, Status, TOTAL_UNKNOWN};

use crate::rig::{Ask, Rig, addr, config, serve};

fn refused(rig: &mut Rig<'_>, from: Peer, session: u64, id: u64, ask: &Ask) -> (Status, u32) {
    assert_eq!(rig.request(from, session, id, ask), Verdict::Discard);
    let error = rig.sent_one();
    assert_eq!((error.header.request, error.header.session), (id, session));
    (error.status().status, error.status().retry_after_us)
}

#[test]
fn a_client_has_its_quota_and_not_more() {
    for stream in [true, false] {
        serve(&config(), |rig| {
            let (from, session) = match stream {
                true => (Peer::Stream(0), rig.open_stream(0)),
                false => (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20)),
            };
            let ask = Ask::rows(1);
            let keys: Vec<_> = (1..=8).map(|id| rig.submit(from, session, id, &ask).0).collect();
            rig.sent();
            assert_eq!(refused(rig, from, session, 9, &ask), (Status::Quota, 1000));
            rig.answer(keys[0], 10);
            for sent in rig.sent() {
                sent.token.into_iter().for_each(|token| rig.server.sent(token));
            }
            assert!(matches!(rig.request(from, session, 10, &ask), Verdict::Place(_)));
        });
    }
}

#[test]
fn responses_that_a_client_does_not_take_count_against_its_quota() {
    for stream in [true, false] {
        serve(&config(), |rig| {
            // Neither reads its stream, nor lets a single byte be sent.
            let (from, session) = match stream {
                true => (Peer::Stream(0), rig.open_stream(0)),
                false => (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 0)),
            };
            let ask = Ask::rows(1);
            for id in 1..=8 {
                let (request, _) = rig.submit(from, session, id, &ask);
                rig.answer(request, 5000);
                rig.sent();
            }
            assert_eq!(refused(rig, from, session, 9, &ask).0, Status::Quota);
        });
    }
}

#[test]
fn busy_says_when_to_come_back() {
    serve(&ServerConfig { requests: 3, ..config() }, |rig| {
        let session = rig.open_stream(0);
        for id in 1..=3 {
            rig.submit(Peer::Stream(0), session, id, &Ask::rows(1));
        }
        let (status, retry_after_us) = refused(rig, Peer::Stream(0), session, 4, &Ask::rows(1));
        assert_eq!(status, Status::Busy);
        assert!(retry_after_us > 0);
    });
}

#[test]
fn failed_requests_do_not_take_the_records_of_others() {
    serve(&ServerConfig { requests: 6, ..config() }, |rig| {
        let from = Peer::Datagram(addr(1));
        let session = rig.open_datagram(addr(1), 1, 0);
        let other = rig.open_stream(0);
        let (good, bad) = (Ask::rows(2), Ask::rows(1));
        for id in 1..40 {
            // Its own frames contradict each other: it fails at once, and its error is kept.
            let part = Header { packet: 2 * id as u32, ..good.part(session, id, 0, 0, 8) };
            assert!(matches!(rig.frame(from, part, &[]), Verdict::Place(_)), "request {id}");
            let first = Header { packet: 2 * id as u32 + 1, ..bad.first(session, id, 0) };
            assert_eq!(rig.frame(from, first, &bad.manifest), Verdict::Discard);
            assert!(rig.sent().iter().any(|s| s.header.request == id && s.status().status == Status::BadTensor));
        }
        assert_eq!(rig.server.live_requests(), 6);
        rig.submit(Peer::Stream(0), other, 1, &good);
    });
}

#[test]
fn what_ends_is_counted_for_the_model_that_it_named() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let at = |status| Status::ALL.iter().position(|s| *s == status).unwrap();
        refused(rig, from, session, 1, &Ask::rows(5));
        refused(rig, from, session, 2, &Ask { model: 2, ..Ask::rows(1) });
        refused(rig, from, session, 3, &Ask { model: u16::MAX, ..Ask::rows(1) });
        let (key, ..) = rig.submit(from, session, 4, &Ask::bytes(100));
        rig.complete(key, Status::ModelFailed, Run::NONE, &[]);
        rig.sent();
        let ended = rig.server.ended();
        assert_eq!(ended.len(), 2);
        assert_eq!((ended[0][at(Status::TooLarge)], ended[0].iter().sum::<u64>()), (1, 1));
        assert_eq!((ended[1][at(Status::ModelFailed)], ended[1].iter().sum::<u64>()), (1, 1));
        let all = rig.server.stats().ended;
        assert_eq!((all[at(Status::UnknownModel)], all.iter().sum::<u64>()), (2, 4));
    });
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let ask = Ask::rows(1);
        assert_eq!(refused(rig, from, session, 0, &ask).0, Status::BadFrame);
        assert_eq!(refused(rig, from, session, 1, &Ask { model: 2, ..ask.clone() }).0, Status::UnknownModel);
        assert_eq!(refused(rig, from, session, 2, &Ask::rows(5)).0, Status::TooLarge);
        assert_eq!(refused(rig, from, session, 3, &Ask::bytes((1 << 20) + 1)).0, Status::TooLarge);
        assert_eq!(refused(rig, from, session, 4, &Ask::bytes(3 << 20)).0, Status::TooLarge);
        assert_eq!(refused(rig, from, session, 5, &Ask { model: 0, ..Ask::bytes(24) }).0, Status::BadTensor);
        assert_eq!(refused(rig, from, session, 6, &Ask::rows(0)).0, Status::BadTensor);
        let unknown = Header { total: TOTAL_UNKNOWN, ..ask.first(session, 7, 0) };
        assert_eq!(rig.frame(from, unknown, &ask.manifest), Verdict::Discard);
        assert_eq!(rig.sent_one().status().status, Status::Unsupported);
        let lying = Header { total: 1 << 20, ..ask.first(session, 8, 0) };
        assert_eq!(rig.frame(from, lying, &ask.manifest), Verdict::Discard);
        assert_eq!(rig.sent_one().status().status, Status::BadTensor);
        rig.assert_empty();
    });
}

#[test]
fn limits_that_cannot_be_are_named() {
    let wrong = |change: fn(&mut ServerConfig)| {
        let mut config = config();
        change(&mut config);
        config.check().unwrap_err().field
    };
    assert_eq!(wrong(|c| c.requests = 0), "requests");
    assert_eq!(wrong(|c| c.requests_per_client = 513), "requests_per_client");
    assert_eq!(wrong(|c| c.flight = 48), "flight");
    assert_eq!(wrong(|c| c.receive_window = u64::MAX), "receive_window");
    assert_eq!(wrong(|c| c.keep_reply = u64::MAX), "idle_timeout");
    assert_eq!(wrong(|c| c.datagram = 100), "datagram");
    assert!(config().check().is_ok() && ServerConfig::small().check().is_ok());
}
