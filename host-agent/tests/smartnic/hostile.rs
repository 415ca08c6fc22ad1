//! Peers that say and write nonsense, on either side: who meets one goes on, says what it met, and serves whoever comes next.

use std::time::{Duration, Instant};

use nic_app::setup::{Hex, Message, PROTOCOL, Setup};
use splitrpc_client::{CallOptions, Client, ClientOptions, Tensor, Transport};
use splitrpc_doca::{Access, Consumer, Dma, Inventory, Lines, Memory};
use splitrpc_ring::{CONTROL_LINES, Completion, Immediate, RequestKey, Run, Submission, Tells, seal};
use splitrpc_wire::{DType, Status};

use crate::peers::{Card, Host, LONG, peer, played, sound, until};
use crate::rig::{Bus, ask, noise};

/// All is as it should be between these.
fn serve(bus: &Bus) {
    for transport in [Transport::Tcp, Transport::Udp] {
        let mut client = bus.client_again(transport);
        for seed in 0..20 {
            let bytes = noise(seed, [64, 5000, 150_000][seed as usize % 3]);
            assert!(ask(&mut client, "echo", &bytes).unwrap().data() == bytes);
        }
    }
}

/// Numbers without end.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 29
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[test]
fn a_card_outlives_a_host_that_talks_nonsense() {
    let bus = Bus::new();
    let card = bus.card("");
    let host = peer(&bus, "hostile::be_a_bad_host", "host");
    // While that host has the card, somebody asks what it never answers, or answers with nonsense.
    host.says("serves");
    for transport in [Transport::Tcp, Transport::Udp] {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        if let Ok(mut client) = Client::connect(&bus.listens.to_string(), options) {
            let call = CallOptions { deadline: Some(Duration::from_millis(100)), ..CallOptions::default() };
            for _ in 0..5 {
                let error = client.run(0, &[Tensor::new(0, DType::Uint8, &[64], &[1; 64][..]).unwrap()], &call);
                assert!(error.is_err(), "a host that computes nothing has answered");
            }
        }
    }
    host.says("all was said");
    drop(host);
    let agent = bus.agent("");
    serve(&bus);
    assert!(agent.end() && card.end(), "one of them did not end well");
}

#[test]
fn an_agent_outlives_a_card_that_writes_nonsense() {
    let mut bus = Bus::new();
    bus.settings.push(("SPLITRPC_LOG", "warn".to_owned()));
    let agent = bus.agent("");
    let card = peer(&bus, "hostile::be_a_bad_card", "arm");
    // Each of the card's visits is told for what it was.
    agent.says("says something that makes no sense");
    agent.says("the card refuses: the versions do not match");
    agent.says("says where it listens in a way that cannot be read");
    agent.says("it said something that makes no sense here");
    card.says("all was said");
    drop(card);
    let card = bus.card("");
    serve(&bus);
    assert!(bus.counter("splitrpc_link_errors_total") > 100, "what named nothing was not counted");
    assert!(bus.counter("splitrpc_host_link_faults_total") > 0, "what was damaged was not counted");
    assert!(agent.end() && card.end(), "one of them did not end well");
}

