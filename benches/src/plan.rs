//! What is measured: points, each a load under which several entrants are compared side by side.

mod gpu;

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use crate::arms::{Arm, DATAGRAM, JUMBO_DATAGRAM, RESPONSE_BYTES, Transport};
use crate::load::arrivals::Arrivals;
use crate::wait::Wait;
use crate::workloads::Workload;

pub(crate) use gpu::{gpu, starting};

/// Fresh connections that an arm must have for its figure to count.
pub(crate) const FRESH_CONNECTIONS: u32 = 60;
/// An image of 3 x 224 x 224 FP32 values: the size at which most figures are read.
pub(crate) const IMAGE: u32 = 602_112;
/// Rounds for which several connections are kept: to open and warm them up takes longer than a round.
const ROUNDS_KEPT: u32 = 4;
/// Requests a second under which the host's processor time is read, and connections for how much an arm carries beside a card.
pub(crate) const HOST_CPU_RPS: f64 = 200.0;
const SPLIT_CONNECTIONS: usize = 4;
const SIZES: [u32; 5] = [64, 4_096, 65_536, IMAGE, 3_244_800];

/// An arm with the settings under which it takes part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entrant {
    /// The arm.
    pub(crate) arm: Arm,
    /// How client and server wait.
    pub(crate) wait: Wait,
    /// Bytes of UDP payload in each datagram, where it uses datagrams.
    pub(crate) datagram: u16,
    /// Share of arriving datagrams that the server's port throws away.
    pub(crate) drop: f64,
}

/// How the load is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Drive {
    /// A closed loop.
    Closed,
    /// An open loop of so many requests a second.
    Rate(Arrivals, f64),
    /// An open loop at a share of saturation, which closed loops between its rounds tell.
    Saturation(Arrivals, f64, Basis),
}

/// Whose saturation an open loop's rate is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Basis {
    /// Each arm's own: all are as far from their limits.
    Own,
    /// That of the slowest arm of the point: all are offered the same, so that their latencies can be compared.
    Slowest,
}

/// What a point is for; the report groups by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// One request at a time.
    Single,
    /// Now and then a request, with threads asleep between.
    Light,
    /// So many requests a second, to see what that takes of the host's processor.
    HostCpu,
    /// Several connections at once, each with one request under way.
    Concurrent,
    /// Open loops at shares of saturation.
    Open,
    /// Many connections.
    FanIn,
    /// Datagrams lost.
    Loss,
}

impl Section {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Section::Single => "one at a time",
            Section::Light => "light load",
            Section::HostCpu => "host cpu",
            Section::Concurrent => "concurrent",
            Section::Open => "open loop",
            Section::FanIn => "fan-in",
            Section::Loss => "loss",
        }
    }
}

/// A load under which entrants are compared.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// What it is for.
    pub(crate) section: Section,
    /// What the servers compute.
    pub(crate) workload: Workload,
    /// Payload of a request.
    pub(crate) request_bytes: u32,
    /// Payload of a response.
    pub(crate) response_bytes: u32,
    /// Connections.
    pub(crate) concurrency: usize,
    /// The load.
    pub(crate) drive: Drive,
    /// Who takes part.
    pub(crate) entrants: Vec<Entrant>,
    /// How often each is measured.
    pub(crate) rounds: u32,
    /// In how many parts, spread over the whole comparison.
    pub(crate) parts: u32,
    /// Load before it counts, each round. Scaled with `measure` to the time there is.
    pub(crate) warm_up: Duration,
    /// Load that counts, each round.
    pub(crate) measure: Duration,
    /// When a request that has no answer has failed.
    pub(crate) timeout: Duration,
}

