//! splitrpc beside a BlueField: the host agent is this process. The card is elsewhere, or a process of its own that has the software
//! BlueField's other side.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use host_agent::config::{Config, Nic, NicKind};
use host_agent::serve::{Server, build, run};
use nic_app::card::{self, CardConfig, CardPorts, CardStop};
use nic_app::{DataThreadConfig, WaitMode};

use super::{BesideCard, ServerOptions, Transport, UDP_BUFFER, signpost, splitrpc};
use crate::process::{end_with_parent, own_program};
use crate::wait::Wait;

/// Names the software BlueField's folder to it.
pub(crate) const BUS: &str = "SPLITRPC_BLUEFIELD";
/// Tells it on which side of the bus a process is.
const SIDE: &str = "SPLITRPC_BLUEFIELD_SIDE";
const LIBRARY: &str = "libdoca_emu.so";
/// How long a host agent spins that shares its core, in microseconds: less than the usual 50, which are time of the card that it waits for, or
/// of a client that sends.
const SHARED_SPIN_US: u32 = 20;
/// How long a card and its host agent may take to find each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// The software BlueField's card, as a process.
#[derive(Debug, Args)]
pub(crate) struct ServeCard {
    /// Where it listens.
    #[arg(long)]
    bind: SocketAddr,
    /// For datagrams.
    #[arg(long)]
    udp: bool,
    /// How it waits.
    #[arg(long)]
    wait: Wait,
    /// Core to run on.
    #[arg(long)]
    core: Option<usize>,
    /// Others spin on the same core: give way to them.
    #[arg(long)]
    shared_core: bool,
    /// End with the process of this number, which started this one.
    #[arg(long)]
    parent: u32,
}

/// Runs the server until the process ends. Where no card is named, one is started on the software BlueField, and this process begins anew
/// as what is on the other side of that.
pub(crate) fn serve(
    transport: Transport,
    options: &ServerOptions,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let BesideCard { core, card, doorbell } = options.beside_card;
    let libraries = if card.is_none() { Some(library()?) } else { None };
    if libraries.is_some() && std::env::var(SIDE).as_deref() != Ok("host") {
        return emulate(transport, options);
    }
    // Before anything is started that would be in vain.
    let signpost = TcpListener::bind(options.bind)?;
    // All of it, so that it knows how few cores it has.
    if let Some(core) = core.or(options.core) {
        splitrpc_socket::pin_current_thread(core).with_context(|| format!("core {core} cannot be had"))?;
    }
    let commodity = splitrpc::config(transport, options, None);
    let mut nic = Nic { kind: NicKind::Smartnic, libraries, ..commodity.nic.clone() };
    nic.doorbell = doorbell.or(nic.doorbell);
    let spin_us = if options.shared_core || shares_core(options) { SHARED_SPIN_US } else { commodity.data.spin_us };
    let data = host_agent::config::Data { cores: Vec::new(), drop_permille: 0, spin_us, ..commodity.data };
    let server = Server::start(build(Config { nic, data, ..commodity })?)?;
    let found = Instant::now() + PATIENCE;
    let at_card = loop {
        if let Some(card) = server.built.status.card() {
            break card;
        }
        // Somebody may yet start a card that is named; the software BlueField's has been.
        ensure!(card.is_some() || Instant::now() < found, "the card does not come");
        ensure!(!server.has_failed(), "the server has ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    };
    let listens = match transport {
        Transport::Udp => at_card.udp,
        Transport::Tcp | Transport::None => at_card.tcp,
    };
    let mut listens = listens.with_context(|| format!("the card does not listen for {transport:?}"))?;
    if let Some(ip) = card {
        listens.set_ip(ip);
    }
    let at = signpost.local_addr()?;
    signpost::stand(signpost, listens, at_card.emulated)?;
    ready(at);
    run(server, |look| {
        std::thread::sleep(look);
        false
    });
    bail!("the server has ended by itself")
}

/// Whether the software BlueField's card and the host agent have one core.
fn shares_core(options: &ServerOptions) -> bool {
    let BesideCard { core, card, .. } = options.beside_card;
    card.is_none() && (core.is_none() || core == options.core)
}

/// Starts the card, and then this program again, in the place of this process.
fn emulate(transport: Transport, options: &ServerOptions) -> anyhow::Result<()> {
    let bus = match std::env::var_os(BUS) {
        Some(folder) => PathBuf::from(folder),
        None => std::env::temp_dir().join(format!("splitrpc-bluefield-{}", std::process::id())),
    };
    std::fs::create_dir_all(&bus).with_context(|| format!("making {}", bus.display()))?;
    let mut card = Command::new(own_program()?);
    // Where it is told to listen stands the signpost.
    let bind = SocketAddr::new(options.bind.ip(), 0);
    card.arg("serve-card").args(["--bind", &bind.to_string(), "--wait", options.wait.name()]);
    card.args(["--parent", &std::process::id().to_string()]);
    if transport == Transport::Udp {
        card.arg("--udp");
    }
    if let Some(core) = options.core {
        card.args(["--core", &core.to_string()]);
    }
    if shares_core(options) {
        card.arg("--shared-core");
    }
    card.env(BUS, &bus).env(SIDE, "arm").stdin(Stdio::null()).stdout(Stdio::null());
    let card = card.spawn().context("starting the software BlueField's card")?;
    let mut host = Command::new(own_program()?);
    host.args(std::env::args_os().skip(1)).args(["--card-process", &card.id().to_string()]);
    // It comes back where there is no such program, only.
    Err(host.env(BUS, &bus).env(SIDE, "host").exec()).context("starting the host agent beside the card")
}

/// Serves as the software BlueField's card until the process is ended.
pub(crate) fn serve_card(options: &ServeCard) -> anyhow::Result<()> {
    end_with_parent(options.parent)?;
    let wait = match options.wait {
        Wait::Spin => WaitMode::Spin,
        Wait::Adaptive => WaitMode::ADAPTIVE,
        Wait::Block => WaitMode::Block,
    };
    let at = |wanted: bool| wanted.then_some(options.bind);
    let config = CardConfig {
        libraries: Some(library()?),
        device: None,
        representor: None,
        memory: None,
        ports: CardPorts { tcp: at(!options.udp), udp: at(options.udp), buffer: UDP_BUFFER },
        thread: DataThreadConfig {
            wait,
            core: options.core,
            crowded: options.shared_core,
            ..DataThreadConfig::default()
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(card::serve(&config, &CardStop::default(), |_| {})?)
}

/// The software BlueField, which cargo leaves beside this program or among what that was built from.
fn library() -> anyhow::Result<PathBuf> {
    let program = own_program()?;
    let places = [program.with_file_name(LIBRARY), program.with_file_name("deps").join(LIBRARY)];
    let found = places.iter().find(|place| place.is_file()).cloned();
    found.with_context(|| {
        format!(
            "there is no {LIBRARY}, the software BlueField, beside {}: build both anew (cargo build --release), or leave the arm out with --arms",
            program.display()
        )
    })
}
