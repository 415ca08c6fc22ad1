//! One data thread with everything that it owns: arena, engine, link, orchestrator, ports.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nic_app::{
    Arrival, BuildError, BuiltEngine, DataThread, DataThreadConfig, Host, Stop, TcpPort, TcpPortConfig, UdpPort,
    UdpPortConfig, Waker, build_engine,
};
use splitrpc_arena::{Arena, ArenaError};
use splitrpc_engine::{MS, ModelPlan, Time};
use splitrpc_gpu::GpuError;
use splitrpc_ring::{HostLink, InProcessHost, InProcessNic, in_process};
use splitrpc_telemetry::Shard as Telemetry;

use crate::config::{Config, GpuMemory, NicKind};
use crate::gpu::{Board, Gpu, Tenant};
use crate::metrics::Status;
use crate::orchestrator::{self, Orchestrator, Parts, Served, Storage};
use crate::plan::{EngineModel, Plan};
use crate::runtime::Execution;
use crate::runtime::device::Device;
use crate::smartnic::{self, CardError, DeviceSlots};

/// The smallest receive window that an engine takes.
const MIN_RECEIVE_WINDOW: u64 = 64 << 10;

/// What all shards of a server have in common.
#[derive(Debug)]
pub struct Common<'c> {
    /// The configuration.
    pub config: &'c Config,
    /// How tensors are laid out in each shard's arena.
    pub plan: &'c Plan,
    /// The models, by handle.
    pub models: &'c [Served],
    /// The GPU that some of them compute on.
    pub gpu: Option<&'c Gpu>,
    /// The encoded catalogue of the models.
    pub catalog: &'c [u8],
    /// What is told over HTTP.
    pub status: &'c Arc<Status>,
    /// There are more data threads than cores.
    pub crowded: bool,
    /// How many shards there are, as those count down that are to end.
    pub busy: Arc<AtomicUsize>,
}

/// Where a data thread listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For TCP connections.
    pub tcp: Option<SocketAddr>,
    /// For datagrams.
    pub udp: Option<SocketAddr>,
}

/// A data thread that runs.
#[derive(Debug)]
pub struct Running {
    /// Where it listens. Where the kernel was to choose a port, the one that it chose.
    pub addresses: Addresses,
    /// Ends it, once what is under way is done.
    pub stop: Stop,
    /// The thread.
    pub thread: JoinHandle<()>,
}

