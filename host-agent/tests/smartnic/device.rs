//! Requests that a card writes into memory of a device, and not into the host's slots. The device is a stand-in: memory of another file, which the
//! software BlueField takes by its descriptor as it would a GPU's.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;

use host_agent::config::{Config, GpuMemory, NicKind};
use host_agent::model::spec::{ModelSpec, TensorSpec};
use host_agent::orchestrator::{Computing, Orchestrator, Parts, Served, Storage};
use host_agent::plan::{self, EngineModel, Plan};
use host_agent::runtime::device::{Device, Turn};
use host_agent::runtime::echo::Echo;
use host_agent::runtime::{Batch, Execution, Factory, Launch, Runtime, RuntimeError};
use host_agent::smartnic::{self, DeviceSlots};
use nic_app::{DataThreadConfig, Waker};
use splitrpc_arena::{Arena, Extent, Run};
use splitrpc_client::{Client, Input, Response, Transport};
use splitrpc_engine::SEC;
use splitrpc_telemetry::Shard;
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{DType, Shape, TensorDesc};

use crate::rig::{Bus, Process, ask, library, noise};

/// Tells a process of this test program that it is an agent: how its device's memory is to be shown, and which ways of that fail.
const AGENT: &str = "SPLITRPC_TEST_AGENT";
const SUMS: &str = "sums";
const MIRROR: &str = "mirror";

/// An agent whose models `sums` and `mirror` read in a device's memory, and `echo` in the host's.
fn agent(bus: &Bus, how: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "device::be_an_agent", "--nocapture"]).env(AGENT, how);
    bus.start(command, "host", "")
}

fn both(bus: &Bus, how: &str, way: &str) -> (Process, Process) {
    let card = bus.card("");
    let agent = agent(bus, how);
    agent.says(&format!("way: {way}"));
    card.says("serving");
    (card, agent)
}

/// Asks for the sums of two tensors.
fn sums(client: &mut Client, [a, b]: [&[u8]; 2]) -> Response {
    let dims = [[a.len() as u32], [b.len() as u32]];
    let inputs = [Input::new("A", DType::Uint8, &dims[0], a), Input::new("B", DType::Uint8, &dims[1], b)];
    client.infer(SUMS, &inputs).unwrap()
}

/// What it answers, and that it found nothing in the host's slots where `on_device`.
fn answer([a, b]: [&[u8]; 2], on_device: bool) -> Vec<u8> {
    [digest(a), digest(b), u64::from(on_device)].into_iter().flat_map(u64::to_le_bytes).collect()
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// All sizes, with other models between them, whose slots are the host's.
fn ask_all(bus: &Bus, on_device: bool) {
    for transport in [Transport::Tcp, Transport::Udp] {
        let mut client = bus.client(transport);
        for (seed, size) in [0, 1, 64, 4096, 4097, 65_536, 602_112, 5 << 20].into_iter().enumerate() {
            let (a, b) = (noise(seed as u64, size), noise(100 + seed as u64, size / 3 + 5));
            let response = sums(&mut client, [&a, &b]);
            assert_eq!(response.data(), answer([&a, &b], on_device), "{size} bytes over {transport:?}");
            let path = response.path().unwrap();
            let mover = if on_device { Mover::DocaDma } else { Mover::GpuCopy };
            assert_eq!((path.mover, path.memory, path.emulated), (mover, Memory::Cuda, true));
            let response = ask(&mut client, "echo", &a).unwrap();
            assert!(response.data() == a, "{size} bytes over {transport:?}");
            let path = response.path().unwrap();
            assert_eq!((path.mover, path.memory), (Mover::DocaDma, Memory::Host));
            // Answered with the request's own slots, from where those are.
            let response = ask(&mut client, MIRROR, &a).unwrap();
            assert!(response.data() == a, "{size} bytes over {transport:?}");
        }
    }
}

#[test]
fn a_card_writes_requests_into_the_devices_memory() {
    let bus = Bus::new();
    let _both = both(&bus, "auto", "dmabuf");
    ask_all(&bus, true);
}

#[test]
fn what_cannot_be_had_is_followed_by_the_next_way() {
    let bus = Bus::new();
    let _both = both(&bus, "auto,no-dmabuf", "peermem");
    ask_all(&bus, true);
}

#[test]
fn without_either_the_device_copies_from_the_hosts_slots() {
    for how in ["auto,no-dmabuf,no-peermem", "pinned"] {
        let bus = Bus::new();
        let _both = both(&bus, how, "pinned");
        ask_all(&bus, false);
    }
}

#[test]
fn a_way_that_was_named_and_cannot_be_had_ends_the_start() {
    for way in ["dmabuf", "peermem"] {
        agent(&Bus::new(), &format!("{way},no-{way}")).says(&format!("refused: nic.gpu_memory is {way}"));
    }
}

#[test]
fn what_a_card_cannot_reach_is_not_shown_to_it_again() {
    let bus = Bus::new();
    // Its trial of what it is shown fails, whichever way it is shown.
    let card = bus.card("seed=1,fail=1000");
    let agent = agent(&bus, "auto");
    for way in ["dmabuf", "peermem", "pinned"] {
        agent.says(&format!("way: {way}"));
    }
    card.says("serving");
}

#[test]
fn early_copies_and_faults_leave_requests_whole() {
    let bus = Bus::new();
    let card = bus.card("seed=5,delay=200,reorder=300,tear=200,fail=20,stop=200,again=50");
    let _agent = agent(&bus, "auto");
    card.says("serving");
    // Several at once, so that slots go from one to the next while they arrive.
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let bus = &bus;
            scope.spawn(move || {
                let mut client = bus.client(Transport::Tcp);
                for count in 0..20 {
                    let seed = seed * 1000 + count;
                    let size = [64, 5_000, 300_000, 1 << 20][count as usize % 4];
                    let (a, b) = (noise(seed, size), noise(seed + 500, size / 2));
                    assert_eq!(sums(&mut client, [&a, &b]).data(), answer([&a, &b], true), "{size} bytes");
                }
            });
        }
    });
}

