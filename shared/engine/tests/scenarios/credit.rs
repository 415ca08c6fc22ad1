//! Credit that a request or response used comes back, however the request ends.

use std::collections::HashMap;

use splitrpc_engine::{ClientConfig, MS, SEC, ServerConfig};
use splitrpc_wire::{Kind, Status};

use crate::rig::pair::{Pair, Way, Wire, client_config, pair};
use crate::rig::{Ask, config};

/// What each side takes at once.
const WINDOW: u64 = 64 << 10;

/// Something that looks random and is not.
fn dice(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Time that 20 requests of 100 kB with answers of 100 kB take: with full credit many are under way at once.
fn pace(pair: &mut Pair<'_, '_>) -> u64 {
    pair.model = Box::new(|_| (0, Ok(100_000)));
    pair.events.clear();
    let start = pair.now();
    let mut asked = 0;
    while pair.ended().0 < 20 {
        assert_eq!(pair.ended().1, []);
        while asked < 20 && pair.client.open_requests() < 4 {
            pair.ask(&Ask::bytes(100_000));
            asked += 1;
        }
        let (before, until) = (pair.ended().0, pair.now() + 2 * SEC);
        pair.run_while(until, |p| p.ended().0 == before);
        assert!(pair.ended().0 > before, "no credit is left");
    }
    pair.now().since(start)
}

/// Bytes of a request, or of a response, that are on their way at most while nothing is heard of the other side.
fn most_under_way(pair: &mut Pair<'_, '_>, up: bool) -> usize {
    let kind = if up { Kind::Request } else { Kind::Response };
    let bytes = |up| if up { 1 << 20 } else { 16 };
    pair.model = Box::new(move |_| (0, Ok(bytes(!up))));
    // The congestion window is larger than this, so only credit is in the way.
    pair.wire = Box::new(move |way| if up { true } else { way.up && way.header.kind != Kind::Request });
    pair.log.clear();
    pair.ask(&Ask::bytes(bytes(up)));
    pair.run(MS);
    // What is sent again meanwhile goes where it went before.
    let frames: HashMap<u32, usize> =
        pair.log.iter().filter(|w| w.header.kind == kind).map(|w| (w.header.offset, w.len)).collect();
    pair.wire = Box::new(|_| false);
    let until = pair.now() + 3 * SEC;
    pair.run_while(until, |p| p.client.open_requests() > 0);
    assert_eq!(pair.client.open_requests(), 0);
    pair.run(SEC);
    frames.values().sum()
}

fn wears_out(
    model: impl FnMut(u64) -> (u64, Result<u32, Status>) + 'static,
    cancels: bool,
    deadline_us: u32,
    wire: Wire,
) {
    let server = ServerConfig { receive_window: WINDOW, ..config() };
    let client = ClientConfig { receive_window: WINDOW, ..client_config() };
    pair(&server, &client, |pair| {
        let fresh = pace(pair);
        let credit = [true, false].map(|up| most_under_way(pair, up));
        let mut state = 42;
        pair.model = Box::new(model);
        pair.wire = wire;
        let mut keys = Vec::new();
        for _ in 0..2000 {
            if pair.client.open_requests() < 4 {
                // Around the given time, so that some end in the middle of the response.
                let deadline_us = deadline_us / 2 + dice(&mut state) as u32 % deadline_us.max(1);
                keys.push(pair.ask(&Ask { deadline_us, ..Ask::bytes(20_000 + dice(&mut state) as u32 % 80_000) }));
            }
            pair.run(dice(&mut state) % (MS / 2));
            if cancels && dice(&mut state).is_multiple_of(2) {
                // One of the last, which may still be open.
                let key = keys[keys.len() - 1 - dice(&mut state) as usize % keys.len().min(4)];
                pair.client.cancel(key);
            }
        }
        pair.wire = Box::new(|_| false);
        let until = pair.now() + 3 * SEC;
        pair.run_while(until, |p| p.client.open_requests() > 0);
        assert_eq!(pair.client.open_requests(), 0);
        // Where a cancellation was lost, the server needs this long to find the request stalled.
        pair.run(3 * SEC);
        assert!(!pair.ended().1.contains(&Status::ConnectionLost));
        let dropped = pair.client.stats().discarded;
        assert!((!cancels && deadline_us == 0) || dropped > 100, "only {dropped} frames came for what was given up");
        let worn = pace(pair);
        assert!(worn < 3 * fresh, "20 requests took {fresh} ns at first and {worn} ns now");
        assert_eq!([true, false].map(|up| most_under_way(pair, up)), credit, "bytes under way in each direction");
    });
}

/// So many of each thousand frames are lost.
fn lossy(per_mille: u64) -> Wire {
    let mut state = 7;
    Box::new(move |_| dice(&mut state) % 1000 < per_mille)
}

#[test]
fn when_requests_are_cancelled() {
    wears_out(|_| (MS, Ok(100_000)), true, 0, lossy(0));
}

#[test]
fn when_requests_are_cancelled_and_frames_lost() {
    wears_out(|_| (MS, Ok(100_000)), true, 0, lossy(50));
}

#[test]
fn when_models_fail() {
    wears_out(|n| (MS, if n % 3 == 0 { Ok(100_000) } else { Err(Status::ModelFailed) }), false, 0, lossy(20));
}

#[test]
fn when_deadlines_pass_in_the_middle_of_responses() {
    wears_out(|_| (MS, Ok(200_000)), false, 1_200, lossy(0));
}

#[test]
fn when_deadlines_pass_and_frames_are_lost() {
    wears_out(|_| (MS, Ok(200_000)), false, 1_200, lossy(50));
}

#[test]
fn when_deadlines_pass_and_the_server_never_hears_of_it() {
    let deaf = Box::new(|way: &Way| way.up && way.header.kind == Kind::Cancel);
    wears_out(|_| (MS, Ok(200_000)), false, 1_200, deaf);
}
