//! Requests by way of the card.

use std::time::Duration;

use splitrpc_client::{CallOptions, Input, Transport};
use splitrpc_wire::DType;
use splitrpc_wire::path::{Link, Memory, Mover, Port};

use crate::rig::{Bus, ask, noise, null_answer};

#[test]
fn requests_of_all_sizes_are_answered_over_both_transports() {
    let bus = Bus::new();
    let _both = bus.both("");
    for (transport, port) in [(Transport::Tcp, Port::Tcp), (Transport::Udp, Port::Udp)] {
        let mut client = bus.client(transport);
        for size in [0, 1, 64, 4096, 4097, 65_536, 602_112, 5 << 20] {
            for seed in 0..3 {
                let bytes = noise(seed, size);
                let response = ask(&mut client, "echo", &bytes).unwrap();
                assert!(response.data() == bytes, "{size} bytes over {transport:?}");
                let path = response.path().unwrap();
                let way = (path.port, path.mover, path.memory, path.link, path.emulated);
                assert_eq!(way, (port, Mover::DocaDma, Memory::Host, Link::Doca, true));
                client.recycle(response);
                let response = ask(&mut client, "null", &bytes).unwrap();
                assert!(response.data() == null_answer(), "{size} bytes over {transport:?}");
                client.recycle(response);
            }
        }
    }
}

#[test]
fn failures_say_why() {
    let bus = Bus::new();
    let _both = bus.both("");
    let mut client = bus.client(Transport::Tcp);
    // Found out by the client, by the card, and by the agent.
    let error = ask(&mut client, "nobody", &[1]).unwrap_err().to_string();
    assert!(error.contains("nobody"), "{error}");
    let image = [Input::new("IMAGE", DType::Uint8, &[4], &[0; 4][..])];
    assert!(client.infer("digits", &image).is_err());
    let response = ask(&mut client, "null", &[7; 100]).unwrap();
    assert_eq!(response.data(), null_answer());
}

#[test]
fn an_idle_agent_sleeps_until_its_card_knocks() {
    let bus = Bus::new();
    let _both = bus.both("");
    let mut client = bus.client(Transport::Tcp);
    let mut asked = 0;
    let mut ask_some = |count| {
        for _ in 0..count {
            ask(&mut client, "null", &[1; 64]).unwrap();
            // The agent falls asleep meanwhile.
            std::thread::sleep(Duration::from_millis(5));
            asked += 1;
        }
        asked
    };
    ask_some(20);
    std::thread::sleep(Duration::from_millis(300));
    let before = bus.counter("splitrpc_wakeups_total");
    std::thread::sleep(Duration::from_secs(3));
    // The card shows each second that it lives, and the agent answers.
    let idle = bus.counter("splitrpc_wakeups_total") - before;
    assert!(idle <= 12, "an idle agent woke up {idle} times");
    ask_some(20);
    std::thread::sleep(Duration::from_millis(300));
    let busy = bus.counter("splitrpc_wakeups_total") - before - idle;
    assert!(busy >= 10, "{busy} wake-ups for twenty requests, so nothing was slept through");
}

#[test]
fn whoever_comes_after_a_pause_is_knocked_for() {
    let bus = Bus::new();
    let _both = bus.both("");
    let mut client = bus.client(Transport::Tcp);
    // Without a knock the agent looks every two seconds.
    let options = CallOptions { deadline: Some(Duration::from_secs(1)), ..CallOptions::default() };
    for _ in 0..3 {
        // The card shows that it lives meanwhile, and the agent falls asleep again.
        std::thread::sleep(Duration::from_millis(1_300));
        let response = client.infer_with("null", &[Input::new("INPUT", DType::Uint8, &[64], &[1; 64][..])], &options);
        assert_eq!(response.unwrap().data(), null_answer());
    }
}
