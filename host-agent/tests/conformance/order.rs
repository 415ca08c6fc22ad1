//! Many requests at once: who waits for whom.

use std::collections::HashMap;
use std::time::Duration;

use splitrpc_client::{CallOptions, Event, Input};
use splitrpc_wire::{DType, Status};

use crate::arm::{ROWS, SLOTS, Up, answer, ask_echo, ask_patient, next};
use crate::rig::{noise, null_answer};

pub(crate) fn who_asks_for_more_than_there_are_slots_is_served_in_the_end(up: Up) {
    // One who asks without waiting: each request is answered rightly, or refused because there is no slot, and may be asked again.
    let mut client = up.connect();
    let mut asked: HashMap<_, _> = HashMap::new();
    let mut left: Vec<Vec<u8>> = (0..10 * SLOTS as u64).map(|seed| noise(seed, 100 + 300 * seed as usize)).collect();
    let mut right = 0;
    while !left.is_empty() || !asked.is_empty() {
        while asked.len() < 4 * SLOTS
            && let Some(bytes) = left.pop()
        {
            asked.insert(ask_echo(&mut client, &bytes), bytes);
        }
        match next(&mut client) {
            Event::Response(response) => {
                let bytes = asked.remove(&response.id()).unwrap();
                assert!(response.data() == bytes, "{} bytes", bytes.len());
                up.check_way(&response, response.data().len());
                right += 1;
                client.recycle(response);
            }
            Event::Failed(failure) => {
                assert!(matches!(failure.status, Status::Busy | Status::Quota), "{failure}");
                left.push(asked.remove(&failure.id.unwrap()).unwrap());
            }
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(right, 10 * SLOTS);
    // Several who wait as long as it takes, of whose requests only a few find a place at a time.
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let mut client = up.bus.client(up.transport());
            scope.spawn(move || {
                let options = CallOptions { retry_busy_for: Some(Duration::from_secs(60)), ..CallOptions::default() };
                for round in 0..15 {
                    let bytes = noise(100 * seed + round, [64, 5000, 150_000, 1_200_000][(seed + round) as usize % 4]);
                    let dims = [bytes.len() as u32];
                    let input = [Input::new("INPUT", DType::Uint8, &dims, &bytes[..])];
                    let response = client.infer_with("echo", &input, &options).unwrap();
                    assert!(response.data() == bytes, "seed {seed}, round {round}");
                    let response = client.infer_with("null", &input, &options).unwrap();
                    assert!(response.data() == null_answer(), "seed {seed}, round {round}");
                }
            });
        }
    });
    drop(client);
    up.end();
}

pub(crate) fn answers_come_in_the_order_in_which_they_are_there(up: Up) {
    let mut client = up.connect();
    for round in 0..10 {
        let mut patient: Vec<_> = (1..ROWS).map(|_| ask_patient(&mut client, 1, |_| {})).collect();
        // Who was asked later is answered before.
        for seed in 0..5 {
            let bytes = noise(10 * round + seed, 70_000);
            let id = ask_echo(&mut client, &bytes);
            let response = answer(&mut client);
            assert!(response.id() == id && response.data() == bytes);
        }
        patient.push(ask_patient(&mut client, 1, |_| {}));
        for _ in 0..ROWS {
            let response = answer(&mut client);
            assert_eq!(response.path().unwrap().batch_rows, ROWS as u16);
            patient.retain(|id| *id != response.id());
        }
        assert!(patient.is_empty());
    }
    drop(client);
    up.end();
}

pub(crate) fn who_is_urgent_goes_first(up: Up) {
    let mut client = up.connect();
    for _ in 0..10 {
        // Both do not fit one batch, so the first in the order of service goes, and the other one waits for mates.
        let usual = ask_patient(&mut client, ROWS - 1, |_| {});
        up.wait_until_queued(1, &mut client);
        let urgent = ask_patient(&mut client, 2, |request| request.priority = 1);
        let response = answer(&mut client);
        assert_eq!((response.id(), response.path().unwrap().batch_rows), (urgent, 2));
        let last = ask_patient(&mut client, 1, |_| {});
        let mut both = [answer(&mut client).id(), answer(&mut client).id()];
        both.sort_unstable_by_key(|id| id.0);
        assert_eq!(both, [usual, last]);
    }
    drop(client);
    up.end();
}

pub(crate) fn what_is_under_way_at_the_end_is_answered(up: Up) {
    let mut client = up.connect();
    for _ in 1..ROWS {
        ask_patient(&mut client, 1, |_| {});
    }
    up.wait_until_queued(u64::from(ROWS) - 1, &mut client);
    let stopped = std::thread::spawn(move || up.stop());
    for _ in 1..ROWS {
        // An error is the end of the connection, which must not come before the answers.
        assert_eq!(answer(&mut client).path().unwrap().batch_rows, ROWS as u16 - 1);
    }
    stopped.join().unwrap();
}
