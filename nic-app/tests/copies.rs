//! What is not done on the data path: a second copy of tensor data, and memory allocations.
//!
//! Tensor data gets into slots through the kernel or through spans. What goes through spans is counted where it happens,
//! in the arena, so another copy anywhere in the port would show.

mod support;

use nic_app::{UdpPortConfig, WaitMode};
use splitrpc_engine::ServerConfig;
use support::client::{Client, noise};
use support::datagrams::Datagrams;
use support::{NULL, Server, assert_no_slot_lost, config, thread};

/// What the test's host and the port may copy beside tensor data: manifests, and the null model's answer.
const BESIDE: u64 = 4000 + 4096;

#[test]
fn over_tcp_the_kernel_makes_the_only_copy() {
    for mode in [WaitMode::Spin, WaitMode::Block] {
        let server = Server::start(&config(), mode);
        let mut client = Client::connect(server.tcp);
        for size in [64, 4096, 602_112, 3_200_000] {
            let bytes = noise(1, size);
            // The first of its kind may be taken for another.
            client.ask(NULL, &[&bytes]);
            let before = server.hold.copied();
            for _ in 0..10 {
                let path = client.ask(NULL, &[&bytes]);
                assert_eq!((path.copied_bytes as usize, path.fixup_bytes), (size, 0));
                assert_eq!(path.cpu_copies(), 1);
            }
            assert!(server.hold.copied() - before <= 11 * BESIDE, "{size} bytes were copied in the port");
        }
        drop(client);
        let mut thread = server.stop();
        assert!(thread.tcp().unwrap().stats().foreseen >= 20);
        assert_no_slot_lost(&mut thread);
    }
}

#[test]
fn over_udp_with_frames_in_order_the_kernel_makes_the_only_copy() {
    for datagram in [1472, 8256] {
        let server = Server::start(&ServerConfig { datagram, ..config() }, WaitMode::Spin);
        let mut client = Datagrams::connect(server.udp, datagram);
        for size in [64, 1000, 100_000] {
            let bytes = noise(2, size);
            for _ in 0..30 {
                // After the last size the first ones are looked at, then they are foreseen again.
                let datagrams = client.request(NULL, &bytes);
                client.send(&datagrams);
                client.path();
            }
            let before = server.hold.copied();
            for _ in 0..10 {
                let datagrams = client.request(NULL, &bytes);
                client.send(&datagrams);
                let path = client.path();
                assert_eq!((path.copied_bytes as usize, path.fixup_bytes), (size, 0), "{datagram}");
            }
            assert!(server.hold.copied() - before <= 11 * BESIDE, "{size} bytes were copied in the port");
        }
        let thread = server.stop();
        let stats = thread.udp().unwrap().stats();
        assert!(stats.looks < stats.bursts_in / 2, "{stats:?}");
    }
}

#[test]
fn frames_out_of_order_are_moved_once_and_that_is_counted() {
    let server = Server::start(&config(), WaitMode::Block);
    let mut client = Datagrams::connect(server.udp, 1472);
    let bytes = noise(3, 20_000);
    for _ in 0..3 {
        let mut datagrams = client.request(NULL, &bytes);
        datagrams.swap(3, 9);
        client.send(&datagrams);
        let path = client.path();
        assert_eq!(path.copied_bytes, 20_000);
        assert!(path.fixup_bytes > 0 && path.fixup_bytes < 20_000, "{path:?}");
    }
    server.stop();
}

#[test]
fn a_request_allocates_nothing_once_the_thread_is_warm() {
    let (mut thread, _, _) = thread(&config(), WaitMode::Spin, &UdpPortConfig::default());
    let (tcp, udp, stop) = {
        let ports = (thread.tcp().unwrap().local_addr(), thread.udp().unwrap().local_addr());
        (ports.0, ports.1, thread.stop_handle())
    };
    let done = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let told = done.clone();
    let clients = std::thread::spawn(move || {
        let mut stream = Client::connect(tcp);
        let mut datagrams = Datagrams::connect(udp, 1472);
        for phase in 1..=2 {
            for size in [64, 5000, 602_112] {
                let bytes = noise(4, size);
                (0..5).for_each(|_| {
                    stream.ask(NULL, &[&bytes]);
                });
                let small = &bytes[..size.min(50_000)];
                let request = datagrams.request(NULL, small);
                datagrams.send(&request);
                datagrams.path();
            }
            told.store(phase, std::sync::atomic::Ordering::SeqCst);
        }
        (stream, datagrams)
    });
    let mut until = |phase| {
        while done.load(std::sync::atomic::Ordering::SeqCst) < phase {
            thread.poll();
        }
    };
    until(1);
    let allocations = allocation_counter::measure(|| until(2));
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
    drop((clients.join().unwrap(), stop));
}
