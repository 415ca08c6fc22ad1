//! What a card offers, and whether it could serve.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use splitrpc_doca::{Capabilities, Device, DeviceInfo, Library, MAX_IMMEDIATE, Options};

use crate::card;
use crate::config::Config;
use crate::program::checks::{Check, Verdict, count, fail, ok, warn};
use crate::program::memory as machine;
use crate::setup::PROTOCOL;

mod first;

/// Looks at everything that serving needs.
#[must_use]
pub fn examine(config: &Config) -> Vec<Check> {
    let version =
        format!("nic-app {}, protocol {PROTOCOL}; the host agent's are to be the same", env!("CARGO_PKG_VERSION"));
    let mut checks = vec![ok("version", version), image()];
    let library = Library::load(config.card.libraries.as_deref());
    checks.extend([memory(config, library.as_ref().is_ok_and(Library::is_emulated)), locked_memory()]);
    match library {
        Ok(library) => {
            let kind = if library.is_emulated() { ", the software BlueField: emulated" } else { "" };
            checks.push(ok("doca", format!("version {}{kind}; the host's is to be of the same release", library.version())));
            checks.extend(devices(&library, config));
        }
        Err(error) => checks.push(fail(
            "doca",
            error.to_string(),
            "install doca-sdk-common, doca-sdk-dma and doca-sdk-comch of the card's image, or name the folder with --doca",
        )),
    }
    let tcp = |at: SocketAddr| TcpListener::bind(at).map(drop);
    let udp = |at: SocketAddr| UdpSocket::bind(at).map(drop);
    checks.push(address("tcp address", config.listen.tcp, tcp));
    checks.push(address("udp address", config.listen.udp, udp));
    checks.push(address("http address", config.listen.http, tcp));
    checks
}

/// What all checks come to.
#[must_use]
pub fn conclusion(checks: &[Check]) -> &'static str {
    let emulated = checks.iter().any(|check| check.name == "doca" && check.found.contains("emulated"));
    match (count(checks, Verdict::Fail), emulated) {
        (0, false) => "this card can serve",
        (0, true) => "this card can serve; it is emulated, so nothing here says what a real one does",
        (_, _) => "this card cannot serve",
    }
}

fn devices(library: &Library, config: &Config) -> Vec<Check> {
    let all = match Device::all(library) {
        Ok(all) => all,
        Err(error) => return vec![fail("devices", error.to_string(), "is the driver of the card loaded?")],
    };
    if all.is_empty() {
        return vec![fail(
            "devices",
            "DOCA knows of none",
            "nic-app runs on the card's own Arm cores; is its driver loaded?",
        )];
    }
    let show = |info: &DeviceInfo| format!("{} {} {}", info.address, info.ibdev, info.interface).trim().to_owned();
    let mut checks = vec![ok("devices", all.iter().map(show).collect::<Vec<_>>().join("; "))];
    checks.push(match all.iter().find(|info| info.can.server) {
        Some(info) => ok("mode", format!("DPU mode: a server can run on {}", info.address)),
        None => fail(
            "mode",
            "no server can run on any of them: the card is in NIC mode, or this is its host",
            "run nic-app on the Arm cores; for DPU mode, on the host: mlxconfig -d DEVICE set INTERNAL_CPU_OFFLOAD_ENGINE=0, and cycle its power",
        ),
    });
    match card::open(library, &config.card("doctor")) {
        Ok((device, representor)) => {
            checks.push(ok("device", device.info().address.clone()));
            let shown = device.representors().unwrap_or_default();
            checks.push(ok("representor", format!("{}, of {}", representor.address(), shown.join(", "))));
            checks.extend(capabilities(&device.info().can));
            checks.extend(first::five(library, &device));
        }
        Err(error) => checks.push(fail(
            "device",
            error.to_string(),
            "name it with --device (card.device), and the host's with --representor (card.representor)",
        )),
    }
    checks
}

