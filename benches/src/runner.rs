//! Runs points: rounds of fresh connections, the entrants of each round in an order drawn anew.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use crate::arms::gpu::Device;
use crate::arms::{self, Arm, BesideCard, ClientOptions, Located, ServerOptions, Transport};
use crate::clock::FarClock;
use crate::load::arrivals::Schedule;
use crate::load::connection::Connection;
use crate::load::driver;
use crate::load::window::{Load, Measured, Window};
use crate::machine::{self, Crossed};
use crate::plan::{Drive, Entrant, Point, Section};
use crate::process::{Clocks, CpuClock, Server};
use crate::ratio::{LEAST_ROUNDS, mark_void};
use crate::record::{Idle, Run, ServerMemory};
use crate::tally::{Tally, rates};
use crate::wait::{self, Wait};
use crate::workloads::{Exchange, Workload};

/// How long after its last request a server is done with the GPU; and one of splitrpc's that falls asleep first, whose porter then
/// ends by itself.
const GPU_QUIET: Duration = Duration::from_millis(2);
const GPU_QUIET_ASLEEP: Duration = Duration::from_millis(25);
/// An answer is of use within so many times the floor's median for one request at a time, and the model's own where it computes
/// on a GPU.
const TARGET_OF_LEAST: f64 = 10.0;
/// Requests that may wait for a free connection in an open loop: those of so many seconds. What is left of them when the
/// window ends takes about as long again.
const QUEUE_S: f64 = 0.25;

/// Whose servers are watched while nobody asks anything of them.
pub(crate) const IDLE: [Arm; 5] =
    [Arm::BundledTcp, Arm::CommodityTcp, Arm::CommodityUdp, Arm::SmartnicTcp, Arm::SmartnicUdp];

type Connections = Vec<Box<dyn Connection>>;

/// What is computed, and bytes of a request and of its answer.
type Kind = (Workload, u32, u32);

fn kind(point: &Point) -> Kind {
    (point.workload, point.request_bytes, point.response_bytes)
}

/// Where servers come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Servers {
    /// Started here: on this core, and a card's host agent on this one, where there is one more.
    Local(Option<usize>, Option<usize>),
    /// Running on another machine: its address and the first arm's port.
    Remote(IpAddr, u16),
}

/// Runs points and keeps what later ones need of earlier ones.
pub(crate) struct Runner {
    source: Servers,
    crossed: Crossed,
    local: BTreeMap<String, (Workload, Server)>,
    /// Where those are that run on other machines.
    elsewhere: BTreeMap<Arm, Elsewhere>,
    rng: fastrand::Rng,
    exchanges: HashMap<Kind, Arc<Exchange>>,
    /// The model that was last computed in this process.
    device: Option<(Kind, Rc<Device>)>,
    /// Medians for one request at a time of the floor and of the model alone.
    least_us: HashMap<Kind, [Option<f64>; 2]>,
    progress: ProgressBar,
}

/// A point while it is measured.
pub(crate) struct Session<'p> {
    point: &'p Point,
    tallies: Vec<Tally>,
    /// How long connecting and the like take an entrant each time.
    overhead: Duration,
    used: Used,
}

impl<'p> Session<'p> {
    /// One of which nothing has been measured yet.
    pub(crate) fn new(point: &'p Point) -> Session<'p> {
        let tallies = point.entrants.iter().map(|&entrant| Tally::new(entrant)).collect();
        Session { point, tallies, overhead: point.overhead(), used: Used::default() }
    }
}

/// CPU time that others have used on this machine meanwhile.
#[derive(Default)]
struct Used {
    by_others: Duration,
    /// Of so much that there was, over all cores.
    of: Duration,
    unknown: bool,
}

impl Used {
    /// Adds what was used between two looks, the later one first.
    fn add(&mut self, looks: Option<((Duration, usize), (Duration, usize))>, elapsed: Duration) {
        match looks {
            Some(((now, cores), (then, _))) => {
                self.by_others += now.saturating_sub(then);
                self.of += elapsed * cores as u32;
            }
            None => self.unknown = true,
        }
    }

    fn share(&self) -> Option<f64> {
        (!self.unknown && !self.of.is_zero()).then(|| self.by_others.as_secs_f64() / self.of.as_secs_f64())
    }
}

impl Runner {
    /// A runner that draws from `seed`.
    pub(crate) fn new(source: Servers, crossed: Crossed, seed: u64, progress: ProgressBar) -> Runner {
        Runner {
            source,
            crossed,
            local: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed),
            exchanges: HashMap::new(),
            device: None,
            least_us: HashMap::new(),
            progress,
        }
    }

