//! Many idle clients: what they cost, and that the server still answers. Alone in its file, since it measures the process.

mod support;

use nic_app::WaitMode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use splitrpc_engine::ServerConfig;
use support::client::{Client, noise};
use support::{ECHO, Server, assert_no_slot_lost, config};

/// Clients, unless the system allows fewer descriptors.
const CLIENTS: usize = 10_000;
/// Bytes of the process that one may cost.
const COST: usize = 8 << 10;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[test]
fn ten_thousand_idle_clients_cost_little_and_the_server_answers() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    // Both ends of each connection are in this process.
    let clients = maximum.map_or(CLIENTS, |most| CLIENTS.min((most as usize - 200) / 2));
    let limits = ServerConfig { stream_sessions: 16_384, ..config() };
    let server = Server::start(&limits, WaitMode::ADAPTIVE);
    let mut honest = Client::connect(server.tcp);
    honest.ask(ECHO, &[&noise(1, 600_000)]);
    let before = resident();
    let mut idle = Vec::with_capacity(clients);
    for seed in 0..clients {
        let mut client = Client::connect(server.tcp);
        // Small requests are what a connection remembers most of.
        client.ask(ECHO, &[&noise(seed as u32, 64)]);
        idle.push(client);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown / clients <= COST, "{clients} idle clients cost {} bytes each", grown / clients);
    for size in [64, 600_000] {
        honest.ask(ECHO, &[&noise(2, size)]);
        idle[clients / 2].ask(ECHO, &[&noise(3, size)]);
    }
    println!("{} bytes for each of {clients} idle clients", grown / clients);
    drop((honest, idle));
    assert_no_slot_lost(&mut server.stop());
}