impl Point {
    /// A name that tells it from all others.
    pub(crate) fn id(&self) -> String {
        let mut id = self.section.name().replace(' ', "-");
        if self.workload != Workload::Null {
            id += &format!("/{}", self.workload.name());
        }
        id += &format!("/{}", self.request_bytes);
        if self.concurrency > 1 {
            id += &format!("/c{}", self.concurrency);
        }
        match self.drive {
            Drive::Closed => {}
            Drive::Rate(arrivals, rate) => id += &format!("/{}-{rate}", arrivals.name()),
            Drive::Saturation(arrivals, share, basis) => {
                id += &format!("/{}-{:.0}%", arrivals.name(), share * 100.0);
                if basis == Basis::Slowest {
                    id += "-of-slowest";
                }
            }
        }
        if let Some(entrant) = self.entrants.last() {
            id += &format!("/{}", entrant.wait.name());
            // Floors come first. Those of a light load wait in their own way.
            if let Some(floor) = self.entrants.first().filter(|floor| floor.wait != entrant.wait) {
                id += &format!("/floors-{}", floor.wait.name());
            }
            if self.entrants.iter().all(|e| e.arm.transport() == Transport::Udp) && entrant.datagram != DATAGRAM {
                id += &format!("/{}", entrant.datagram);
            }
        }
        id
    }

    /// How long each entrant is driven in a closed loop on its fresh connections, so that its rate is known. A third of that
    /// is warm-up, and the rest as long as a round counts.
    pub(crate) fn calibration(&self) -> Option<Duration> {
        matches!(self.drive, Drive::Saturation(..)).then_some(self.measure * 3 / 2)
    }

    /// For how many rounds connections are kept once they are open.
    pub(crate) fn rounds_kept(&self) -> u32 {
        if matches!(self.section, Section::Single | Section::Light | Section::Loss) { 1 } else { ROUNDS_KEPT }
    }

    /// How often each entrant opens fresh connections.
    pub(crate) fn openings(&self) -> u32 {
        self.rounds.div_ceil(self.rounds_kept())
    }

    /// The openings of part number `part`.
    pub(crate) fn openings_of(&self, part: u32) -> Range<u32> {
        let before = |part| self.openings() * part / self.parts;
        before(part)..before(part + 1)
    }

    /// How long it takes, about.
    pub(crate) fn cost(&self) -> Duration {
        self.cost_of(self.openings())
    }

    /// How long part of it takes, about.
    pub(crate) fn cost_of(&self, openings: u32) -> Duration {
        (self.load() + self.overhead()) * openings * self.entrants.len() as u32
    }

    /// How long an entrant is under load each time that it has fresh connections.
    pub(crate) fn load(&self) -> Duration {
        (self.warm_up + self.measure) * self.rounds_kept() + self.calibration().unwrap_or_default()
    }

    /// How long that takes beside the load: connecting, pausing and resuming servers, and the requests that must have ended
    /// before anything counts and after that.
    pub(crate) fn overhead(&self) -> Duration {
        let (micros, kept) = (Duration::from_micros, self.rounds_kept());
        let windows = kept + u32::from(self.calibration().is_some());
        // Five requests of each fresh connection, at some gigabytes a second, and three in each further window.
        let under_way = Duration::from_nanos(u64::from(self.request_bytes) * self.concurrency as u64 * 3 / 2);
        micros(500) * windows + micros(200) * self.concurrency as u32 + under_way * (2 + 3 * kept) / 4
    }

