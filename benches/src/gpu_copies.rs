//! From frames in pinned memory into a slot on a GPU: one copy of a tensor that lies in one piece, the driver's batched copies
//! of its frames, and the kernel that gathers them.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use splitrpc_arena::{Arena, PoolLayout, Run};
use splitrpc_cuda::{Context, CopyBatch, Event, MemoryOptions};
use splitrpc_gpu::{GpuArena, Lane, Piece, Work};

use crate::arms::Arm;
use crate::machine::{Machine, OnGpu};
use crate::plan::IMAGE;
use crate::report::plots::{Line, by_count, colour};
use crate::report::write_json;

/// Into how many frames a tensor is cut. 74 are those of the paper's 8,192 bytes, 428 those of an ordinary network.
const FRAMES: [u16; 9] = [1, 2, 4, 8, 16, 37, 74, 147, 428];
/// Where a frame's payload begins.
const HEADER: u32 = 64;
/// Rounds before any counts.
const WARM_UP: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Bytes of the tensor.
    #[arg(long, default_value_t = IMAGE)]
    bytes: u32,
    /// How often each way is measured.
    #[arg(long, default_value_t = 400)]
    rounds: usize,
    /// Frames in the order in which they lie, and not in any.
    #[arg(long)]
    in_order: bool,
    /// Which of the machine's GPUs.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Where to write the figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to draw them.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing, and draw the figures of an earlier run.
    #[arg(long, value_name = "JSON", requires = "svg", conflicts_with = "json")]
    from: Option<PathBuf>,
}

/// How a tensor gets into its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// It lies in one piece, and one copy takes it.
    OneCopy,
    /// Its frames in one call of the driver, by the copy engines.
    BatchedCopies,
    /// Its frames by a kernel.
    Gather,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::OneCopy => "one copy",
            Way::BatchedCopies => "batched copies",
            Way::Gather => "gather",
        }
    }
}

/// Microseconds, from the first call to the tensor's being there.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) p10: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    /// Until the last call had returned; the CPU is free from then on.
    pub(crate) submitted_p50: f64,
}

/// The kernel beside another way, turn by turn. All three together would not do: many batched copies leave the driver and the
/// device in a state in which the next kernel starts later.
#[derive(Debug, Serialize, Deserialize)]
struct Pair {
    beside: Way,
    beside_us: Times,
    gather_us: Times,
    /// Of the medians.
    ratio: f64,
}

/// One tensor, cut into frames in one way.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    frames: u32,
    frame_bytes: u32,
    /// Launches that the kernel took.
    launches: usize,
    pairs: Vec<Pair>,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    driver: String,
    bytes: u32,
    rounds: usize,
    rows: Vec<Row>,
}

/// The rows of a report.
#[derive(Debug, Deserialize)]
struct Earlier {
    rows: Vec<Row>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(from) = &options.from {
        let text = std::fs::read_to_string(from).with_context(|| format!("reading {}", from.display()))?;
        let earlier: Earlier = serde_json::from_str(&text).with_context(|| format!("reading {}", from.display()))?;
        return draw(options, &earlier.rows);
    }
    ensure!(options.bytes > 0 && options.rounds > 0, "--bytes and --rounds are at least 1");
    let OnGpu { driver, context, machine } = OnGpu::take(options.device)?;
    let mut rng = fastrand::Rng::with_seed(1);
    let mut report = Report {
        machine,
        driver: format!("CUDA {}", driver.version()),
        bytes: options.bytes,
        rounds: options.rounds,
        rows: Vec::new(),
    };
    println!("{}, {}; {} bytes, {} rounds, us", context.device().name, report.driver, options.bytes, options.rounds);
    println!(
        "{:>7} {:>8}  {:<15} {:>7} {:>7} {:>7} {:>9}  ratio",
        "frames", "bytes", "way", "p10", "p50", "p90", "submitted"
    );
    for frames in FRAMES.into_iter().filter(|frames| u32::from(*frames) <= options.bytes) {
        let row = measure(&context, driver.batched_copies(), options, frames, &mut rng)?;
        print(&row);
        report.rows.push(row);
    }
    write_json(options.json.as_deref(), &report)?;
    draw(options, &report.rows)
}

/// What each way takes, over how many frames there are.
fn draw(options: &Options, rows: &[Row]) -> anyhow::Result<()> {
    let Some(file) = &options.svg else { return Ok(()) };
    let line = |name, colour, of: &dyn Fn(&Row) -> Option<f64>| {
        let points = rows.iter().filter_map(|row| Some((row.frames.into(), of(row)?))).collect();
        Line { colour, name, points }
    };
    let beside = |row: &Row, way: Way| row.pairs.iter().find(|pair| pair.beside == way).map(|pair| pair.beside_us.p50);
    let lines = [
        line("batched copies", colour(Arm::BundledTcp), &|row| beside(row, Way::BatchedCopies)),
        line("gather kernel", colour(Arm::CommodityTcp), &|row| row.pairs.first().map(|pair| pair.gather_us.p50)),
        line("one copy", colour(Arm::FloorTcp), &|row| beside(row, Way::OneCopy)),
    ];
    std::fs::write(file, by_count(&lines, "frames")?).with_context(|| format!("writing {}", file.display()))
}

