//! What a launch costs on a GPU's side of a request, once its inputs are there: launched then, or launched before and waiting at a gate, or none, since
//! the kernel stays.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use splitrpc_arena::{Arena, PoolLayout, Run};
use splitrpc_cuda::{Context, Event, Launch, MemoryOptions};
use splitrpc_gpu::{Gate, GpuArena, Kernel, Lane, Operand, Persistent, Recording, Work, filled, load_code};

use crate::gpu_copies::{Samples, Times};
use crate::machine::{Machine, OnGpu};
use crate::report::write_json;
use crate::workloads::{STAYS, STEP};

/// Kernels of a graph.
const KERNELS: [u32; 3] = [1, 8, 32];
/// Words of input and output.
const WORDS: u32 = 1_000;
const BYTES: u32 = 4 * WORDS;
const SLOT: Run = Run { pool: 0, rows: 1, first: 0, generation: 0 };
/// The slot of the ways that work in place, whose words are on the host alone.
const PLACE: Run = Run { first: 1, ..SLOT };
const TENSOR: [(Run, u16, u32); 1] = [(SLOT, 0, BYTES)];
const GRID: Launch = Launch { grid: [WORDS.div_ceil(256), 1, 1], block: [256, 1, 1], shared_bytes: 0 };
/// What a kernel is given that works on the host's slot.
const IN_PLACE: [Operand; 3] = {
    let slot = Operand::Pinned { run: PLACE, tensor: 0, bytes: BYTES };
    [slot, slot, Operand::Word(WORDS)]
};
/// Rounds before any counts.
const WARM_UP: usize = 50;
/// How long a launch waits, at most.
const LIMIT: Duration = Duration::from_secs(1);
/// How long a launch has waited when its request comes: that long, to twice as long.
const IDLE: Duration = Duration::from_micros(50);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each way is measured.
    #[arg(long, default_value_t = 2_000)]
    rounds: usize,
    /// Bytes of other memory that the CPU reads before each round, as a request that goes through its caches would have it do.
    #[arg(long, default_value_t = 0)]
    touch: usize,
    /// Which of the machine's GPUs.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Where to write the figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How work comes to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// On inputs that are there: a graph of the kernels, a kernel that brings the outputs back, a signal.
    Launched,
    /// On inputs that are there: a graph of a gate, the kernels, and the kernel that brings the outputs back, and a signal, all launched before.
    Waiting,
    /// The inputs are copied in front of the launch.
    CopiedLaunched,
    /// A graph of a gate, a kernel that fetches the inputs, and the others, launched before.
    FetchedWaiting,
    /// The kernel reads and writes what is on the host, and a signal.
    LaunchedInPlace,
    /// So does a kernel that is there already.
    StaysInPlace,
    /// So does one of one block.
    OneBlockStays,
}

impl Way {
    const ALL: [Way; 7] = [
        Way::Launched,
        Way::Waiting,
        Way::CopiedLaunched,
        Way::FetchedWaiting,
        Way::LaunchedInPlace,
        Way::StaysInPlace,
        Way::OneBlockStays,
    ];

    /// Those in which a batch of so many kernels can be computed: one that stays is alone.
    fn of(kernels: u32) -> &'static [Way] {
        if kernels == 1 { &Way::ALL } else { &Way::ALL[..4] }
    }

    /// Which of those that stay it is.
    fn stays(self) -> usize {
        usize::from(self == Way::OneBlockStays)
    }

    fn is_in_place(self) -> bool {
        matches!(self, Way::LaunchedInPlace | Way::StaysInPlace | Way::OneBlockStays)
    }

    fn name(self) -> &'static str {
        match self {
            Way::Launched => "launched",
            Way::Waiting => "waiting",
            Way::CopiedLaunched => "copied, launched",
            Way::FetchedWaiting => "waiting, fetches",
            Way::LaunchedInPlace => "launched in place",
            Way::StaysInPlace => "stays, in place",
            Way::OneBlockStays => "one block stays",
        }
    }
}

/// A graph of so many kernels. Microseconds: of the ways from the inputs' being there, on the device or on the host, until the end is seen.
#[derive(Debug, Serialize)]
struct Row {
    kernels: u32,
    /// What the device takes for kernels and outputs, by its own clock.
    work_us: f64,
    ways: Vec<(Way, Times)>,
    /// Of the medians: what the launched way takes beyond the work, and the share of that which the waiting one saves.
    launch_cost_us: f64,
    saved: f64,
    /// The same of the ways that bring the inputs to the device.
    saved_with_inputs: f64,
    /// The time of a kernel of one block that stays as a share of that of one that is launched, both in place; for one kernel.
    stays_share: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    driver: String,
    bytes: u32,
    touch: usize,
    rounds: usize,
    rows: Vec<Row>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rounds > 0, "--rounds is at least 1");
    let OnGpu { driver, context, machine } = OnGpu::take(options.device)?;
    let mut report = Report {
        machine,
        driver: format!("CUDA {}", driver.version()),
        bytes: BYTES,
        touch: options.touch,
        rounds: options.rounds,
        rows: Vec::new(),
    };
    println!(
        "{}, {}; {} rounds, {} bytes touched, us",
        context.device().name,
        report.driver,
        options.rounds,
        options.touch
    );
    println!("{:>7} {:>6}  {:<17} {:>6} {:>6} {:>6} {:>8}", "kernels", "work", "way", "p10", "p50", "p90", "in calls");
    for kernels in KERNELS {
        let row = measure(&context, options, kernels)?;
        print(&row);
        report.rows.push(row);
    }
    write_json(options.json.as_deref(), &report)
}

