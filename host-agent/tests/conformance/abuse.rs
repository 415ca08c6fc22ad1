//! Requests that nobody waits for to the end: each scenario has more of them than there are slots, so that one which is not given back is missed.

use std::time::Duration;

use splitrpc_client::{CallOptions, Input, Transport};
use splitrpc_wire::{DType, Status};

use crate::arm::{ROWS, SLOTS, Up, answer, ask_echo, ask_patient, failure};
use crate::rig::noise;

/// The patient model's slots, and those of the largest requests, can be had.
fn all_is_there(up: &Up) {
    let mut client = up.connect();
    for _ in 0..SLOTS {
        (0..ROWS).for_each(|_| _ = ask_patient(&mut client, 1, |_| {}));
        (0..ROWS).for_each(|_| assert_eq!(answer(&mut client).path().unwrap().batch_rows, ROWS as u16));
    }
    let mut client = up.bus.client(up.transport());
    let options = CallOptions { retry_busy_for: Some(Duration::from_secs(60)), ..CallOptions::default() };
    for seed in 0..SLOTS as u64 {
        let bytes = noise(seed, 5 << 20);
        let input = [Input::new("INPUT", DType::Uint8, &[5 << 20], &bytes[..])];
        assert!(client.infer_with("echo", &input, &options).unwrap().data() == bytes);
    }
}

pub(crate) fn what_is_cancelled_gives_its_slots_back(up: Up) {
    let mut client = up.connect();
    for round in 0..4 * SLOTS {
        let id = ask_patient(&mut client, 1, |_| {});
        // Now and then it has arrived, and now and then it has not.
        if round % 2 == 0 {
            up.wait_until_queued(1, &mut client);
        }
        // Nothing is heard of it any more, least of all an answer.
        assert!(client.cancel(id) && !client.cancel(id) && client.in_flight() == 0);
        up.wait_until_queued(0, &mut client);
    }
    all_is_there(&up);
    drop(client);
    up.end();
}

pub(crate) fn what_is_late_is_told_so_and_gives_its_slots_back(up: Up) {
    let mut client = up.connect();
    for _ in 0..3 * SLOTS {
        let id = ask_patient(&mut client, 1, |request| request.deadline = Some(Duration::from_millis(20)));
        let failure = failure(&mut client);
        assert_eq!((failure.id, failure.status), (Some(id), Status::DeadlineExceeded));
        up.wait_until_queued(0, &mut client);
    }
    all_is_there(&up);
    drop(client);
    up.end();
}

pub(crate) fn clients_that_vanish_leave_nothing_behind(up: Up) {
    for round in 0..3 * SLOTS as u64 {
        let mut client = up.connect();
        // Who dies over datagrams does not say so; else those are a client's last words.
        let silent = up.transport() == Transport::Udp && round.is_multiple_of(3);
        // One that is computed, one that has arrived in part only, and one that waits, which no server gives up for a client's silence.
        ask_echo(&mut client, &noise(round, 10_000));
        if round.is_multiple_of(2) {
            ask_echo(&mut client, &noise(round, 5 << 20));
        }
        if silent {
            std::mem::forget(client);
        } else {
            ask_patient(&mut client, 1, |_| {});
        }
    }
    up.wait_for("requests of nobody are waiting", |up| up.bus.counter("splitrpc_requests_queued") == 0);
    all_is_there(&up);
    up.end();
}
