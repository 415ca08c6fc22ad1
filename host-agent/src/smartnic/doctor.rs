//! What the host's side of a card needs, looked at one by one. The card is visited, and left as it was.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nic_app::program::checks::{Check, fail, ok, runs, warn};
use nic_app::setup::PROTOCOL;
use rustix::process::{Resource, getrlimit};
use splitrpc_doca::{Access, Code, Device, Library, Lines, Memory};

use super::visit::Visit;
use super::{CardError, reach};
use crate::config::{Config, Nic};

/// How long the card may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Looks at everything that serving with a card needs; the slots of the models have so many bytes.
pub(crate) fn examine(config: &Config, slots: u64) -> Vec<Check> {
    let nic = &config.nic;
    let mut checks = vec![locked(slots)];
    let emulated = match Library::load(nic.libraries.as_deref()) {
        Ok(library) => {
            checks.push(doca(&library, nic));
            checks.extend(device(&library, nic));
            library.is_emulated()
        }
        Err(error) => {
            let advice = "install doca-sdk-common, doca-sdk-dma and doca-sdk-comch of DOCA-Host, or name their folder (nic.libraries)";
            checks.push(fail("doca", error.to_string(), advice));
            false
        }
    };
    checks.extend([doorbell(nic, emulated), gpu_memory(Path::new("/"))]);
    checks
}

fn doca(library: &Library, nic: &Nic) -> Check {
    let from = nic.libraries.as_ref().map_or_else(|| "where it is installed".to_owned(), |at| at.display().to_string());
    let kind = if library.is_emulated() { "the software BlueField, emulated" } else { "the SDK" };
    ok("doca", format!("{kind}, version {} from {from}; the card's is to be of the same release", library.version()))
}

fn device(library: &Library, nic: &Nic) -> Vec<Check> {
    let device = match reach::open(library, nic) {
        Ok(device) => device,
        Err(error) => {
            let advice = "is the card in its slot (lspci -d 15b3:), its driver loaded, and nic.device the address of one of its functions?";
            return vec![fail("card's device", error.to_string(), advice)];
        }
    };
    let info = device.info();
    let shown = format!("{} {} {}", info.address, info.ibdev, info.interface);
    let mut checks = vec![ok("card's device", shown.trim())];
    checks.push(match info.can.client {
        true => ok(
            "card's messages",
            format!(
                "of up to {} bytes, {} received and {} sent at once",
                info.can.message_bytes, info.can.receive_queue, info.can.send_tasks
            ),
        ),
        false => fail(
            "card's messages",
            "no client can run on this device",
            "put the card into DPU mode: mlxconfig -d DEVICE set INTERNAL_CPU_OFFLOAD_ENGINE=0, and cycle its power",
        ),
    });
    checks.push(export(&device));
    if info.can.client {
        checks.extend(card(&device));
    }
    checks
}

/// Whether memory can be shown to the card: some is, and nobody is told of it.
fn export(device: &Device) -> Check {
    const NAME: &str = "memory for the card";
    if !device.info().can.export {
        return fail(NAME, "this device shows none", "put the card into DPU mode");
    }
    let lines = match Lines::new("splitrpc-doctor", 64) {
        Ok(lines) => lines,
        Err(error) => return fail(NAME, error.to_string(), ""),
    };
    let memory = Memory::of_arena(device, lines.arena(), Access::OtherWrites);
    match memory.and_then(|memory| memory.export().map(|description| description.len())) {
        Ok(bytes) => ok(NAME, format!("can be registered and shown, in a description of {bytes} bytes")),
        Err(error) if error.code() == Code::NOT_PERMITTED => fail(
            NAME,
            error.to_string(),
            "LimitMEMLOCK=infinity and the rights that deploy/bluefield/host-agent.conf grants; as root outside of a unit: ulimit -l unlimited",
        ),
        Err(error) => fail(NAME, error.to_string(), "is DOCA of the same release on both sides?"),
    }
}

/// Says hello to the card, and leaves. One that serves somebody goes on with that.
fn card(device: &Device) -> Vec<Check> {
    let end = Instant::now() + PATIENCE;
    let over = || Instant::now() > end;
    let visit = match Visit::begin(device, &over) {
        Ok(visit) => visit,
        Err(error) => return vec![fail("card", error.to_string(), "`nic-app doctor` on the card says more")],
    };
    let Some(mut visit) = visit else {
        let advice = "start nic-app there (systemctl status nic-app); the agent looks for it until it comes";
        return vec![warn("card", "nobody answers on it", advice)];
    };
    let begun = Instant::now();
    let said = visit.greet(VERSION, &over);
    let took = begun.elapsed();
    let kind = if device.library().is_emulated() { ", emulated" } else { "" };
    let took = took.as_micros();
    // A card that waits for an agent sleeps up to 10 ms between looks; one that serves does not.
    let time = ok(
        "message time",
        format!("{took} us for hello and welcome, with a card that looks each 10 ms: no more than that{kind}"),
    );
    match said {
        Ok(version) if version == VERSION => {
            vec![ok("card", format!("nic-app {version} waits for an agent, protocol {PROTOCOL}{kind}")), time]
        }
        Ok(version) => vec![
            warn(
                "card",
                format!(
                    "nic-app {version} waits for an agent, and this is {VERSION}; both speak protocol {PROTOCOL}{kind}"
                ),
                "install the same release on both sides",
            ),
            time,
        ],
        Err(CardError::Refused(why)) if why == nic_app::setup::TAKEN => vec![runs(
            "card",
            format!("nic-app serves a host agent already{kind}"),
            "nothing, if it is the one you mean; another can be served once that has ended",
        )],
        Err(error) => vec![fail("card", error.to_string(), "`nic-app doctor` and its log on the card say more")],
    }
}

