//! Urgent responses leave first, on streams and over datagrams.

use splitrpc_engine::{LEVELS, Peer, ServerConfig, Verdict};
use splitrpc_wire::ack::{Ack, AckRange};
use splitrpc_wire::{Header, Kind};

use crate::rig::{Ask, addr, config, serve};

#[test]
fn order_responses() {
    for stream in [true, false] {
        serve(&config(), |rig| {
            let (from, session) = match stream {
                true => (Peer::Stream(0), rig.open_stream(0)),
                false => (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20)),
            };
            // 0 is the model's default, which is 2 for this one; past 3 all are alike.
            let keys: Vec<_> = [4, 3, 0, 1, 200, 2, 1]
                .into_iter()
                .zip(1..)
                .map(|(priority, id)| rig.submit(from, session, id, &Ask { priority, ..Ask::bytes(16) }).0)
                .collect();
            rig.sent();
            for key in keys {
                rig.answer(key, 10);
            }
            let order: Vec<u64> =
                rig.sent().iter().filter(|s| s.header.kind == Kind::Response).map(|s| s.header.request).collect();
            assert_eq!(order, [4, 7, 3, 6, 2, 1, 5]);
        });
    }
}

#[test]
fn past_the_lowest_level_are_the_models_default() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        // The first model has three levels, of which the second is its default; the other has none.
        for (id, (asked, used)) in (1..).zip([(1, 1), (3, 3), (0, 2), (4, 2), (255, 2)]) {
            let (request, _) = rig.submit(from, session, id, &Ask { priority: asked, ..Ask::rows(1) });
            rig.answer(request, 10);
            assert_eq!(rig.sent_one().header.priority, used, "asked for {asked}");
        }
        let (request, _) = rig.submit(from, session, 9, &Ask { priority: 200, ..Ask::bytes(16) });
        rig.answer(request, 10);
        assert_eq!(rig.sent_one().header.priority, 200);
    });
}

#[test]
fn do_not_let_one_client_keep_the_others_waiting() {
    serve(&ServerConfig { flight: 1024, ..config() }, |rig| {
        let mut sessions = Vec::new();
        for port in 0..3 {
            sessions.push(rig.open_datagram(addr(port), 1, 1 << 30));
        }
        for (session, port) in sessions.iter().zip(0..) {
            for id in 1..=4 {
                let (request, _) = rig.submit(Peer::Datagram(addr(port)), *session, id, &Ask::bytes(16));
                rig.answer(request, 1 << 20);
            }
        }
        // The first windows are 64 KiB, some 45 datagrams; those of clients that are further along are larger.
        for round in 0..6 {
            let sent = rig.sent();
            for (session, port) in sessions.iter().zip(0..) {
                let packets: Vec<u32> =
                    sent.iter().filter(|s| s.header.session == *session).map(|s| s.header.packet).collect();
                let ranges = [AckRange::new(1, packets.into_iter().max().unwrap_or(1))];
                let mut payload = [0; 64];
                let length = Ack { window: 1 << 30, delay_us: 0, ranges: &ranges }.write(&mut payload);
                let header = Header { session: *session, ..Header::new(Kind::Ack) };
                rig.pass(1000);
                rig.control(Peer::Datagram(addr(port)), header, &payload[..length]);
            }
            let owners: Vec<Peer> = sent.iter().map(|s| s.peer).collect();
            let longest = owners.chunk_by(|a, b| a == b).map(<[Peer]>::len).max().unwrap_or(0);
            assert!(longest <= 64 || round == 0 && longest <= 65, "{longest} datagrams in a row in round {round}");
        }
    });
}

#[test]
fn ports_are_told_how_urgent_a_request_is_while_it_arrives() {
    serve(&config(), |rig| {
        let from = Peer::Stream(0);
        let session = rig.open_stream(0);
        let mut urgencies = Vec::new();
        for (id, priority) in [(1, 1), (2, 2), (3, 0), (4, 3), (5, 200)] {
            let ask = Ask { priority, ..Ask::bytes(16) };
            let verdict = rig.frame(from, ask.whole(session, id), &ask.manifest);
            let Verdict::Place(placement) = verdict else { panic!("refused") };
            urgencies.push(rig.server.urgency(placement.request).unwrap());
            rig.place(&placement);
            assert_eq!(rig.server.urgency(placement.request), None);
        }
        assert_eq!(urgencies, [0, 1, 1, 2, LEVELS - 1]);
    });
}
