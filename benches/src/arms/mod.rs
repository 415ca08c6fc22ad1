//! The arms: what each is, how its server starts and how a client connects.

pub(crate) mod bundled;
pub(crate) mod floor_tcp;
pub(crate) mod floor_udp;
pub(crate) mod gpu;
pub(crate) mod protobuf;
pub(crate) mod signpost;
pub(crate) mod smartnic;
pub(crate) mod splitrpc;
pub(crate) mod tcp_server;

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde::Serialize;

use crate::load::connection::{Connection, Step};
use crate::machine;
use crate::wait::Wait;
use crate::workloads::{Exchange, Workload};

/// Bytes that the null model answers with, unless told otherwise.
pub(crate) const RESPONSE_BYTES: u32 = 4_000;
/// Bytes of a datagram's UDP payload that an Ethernet of ordinary size carries.
pub(crate) const DATAGRAM: u16 = 1_472;
/// The same for jumbo frames.
pub(crate) const JUMBO_DATAGRAM: u16 = 8_256;
/// Bytes asked of the kernel for each buffer of a datagram socket, in every arm.
pub(crate) const UDP_BUFFER: usize = 4 << 20;
/// No arm takes a larger request or response.
pub(crate) const MAX_MESSAGE: u32 = 64 << 20;

/// An arm of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arm {
    /// Raw TCP.
    FloorTcp,
    /// Raw TCP once more.
    FloorTcpAgain,
    /// Raw UDP.
    FloorUdp,
    /// Raw UDP once more.
    FloorUdpAgain,
    /// The bundled way over TCP.
    BundledTcp,
    /// splitrpc over TCP.
    CommodityTcp,
    /// splitrpc over UDP.
    CommodityUdp,
    /// splitrpc over TCP, on a BlueField.
    SmartnicTcp,
    /// splitrpc over UDP, on a BlueField.
    SmartnicUdp,
    /// The bundled way, with the model's input in pinned memory.
    BundledTcpPinned,
    /// The model alone, with no network.
    Local,
    /// One copy to the GPU, and nothing else.
    PinnedCopy,
}

/// What an arm runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// Nothing: client and server are one.
    None,
}

impl Arm {
    /// Every arm, in the order of reports and of port numbers.
    pub(crate) const ALL: [Arm; 12] = [
        Arm::FloorTcp,
        Arm::FloorTcpAgain,
        Arm::FloorUdp,
        Arm::FloorUdpAgain,
        Arm::BundledTcp,
        Arm::CommodityTcp,
        Arm::CommodityUdp,
        Arm::SmartnicTcp,
        Arm::SmartnicUdp,
        Arm::BundledTcpPinned,
        Arm::Local,
        Arm::PinnedCopy,
    ];

    /// Those that are compared where models compute on a GPU.
    pub(crate) const GPU: [Arm; 8] = [
        Arm::FloorTcp,
        Arm::FloorTcpAgain,
        Arm::BundledTcp,
        Arm::BundledTcpPinned,
        Arm::CommodityTcp,
        Arm::CommodityUdp,
        Arm::Local,
        Arm::PinnedCopy,
    ];

    /// Those that are compared where they compute on the CPU.
    pub(crate) const NETWORK: [Arm; 9] = [
        Arm::FloorTcp,
        Arm::FloorTcpAgain,
        Arm::FloorUdp,
        Arm::FloorUdpAgain,
        Arm::BundledTcp,
        Arm::CommodityTcp,
        Arm::CommodityUdp,
        Arm::SmartnicTcp,
        Arm::SmartnicUdp,
    ];

