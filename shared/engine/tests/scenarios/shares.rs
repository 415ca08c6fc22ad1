//! A few greedy clients do not take all slots of a model, whatever they do with those that they have.

use splitrpc_arena::PoolLayout;
use splitrpc_engine::{ModelPlan, Peer, SEC, Server, Time, Verdict};
use splitrpc_ring::{RequestKey, Run};
use splitrpc_wire::{DType, Header, Kind, Status};

use crate::rig::common::{ServerMemory, input};
use crate::rig::{Ask, Rig, addr, config, response, serve};

/// Large slots; there are 8 of them.
const LARGE: u16 = 2;

fn large() -> Ask {
    Ask::bytes(100_000)
}

/// The first frames of as many requests as the client is granted, and what it hears of the next.
fn grab(rig: &mut Rig<'_>, from: Peer, session: u64, next_id: &mut u64, ask: &Ask) -> (u32, Status) {
    for granted in 0.. {
        *next_id += 1;
        match rig.frame(from, ask.first(session, *next_id, 0), &ask.manifest) {
            Verdict::Place(placement) => rig.place(&placement),
            _ => {
                let sent = rig.sent();
                let error = sent.iter().find(|s| s.header.request == *next_id).unwrap();
                return (granted, error.status().status);
            }
        }
    }
    unreachable!()
}

#[test]
fn greedy_clients_leave_some_to_those_who_come_later() {
    serve(&config(), |rig| {
        let mut granted = Vec::new();
        for stream in 0..3 {
            let session = rig.open_stream(stream);
            granted.push(grab(rig, Peer::Stream(stream), session, &mut 0, &large()));
        }
        assert_eq!(granted, [4, 2, 1].map(|slots| (slots, Status::Quota)));
    });
}

#[test]
fn clients_that_are_all_greedy_at_once_get_as_much_each_and_leave_as_much() {
    serve(&config(), |rig| {
        let sessions = [0, 1, 2].map(|n| rig.open_stream(n));
        let mut granted = [0; 3];
        for round in 1..=8 {
            for (n, session) in sessions.iter().enumerate() {
                let verdict = rig.frame(Peer::Stream(n as u32), large().first(*session, round, 0), &large().manifest);
                granted[n] += u32::from(matches!(verdict, Verdict::Place(_)));
            }
        }
        assert_eq!((granted, rig.server.free_slots(LARGE)), ([2, 2, 2], 2));
    });
}

#[test]
fn a_pool_of_very_few_slots_serves_a_lone_client() {
    for slots in 1..=3 {
        let pools = [(0, PoolLayout::new(&[4096], 1, slots).unwrap())];
        let bytes = [input(DType::Uint8, &[-1])];
        let models = [
            ModelPlan { inputs: &[], max_batch: 0, priority_levels: 0, default_priority: 0, classes: &[] },
            ModelPlan { inputs: &bytes, max_batch: 0, priority_levels: 0, default_priority: 0, classes: &[0] },
        ];
        let config = config();
        let mut memory = ServerMemory::new(&config, models.len(), &pools);
        let (allocator, storage) = memory.lend(&pools);
        let server = Server::new(&config, &models, &[], &pools, allocator, storage, [7; 16], 9).unwrap();
        let mut rig = Rig { server, now: Time::from_nanos(SEC), config };
        let mut granted = Vec::new();
        for stream in 0..4 {
            let session = rig.open_stream(stream);
            granted.push(grab(&mut rig, Peer::Stream(stream), session, &mut 0, &Ask::bytes(100)));
        }
        let wanted: [&[u32]; 3] = [&[1, 0, 0, 0], &[1, 1, 0, 0], &[2, 1, 0, 0]];
        assert_eq!(granted.iter().map(|g| g.0).collect::<Vec<_>>(), wanted[slots as usize - 1], "{slots} slots");
        assert_eq!(granted[3].1, Status::Busy, "there is none for anybody");
    }
}

#[test]
fn a_large_batch_that_is_alone_is_let_in_and_a_second_one_leaves_room() {
    serve(&config(), |rig| {
        let (one, other) = (rig.open_stream(0), rig.open_stream(1));
        assert_eq!(grab(rig, Peer::Stream(0), one, &mut 0, &Ask::rows(4)), (2, Status::Quota));
        assert_eq!(grab(rig, Peer::Stream(1), other, &mut 0, &Ask::rows(1)), (4, Status::Quota));
    });
}

