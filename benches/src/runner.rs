//! Runs points: rounds of fresh connections, the entrants of each round in an order drawn anew.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use indicatif::ProgressBar;

use crate::arms::{self, Arm, ClientOptions, RESPONSE_BYTES, ServerOptions, Transport};
use crate::load::arrivals::Schedule;
use crate::load::driver;
use crate::load::window::{Load, Measured, PathSums, Window};
use crate::machine::Crossed;
use crate::plan::{Drive, Entrant, Point};
use crate::process::{CpuClock, Server};
use crate::record::{CpuUs, Idle, PathRecord, Run, stages};
use crate::stats::Latencies;
use crate::verdict::mark_void;
use crate::wait::Wait;

/// An answer is of use within so many times the floor's median for one request at a time.
const TARGET_OF_FLOOR: f64 = 10.0;
/// Requests that may wait for a free connection in an open loop.
const QUEUE: usize = 4_096;

/// Where servers come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Servers {
    /// Started here, on this core.
    Local(Option<usize>),
    /// Running on another machine: its address and the first arm's port.
    Remote(IpAddr, u16),
}

/// Runs points and keeps what later ones need of earlier ones.
pub(crate) struct Runner {
    source: Servers,
    crossed: Crossed,
    local: BTreeMap<String, Server>,
    rng: fastrand::Rng,
    payloads: HashMap<u32, Bytes>,
    expected: Bytes,
    /// Requests a second that an arm reached in closed loops, by size and wait mode.
    saturation: HashMap<(Arm, u32, Wait), f64>,
    /// Median of the floor for one request at a time, by size.
    floor_us: HashMap<u32, f64>,
    progress: ProgressBar,
}

/// What an entrant has shown in a point so far.
struct Tally {
    entrant: Entrant,
    latencies: Latencies,
    offered: Option<f64>,
    rounds: u32,
    errors: BTreeMap<String, u64>,
    completed: u64,
    measured: Duration,
    client_cpu: Duration,
    server_cpu: Option<Duration>,
    paths: PathSums,
}

