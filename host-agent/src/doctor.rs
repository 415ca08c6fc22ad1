//! What the machine offers, line by line, and what to do where it falls short.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use nic_app::program::checks::{self, Check, Verdict, fail, ok, runs, warn};
use nic_app::program::memory as machine;
use rustix::process::{Resource, getrlimit};
use splitrpc_client::Transport;

use crate::config::{Config, Machine, NicKind, Wait};
use crate::gpu::Gpu;
use crate::model::spec::ModelSpec;
use crate::plan::{Plan, PlanError};
use crate::smartnic;

mod neighbour;

/// Looks at everything that a server with this configuration would use.
#[must_use]
pub fn examine(config: &Config) -> Vec<Check> {
    let machine = Machine::here();
    let beside_card = config.nic.kind == NicKind::Smartnic;
    let mut checks = vec![kernel(&uname_release()), cores(config, &machine)];
    if !beside_card {
        checks.push(offload(config, &machine));
        checks.extend(buffers(config));
        checks.push(open_files(config, &machine));
    }
    let (of_models, slots) = models(config);
    checks.extend(of_models);
    checks.push(huge_pages());
    if !beside_card {
        checks.push(locked_memory());
    }
    checks.extend(addresses(config));
    checks.push(nics());
    checks.extend(gpu(config));
    checks.extend([rdma(), bluefield(config.nic.kind)]);
    if beside_card {
        checks.extend(smartnic::doctor::examine(config, slots));
    }
    // The repository is told of among the models.
    let problems = config.check(&machine).into_iter().filter(|p| p.key != "models.repository");
    checks.extend(problems.map(|p| fail("configuration", p.to_string(), "")));
    checks
}

/// What all checks come to.
#[must_use]
pub fn conclusion(checks: &[Check]) -> String {
    let count = |verdict| match checks::count(checks, verdict) {
        0 => None,
        1 => Some("1 check".to_owned()),
        n => Some(format!("{n} checks")),
    };
    let can = match count(Verdict::Runs) {
        None => "The server can start",
        Some(_) => "A server runs here already, and another with this configuration can start once it has ended",
    };
    match (count(Verdict::Fail), count(Verdict::Warn)) {
        (Some(failed), _) => format!("The server could not start: {failed} failed."),
        (None, Some(warned)) => format!("{can}; {warned} found something that could be better."),
        (None, None) => format!("{can}."),
    }
}

fn uname_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Linux 5.0 merges received datagrams, 5.11 sleeps with nanosecond precision.
fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    match version {
        v if v >= (5, 11) => ok("kernel", found),
        v if v >= (5, 0) => warn("kernel", found, "5.11 or later sleeps more precisely (epoll_pwait2)"),
        _ => warn("kernel", found, "5.0 or later merges received datagrams (UDP GRO)"),
    }
}

fn cores(config: &Config, machine: &Machine) -> Check {
    let (cores, threads) = (machine.cores.len(), usize::from(config.data.threads));
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let found = format!("{cores} core{}, {threads} data thread{}", plural(cores), plural(threads));
    match config.data.wait {
        Wait::Spin if threads >= cores => {
            warn("cores", found, "spinning threads leave no core to clients and workers: set data.wait = \"adaptive\"")
        }
        _ if threads > cores => {
            warn("cores", found, "more data threads than cores only take turns: lower data.threads")
        }
        _ => ok("cores", found),
    }
}

fn offload(config: &Config, machine: &Machine) -> Check {
    match (config.listen.udp, machine.udp_offload) {
        (None, _) => ok("udp offload", "not needed, listen.udp is off"),
        (_, true) => ok("udp offload", "the kernel segments and merges datagrams"),
        (_, false) => warn(
            "udp offload",
            "none, each datagram is a system call's own",
            "use Linux 5.0 or later, outside of gVisor",
        ),
    }
}

fn buffers(config: &Config) -> Vec<Check> {
    let limit = |name, file: &str, key: &str, wanted: u32| match read_number(file) {
        None => warn(name, format!("{file} cannot be read"), "the kernel may grant less than is asked for"),
        _ if config.listen.udp.is_none() => ok(name, "not needed, listen.udp is off"),
        Some(max) if max >= u64::from(wanted) => ok(name, format!("{wanted} bytes asked for, {max} allowed")),
        Some(max) => {
            let sysctl = file.trim_start_matches("/proc/sys/").replace('/', ".");
            let found = format!("{wanted} bytes asked for (data.{key}), {max} allowed");
            warn(name, found, format!("as root: sysctl -w {sysctl}={wanted}"))
        }
    };
    vec![
        limit("udp receive buffer", "/proc/sys/net/core/rmem_max", "receive_buffer", config.data.receive_buffer),
        limit("udp send buffer", "/proc/sys/net/core/wmem_max", "send_buffer", config.data.send_buffer),
    ]
}

