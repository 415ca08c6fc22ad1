//! Manifests and frames must agree, whichever comes first.

use splitrpc_engine::{Peer, Verdict};
use splitrpc_wire::{DType, Flags, Header, Kind, MANIFEST_TENSOR, Status};

use crate::rig::{Ask, addr, config, serve};

#[test]
fn a_second_manifest_that_says_something_else_fails_the_request() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let ask = Ask::rows(2);
        let others = [
            Ask::rows(1),
            Ask::bytes(48),
            Ask { model: 1, ..Ask::rows(2) },
            Ask::of(0, &[(DType::Fp32, &[2, 4]), (DType::Fp64, &[2, 2])]),
            Ask::of(0, &[(DType::Fp32, &[2, 4])]),
        ];
        for (other, id) in others.iter().zip(1..) {
            let Verdict::Place(first) = rig.frame(from, ask.first(session, id, 8), &ask.manifest) else { panic!() };
            rig.place(&first);
            let second = other.first(session, id, 16);
            assert_eq!(rig.frame(from, second, &other.manifest), Verdict::Discard, "{other:?}");
            assert_eq!(rig.sent_one().status().status, Status::BadTensor);
            rig.assert_empty();
        }
    });
}

#[test]
fn slots_taken_on_a_presumption_are_confirmed_by_the_manifest() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 0));
        let ask = Ask::rows(3);
        let Verdict::Place(part) = rig.frame(from, ask.part(session, 1, 1, 0, 48), &[]) else { panic!() };
        assert_eq!(part.run.rows, 3);
        rig.place(&part);
        assert!(rig.submissions().is_empty());
        let first = Header { packet: 2, ..ask.first(session, 1, 48) };
        let Verdict::Place(first) = rig.frame(from, first, &ask.manifest) else { panic!() };
        rig.place(&first);
        rig.submitted();
    });
}

#[test]
fn a_presumption_that_the_manifest_does_not_bear_out_fails() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 0));
        let (ask, other) = (Ask::rows(3), Ask::rows(2));
        let Verdict::Place(part) = rig.frame(from, ask.part(session, 1, 1, 0, 48), &[]) else { panic!() };
        rig.place(&part);
        let first = Header { packet: 2, ..other.first(session, 1, 0) };
        assert_eq!(rig.frame(from, first, &other.manifest), Verdict::Discard);
        assert!(rig.sent().iter().any(|s| s.header.kind == Kind::Error && s.status().status == Status::BadTensor));
        rig.assert_slots_free();
    });
}

#[test]
fn nothing_is_presumed_where_shapes_vary_or_on_a_stream() {
    serve(&config(), |rig| {
        let datagrams = rig.open_datagram(addr(1), 1, 0);
        let stream = rig.open_stream(0);
        let part = Ask::bytes(3000).part(datagrams, 1, 0, 0, 1000);
        assert_eq!(rig.frame(Peer::Datagram(addr(1)), part, &[]), Verdict::Discard);
        // The rest of a request that was refused, whose frames were on their way already.
        let part = Ask::rows(3).part(stream, 1, 0, 0, 48);
        assert_eq!(rig.frame(Peer::Stream(0), part, &[]), Verdict::Discard);
        assert!(rig.sent().is_empty());
        assert_eq!(rig.server.stats().before_manifest, 2);
        rig.assert_empty();
    });
}

#[test]
fn a_stream_survives_the_failure_of_a_request_that_it_goes_on_sending() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let ask = Ask { deadline_us: 1000, ..Ask::rows(3) };
        let Verdict::Place(first) = rig.frame(from, ask.first(session, 1, 0), &ask.manifest) else { panic!() };
        rig.place(&first);
        rig.pass(2_000_000);
        assert_eq!(rig.frame(from, ask.part(session, 1, 0, 0, 48), &[]), Verdict::Discard, "before it is told");
        assert_eq!(rig.sent_one().status().status, Status::DeadlineExceeded);
        assert_eq!(rig.frame(from, ask.part(session, 1, 1, 0, 48), &[]), Verdict::Discard, "and after");
        assert!(rig.sent().is_empty());
        rig.assert_empty();
    });
}

#[test]
fn frames_that_lie_close_a_stream_and_are_dropped_from_datagrams() {
    for stream in [true, false] {
        serve(&config(), |rig| {
            let (from, session) = match stream {
                true => (Peer::Stream(0), rig.open_stream(0)),
                false => (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 0)),
            };
            let bad = if stream { Verdict::Close } else { Verdict::Discard };
            let ask = Ask::rows(2);
            let short = ask.manifest.len() as u32 - 1;
            let lies = [
                // No room for its own manifest; more of tensor 0 than there is; whole, but not of the right length.
                Header { length: short, ..ask.first(session, 1, 0) },
                ask.first(session, 2, 33),
                Header {
                    flags: Flags::MANIFEST,
                    tensor: MANIFEST_TENSOR,
                    length: ask.total() - 1,
                    ..ask.first(session, 3, 0)
                },
            ];
            for lie in lies {
                assert_eq!(rig.frame(from, lie, &ask.manifest), bad, "{lie:?}");
            }
            for (id, tensor, offset, length) in [(4, 2, 0, 1), (4, 0, 32, 1), (4, 1, u32::MAX, 1), (4, u16::MAX, 0, 0)]
            {
                rig.frame(from, ask.first(session, id, 0), &ask.manifest);
                let part = Header { packet: 77, ..ask.part(session, id, tensor, offset, length) };
                assert_eq!(rig.frame(from, part, &[]), bad, "{part:?}");
            }
            assert!(rig.submissions().is_empty());
        });
    }
}
