//! Many idle clients: what they cost, and that the server still answers. Alone in its file, since it raises the limit of open
//! files and counts what the process allocates.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use allocation_counter::measure;
use nic_app::{UdpPortConfig, WaitMode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use splitrpc_engine::ServerConfig;
use support::client::{Client, noise};
use support::{ECHO, Thread, assert_no_slot_lost, config, thread};

/// Clients, unless the system allows fewer descriptors.
const CLIENTS: usize = 10_000;
/// Bytes of the server, the kernel's own left out, that one may cost.
const COST: i64 = 8 << 10;

/// How many clients there can be: both ends of each connection are in this process.
fn possible() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    maximum.map_or(CLIENTS, |most| CLIENTS.min((most as usize - 200) / 2))
}

fn server(streams: usize) -> Thread {
    let limits = ServerConfig { stream_sessions: streams as u32, ..config() };
    thread(&limits, WaitMode::Spin, &UdpPortConfig::default()).0
}

#[test]
fn ten_thousand_idle_clients_cost_little_and_the_server_answers() {
    let clients = possible();
    // What each client that may come costs, whether it comes or not.
    let mut servers = Vec::new();
    let mut built = |streams| measure(|| servers.push(server(streams))).bytes_current;
    let place = (built(64 + clients) - built(64)) / clients as i64;
    let mut server = servers.swap_remove(0);
    drop(servers);

    let address = server.tcp().unwrap().local_addr();
    let phase = Arc::new(AtomicU32::new(0));
    let told = Arc::clone(&phase);
    let crowd = std::thread::spawn(move || {
        let mut honest = Client::connect(address);
        honest.ask(ECHO, &[&noise(1, 600_000)]);
        honest.ask(ECHO, &[&noise(1, 64)]);
        told.store(1, Ordering::SeqCst);
        let mut idle = Vec::with_capacity(clients);
        for seed in 0..clients {
            let mut client = Client::connect(address);
            // Small requests are what a connection remembers most of.
            client.ask(ECHO, &[&noise(seed as u32, 64)]);
            idle.push(client);
        }
        told.store(2, Ordering::SeqCst);
        for size in [64, 600_000] {
            honest.ask(ECHO, &[&noise(2, size)]);
            for client in idle.iter_mut().step_by(1 + clients / 10) {
                client.ask(ECHO, &[&noise(3, size)]);
            }
            Client::connect(address).ask(ECHO, &[&noise(4, size)]);
        }
        told.store(3, Ordering::SeqCst);
        (honest, idle)
    });
    // A thread that has panicked raises nothing any more.
    let mut serve_until = |reached| {
        while phase.load(Ordering::SeqCst) < reached && !crowd.is_finished() {
            server.poll();
        }
    };
    serve_until(1);
    let grown = measure(|| serve_until(2)).bytes_current / clients as i64;
    serve_until(3);
    let crowd = crowd.join().unwrap();
    println!("{place} bytes for the place of each of {clients} idle clients, and {grown} while it is taken");
    assert!(grown > 0, "nothing was counted");
    assert!(place + grown <= COST, "{clients} idle clients cost {} bytes each", place + grown);
    drop(crowd);
    assert_no_slot_lost(&mut server);
}