fn open_files(config: &Config, machine: &Machine) -> Check {
    let found = format!("{} allowed, {} needed with all clients there", machine.open_files, config.open_files());
    // Too few for the configuration is a failure of the configuration's check.
    if machine.open_files < 4096 {
        warn("open files", found, "each TCP client is one; for more of them, as root: ulimit -Hn 65536")
    } else {
        ok("open files", found)
    }
}

/// The models that can be served, those that cannot, and the memory for requests of the former, in bytes.
fn models(config: &Config) -> (Vec<Check>, u64) {
    let found = match crate::serve::specs(config) {
        Ok(found) => found,
        Err(error) => {
            let advice =
                "set models.repository to a folder that holds MODEL/VERSION/model.onnx, kernels.toml or model.pt2";
            return (vec![fail("models", error.to_string(), advice)], 0);
        }
    };
    let (mut specs, mut bytes, mut checks) = (Vec::new(), 0, Vec::new());
    let refused = |name: &str, why: &str| warn("models", format!("{name} cannot be served"), why);
    for model in found {
        match model {
            Ok((_, Some(problem))) => checks.push(fail("configuration", problem.to_string(), "")),
            Ok((spec, None)) => match plan(&spec, config) {
                Ok(plan) => {
                    bytes += plan.all().iter().map(|(_, layout)| layout.bytes()).sum::<u64>();
                    specs.push(spec.name);
                }
                Err(error) => checks.push(refused(&spec.name, &error.to_string())),
            },
            Err(report) => checks.push(refused(&report.name, &report.reason.unwrap_or_default())),
        }
    }
    let served = match specs.is_empty() {
        true if checks.iter().any(|check| check.verdict == Verdict::Fail) => return (checks, 0),
        true => fail("models", "not one can be served", "see models.repository and models.builtins"),
        false => ok("models", format!("{} can be loaded", specs.join(", "))),
    };
    checks.insert(0, served);
    bytes *= u64::from(config.data.threads);
    checks.push(memory(bytes, config.nic.kind));
    (checks, bytes)
}

/// A model's slots. Beside a card all outputs have some, too.
fn plan(spec: &ModelSpec, config: &Config) -> Result<Plan, PlanError> {
    let plan = Plan::new([spec], &config.limits)?;
    if config.nic.kind == NicKind::Smartnic { plan.with_all_in_slots([spec], &config.limits) } else { Ok(plan) }
}

/// Whether there are so many bytes.
fn memory(bytes: u64, nic: NicKind) -> Check {
    let Some(available) = machine::free() else {
        return warn("memory", format!("requests may take {} MiB", bytes >> 20), "/proc/meminfo cannot be read");
    };
    let (needed, available_mib) = (bytes >> 20, available >> 20);
    match nic {
        NicKind::Commodity => {
            let found = format!("requests may take {needed} MiB at most, {available_mib} MiB are free");
            match bytes <= available {
                true => ok("memory", found),
                false => warn("memory", found, "it is taken as it is first used; to be safe, lower limits.class_bytes"),
            }
        }
        NicKind::Smartnic => {
            let found =
                format!("slots take {needed} MiB, pinned here and on the card; {available_mib} MiB are free here");
            let advice = "lower limits.class_bytes or limits.slots_per_model, or leave out models (models.builtins)";
            if bytes <= available { ok("memory", found) } else { warn("memory", found, advice) }
        }
    }
}

fn huge_pages() -> Check {
    let file = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let Ok(text) = fs::read_to_string(file) else {
        return ok("huge pages", "not offered by this kernel; requests use ordinary pages");
    };
    let chosen = text.split('[').nth(1).and_then(|t| t.split(']').next()).unwrap_or("unknown").to_owned();
    match chosen.as_str() {
        "always" | "advise" | "force" | "within_size" => ok("huge pages", format!("{chosen} for shared memory")),
        _ => warn(
            "huge pages",
            format!("{chosen} for shared memory, so requests use ordinary pages"),
            format!("large tensors gain from huge ones; as root: echo advise > {file}"),
        ),
    }
}

fn locked_memory() -> Check {
    let found = match getrlimit(Resource::Memlock).current {
        None => "unlimited, and not needed: TCP and UDP lock none".to_owned(),
        Some(bytes) => format!("{} KiB allowed, and not needed: TCP and UDP lock none", bytes >> 10),
    };
    ok("locked memory", found)
}