impl Runner {
    /// A runner that draws from `seed`.
    pub(crate) fn new(source: Servers, crossed: Crossed, seed: u64, progress: ProgressBar) -> Runner {
        Runner {
            source,
            crossed,
            local: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed),
            payloads: HashMap::new(),
            expected: arms::null_response(RESPONSE_BYTES).into(),
            saturation: HashMap::new(),
            floor_us: HashMap::new(),
            progress,
        }
    }

    /// Runs a point in about the time `budget`; no round begins after `end`. While the floors disagree, up to as many
    /// rounds again are run, in a tenth of the time that is left. What is void after that is marked.
    pub(crate) fn run(&mut self, point: &Point, budget: Duration, end: Instant) -> anyhow::Result<Vec<Run>> {
        let mut tallies: Vec<Tally> = point.entrants.iter().map(|&entrant| Tally::new(entrant)).collect();
        for tally in &mut tallies {
            tally.offered = self.offered(point, &tally.entrant);
        }
        self.progress.set_message(point.id());
        for tally in &tallies {
            self.server(&tally.entrant, point)?;
        }
        let (started, windows) = (Instant::now(), point.rounds * tallies.len() as u32);
        let mut overhead = point.overhead();
        for round in 0..point.rounds {
            let left = budget.saturating_sub(started.elapsed()) / (windows - round * tallies.len() as u32);
            let scale = point.scale(left, overhead);
            let before = Instant::now();
            self.round(point, scale, &mut tallies)?;
            self.progress.inc(tallies.len() as u64);
            let load = (point.warm_up + point.measure).mul_f64(scale);
            overhead = (overhead * 3 + (before.elapsed() / tallies.len() as u32).saturating_sub(load)) / 4;
            if Instant::now() >= end {
                break;
            }
        }
        let patience = Instant::now() + end.saturating_duration_since(Instant::now()) / 10;
        let mut more = point.rounds;
        loop {
            self.learn(point, &tallies);
            let target_us = self.floor_us.get(&point.request_bytes).map(|floor| floor * TARGET_OF_FLOOR);
            let mut runs: Vec<Run> = tallies.iter().map(|tally| tally.record(point, self.crossed, target_us)).collect();
            if !mark_void(&mut runs) || more == 0 || Instant::now() >= patience {
                return Ok(runs);
            }
            more -= 1;
            self.round(point, point.scale(point.warm_up + point.measure, Duration::ZERO), &mut tallies)?;
        }
    }

    fn round(&mut self, point: &Point, scale: f64, tallies: &mut [Tally]) -> anyhow::Result<()> {
        let mut order: Vec<usize> = (0..tallies.len()).collect();
        self.rng.shuffle(&mut order);
        for index in order {
            let tally = &mut tallies[index];
            let measured = self
                .window(point, scale, &tally.entrant, tally.offered)
                .with_context(|| format!("{} in {}", tally.entrant.arm, point.id()))?;
            tally.add(measured);
        }
        Ok(())
    }

    /// One entrant's share of a round: fresh connections under load.
    fn window(
        &mut self,
        point: &Point,
        scale: f64,
        entrant: &Entrant,
        offered: Option<f64>,
    ) -> anyhow::Result<Measured> {
        let (address, cpu) = self.server(entrant, point)?;
        let request = self
            .payloads
            .entry(point.request_bytes)
            .or_insert_with(|| arms::request_payload(point.request_bytes).into())
            .clone();
        let options = ClientOptions {
            server: address,
            request,
            expected: self.expected.clone(),
            datagram: entrant.datagram,
            peers: point.concurrency,
            timeout: point.timeout,
        };
        let load = match (point.drive, offered) {
            (Drive::Rate(arrivals, _) | Drive::Saturation(arrivals, _), Some(rps)) => {
                Load::Open { schedule: Schedule::new(arrivals, rps, self.rng.u64(..)), queue: QUEUE }
            }
            _ => Load::Closed,
        };
        let window = Window {
            warm_up: point.warm_up.mul_f64(scale),
            warm_up_requests: 3,
            measure: point.measure.mul_f64(scale),
            timeout: point.timeout,
        };
        let paused = self.local.get(&key(entrant));
        if let Some(server) = paused {
            server.resume()?;
        }
        let mut connect = || arms::connect(entrant.arm, &options);
        let opened: anyhow::Result<Vec<_>> = (0..point.concurrency).map(|_| connect()).collect();
        let mut connections = opened?;
        let measured = driver::run(&mut connections, entrant.wait, load, &window, &cpu, &mut connect)?;
        drop(connections);
        if let Some(server) = paused {
            server.pause()?;
        }
        Ok(measured)
    }

    /// The server of an entrant, started and paused at its first use.
    fn server(&mut self, entrant: &Entrant, point: &Point) -> anyhow::Result<(SocketAddr, CpuClock)> {
        match self.source {
            Servers::Remote(host, base) => {
                let port = base.checked_add(entrant.arm.port_offset()).context("the port base is too high")?;
                Ok((SocketAddr::new(host, port), CpuClock::Elsewhere))
            }
            Servers::Local(core) => {
                let key = key(entrant);
                if !self.local.contains_key(&key) {
                    let options = ServerOptions {
                        bind: ([127, 0, 0, 1], 0).into(),
                        wait: entrant.wait,
                        datagram: entrant.datagram,
                        drop: entrant.drop,
                        response_bytes: point.response_bytes,
                        core,
                    };
                    let server = Server::start(entrant.arm, &options)?;
                    server.pause()?;
                    self.local.insert(key.clone(), server);
                }
                let server = &self.local[&key];
                Ok((server.address, server.cpu()))
            }
        }
    }

    /// The rate at which an entrant is driven; `None` in a closed loop, or where its saturation is not known.
    fn offered(&self, point: &Point, entrant: &Entrant) -> Option<f64> {
        match point.drive {
            Drive::Closed => None,
            Drive::Rate(_, rps) => Some(rps),
            Drive::Saturation(_, share) => {
                let known = |bytes| self.saturation.get(&(entrant.arm, bytes, entrant.wait));
                known(point.request_bytes).map(|rps| rps * share)
            }
        }
    }

    fn learn(&mut self, point: &Point, tallies: &[Tally]) {
        if point.drive != Drive::Closed {
            return;
        }
        for tally in tallies.iter().filter(|tally| tally.entrant.drop == 0.0) {
            let Entrant { arm, wait, .. } = tally.entrant;
            let rps = tally.completed as f64 / tally.measured.as_secs_f64().max(1e-9);
            let best = self.saturation.entry((arm, point.request_bytes, wait)).or_default();
            *best = best.max(rps);
            if arm == Arm::FloorTcp && point.concurrency == 1 && wait == Wait::Spin {
                self.floor_us.insert(point.request_bytes, tally.latencies.summary().p50);
            }
        }
    }

    /// Whether open-loop points at a share of saturation can be run yet.
    pub(crate) fn knows_saturation(&self, point: &Point) -> bool {
        !matches!(point.drive, Drive::Saturation(..))
            || point.entrants.iter().all(|entrant| self.offered(point, entrant).is_some())
    }

    /// CPU that the adaptive servers started so far use while nobody asks anything of them.
    pub(crate) fn idle(&mut self, time: Duration) -> anyhow::Result<Vec<Idle>> {
        let mut found = Vec::new();
        for arm in [Arm::BundledTcp, Arm::CommodityTcp, Arm::CommodityUdp] {
            let entrant = Entrant { arm, wait: Wait::Adaptive, datagram: arms::DATAGRAM, drop: 0.0 };
            let Some(server) = self.local.get(&key(&entrant)) else { continue };
            server.resume()?;
            // Connections of rounds before are closed first.
            std::thread::sleep(time / 4);
            let (before, since) = (server.cpu().read(), Instant::now());
            std::thread::sleep(time);
            let used = server.cpu().read().zip(before).map(|(after, before)| after.saturating_sub(before));
            let core_share = used.unwrap_or_default().as_secs_f64() / since.elapsed().as_secs_f64();
            server.pause()?;
            found.push(Idle { arm, wait: Wait::Adaptive, core_share });
        }
        Ok(found)
    }
}