    /// By how much a window's times are scaled so that it lasts no longer than about `room`.
    pub(crate) fn scale(&self, room: Duration, overhead: Duration) -> f64 {
        let load = self.load();
        // At a fixed low rate a shorter window might hold no request at all.
        let least = if matches!(self.drive, Drive::Rate(..)) { 1.0 } else { 0.15 };
        (room.saturating_sub(overhead).as_secs_f64() / load.as_secs_f64().max(1e-9)).clamp(least, 1.0)
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Rounds of the loads of either plan, and milliseconds that count in each; as many rounds as fresh connections must be where
/// only the latter are told. The machine's pace may change with every window, so many short ones tell more than few long ones.
struct Windows {
    small: (u32, u64),
    image: (u32, u64),
    light: (u32, u64),
    sixteen: (u32, u64),
    loss: (u32, u64),
    adaptive: u64,
    split: (u32, u64),
}

/// Parts in which the loads are measured at which figures are read. A machine may be slower for a minute than in the next, and
/// one way of serving suffer more from that than another.
const PARTS: u32 = 4;

/// Parts of points by their places, in the order in which they are to be measured: one workload after the other, since the
/// servers of one are ended before those of the next are started.
pub(crate) fn parts(points: &[Point]) -> Vec<(usize, u32)> {
    let mut order = Vec::new();
    let mut first = 0;
    for of_workload in points.chunk_by(|one, next| one.workload == next.workload) {
        order.extend(spread(of_workload).into_iter().map(|(at, part)| (first + at, part)));
        first += of_workload.len();
    }
    order
}

/// The parts of points that have several are spread evenly over all others.
fn spread(points: &[Point]) -> Vec<(usize, u32)> {
    let times = points.iter().map(|point| point.parts).max().unwrap_or(1);
    let whole: Vec<usize> = (0..points.len()).filter(|&at| points[at].parts == 1).collect();
    let mut order = Vec::new();
    for time in 0..times {
        order.extend(
            (0..points.len()).filter(|&at| time < points[at].parts && points[at].parts > 1).map(|at| (at, time)),
        );
        let upto = |time: u32| whole.len() * time as usize / times as usize;
        order.extend(whole[upto(time)..upto(time + 1)].iter().map(|&at| (at, 0)));
    }
    order
}

/// Makes points over the arms that were asked for.
struct Planner<'a> {
    arms: &'a [Arm],
    points: Vec<Point>,
}

impl Planner<'_> {
    fn entrants(&self, arms: &[Arm], wait: Wait, datagram: u16) -> Vec<Entrant> {
        // Two spinning processes and a client's want three cores, of which a card would have one.
        let fits = |arm: Arm| wait != Wait::Spin || !arm.is_smartnic();
        let asked = arms.iter().filter(|&&arm| self.arms.contains(&arm) && fits(arm));
        asked.map(|&arm| Entrant { arm, wait, datagram, drop: 0.0 }).collect()
    }

    fn push(&mut self, point: Point) {
        if !point.entrants.is_empty() {
            self.points.push(point);
        }
    }

    /// The loads at which figures are read, and one request at a time with adaptive waiting.
    fn judged(&mut self, windows: &Windows) {
        for (size, (rounds, measure)) in [(64, windows.small), (IMAGE, windows.image)] {
            self.closed(size, 1, Wait::Spin, rounds, measure);
        }
        // Light loads cannot be shortened: what they take longer than planned is to be shared by those behind them.
        for size in [64, IMAGE] {
            let (rounds, measure) = windows.light;
            self.light(size, rounds, measure);
        }
        self.jumbo(windows.image);
        let (rounds, measure) = windows.sixteen;
        self.closed(IMAGE, 16, Wait::Spin, rounds, measure);
        let (rounds, measure) = windows.loss;
        self.loss(rounds, measure);
        // Nothing is promised of these, so they have what time the others leave.
        for size in [64, IMAGE] {
            self.closed(size, 1, Wait::Adaptive, FRESH_CONNECTIONS, windows.adaptive);
        }
        if self.arms.iter().any(|arm| arm.is_smartnic()) {
            let (rounds, measure) = windows.split;
            self.split(rounds, measure);
        }
        for point in &mut self.points {
            point.parts = PARTS;
        }
    }

    fn closed(&mut self, size: u32, concurrency: usize, wait: Wait, rounds: u32, measure: u64) {
        let section = if concurrency == 1 { Section::Single } else { Section::Concurrent };
        let entrants = self.entrants(&Arm::ALL, wait, DATAGRAM);
        self.push(Point {
            section,
            workload: Workload::Null,
            request_bytes: size,
            response_bytes: RESPONSE_BYTES,
            concurrency,
            drive: Drive::Closed,
            entrants,
            rounds,
            parts: 1,
            warm_up: millis(measure) / 4,
            measure: millis(measure),
            timeout: millis(1_000),
        });
    }

