//! A card's life.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use splitrpc_arena::{Arena, ArenaError, PoolLayout};
use splitrpc_doca::{
    Access, Connection, Consumer, Device, Error, Library, Lines, LoadError, Memory, Options, ProgressEngine,
    Representor, Server,
};
use splitrpc_engine::{ServerConfig, StorageSizes};
use splitrpc_ring::CONTROL_LINES;
use splitrpc_telemetry::Shard as Telemetry;

use super::bell::Bell;
use super::carrier::Carrier;
use super::device::OnDevice;
use super::far::{Far, Reach};
use super::greeting::{Guest, refuse, send_away, wait_for_guest};
use super::status::{About, CardState, Status};
use crate::data_thread::DataThread;
use crate::program::memory;
use crate::settings::{DataThreadConfig, Stop};
use crate::setup::{Message, ModelShape, Ready, SERVICE, Setup};
use crate::storage::{BuildError, EngineMemory};
use crate::tcp::{TcpPort, TcpPortConfig};
use crate::udp::{UdpPort, UdpPortConfig};
use crate::wait::Waker;

/// The smallest receive window that an engine takes.
const MIN_RECEIVE_WINDOW: u64 = 64 << 10;
/// How long a consumer may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// Receives posted for the host's answers.
const RECEIVES: u32 = 1024;
/// How soon a card that could not serve tries again.
const AGAIN: Duration = Duration::from_millis(200);

/// What a card is told by whoever starts it; all else its host agent tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardConfig {
    /// Where DOCA's libraries are; `None` is where they are installed.
    pub libraries: Option<PathBuf>,
    /// The card's own device, by PCI address; `None` is the first that can.
    pub device: Option<String>,
    /// What stands for the host's device, by that one's PCI address; `None` is the only one.
    pub representor: Option<String>,
    /// Bytes that slots and tables may take; `None` is seven eighths of what is free to this process, and of the software BlueField any, since that
    /// pins none.
    pub memory: Option<u64>,
    /// Where it listens.
    pub ports: CardPorts,
    /// How its data thread runs.
    pub thread: DataThreadConfig,
    /// Its version, to be shown.
    pub version: String,
}

impl CardConfig {
    /// Bytes that slots and tables may take now.
    pub(crate) fn budget(&self, emulated: bool) -> Option<u64> {
        // The eighth is for the program itself, and for what DOCA takes.
        let usual = || memory::free().filter(|_| !emulated).map(|free| free - free / 8);
        self.memory.or_else(usual)
    }
}

/// Where a card listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardPorts {
    /// For TCP connections.
    pub tcp: Option<SocketAddr>,
    /// For datagrams.
    pub udp: Option<SocketAddr>,
    /// Bytes of the datagrams' socket buffers, 0 for the kernel's default.
    pub buffer: usize,
}

/// Why a card cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// There is no DOCA.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// A call of DOCA.
    #[error("DOCA: {0}")]
    Doca(#[from] Error),
    /// There is no card, or it is not the one that is meant.
    #[error("{0}")]
    NoCard(String),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] BuildError),
    /// More memory would be pinned than the card may use.
    #[error(
        "its slots take {} MiB on the card as they do on the host, and the engine's tables {} MiB, and the card may use {} MiB: lower \
         limits.class_bytes or limits.slots_per_model of the host agent or leave out models (models.builtins), or raise card.memory_mib of nic-app \
         and the budget of its service",
        mib(*.slots), mib(*.tables), .budget >> 20
    )]
    Memory {
        /// Bytes of slots.
        slots: u64,
        /// Bytes of tables.
        tables: u64,
        /// Bytes that there may be.
        budget: u64,
    },
    /// Memory for slots or lines.
    #[error("slots: {0}")]
    Arena(#[from] ArenaError),
    /// An address that cannot be listened on.
    #[error("cannot listen on {transport} {address}: {error}")]
    Listen {
        /// The transport.
        transport: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The host agent cannot be roused.
    #[error("the card does not reach the host agent's doorbell{}: {error}; nic.doorbell is to be an address that it reaches", at(.address.as_ref()))]
    Doorbell {
        /// Where it is.
        address: Option<SocketAddr>,
        /// Why.
        error: std::io::Error,
    },
    /// The kernel refused something else.
    #[error("data thread: {0}")]
    Kernel(#[from] std::io::Error),
    /// What the host agent says cannot be.
    #[error("the host agent's set-up cannot be served: {0}")]
    Setup(String),
    /// What the host shows of its device's memory.
    #[error("the card does not reach the device's memory that the host agent shows: {0}")]
    Unreached(String),
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn at(address: Option<&SocketAddr>) -> String {
    address.map_or_else(String::new, |address| format!(" {address}"))
}

/// Tells a card to finish what is under way and end.
#[derive(Clone, Debug, Default)]
pub struct CardStop {
    flag: Arc<AtomicBool>,
    thread: Arc<Mutex<Option<Stop>>>,
}

impl CardStop {
    /// Tells it.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::SeqCst);
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.stop();
        }
    }

    /// Whether it was told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    fn of(&self, thread: Option<Stop>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = thread;
        // It may have been told meanwhile.
        if self.is_told() {
            self.stop_thread();
        }
    }

    fn stop_thread(&self) {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Stop::stop);
    }
}