fn capabilities(can: &Capabilities) -> Vec<Check> {
    let Capabilities { import, copy_bytes, message_bytes, immediate_bytes, .. } = *can;
    let copies = match import && copy_bytes > 0 {
        true => ok("copies", format!("of up to {copy_bytes} bytes into what the host shows")),
        false => fail("copies", "the host's memory cannot be reached", "put the card into DPU mode"),
    };
    let messages = match immediate_bytes as usize >= MAX_IMMEDIATE {
        true => ok("messages", format!("of up to {message_bytes} bytes, with {immediate_bytes} of immediate data")),
        false => fail(
            "messages",
            format!("immediate data has {immediate_bytes} bytes, and {MAX_IMMEDIATE} are needed"),
            "update the card's firmware and image",
        ),
    };
    let Capabilities { receive_queue, send_tasks, consumer_tasks, producer_tasks, .. } = *can;
    let used = Options::within(can);
    let found = format!(
        "{receive_queue} messages received, of which {} are used, {send_tasks} sent, {} used; {consumer_tasks} receives of a consumer, \
         {producer_tasks} sends of a producer",
        used.receive_queue, used.sends
    );
    let few = [receive_queue, send_tasks, consumer_tasks].iter().any(|depth| *depth < 16);
    let queues = match few {
        false => ok("queues", found),
        true => warn("queues", found, "so few are soon full, and requests wait: update the card's firmware and image"),
    };
    vec![copies, messages, queues]
}

fn address(name: &'static str, at: Option<SocketAddr>, free: impl FnOnce(SocketAddr) -> std::io::Result<()>) -> Check {
    match at.map(|at| (at, free(at))) {
        None => ok(name, "off"),
        Some((at, Ok(()))) => ok(name, format!("{at} is free")),
        Some((at, Err(error))) if error.kind() == std::io::ErrorKind::AddrInUse => warn(
            name,
            format!("{at} is in use"),
            "that is as it should be where nic-app serves already; else choose another address",
        ),
        Some((at, Err(error))) => fail(name, format!("{at}: {error}"), "choose another address, or end what has it"),
    }
}

/// What the card's image says of itself; the host's is to be of the same release.
fn image() -> Check {
    match std::fs::read_to_string("/etc/mlnx-release") {
        Ok(text) => ok("image", text.lines().next().unwrap_or("").to_owned()),
        Err(_) => warn("image", "no /etc/mlnx-release: this is no card's image", ""),
    }
}

/// Bytes that a host agent's slots take at least, all of which a card pins as well.
const ROOM: u64 = 1 << 30;

fn memory(config: &Config, emulated: bool) -> Check {
    let budget = config.card("doctor").budget(emulated);
    let said = match (config.card.memory_mib, budget) {
        (Some(mib), _) => format!("card.memory_mib lets a host agent's slots take {mib} MiB"),
        (None, Some(budget)) => format!("a host agent's slots may take {} MiB", budget >> 20),
        (None, None) => "the software BlueField pins none, so slots may take any".to_owned(),
    };
    let Some(free) = machine::free() else { return warn("memory", format!("{said}; what is free cannot be told"), "") };
    let found = format!("{} MiB free, {said}", free >> 20);
    match budget {
        Some(budget) if budget > free => warn(
            "memory",
            found,
            "that is more than there is: lower card.memory_mib, or raise MemoryMax of the service",
        ),
        _ if free < ROOM => warn(
            "memory",
            found,
            "lower limits.slots_per_model or limits.class_bytes in the host agent's configuration",
        ),
        _ => ok("memory", found),
    }
}

fn locked_memory() -> Check {
    let text = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = text
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next().map(str::to_owned));
    match limit.as_deref() {
        Some("unlimited") => ok("locked memory", "unlimited"),
        Some(bytes) => warn(
            "locked memory",
            format!("at most {bytes} bytes, and DOCA answers NOT_PERMITTED where slots do not fit"),
            "set LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited",
        ),
        None => warn("locked memory", "cannot be told", ""),
    }
}