fn measure(
    context: &Context,
    batches: bool,
    options: &Options,
    frames: u16,
    rng: &mut fastrand::Rng,
) -> anyhow::Result<Row> {
    // Senders cut at multiples of 64 bytes.
    let frame_bytes = options.bytes.div_ceil(frames.into()).next_multiple_of(64);
    let slots = PoolLayout::new(&[options.bytes], 1, 4)?;
    let room = PoolLayout::new(&[(HEADER + frame_bytes).next_multiple_of(64)], frames, 1)?;
    let host = Arena::new("gpu-copies", &[(0, slots), (1, room)], 0)?;
    let arena = GpuArena::new(context, &host, &[0], &[1], MemoryOptions::default())?;
    let lane = Lane::new(&arena, 0, Vec::new(), Vec::new())?;
    let slot = Run { pool: 0, rows: 1, first: 0, generation: 0 };
    let tensor: Vec<u8> = (0..options.bytes).map(|at| (at.wrapping_mul(31) + at / 4096) as u8).collect();
    let mut pieces: Vec<Piece> = Vec::new();
    for (number, bytes) in tensor.chunks(frame_bytes as usize).enumerate() {
        let frame = Run { pool: 1, rows: 1, first: number as u32, generation: 0 };
        host.span(frame, 0, HEADER, bytes.len() as u32).context("a frame")?.copy_from(bytes);
        let offset = number as u32 * frame_bytes;
        pieces.push(Piece { frame, frame_offset: HEADER, slot, tensor: 0, offset, len: bytes.len() as u32 });
    }
    if !options.in_order {
        // As the network may bring them.
        rng.shuffle(&mut pieces);
    }
    let (mut batch, event) = (CopyBatch::default(), Event::new(context)?);
    let launches = lane.work().gather(&pieces)?;
    let ways = [Way::OneCopy, Way::BatchedCopies];
    let beside = || ways.into_iter().filter(|way| batches || *way != Way::BatchedCopies);
    let on_host = host.span(slot, 0, 0, options.bytes).context("the slot")?;
    let by = |work: &Work<'_>, way, batch: &mut CopyBatch| -> anyhow::Result<()> {
        match way {
            Way::OneCopy => Ok(work.copy_in(slot, 0, 0, options.bytes)?),
            Way::BatchedCopies => Ok(work.gather_by_engine(batch, &pieces)?),
            Way::Gather => Ok(work.gather(&pieces).map(drop)?),
        }
    };
    for way in beside().chain([Way::Gather]).filter(|way| *way != Way::OneCopy) {
        on_host.fill(0);
        by(&lane.work(), Way::OneCopy, &mut batch)?;
        by(&lane.work(), way, &mut batch)?;
        lane.work().copy_out(slot, 0, 0, options.bytes)?;
        lane.finish()?;
        let mut there = vec![0; tensor.len()];
        on_host.copy_to(&mut there);
        ensure!(there == tensor, "{} has brought other bytes", way.name());
    }
    on_host.copy_from(&tensor);
    let mut pairs = Vec::new();
    for beside in beside() {
        let mut found = [Samples::default(), Samples::default()];
        for round in 0..WARM_UP + options.rounds {
            let first = rng.bool();
            for gathers in [first, !first] {
                let way = if gathers { Way::Gather } else { beside };
                let (submitted, there) = once(&lane, &event, |work| by(work, way, &mut batch))?;
                if round >= WARM_UP {
                    found[usize::from(gathers)].add(submitted, there);
                }
            }
        }
        let [beside_us, gather_us] = found.map(Samples::times);
        pairs.push(Pair { beside, beside_us, gather_us, ratio: gather_us.p50 / beside_us.p50 });
    }
    Ok(Row { frames: pieces.len() as u32, frame_bytes, launches, pairs })
}

/// Nanoseconds until all was submitted, and until it was done.
fn once(
    lane: &Lane,
    event: &Event,
    submit: impl FnOnce(&Work<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<(u64, u64)> {
    let start = Instant::now();
    submit(&lane.work())?;
    lane.mark(event)?;
    let submitted = start.elapsed();
    while !event.has_happened()? {
        std::hint::spin_loop();
    }
    Ok((submitted.as_nanos() as u64, start.elapsed().as_nanos() as u64))
}

/// Nanoseconds of each round.
#[derive(Default)]
pub(crate) struct Samples {
    submitted: Vec<u64>,
    there: Vec<u64>,
}

impl Samples {
    pub(crate) fn add(&mut self, submitted: u64, there: u64) {
        self.submitted.push(submitted);
        self.there.push(there);
    }

    pub(crate) fn times(mut self) -> Times {
        self.submitted.sort_unstable();
        self.there.sort_unstable();
        let at = |sorted: &[u64], share: f64| sorted[(share * (sorted.len() - 1) as f64).round() as usize] as f64 / 1e3;
        let there = |share| at(&self.there, share);
        Times { p10: there(0.1), p50: there(0.5), p90: there(0.9), submitted_p50: at(&self.submitted, 0.5) }
    }
}

fn print(row: &Row) {
    let (frames, bytes) = (row.frames, row.frame_bytes);
    for Pair { beside, beside_us, gather_us, ratio } in &row.pairs {
        for (way, times, ratio) in [(*beside, beside_us, 1.0), (Way::Gather, gather_us, *ratio)] {
            let Times { p10, p50, p90, submitted_p50 } = times;
            let name = way.name();
            println!(
                "{frames:>7} {bytes:>8}  {name:<15} {p10:>7.1} {p50:>7.1} {p90:>7.1} {submitted_p50:>9.1}  {ratio:.2}"
            );
        }
    }
}