#[test]
fn be_a_bad_host() {
    let Some(device) = played(true) else { return };

    // What is said before a hello, and in place of one.
    let other = Message::Hello { protocol: PROTOCOL + 1, version: "9.9" }.to_bytes();
    let part = Message::Part { total: 4, offset: 0, bytes: &[1] }.to_bytes();
    let beat = Message::Beat { count: 1, answer: false }.to_bytes();
    for (said, words) in [
        (&[0xff; 100][..], "makes no sense"),
        (&other[..7], "makes no sense"),
        (&part, "makes no sense"),
        (&beat, "makes no sense"),
        (&other, "the versions do not match: the host agent 9.9 speaks protocol"),
    ] {
        let mut host = Host::new(&device);
        host.send(said);
        host.expect_refusal(words);
    }
    // Parts that make no whole.
    for (total, offset, bytes) in [(u32::MAX, 0, &[1; 8][..]), (8, 4, &[1; 4]), (4, 0, &[1; 8]), (4, 0, &[])] {
        let mut host = Host::new(&device);
        host.hello();
        host.send(&Message::Part { total, offset, bytes }.to_bytes());
        host.expect_refusal("means nothing");
    }
    // Set-ups that cannot be, or that what is exported is not like.
    let shown = sound(&device);
    let good = &shown.setup;
    let changed = |change: &dyn Fn(&mut Setup)| {
        let mut setup = good.clone();
        change(&mut setup);
        setup.to_json()
    };
    for (json, words) in [
        (b"{\"arena\":".to_vec(), "cannot be read"),
        (changed(&|setup| setup.arena.bytes = 1 << 39), "arena cannot be"),
        (changed(&|setup| setup.arena = setup.ring.clone()), "arena cannot be"),
        (changed(&|setup| setup.arena.description = setup.ring.description.clone()), "not as large as it says"),
        (changed(&|setup| setup.ring.description = Hex(vec![7; 200])), "DOCA"),
        (changed(&|setup| setup.ring.description = Hex(Vec::new())), "DOCA"),
        (changed(&|setup| (setup.ring_entries, setup.ring.bytes) = (1 << 20, 1 << 30)), "not as large as it says"),
        (changed(&|setup| setup.ring_entries = 63), "ring_entries cannot be"),
        (changed(&|setup| setup.limits.requests = u32::MAX), "limits"),
        (changed(&|setup| setup.limits.requests = 1 << 20), "a card takes at most"),
        (
            changed(&|setup| (setup.limits.flight, setup.limits.datagram_sessions) = (1 << 20, 1 << 10)),
            "a card takes at most",
        ),
        (changed(&|setup| setup.pools[1].windows = 1 << 31), "arena cannot be"),
        (changed(&|setup| setup.pools[1].id = 0), "slots"),
        (changed(&|setup| setup.models[0].classes = vec![1]), "a class"),
    ] {
        let mut host = Host::new(&device);
        host.hello();
        host.set_up(&json);
        host.expect_refusal(words);
    }
    // One that the card serves, and that tells it nonsense then; in the end it is silent.
    for round in 0..3 {
        let mut host = Host::new(&device);
        let shown = sound(&device);
        host.hello();
        host.set_up(&shown.setup.to_json());
        let mut producer = host.served();
        if round == 0 {
            println!("serves");
        }
        let mut numbers = Numbers(round);
        let end = Instant::now() + Duration::from_millis(1_500);
        for _ in 0..4_000 {
            let run = Run {
                pool: numbers.below(4) as u16,
                rows: numbers.below(3) as u16,
                first: numbers.below(20) as u32,
                generation: numbers.below(3) as u32,
            };
            let request = RequestKey { index: numbers.below(40) as u32, generation: numbers.below(4) as u32 };
            let completion = Completion { request, status: Status::Internal, output: run };
            let (taken, tells) = (numbers.next() as u32, Tells::Completion(completion));
            let mut bytes = Immediate { taken, tells }.to_bytes();
            bytes[0] = numbers.below(30) as u8;
            bytes[2] = numbers.below(6) as u8;
            let len = if numbers.below(20) == 0 { numbers.below(33) as usize } else { bytes.len() };
            until("nothing more can be told", || {
                host.engine.progress();
                !producer.send(&bytes[..len]).is_err_and(|error| error.is_again()) || !producer.is_running()
            });
        }
        // Somebody asks meanwhile.
        while round == 0 && Instant::now() < end {
            host.engine.progress();
        }
        if round < 2 {
            host.send(&[0xee; 50]);
            until("it is not hung up on", || {
                host.engine.progress();
                host.client.connection().is_none()
            });
        } else {
            // The card gives it up after five seconds.
            while let Some(said) = host.hear() {
                let silent = |why: &str| why.contains("silent for five seconds");
                assert!(matches!(Message::parse(&said), Ok(Message::Bye { why }) if silent(why)), "{said:?}");
            }
        }
    }
    println!("all was said");
    std::thread::sleep(LONG);
}

