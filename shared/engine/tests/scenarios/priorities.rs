//! Urgent responses leave first, on streams and over datagrams.

use splitrpc_engine::Peer;
use splitrpc_wire::Kind;

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
