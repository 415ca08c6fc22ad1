//! Either side ends or dies, and comes back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use splitrpc_client::{Client, Transport};

use crate::rig::{Bus, Process, ask, noise};

/// Asks without end, until told to. Each answer is right, or an error says what became of it; a client that was told that its server is gone finds the
/// next one.
fn keep_asking(bus: &Bus, transport: Transport, seed: u64, over: &AtomicBool, right: &AtomicU64) {
    let mut client: Option<Client> = None;
    let mut count = seed << 32;
    while !over.load(Ordering::Relaxed) {
        let asks = client.get_or_insert_with(|| bus.client_again(transport));
        count += 1;
        let bytes = noise(count, [64, 4096, 300_000][count as usize % 3]);
        match ask(asks, "echo", &bytes) {
            Ok(response) => {
                assert!(response.data() == bytes, "a wrong answer");
                right.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                client = None;
            }
        }
    }
}

/// While clients ask, `disturb` ends processes and starts others. Then all serve as if nothing had been.
fn under_load(disturb: impl FnOnce(&Bus, &mut Option<Process>, &mut Option<Process>)) {
    let bus = Bus::new();
    let (card, agent) = bus.both("");
    let (mut card, mut agent) = (Some(card), Some(agent));
    let (over, right) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (seed, transport) in [(1, Transport::Tcp), (2, Transport::Tcp), (3, Transport::Udp)] {
            let (bus, over, right) = (&bus, &over, &right);
            scope.spawn(move || keep_asking(bus, transport, seed, over, right));
        }
        wait_for(&right, 50);
        // Whatever happens there, the clients end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            disturb(&bus, &mut card, &mut agent);
            wait_for(&right, 50);
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(why) = outcome {
            std::panic::resume_unwind(why);
        }
    });
    // Every slot is there: as many requests at once as there are places for are answered.
    let mut client = bus.client_again(Transport::Tcp);
    for seed in 0..100 {
        let bytes = noise(seed, 4096);
        assert!(ask(&mut client, "echo", &bytes).unwrap().data() == bytes);
    }
    assert!(card.take().unwrap().end() && agent.take().unwrap().end(), "one of them did not end well");
}

/// Waits for so many more right answers.
fn wait_for(right: &AtomicU64, more: u64) {
    let before = right.load(Ordering::Relaxed);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while right.load(Ordering::Relaxed) < before + more {
        assert!(std::time::Instant::now() < until, "nothing is answered any more");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn an_agent_that_is_killed_is_replaced_and_the_card_goes_on() {
    under_load(|bus, _, agent| {
        for _ in 0..3 {
            agent.take().unwrap().kill();
            *agent = Some(bus.agent(""));
            drop(bus.client_again(Transport::Tcp));
        }
    });
}

#[test]
fn a_card_that_is_killed_is_replaced_and_the_agent_goes_on() {
    under_load(|bus, card, _| {
        for _ in 0..3 {
            card.take().unwrap().kill();
            *card = Some(bus.card(""));
            drop(bus.client_again(Transport::Tcp));
        }
    });
}

#[test]
fn both_end_as_they_are_told_and_are_replaced() {
    under_load(|bus, card, agent| {
        assert!(agent.take().unwrap().end());
        *agent = Some(bus.agent(""));
        drop(bus.client_again(Transport::Tcp));
        assert!(card.take().unwrap().end());
        *card = Some(bus.card(""));
        drop(bus.client_again(Transport::Tcp));
    });
}
