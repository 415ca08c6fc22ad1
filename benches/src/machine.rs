//! What a comparison ran on, and what its packets crossed.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use rustix::thread::CpuSet;
use serde::Serialize;
use splitrpc_cuda::Driver;

/// The machine, without its name.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Processor.
    pub(crate) cpu: String,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Operating system and release.
    pub(crate) kernel: String,
    /// Memory in bytes.
    pub(crate) memory_bytes: u64,
    /// The congestion control that TCP connections start with.
    pub(crate) tcp_congestion_control: String,
    /// The GPU, where one took part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gpu: Option<String>,
}

/// What the GPU is called that models are to compute on.
pub(crate) fn gpu_name() -> anyhow::Result<String> {
    let driver = Driver::load()?;
    Ok(driver.devices().first().context("there is no GPU")?.name.clone())
}

/// One of the machine's GPUs, for a thread with a core to itself.
pub(crate) struct OnGpu {
    pub(crate) driver: Driver,
    pub(crate) context: splitrpc_cuda::Context,
    pub(crate) machine: Machine,
}

impl OnGpu {
    /// The GPU of this number, for the calling thread, which has one core from now on where there are two.
    pub(crate) fn take(number: usize) -> anyhow::Result<OnGpu> {
        let driver = Driver::load()?;
        let device = driver.devices().get(number);
        let device = device.with_context(|| format!("there are {} GPUs, from 0 on", driver.devices().len()))?;
        let context = driver.context(device)?;
        // Before this thread has one core alone.
        let machine = Machine { gpu: Some(device.name.clone()), ..Machine::this() };
        if let Some((core, _)) = core_pair() {
            splitrpc_socket::pin_current_thread(core)?;
        }
        Ok(OnGpu { driver, context, machine })
    }
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Machine {
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or_default();
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            memory_bytes: memory_kib * 1024,
            tcp_congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned(),
            gpu: None,
        }
    }
}

/// CPU time that this machine has spent on anything since it started, on all its cores, and how many those are.
pub(crate) fn busy() -> Option<(Duration, usize)> {
    busy_in(&fs::read_to_string("/proc/stat").ok()?, rustix::param::clock_ticks_per_second())
}

/// The same in the text of `/proc/stat`.
fn busy_in(stat: &str, ticks_per_second: u64) -> Option<(Duration, usize)> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map(str::parse);
    let ticks: Vec<u64> = fields.collect::<Result<_, _>>().ok()?;
    // User, nice, system, then idle and waiting for disks, then interrupts hard and soft, and what a host took away.
    let spent: u64 = ticks.get(..3)?.iter().chain(ticks.get(5..8)?).sum();
    let cores = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    Some((Duration::from_secs_f64(spent as f64 / ticks_per_second as f64), cores))
}

/// Cores for client and server: two that are not threads of one, where there are two at all.
pub(crate) fn core_pair() -> Option<(usize, usize)> {
    let [client, server] = cores_apart()?;
    Some((client, server))
}

/// Where a host agent runs whose card has the server's core: one more than [`core_pair`] has or, where there is none, the client's. A card that
/// works has no time for its host agent, and a client that waits has.
pub(crate) fn agent_core() -> Option<usize> {
    match cores_apart() {
        Some([_, _, third]) => Some(third),
        None => core_pair().map(|(client, _)| client),
    }
}

/// Cores of which no two are threads of one, as far as there are so many.
pub(crate) fn cores_apart<const N: usize>() -> Option<[usize; N]> {
    let cores = splitrpc_socket::allowed_cores().ok()?;
    let siblings = |core: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
        fs::read_to_string(path).unwrap_or_else(|_| core.to_string())
    };
    let mut known = Vec::new();
    let (apart, together): (Vec<usize>, Vec<usize>) = cores.into_iter().partition(|&core| {
        let siblings = siblings(core);
        let is_new = !known.contains(&siblings);
        known.push(siblings);
        is_new
    });
    let taken: Vec<usize> = apart.into_iter().chain(together).take(N).collect();
    taken.try_into().ok()
}

/// Lets this thread, and those that it starts from now on, run on every core that the process may have.
pub(crate) fn unpin() -> anyhow::Result<()> {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| all.set(core));
    Ok(rustix::thread::sched_setaffinity(None, &all)?)
}

/// What lies between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Crossed {
    /// The loopback device.
    Loopback,
    /// A virtual device: another network namespace of this machine.
    Namespace,
    /// A network.
    Wire,
}

impl Crossed {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Crossed::Loopback => "loopback",
            Crossed::Namespace => "namespace",
            Crossed::Wire => "wire",
        }
    }
}

/// What packets to `server` cross, as far as this machine can tell: a device with no hardware behind it is taken to lead
/// to a namespace.
pub(crate) fn crossed(server: SocketAddr) -> Crossed {
    if server.ip().is_loopback() || source_for(server) == Some(server.ip()) {
        return Crossed::Loopback;
    }
    let route = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let device = match server.ip() {
        IpAddr::V4(ip) => device_for(&route, u32::from_le_bytes(ip.octets())),
        IpAddr::V6(_) => None,
    };
    match device {
        Some(device) if !has_hardware(device) => Crossed::Namespace,
        _ => Crossed::Wire,
    }
}

fn source_for(server: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    // Connecting a datagram socket sends nothing; it asks for the route.
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The device of the longest matching route. Addresses stand in `/proc/net/route` in host order of their bytes.
fn device_for(route: &str, address: u32) -> Option<&str> {
    let matching = route.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (device, destination, mask) = (*fields.first()?, fields.get(1)?, fields.get(7)?);
        let mask = u32::from_str_radix(mask, 16).ok()?;
        (u32::from_str_radix(destination, 16).ok()? == address & mask).then_some((mask.count_ones(), device))
    });
    matching.max_by_key(|&(length, _)| length).map(|(_, device)| device)
}

fn has_hardware(device: &str) -> bool {
    let backed = |device: &str| fs::exists(format!("/sys/class/net/{device}/device")).unwrap_or(false);
    let members = fs::read_dir(format!("/sys/class/net/{device}/brif"));
    let member_backed = members.is_ok_and(|mut members| {
        members.any(|member| member.is_ok_and(|member| backed(&member.file_name().to_string_lossy())))
    });
    backed(device) || member_backed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_the_rest() {
        assert_eq!(crossed("127.0.0.1:1".parse().unwrap()), Crossed::Loopback);
        assert_eq!(crossed("[::1]:1".parse().unwrap()), Crossed::Loopback);
    }

    #[test]
    fn time_spent_is_all_that_is_not_idle() {
        let stat = "cpu  100 20 3 9000 800 40 5 6 7 7\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 1\nintr 1\n";
        assert_eq!(busy_in(stat, 100), Some((Duration::from_millis(1_740), 2)));
        assert_eq!(busy_in("cpu  1 2 x", 100), None);
        assert!(busy().is_some_and(|(busy, cores)| !busy.is_zero() && cores > 0));
    }

    #[test]
    fn the_longest_route_wins() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     veth1\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let address = |octets: [u8; 4]| u32::from_le_bytes(octets);
        assert_eq!(device_for(table, address([10, 0, 3, 4])), Some("veth1"));
        assert_eq!(device_for(table, address([10, 1, 3, 4])), Some("eth0"));
        assert_eq!(device_for("Iface\n", address([10, 1, 3, 4])), None);
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::this();
        assert!(machine.cores >= 1 && machine.memory_bytes > 0 && machine.kernel.len() > "Linux ".len());
    }
}
