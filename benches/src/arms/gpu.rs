//! Models on a GPU without splitrpc's server: the model alone, and the device side of the bundled way.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use host_agent::config;
use host_agent::gpu::{LazyGpu, Program, Rows};
use host_agent::model::load_model;
use host_agent::model::spec::{ModelSpec, TensorSpec};
use host_agent::runtime::null_gpu::null_gpu;
use host_agent::runtime::{Execution, Factory};
use splitrpc_arena::{Arena, PoolLayout, Run};
use splitrpc_cuda::{Context, Driver, Event, MemoryOptions, PinnedBuffer};
use splitrpc_gpu::{GpuArena, GpuError, Lane, Operand, Recording};
use splitrpc_wire::path::{Link, Memory, Mover};
use splitrpc_wire::{Path, Stage};

use super::ClientOptions;
use crate::load::connection::{Connection, Fault, Step};
use crate::workloads::{Exchange, MAX_TENSORS, Workload, torch};

/// The pools of requests and of answers, in each of which there is one slot.
const INPUT: Run = Run { pool: 0, rows: 1, first: 0, generation: 0 };
const OUTPUT: Run = Run { pool: 1, rows: 1, first: 0, generation: 0 };
/// One request in so many is timed by the device's clock, and the others are taken to be shared out alike, as in splitrpc's server; more
/// of the first ones are, since those are slower.
const TIMED_EVERY: u32 = 128;

/// A model on the first GPU, which takes one request at a time.
pub(crate) struct Device {
    lane: Lane,
    spec: ModelSpec,
    program: Arc<dyn Program>,
    inputs: Vec<Place>,
    outputs: Vec<Place>,
    /// What is launched, where the model wants it recorded.
    recording: Option<Recording>,
    begun: Event,
    filled: Event,
    computed: Event,
    /// Requests so far.
    count: Cell<u32>,
    /// Shares of the time of a request that go into copies in and into computing.
    shares: Cell<(f64, f64)>,
}

/// Where a tensor is.
#[derive(Clone, Copy)]
struct Place {
    operand: Operand,
    bytes: usize,
}

/// Nanoseconds of a request on a device. What is neither copying in nor computing counts as copying out, the wait for the end
/// included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) copy_in: u64,
    pub(super) compute: u64,
    pub(super) copy_out: u64,
}

/// A workload's model as splitrpc's server loads it.
pub(super) fn load(workload: Workload, gpu: &LazyGpu, response_bytes: u32) -> anyhow::Result<Arc<dyn Factory>> {
    match workload.repository()? {
        Some(repository) => Ok(load_model(&repository.path().join(workload.name()), gpu)?),
        None => {
            let gpu = gpu.get().map_err(anyhow::Error::msg)?;
            Ok(Arc::new(null_gpu(&gpu.context, response_bytes)))
        }
    }
}

impl Device {
    /// The model, with room for requests of this size where it takes any.
    pub(crate) fn open(workload: Workload, request_bytes: u32, response_bytes: u32) -> anyhow::Result<Device> {
        let gpu = LazyGpu::new(config::Gpu { torch: torch(), ..config::Gpu::default() });
        let factory = load(workload, &gpu, response_bytes)?;
        let Execution::Gpu(program) = factory.execution() else {
            anyhow::bail!("{} is not computed on a GPU", workload.name());
        };
        let spec = factory.spec().clone();
        let context = &gpu.get().map_err(anyhow::Error::msg)?.context;
        let bytes = |tensors: &[TensorSpec]| -> Vec<u32> {
            tensors.iter().map(|tensor| spec.row_bytes(tensor).unwrap_or(request_bytes)).collect()
        };
        let (inputs, outputs) = (bytes(&spec.inputs), bytes(&spec.outputs));
        ensure!(inputs.len().max(outputs.len()) <= MAX_TENSORS, "{} has too many tensors", workload.name());
        let pools = [(INPUT.pool, PoolLayout::new(&inputs, 1, 1)?), (OUTPUT.pool, PoolLayout::new(&outputs, 1, 1)?)];
        let host = Arena::new("local", &pools, 0)?;
        let arena = GpuArena::new(context, &host, &[INPUT.pool, OUTPUT.pool], &[], MemoryOptions::default())?;
        let places = |run: Run, bytes: &[u32]| -> anyhow::Result<Vec<Place>> {
            let place = |(tensor, &bytes): (usize, &u32)| {
                let tensor = tensor as u16;
                let range = arena.device(run, tensor, 0, bytes).context("there is no such slot")?;
                let aligned = range.address().is_multiple_of(program.alignment().into());
                ensure!(aligned, "the model asks for more alignment than a slot has");
                Ok(Place { operand: Operand::Slots { run, tensor, bytes }, bytes: bytes as usize })
            };
            bytes.iter().enumerate().map(place).collect()
        };
        let (inputs, outputs) = (places(INPUT, &inputs)?, places(OUTPUT, &outputs)?);
        let resources = program.resources()?;
        let priority = context.stream_priorities()?.least;
        let lane = Lane::new(&arena, priority, resources.buffers, resources.kernels)?;
        let mut lane = lane.with_packages(resources.packages);
        program.prepare(&lane.work(), &mut std::iter::once(OUTPUT))?;
        let (takes, gives) = (operands(&inputs), operands(&outputs));
        let rows = Rows { count: 1, inputs: &takes[..inputs.len()], outputs: &gives[..outputs.len()] };
        if program.launches() {
            // What is launched for the first time may have to be loaded, which cannot be recorded. It is to find zeroes, not what
            // was left in the device's memory.
            for (tensor, place) in inputs.iter().enumerate() {
                lane.work().copy_in(INPUT, tensor as u16, 0, place.bytes as u32)?;
            }
            program.submit(&lane.work(), &rows)?;
        }
        lane.finish()?;
        let recorded = program.is_recorded() && program.launches();
        let recording = if recorded { lane.record(|work| program.submit(work, &rows))? } else { None };
        let mark = || Event::timed(context);
        let (begun, filled, computed) = (mark()?, mark()?, mark()?);
        let (count, shares) = (Cell::new(0), Cell::new((0.0, 0.0)));
        Ok(Device { lane, spec, program, inputs, outputs, recording, begun, filled, computed, count, shares })
    }

