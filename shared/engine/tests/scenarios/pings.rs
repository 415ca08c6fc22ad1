//! Either side may ask the other for a sign of life.

use splitrpc_engine::{ClientEvent, MS, Peer, Verdict};
use splitrpc_wire::{Header, Kind};

use crate::rig::pair::{client_config, pair};
use crate::rig::{config, serve};

#[test]
fn a_client_asks() {
    pair(&config(), &client_config(), |pair| {
        pair.client.ping(42);
        pair.run(MS);
        assert_eq!(pair.events, [ClientEvent::Pong(42)]);
    });
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let ping = Header { session, request: 42, ..Header::new(Kind::Ping) };
        assert_eq!(rig.control(Peer::Stream(0), ping, &[]), Verdict::Done);
        let pong = rig.sent_one().header;
        assert_eq!((pong.kind, pong.session, pong.request), (Kind::Pong, session, 42));
    });
}

#[test]
fn a_server_asks() {
    pair(&config(), &client_config(), |pair| {
        let now = pair.now();
        pair.client.ping(1);
        let session = pair.client.poll_transmit(now).unwrap().header.session;
        pair.client.handle_frame(now, &Header { session, request: 42, ..Header::new(Kind::Ping) }, &[]);
        let pong = pair.client.poll_transmit(now).unwrap().header;
        assert_eq!((pong.kind, pong.session, pong.request), (Kind::Pong, session, 42));
        assert!(pair.client.poll_transmit(now).is_none());
    });
}