/// Why a shard could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its arena.
    #[error("arena: {0}")]
    Arena(#[from] ArenaError),
    /// Its engine.
    #[error(transparent)]
    Engine(#[from] BuildError),
    /// Its part of the GPU.
    #[error("GPU: {0}")]
    Gpu(#[from] GpuError),
    /// Its orchestrator.
    #[error(transparent)]
    Orchestrator(#[from] orchestrator::BuildError),
    /// An address that cannot be listened on.
    #[error("cannot listen on {transport} {address}: {error}")]
    Listen {
        /// The transport.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The card.
    #[error(transparent)]
    Card(#[from] CardError),
    /// The kernel refused something else.
    #[error("data thread: {0}")]
    Kernel(#[from] io::Error),
}

/// Starts shard number `shard`. With several shards and a port that the kernel chooses, the others are given the addresses
/// of the first.
///
/// # Errors
/// [`StartError`], and nothing is left running.
pub fn start(
    common: &Common<'_>,
    shard: usize,
    addresses: Addresses,
    telemetry: Arc<Telemetry>,
) -> Result<Running, StartError> {
    if common.config.nic.kind == NicKind::Smartnic {
        return start_with_card(common, telemetry);
    }
    let (mut data, addresses) = assemble(common, shard, addresses, telemetry)?;
    let stop = data.stop_handle();
    let thread = thread::Builder::new().name(format!("data-{shard}")).spawn(move || data.run())?;
    Ok(Running { addresses, stop, thread })
}

type Data = DataThread<'static, InProcessNic, Orchestrator<'static, InProcessHost>>;

/// A data thread's work with all that belongs to it, and where it listens.
fn assemble(
    common: &Common<'_>,
    shard: usize,
    addresses: Addresses,
    telemetry: Arc<Telemetry>,
) -> Result<(Data, Addresses), StartError> {
    let Common { config, plan, .. } = common;
    let arena = Arena::new(&format!("splitrpc-{shard}"), &plan.all(), config.limits.external_outputs as usize)?;
    let known = engine_models(common);
    let known: Vec<ModelPlan<'_>> = known.iter().map(EngineModel::plan).collect();
    let mut limits = config.engine();
    if addresses.udp.is_some() {
        // What the kernel cannot hold would be dropped, and sent again.
        let room = UdpPort::receive_room(&udp_config(config, shard))?.max(MIN_RECEIVE_WINDOW);
        if room < limits.receive_window {
            tracing::warn!(bytes = room, "the kernel's limit on receive buffers cuts limits.receive_window_bytes");
            limits.receive_window = room;
        }
        limits.receive_room = room;
    }
    let engine = build_engine(&limits, &known, common.catalog, &plan.inputs)?;
    let (nic, host) = in_process(2 * config.limits.requests as usize);
    let waker = Waker::new()?;
    let device = common.gpu.map(|gpu| board(gpu, common, &arena)).transpose()?;
    let host = orchestrator(common, shard, host, &arena, &waker, &telemetry, device)?;
    let (tcp, udp) = (bind_tcp(config, addresses.tcp, &engine)?, bind_udp(config, addresses.udp, shard, &engine)?);
    let addresses =
        Addresses { tcp: tcp.as_ref().map(TcpPort::local_addr), udp: udp.as_ref().map(UdpPort::local_addr) };
    let settings = thread_config(config, shard, common.crowded);
    let input_pools = plan.inputs.len() as u16;
    let mut data = DataThread::new(settings, engine, arena, input_pools, nic, host, waker, telemetry)?
        .among(Arc::clone(&common.busy));
    if let Some(port) = tcp {
        data = data.with_tcp(port)?;
    }
    if let Some(port) = udp {
        data = data.with_udp(port)?;
    }
    Ok((data, addresses))
}

/// The models, as an engine knows them.
fn engine_models(common: &Common<'_>) -> Vec<EngineModel> {
    let models = common.models.iter().zip(&common.plan.models);
    models.map(|(model, pools)| EngineModel::new(model.factory.spec(), pools)).collect()
}

/// Who decides at the other end of a link. A shard lives as long as the process.
fn orchestrator<L: HostLink>(
    common: &Common<'_>,
    shard: usize,
    link: L,
    arena: &Arena,
    waker: &Waker,
    telemetry: &Arc<Telemetry>,
    device: Option<Board>,
) -> Result<Orchestrator<'static, L>, StartError> {
    let Common { config, plan, models, .. } = common;
    let rouse = waker.clone();
    let parts = Parts {
        shard,
        arena: arena.clone(),
        plan,
        models,
        requests: config.limits.requests,
        telemetry: Arc::clone(telemetry),
        waker: Arc::new(move || rouse.wake()),
        device: device.map(|board| Box::new(board) as Box<dyn Device>),
        launch_limit: u64::from(config.gpu.launch_limit_ms) * MS,
    };
    Ok(Orchestrator::new(link, parts, Box::leak(Box::new(Storage::new(plan))))?)
}

/// Starts the only shard beside a card, which does the rest.
fn start_with_card(common: &Common<'_>, telemetry: Arc<Telemetry>) -> Result<Running, StartError> {
    let Common { config, plan, catalog, status, crowded, .. } = common;
    let arena = Arena::new("splitrpc-0", &plan.all(), 0)?;
    let waker = Waker::new()?;
    // A card that may write there needs memory that is made for it.
    let shown = config.nic.gpu_memory != GpuMemory::Pinned;
    let emulated = smartnic::is_emulated(&config.nic).unwrap_or(false);
    let gpu = common.gpu.map(|gpu| if shown { gpu.beside_a_card(emulated) } else { gpu.clone() });
    let device = gpu.map(|gpu| board(&gpu, common, &arena)).transpose()?;
    let slots = device.as_ref().map(|board| Box::new(board.input_slots()) as Box<dyn DeviceSlots>);
    let orchestrator = orchestrator(common, 0, (), &arena, &waker, &telemetry, device)?;
    let (status, way, wanted) = (Arc::clone(status), Arc::clone(status), config.nic.gpu_memory);
    let parts = smartnic::Parts {
        arena,
        orchestrator,
        waker,
        config: thread_config(config, 0, *crowded),
        telemetry,
        told: Box::new(move |card| status.set_card(card)),
        device: slots,
        told_way: Box::new(move |taken| way.set_gpu_way(taken, wanted)),
    };
    let known = engine_models(common);
    let known: Vec<ModelPlan<'_>> = known.iter().map(EngineModel::plan).collect();
    let (stop, thread) = smartnic::start(parts, config, plan, &known, catalog)?;
    Ok(Running { addresses: Addresses::default(), stop, thread })
}

/// This shard's part of the GPU.
fn board(gpu: &Gpu, common: &Common<'_>, arena: &Arena) -> Result<Board, StartError> {
    let models = common.models.iter().zip(&common.plan.models);
    let tenants: Vec<_> = models
        .map(|(served, pools)| match served.factory.execution() {
            Execution::Gpu(program) => Some(Tenant { spec: served.factory.spec(), pools, program }),
            Execution::Inline | Execution::Threads => None,
        })
        .collect();
    let Config { limits, data, .. } = common.config;
    let board = Board::new(gpu, arena, &tenants, limits.requests as usize, data.threads.into())?;
    tracing::info!(gpu = gpu.name, mib = board.device_bytes() >> 20, "slots on the GPU");
    Ok(board)
}

fn bind_tcp(
    config: &Config,
    address: Option<SocketAddr>,
    engine: &BuiltEngine<'_>,
) -> Result<Option<TcpPort>, StartError> {
    // Buffers are left to the kernel, which grows those of the connections that need it.
    let options = TcpPortConfig { reuse_port: config.data.threads > 1, ..TcpPortConfig::default() };
    let bind = |address| {
        TcpPort::bind(address, &options, engine).map_err(|error| StartError::Listen {
            transport: "tcp",
            address,
            error,
        })
    };
    address.map(bind).transpose()
}

fn bind_udp(
    config: &Config,
    address: Option<SocketAddr>,
    shard: usize,
    engine: &BuiltEngine<'_>,
) -> Result<Option<UdpPort>, StartError> {
    let options = udp_config(config, shard);
    let bind = |address| {
        UdpPort::bind(address, &options, engine).map_err(|error| StartError::Listen {
            transport: "udp",
            address,
            error,
        })
    };
    address.map(bind).transpose()
}

fn udp_config(config: &Config, shard: usize) -> UdpPortConfig {
    let data = &config.data;
    let buffer = |bytes: u32| (bytes > 0).then_some(bytes as usize);
    UdpPortConfig {
        reuse_port: data.threads > 1,
        recv_buffer: buffer(data.receive_buffer),
        send_buffer: buffer(data.send_buffer),
        drop_permille: data.drop_permille,
        drop_seed: data.drop_seed.wrapping_add(shard as u64),
    }
}

fn thread_config(config: &Config, shard: usize, crowded: bool) -> DataThreadConfig {
    let wait = config.data.wait.mode(config.data.spin_us);
    let core = config.data.cores.get(shard).map(|core| usize::from(*core));
    DataThreadConfig { wait, core, crowded, drain: Duration::from_millis(config.limits.drain_ms.into()) }
}

impl Host for Orchestrator<'static, InProcessHost> {
    fn poll(&mut self, now: Time) -> bool {
        Orchestrator::poll(self, now)
    }

    fn early_bytes(&self) -> u32 {
        Orchestrator::early_bytes(self)
    }

    fn arriving(&mut self, arrival: &Arrival) {
        Orchestrator::arriving(self, arrival);
    }

    fn has_news(&self) -> bool {
        Orchestrator::has_news(self)
    }

    fn publish(&self) {
        Orchestrator::publish(self);
    }

    fn next_deadline(&self, now: Time) -> Option<Time> {
        Orchestrator::next_deadline(self, now)
    }

    fn drain(&mut self) {
        Orchestrator::drain(self);
    }

    fn is_idle(&self) -> bool {
        Orchestrator::is_idle(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use splitrpc_client::{Client, ClientOptions, Input, Transport};
    use splitrpc_wire::DType;

    use super::*;
    use crate::config::Builtin;
    use crate::serve::build;

    /// Asks both models at every size, once for each count in `asked`.
    fn ask(clients: &mut [Client], asked: u32) {
        for size in [64_u32, 5_000, 602_112] {
            let (bytes, dims) = (vec![7; size as usize], [size]);
            let input = [Input::new("INPUT", DType::Uint8, &dims, &bytes[..])];
            for client in &mut *clients {
                for model in ["null", "echo"] {
                    for _ in 0..asked {
                        let response = client.infer(model, &input).unwrap();
                        assert_eq!(response.data().len(), if model == "null" { 4_000 } else { bytes.len() });
                        client.recycle(response);
                    }
                }
            }
        }
    }

    #[test]
    fn a_request_allocates_nothing_once_the_shard_is_warm() {
        let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = Config::default();
        (config.listen.tcp, config.listen.udp) = (any, any);
        config.limits.sessions = 16;
        config.models.builtins = vec![Builtin::Null, Builtin::Echo];
        let built = build(config).unwrap();
        let (config, plan, models, catalog) = (&built.config, &built.plan, &built.models[..], &built.catalog[..]);
        let (status, busy) = (&built.status, Arc::new(AtomicUsize::new(1)));
        let common = Common { config, plan, models, gpu: None, catalog, status, crowded: true, busy };
        let (mut data, at) =
            assemble(&common, 0, Addresses { tcp: any, udp: any }, Arc::clone(&built.telemetry[0])).unwrap();
        let phase = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&phase);
        let clients = thread::spawn(move || {
            let connect = |address: Option<SocketAddr>, transport| {
                let options = ClientOptions { transport, ..ClientOptions::default() };
                Client::connect(&address.unwrap().to_string(), options).unwrap()
            };
            let mut clients = [connect(at.tcp, Transport::Tcp), connect(at.udp, Transport::Udp)];
            for reached in 1..=2 {
                ask(&mut clients, 5);
                told.store(reached, Ordering::SeqCst);
            }
            clients
        });
        // A thread that has panicked raises nothing any more.
        let mut serve_until = |reached| {
            while phase.load(Ordering::SeqCst) < reached && !clients.is_finished() {
                data.poll();
            }
        };
        serve_until(1);
        let allocations = allocation_counter::measure(|| serve_until(2));
        clients.join().unwrap();
        assert_eq!(allocations.count_total, 0, "{allocations:?}");
    }
}