    /// The name in options and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arm::FloorTcp => "floor-tcp",
            Arm::FloorTcpAgain => "floor-tcp-again",
            Arm::FloorUdp => "floor-udp",
            Arm::FloorUdpAgain => "floor-udp-again",
            Arm::BundledTcp => "bundled-tcp",
            Arm::CommodityTcp => "commodity-tcp",
            Arm::CommodityUdp => "commodity-udp",
            Arm::SmartnicTcp => "smartnic-tcp",
            Arm::SmartnicUdp => "smartnic-udp",
            Arm::BundledTcpPinned => "bundled-tcp-pinned",
            Arm::Local => "local",
            Arm::PinnedCopy => "pinned-copy",
        }
    }

    /// What it is, in a line.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Arm::FloorTcp => "raw TCP sockets: the same bytes in and out, no protocol",
            Arm::FloorTcpAgain => "floor-tcp once more, to see how far this machine agrees with itself",
            Arm::FloorUdp => "raw UDP sockets with segmentation offload: the same bytes in and out, no protocol",
            Arm::FloorUdpAgain => "floor-udp once more",
            Arm::BundledTcp => {
                "the usual way, done well: whole protobuf message to the heap, decode, copy to the input"
            }
            Arm::CommodityTcp => "splitrpc over TCP: the kernel copies payload straight into the model's input slot",
            Arm::CommodityUdp => "splitrpc over UDP: payload scattered into the model's input slot",
            Arm::SmartnicTcp => {
                "splitrpc over TCP on a BlueField, which writes payload into the host's input slot; emulated where there is none"
            }
            Arm::SmartnicUdp => "the same over UDP",
            Arm::BundledTcpPinned => "bundled-tcp with its input and output in pinned memory, on a GPU",
            Arm::Local => "the model alone on a GPU, with copies from and to pinned memory and no network",
            Arm::PinnedCopy => "a copy of the request from pinned memory to a GPU, and nothing else",
        }
    }

    /// What it runs over.
    pub(crate) fn transport(self) -> Transport {
        match self {
            Arm::FloorUdp | Arm::FloorUdpAgain | Arm::CommodityUdp | Arm::SmartnicUdp => Transport::Udp,
            Arm::FloorTcp
            | Arm::FloorTcpAgain
            | Arm::BundledTcp
            | Arm::BundledTcpPinned
            | Arm::CommodityTcp
            | Arm::SmartnicTcp => Transport::Tcp,
            Arm::Local | Arm::PinnedCopy => Transport::None,
        }
    }

    /// The floor of a transport and its second run. What goes over none is set beside the same floor as all others.
    pub(crate) fn floors(transport: Transport) -> [Arm; 2] {
        match transport {
            Transport::Tcp | Transport::None => [Arm::FloorTcp, Arm::FloorTcpAgain],
            Transport::Udp => [Arm::FloorUdp, Arm::FloorUdpAgain],
        }
    }

    /// Whether it has a model: floors have none.
    pub(crate) fn computes(self) -> bool {
        ![Arm::FloorTcp, Arm::FloorTcpAgain, Arm::FloorUdp, Arm::FloorUdpAgain].contains(&self)
    }

    /// Whether its server is splitrpc's.
    pub(crate) fn is_splitrpc(self) -> bool {
        matches!(self, Arm::CommodityTcp | Arm::CommodityUdp | Arm::SmartnicTcp | Arm::SmartnicUdp)
    }

    /// Whether that has its network half on a card.
    pub(crate) fn is_smartnic(self) -> bool {
        matches!(self, Arm::SmartnicTcp | Arm::SmartnicUdp)
    }

    /// Where the arm listens, counted from the port base that `--server` names.
    pub(crate) fn port_offset(self) -> u16 {
        Arm::ALL.iter().position(|&arm| arm == self).unwrap_or(0) as u16
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a server of an arm is to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServerOptions {
    /// Where it listens; port 0 takes any.
    pub(crate) bind: SocketAddr,
    /// How it waits.
    pub(crate) wait: Wait,
    /// Bytes of UDP payload in each datagram.
    pub(crate) datagram: u16,
    /// Share of arriving datagrams that the port throws away, for the arms that have such a hook.
    pub(crate) drop: f64,
    /// Bytes that the null model answers with.
    pub(crate) response_bytes: u32,
    /// What is computed.
    pub(crate) workload: Workload,
    /// The core that the data thread is bound to.
    pub(crate) core: Option<usize>,
    /// Whether a client runs on the same core, or on that of the host agent.
    pub(crate) shared_core: bool,
    /// With a card's arms.
    pub(crate) beside_card: BesideCard,
}

/// How the host's half of a server with a card is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BesideCard {
    /// The host agent's core; `None` is that of the software BlueField's card.
    pub(crate) core: Option<usize>,
    /// Where clients reach the card; `None` is the software BlueField.
    pub(crate) card: Option<IpAddr>,
    /// Where the card's datagrams arrive that rouse the host agent, unless it is the usual place.
    pub(crate) doorbell: Option<SocketAddr>,
}

/// How a client connects.
#[derive(Clone)]
pub(crate) struct ClientOptions {
    /// The server.
    pub(crate) server: SocketAddr,
    /// What is asked, and what the answer must be.
    pub(crate) exchange: Arc<Exchange>,
    /// Where the answer is computed in this process, by the arms that do that.
    pub(crate) device: Option<Rc<gpu::Device>>,
    /// What is computed.
    pub(crate) workload: Workload,
    /// Bytes of UDP payload in each datagram.
    pub(crate) datagram: u16,
    /// How many connections share the server.
    pub(crate) peers: usize,
    /// When a request that nobody answered has failed.
    pub(crate) timeout: Duration,
}

