//! Launches that wait on the GPU for their requests.

use std::sync::Arc;
use std::time::Duration;

use host_agent::config::Builtin;
use host_agent::serve::{Server, build};
use splitrpc_client::{Client, Input};
use splitrpc_telemetry::{Event, Shard};
use splitrpc_wire::DType;

use crate::common::{Repository, answers, client, config, connection, has_gpu, submit_sum, sum};

/// Serves models of which some are pre-launched.
fn start(repository: &Repository, pre_launched: &[&str]) -> (Server, Arc<Shard>) {
    let mut config = config(Some(repository), &[Builtin::NullGpu]);
    config.gpu.pre_launched = pre_launched.iter().map(|name| (*name).to_owned()).collect();
    let built = build(config).unwrap();
    let telemetry = Arc::clone(&built.telemetry[0]);
    (Server::start(built).unwrap(), telemetry)
}

/// How many were of use, and how many of none.
fn counted(telemetry: &Shard) -> (u64, u64) {
    (telemetry.event(Event::PreLaunchesUsed), telemetry.event(Event::PreLaunchesWasted))
}

/// A sum of so many rows of 256 numbers, or without rows for 0.
fn ask(client: &mut Client, model: &str, rows: u32, seed: u32) {
    let [a, b, expected] = sum(seed, 256 * rows.max(1));
    let dims = if rows == 0 { vec![256] } else { vec![rows, 256] };
    let inputs = [Input::new("A", DType::Fp32, &dims, &a[..]), Input::new("B", DType::Fp32, &dims, &b[..])];
    let response = client.infer(model, &inputs).unwrap();
    assert!(response.data() == expected, "{model}, {rows} rows, {seed}");
    client.recycle(response);
}

/// Long enough for a launch to be submitted ahead.
fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

#[test]
fn requests_that_follow_each_other_find_their_launch_waiting() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new().with_add("graph", 256, 0, "graph", "").with_add("kernel", 256, 0, "kernel", "");
    let (server, telemetry) = start(&repository, &["graph", "kernel", "null-gpu"]);
    let mut client = client(&server);
    for model in ["graph", "kernel"] {
        let before = counted(&telemetry);
        for seed in 0..200 {
            ask(&mut client, model, 0, seed);
            pause();
        }
        let after = counted(&telemetry);
        // All but the first ones, and those that are timed.
        assert!(after.0 - before.0 > 150, "{model}: {before:?}, {after:?}");
    }
    let expected: Vec<u8> = (0..4_000_u32).map(|i| ((i * 7 + 13) % 251) as u8).collect();
    let before = counted(&telemetry);
    for size in [64_u32, 602_112] {
        for _ in 0..100 {
            let input = vec![7; size as usize];
            let response = client.infer("null-gpu", &[Input::new("INPUT", DType::Uint8, &[size], &input[..])]).unwrap();
            assert_eq!(response.data(), expected);
            client.recycle(response);
            pause();
        }
    }
    let after = counted(&telemetry);
    assert!(after.0 - before.0 > 150, "null-gpu: {before:?}, {after:?}");
    assert!(server.stop());
}

#[test]
fn what_comes_otherwise_than_foreseen_is_answered_right() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new()
        .with_add("graph", 256, 8, "graph", "")
        .with_add("pair", 256, 8, "graph", "instance_group [ { count: 2 kind: KIND_GPU } ]")
        .with_add("large", 200_000, 4, "kernel", "");
    let (server, telemetry) = start(&repository, &["graph", "pair", "large"]);
    let mut client = client(&server);
    for seed in 0..100 {
        for rows in [1, 1, 3, 1, 8, 1, 2] {
            ask(&mut client, "graph", rows, seed);
            pause();
        }
    }
    let (used, wasted) = counted(&telemetry);
    assert!(used > 50 && wasted > 50, "{used}, {wasted}");
    // Some are cancelled, and some come many at once.
    let mut connection = connection(&server);
    for (name, n, rounds) in [("graph", 256, 60), ("pair", 256, 60), ("large", 200_000, 20)] {
        let model = connection.catalogue().model(name).unwrap().handle;
        for round in 0..rounds {
            let sums: Vec<_> = (0..1 + round % 5).map(|seed| sum(round * 7 + seed, n)).collect();
            let ids: Vec<_> = sums.iter().map(|sum| submit_sum(&mut connection, model, sum)).collect();
            let mut left = ids.len();
            if round % 3 == 2 && connection.cancel(ids[0]) {
                left -= 1;
            }
            for (id, data, _) in answers(&mut connection, left) {
                let place = ids.iter().position(|known| *known == id).unwrap();
                assert!(data == sums[place][2], "{name}, round {round}, request {place}");
            }
            if round % 4 == 0 {
                pause();
            }
        }
    }
    assert!(server.stop());
}

#[test]
fn what_waits_holds_up_no_other_model_and_waits_not_for_ever() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new().with_add("graph", 256, 0, "graph", "").with_add("other", 256, 0, "graph", "");
    let (server, telemetry) = start(&repository, &["graph"]);
    let mut client = client(&server);
    for seed in 0..10 {
        ask(&mut client, "graph", 0, seed);
        pause();
    }
    let (used, wasted) = counted(&telemetry);
    assert!(used > 0, "{used}, {wasted}");
    for seed in 0..1_000 {
        ask(&mut client, "other", 0, seed);
    }
    ask(&mut client, "graph", 0, 11);
    assert_eq!(counted(&telemetry), (used + 1, wasted), "it waited all the time");
    std::thread::sleep(Duration::from_millis(1_500));
    ask(&mut client, "graph", 0, 12);
    assert_eq!(counted(&telemetry), (used + 1, wasted + 1), "it waited for too long");
    pause();
    // Something waits while the server ends.
    assert!(server.stop());
}

#[test]
fn where_a_stream_might_have_to_wait_for_another_nothing_is_launched_ahead() {
    if !has_gpu() {
        return;
    }
    let repository =
        Repository::new().with_add("graph", 256, 0, "graph", "instance_group [ { count: 6 kind: KIND_GPU } ]");
    let (server, telemetry) = start(&repository, &["graph", "no such model"]);
    let mut client = client(&server);
    for seed in 0..20 {
        ask(&mut client, "graph", 0, seed);
        pause();
    }
    assert_eq!(counted(&telemetry), (0, 0));
    assert!(server.stop());
}