#[test]
fn slots_of_one_pool_do_not_count_in_another() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let mut id = 0;
        assert_eq!(grab(rig, Peer::Stream(0), session, &mut id, &large()).0, 4);
        assert_eq!(grab(rig, Peer::Stream(0), session, &mut id, &Ask::bytes(100)).0, 4, "up to its quota of 8");
    });
}

#[test]
fn first_frames_with_nothing_behind_them_hold_no_share_for_long() {
    serve(&config(), |rig| {
        let greedy: Vec<_> = (0..3).map(|n| (Peer::Datagram(addr(n)), rig.open_datagram(addr(n), 1, 0))).collect();
        for (from, session) in &greedy {
            grab(rig, *from, *session, &mut 0, &Ask::bytes(1 << 20));
        }
        let (from, session) = (Peer::Datagram(addr(9)), rig.open_datagram(addr(9), 1, 0));
        assert!(matches!(rig.request(from, session, 1, &large()), Verdict::Place(_)), "not even at first");
        rig.pass(2 * SEC);
        assert_eq!(rig.server.free_slots(LARGE), 7);
        assert_eq!(grab(rig, greedy[0].0, greedy[0].1, &mut 100, &large()).0, 4);
    });
}

/// However requests end, their slots count as long as they are taken and no longer.
#[test]
fn shares_come_back_however_requests_end() {
    type End = fn(&mut Rig<'_>, RequestKey, Run);
    let ends: [End; 4] = [
        |rig, request, _| {
            rig.answer(request, 10);
        },
        |rig, request, input| rig.complete(request, Status::Ok, input, &response(100)),
        |rig, request, _| rig.complete(request, Status::Ok, Run::NONE, &response(0)),
        |rig, request, _| rig.complete(request, Status::ModelFailed, Run::NONE, &[]),
    ];
    for (stream, cancelled) in [(true, false), (false, false), (true, true), (false, true)] {
        serve(&config(), |rig| {
            let (from, session) = match stream {
                true => (Peer::Stream(0), rig.open_stream(0)),
                false => (Peer::Datagram(addr(1)), rig.open_datagram(addr(1), 1, 1 << 20)),
            };
            let mut id = 0;
            for (round, end) in (0..12).zip(ends.iter().cycle()) {
                let held: Vec<_> = (1..=4).map(|n| rig.submit(from, session, id + n, &large())).collect();
                for n in (1..=4).filter(|_| cancelled) {
                    rig.control(from, Header { session, request: id + n, ..Header::new(Kind::Cancel) }, &[]);
                }
                rig.submissions();
                id += 4;
                assert_eq!(
                    grab(rig, from, session, &mut id, &large()),
                    (0, Status::Quota),
                    "the orchestrator reads them"
                );
                for (request, input) in held {
                    end(rig, request, input);
                }
                let tokens: Vec<_> = rig.sent().iter().filter_map(|s| s.token).collect();
                tokens.into_iter().for_each(|token| rig.server.sent(token));
                rig.pass(SEC);
                rig.submissions();
                assert_eq!(rig.server.free_slots(LARGE), 8, "round {round}");
            }
        });
    }
}

#[test]
fn a_session_that_is_over_leaves_its_successor_no_debt() {
    serve(&config(), |rig| {
        let old = rig.open_stream(0);
        let held: Vec<_> = (1..=3).map(|id| rig.submit(Peer::Stream(0), old, id, &large()).0).collect();
        rig.server.stream_closed(0);
        let new = rig.open_stream(0);
        // 5 are free.
        assert_eq!(grab(rig, Peer::Stream(0), new, &mut 0, &large()), (3, Status::Quota));
        rig.submissions();
        held.into_iter().for_each(|request| rig.complete(request, Status::Cancelled, Run::NONE, &[]));
        assert_eq!(rig.server.free_slots(LARGE), 5);
        assert_eq!(grab(rig, Peer::Stream(0), new, &mut 9, &large()), (1, Status::Quota));
    });
}
