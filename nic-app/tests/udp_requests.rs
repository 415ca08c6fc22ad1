//! Requests over UDP: all of them answered, with the right bytes, also under loss.

mod support;

use nic_app::{UdpPortConfig, WaitMode};
use splitrpc_engine::ServerConfig;
use support::client::{Client, check, noise};
use support::udp::UdpClient;
use support::{ECHO, NULL, PAIR, Server, assert_no_slot_lost, config};

const MODES: [WaitMode; 3] = [WaitMode::Spin, WaitMode::ADAPTIVE, WaitMode::Block];

fn config_for(datagram: u16) -> ServerConfig {
    ServerConfig { datagram, progress_grace: 2_000_000_000, ..config() }
}

#[test]
fn requests_of_all_sizes_are_answered_in_every_wait_mode() {
    for mode in MODES {
        let server = Server::start(&config_for(1472), mode);
        let mut client = UdpClient::connect(server.udp, 1472);
        for size in [0, 1, 64, 1300, 1384, 1385, 2792, 2793, 4096, 100_000, 602_112] {
            for seed in 0..3 {
                client.ask(ECHO, &[&noise(seed, size)]);
                client.ask(NULL, &[&noise(seed, size)]);
            }
        }
        client.close();
        assert_no_slot_lost(&mut server.stop());
    }
}

#[test]
fn large_datagrams_carry_large_requests() {
    for datagram in [1232, 8256, 65_000] {
        let server = Server::start(&config_for(datagram), WaitMode::ADAPTIVE);
        let mut client = UdpClient::connect(server.udp, datagram);
        for size in [10, 8000, 8192, 64_000, 65_000, 602_112, 3_200_000] {
            client.ask(ECHO, &[&noise(9, size)]);
        }
        client.close();
        assert_no_slot_lost(&mut server.stop());
    }
}

#[test]
fn several_tensors_and_requests_at_once_are_told_apart() {
    let server = Server::start(&config_for(1472), WaitMode::ADAPTIVE);
    let mut clients: Vec<_> = [1472, 1232, 1472].map(|datagram| UdpClient::connect(server.udp, datagram)).into();
    for round in 0..6 {
        let mut asked = Vec::new();
        for (index, client) in clients.iter_mut().enumerate() {
            for (model, a, b) in [(PAIR, 20_000 + 1000 * round, 700), (ECHO, 50_000, 0), (PAIR, 0, 3000)] {
                let tensors = [noise(round as u32, a), noise(index as u32, b)];
                let tensors = if model == PAIR { tensors.to_vec() } else { tensors[..1].to_vec() };
                let slices: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
                asked.push((index, client.submit(model, &slices), model, tensors));
            }
        }
        while !asked.is_empty() {
            clients.iter_mut().for_each(UdpClient::turn);
            let (index, key, model, tensors) = asked.pop().unwrap();
            let slices: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
            check(model, &slices, clients[index].answer(key));
        }
    }
    clients.into_iter().for_each(UdpClient::close);
    assert_no_slot_lost(&mut server.stop());
}

#[test]
fn under_loss_every_request_is_answered_and_moved_bytes_are_counted() {
    for (permille, rounds) in [(10, 20), (100, 6)] {
        let udp = UdpPortConfig { drop_permille: permille, drop_seed: 3, ..UdpPortConfig::default() };
        let server = Server::start_with(&config_for(1472), WaitMode::ADAPTIVE, &udp);
        let mut client = UdpClient::connect(server.udp, 1472);
        let mut honest = Client::connect(server.tcp);
        for seed in 0..rounds {
            let (a, b) = (noise(seed, 300_000), noise(seed + 1, 5000));
            client.ask(PAIR, &[&a, &b]);
            client.ask(ECHO, &[&b]);
            honest.ask(ECHO, &[&b]);
        }
        drop(honest);
        client.close();
        let mut thread = server.stop();
        assert_no_slot_lost(&mut thread);
        assert!(thread.udp().unwrap().stats().dropped > 0);
        assert!(thread.engine().stats().bytes_fixup > 0);
    }
}

#[test]
fn what_a_host_is_told_before_a_request_is_whole_is_there() {
    for permille in [0, 20] {
        let udp = UdpPortConfig { drop_permille: permille, drop_seed: 5, ..UdpPortConfig::default() };
        let server = Server::start_with(&config_for(1472), WaitMode::ADAPTIVE, &udp);
        server.hold.watch();
        let (mut client, mut stream) = (UdpClient::connect(server.udp, 1472), Client::connect(server.tcp));
        for seed in 0..8 {
            // Both tensors are large, and the second is known in part while the first is whole.
            let (a, b) = (noise(seed, 300_000), noise(seed + 1, 400_000));
            client.ask(PAIR, &[&a, &b]);
            stream.ask(PAIR, &[&a, &b]);
        }
        client.close();
        let mut thread = server.stop();
        assert!(permille > 0 || thread.host().told > 8 * 2 * 300_000, "{}", thread.host().told);
        assert_no_slot_lost(&mut thread);
    }
}