#[test]
fn be_a_bad_card() {
    let Some(device) = played(false) else { return };

    let mut card = Card::new(&device);
    card.say(&[0xff; 60]);
    card.expect_parting();
    let mut card = Card::new(&device);
    card.say(&Message::Refused { why: "the versions do not match: so it says" }.to_bytes());
    card.expect_parting();
    let mut card = Card::new(&device);
    card.setup();
    card.say(&Message::Ready { json: b"[1, 2" }.to_bytes());
    card.expect_parting();

    // One that the agent serves with.
    let mut card = Card::new(&device);
    let setup = card.setup();
    let room = Memory::of_arena(&device, Lines::new("bad-room", 1).unwrap().arena(), Access::OtherWrites).unwrap();
    let mut consumer = Consumer::new(&card.engine, &card.connection, &room, 256).unwrap();
    until("nothing can be received", || {
        card.engine.progress();
        consumer.is_ready().unwrap()
    });
    card.say(&Message::Ready { json: b"{\"tcp\":null,\"udp\":null,\"emulated\":true}" }.to_bytes());
    // The agent says that it sleeps, and is there.
    until("the agent is never there", || {
        card.engine.progress();
        consumer.take().unwrap().is_some()
    });
    let ring = Memory::import(&device, &setup.ring.description.0).unwrap();
    let entries = u64::from(setup.ring_entries);
    let lines = Lines::new("bad-lines", 1).unwrap();
    let near = Memory::of_arena(&device, lines.arena(), Access::Local).unwrap();
    let mut dma = Dma::new(&card.engine, &device, 1).unwrap();
    let inventory = Inventory::new(device.library(), 2).unwrap();
    let mut numbers = Numbers(5);
    let mut write = |card: &mut Card, consumer: &mut Consumer, position: u64, words: &[u64]| {
        for (to, word) in lines.as_ref()[0].words().iter().zip(words) {
            to.store(*word, std::sync::atomic::Ordering::Relaxed);
        }
        let (at, len) = (Lines::offset(CONTROL_LINES + (position % entries) as usize), Lines::offset(1));
        let source = inventory.source(&near, 0, len).unwrap();
        let target = inventory.target(&ring, at, len).unwrap();
        dma.copy(source, target, 0).unwrap();
        until("it is never written", || {
            card.engine.progress();
            // What the agent answers is of no interest, but has to go somewhere.
            while consumer.take().unwrap().is_some() {}
            card.server.notices(|_| {});
            dma.finished().is_some_and(|finished| finished.result.is_ok())
        });
    };
    for position in 0..600 {
        let run = Run {
            pool: [0, 1, 2, 9, 40, u16::MAX][numbers.below(6) as usize],
            rows: [0, 1, 1, 2, u16::MAX][numbers.below(5) as usize],
            first: [0, 1, 7, 1 << 20, u32::MAX][numbers.below(5) as usize],
            generation: numbers.below(3) as u32,
        };
        let request = RequestKey {
            index: [0, 1, 900, 5000, u32::MAX][numbers.below(5) as usize],
            generation: numbers.below(3) as u32,
        };
        let submission = match numbers.below(4) {
            0 => Submission::Cancel { request },
            1 => Submission::Release { output: run },
            _ => Submission::Submit {
                request,
                input: run,
                model: [0, 1, 2, 3, 77, u16::MAX][numbers.below(6) as usize],
                priority: numbers.below(256) as u8,
                deadline_ns: numbers.below(2) * numbers.next(),
                payload_bytes: [0, 64, 5 << 20, u32::MAX][numbers.below(4) as usize],
                epoch: numbers.next() as u16,
                on_device: numbers.below(4) == 0,
            },
        };
        let mut words = submission.to_words();
        if numbers.below(8) == 0 {
            words[0] = numbers.next();
        }
        let sealed = seal(position, &words);
        // Now and then a line is damaged, or of another place, before it is as it should be.
        if numbers.below(10) == 0 {
            let mut torn = sealed;
            torn[3] ^= 1 << numbers.below(64);
            write(&mut card, &mut consumer, position, &torn);
            write(&mut card, &mut consumer, position, &seal(position + 1, &words));
        }
        write(&mut card, &mut consumer, position, &sealed);
        // The ring has no room for what the agent has not taken, and the agent is not roused.
        if position % (entries / 2) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // It is awake at the latest when it looks for the card's next beat.
    let end = Instant::now() + Duration::from_millis(2_500);
    while Instant::now() < end {
        card.engine.progress();
        while consumer.take().unwrap().is_some() {}
        card.server.notices(|_| {});
    }
    card.say(&[0xee; 40]);
    drop((dma, inventory, near, ring, consumer));
    card.expect_parting();
    println!("all was said");
    std::thread::sleep(LONG);
}