/// Opens the card's device, and what stands on it for the host's.
///
/// # Errors
/// [`CardError`], which says what there is instead.
pub fn open(library: &Library, config: &CardConfig) -> Result<(Device, Representor), CardError> {
    let devices = Device::all(library)?;
    let known = || devices.iter().map(|device| device.address.as_str()).collect::<Vec<_>>().join(", ");
    let address = match &config.device {
        Some(address) => address.clone(),
        None => match devices.iter().find(|device| device.can.server) {
            Some(device) => device.address.clone(),
            None if devices.is_empty() => {
                return Err(CardError::NoCard("there is no BlueField here: DOCA knows of no device".to_owned()));
            }
            None => {
                let why = "none of the devices here is a card's own; nic-app runs on the card's Arm cores, in DPU mode";
                return Err(CardError::NoCard(format!("{why} (there are {})", known())));
            }
        },
    };
    let device = Device::open(library, &address)?;
    let representor = match &config.representor {
        Some(address) => address.clone(),
        None => {
            let mut all = device.representors()?;
            match (all.pop(), all.is_empty()) {
                (Some(only), true) => only,
                (None, _) => return Err(CardError::NoCard("the card shows no device of the host".to_owned())),
                (Some(last), false) => {
                    let all = format!("{}, {last}", all.join(", "));
                    return Err(CardError::NoCard(format!(
                        "which of the host's devices? Name one with --representor: {all}"
                    )));
                }
            }
        }
    };
    Ok((device.clone(), device.representor(&representor)?))
}

/// Serves one host agent after the other, until it is told to stop. `told` hears when it waits for one, and when it listens.
///
/// # Errors
/// [`CardError`] where nothing can ever be served: there is no DOCA, no card, or no place to listen.
pub fn serve(config: &CardConfig, stop: &CardStop, told: impl FnMut(Option<&Ready>)) -> Result<(), CardError> {
    serve_watched(config, stop, &Arc::default(), told)
}

/// The same, and what it does shows in `status`.
///
/// # Errors
/// As of [`serve`].
pub fn serve_watched(
    config: &CardConfig,
    stop: &CardStop,
    status: &Arc<Status>,
    mut told: impl FnMut(Option<&Ready>),
) -> Result<(), CardError> {
    let library = Library::load(config.libraries.as_deref())?;
    let (device, representor) = open(&library, config)?;
    tracing::info!(
        device = device.info().address,
        representor = representor.address(),
        doca = library.version(),
        emulated = library.is_emulated(),
        "card opened"
    );
    status.opened(About {
        device: device.info().address.clone(),
        representor: representor.address().to_owned(),
        doca: library.version().to_owned(),
        emulated: library.is_emulated(),
    });
    while !stop.is_told() {
        status.enter(CardState::Waiting);
        told(None);
        let engine = ProgressEngine::new(&library)?;
        let mut server = Server::new(&engine, &device, &representor, SERVICE, Options::within(&device.info().can))?;
        let guest = wait_for_guest(&engine, &mut server, &config.version, status, || stop.is_told())?;
        let Some(Guest { connection, setup }) = guest else { break };
        status.enter(CardState::Preparing);
        let Prepared { slots, carrier, consumer, lines, bell } =
            match prepare(config, &device, &engine, &connection, &setup, status) {
                Ok(prepared) => prepared,
                Err(error) => {
                    let why = error.to_string();
                    match error {
                        CardError::Unreached(_) => {
                            send_away(
                                &engine,
                                &mut server,
                                &connection,
                                &why,
                                &Message::Unreached { why: &why },
                                status,
                            );
                        }
                        _ => refuse(&engine, &mut server, &connection, &why, status),
                    }
                    std::thread::sleep(AGAIN);
                    continue;
                }
            };
        let reach = Reach { engine, server, connection, consumer, carrier, lines, bell };
        let inputs = &slots.layouts[..usize::from(setup.input_pools)];
        let last_input = inputs.last().map_or(0, |(pool, _)| *pool);
        let far = Far::new(reach, &slots.arena, setup.limits.requests, last_input, setup.ring_entries);
        let served = run(config, stop, &setup, &slots, &far, status, &mut told);
        stop.of(None);
        let why = match (&served, far.lost()) {
            (Err(error), _) => error.to_string(),
            // It may still hear that, where it was only stopped.
            (Ok(()), Some(loss)) => loss.to_string(),
            (Ok(()), None) => "nic-app was told to end".to_owned(),
        };
        far.say(&if served.is_ok() { Message::Bye { why: &why } } else { Message::Refused { why: &why } });
        match served {
            Ok(()) => {}
            // Nobody else would find the address free.
            Err(error @ CardError::Listen { .. }) => return Err(error),
            Err(error) => {
                tracing::error!(%error, "the host agent cannot be served");
                std::thread::sleep(AGAIN);
            }
        }
    }
    Ok(())
}

