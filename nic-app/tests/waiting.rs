//! Whom a data thread looks at, and what it has done before it falls asleep.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nic_app::{UdpPortConfig, WaitMode};
use splitrpc_engine::{MS, ServerConfig};
use splitrpc_telemetry::{Event, Writer, render};
use support::client::{Client, check, noise};
use support::datagrams::Datagrams;
use support::{ECHO, NULL, Server, Thread, config, thread};

/// Polls in vain after which no connection is tried for its own sake any more.
const COLD: usize = 1000;

fn metrics(server: &Server) -> String {
    let mut out = Writer::new();
    render(&mut out, &[], &[&server.telemetry]);
    out.finish()
}

fn connect(thread: &mut Thread, address: SocketAddr) -> Client {
    let client = std::thread::spawn(move || Client::connect(address));
    while !client.is_finished() {
        thread.poll();
    }
    client.join().unwrap()
}

#[test]
fn who_comes_back_is_seen_soon_beside_a_busy_client_whose_every_round_takes_long() {
    let (mut thread, ..) = thread(&config(), WaitMode::Spin, &UdpPortConfig::default());
    let address = thread.tcp().unwrap().local_addr();
    let mut seldom = connect(&mut thread, address);
    let mut busy = connect(&mut thread, address);
    (0..COLD).for_each(|_| _ = thread.poll());
    busy.send(NULL, &[&noise(1, 100)]);
    // From here on it is tried each round, and the poller has just been asked.
    while thread.host().answered == 0 {
        thread.poll();
    }
    let id = seldom.send(ECHO, &[&noise(2, 100)]);
    let mut rounds = 0;
    while thread.host().answered < 2 {
        rounds += 1;
        assert!(rounds < 10, "nobody looked");
        std::thread::sleep(Duration::from_millis(1));
        thread.poll();
    }
    let (answered, answer) = seldom.answer();
    assert_eq!(answered, id);
    check(ECHO, &[&noise(2, 100)], answer);
}

#[test]
fn where_one_has_come_back_others_are_looked_for_too() {
    let (mut thread, ..) = thread(&config(), WaitMode::Spin, &UdpPortConfig::default());
    let address = thread.tcp().unwrap().local_addr();
    let mut clients = [(); 3].map(|()| connect(&mut thread, address));
    (0..COLD).for_each(|_| _ = thread.poll());
    let mut answered = 0;
    let rounds = clients.each_mut().map(|client| {
        client.send(NULL, &[&noise(1, 100)]);
        answered += 1;
        let rounds = (0..COLD).take_while(|_| {
            thread.poll();
            thread.host().answered < answered
        });
        let rounds = rounds.count();
        if answered == 1 {
            // It alone is tried, and the poller has nothing to tell for a while.
            (0..100).for_each(|_| _ = thread.poll());
        }
        rounds
    });
    assert!(rounds[1] < COLD && rounds[2] < 10, "seen after {rounds:?} rounds");
}

#[test]
fn who_brings_much_is_looked_away_from_soon() {
    let (mut thread, ..) = thread(&config(), WaitMode::Block, &UdpPortConfig::default());
    let address = thread.tcp().unwrap().local_addr();
    let mut client = connect(&mut thread, address);
    let sending = std::thread::spawn(move || _ = client.send(NULL, &[&noise(1, 15_000_000)]));
    let (mut before, mut most) = (0, 0);
    while thread.host().answered == 0 {
        // Time enough for more to lie ready than is wanted at once.
        std::thread::sleep(Duration::from_millis(1));
        thread.poll();
        let read = thread.tcp().unwrap().stats().bytes_in;
        (before, most) = (read, most.max(read - before));
    }
    assert!(most < 256 << 10, "{most} bytes in one round");
    sending.join().unwrap();
}

#[test]
fn what_the_last_look_before_a_sleep_brings_is_published() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Client::connect(server.tcp);
    client.ask(ECHO, &[&noise(1, 5000)]);
    // By now all of that has been published, and what comes next will be at once.
    std::thread::sleep(Duration::from_millis(300));
    let before = server.telemetry.event(Event::BytesSent);
    server.hold.close_for_polls(1);
    // The answer lies in the request's own slots, so nothing is to be done for it afterwards.
    client.ask(ECHO, &[&noise(2, 5000)]);
    let until = Instant::now() + Duration::from_secs(10);
    while server.telemetry.event(Event::BytesSent) < before + 5000 {
        assert!(Instant::now() < until, "the answer was never counted");
        std::thread::sleep(Duration::from_millis(1));
    }
    server.stop();
}

#[test]
fn what_time_alone_ends_is_published() {
    let server = Server::start(&ServerConfig { keep_reply: 300 * MS, ..config() }, WaitMode::Block);
    let mut client = Datagrams::connect(server.udp, 1472);
    let request = client.request(ECHO, &noise(1, 5000));
    // The rest never comes: the request fails, and what is kept of it is forgotten later, of which nobody is told.
    client.send(&request[..1]);
    let until = Instant::now() + Duration::from_secs(10);
    for (failed, in_flight) in [(0, 1), (1, 0)] {
        let told = format!("\nsplitrpc_requests_in_flight {in_flight}\n");
        while server.telemetry.event(Event::RequestsRefused) < failed || !metrics(&server).contains(&told) {
            assert!(Instant::now() < until, "it is never told that {in_flight} are in flight");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    server.stop();
}

#[test]
fn a_sleep_is_planned_by_the_time_it_begins() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Client::connect(server.tcp);
    let takes = Duration::from_millis(20);
    server.hold.take_long(takes);
    client.ask(NULL, &[&noise(1, 100)]);
    // Before it sees the second one it falls asleep.
    client.ask(NULL, &[&noise(2, 100)]);
    let thread = server.stop();
    let (round, planned) = thread.host().planned.get();
    let late = planned.since(round);
    assert!(late >= takes.as_nanos() as u64, "planned for {late} ns after the round began, which took longer");
}
