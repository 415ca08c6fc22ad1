//! What each datagram client may have under way, while few or many of them send.

use std::net::SocketAddr;

use splitrpc_engine::{MS, Peer, ServerConfig, Verdict};
use splitrpc_wire::ack::Ack;
use splitrpc_wire::{Flags, Header, Kind};

use crate::rig::{Ask, Rig, config, serve};

const WINDOW: u64 = 256 << 10;
const ROOM: u64 = 512 << 10;

fn host(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], port))
}

/// The window in the answer to the first frame of a request, which brings so many of its bytes and is all that comes of it.
fn told(rig: &mut Rig<'_>, client: SocketAddr, session: u64, id: u64, ask: &Ask, bytes: u32) -> u64 {
    let from = Peer::Datagram(client);
    let first = ask.first(session, id, bytes);
    let verdict = rig.frame(from, Header { flags: first.flags.with(Flags::ACK_NOW), ..first }, &ask.manifest);
    if let Verdict::Place(placement) = verdict {
        rig.place(&placement);
    }
    rig.control(from, Header { session, request: id, packet: 1000 + id as u32, ..Header::new(Kind::Cancel) }, &[]);
    rig.pass(MS);
    let sent = rig.sent();
    let ack = sent.iter().rfind(|s| s.header.kind == Kind::Ack && s.header.session == session).unwrap();
    Ack::parse(&ack.head).unwrap().window
}

/// The same of a request that is large, and has brought enough to count.
fn large(rig: &mut Rig<'_>, client: SocketAddr, session: u64, id: u64) -> u64 {
    told(rig, client, session, id, &Ask::bytes(600_000), 20_000)
}

#[test]
fn who_sends_beside_others_shares_the_room_with_them() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: ROOM, ..config() };
    for at in [|n| host(1, n), |n| host(n as u8, 1)] {
        serve(&config, |rig| {
            let sessions: Vec<_> = (0..4).map(|c| rig.open_datagram(at(c), 1, 1 << 20)).collect();
            let large = |rig: &mut Rig<'_>, client: u16, id| large(rig, at(client), sessions[usize::from(client)], id);
            assert_eq!((large(rig, 0, 1), large(rig, 1, 1)), (WINDOW, WINDOW));
            assert_eq!(large(rig, 2, 1), ROOM / 3);
            assert_eq!(large(rig, 3, 1), ROOM / 4);
            assert_eq!(large(rig, 0, 2), ROOM / 4, "it counts once");
            rig.pass(100 * MS);
            assert_eq!(large(rig, 0, 3), WINDOW, "the others are not heard of any more");
            for (client, session) in (0..).zip(&sessions).skip(1) {
                told(rig, at(client), *session, 9, &Ask::bytes(10_000), 10_000);
            }
            assert_eq!(large(rig, 0, 4), WINDOW, "what is small takes no room");
        });
    }
}

#[test]
fn who_announces_much_and_sends_little_takes_no_share() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: ROOM, ..config() };
    serve(&config, |rig| {
        let sessions: Vec<_> = (0..4).map(|c| rig.open_datagram(host(c, 1), 1, 1 << 20)).collect();
        for (client, session) in (0..).zip(&sessions).skip(1) {
            told(rig, host(client, 1), *session, 1, &Ask::bytes(1 << 20), 16 << 10);
        }
        assert_eq!(large(rig, host(0, 1), sessions[0], 1), WINDOW);
    });
}

#[test]
fn many_sessions_of_one_host_share_what_one_gets() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: ROOM, ..config() };
    serve(&config, |rig| {
        let many: Vec<_> = (1..4).map(|port| (host(1, port), rig.open_datagram(host(1, port), 1, 1 << 20))).collect();
        let one = rig.open_datagram(host(2, 1), 1, 1 << 20);
        for (client, session) in &many {
            large(rig, *client, *session, 1);
        }
        assert_eq!(large(rig, host(2, 1), one, 1), ROOM / 2);
        for (client, session) in &many {
            assert_eq!(large(rig, *client, *session, 2), ROOM / 2 / 3);
        }
    });
}

#[test]
fn session_after_session_of_one_port_takes_one_share() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: ROOM, ..config() };
    serve(&config, |rig| {
        let one = rig.open_datagram(host(2, 1), 1, 1 << 20);
        for nonce in 1..8 {
            let session = rig.open_datagram(host(1, 1), nonce, 1 << 20);
            large(rig, host(1, 1), session, 1);
        }
        assert_eq!(large(rig, host(2, 1), one, 1), ROOM / 2);
    });
}

#[test]
fn hosts_that_come_and_go_leave_their_places_to_others() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: ROOM, ..config() };
    serve(&config, |rig| {
        let stays = rig.open_datagram(host(250, 1), 1, 1 << 20);
        for n in 0..200 {
            let session = rig.open_datagram(host(n, 1), 1, 1 << 20);
            large(rig, host(n, 1), session, 1);
            rig.control(Peer::Datagram(host(n, 1)), Header { session, ..Header::new(Kind::Goodbye) }, &[]);
            rig.pass(100 * MS);
            assert_eq!(large(rig, host(250, 1), stays, u64::from(n) + 1), WINDOW);
        }
    });
}

#[test]
fn nobody_is_left_without_a_window() {
    let config = ServerConfig { receive_window: WINDOW, receive_room: 16 << 10, ..config() };
    serve(&config, |rig| {
        let sessions = [1, 2].map(|c| rig.open_datagram(host(c, 1), 1, 1 << 20));
        large(rig, host(1, 1), sessions[0], 1);
        assert_eq!(large(rig, host(2, 1), sessions[1], 1), 16 << 10);
    });
}
