//! A server with a tiny host, and a client that speaks the wire by hand.
#![allow(dead_code, unreachable_pub, reason = "each test crate uses its part of this")]

pub mod client;
pub mod datagrams;
pub mod host;
pub mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nic_app::{
    BuiltEngine, DataThread, DataThreadConfig, Stop, TcpPort, TcpPortConfig, UdpPort, UdpPortConfig, WaitMode, Waker,
    build_engine,
};
use splitrpc_arena::{Arena, PoolLayout};
use splitrpc_engine::{InputPlan, MS, ModelPlan, ServerConfig};
use splitrpc_ring::{InProcessNic, in_process};
use splitrpc_telemetry::Shard;
use splitrpc_wire::{DType, MAX_RANK};

pub use self::host::{Hold, TestHost};

/// Handle of the model that answers with its input: one tensor.
pub const ECHO: u16 = 0;
/// Handle of the model that answers with its inputs: two tensors.
pub const PAIR: u16 = 1;
/// Handle of the model that answers with a pattern of 4,000 bytes.
pub const NULL: u16 = 2;

/// Slots of each input pool; the largest class has fewer.
pub const SLOTS: u32 = 8;
const CLASSES: [u32; 4] = [4 << 10, 64 << 10, 1 << 20, 16 << 20];

pub type Thread = DataThread<'static, InProcessNic, TestHost>;

pub struct Server {
    pub tcp: SocketAddr,
    pub udp: SocketAddr,
    pub hold: Hold,
    pub telemetry: Arc<Shard>,
    stop: Stop,
    thread: JoinHandle<Thread>,
}

/// Limits under which faults show quickly.
pub fn config() -> ServerConfig {
    ServerConfig {
        stream_sessions: 64,
        datagram_sessions: 16,
        requests: 64,
        requests_per_client: 32,
        max_request: 16 << 20,
        progress_grace: 300 * MS,
        ..ServerConfig::small()
    }
}

/// A data thread with both ports, not running yet.
pub fn thread(config: &ServerConfig, wait: WaitMode, udp: &UdpPortConfig) -> (Thread, Hold, Arc<Shard>) {
    let drain = Duration::from_secs(5);
    thread_with(config, &DataThreadConfig { wait, drain, ..DataThreadConfig::default() }, udp)
}

fn thread_with(config: &ServerConfig, settings: &DataThreadConfig, udp: &UdpPortConfig) -> (Thread, Hold, Arc<Shard>) {
    let any = |_| InputPlan { dtype: DType::Uint8, dims: [-1; MAX_RANK], rank: 1 };
    let (one, two) = ([0].map(any), [0, 1].map(any));
    let mut pools = Vec::new();
    let mut classes = [const { Vec::new() }; 3];
    for (model, tensors) in [(ECHO, 1), (PAIR, 2), (NULL, 1)] {
        for class in CLASSES {
            let id = pools.len() as u16;
            pools.push((id, PoolLayout::new(&vec![class; tensors], 1, SLOTS).unwrap()));
            classes[usize::from(model)].push(id);
        }
    }
    let inputs = pools.len() as u16;
    let models = [&one[..], &two, &one].into_iter().zip(&classes).map(|(inputs, classes)| ModelPlan {
        inputs,
        max_batch: 0,
        priority_levels: 0,
        default_priority: 2,
        classes,
    });
    let models: Vec<_> = models.collect();
    let engine: BuiltEngine<'static> = build_engine(config, &models, &[7; 3000], &pools).unwrap();
    let port = TcpPort::bind(([127, 0, 0, 1], 0).into(), &TcpPortConfig::default(), &engine).unwrap();
    let udp = UdpPort::bind(([127, 0, 0, 1], 0).into(), udp, &engine).unwrap();
    let output = (inputs, PoolLayout::new(&[host::NULL_BYTES], 1, 2 * config.requests).unwrap());
    pools.push(output);
    let arena = Arena::new("test", &pools, 4).unwrap();
    let (nic, link) = in_process(2 * config.requests as usize);
    let waker = Waker::new().unwrap();
    let hold = Hold::new(waker.clone());
    let host = TestHost::new(link, arena.clone(), output, config.requests as usize, hold.clone());
    let telemetry = Arc::new(Shard::new(models.len()));
    let thread = DataThread::new(*settings, engine, arena, inputs, nic, host, waker, Arc::clone(&telemetry)).unwrap();
    (thread.with_tcp(port).unwrap().with_udp(udp).unwrap(), hold, telemetry)
}

impl Server {
    pub fn start(config: &ServerConfig, wait: WaitMode) -> Server {
        Server::start_with(config, wait, &UdpPortConfig::default())
    }

    pub fn start_with(config: &ServerConfig, wait: WaitMode, udp: &UdpPortConfig) -> Server {
        Server::run(thread(config, wait, udp))
    }

    /// A server that takes so long for what is under way when it is told to stop.
    pub fn start_to_drain(wait: WaitMode, drain: Duration) -> Server {
        let settings = DataThreadConfig { wait, drain, ..DataThreadConfig::default() };
        Server::run(thread_with(&config(), &settings, &UdpPortConfig::default()))
    }

    /// One of several threads of a server.
    pub fn start_among(busy: &Arc<AtomicUsize>) -> Server {
        let (thread, hold, telemetry) = thread(&config(), WaitMode::Block, &UdpPortConfig::default());
        Server::run((thread.among(Arc::clone(busy)), hold, telemetry))
    }

    fn run((mut thread, hold, telemetry): (Thread, Hold, Arc<Shard>)) -> Server {
        let (tcp, stop) = (thread.tcp().unwrap().local_addr(), thread.stop_handle());
        let udp = thread.udp().unwrap().local_addr();
        let thread = std::thread::spawn(move || {
            thread.run();
            thread
        });
        Server { tcp, udp, hold, telemetry, stop, thread }
    }

    /// Stops the server and gives back what is left of it.
    pub fn stop(self) -> Thread {
        self.stop.stop();
        self.thread.join().unwrap()
    }
}

/// Every input slot becomes free again. What was said last may still wait in the sockets, and answers that nobody
/// confirmed are kept for a while.
pub fn assert_no_slot_lost(thread: &mut Thread) {
    let free = |thread: &Thread| (0..3 * CLASSES.len() as u16).map(|pool| thread.engine().free_slots(pool)).collect();
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        thread.poll();
        let free: Vec<u32> = free(thread);
        if free.iter().all(|free| *free == SLOTS) {
            return;
        }
        assert!(Instant::now() < until, "slots were lost: {free:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