fn addresses(config: &Config) -> Vec<Check> {
    let listen = &config.listen;
    let tcp = |address| TcpListener::bind(address).map(drop);
    let udp = |address| UdpSocket::bind(address).map(drop);
    let http = address("http address", "listen.http", listen.http, tcp, neighbour::publishes);
    if config.nic.kind == NicKind::Smartnic {
        return vec![ok("tcp and udp", "the card's to listen on: see nic-app there"), http];
    }
    vec![
        address("tcp address", "listen.tcp", listen.tcp, tcp, |a| neighbour::takes_requests(a, Transport::Tcp)),
        address("udp address", "listen.udp", listen.udp, udp, |a| neighbour::takes_requests(a, Transport::Udp)),
        http,
    ]
}

/// Whether an address can be listened on, and where it is taken, whether `ours` says that a server of this kind has it.
fn address(
    name: &'static str,
    key: &str,
    address: Option<SocketAddr>,
    bind: fn(SocketAddr) -> std::io::Result<()>,
    ours: fn(SocketAddr) -> bool,
) -> Check {
    let Some(address) = address else { return ok(name, "off") };
    match bind(address) {
        Ok(()) => ok(name, address.to_string()),
        Err(error) if error.kind() == ErrorKind::AddrInUse && ours(address) => runs(
            name,
            format!("a splitrpc server runs at {address}"),
            format!("nothing, if it is the one you mean; to start another beside it, set {key} to another port"),
        ),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let advice =
                format!("find out what has it (as root: ss -lntup), and stop that, or set {key} to another port");
            fail(name, format!("{address} is taken, and not by a splitrpc server that answers"), advice)
        }
        Err(error) => fail(name, format!("{address}: {error}"), format!("set {key} to an address of this machine")),
    }
}

fn nics() -> Check {
    let mut found = Vec::new();
    for name in names("/sys/class/net") {
        let folder = Path::new("/sys/class/net").join(&name);
        // Only what has a device behind it is a card.
        let Ok(driver) = fs::read_link(folder.join("device/driver")) else { continue };
        let driver = driver.file_name().map_or_else(String::new, |d| d.to_string_lossy().into_owned());
        let speed = read_number(&folder.join("speed").to_string_lossy()).filter(|s| *s < 10_000_000);
        found.push(match speed {
            Some(mbit) => format!("{name} ({driver}, {mbit} Mbit/s)"),
            None => format!("{name} ({driver})"),
        });
    }
    match found.is_empty() {
        true => warn("network cards", "none", "only this machine itself can send requests"),
        false => ok("network cards", found.join(", ")),
    }
}

/// Whether models could compute on a GPU. Those that need one and cannot have it are told of among the models.
fn gpu(config: &Config) -> Vec<Check> {
    let gpu = match Gpu::open(&config.gpu) {
        Ok(gpu) => gpu,
        Err(why) => return vec![ok("gpu", format!("{why}; only models on the CPU are served"))],
    };
    let memory = match gpu.context.memory_bytes() {
        Ok((free, total)) => {
            let memory = format!("{} MiB of {} MiB free", free >> 20, total >> 20);
            ok("gpu", format!("{}, {memory}", gpu.name))
        }
        Err(error) => fail("gpu", format!("{}: {error}", gpu.name), "see `nvidia-smi`"),
    };
    let pytorch = config.gpu.torch.is_some().then(|| match gpu.torch() {
        Ok(library) => ok("pytorch", library.folder().display().to_string()),
        Err(why) => {
            fail("pytorch", why, "models that PyTorch compiled are not served; see gpu.torch in docs/operating.md")
        }
    });
    std::iter::once(memory).chain(pytorch).collect()
}

fn rdma() -> Check {
    let cards = names("/sys/class/infiniband");
    match cards.is_empty() {
        true => ok("rdma", "no device; TCP and UDP need none"),
        false => ok("rdma", format!("{}; this release does not use it", cards.join(", "))),
    }
}