/// Runs an arm's server until the process ends. Calls `ready` once it listens with the address, and with the bytes of a GPU's
/// memory that it has taken, apart from what the driver takes for itself.
pub(crate) fn serve(
    arm: Arm,
    options: &ServerOptions,
    ready: impl FnOnce(SocketAddr, Option<u64>),
) -> anyhow::Result<()> {
    let computes = arm.computes() && options.workload.is_on_gpu();
    let memory = if computes { Some(gpu::DeviceMemory::look()?) } else { None };
    let ready = |address| ready(address, memory.as_ref().and_then(gpu::DeviceMemory::taken));
    // Whoever started this process may have been bound to a core of its own.
    machine::unpin()?;
    if let Some(core) = options.core.filter(|_| !arm.is_splitrpc()) {
        splitrpc_socket::pin_current_thread(core).with_context(|| format!("core {core} cannot be had"))?;
    }
    match arm {
        Arm::FloorTcp | Arm::FloorTcpAgain => floor_tcp::serve(options, ready),
        Arm::FloorUdp | Arm::FloorUdpAgain => floor_udp::serve(options, ready),
        Arm::BundledTcp | Arm::BundledTcpPinned => bundled::serve(options, arm == Arm::BundledTcpPinned, ready),
        Arm::Local | Arm::PinnedCopy => anyhow::bail!("{arm} has no server"),
        Arm::CommodityTcp | Arm::CommodityUdp => splitrpc::serve(arm.transport(), options, ready),
        Arm::SmartnicTcp | Arm::SmartnicUdp => smartnic::serve(arm.transport(), options, ready),
    }
}

/// Opens a connection to an arm's server.
pub(crate) fn connect(arm: Arm, options: &ClientOptions) -> anyhow::Result<Box<dyn Connection>> {
    Ok(match arm {
        Arm::FloorTcp | Arm::FloorTcpAgain => Box::new(floor_tcp::Client::connect(options)?),
        Arm::FloorUdp | Arm::FloorUdpAgain => Box::new(floor_udp::Client::connect(options)?),
        Arm::BundledTcp | Arm::BundledTcpPinned => Box::new(bundled::Client::connect(options)?),
        Arm::Local | Arm::PinnedCopy => Box::new(gpu::Local::new(options, arm == Arm::Local)?),
        Arm::CommodityTcp | Arm::CommodityUdp | Arm::SmartnicTcp | Arm::SmartnicUdp => {
            Box::new(splitrpc::Client::connect(arm.transport(), options)?)
        }
    })
}

/// Where clients reach an arm whose server listens at `server`: a card is elsewhere than its host agent.
///
/// # Errors
/// Where a card is not told of, or is in this machine.
pub(crate) fn locate(arm: Arm, server: SocketAddr) -> anyhow::Result<Located> {
    if arm.is_smartnic() { signpost::read(server) } else { Ok(Located { address: server, emulated: false }) }
}

/// Where clients reach a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) address: SocketAddr,
    /// A software BlueField stands in for its card.
    pub(crate) emulated: bool,
}

/// Asks an arm's server one small thing, and fails unless the right answer comes within two seconds.
pub(crate) fn ask_once(arm: Arm, server: SocketAddr) -> anyhow::Result<()> {
    let timeout = Duration::from_secs(2);
    let server = locate(arm, server)?.address;
    if arm.transport() == Transport::Tcp {
        // Arms leave it to the kernel how long a connection may take to come about, which is minutes.
        TcpStream::connect_timeout(&server, timeout)?;
    }
    let options = ClientOptions {
        server,
        exchange: Workload::Null.exchange(64, RESPONSE_BYTES).into(),
        device: None,
        workload: Workload::Null,
        datagram: DATAGRAM,
        peers: 1,
        timeout,
    };
    let mut connection = connect(arm, &options)?;
    connection.begin()?;
    let until = Instant::now() + timeout;
    while connection.advance()? != Step::Done {
        ensure!(Instant::now() < until, "no answer within {} s", timeout.as_secs());
        std::thread::sleep(Duration::from_micros(100));
    }
    connection.check().map_err(|fault| anyhow!("{fault}"))
}

/// The answer of the null model.
pub(crate) fn null_response(bytes: u32) -> Vec<u8> {
    (0..u64::from(bytes)).map(|i| ((i * 7 + 13) % 251) as u8).collect()
}

