//! What no version speaks yet is refused and never taken for something else.

use splitrpc_engine::{ClientEvent, ClientVerdict, MS};
use splitrpc_wire::{Flags, Header, Kind, Status};

use crate::rig::pair::{client_config, pair};
use crate::rig::{Ask, config, response};

#[test]
fn a_part_of_a_reply_is_not_its_whole() {
    let manifest = response(4000);
    let (head, total) = (manifest.len() as u32, manifest.len() as u32 + 4000);
    let with = |flags| Header { flags, total, ..Header::new(Kind::Response) };
    let whole = Header { length: total, ..with(Flags::MANIFEST.with(Flags::MORE)) };
    let first = Header { length: head + 1000, ..with(Flags::MANIFEST) };
    let rest = Header { length: 1000, offset: 1000, ..with(Flags::MORE) };
    // One frame that is all of a part, and parts of one in a train.
    for frames in [&[(whole, 1)][..], &[(first, 1), (rest, 3)]] {
        pair(&config(), &client_config(), |pair| {
            pair.model = Box::new(|_| (100 * MS, Ok(4000)));
            let key = pair.ask(&Ask::rows(1));
            pair.run(MS);
            let sent = pair.log.iter().find(|way| way.up && way.header.kind == Kind::Request).unwrap().header;
            let now = pair.now();
            for (packet, (frame, count)) in (1..).zip(frames) {
                let frame = Header { session: sent.session, request: sent.request, packet, ..*frame };
                let verdict = match count {
                    1 => pair.client.handle_frame(now, &frame, if packet == 1 { &manifest } else { &[] }),
                    count => pair.client.handle_train(now, &frame, *count),
                };
                match verdict {
                    ClientVerdict::Place(placement) if !frame.flags.has(Flags::MORE) => {
                        pair.client.placed(now, &placement);
                    }
                    other => assert_eq!(other, ClientVerdict::Discard),
                }
            }
            pair.run(200 * MS);
            assert_eq!(pair.events, [ClientEvent::Failed(key, Status::Unsupported)]);
            assert!(pair.log.iter().any(|way| way.up && way.header.kind == Kind::Cancel), "the server goes on");
            pair.rig.assert_empty();
        });
    }
}