fn bluefield(nic: NicKind) -> Check {
    // Mellanox's vendor number and the BlueField family's PCI device numbers.
    let is_dpu = |name: &String| {
        let folder = Path::new("/sys/bus/pci/devices").join(name);
        let read = |file| fs::read_to_string(folder.join(file)).unwrap_or_default();
        read("vendor").trim() == "0x15b3" && matches!(read("device").trim(), "0xa2d2" | "0xa2d6" | "0xa2dc")
    };
    match names("/sys/bus/pci/devices").iter().find(|name| is_dpu(name)) {
        Some(slot) if nic == NicKind::Smartnic => ok("bluefield", format!("at PCI {slot}")),
        Some(slot) => ok("bluefield", format!("at PCI {slot}, a NIC like others unless nic.kind is smartnic")),
        None if nic == NicKind::Smartnic => warn(
            "bluefield",
            "none of the devices on PCIe is one",
            "is the card in its slot? Where the software BlueField stands in for it, that is as it should be",
        ),
        None => ok("bluefield", "no card; the network stack runs on this host"),
    }
}

/// Names in a folder, sorted; none where it cannot be read.
fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn read_number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Builtin, Listen};
    use crate::serve::{Server, build};

    #[test]
    fn kernels_are_told_apart_by_what_they_offer() {
        assert_eq!(kernel("6.8.0-45-generic").verdict, Verdict::Ok);
        assert_eq!(kernel("5.11.0").verdict, Verdict::Ok);
        assert_eq!(kernel("5.4.0-1").verdict, Verdict::Warn);
        assert!(kernel("4.19.0").advice.contains("5.0"));
    }

    #[test]
    fn an_address_in_use_fails_and_says_so() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::default();
        config.listen.tcp = Some(taken.local_addr().unwrap());
        let check = addresses(&config).remove(0);
        assert_eq!((check.verdict, check.advice.contains("listen.tcp")), (Verdict::Fail, true));
    }

    #[test]
    fn a_server_that_runs_already_is_no_failure() {
        let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = Config { listen: Listen { tcp: any, udp: any, http: any }, ..Config::default() };
        config.limits.sessions = 16;
        config.models.builtins = vec![Builtin::Null];
        let server = Server::start(build(config.clone()).unwrap()).unwrap();
        config.listen = Listen { tcp: server.tcp(), udp: server.udp(), http: server.http() };
        let checks = addresses(&config);
        assert!(checks.iter().all(|c| c.verdict == Verdict::Runs), "{checks:?}");
        assert!(conclusion(&checks).starts_with("A server runs here already"));
        // The ports of one kind do not pass for those of another.
        config.listen = Listen { tcp: server.http(), udp: None, http: server.tcp() };
        let checks = addresses(&config);
        assert_eq!((checks[0].verdict, checks[2].verdict), (Verdict::Fail, Verdict::Fail), "{checks:?}");
    }

    #[test]
    fn what_is_not_configured_right_is_part_of_the_report() {
        let mut config = Config::default();
        config.require.mover = Some("nic".into());
        let checks = examine(&config);
        let failed: Vec<_> = checks.iter().filter(|c| c.name == "configuration").collect();
        assert_eq!(failed.len(), 2);
        assert!(failed.iter().all(|c| c.verdict == Verdict::Fail && c.found.starts_with("require.mover: ")));
        config.require.mover = None;
        config.require.memory = Some("cuda".into());
        let checks = examine(&config);
        let failed: Vec<_> = checks.iter().filter(|c| c.verdict == Verdict::Fail).map(|c| &c.found).collect();
        assert_eq!(failed.len(), config.models.builtins.len(), "{failed:?}");
        assert!(failed.iter().all(|found| found.starts_with("require.memory: ")), "{failed:?}");
        assert!(conclusion(&checks).starts_with("The server could not start"));
    }

    #[test]
    fn models_are_told_apart_from_the_memory_that_they_take() {
        let mut config = Config::default();
        let found = |config: &Config| -> Vec<_> {
            models(config).0.into_iter().map(|c| (c.name, c.verdict, format!("{} -> {}", c.found, c.advice))).collect()
        };
        let repository = tempfile::tempdir().unwrap();
        let version = repository.path().join("broken/1");
        fs::create_dir_all(&version).unwrap();
        fs::write(version.join("model.onnx"), b"not a model").unwrap();
        config.models.repository = Some(repository.path().to_owned());
        let checks = found(&config);
        assert_eq!((checks.len(), checks[0].1, checks[1].1), (3, Verdict::Ok, Verdict::Warn), "{checks:?}");
        assert!(checks[1].2.contains("broken") && checks[1].2.contains("model.onnx"), "{checks:?}");
        config.models.builtins.clear();
        assert_eq!(found(&config)[0].1, Verdict::Fail);
        config.models.repository = Some("/nonexistent/models".into());
        let checks = found(&config);
        assert_eq!((checks.len(), checks[0].0, checks[0].1), (1, "models", Verdict::Fail), "{checks:?}");
    }
}