fn key(entrant: &Entrant) -> String {
    format!("{} {} {} {}", entrant.arm, entrant.wait.name(), entrant.datagram, entrant.drop)
}

impl Tally {
    fn new(entrant: Entrant) -> Tally {
        Tally {
            entrant,
            latencies: Latencies::new(),
            offered: None,
            rounds: 0,
            errors: BTreeMap::new(),
            completed: 0,
            measured: Duration::ZERO,
            client_cpu: Duration::ZERO,
            server_cpu: Some(Duration::ZERO),
            paths: PathSums::default(),
        }
    }

    fn add(&mut self, mut measured: Measured) {
        let mut latencies = Latencies::new();
        for connection in &mut measured.latencies {
            latencies.add_connection(connection);
        }
        self.latencies.merge(&latencies);
        for (kind, count) in measured.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        if measured.turned_away > 0 {
            *self.errors.entry("the client's queue was full".to_owned()).or_default() += measured.turned_away;
        }
        self.rounds += 1;
        self.completed += measured.completed;
        self.measured += measured.elapsed;
        self.client_cpu += measured.client_cpu;
        self.server_cpu = self.server_cpu.zip(measured.server_cpu).map(|(sum, more)| sum + more);
        self.paths.merge(&measured.paths);
    }

    fn record(&self, point: &Point, crossed: Crossed, target_us: Option<f64>) -> Run {
        let Entrant { arm, wait, datagram, drop } = self.entrant;
        let seconds = self.measured.as_secs_f64().max(1e-9);
        let throughput_rps = self.completed as f64 / seconds;
        let payload = f64::from(point.request_bytes) + f64::from(point.response_bytes);
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / self.completed.max(1) as f64;
        let cpu_s = self.server_cpu.map(|server| (server + self.client_cpu).as_secs_f64());
        let path = PathRecord::of(&self.paths);
        let errors = self.errors.values().sum();
        let latency_target_us = target_us.filter(|_| self.offered.is_some());
        let (arrivals, of_saturation) = match (self.offered, point.drive) {
            (Some(_), Drive::Rate(arrivals, _)) => (Some(arrivals), None),
            (Some(_), Drive::Saturation(arrivals, share)) => (Some(arrivals), Some(share)),
            _ => (None, None),
        };
        Run {
            arm,
            emulated: path.as_ref().is_some_and(|path| path.emulated),
            model: "null",
            request_bytes: point.request_bytes,
            response_bytes: point.response_bytes,
            concurrency: point.concurrency,
            offered_rps: self.offered,
            wait,
            requests: self.latencies.len(),
            errors,
            latency_us: self.latencies.summary(),
            throughput_rps,
            cpu_us_per_request: CpuUs { client: each(self.client_cpu), server: self.server_cpu.map(each), nic: None },
            stages_us: stages(&self.paths),
            path,
            crossed,
            point: point.id(),
            section: point.section.name(),
            arrivals,
            of_saturation,
            datagram: (arm.transport() == Transport::Udp).then_some(datagram),
            drop,
            rounds: self.rounds,
            connections: self.latencies.connections(),
            measured_s: seconds,
            bytes_per_s: throughput_rps * payload,
            cpu_s_per_gb: cpu_s.filter(|_| self.completed > 0).map(|cpu| cpu / (self.completed as f64 * payload / 1e9)),
            latency_target_us,
            goodput_rps: latency_target_us.map(|target| throughput_rps * self.latencies.share_within(target)),
            void: false,
            void_reason: None,
            error_kinds: self.errors.clone(),
            curve: self.latencies.curve(),
        }
    }
}
