//! What goes wrong on the bus: copies that fail, come late, or in pieces, queues that are full, connections that end. A thousand schedules of it, each of
//! which its seed repeats.

use splitrpc_client::{Client, Transport};

use crate::rig::{Bus, Process, ask, noise};

/// Schedules of each kind.
const SEEDS: u64 = 250;
/// More than there are slots for, so that one that is lost now and then is missed.
const ASKED: u64 = 40;

/// Both sides under a schedule, and how many of the requests were answered rightly. The others were told why not.
fn answered(faults: &str, seed: u64) -> u64 {
    let bus = Bus::new();
    let _both: (Process, Process) = bus.both(&format!("seed={seed},{faults}"));
    let transport = if seed.is_multiple_of(3) { Transport::Udp } else { Transport::Tcp };
    let mut client: Option<Client> = None;
    let mut right = 0;
    for round in 0..ASKED {
        let bytes = noise(seed * 1000 + round, [64, 0, 5000, 150_000][(seed + round) as usize % 4]);
        let asks = client.get_or_insert_with(|| bus.client_again(transport));
        match ask(asks, "echo", &bytes) {
            Ok(response) => {
                assert!(response.data() == bytes, "a wrong answer: {faults}, seed {seed}, round {round}");
                right += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                client = None;
            }
        }
    }
    right
}

#[test]
fn copies_that_are_late_torn_and_out_of_order_change_no_answer() {
    for seed in 0..SEEDS {
        let right = answered("delay=200,reorder=500,tear=300,again=100", seed);
        assert_eq!(right, ASKED, "seed {seed}");
    }
}

#[test]
fn copies_that_fail_are_tried_again_or_told() {
    let right: u64 = (0..SEEDS).map(|seed| answered("fail=50,reorder=200", seed)).sum();
    // Each is tried four times.
    assert!(right * 100 >= SEEDS * ASKED * 98, "{right} of {}", SEEDS * ASKED);
}

#[test]
fn a_queue_that_ends_with_a_copy_is_replaced() {
    let right: u64 = (0..SEEDS).map(|seed| answered("fail=30,stop=500,tear=100", seed)).sum();
    assert!(right * 100 >= SEEDS * ASKED * 95, "{right} of {}", SEEDS * ASKED);
}

#[test]
fn who_loses_the_connection_finds_the_other_side_again() {
    let right: u64 = (0..SEEDS).map(|seed| answered("disconnect=3,delay=100", seed)).sum();
    assert!(right * 2 >= SEEDS * ASKED, "{right} of {}", SEEDS * ASKED);
}
