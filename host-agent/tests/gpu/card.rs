//! A card writes requests into the GPU's slots. The card is the software BlueField: its process maps the GPU's memory by CUDA. The library of it,
//! `libdoca_emu.so`, has to be beside this program.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use host_agent::config::{Builtin, Config, GpuMemory, NicKind};
use host_agent::gpu::LazyGpu;
use host_agent::serve::{Server, build};
use nic_app::DataThreadConfig;
use nic_app::card::{self, CardConfig, CardPorts, CardStop};
use splitrpc_client::{Client, ClientOptions, Input, Transport};
use splitrpc_wire::path::{Link, Memory, Mover};
use splitrpc_wire::{DType, Path};

use crate::common::{Repository, config, has_gpu, is_alone, start, sum};

const BUS: &str = "SPLITRPC_BLUEFIELD";
const SIDE: &str = "SPLITRPC_BLUEFIELD_SIDE";
/// Tells a process of this test program that it is a card, and where it listens.
const CARD: &str = "SPLITRPC_TEST_CARD";
/// How long it may take until somebody serves.
const LONG: Duration = Duration::from_secs(60);

/// Whether this process is the test's own, and has a host's side of a bus, by which a GPU's memory can be registered as `gpu` says.
fn is_host(test: &str, gpu: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let bus = folder.path().to_str().unwrap();
    is_alone(test, &[(BUS, bus), (SIDE, "host"), ("SPLITRPC_BLUEFIELD_GPU", gpu)])
}

/// A card's process.
struct Card {
    child: Child,
    at: SocketAddr,
}