    /// Measures the openings of one part of a point in about the time `budget`; nothing begins after `end`.
    pub(crate) fn part(
        &mut self,
        session: &mut Session<'_>,
        openings: Range<u32>,
        budget: Duration,
        end: Instant,
    ) -> anyhow::Result<()> {
        let Session { point, tallies, overhead, used, .. } = session;
        self.progress.set_message(point.id());
        // Those of a workload that is done would keep memory from this one's.
        self.local.retain(|_, (workload, _)| [Workload::Null, point.workload].contains(workload));
        for tally in &*tallies {
            self.server(&tally.entrant, point)?;
        }
        let (started, others) = (Instant::now(), self.others());
        for opening in openings.clone() {
            let left = budget.saturating_sub(started.elapsed()) / ((openings.end - opening) * tallies.len() as u32);
            let scale = point.scale(left, *overhead);
            let before = Instant::now();
            self.rounds(point, scale, tallies)?;
            self.progress.inc(tallies.len() as u64);
            let load = point.load().mul_f64(scale);
            *overhead = (*overhead * 3 + (before.elapsed() / tallies.len() as u32).saturating_sub(load)) / 4;
            // Connecting cannot be made shorter as windows can. Where it is not for their number that there are so many, fewer do.
            let enough = point.rounds_kept() > 1 && (opening + 1) * point.rounds_kept() >= LEAST_ROUNDS as u32;
            if Instant::now() >= end || enough && started.elapsed() >= budget {
                break;
            }
        }
        used.add(self.others().zip(others), started.elapsed());
        // Other points want to know before this one is finished.
        self.learn(point, tallies);
        Ok(())
    }

    /// The runs of a point whose parts have all been measured. While the floors disagree, or an arm's figure is not settled, up
    /// to as many rounds again are run, until `patience`. What is void after that is marked.
    pub(crate) fn finish(&mut self, session: Session<'_>, patience: Instant) -> anyhow::Result<Vec<Run>> {
        let Session { point, mut tallies, mut used, .. } = session;
        let (started, others) = (Instant::now(), self.others());
        let mut more = point.openings();
        loop {
            self.learn(point, &tallies);
            let target_us = self.target_us(kind(point));
            let mut runs: Vec<Run> = tallies.iter().map(|tally| tally.record(point, self.crossed, target_us)).collect();
            let void = mark_void(&mut runs);
            let settled = !void && (point.section != Section::Single || runs.iter().all(Run::is_settled));
            if settled || more == 0 || Instant::now() >= patience {
                used.add(self.others().zip(others), started.elapsed());
                let others_cpu_share = used.share();
                for (run, tally) in runs.iter_mut().zip(&tallies) {
                    run.others_cpu_share = others_cpu_share;
                    run.server_memory = self.memory(&tally.entrant, point);
                }
                return Ok(runs);
            }
            // Some at a time, since judging them takes about as long as a short one.
            let some = more.min((point.openings() / 8).max(1));
            more -= some;
            for _ in 0..some {
                self.rounds(point, 1.0, &mut tallies)?;
                if Instant::now() >= patience {
                    break;
                }
            }
        }
    }

    /// Rounds of all entrants on fresh connections. Those of an open loop at a share of saturation begin with closed loops: on
    /// a machine that changes its pace, what they showed a minute ago would be a share of something else.
    fn rounds(&mut self, point: &Point, scale: f64, tallies: &mut [Tally]) -> anyhow::Result<()> {
        let mut connections: Vec<Connections> = tallies.iter().map(|_| Connections::new()).collect();
        if let Some(calibration) = point.calibration() {
            let load = calibration.mul_f64(scale);
            let times = (load / 3, load - load / 3);
            for index in self.order(tallies.len()) {
                let tally = &mut tallies[index];
                // Kept for the open loop: new ones fall behind at first, and that must not be charged to its requests.
                let measured =
                    self.window(point, &tally.entrant, Load::Closed, times, &mut connections[index], true)?;
                tally.calibrate(measured);
            }
        }
        for left in (0..point.rounds_kept()).rev() {
            self.round(point, scale, tallies, &mut connections, left > 0)?;
        }
        Ok(())
    }

    /// A round of all entrants, on their connections.
    fn round(
        &mut self,
        point: &Point,
        scale: f64,
        tallies: &mut [Tally],
        connections: &mut [Connections],
        keep: bool,
    ) -> anyhow::Result<()> {
        let rates = rates(point, tallies);
        // Where arms are offered the same, they are offered it at the same times.
        let seed = self.rng.u64(..);
        let times = (point.warm_up.mul_f64(scale), point.measure.mul_f64(scale));
        for index in self.order(tallies.len()) {
            let load = match (point.drive, rates[index]) {
                (Drive::Closed, _) => Load::Closed,
                (Drive::Rate(arrivals, _) | Drive::Saturation(arrivals, ..), Some(rps)) => {
                    let queue = (rps * QUEUE_S).ceil() as usize;
                    Load::Open { schedule: Schedule::new(arrivals, rps, seed), queue }
                }
                // It answered nothing in its closed loops.
                (_, None) => {
                    tallies[index].pass();
                    continue;
                }
            };
            let tally = &mut tallies[index];
            let measured = self.window(point, &tally.entrant, load, times, &mut connections[index], keep)?;
            tally.add(measured, rates[index]);
        }
        Ok(())
    }

    fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        self.rng.shuffle(&mut order);
        order
    }

    /// An entrant under load, for how long it warms up and for how long it counts. Opens `connections` where there are none
    /// yet, and closes them where they are not to be kept.
    fn window(
        &mut self,
        point: &Point,
        entrant: &Entrant,
        load: Load,
        (warm_up, measure): (Duration, Duration),
        connections: &mut Connections,
        keep: bool,
    ) -> anyhow::Result<Measured> {
        let (address, cpu) = self.server(entrant, point)?;
        let options = ClientOptions {
            server: address,
            exchange: self.exchange(entrant, point),
            device: self.device(entrant, point)?,
            workload: point.workload,
            datagram: entrant.datagram,
            peers: point.concurrency,
            timeout: point.timeout,
        };
        // Of one that has been asked before, an answer shows that it is again.
        let warm_up_requests = if connections.is_empty() { 3 } else { 1 };
        let window = Window { warm_up, warm_up_requests, measure, timeout: point.timeout };
        let paused = self.local.get(&key(entrant, point.workload)).map(|(_, server)| server);
        if let Some(server) = paused {
            server.resume()?;
        }
        let mut connect = || arms::connect(entrant.arm, &options);
        let driven = || {
            while connections.len() < point.concurrency {
                connections.push(connect()?);
            }
            driver::run(connections, entrant.wait, load, &window, &cpu, &mut connect)
        };
        let measured = driven().with_context(|| format!("{} in {}", entrant.arm, point.id()))?;
        if !keep {
            connections.clear();
        }
        if let Some(server) = paused {
            if point.workload.is_on_gpu() {
                // What it keeps on the GPU while requests come would be in the others' way.
                let sleeps = entrant.wait != Wait::Spin && entrant.arm.is_splitrpc();
                std::thread::sleep(if sleeps { GPU_QUIET_ASLEEP } else { GPU_QUIET });
            }
            server.pause()?;
        }
        Ok(measured)
    }

    /// The server of an entrant, started and paused at its first use.
    fn server(&mut self, entrant: &Entrant, point: &Point) -> anyhow::Result<(SocketAddr, Clocks)> {
        match self.source {
            _ if entrant.arm.transport() == Transport::None => {
                Ok((([127, 0, 0, 1], 0).into(), Clocks::of(CpuClock::Own)))
            }
            Servers::Remote(host, base) => {
                let arm = entrant.arm;
                let elsewhere = match self.elsewhere.entry(arm) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let port = base.checked_add(arm.port_offset()).context("the port base is too high")?;
                        new.insert(Elsewhere::find(arm, SocketAddr::new(host, port))?)
                    }
                };
                Ok((elsewhere.at.address, elsewhere.clocks()))
            }
            Servers::Local(core, agent_core) => {
                let beside_card = BesideCard { core: agent_core, ..BesideCard::default() };
                let key = key(entrant, point.workload);
                if !self.local.contains_key(&key) {
                    let options = ServerOptions {
                        bind: ([127, 0, 0, 1], 0).into(),
                        wait: entrant.wait,
                        datagram: entrant.datagram,
                        drop: entrant.drop,
                        response_bytes: point.response_bytes,
                        workload: point.workload,
                        core,
                        shared_core: core.is_none() || (entrant.arm.is_smartnic() && wait::shares_core()),
                        beside_card,
                    };
                    let mut server = Server::start(entrant.arm, &options)?;
                    server.address = arms::locate(entrant.arm, server.address)?.address;
                    server.pause()?;
                    self.local.insert(key.clone(), (workload_of(entrant, point.workload), server));
                }
                let (_, server) = &self.local[&key];
                Ok((server.address, server.cpu()))
            }
        }
    }

    /// CPU time that others than this program and its servers have used on this machine, from some time on, and its cores.
    /// Not known where somebody else's servers may be on it.
    fn others(&self) -> Option<(Duration, usize)> {
        if matches!(self.source, Servers::Remote(..)) && self.crossed != Crossed::Wire {
            return None;
        }
        let servers = self.local.values().map(|(_, server)| server.cpu().read().sum()).sum::<Duration>();
        let (busy, cores) = machine::busy()?;
        Some((busy.saturating_sub(servers + CpuClock::Own.read()?), cores))
    }

    fn learn(&mut self, point: &Point, tallies: &[Tally]) {
        if point.drive != Drive::Closed || point.concurrency > 1 {
            return;
        }
        for tally in tallies.iter().filter(|tally| tally.entrant.wait == Wait::Spin && tally.latencies.len() > 0) {
            let [floor, alone] = self.least_us.entry(kind(point)).or_default();
            match tally.entrant.arm {
                Arm::FloorTcp => *floor = Some(tally.latencies.summary().p50),
                Arm::Local => *alone = Some(tally.latencies.summary().p50),
                _ => {}
            }
        }
    }

    /// Within how many microseconds an answer is of use, once that is known.
    fn target_us(&self, kind: Kind) -> Option<f64> {
        let &[floor, alone] = self.least_us.get(&kind)?;
        Some((floor? + alone.unwrap_or_default()) * TARGET_OF_LEAST)
    }

    /// What an entrant is asked. Floors know no models.
    fn exchange(&mut self, entrant: &Entrant, point: &Point) -> Arc<Exchange> {
        let kind = (workload_of(entrant, point.workload), point.request_bytes, point.response_bytes);
        let exchange = || kind.0.exchange(kind.1, kind.2).into();
        Arc::clone(self.exchanges.entry(kind).or_insert_with(exchange))
    }

    /// The model of an entrant that computes in this process.
    fn device(&mut self, entrant: &Entrant, point: &Point) -> anyhow::Result<Option<Rc<Device>>> {
        if entrant.arm.transport() != Transport::None {
            return Ok(None);
        }
        let kind = kind(point);
        if self.device.as_ref().is_none_or(|(of, _)| *of != kind) {
            // First the memory of the one before.
            self.device = None;
            self.device = Some((kind, Device::open(point.workload, point.request_bytes, point.response_bytes)?.into()));
        }
        Ok(self.device.as_ref().map(|(_, device)| Rc::clone(device)))
    }

    /// What an entrant's server has of this machine's memory, if that can be seen.
    fn memory(&self, entrant: &Entrant, point: &Point) -> Option<ServerMemory> {
        let (_, server) = self.local.get(&key(entrant, point.workload))?;
        Some(ServerMemory { host_bytes: server.resident_bytes().ok()?, device_bytes: server.device_bytes })
    }

    /// CPU that the adaptive servers started so far use while nobody asks anything of them. Those elsewhere wait in the way that is given.
    pub(crate) fn idle(&mut self, time: Duration, elsewhere: Option<Wait>) -> anyhow::Result<Vec<Idle>> {
        let mut found = Vec::new();
        for arm in IDLE {
            let entrant = Entrant { arm, wait: Wait::Adaptive, datagram: arms::DATAGRAM, drop: 0.0 };
            let local = self.local.get(&key(&entrant, Workload::Null)).map(|(_, server)| server);
            let (clocks, emulated) = match (local, self.elsewhere.get(&arm)) {
                (Some(server), _) => (server.cpu(), arm.is_smartnic()),
                (_, Some(known)) if elsewhere == Some(Wait::Adaptive) => (known.clocks(), known.at.emulated),
                _ => continue,
            };
            local.map_or(Ok(()), Server::resume)?;
            // Connections of rounds before are closed first.
            std::thread::sleep(time / 4);
            let (before, since) = (clocks.read(), Instant::now());
            std::thread::sleep(time);
            let (used, elapsed) = (clocks.read().since(before), since.elapsed().as_secs_f64());
            local.map_or(Ok(()), Server::pause)?;
            let share = |used: Duration| used.as_secs_f64() / elapsed;
            let Some(core_share) = used.host.map(share) else { continue };
            found.push(Idle { arm, emulated, wait: Wait::Adaptive, core_share, nic_core_share: used.nic.map(share) });
        }
        Ok(found)
    }
}

/// A server elsewhere.
#[derive(Clone, Copy, Debug)]
struct Elsewhere {
    server: SocketAddr,
    at: Located,
    /// It tells its CPU time.
    tells: bool,
}

impl Elsewhere {
    fn find(arm: Arm, server: SocketAddr) -> anyhow::Result<Elsewhere> {
        let at = arms::locate(arm, server).with_context(|| format!("{arm} at {server}"))?;
        Ok(Elsewhere { server, at, tells: FarClock::of(server).is_ok() })
    }

    fn clocks(&self) -> Clocks {
        let clock = self.tells.then(|| FarClock::of(self.server).ok()).flatten();
        clock.map_or(Clocks::Unknown, Clocks::Far)
    }
}

fn key(entrant: &Entrant, workload: Workload) -> String {
    let workload = workload_of(entrant, workload).name();
    format!("{} {workload} {} {} {}", entrant.arm, entrant.wait.name(), entrant.datagram, entrant.drop)
}

/// What an entrant's server computes. Floors know no models.
fn workload_of(entrant: &Entrant, workload: Workload) -> Workload {
    if entrant.arm.computes() { workload } else { Workload::Null }
}
