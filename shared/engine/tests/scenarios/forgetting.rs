//! Packet numbers that say nothing, and how little a session takes.

use splitrpc_engine::{MS, Peer, SessionSlot};
use splitrpc_wire::ack::Ack;
use splitrpc_wire::{Header, Kind};

use crate::rig::{Ask, addr, config, serve};

#[test]
fn a_cancellation_without_a_packet_number_does_not_disturb_those_of_others() {
    serve(&config(), |rig| {
        let from = Peer::Datagram(addr(1));
        let session = rig.open_datagram(addr(1), 1, 1 << 20);
        let ask = Ask::rows(1);
        // Far enough along that 0 would look like a number ahead.
        let mut packet = 0u32;
        for (id, step) in [(1, 1), (2, 1 << 30), (3, 1 << 30), (4, 1 << 30)] {
            packet += step;
            rig.frame(from, Header { packet, ..ask.whole(session, id) }, &ask.manifest);
            rig.control(from, Header { session, request: id, packet: packet + 1, ..Header::new(Kind::Cancel) }, &[]);
        }
        rig.control(from, Header { session, request: 9, packet: 0, ..Header::new(Kind::Cancel) }, &[]);
        rig.pass(MS);
        let sent = rig.sent();
        let ack = sent.iter().rfind(|s| s.header.kind == Kind::Ack).unwrap();
        let ranges = Ack::parse(&ack.head).unwrap().ranges;
        assert_eq!(ranges[0].last(), packet + 1);
    });
}

#[test]
fn an_idle_stream_takes_next_to_nothing() {
    assert!(size_of::<SessionSlot>() <= 128, "{} bytes", size_of::<SessionSlot>());
}