/// The slots of both sides, which are laid out alike.
struct Slots {
    layouts: Vec<(u16, PoolLayout)>,
    arena: Arena,
}

/// What a host agent is served with.
struct Prepared {
    slots: Slots,
    carrier: Carrier,
    consumer: Consumer,
    lines: Lines,
    bell: Bell,
}

fn prepare(
    config: &CardConfig,
    device: &Device,
    engine: &ProgressEngine,
    connection: &Connection,
    setup: &Setup,
    status: &Arc<Status>,
) -> Result<Prepared, CardError> {
    let layouts = setup.layouts().map_err(|error| CardError::Setup(error.to_string()))?;
    if let Some(budget) = config.budget(device.library().is_emulated()) {
        within(setup, budget)?;
    }
    let arena = Arena::new("splitrpc-card", &layouts, 0)?;
    let far = Memory::import(device, &setup.arena.description.0)?;
    let ring = Memory::import(device, &setup.ring.description.0)?;
    let entries = setup.ring_entries as usize;
    if far.len() != arena.bytes() || ring.len() < Lines::offset(CONTROL_LINES + entries) {
        return Err(CardError::Setup("what it exports is not as large as it says".to_owned()));
    }
    let lines = Lines::new("splitrpc-lines", entries)?;
    let control = Lines::offset(CONTROL_LINES);
    let on_device = OnDevice::import(device, &setup.device, &layouts).map_err(CardError::Unreached)?;
    let mut carrier = Carrier::new(engine, device, (&arena, far, on_device), (&lines, ring, control), status)?;
    carrier.prove(&arena).map_err(CardError::Unreached)?;
    // No payload goes there; a consumer wants some memory all the same.
    let room = Memory::of_arena(device, Lines::new("splitrpc-consumer", 1)?.arena(), Access::OtherWrites)?;
    let receives = RECEIVES.min(device.info().can.consumer_tasks.max(1));
    let mut consumer = Consumer::new(engine, connection, &room, receives)?;
    let end = Instant::now() + BEGIN_WITHIN;
    while !consumer.is_ready()? {
        engine.progress();
        if Instant::now() > end {
            return Err(CardError::Setup("nothing can be received from it".to_owned()));
        }
    }
    let unreachable = |error| CardError::Doorbell { address: setup.doorbell, error };
    let bell = Bell::new(setup.doorbell, setup.knock, status).map_err(unreachable)?;
    tracing::info!(
        arena_mib = arena.bytes() >> 20,
        ring = entries,
        models = setup.models.len(),
        pools_on_device = setup.device.len(),
        doorbell = setup.doorbell.map_or_else(|| "none".to_owned(), |at| at.to_string()),
        tcp = config.ports.tcp.map(|at| at.to_string()),
        "the host's memory is in reach"
    );
    Ok(Prepared { slots: Slots { layouts, arena }, carrier, consumer, lines, bell })
}

