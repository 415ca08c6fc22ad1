//! Whom a data thread looks at.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use nic_app::{UdpPortConfig, WaitMode};
use support::client::{Client, check, noise};
use support::{ECHO, NULL, Thread, config, thread};

/// Polls in vain after which no connection is tried for its own sake any more.
const COLD: usize = 1000;

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