fn locked(slots: u64) -> Check {
    const NAME: &str = "locked memory";
    let advice =
        "LimitMEMLOCK=infinity in the unit, as deploy/bluefield/host-agent.conf has it, or ulimit -l unlimited";
    match getrlimit(Resource::Memlock).current {
        None => ok(NAME, "unlimited"),
        Some(bytes) => {
            let found = format!("{} MiB allowed, and a card has {} MiB of slots pinned", bytes >> 20, slots >> 20);
            if bytes < slots { warn(NAME, found, advice) } else { ok(NAME, found) }
        }
    }
}

fn doorbell(nic: &Nic, emulated: bool) -> Check {
    const NAME: &str = "doorbell";
    match (nic.doorbell, reach::doorbell(nic.doorbell, emulated)) {
        (None, _) => warn(
            NAME,
            "off, so the agent polls, which takes a core",
            "set nic.doorbell to an address that the card reaches",
        ),
        (Some(at), Ok(_)) => {
            let how = if at.port() == 0 { ", at a port that the kernel chooses: no firewall can know it" } else { "" };
            let found = format!("{at} can be listened on{how}");
            match at.port() == 0 && !emulated {
                true => warn(NAME, found, "name a port, and let the card's datagrams in there; see docs/bluefield.md"),
                false => ok(NAME, found),
            }
        }
        (Some(at), Err(CardError::Doorbell { error, .. })) if error.kind() == std::io::ErrorKind::AddrInUse => runs(
            NAME,
            format!("{at} is in use"),
            "nothing, if an agent runs already; else set nic.doorbell to another port",
        ),
        (Some(_), Err(error)) => {
            fail(NAME, error.to_string(), "set nic.doorbell to an address of this machine that the card reaches")
        }
    }
}

/// By which way a GPU's memory could be shown to the card, as far as the files below `root` tell. Nothing is tried.
fn gpu_memory(root: &Path) -> Check {
    const NAME: &str = "gpu memory";
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    let driver = read("proc/driver/nvidia/version");
    if driver.is_empty() {
        return ok(NAME, "no driver of NVIDIA's is loaded; requests go by the host's memory");
    }
    let release = read("proc/sys/kernel/osrelease");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let open = driver.contains("Open Kernel Module");
    let peermem = read("proc/modules").lines().any(|line| line.starts_with("nvidia_peermem "));
    let dma_buf = open && kernel >= (6, 2);
    let release = release.trim();
    match (dma_buf, peermem) {
        (true, true) => {
            ok(NAME, format!("could be shown by dma-buf (open driver, Linux {release}) and by nvidia-peermem"))
        }
        (true, false) => {
            ok(NAME, format!("could be shown by dma-buf (open driver, Linux {release}); nvidia-peermem is not loaded"))
        }
        (false, true) => ok(NAME, "could be shown by nvidia-peermem, which is loaded; not by dma-buf"),
        (false, false) => warn(
            NAME,
            format!(
                "no way to show it: {} driver, Linux {release}, nvidia-peermem not loaded",
                if open { "open" } else { "closed" }
            ),
            "use the open kernel modules with Linux 6.2 or later, or modprobe nvidia-peermem; without, requests go by the host's memory",
        ),
    }
}

#[cfg(test)]
mod tests {
    use nic_app::program::checks::Verdict;

    use super::*;

    #[test]
    fn ways_to_the_gpus_memory_are_told_by_driver_kernel_and_module() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let told = || {
            let check = gpu_memory(root.path());
            (check.verdict, check.found)
        };
        assert!(told().1.starts_with("no driver"), "{:?}", told());
        put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1\n");
        put("proc/sys/kernel/osrelease", "5.15.0-1\n");
        assert_eq!(told().0, Verdict::Warn);
        put("proc/modules", "nvidia_peermem 16384 0 - Live 0x0\n");
        assert!(told().1.contains("nvidia-peermem, which is loaded"), "{:?}", told());
        put("proc/sys/kernel/osrelease", "6.8.0-1\n");
        assert!(told().1.contains("dma-buf (open driver, Linux 6.8.0-1) and"), "{:?}", told());
        put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.1\n");
        put("proc/modules", "");
        assert_eq!(told().0, Verdict::Warn);
    }

    #[test]
    fn a_doorbell_that_no_card_reaches_fails() {
        let nic = |at: &str| Nic { doorbell: Some(at.parse().unwrap()), ..Nic::default() };
        assert_eq!(doorbell(&nic("127.0.0.1:0"), true).verdict, Verdict::Ok);
        assert_eq!(doorbell(&nic("127.0.0.1:0"), false).verdict, Verdict::Fail);
        assert_eq!(doorbell(&nic("192.0.2.1:7190"), false).verdict, Verdict::Fail);
        assert_eq!(doorbell(&Nic { doorbell: None, ..Nic::default() }, true).verdict, Verdict::Warn);
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap().to_string();
        assert_eq!(doorbell(&nic(&at), true).verdict, Verdict::Runs);
    }
}