impl Card {
    fn start() -> Card {
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let at = SocketAddr::from(([127, 64 + high % 64, middle, low], 20_000));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["card::be_a_card", "--exact", "--nocapture"]).env(CARD, at.to_string()).env(SIDE, "arm");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("waiting")), "the card has ended");
        // Nobody is to be held up by what it says later.
        std::thread::spawn(move || lines.for_each(drop));
        Card { child, at }
    }

    fn client(&self, transport: Transport) -> Client {
        let until = Instant::now() + LONG;
        loop {
            let options = ClientOptions { transport, ..ClientOptions::default() };
            match Client::connect(&self.at.to_string(), options) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < until, "nobody serves: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn library() -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("libdoca_emu.so");
    assert!(beside.is_file(), "{} is not there", beside.display());
    beside
}

/// What a card's process is.
#[test]
fn be_a_card() {
    let Ok(listens) = std::env::var(CARD) else { return };
    let listens = Some(listens.parse().unwrap());
    let config = CardConfig {
        libraries: Some(library()),
        device: None,
        memory: None,
        representor: None,
        ports: CardPorts { tcp: listens, udp: listens, buffer: 1 << 20 },
        thread: DataThreadConfig { crowded: true, ..DataThreadConfig::default() },
        version: "test".to_owned(),
    };
    card::serve(&config, &CardStop::default(), |ready| {
        println!("{}", if ready.is_some() { "serving" } else { "waiting" });
    })
    .unwrap();
}

/// Sums of three sizes, one of them in batches and one where small ones are computed in place otherwise.
fn models() -> Repository {
    Repository::new()
        .with_add("small", 256, 0, "kernel", "")
        .with_add("rows", 50_000, 4, "graph", "dynamic_batching { max_queue_delay_microseconds: 500 }")
        .with_add("large", 500_000, 0, "graph", "")
        .with_in_place_add("in-place", 256, 0, "kernel")
}

fn beside_a_card(repository: &Repository, wanted: GpuMemory) -> Config {
    let mut config = config(Some(repository), &[Builtin::NullGpu, Builtin::Echo]);
    // The card listens, and takes such sessions as its agent would.
    config.listen.udp = config.listen.tcp;
    config.nic.kind = NicKind::Smartnic;
    config.nic.libraries = Some(library());
    config.nic.gpu_memory = wanted;
    config
}

/// The way that is told, of those that the GPU here can do.
fn way_of(server: &Server) -> String {
    let metrics = server.built.status.metrics();
    let line = metrics.lines().find(|line| line.starts_with("splitrpc_card_gpu_memory{"));
    let line = line.unwrap_or_else(|| panic!("no way is told: {metrics}"));
    line.split("way=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

fn can_dma_buf() -> bool {
    let gpu = LazyGpu::default();
    let device = gpu.get().unwrap().context.device();
    device.dma_buf && device.rdma_virtual_memory
}

fn add(client: &mut Client, model: &str, dims: &[u32], seed: u32) -> Path {
    let [a, b, expected] = sum(seed, *dims.last().unwrap());
    let inputs = [Input::new("A", DType::Fp32, dims, &a[..]), Input::new("B", DType::Fp32, dims, &b[..])];
    let response = client.infer(model, &inputs).unwrap();
    assert!(response.data() == expected, "{model}, {seed}");
    *response.path().unwrap()
}

/// Asks all models over both transports, several at once. Requests to those of the GPU have come there by `mover`.
fn ask_all(card: &Card, mover: Mover) {
    let expect = |path: Path, mover, memory| {
        assert_eq!((path.mover, path.memory, path.link, path.emulated), (mover, memory, Link::Doca, true), "{path:?}");
    };
    std::thread::scope(|scope| {
        for (client, transport) in
            [Transport::Tcp, Transport::Tcp, Transport::Tcp, Transport::Udp].into_iter().enumerate()
        {
            scope.spawn(move || {
                let number = client as u32 * 1000;
                let mut client = card.client(transport);
                for seed in number..number + 30 {
                    expect(add(&mut client, "small", &[256], seed), mover, Memory::Cuda);
                    expect(add(&mut client, "rows", &[1, 50_000], seed), mover, Memory::Cuda);
                    expect(add(&mut client, "large", &[500_000], seed), mover, Memory::Cuda);
                    let path = add(&mut client, "in-place", &[256], seed);
                    if mover == Mover::DocaDma {
                        expect(path, mover, Memory::Cuda);
                    }
                    let bytes = vec![seed as u8; [1, 4_000, 300_000][seed as usize % 3]];
                    let (dims, null) = ([bytes.len() as u32], (0..4_000_u32).map(|i| ((i * 7 + 13) % 251) as u8));
                    let input = [Input::new("INPUT", DType::Uint8, &dims, &bytes[..])];
                    let response = client.infer("null-gpu", &input).unwrap();
                    assert!(response.data().iter().copied().eq(null));
                    expect(*response.path().unwrap(), mover, Memory::Cuda);
                    // Of the CPU: its slots are the host's.
                    let response = client.infer("echo", &input).unwrap();
                    assert!(response.data() == bytes);
                    expect(*response.path().unwrap(), Mover::DocaDma, Memory::Host);
                }
            });
        }
    });
}

/// A server beside a card, which is asked.
fn serves(wanted: GpuMemory, way: &str, mover: Mover) {
    let repository = models();
    let card = Card::start();
    let server = start(beside_a_card(&repository, wanted));
    assert_eq!(way_of(&server), way);
    ask_all(&card, mover);
    // The card has not come upon something in between that had another way taken.
    assert_eq!(way_of(&server), way);
    assert!(server.stop());
}

#[test]
fn a_card_writes_requests_into_the_gpus_slots() {
    if is_host("card::a_card_writes_requests_into_the_gpus_slots", "dmabuf,peermem") {
        let way = if can_dma_buf() { "dmabuf" } else { "peermem" };
        serves(GpuMemory::Auto, way, Mover::DocaDma);
    }
}

#[test]
fn without_dma_buf_it_is_shown_their_address() {
    if is_host("card::without_dma_buf_it_is_shown_their_address", "peermem") {
        serves(GpuMemory::Auto, "peermem", Mover::DocaDma);
    }
}

#[test]
fn without_either_the_gpu_copies_from_the_hosts_slots() {
    if is_host("card::without_either_the_gpu_copies_from_the_hosts_slots", "none") {
        serves(GpuMemory::Auto, "pinned", Mover::GpuCopy);
    }
}

#[test]
fn pinned_is_pinned_whatever_else_there_is() {
    if is_host("card::pinned_is_pinned_whatever_else_there_is", "dmabuf,peermem") {
        serves(GpuMemory::Pinned, "pinned", Mover::GpuCopy);
    }
}

#[test]
fn what_was_named_and_cannot_be_had_is_no_start() {
    if is_host("card::what_was_named_and_cannot_be_had_is_no_start", "none") {
        let repository = models();
        for (wanted, name) in [(GpuMemory::DmaBuf, "dmabuf"), (GpuMemory::Peermem, "peermem")] {
            let error = Server::start(build(beside_a_card(&repository, wanted)).unwrap()).err().unwrap().to_string();
            assert!(
                error.contains(&format!("nic.gpu_memory is {name}, and that cannot be had: {name}: pool")),
                "{error}"
            );
        }
    }
}

#[test]
fn memory_is_found_by_its_address_if_it_was_made_to_be_exported() {
    if !has_gpu() {
        return;
    }
    use splitrpc_cuda::{DeviceMemory, Driver, MemoryOptions};
    let driver = Driver::load().unwrap();
    let context = driver.context(&driver.devices()[0]).unwrap();
    let shared = DeviceMemory::new(&context, 1 << 20, MemoryOptions { exportable: true, rdma: false }).unwrap();
    let found = driver.find_memory(shared.address() + 4096).unwrap().unwrap();
    assert_eq!((found.address, found.len), (shared.address(), shared.len()));
    let again = DeviceMemory::import(&context, std::os::fd::AsFd::as_fd(&found.descriptor), found.len).unwrap();
    assert_eq!(again.len(), shared.len());
    let own = DeviceMemory::new(&context, 1 << 20, MemoryOptions::default()).unwrap();
    assert!(driver.find_memory(own.address()).is_err());
    let host = [0_u8; 64];
    assert!(driver.find_memory(host.as_ptr().addr() as u64).unwrap().is_none());
}