/// A request's payload: any bytes will do, as long as they are not all alike.
pub(crate) fn request_payload(bytes: u32) -> Vec<u8> {
    (0..u64::from(bytes)).map(|i| ((i * 31 + i / 4096 + 7) % 253) as u8).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::load::driver;
    use crate::load::window::{Load, Measured, Window};
    use crate::process::{Clocks, CpuClock};

    /// Runs `connections` against a server of its own, in a thread that ends with the test's process.
    fn drive(arm: Arm, wait: Wait, request_bytes: u32, connections: usize, peers: usize) -> Measured {
        drive_with(Workload::Null, arm, wait, (request_bytes, connections, peers))
    }

    fn drive_with(
        workload: Workload,
        arm: Arm,
        wait: Wait,
        (request_bytes, connections, peers): (u32, usize, usize),
    ) -> Measured {
        let (sender, receiver) = mpsc::channel();
        let exchange = workload.exchange(request_bytes, RESPONSE_BYTES);
        let options = ServerOptions {
            bind: ([127, 0, 0, 1], 0).into(),
            wait,
            datagram: DATAGRAM,
            drop: 0.0,
            response_bytes: RESPONSE_BYTES,
            workload,
            core: None,
            shared_core: true,
            beside_card: BesideCard::default(),
        };
        let (server, device) = if arm.transport() == Transport::None {
            let (request, response) = (exchange.request.len() as u32, exchange.expected.len() as u32);
            (options.bind, Some(gpu::Device::open(workload, request, response).unwrap().into()))
        } else {
            std::thread::spawn(move || serve(arm, &options, |address, _| sender.send(address).unwrap()));
            (receiver.recv().unwrap(), None)
        };
        let options = ClientOptions {
            server,
            exchange: exchange.into(),
            device,
            workload,
            datagram: DATAGRAM,
            peers,
            timeout: Duration::from_secs(5),
        };
        let mut connect = || connect(arm, &options);
        let mut clients: Vec<_> = (0..connections).map(|_| connect().unwrap()).collect();
        let window = Window {
            warm_up: Duration::ZERO,
            // Each connection's first request counts, so that there is one however slow the machine.
            warm_up_requests: 0,
            measure: Duration::from_millis(50),
            timeout: options.timeout,
        };
        driver::run(&mut clients, wait, Load::Closed, &window, &Clocks::of(CpuClock::Own), &mut connect).unwrap()
    }

    #[test]
    fn every_arm_answers_every_request_right_in_every_wait_mode() {
        // Those of a card are processes.
        for arm in Arm::NETWORK.into_iter().filter(|arm| !arm.is_smartnic()) {
            for wait in [Wait::Block, Wait::Adaptive] {
                for (request_bytes, connections) in [(64, 1), (602_112, 1), (100_000, 6)] {
                    let measured = drive(arm, wait, request_bytes, connections, connections);
                    let each = || measured.latencies.iter().map(Vec::len);
                    let what = format!("{arm} {} {request_bytes} x {connections}", wait.name());
                    assert!(each().all(|count| count > 0), "{what}: {:?}", each().collect::<Vec<_>>());
                    assert!(measured.errors.is_empty(), "{what}: {:?}", measured.errors);
                }
            }
        }
    }

    #[test]
    fn gpu_every_arm_answers_every_model_right() {
        if !gpu::tests::has_gpu() {
            return;
        }
        for workload in Workload::MODELS.into_iter().chain([Workload::NullGpu]) {
            for arm in Arm::GPU.into_iter().filter(|arm| arm.computes() && *arm != Arm::PinnedCopy) {
                // Several at once share a server, and not what it answers with.
                let (wait, connections) =
                    if arm.transport() == Transport::None { (Wait::Spin, 1) } else { (Wait::Adaptive, 3) };
                let measured = drive_with(workload, arm, wait, (602_112, connections, connections));
                let what = format!("{arm} {}", workload.name());
                assert!(measured.latencies.iter().all(|one| !one.is_empty()), "{what}");
                assert!(measured.errors.is_empty(), "{what}: {:?}", measured.errors);
            }
        }
    }

    #[test]
    fn a_datagram_floor_with_a_small_window_still_ends_its_requests() {
        // As if a thousand others shared the server's receive buffer.
        let measured = drive(Arm::FloorUdp, Wait::Adaptive, 602_112, 1, 1_000);
        assert!(!measured.latencies[0].is_empty() && measured.errors.is_empty(), "{:?}", measured.errors);
    }

    #[test]
    fn the_bundled_way_copies_each_byte_twice_and_says_so() {
        let paths = drive(Arm::BundledTcp, Wait::Adaptive, 602_112, 1, 1).paths;
        assert!(paths.count > 0);
        // The message is a little longer than its payload.
        let copies = paths.copied as f64 / paths.payload as f64;
        assert!((2.0..2.01).contains(&copies), "{copies}");
    }

    #[test]
    fn splitrpc_copies_each_byte_once_and_says_so() {
        for arm in [Arm::CommodityTcp, Arm::CommodityUdp] {
            let paths = drive(arm, Wait::Adaptive, 602_112, 1, 1).paths;
            assert!(paths.count > 0);
            // Datagrams that come out of order are put right by copies of their own, counted apart.
            assert_eq!(paths.copied - paths.fixup, paths.payload, "{arm}");
            assert_eq!(paths.runtime_copied, 0, "{arm}");
        }
    }

    #[test]
    fn the_null_models_answer_is_the_one_promised() {
        let answer = null_response(300);
        assert_eq!((answer[0], answer[1], answer[34], answer[35]), (13, 20, 0, 7));
    }
}