    fn jumbo(&mut self, (rounds, measure): (u32, u64)) {
        let arms = [Arm::FloorUdp, Arm::FloorUdpAgain, Arm::CommodityUdp];
        let entrants = self.entrants(&arms, Wait::Spin, JUMBO_DATAGRAM);
        self.closed(IMAGE, 1, Wait::Spin, rounds, measure);
        if let Some(mut point) = self.points.pop() {
            point.entrants = entrants;
            self.push(point);
        }
    }

    /// Blocking floors beside adaptive servers, with time to fall asleep between requests.
    fn light(&mut self, size: u32, rounds: u32, measure: u64) {
        let mut entrants = self.entrants(&[Arm::FloorTcp, Arm::FloorTcpAgain], Wait::Block, DATAGRAM);
        entrants.extend(self.entrants(&[Arm::BundledTcp, Arm::CommodityTcp], Wait::Adaptive, DATAGRAM));
        self.push(Point {
            section: Section::Light,
            workload: Workload::Null,
            request_bytes: size,
            response_bytes: RESPONSE_BYTES,
            concurrency: 1,
            drive: Drive::Rate(Arrivals::Deterministic, 250.0),
            entrants,
            rounds,
            parts: 1,
            warm_up: millis(6),
            measure: millis(measure),
            timeout: millis(1_000),
        });
    }

    /// Commodity card and SmartNIC side by side: what a steady load takes of the host's processor, and how much they carry.
    fn split(&mut self, rounds: u32, measure: u64) {
        let arms = [Arm::CommodityTcp, Arm::CommodityUdp, Arm::SmartnicTcp, Arm::SmartnicUdp];
        let entrants = self.entrants(&arms, Wait::Adaptive, DATAGRAM);
        self.closed(IMAGE, SPLIT_CONNECTIONS, Wait::Adaptive, rounds, measure / 5);
        let Some(point) = self.points.last().cloned() else { return };
        let drive = Drive::Rate(Arrivals::Deterministic, HOST_CPU_RPS);
        let (warm_up, measure) = (millis(10), millis(measure));
        self.push(Point { section: Section::HostCpu, concurrency: 1, drive, entrants, warm_up, measure, ..point });
    }

    /// Several connections, in many short windows: more rounds bring the floors together, and longer ones hardly do, since the
    /// machine changes its pace between windows of any length.
    fn concurrent(&mut self, size: u32, concurrency: usize, wait: Wait) {
        let (rounds, measure) = match u64::from(size) * concurrency as u64 {
            0..5_000_000 => (32, 6),
            // More is answered than is under way at once.
            5_000_000..20_000_000 => (20, 10),
            _ => (12, 16),
        };
        self.closed(size, concurrency, wait, rounds, measure);
    }

    fn open(&mut self, section: Section, size: u32, concurrency: usize, drive: Drive, rounds: u32) {
        let entrants = self.entrants(&Arm::ALL, Wait::Adaptive, DATAGRAM);
        // The queue is as long as it then stays before anything counts.
        let (warm_up, measure) = if size == IMAGE { (5, 10) } else { (2, 8) };
        self.push(Point {
            section,
            workload: Workload::Null,
            request_bytes: size,
            response_bytes: RESPONSE_BYTES,
            concurrency,
            drive,
            entrants,
            rounds,
            parts: 1,
            warm_up: millis(warm_up),
            measure: millis(measure),
            timeout: millis(2_000),
        });
    }

    fn loss(&mut self, rounds: u32, measure: u64) {
        let entrants = self.entrants(&[Arm::CommodityUdp], Wait::Spin, DATAGRAM);
        let Some(&entrant) = entrants.first() else { return };
        self.push(Point {
            section: Section::Loss,
            workload: Workload::Null,
            request_bytes: IMAGE,
            response_bytes: RESPONSE_BYTES,
            concurrency: 4,
            drive: Drive::Closed,
            entrants: [0.0, 0.01, 0.1].map(|drop| Entrant { drop, ..entrant }).to_vec(),
            rounds,
            parts: 1,
            warm_up: millis(measure) / 4,
            measure: millis(measure),
            timeout: millis(5_000),
        });
    }
}

