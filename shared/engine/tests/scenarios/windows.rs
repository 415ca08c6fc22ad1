//! What each datagram client may have under way, while few or many of them send.

use splitrpc_engine::{MS, Peer, ServerConfig};
use splitrpc_wire::ack::Ack;
use splitrpc_wire::{Flags, Header, Kind};

use crate::rig::{Ask, Rig, addr, config, serve};

const WINDOW: u64 = 256 << 10;
const ROOM: u64 = 512 << 10;

/// The window in the answer to the first frame of a request of so many bytes.
fn told(rig: &mut Rig<'_>, client: usize, session: u64, id: u64, bytes: u32) -> u64 {
    let from = Peer::Datagram(addr(client as u16));
    let ask = Ask::bytes(bytes);
    let first = ask.first(session, id, 1000.min(bytes));
    rig.frame(from, Header { flags: first.flags.with(Flags::ACK_NOW), ..first }, &ask.manifest);
    rig.control(from, Header { session, request: id, packet: 1000 + id as u32, ..Header::new(Kind::Cancel) }, &[]);
    rig.pass(MS);
    let sent = rig.sent();
    let ack = sent.iter().rfind(|s| s.header.kind == Kind::Ack && s.header.session == session).unwrap();
    Ack::parse(&ack.head).unwrap().window
}

#[test]
fn who_sends_beside_others_shares_the_room_with_them() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: ROOM, ..config() };
    serve(&config, |rig| {
        let sessions: Vec<_> = (0..4).map(|c| rig.open_datagram(addr(c), 1, 1 << 20)).collect();
        let large = |rig: &mut Rig<'_>, client, id| told(rig, client, sessions[client], id, 600_000);
        assert_eq!((large(rig, 0, 1), large(rig, 1, 1)), (WINDOW, WINDOW));
        assert_eq!(large(rig, 2, 1), ROOM / 3);
        assert_eq!(large(rig, 3, 1), ROOM / 4);
        assert_eq!(large(rig, 0, 2), ROOM / 4, "it counts once");
        rig.pass(100 * MS);
        assert_eq!(large(rig, 0, 3), WINDOW, "the others are not heard of any more");
        for (client, session) in sessions.iter().enumerate().skip(1) {
            told(rig, client, *session, 9, 10_000);
        }
        assert_eq!(large(rig, 0, 4), WINDOW, "what is small takes no room");
    });
}

#[test]
fn nobody_is_left_without_a_window() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: 16 << 10, ..config() };
    serve(&config, |rig| {
        let sessions = [1, 2].map(|c| rig.open_datagram(addr(c), 1, 1 << 20));
        told(rig, 1, sessions[0], 1, 600_000);
        assert_eq!(told(rig, 2, sessions[1], 1, 600_000), 16 << 10);
    });
}