    /// What the model takes and gives.
    pub(super) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Pinned memory for those who keep requests and answers there.
    pub(super) fn pinned(&self, len: usize) -> anyhow::Result<PinnedBuffer> {
        Ok(PinnedBuffer::new(self.lane.arena().context(), len.max(1))?)
    }

    /// Computes, and waits for the answer. Request and answer have their tensors back to back; a model that takes requests of any
    /// size has one.
    pub(super) fn infer(&self, request: &[u8], answer: &mut [u8]) -> io::Result<Times> {
        let count = self.count.get();
        let timed = count.is_power_of_two() || count.is_multiple_of(TIMED_EVERY);
        self.count.set(count.wrapping_add(1));
        let begun = Instant::now();
        self.exchange(request, answer, timed).map_err(io::Error::other)?;
        let whole = begun.elapsed().as_nanos() as f64;
        if timed {
            let nanos =
                |to: &Event, from: &Event| to.elapsed_since(from).ok().flatten().map_or(0.0, |t| t.as_nanos() as f64);
            let (copies, compute) = (nanos(&self.filled, &self.begun), nanos(&self.computed, &self.filled));
            self.shares.set((copies / whole, compute / whole));
        }
        let (copies, compute) = self.shares.get();
        let (copy_in, compute) = ((copies * whole) as u64, (compute * whole) as u64);
        Ok(Times { copy_in, compute, copy_out: (whole as u64).saturating_sub(copy_in + compute) })
    }

    fn exchange(&self, request: &[u8], answer: &mut [u8], timed: bool) -> Result<(), GpuError> {
        let mark = |event: &Event| if timed { self.lane.mark(event) } else { Ok(()) };
        let mut inputs = [(INPUT, 0, &[][..]); MAX_TENSORS];
        let mut rest = request;
        for (tensor, (input, place)) in inputs.iter_mut().zip(&self.inputs).enumerate() {
            let (own, others) = rest.split_at(place.bytes.min(rest.len()));
            (*input, rest) = ((INPUT, tensor as u16, own), others);
        }
        let mut outputs: [(Run, u16, &mut [u8]); MAX_TENSORS] = std::array::from_fn(|_| (OUTPUT, 0, &mut [][..]));
        let mut rest = answer;
        for (tensor, (output, place)) in outputs.iter_mut().zip(&self.outputs).enumerate() {
            let (own, others) = rest.split_at_mut(place.bytes.min(rest.len()));
            (*output, rest) = ((OUTPUT, tensor as u16, own), others);
        }
        mark(&self.begun)?;
        let compute = |work: &splitrpc_gpu::Work<'_>| {
            mark(&self.filled)?;
            match self.recording {
                Some(recording) => self.lane.replay(recording)?,
                None => {
                    let (takes, gives) = (operands(&self.inputs), operands(&self.outputs));
                    let rows =
                        Rows { count: 1, inputs: &takes[..self.inputs.len()], outputs: &gives[..self.outputs.len()] };
                    self.program.submit(work, &rows)?;
                }
            }
            mark(&self.computed)
        };
        self.lane.exchange(&inputs[..self.inputs.len()], compute, &mut outputs[..self.outputs.len()])
    }

    /// Copies a request to the device and waits for that. Returns nanoseconds of the copy by the device's clock.
    fn fill(&self, request: &[u8]) -> io::Result<u64> {
        let filled = || {
            self.lane.mark(&self.begun)?;
            self.lane.exchange(&[(INPUT, 0, request)], |_| self.lane.mark(&self.filled), &mut [])?;
            Ok::<_, GpuError>(self.filled.elapsed_since(&self.begun)?)
        };
        Ok(filled().map_err(io::Error::other)?.map_or(0, |time| time.as_nanos() as u64))
    }
}

