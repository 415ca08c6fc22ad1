//! What a card offers, and whether it could serve.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use splitrpc_doca::{Capabilities, Device, DeviceInfo, Library, MAX_IMMEDIATE};

use crate::card;
use crate::config::Config;
use crate::program::checks::{Check, fail, ok, warn};
use crate::program::memory as machine;

/// Looks at everything that serving needs.
#[must_use]
pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![image(), memory(), locked_memory()];
    match Library::load(config.card.libraries.as_deref()) {
        Ok(library) => {
            let kind = if library.is_emulated() { ", the software BlueField: emulated" } else { "" };
            checks.push(ok("doca", format!("version {}{kind}", library.version())));
            checks.extend(devices(&library, config));
        }
        Err(error) => checks.push(fail(
            "doca",
            error.to_string(),
            "install doca-sdk-common, doca-sdk-dma and doca-sdk-comch of the card's image, or name the folder with --doca",
        )),
    }
    let free = |at: SocketAddr| TcpListener::bind(at).map(drop);
    checks.push(address("tcp address", config.listen.tcp, free));
    let free = |at: SocketAddr| UdpSocket::bind(at).map(drop);
    checks.push(address("udp address", config.listen.udp, free));
    checks
}

fn devices(library: &Library, config: &Config) -> Vec<Check> {
    let all = match Device::all(library) {
        Ok(all) => all,
        Err(error) => return vec![fail("devices", error.to_string(), "is the driver of the card loaded?")],
    };
    let show = |info: &DeviceInfo| format!("{} {} {}", info.address, info.ibdev, info.interface).trim().to_owned();
    let shown: Vec<String> = all.iter().map(show).collect();
    let mut checks = vec![match shown.is_empty() {
        true => fail("devices", "DOCA knows of none", "nic-app runs on the card's own Arm cores"),
        false => ok("devices", shown.join("; ")),
    }];
    match card::open(library, &config.card("doctor")) {
        Ok((device, representor)) => {
            let Capabilities { import, copy_bytes, server, message_bytes, .. } = device.info().can;
            let immediate = device.info().can.immediate_bytes;
            checks.push(ok("device", device.info().address.clone()));
            checks.push(ok("representor", representor.address()));
            checks.push(match server {
                true => ok("mode", "a server can run here: DPU mode"),
                false => fail("mode", "no server can run here", "put the card into DPU mode, and cycle its power"),
            });
            checks.push(match import && copy_bytes > 0 {
                true => ok("copies", format!("of up to {copy_bytes} bytes into what the host shows")),
                false => fail("copies", "the host's memory cannot be reached", "put the card into DPU mode"),
            });
            let enough = immediate as usize >= MAX_IMMEDIATE;
            checks.push(match enough {
                true => ok("messages", format!("of up to {message_bytes} bytes, with {immediate} of immediate data")),
                false => fail(
                    "messages",
                    format!("immediate data has {immediate} bytes, and {MAX_IMMEDIATE} are needed"),
                    "update the card's firmware and image",
                ),
            });
        }
        Err(error) => checks.push(fail("device", error.to_string(), "name it with --device and --representor")),
    }
    checks
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

/// Bytes of memory that are free at least, for slots like the host's, all of which a card pins.
const ROOM: u64 = 1 << 30;

fn memory() -> Check {
    match machine::free() {
        Some(bytes) if bytes >= ROOM => ok("memory", format!("{} MiB free", bytes >> 20)),
        Some(bytes) => warn(
            "memory",
            format!("{} MiB free", bytes >> 20),
            "lower limits.slots_per_model or limits.class_bytes in the host agent's configuration",
        ),
        None => warn("memory", "cannot be told", ""),
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