/// What an agent's process is.
#[test]
fn be_an_agent() {
    let Ok(how) = std::env::var(AGENT) else { return };
    let mut config = Config::default();
    config.nic.kind = NicKind::Smartnic;
    config.nic.libraries = Some(library());
    config.limits.sessions = 64;
    config.limits.class_bytes = 16 << 20;
    config.limits.slots_per_model = 8;
    config.nic.gpu_memory = match how.split(',').next().unwrap() {
        "dmabuf" => GpuMemory::DmaBuf,
        "peermem" => GpuMemory::Peermem,
        "pinned" => GpuMemory::Pinned,
        _ => GpuMemory::Auto,
    };
    let input = |name: &str| TensorSpec { name: name.into(), dtype: DType::Uint8, dims: vec![None] };
    let digests = TensorSpec { dims: vec![Some(24)], ..input("DIGESTS") };
    let device = |spec| Served { factory: Arc::new(OfDevice(spec)), computing: Computing::Device };
    let models = vec![
        device(spec(SUMS, vec![input("A"), input("B")], digests)),
        Served { factory: Arc::new(Echo::new()), computing: Computing::Inline },
        device(spec(MIRROR, vec![input("INPUT")], input("OUTPUT"))),
    ];
    let specs = || models.iter().map(|model| model.factory.spec());
    let plan = Plan::new(specs(), &config.limits).unwrap().with_all_in_slots(specs(), &config.limits).unwrap();
    let catalog = plan::catalog(specs()).unwrap();
    let arena = Arena::new("agent", &plan.all(), 0).unwrap();
    let pools: Vec<u16> = [0, 2].iter().flat_map(|model| plan.models[*model].inputs.clone()).collect();
    let memory = pools.iter().map(|pool| {
        let layout = *arena.layout(*pool).unwrap();
        (*pool, Arena::new("device", &[(*pool, layout)], 0).unwrap())
    });
    let memory: HashMap<u16, Arena> = memory.collect();
    let telemetry = Arc::new(Shard::new(models.len()));
    let waker = Waker::new().unwrap();
    let rouse = waker.clone();
    let device = StandIn::new(arena.clone(), memory.clone());
    let parts = Parts {
        shard: 0,
        arena: arena.clone(),
        plan: &plan,
        models: &models,
        requests: config.limits.requests,
        telemetry: Arc::clone(&telemetry),
        waker: Arc::new(move || rouse.wake()),
        device: Some(Box::new(device)),
        launch_limit: 10 * SEC,
    };
    let storage = Box::leak(Box::new(Storage::new(&plan)));
    let orchestrator = Orchestrator::new((), parts, storage).unwrap();
    let slots = Slots { pools, memory, fails: how.split(',').skip(1).map(str::to_owned).collect() };
    let parts = smartnic::Parts {
        arena,
        orchestrator,
        waker,
        config: DataThreadConfig { crowded: true, ..DataThreadConfig::default() },
        telemetry,
        told: Box::new(|_| ()),
        device: Some(Box::new(slots)),
        told_way: Box::new(|way| println!("way: {}", way.name())),
    };
    let known: Vec<_> = specs().zip(&plan.models).map(|(spec, pools)| EngineModel::new(spec, pools)).collect();
    let known: Vec<_> = known.iter().map(EngineModel::plan).collect();
    match smartnic::start(parts, &config, &plan, &known, &catalog) {
        Ok((stop, thread)) => {
            let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).unwrap();
            std::thread::spawn(move || signals.forever().for_each(|_| stop.stop()));
            thread.join().unwrap();
        }
        Err(error) => println!("refused: {error}"),
    }
}

fn spec(name: &str, inputs: Vec<TensorSpec>, output: TensorSpec) -> ModelSpec {
    ModelSpec {
        name: name.into(),
        version: 1,
        max_batch: 0,
        inputs,
        outputs: vec![output],
        batching: None,
        priority_levels: 0,
        default_priority: 0,
        instances: 1,
        warmup_launches: 0,
    }
}

