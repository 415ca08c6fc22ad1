//! Frames of sessions that do not exist.

use splitrpc_engine::{ClientVerdict, MS, Peer};
use splitrpc_wire::{Flags, Header, Kind, Status, StatusPayload};

use crate::rig::pair::{client_config, pair};
use crate::rig::{Ask, addr, config, response, serve};

#[test]
fn are_told_so_seldom_and_in_no_more_bytes_than_they_sent() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let ask = Ask::rows(1);
        for period in 0..3 {
            let mut answers = 0;
            for id in 0..2000 {
                let question = ask.first(0x1234_5678, id, 0);
                rig.frame(from, question, &ask.manifest);
                for answer in rig.sent() {
                    assert_eq!(answer.status().status, Status::UnknownSession);
                    assert_eq!(answer.header.session, question.session);
                    assert!(answer.len() <= 64 + question.length as usize);
                    answers += 1;
                }
            }
            assert!((1..=256).contains(&answers), "{answers} answers in period {period}");
            rig.pass(100 * MS);
        }
    });
}

#[test]
fn are_not_answered_where_the_answer_would_be_larger_or_could_go_round_in_circles() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        for kind in Kind::ALL.into_iter().filter(|k| *k != Kind::Hello) {
            rig.control(from, Header { session: 7, ..Header::new(kind) }, &[]);
            assert!(rig.sent().is_empty(), "{kind:?}");
        }
        rig.control(from, Header { session: 7, ..Header::new(Kind::Error) }, &[0; 600]);
        assert!(rig.sent().is_empty());
    });
}

#[test]
fn cannot_use_the_session_of_another_address() {
    serve(&config(), |rig| {
        let session = rig.open_datagram(addr(1), 1, 0);
        rig.control(Peer::Datagram(addr(2)), Header { session, ..Header::new(Kind::Goodbye) }, &[]);
        let stream = rig.open_stream(0);
        for from in [Peer::Datagram(addr(1)), Peer::Stream(1), Peer::Stream(4), Peer::Stream(u32::MAX)] {
            rig.control(from, Header { session: stream, ..Header::new(Kind::Goodbye) }, &[]);
        }
        rig.control(Peer::Stream(session as u32 & 0xf_ffff), Header { session, ..Header::new(Kind::Goodbye) }, &[]);
        assert_eq!(rig.server.open_sessions(), 2);
    });
}

#[test]
fn cannot_speak_for_the_server() {
    pair(&config(), &client_config(), |pair| {
        pair.model = Box::new(|_| (10 * MS, Ok(100)));
        pair.ask(&Ask::rows(1));
        pair.run(MS);
        let (now, other) = (pair.now(), 0xbad);
        let mut failure = [0; 32];
        let length = StatusPayload { status: Status::Internal, retry_after_us: 0, text: "" }.write(&mut failure);
        for request in 0..3 {
            for kind in [Kind::Error, Kind::Goodbye, Kind::Pong, Kind::HelloAck, Kind::Ack] {
                let header = Header { session: other, request, length: length as u32, ..Header::new(kind) };
                pair.client.handle_frame(now, &header, &failure[..length]);
            }
            let manifest = response(0);
            let length = manifest.len() as u32;
            let header = Header { flags: Flags::MANIFEST, session: other, request, ..Header::new(Kind::Response) };
            let verdict = pair.client.handle_frame(now, &Header { length, total: length, ..header }, &manifest);
            assert_eq!(verdict, ClientVerdict::Discard);
        }
        assert_eq!((pair.client.poll_event(), pair.client.open_requests()), (None, 1));
        pair.run(20 * MS);
        assert_eq!(pair.ended(), (1, Vec::new()));
    });
}