fn operands(places: &[Place]) -> [Operand; MAX_TENSORS] {
    let mut operands = [Operand::Word(0); MAX_TENSORS];
    operands.iter_mut().zip(places).for_each(|(operand, place)| *operand = place.operand);
    operands
}

/// The first GPU's memory, looked at from one process.
pub(super) struct DeviceMemory {
    context: Context,
    free: u64,
}

impl DeviceMemory {
    /// What is free now.
    pub(super) fn look() -> anyhow::Result<DeviceMemory> {
        let driver = Driver::load()?;
        let context = driver.context(driver.devices().first().context("there is no GPU")?)?;
        let (free, _) = context.memory_bytes()?;
        Ok(DeviceMemory { context, free })
    }

    /// How much less is free than before.
    pub(super) fn taken(&self) -> Option<u64> {
        Some(self.free.saturating_sub(self.context.memory_bytes().ok()?.0))
    }
}

/// A model in the client's own process, or no more than the copy of a request.
pub(crate) struct Local {
    device: Rc<Device>,
    computes: bool,
    exchange: Arc<Exchange>,
    request: PinnedBuffer,
    answer: PinnedBuffer,
    path: Path,
    /// Something that can be waited for, and is always ready.
    file: File,
}

impl Local {
    /// A user of the device that was opened for this.
    pub(crate) fn new(options: &ClientOptions, computes: bool) -> anyhow::Result<Local> {
        let device = Rc::clone(options.device.as_ref().context("no device was opened")?);
        let exchange = Arc::clone(&options.exchange);
        let mut request = device.pinned(exchange.request.len())?;
        request.copy_from_slice(&exchange.request);
        let path = Path {
            mover: Mover::GpuCopy,
            memory: Memory::Cuda,
            link: Link::InProcess,
            batch_rows: 1,
            payload_bytes: request.len() as u32,
            ..Path::default()
        };
        let answer = device.pinned(exchange.expected.len())?;
        Ok(Local { device, computes, exchange, request, answer, path, file: File::open("/dev/zero")? })
    }
}

impl Connection for Local {
    fn begin(&mut self) -> io::Result<()> {
        let Local { device, computes, request, answer, path, .. } = self;
        if !*computes {
            path.set_stage(Stage::CopyIn, device.fill(request)?);
            return Ok(());
        }
        let times = device.infer(request, answer)?;
        path.set_stage(Stage::CopyIn, times.copy_in);
        path.set_stage(Stage::Compute, times.compute);
        path.set_stage(Stage::CopyOut, times.copy_out);
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        Ok(Step::Done)
    }

    fn check(&self) -> Result<(), Fault> {
        let right = !self.computes || self.exchange.is_right(&self.answer);
        if right { Ok(()) } else { Err(Fault::WrongBytes) }
    }

    fn path(&self) -> Option<Path> {
        Some(self.path)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::arms::RESPONSE_BYTES;

    /// Whether there is a GPU; else a line says why not.
    pub(crate) fn has_gpu() -> bool {
        let Err(why) = LazyGpu::default().get().map(drop) else { return true };
        assert!(std::env::var_os("SPLITRPC_TESTS_REQUIRE_GPU").is_none(), "{why}");
        // Not kept by the test harness.
        let _ = writeln!(io::stderr(), "skipped: {why}");
        false
    }

    #[test]
    fn gpu_each_model_gives_the_right_answer_again_and_again() {
        if !has_gpu() {
            return;
        }
        for workload in Workload::MODELS.into_iter().chain([Workload::NullGpu]) {
            let exchange = workload.exchange(602_112, RESPONSE_BYTES);
            let (request, expected) = (exchange.request.len() as u32, exchange.expected.len() as u32);
            let device = Device::open(workload, request, expected).unwrap();
            assert_eq!(device.recording.is_some(), workload.model().is_some(), "{}", workload.name());
            let mut pinned = device.pinned(exchange.expected.len()).unwrap();
            for _ in 0..3 {
                pinned.fill(0xa5);
                let times = device.infer(&exchange.request, &mut pinned).unwrap();
                assert!(exchange.is_right(&pinned), "{}", workload.name());
                assert!(times.copy_in > 0 && times.copy_out > 0, "{}: {times:?}", workload.name());
            }
            // Another request has another answer, where there is anything to compute.
            let other: Vec<u8> = exchange.request.iter().map(|byte| byte ^ 1).collect();
            device.infer(&other, &mut pinned).unwrap();
            assert_eq!(exchange.is_right(&pinned), workload == Workload::NullGpu, "{}", workload.name());
        }
    }
}