struct OfDevice(ModelSpec);

impl Factory for OfDevice {
    fn spec(&self) -> &ModelSpec {
        &self.0
    }

    fn execution(&self) -> Execution {
        Execution::Inline
    }

    fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError> {
        Err(RuntimeError("the device computes it".into()))
    }
}

/// What is shown of the device's memory, if it is.
struct Slots {
    pools: Vec<u16>,
    memory: HashMap<u16, Arena>,
    fails: Vec<String>,
}

impl Slots {
    fn fails(&self, way: &str) -> Result<(), String> {
        if self.fails.iter().any(|fails| fails == way) { Err(format!("{way}, says the test")) } else { Ok(()) }
    }
}

impl DeviceSlots for Slots {
    fn pools(&self) -> &[u16] {
        &self.pools
    }

    fn extent(&self, pool: u16) -> Result<Extent, String> {
        // Both ways need it; the second one needs nothing else.
        self.fails("no-peermem")?;
        Ok(Extent::of_arena(&self.memory[&pool]).unwrap().0)
    }

    fn dma_buf(&self, pool: u16) -> Result<OwnedFd, String> {
        self.fails("no-dmabuf")?;
        Ok(Extent::of_arena(&self.memory[&pool]).unwrap().1)
    }
}

/// A device with two models, of one lane each, which computes when it is looked at.
struct StandIn {
    host: Arena,
    memory: HashMap<u16, Arena>,
    present: HashSet<u32>,
    lanes: [Option<(Batch, Vec<u32>)>; 3],
}

impl StandIn {
    fn new(host: Arena, memory: HashMap<u16, Arena>) -> StandIn {
        StandIn { host, memory, present: HashSet::new(), lanes: [None, None, None] }
    }

    /// The bytes of a tensor, where they are said to be.
    fn read(&self, request: u32, input: Run, tensor: &TensorDesc) -> Vec<u8> {
        let arena = if self.present.contains(&request) { &self.memory[&input.pool] } else { &self.host };
        let mut bytes = vec![0; tensor.bytes as usize];
        arena.span(input, tensor.handle, 0, tensor.bytes).unwrap().copy_to(&mut bytes);
        bytes
    }

    /// Whether the host's slots are as they were made.
    fn is_untouched(&self, input: Run, tensors: &[TensorDesc]) -> bool {
        tensors.iter().all(|tensor| {
            let mut bytes = vec![0; tensor.bytes as usize];
            self.host.span(input, tensor.handle, 0, tensor.bytes).unwrap().copy_to(&mut bytes);
            bytes.iter().all(|byte| *byte == 0)
        })
    }
}

impl Device for StandIn {
    fn lanes(&self, model: u16) -> u16 {
        u16::from(model != 1)
    }

    fn idle_lane(&self, model: u16, _: u8) -> Option<u16> {
        self.lanes[usize::from(model)].is_none().then_some(0)
    }

    fn present(&mut self, request: u32, _: Run) -> bool {
        self.present.insert(request)
    }

    fn fetch(&mut self, _: u16, _: u32, _: Turn, _: Run, _: &[TensorDesc]) {}

    fn forget(&mut self, request: u32) {
        self.present.remove(&request);
    }

    fn begin(&mut self, model: u16, _: u16, _: Turn, requests: &[u32], batch: &Batch) {
        self.lanes[usize::from(model)] = Some((batch.clone(), requests.to_vec()));
    }

    fn give_up(&mut self, _: u16, _: u16) {}

    fn has_news(&self) -> bool {
        self.lanes.iter().any(Option::is_some)
    }

    fn pump(&mut self) -> bool {
        false
    }

    fn ended(&mut self, model: u16, _: u16, _: &Batch, launch: &mut Launch) -> Option<Result<(), RuntimeError>> {
        let (batch, requests) = self.lanes[usize::from(model)].take()?;
        let on_device = requests.iter().all(|request| self.present.contains(request));
        for (item, request) in batch.items().iter().zip(&requests) {
            let tensors = batch.tensors(item);
            let bytes: Vec<Vec<u8>> = tensors.iter().map(|tensor| self.read(*request, item.input, tensor)).collect();
            if model == 2 {
                launch.push_input(tensors.iter().copied());
                continue;
            }
            let untouched = on_device && self.is_untouched(item.input, tensors);
            let numbers = [digest(&bytes[0]), digest(&bytes[1]), u64::from(untouched)];
            let answer: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
            self.host.span(item.output.unwrap(), 0, 0, 24).unwrap().copy_from(&answer);
            launch.push_in_place([TensorDesc::fixed(0, DType::Uint8, Shape::new(&[24]).unwrap()).unwrap()]);
        }
        launch.moved = Some((if on_device { Mover::Unknown } else { Mover::GpuCopy }, Memory::Cuda));
        requests.iter().for_each(|request| self.forget(*request));
        Some(Ok(()))
    }
}
