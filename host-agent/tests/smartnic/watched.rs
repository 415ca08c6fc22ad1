//! What a card tells of itself over HTTP.

use std::time::{Duration, Instant};

use splitrpc_client::Transport;

use crate::rig::{Bus, ask, noise};

/// Waits until a metric has a value that will do.
fn until(bus: &Bus, name: &str, will_do: impl Fn(u64) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let value = bus.card_counter(name);
        if will_do(value) {
            return;
        }
        assert!(Instant::now() < end, "{name} stays {value}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const WAITING: &str = "splitrpc_card_state{state=\"waiting\"}";
const SERVING: &str = "splitrpc_card_state{state=\"serving\"}";
const GONE: &str = "splitrpc_card_host_agents_lost_total{reason=\"gone\"}";

#[test]
fn a_card_tells_what_it_does_and_what_its_requests_did() {
    let bus = Bus::new();
    let _card = bus.card("");
    assert!(bus.card_says("/health/live").starts_with("HTTP/1.1 200"));
    assert!(bus.card_says("/health/ready").starts_with("HTTP/1.1 503"));
    let metrics = bus.card_says("/metrics");
    assert!(metrics.contains(&format!("\n{WAITING} 1\n")), "{metrics}");
    assert!(metrics.contains("emulated=\"true\"") && metrics.contains("representor=\""), "{metrics}");
    let agent = bus.agent("");
    until(&bus, SERVING, |now| now == 1);
    assert!(bus.card_says("/health/ready").starts_with("HTTP/1.1 200"));

    let mut client = bus.client(Transport::Tcp);
    let bytes = noise(1, 300_000);
    for _ in 0..20 {
        let response = ask(&mut client, "echo", &bytes).unwrap();
        assert!(response.data() == bytes);
        client.recycle(response);
    }
    until(&bus, "splitrpc_requests_admitted_total", |n| n == 20);
    let metrics = bus.card_says("/metrics");
    let answered = metrics.lines().find(|line| line.starts_with("splitrpc_requests_total{") && line.contains("echo"));
    let answered = answered.unwrap_or_else(|| panic!("nothing of echo in {metrics}"));
    assert!(answered.contains("mover=\"doca-dma\"") && answered.ends_with(" 20"), "{answered}");
    // Both ways, and with them manifests and the lines of the ring.
    for direction in ["to", "from"] {
        let copied = bus.card_counter(&format!("splitrpc_card_bytes_{direction}_host_total"));
        assert!(copied >= 20 * 300_000, "{copied} bytes {direction} the host");
    }
    let copies = |what| bus.card_counter(&format!("splitrpc_card_copies_{what}_total"));
    assert!(copies("completed") >= 60 && copies("completed") <= copies("submitted"));
    assert_eq!((copies("failed"), copies("retried")), (0, 0));
    // The agent sleeps when nobody asks, and the card shows each second that it lives.
    let knocks = bus.card_counter("splitrpc_card_doorbell_knocks_total");
    until(&bus, "splitrpc_card_doorbell_knocks_total", |n| n > knocks);

    agent.kill();
    until(&bus, WAITING, |now| now == 1);
    assert!(bus.card_says("/health/ready").starts_with("HTTP/1.1 503"));
    assert_eq!(bus.card_counter(GONE), 1);
    let completed = copies("completed");
    let agent = bus.agent("");
    until(&bus, SERVING, |now| now == 1);
    assert_eq!(bus.card_counter("splitrpc_card_host_agents_served_total"), 2);
    // What is the card's own goes on, and what is of requests begins anew.
    assert!(copies("completed") >= completed);
    until(&bus, "splitrpc_requests_admitted_total", |n| n == 0);
    // One that is told to end before it has heard that the card serves leaves without a word.
    let end = Instant::now() + Duration::from_secs(60);
    while bus.counter("splitrpc_ready ") == 0 {
        assert!(Instant::now() < end, "the agent never hears that the card serves");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(agent.end());
    until(&bus, WAITING, |now| now == 1);
    assert_eq!(bus.card_counter(GONE), 1);
}

#[test]
fn an_agent_whose_slots_the_card_has_no_memory_for_is_refused_and_not_served() {
    let bus = Bus::new();
    let card = bus.card_with("", Some(16));
    let _agent = bus.agent("");
    until(&bus, "splitrpc_card_host_agents_refused_total", |n| n > 0);
    assert_eq!(bus.card_counter("splitrpc_card_host_agents_served_total"), 0);
    assert!(card.end());
    // The same agent, and a card that has enough.
    let _card = bus.card_with("", Some(4096));
    until(&bus, SERVING, |now| now == 1);
    assert_eq!(bus.card_counter("splitrpc_card_host_agents_refused_total"), 0);
}

#[test]
fn copies_that_fail_are_counted() {
    let bus = Bus::new();
    let _both = bus.both("seed=7,fail=200");
    let mut client = bus.client(Transport::Tcp);
    for seed in 0..50 {
        let bytes = noise(seed, 4096);
        // One that cannot be copied however often is answered so.
        match ask(&mut client, "echo", &bytes) {
            Ok(response) => assert!(response.data() == bytes),
            Err(_) => client = bus.client_again(Transport::Tcp),
        }
    }
    let copies = |what| bus.card_counter(&format!("splitrpc_card_copies_{what}_total"));
    assert!(copies("retried") > 0);
    assert!(copies("completed") + copies("failed") <= copies("submitted"));
}