/// A lane with its graphs.
struct Bench {
    host: Arena,
    lane: Lane,
    gate: Gate,
    kernels: Recording,
    waiting: Recording,
    fetching: Recording,
    /// The ways that stay.
    stays: [Persistent; 2],
    /// Of the last launch.
    number: u32,
    rng: fastrand::Rng,
}

impl Bench {
    fn new(context: &Context, kernels: u32) -> anyhow::Result<Bench> {
        let host = Arena::new("gpu-launch", &[(0, PoolLayout::new(&[BYTES], 2, 1)?)], 0)?;
        let arena = GpuArena::new(context, &host, &[0], &[], MemoryOptions::default())?;
        let kernel = Kernel::new(&load_code(context, STEP.text.as_bytes())?, "step")?;
        let gate = Gate::new(context)?;
        let room = filled(context, &[0; BYTES as usize])?;
        let mut lane = Lane::new(&arena, 0, vec![room], vec![kernel])?.with_gate(&gate);
        let slot = Operand::Slots { run: SLOT, tensor: 0, bytes: BYTES };
        let fetched = Operand::Buffer { buffer: 0, at: 0, bytes: BYTES.into() };
        // The first kernel reads the inputs, and the others what it has written.
        let steps = |work: &Work<'_>, inputs: Operand| {
            (0..kernels).try_for_each(|step| {
                let from = if step == 0 { inputs } else { slot };
                work.run(0, GRID, &[from, slot, Operand::Word(WORDS)])
            })
        };
        let all = |work: &Work<'_>, fetches: bool| {
            work.hold(LIMIT)?;
            if fetches {
                work.fetch(TENSOR.into_iter().zip([&fetched]))?;
            }
            steps(work, if fetches { fetched } else { slot })?;
            work.deliver(TENSOR.into_iter())
        };
        let kernels = lane.record(|work| steps(work, slot))?.context("a graph")?;
        let waiting = lane.record(|work| all(work, false))?.context("a graph")?;
        let fetching = lane.record(|work| all(work, true))?.context("a graph")?;
        let kernel = Kernel::new(&load_code(context, STAYS.text.as_bytes())?, "step")?;
        let stays = |grid| Persistent::new(&arena, 0, Vec::new(), kernel.clone(), grid, IN_PLACE.len());
        let stays = [stays(GRID)?, stays(Launch::linear(WORDS, 1_024))?];
        Ok(Bench { host, lane, gate, kernels, waiting, fetching, stays, number: 0, rng: fastrand::Rng::with_seed(2) })
    }

    /// Has the kernel that stays be there.
    fn call(&mut self, way: Way) -> anyhow::Result<()> {
        let [from, to, _] = IN_PLACE;
        self.stays[way.stays()].ring(0, &[from, to, Operand::Word(0)])?;
        while !self.is_done(way) {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn is_done(&self, way: Way) -> bool {
        match way {
            Way::StaysInPlace | Way::OneBlockStays => self.stays[way.stays()].is_done(),
            _ => self.lane.signalled() == self.number,
        }
    }

    fn launch(&self) -> anyhow::Result<()> {
        self.lane.replay(self.kernels)?;
        self.lane.work().deliver(TENSOR.into_iter())?;
        Ok(self.lane.signal(self.number)?)
    }

    fn launch_ahead(&self, graph: Recording) -> anyhow::Result<()> {
        self.gate.shut(self.number);
        self.lane.replay(graph)?;
        Ok(self.lane.signal(self.number)?)
    }

    /// Nanoseconds that the CPU spent in calls, and until the end was seen.
    fn once(&mut self, way: Way, other: &[u64]) -> anyhow::Result<(u64, u64)> {
        self.number = self.number.wrapping_add(1);
        match way {
            Way::Waiting => self.launch_ahead(self.waiting)?,
            Way::FetchedWaiting => self.launch_ahead(self.fetching)?,
            Way::StaysInPlace | Way::OneBlockStays => self.call(way)?,
            Way::Launched | Way::CopiedLaunched | Way::LaunchedInPlace => {}
        }
        let (idle, time) = (Instant::now(), IDLE.mul_f64(1.0 + self.rng.f64()));
        while idle.elapsed() < time {
            std::hint::spin_loop();
        }
        std::hint::black_box(other.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word)));
        let start = Instant::now();
        match way {
            Way::Launched => self.launch()?,
            Way::CopiedLaunched => {
                self.lane.work().copy_in(SLOT, 0, 0, BYTES)?;
                self.launch()?;
            }
            Way::Waiting | Way::FetchedWaiting => self.gate.open(self.number),
            Way::LaunchedInPlace => {
                self.lane.work().run(0, GRID, &IN_PLACE)?;
                self.lane.signal(self.number)?;
            }
            Way::StaysInPlace | Way::OneBlockStays => self.stays[way.stays()].ring(1, &IN_PLACE)?,
        }
        let submitted = start.elapsed();
        while !self.is_done(way) {
            std::hint::spin_loop();
        }
        let there = start.elapsed();
        // It is not to look over the bus beside the other ways.
        self.stays.iter_mut().for_each(Persistent::stop);
        Ok((submitted.as_nanos() as u64, there.as_nanos() as u64))
    }

    /// Nanoseconds of the device for what is launched in one way. All of it is there before the device begins, so that it waits for no call.
    fn work(&mut self, marks: &[Event; 2]) -> anyhow::Result<u64> {
        self.number = self.number.wrapping_add(1);
        self.gate.shut(self.number);
        self.lane.work().hold(LIMIT)?;
        self.lane.mark(&marks[0])?;
        self.lane.replay(self.kernels)?;
        self.lane.work().deliver(TENSOR.into_iter())?;
        self.lane.mark(&marks[1])?;
        self.gate.open(self.number);
        self.lane.finish()?;
        let took = marks[1].elapsed_since(&marks[0])?.context("the time of work that is done")?;
        Ok(took.as_nanos() as u64)
    }

    /// The first word on the host, which every copy takes in and every launch adds to.
    fn first_word(&self, way: Way) -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        self.host.span(if way.is_in_place() { PLACE } else { SLOT }, 0, 0, 4).context("the slot")?.copy_to(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }
}

