//! What is acknowledged is in place; what is answered need not be acknowledged.

use splitrpc_engine::{ClientEvent, MS, Peer, ServerConfig, Verdict};
use splitrpc_wire::ack::{Ack, AckRange};
use splitrpc_wire::{Flags, Header, Kind};

use crate::rig::pair::{client_config, pair};
use crate::rig::{Ask, Rig, addr, config, serve};

/// Packet numbers in the acknowledgements that leave at once.
fn acked_now(rig: &mut Rig<'_>) -> Vec<u32> {
    let sent = rig.sent();
    let acks = sent.iter().filter(|s| s.header.kind == Kind::Ack);
    let mut packets: Vec<u32> =
        acks.flat_map(|a| Ack::parse(&a.head).unwrap().ranges.iter().flat_map(|r| r.first()..=r.last())).collect();
    packets.sort_unstable();
    packets.dedup();
    packets
}

/// Packet numbers in the acknowledgements that leave within the next milliseconds.
fn acked(rig: &mut Rig<'_>) -> Vec<u32> {
    rig.pass(2 * MS);
    acked_now(rig)
}

#[test]
fn only_what_was_placed() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20));
        let ask = Ask::bytes(3000);
        let first = Header { packet: 1, ..ask.first(session, 1, 500) };
        let Verdict::Place(first) = rig.frame(from, first, &ask.manifest) else { panic!() };
        let part = Header { packet: 2, flags: Flags::ACK_NOW, ..ask.part(session, 1, 0, 1000, 500) };
        let Verdict::Place(part) = rig.frame(from, part, &[]) else { panic!() };
        assert_eq!(acked(rig), [], "nothing is in place yet");
        rig.place(&part);
        assert_eq!(acked(rig), [2]);
        // Outside its message: dropped, and not acknowledged.
        rig.frame(from, Header { packet: 3, ..ask.part(session, 1, 0, 2999, 2) }, &[]);
        rig.place(&first);
        assert_eq!(acked(rig), [1, 2]);
        // Once more, under another number: in place already.
        rig.frame(from, Header { packet: 4, ..ask.part(session, 1, 0, 1000, 500) }, &[]);
        assert_eq!(acked(rig), [1, 2, 4]);
    });
}

#[test]
fn a_response_makes_it_superfluous_but_only_for_its_own_request() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20));
        let (one, _) = rig.submit(from, session, 1, &Ask::rows(1));
        rig.answer(one, 10);
        assert_eq!(acked_now(rig), []);
        assert_eq!(acked(rig), []);
        let (two, _) = rig.submit(from, session, 2, &Ask::rows(1));
        rig.submit(from, session, 3, &Ask::rows(1));
        rig.answer(two, 10);
        assert_eq!(acked_now(rig), [], "so few packets wait for their time");
        assert_eq!(acked(rig), [1, 2, 3], "3 is not answered");
    });
}

#[test]
fn with_an_answer_it_leaves_once_there_is_enough_to_tell() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20));
        let (one, _) = rig.submit(from, session, 1, &Ask::rows(1));
        let (two, _) = rig.submit(from, session, 2, &Ask::rows(1));
        // Nine packets in all, and requests that are not answered.
        let ask = Ask::bytes(3000);
        for n in 0..7u32 {
            if n == 5 {
                rig.answer(one, 10);
                assert_eq!(acked_now(rig), [], "seven wait");
            }
            let part = Header { packet: 3 + n, ..ask.part(session, 3, 0, 100 * n, 100) };
            let verdict = match n {
                0 => rig.frame(from, Header { packet: 3, ..ask.first(session, 3, 100) }, &ask.manifest),
                _ => rig.frame(from, part, &[]),
            };
            let Verdict::Place(placement) = verdict else { panic!() };
            rig.place(&placement);
        }
        rig.answer(two, 10);
        assert_eq!(acked_now(rig), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    });
}

#[test]
fn a_new_session_starts_with_a_clean_sheet() {
    serve(&config(), |rig| {
        for nonce in 1..20 {
            let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), nonce, 1 << 20));
            let (request, _) = rig.submit(from, session, 1, &Ask::rows(1));
            assert_eq!(acked(rig), [1]);
            rig.answer(request, 10);
            let sent = rig.sent();
            let response = sent.iter().find(|s| s.header.kind == Kind::Response).unwrap();
            assert_eq!(response.header.packet, 1);
        }
    });
}

/// Has the client acknowledge an answer, so that a round trip is measured.
fn measure(rig: &mut Rig<'_>, from: Peer, session: u64, window: u64) {
    let (request, _) = rig.submit(from, session, 1, &Ask::rows(1));
    rig.answer(request, 10);
    rig.sent();
    rig.pass(MS / 10);
    let mut ack = [0; 64];
    let length = Ack { window, delay_us: 0, ranges: &[AckRange::new(1, 1)] }.write(&mut ack);
    rig.control(from, Header { session, ..Header::new(Kind::Ack) }, &ack[..length]);
}

#[test]
fn who_would_be_held_back_asks_in_time() {
    // What the client lets be under way, what is answered, and how many packets of that ask for an acknowledgement: before a
    // round trip was measured, and afterwards.
    for (window, bytes, asked) in [
        // After two packets there is no room for a third.
        (4000, 3000, [1, 1]),
        (20_000, 30_000, [1, 1]),
        (40_000, 30_000, [1, 1]),
        (60_000, 30_000, [1, 0]),
        (1 << 20, 30_000, [0, 0]),
    ] {
        for (measured, asked) in [false, true].into_iter().zip(asked) {
            serve(&config(), |rig| {
                let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, window));
                if measured {
                    measure(rig, from, session, window);
                }
                let (request, _) = rig.submit(from, session, 2, &Ask::rows(1));
                rig.answer(request, bytes);
                let sent = rig.sent();
                let under_way: u64 = sent.iter().map(|s| u64::from(s.header.length) + 64).sum();
                assert!(under_way <= window);
                let asking = sent.iter().filter(|s| s.header.flags.has(Flags::ACK_NOW)).count();
                assert_eq!(asking, asked, "{window}: {under_way} bytes under way, measured: {measured}");
            });
        }
    }
}

#[test]
fn so_does_who_can_keep_track_of_few_packets() {
    serve(&ServerConfig { flight: 16, ..config() }, |rig| {
        let (from, session) = (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20));
        let (request, _) = rig.submit(from, session, 1, &Ask::rows(1));
        rig.answer(request, 30_000);
        let (mut frames, mut asked) = (0, false);
        while let Some(train) = rig.server.poll_train(rig.now, 64) {
            frames += train.frames;
            asked |= train.header.flags.has(Flags::ACK_NOW);
        }
        assert_eq!((frames, asked), (16, true));
    });
}

#[test]
fn who_is_answered_each_time_learns_a_pace_by_that() {
    pair(&config(), &client_config(), |pair| {
        // Far more than the pacer lets go at once, and nothing is acknowledged.
        for number in 0..300 {
            let asked_at = pair.now();
            pair.ask(&Ask::bytes(2048));
            pair.run_while(asked_at + MS, |pair| pair.events.is_empty());
            assert!(matches!(pair.events[..], [ClientEvent::Response(_)]), "{:?}", pair.events);
            let took = pair.now().since(asked_at);
            assert!(took <= 3 * pair.delay, "request {number} took {took} ns");
            pair.events.clear();
        }
        let asked = pair.log.iter().filter(|way| way.up && way.header.flags.has(Flags::ACK_NOW)).count();
        assert_eq!(asked, 0);
    });
}
