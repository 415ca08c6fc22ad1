//! What goes wrong on the bus: copies that fail, come late, or in pieces, queues that are full.

use splitrpc_client::Transport;

use crate::rig::{Bus, ask, noise};

#[test]
fn copies_that_are_late_torn_and_out_of_order_change_no_answer() {
    for seed in 1..=4 {
        let bus = Bus::new();
        let _both = bus.both(&format!("seed={seed},delay=300,reorder=500,torn=300,again=200"));
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut client = bus.client(transport);
            for round in 0..60 {
                let bytes = noise(seed * 1000 + round, [0, 64, 5000, 300_000][round as usize % 4]);
                let response = ask(&mut client, "echo", &bytes).unwrap();
                assert!(response.data() == bytes, "seed {seed}, round {round}");
            }
        }
    }
}

#[test]
fn copies_that_fail_are_tried_again_or_told() {
    for seed in 1..=4 {
        let bus = Bus::new();
        let _both = bus.both(&format!("seed={seed},fail=50"));
        let mut client = bus.client(Transport::Tcp);
        let mut right = 0;
        for round in 0..100 {
            let bytes = noise(seed * 1000 + round, [64, 5000, 300_000][round as usize % 3]);
            match ask(&mut client, "echo", &bytes) {
                Ok(response) => {
                    assert!(response.data() == bytes, "seed {seed}, round {round}");
                    right += 1;
                }
                Err(_) => client = bus.client_again(Transport::Tcp),
            }
        }
        assert!(right >= 90, "seed {seed}: {right} of 100 were answered, although each copy is tried four times");
    }
}