/// The short plan: the sizes and settings at which figures are read.
pub(crate) fn quick(arms: &[Arm]) -> Vec<Point> {
    let mut planner = Planner { arms, points: Vec::new() };
    planner.judged(&Windows {
        small: (90, 3),
        image: (90, 5),
        light: (FRESH_CONNECTIONS, 16),
        sixteen: (72, 10),
        loss: (16, 38),
        adaptive: 4,
        split: (16, 32),
    });
    planner.points
}

/// The whole plan.
pub(crate) fn full(arms: &[Arm]) -> Vec<Point> {
    let mut planner = Planner { arms, points: Vec::new() };
    planner.judged(&Windows {
        small: (120, 4),
        image: (160, 6),
        light: (FRESH_CONNECTIONS, 44),
        sixteen: (80, 11),
        loss: (24, 80),
        adaptive: 8,
        split: (16, 60),
    });
    for size in SIZES.into_iter().filter(|size| ![64, IMAGE].contains(size)) {
        planner.closed(size, 1, Wait::Spin, FRESH_CONNECTIONS, 10);
        planner.closed(size, 1, Wait::Adaptive, FRESH_CONNECTIONS / 2, 7);
    }
    for (size, rounds) in [(64, 28), (IMAGE, 20)] {
        for basis in [Basis::Own, Basis::Slowest] {
            for arrivals in [Arrivals::Poisson, Arrivals::Deterministic] {
                planner.open(Section::Open, size, 16, Drive::Saturation(arrivals, 0.7, basis), rounds);
            }
        }
        for share in [0.3, 0.5, 0.9] {
            let drive = Drive::Saturation(Arrivals::Poisson, share, Basis::Own);
            planner.open(Section::Open, size, 16, drive, rounds);
        }
    }
    for (clients, rounds) in [(64, 28), (256, 24)] {
        planner.open(Section::FanIn, 4_096, clients, Drive::Saturation(Arrivals::Poisson, 0.5, Basis::Slowest), rounds);
    }
    for size in [64, 4_096, IMAGE] {
        for concurrency in [4, 16, 64] {
            // Four images are above.
            if (size, concurrency) != (IMAGE, SPLIT_CONNECTIONS) {
                planner.concurrent(size, concurrency, Wait::Adaptive);
            }
        }
    }
    for size in SIZES {
        for concurrency in [4, 16, 64] {
            // Sixteen images are above; more of the largest would only queue.
            if (size, concurrency) != (IMAGE, 16) && size * concurrency as u32 <= 16 * 3_244_800 {
                planner.concurrent(size, concurrency, Wait::Spin);
            }
        }
    }
    planner.points
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_plans_fit_their_limits_and_name_each_point_once() {
        for (points, limit) in [(quick(&Arm::NETWORK), 49), (full(&Arm::NETWORK), 270)] {
            let cost: Duration = points.iter().map(Point::cost).sum();
            for p in &points {
                eprintln!("{:?} {}", p.cost(), p.id());
            }
            assert!(cost <= Duration::from_secs(limit), "{cost:?} for {limit} s");
            let ids: HashSet<String> = points.iter().map(Point::id).collect();
            assert_eq!(ids.len(), points.len());
        }
    }

    #[test]
    fn figure_points_have_their_fresh_connections_and_both_floors() {
        for points in [quick(&Arm::NETWORK), full(&Arm::NETWORK)] {
            for point in points.iter().filter(|p| [Section::Single, Section::Light].contains(&p.section)) {
                if [64, IMAGE].contains(&point.request_bytes) {
                    assert!(point.rounds >= FRESH_CONNECTIONS, "{}", point.id());
                }
                let arms: Vec<Arm> = point.entrants.iter().map(|e| e.arm).collect();
                for arm in &arms {
                    assert!(Arm::floors(arm.transport()).iter().all(|floor| arms.contains(floor)), "{}", point.id());
                }
            }
        }
    }

    #[test]
    fn each_open_loop_has_both_floors_of_its_arms_and_time_for_what_tells_its_rate() {
        let points = full(&Arm::NETWORK);
        let open: Vec<&Point> = points.iter().filter(|point| point.calibration().is_some()).collect();
        assert!(open.len() > 10);
        for point in open {
            assert!(Arm::NETWORK.iter().all(|arm| point.entrants.iter().any(|e| e.arm == *arm)), "{}", point.id());
            let closed = Point { drive: Drive::Closed, ..point.clone() };
            assert!(
                point.cost() >= closed.cost() + point.calibration().unwrap() * point.openings() * 7,
                "{}",
                point.id()
            );
        }
        // All arms are offered the same, and each a share of its own.
        for basis in ["poisson-70%/", "poisson-70%-of-slowest/", "deterministic-70%/", "deterministic-70%-of-slowest/"]
        {
            assert_eq!(points.iter().filter(|point| point.id().contains(basis)).count(), 2, "{basis}");
        }
    }

    #[test]
    fn a_light_loads_name_says_how_its_floors_wait() {
        let name = |arms: &[Arm]| {
            let points = quick(arms);
            points.iter().find(|point| point.section == Section::Light).map(Point::id).unwrap_or_default()
        };
        assert_eq!(name(&Arm::NETWORK), "light-load/64/deterministic-250/adaptive/floors-block");
        assert_eq!(name(&[Arm::CommodityTcp]), "light-load/64/deterministic-250/adaptive");
        assert_eq!(name(&[Arm::FloorTcp]), "light-load/64/deterministic-250/block");
        let others = quick(&Arm::NETWORK).into_iter().filter(|point| point.section != Section::Light);
        assert!(others.map(|point| point.id()).all(|id| !id.contains("floors")));
    }

    #[test]
    fn the_floor_is_known_before_an_answer_is_judged_by_it() {
        for points in [quick(&Arm::NETWORK), full(&Arm::NETWORK)] {
            let order: Vec<&Point> = parts(&points).into_iter().map(|(at, _)| &points[at]).collect();
            for (place, point) in order.iter().enumerate().filter(|(_, point)| point.drive != Drive::Closed) {
                let spins =
                    |p: &&&Point| p.section == Section::Single && p.entrants.iter().all(|e| e.wait == Wait::Spin);
                let alone = |p: &&&Point| p.request_bytes == point.request_bytes && spins(p);
                assert!(order[..place].iter().any(|p| alone(&p)) || !order.iter().any(|p| alone(&p)), "{}", point.id());
            }
        }
    }

    #[test]
    fn figures_are_measured_over_the_whole_comparison() {
        for points in [quick(&Arm::NETWORK), full(&Arm::NETWORK)] {
            let order = parts(&points);
            for (at, point) in points.iter().enumerate() {
                let places: Vec<usize> = (0..order.len()).filter(|&place| order[place].0 == at).collect();
                assert_eq!(
                    places.iter().map(|&place| order[place].1).collect::<Vec<_>>(),
                    Vec::from_iter(0..point.parts)
                );
                // Every opening is of one part, and no part is without.
                let openings = (0..point.parts).map(|part| point.openings_of(part));
                assert!(openings.clone().all(|of| !of.is_empty()), "{}", point.id());
                assert_eq!(openings.flatten().collect::<Vec<_>>(), Vec::from_iter(0..point.openings()));
                if point.parts > 1 {
                    let apart = order.len() / PARTS as usize;
                    assert!(places.windows(2).all(|pair| pair[1] - pair[0] + 1 >= apart), "{}: {places:?}", point.id());
                }
            }
        }
    }

    #[test]
    fn arms_not_asked_for_do_not_run() {
        let points = full(&[Arm::BundledTcp]);
        assert!(!points.is_empty());
        assert!(points.iter().flat_map(|p| &p.entrants).all(|e| e.arm == Arm::BundledTcp));
        assert!(points.iter().all(|p| p.section != Section::Loss));
    }
}
