//! The client library and a whole server, with a relay between them that loses, repeats and reorders datagrams.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use host_agent::config::{Builtin, Config};
use host_agent::serve::{Server, build};
use splitrpc_client::{Client, ClientOptions, Input, Transport};
use splitrpc_wire::DType;

/// Of 1,000 datagrams in each direction: how many are lost, come twice, and come after the one that follows them.
const LOST: u64 = 50;
const REPEATED: u64 = 50;
const HELD: u64 = 100;

#[derive(Debug, Default)]
struct Counts {
    lost: AtomicU64,
    repeated: AtomicU64,
    held: AtomicU64,
}

/// Stands between one client and a server until it is dropped.
struct Relay {
    address: SocketAddr,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    fn start(server: SocketAddr) -> Relay {
        let bind = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            socket
        };
        let (front, back) = (bind(), bind());
        back.connect(server).unwrap();
        let (counts, stop, client) = (Arc::default(), Arc::default(), Arc::new(OnceLock::new()));
        let address = front.local_addr().unwrap();
        let half = |seed, from: &UdpSocket, to: &UdpSocket, up: bool| {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let client: Arc<OnceLock<SocketAddr>> = Arc::clone(&client);
            let mut faults = Faults { state: seed, counts: Arc::clone(&counts), held: None };
            let stop: Arc<AtomicBool> = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut bytes = vec![0; 65_536];
                let send = |datagram: &[u8]| {
                    // What the other end does not take is lost as well.
                    let _ = match up {
                        true => to.send(datagram),
                        false => to.send_to(datagram, client.get().unwrap()),
                    };
                };
                while !stop.load(Ordering::Relaxed) {
                    match from.recv_from(&mut bytes) {
                        Ok((len, sender)) => {
                            if up {
                                client.get_or_init(|| sender);
                            }
                            faults.pass(&bytes[..len], send);
                        }
                        // So that the last of a burst is not held for ever.
                        Err(_) => faults.held.take().iter().for_each(|held| send(held)),
                    }
                }
            })
        };
        let threads = vec![half(1, &front, &back, true), half(2, &back, &front, false)];
        Relay { address, counts, stop, threads }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Faults {
    state: u64,
    counts: Arc<Counts>,
    /// A datagram that waits for the next one to overtake it.
    held: Option<Vec<u8>>,
}

impl Faults {
    fn pass(&mut self, datagram: &[u8], send: impl Fn(&[u8])) {
        let overtaken = self.held.take();
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let fate = (self.state >> 33) % 1000;
        if fate < LOST {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        } else if fate < LOST + REPEATED {
            self.counts.repeated.fetch_add(1, Ordering::Relaxed);
            send(datagram);
            send(datagram);
        } else if fate < LOST + REPEATED + HELD {
            self.counts.held.fetch_add(1, Ordering::Relaxed);
            self.held = Some(datagram.to_vec());
        } else {
            send(datagram);
        }
        overtaken.iter().for_each(|held| send(held));
    }
}

#[test]
fn every_request_is_answered_right_through_a_relay_that_loses_repeats_and_reorders() {
    let mut config = Config::default();
    (config.listen.tcp, config.listen.http) = (None, None);
    config.listen.udp = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.models.builtins = vec![Builtin::Null, Builtin::Echo];
    let server = Server::start(build(config).unwrap()).unwrap();
    let relay = Relay::start(server.udp().unwrap());
    let options = ClientOptions { transport: Transport::Udp, ..ClientOptions::default() };
    let mut client = Client::connect(&relay.address.to_string(), options).unwrap();
    for round in 0..6_u32 {
        for size in [1, 64, 1400, 5000, 100_000, 602_112] {
            let bytes: Vec<u8> = (0..size).map(|i: u32| (i.wrapping_mul(31) + i / 4096 + round) as u8).collect();
            let dims = [size];
            let input = [Input::new("INPUT", DType::Uint8, &dims, &bytes[..])];
            let response = client.infer("echo", &input).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
            assert!(response.data() == bytes, "wrong bytes came back of {size}");
            let path = response.path().unwrap();
            assert_eq!(path.payload_bytes, size);
            client.recycle(response);
            let response = client.infer("null", &input).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
            assert_eq!(response.data().len(), 4000);
            client.recycle(response);
        }
    }
    let Counts { lost, repeated, held } = &*relay.counts;
    for count in [lost, repeated, held] {
        assert!(count.load(Ordering::Relaxed) > 100, "the relay did nothing: {:?}", relay.counts);
    }
    drop(client);
    assert!(server.stop());
}
