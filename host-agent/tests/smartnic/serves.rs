//! How a card rouses an agent that sleeps. What the way by a card has in common with all others is in `tests/conformance`.

use std::net::UdpSocket;
use std::time::Duration;

use splitrpc_client::{CallOptions, Client, ClientOptions, Input, Tensor, Transport};
use splitrpc_ring::{Completion, Consumer, Immediate, Run, Submission, Tells};
use splitrpc_wire::{DType, Status};

use crate::peers::{Host, peer, played, sound, until};
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

#[test]
fn a_card_knocks_for_what_a_sleeper_wants() {
    let bus = Bus::new();
    let card = bus.card("");
    let host = peer(&bus, "serves::be_a_light_sleeper", "host");
    host.says("serves");
    let mut client = Client::connect(&bus.listens.to_string(), ClientOptions::default()).unwrap();
    let error = client.run(0, &[Tensor::new(0, DType::Uint8, &[64], &[1; 64][..]).unwrap()], &CallOptions::default());
    assert!(error.is_err(), "what the host answers with makes no sense");
    host.says("all was heard");
    drop(host);
    assert!(card.end(), "the card did not end well");
}

/// A host that sleeps whenever it can, and hears who knocks.
#[test]
fn be_a_light_sleeper() {
    let Some(device) = played(true) else { return };
    let door = UdpSocket::bind("127.0.0.1:0").unwrap();
    door.set_nonblocking(true).unwrap();
    let mut shown = sound(&device);
    (shown.setup.doorbell, shown.setup.knock) = (Some(door.local_addr().unwrap()), 7);
    let mut host = Host::new(&device);
    host.hello();
    host.set_up(&shown.setup.to_json());
    let mut producer = host.served();
    let mut submissions = Consumer::new(shown.lines.clone()).unwrap();
    let mut knocks = 0;
    let mut tell = |host: &Host, taken: u64, tells: Tells| {
        producer.send(&Immediate { taken: taken as u32, tells }.to_bytes()).unwrap();
        until("it is never told", || {
            host.engine.progress();
            producer.in_flight() == 0
        });
    };
    let mut hear = |host: &Host| {
        host.engine.progress();
        while door.recv(&mut [0; 9]).is_ok() {
            knocks += 1;
        }
        knocks
    };

    // It is knocked for a request, again and again until it shows that it is awake.
    tell(&host, 0, Tells::Sleeps { wants_slots: false });
    println!("serves");
    let mut taken = None;
    until("nobody asks", || {
        let knocked = hear(&host) > 0;
        taken = taken.or_else(|| submissions.pop());
        knocked && taken.is_some()
    });
    let Ok(Submission::Submit { request, .. }) = Submission::from_words(&taken.unwrap()) else { panic!("{taken:?}") };

    // It is not, once it has, nor for the slots of its answer, though it says that it has not taken that line.
    tell(&host, 1, Tells::Awake);
    std::thread::sleep(Duration::from_millis(20));
    let before = hear(&host);
    host.client.notices(|_| {});
    let output = Run { pool: 1, rows: 1, first: 0, generation: 1 };
    tell(&host, 1, Tells::Completion(Completion { request, status: Status::Ok, output }));
    tell(&host, 1, Tells::Sleeps { wants_slots: false });
    let mut released = None;
    until("the slots do not come back", || {
        hear(&host);
        released = released.or_else(|| submissions.pop());
        released.is_some()
    });
    let released = Submission::from_words(&released.unwrap());
    assert!(matches!(released, Ok(Submission::Release { output: back }) if back == output), "{released:?}");
    std::thread::sleep(Duration::from_millis(20));
    // The card's beat may be due just then, and is knocked for.
    assert!(hear(&host) == before || host.client.has_notices(), "it was knocked for what it does not want");

    // But where it wants them.
    tell(&host, 1, Tells::Awake);
    let before = hear(&host);
    tell(&host, 1, Tells::Sleeps { wants_slots: true });
    until("it is not knocked for what it wants", || hear(&host) > before);
    println!("all was heard");
    std::thread::sleep(Duration::from_secs(60));
}