fn measure(context: &Context, options: &Options, kernels: u32) -> anyhow::Result<Row> {
    let mut bench = Bench::new(context, kernels)?;
    let other = vec![1_u64; options.touch / 8];
    let mut rng = fastrand::Rng::with_seed(1);
    let mut found = Way::ALL.map(|_| Samples::default());
    let (mut work, marks) = (Samples::default(), [Event::timed(context)?, Event::timed(context)?]);
    let mut order = Way::of(kernels).to_vec();
    for round in 0..WARM_UP + options.rounds {
        rng.shuffle(&mut order);
        for way in order.iter().copied() {
            let before = bench.first_word(way)?;
            let (submitted, there) = bench.once(way, &other)?;
            let added = bench.first_word(way)?.wrapping_sub(before);
            ensure!(added == kernels, "{} has added {added} where {kernels} kernels add one each", way.name());
            if round >= WARM_UP {
                found[way as usize].add(submitted, there);
            }
        }
        let took = bench.work(&marks)?;
        if round >= WARM_UP {
            work.add(0, took);
        }
    }
    let work_us = work.times().p50;
    let ways: Vec<_> = Way::of(kernels).iter().zip(found).map(|(way, found)| (*way, found.times())).collect();
    let p50 = |way: Way| ways[way as usize].1.p50;
    let saved = |launched, waiting| (p50(launched) - p50(waiting)) / (p50(launched) - work_us);
    let launch_cost_us = p50(Way::Launched) - work_us;
    let with_inputs = saved(Way::CopiedLaunched, Way::FetchedWaiting);
    let saved = saved(Way::Launched, Way::Waiting);
    let stays_share = ways.get(Way::OneBlockStays as usize).map(|stays| stays.1.p50 / p50(Way::LaunchedInPlace));
    Ok(Row { kernels, work_us, ways, launch_cost_us, saved, saved_with_inputs: with_inputs, stays_share })
}

fn print(row: &Row) {
    let Row { kernels, work_us, launch_cost_us, saved, saved_with_inputs, .. } = row;
    for (way, Times { p10, p50, p90, submitted_p50 }) in &row.ways {
        let name = way.name();
        println!("{kernels:>7} {work_us:>6.1}  {name:<17} {p10:>6.1} {p50:>6.1} {p90:>6.1} {submitted_p50:>8.2}");
    }
    let (share, with) = (100.0 * saved, 100.0 * saved_with_inputs);
    println!(
        "{:>16}a launch costs {launch_cost_us:.1}, and {share:.0} % less where it waits; {with:.0} % with inputs",
        ""
    );
    if let Some(share) = row.stays_share {
        println!("{:>16}in place, a kernel of one block that stays takes {share:.2} of one that is launched", "");
    }
}
