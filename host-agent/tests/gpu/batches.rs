use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use host_agent::config::Builtin;
use splitrpc_client::{Event, Input};
use splitrpc_wire::{DType, Status};

use crate::common::{Repository, answers, client, config, connection, has_gpu, next, start, submit_sum, sum};

const PATIENT: &str = "dynamic_batching { max_queue_delay_microseconds: 200000 }";

#[test]
fn a_batch_of_requests_that_come_together_takes_no_further_copy() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new().with_add("add", 256, 8, "graph", PATIENT);
    let server = start(config(Some(&repository), &[]));
    let mut connection = connection(&server);
    let model = connection.catalogue().model("add").unwrap().handle;
    for round in 0..20 {
        let sums: Vec<_> = (0..8).map(|seed| sum(round * 8 + seed, 256)).collect();
        let ids: Vec<_> = sums.iter().map(|sum| submit_sum(&mut connection, model, sum)).collect();
        for (id, data, path) in answers(&mut connection, 8) {
            let place = ids.iter().position(|known| *known == id).unwrap();
            assert!(data == sums[place][2], "round {round}, request {place}");
            assert_eq!((path.batch_rows, path.device_compactions), (8, 0));
        }
    }
    assert!(server.stop());
}

#[test]
fn a_batch_whose_rows_lie_apart_is_put_together_once() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new().with_add("add", 256, 8, "graph", PATIENT);
    let server = start(config(Some(&repository), &[]));
    let mut connection = connection(&server);
    let model = connection.catalogue().model("add").unwrap().handle;
    for round in 0..5 {
        let sums: Vec<_> = (0..7).map(|seed| sum(round * 8 + seed, 256)).collect();
        let ids: Vec<_> = sums.iter().map(|sum| submit_sum(&mut connection, model, sum)).collect();
        // Their slots are in between those of the others.
        for gone in [2, 4] {
            assert!(connection.cancel(ids[gone]));
        }
        for (id, data, path) in answers(&mut connection, 5) {
            let place = ids.iter().position(|known| *known == id).unwrap();
            assert!(data == sums[place][2], "round {round}, request {place}");
            assert_eq!((path.batch_rows, path.device_compactions), (5, 1));
        }
    }
    assert!(server.stop());
}

#[test]
fn many_at_once_are_all_answered_right() {
    if !has_gpu() {
        return;
    }
    let more = "dynamic_batching { max_queue_delay_microseconds: 0 priority_levels: 3 default_priority_level: 2 }\n\
                instance_group [ { count: 2 kind: KIND_GPU } ]";
    // Rows that are not aligned, and too large to be copied with the launch when there are several.
    let repository = Repository::new()
        .with_add("odd", 257, 8, "graph", more)
        .with_add("large", 200_001, 4, "kernel", more)
        .with_aligned_add("single", 25, 1, "graph", 256, more)
        .with_aligned_add("aligned", 25, 4, "kernel", 4096, more);
    let mut config = config(Some(&repository), &[]);
    // A client may have as many requests at once as there are slots left.
    (config.limits.slots_per_model, config.limits.class_bytes) = (64, 64 << 20);
    let server = start(config);
    let mut connection = connection(&server);
    for (name, n) in [("odd", 257), ("large", 200_001), ("single", 25), ("aligned", 25)] {
        let model = connection.catalogue().model(name).unwrap().handle;
        let sums: Vec<_> = (0..8).map(|seed| sum(seed, n)).collect();
        let mut open = std::collections::HashMap::new();
        let (mut sent, mut got) = (0, 0);
        while got < 200 {
            while sent < 200 && open.len() < 12 {
                open.insert(submit_sum(&mut connection, model, &sums[sent % 8]), sent % 8);
                sent += 1;
            }
            for (id, data, _) in answers(&mut connection, 1) {
                let place = open.remove(&id).unwrap();
                assert!(data == sums[place][2], "{name}, answer {got}");
                got += 1;
            }
        }
    }
    assert!(server.stop());
}

#[test]
fn what_is_copied_while_it_arrives_is_whole_whoever_had_the_slots_before() {
    if !has_gpu() {
        return;
    }
    let n = 500_000;
    let repository = Repository::new().with_add("add", n, 1, "kernel", "");
    let mut config = config(Some(&repository), &[Builtin::NullGpu]);
    // As few as there can be, so that they are used again at once.
    (config.limits.slots_per_model, config.limits.class_bytes) = (2, 1 << 20);
    let server = start(config);
    let mut lasting = connection(&server);
    let model = lasting.catalogue().model("add").unwrap().handle;
    let sums: Vec<_> = (0..5).map(|seed| sum(seed, n)).collect();
    let ends = AtomicBool::new(false);
    let mut whole = |round: usize| {
        // Its first bytes leave at once, and the others never do.
        let mut broken = connection(&server);
        submit_sum(&mut broken, model, &sums[round % 5]);
        drop(broken);
        let sum = &sums[(round + 1) % 5];
        submit_sum(&mut lasting, model, sum);
        loop {
            match next(&mut lasting) {
                Event::Response(response) => {
                    assert!(response.data() == sum[2], "round {round}");
                    break;
                }
                // It is not known yet that the others are gone.
                Event::Failed(failure) => {
                    assert_eq!(failure.status, Status::Busy, "{failure:?}");
                    submit_sum(&mut lasting, model, sum);
                }
                event => panic!("{event:?}"),
            }
        }
    };
    (0..60).for_each(&mut whole);
    // Beside a porter, which is there as long as requests to null-gpu follow each other closely.
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = client(&server);
            while !ends.load(Ordering::Relaxed) {
                for size in [64_u32, 600_000] {
                    let (dims, bytes) = ([size], vec![1; size as usize]);
                    let input = [Input::new("INPUT", DType::Uint8, &dims, &bytes[..])];
                    let response = client.infer("null-gpu", &input).unwrap();
                    client.recycle(response);
                }
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| (60..160).for_each(&mut whole)));
        ends.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    assert!(server.stop());
}
