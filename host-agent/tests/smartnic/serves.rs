//! How a card rouses an agent that sleeps. What the way by a card has in common with all others is in `tests/conformance`.

use std::time::Duration;

use splitrpc_client::{CallOptions, Input, Transport};
use splitrpc_wire::DType;

use crate::rig::{Bus, ask, null_answer};

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