/// Whether what would be pinned and filled for a host agent fits. Who takes more is killed while it serves.
fn within(setup: &Setup, budget: u64) -> Result<(), CardError> {
    let (slots, pools) = (setup.arena.bytes, usize::from(setup.input_pools));
    let tables = StorageSizes::of(&setup.limits, setup.models.len(), pools).bytes() + setup.ring.bytes;
    if slots.saturating_add(tables) <= budget { Ok(()) } else { Err(CardError::Memory { slots, tables, budget }) }
}

/// Serves until the host agent is lost, or the card is told to end.
fn run(
    config: &CardConfig,
    stop: &CardStop,
    setup: &Setup,
    slots: &Slots,
    far: &Far,
    status: &Status,
    told: &mut impl FnMut(Option<&Ready>),
) -> Result<(), CardError> {
    let Slots { layouts, arena } = slots;
    let emulated = status.is_emulated();
    let pools = &layouts[..usize::from(setup.input_pools)];
    let udp = UdpPortConfig { recv_buffer: buffer(config), send_buffer: buffer(config), ..UdpPortConfig::default() };
    let room = match config.ports.udp {
        Some(_) => UdpPort::receive_room(&udp)?.max(MIN_RECEIVE_WINDOW),
        None => MIN_RECEIVE_WINDOW,
    };
    let limits = ServerConfig {
        stream_sessions: if config.ports.tcp.is_some() { setup.limits.stream_sessions } else { 0 },
        datagram_sessions: if config.ports.udp.is_some() { setup.limits.datagram_sessions } else { 0 },
        ..setup.engine(room, emulated)
    };
    let inputs: Vec<_> = setup.models.iter().map(ModelShape::inputs).collect();
    let models: Vec<_> = setup.models.iter().zip(&inputs).map(|(model, inputs)| model.plan(inputs)).collect();
    let mut memory = EngineMemory::new(&limits, models.len(), pools)?;
    let engine = memory.engine(&models, &setup.catalog.0, pools)?;
    let listen = |transport, address: SocketAddr| move |error| CardError::Listen { transport, address, error };
    let bind_tcp = |at| TcpPort::bind(at, &TcpPortConfig::default(), &engine).map_err(listen("tcp", at));
    let bind_udp = |at| UdpPort::bind(at, &udp, &engine).map_err(listen("udp", at));
    let (tcp, udp) = (config.ports.tcp.map(bind_tcp).transpose()?, config.ports.udp.map(bind_udp).transpose()?);
    let ready =
        Ready { tcp: tcp.as_ref().map(TcpPort::local_addr), udp: udp.as_ref().map(UdpPort::local_addr), emulated };
    let telemetry = Arc::new(Telemetry::new(models.len()));
    status.serves(Arc::clone(&telemetry), &setup.catalog.0);
    let (link, host, arena) = (far.clone(), far.clone(), arena.clone());
    let mut data =
        DataThread::new(config.thread, engine, arena, setup.input_pools, link, host, Waker::new()?, telemetry)?
            .among(Arc::new(AtomicUsize::new(1)));
    if let Some(port) = tcp {
        data = data.with_tcp(port)?;
    }
    if let Some(port) = udp {
        data = data.with_udp(port)?;
    }
    far.ends(data.stop_handle());
    stop.of(Some(data.stop_handle()));
    let json = serde_json::to_vec(&ready).expect("addresses");
    far.say(&Message::Ready { json: &json });
    told(Some(&ready));
    data.run();
    if let Some(why) = far.lost() {
        status.lost(why);
        tracing::info!(%why, "waiting for the host agent to come back");
    }
    Ok(())
}

fn buffer(config: &CardConfig) -> Option<usize> {
    (config.ports.buffer > 0).then_some(config.ports.buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::{Exported, Hex, PoolShape};

    #[test]
    fn what_takes_more_than_the_budget_is_refused_by_the_keys_that_make_it_large() {
        let exported = |bytes| Exported { description: Hex(Vec::new()), bytes };
        let setup = Setup {
            arena: exported(100 << 20),
            ring: exported(64 << 10),
            device: Vec::new(),
            ring_entries: 1024,
            pools: vec![PoolShape { id: 0, row_bytes: vec![1 << 20], max_batch: 1, windows: 100 }],
            input_pools: 1,
            models: Vec::new(),
            catalog: Hex(Vec::new()),
            limits: ServerConfig::small(),
            doorbell: None,
            knock: 0,
        };
        within(&setup, 1 << 30).unwrap();
        let error = within(&setup, 100 << 20).unwrap_err().to_string();
        for part in ["slots take 100 MiB", "may use 100 MiB", "limits.class_bytes", "card.memory_mib"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
