//! An engine's stand-in, and models to serve.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use splitrpc_arena::{Arena, PoolLayout, Run, SlotAllocator, SlotEntry};
use splitrpc_engine::Time;
use splitrpc_ring::{Completion, InProcessHost, InProcessNic, NicLink, RequestKey, Submission, in_process};
use splitrpc_telemetry::Shard;
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{DType, Manifest, ManifestWriter, Shape, Status, StatusPayload, TensorDesc};

use super::device::{Control, TestDevice};
use crate::config::Limits;
use crate::model::spec::{BatchingSpec, ModelSpec, TensorSpec};
use crate::orchestrator::{Computing, Orchestrator, Parts, Served, Storage};
use crate::plan::Plan;
use crate::runtime::device::Device;
use crate::runtime::{Batch, Execution, Factory, Launch, Runtime, RuntimeError};
use crate::worker::{Instance, Workers};

/// First input byte that makes the model fail.
pub(super) const FAIL: u8 = 255;
/// First input byte that makes the model panic.
pub(super) const PANIC: u8 = 254;
/// Bytes of a row of the fixed model.
pub(super) const ROW: u32 = 4;

/// How a test model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Each byte plus one, in its output slots.
    InPlace,
    /// With its own input.
    Input,
    /// Each byte plus one, in its own memory.
    Owned,
    /// Not at all.
    Nothing,
    /// With more bytes than its slots hold.
    TooLarge,
}

/// First input bytes of each launch's requests.
pub(super) type Launches = Arc<Mutex<Vec<Vec<u8>>>>;

pub(super) struct TestModel {
    pub(super) spec: ModelSpec,
    pub(super) answer: Answer,
    pub(super) launches: Launches,
    /// Further instances cannot be made.
    pub(super) barren: Arc<AtomicBool>,
}

impl TestModel {
    /// Takes and gives `[n, 4]` bytes where it batches, `[4]` where not.
    pub(super) fn fixed(max_batch: u16, delay_us: Option<u64>) -> TestModel {
        let dims = if max_batch > 0 { vec![None, Some(ROW)] } else { vec![Some(ROW)] };
        TestModel::new(max_batch, &dims, delay_us, Answer::InPlace)
    }

    /// Takes and gives rows of any length.
    pub(super) fn variable(max_batch: u16, answer: Answer) -> TestModel {
        let dims = if max_batch > 0 { vec![None, None] } else { vec![None] };
        TestModel::new(max_batch, &dims, (max_batch > 0).then_some(0), answer)
    }

    fn new(max_batch: u16, dims: &[Option<u32>], delay_us: Option<u64>, answer: Answer) -> TestModel {
        let tensor = |name: &str| TensorSpec { name: name.into(), dtype: DType::Uint8, dims: dims.to_vec() };
        let spec = ModelSpec {
            name: "test".into(),
            version: 1,
            max_batch,
            inputs: vec![tensor("IN")],
            outputs: vec![tensor("OUT")],
            batching: delay_us.map(|max_queue_delay_us| BatchingSpec {
                max_queue_delay_us,
                preferred: Vec::new(),
                max_queue: 0,
            }),
            priority_levels: 3,
            default_priority: 2,
            instances: 1,
            warmup_launches: 0,
        };
        TestModel { spec, answer, launches: Launches::default(), barren: Arc::default() }
    }
}

impl Factory for TestModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn execution(&self) -> Execution {
        Execution::Inline
    }

    fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError> {
        if self.barren.load(Ordering::SeqCst) {
            return Err(RuntimeError("no more instances".into()));
        }
        Ok(Box::new(TestRuntime { answer: self.answer, launches: Arc::clone(&self.launches) }))
    }
}

struct TestRuntime {
    answer: Answer,
    launches: Launches,
}

impl Runtime for TestRuntime {
    fn execute(&mut self, arena: &Arena, batch: &Batch, launch: &mut Launch) -> Result<(), RuntimeError> {
        let mut firsts = Vec::new();
        for item in batch.items() {
            let desc = TensorDesc { handle: 0, ..batch.tensors(item)[0] };
            let mut bytes = vec![0; desc.bytes as usize];
            arena.span(item.input, 0, 0, desc.bytes).unwrap().copy_to(&mut bytes);
            firsts.push(bytes[0]);
            match bytes[0] {
                FAIL => return Err(RuntimeError("asked to fail".into())),
                PANIC => panic!("asked to panic"),
                _ => {}
            }
            let sum: Vec<u8> = bytes.iter().map(|b| b.wrapping_add(1)).collect();
            match self.answer {
                Answer::InPlace => {
                    arena.span(item.output.unwrap(), 0, 0, desc.bytes).unwrap().copy_from(&sum);
                    launch.push_in_place([desc]);
                }
                Answer::Input => launch.push_input([desc]),
                Answer::Owned => launch.push_owned(vec![(desc, sum)]),
                Answer::Nothing => {}
                Answer::TooLarge => {
                    let shape = Shape::new(&[1 << 20]).unwrap();
                    launch.push_in_place([TensorDesc::fixed(0, DType::Uint8, shape).unwrap()]);
                }
            }
        }
        launch.copied_bytes = 10 * u64::from(batch.rows());
        self.launches.lock().unwrap().push(firsts);
        Ok(())
    }
}

/// What an engine would have been told of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) status: Status,
    pub(super) text: String,
    pub(super) output: Run,
    pub(super) bytes: Vec<u8>,
    pub(super) batch_rows: u16,
    pub(super) runtime_copied: u32,
    pub(super) moved: (Mover, Memory),
    pub(super) compactions: u8,
}

/// An engine's stand-in, with an orchestrator at the other end of its link.
pub(super) struct Rig {
    pub(super) nic: InProcessNic,
    pub(super) host: Orchestrator<'static, InProcessHost>,
    pub(super) arena: Arena,
    pub(super) telemetry: Arc<Shard>,
    pub(super) now: Time,
    inputs: SlotAllocator<'static>,
    models: Vec<Served>,
    plan: Plan,
    live: HashMap<RequestKey, Run>,
    next: u32,
}

/// How long a launch on a device may take, in nanoseconds.
pub(super) const LAUNCH_LIMIT: u64 = 50_000_000;
/// Requests that a rig's orchestrator may have at once.
pub(super) const REQUESTS: u32 = 64;

impl Rig {
    pub(super) fn new(model: TestModel) -> Rig {
        Rig::with(vec![model], 0, 64)
    }

    /// With this many worker threads for each model (0: inline), and room for `ring` completions on the link.
    pub(super) fn with(models: Vec<TestModel>, workers: usize, ring: usize) -> Rig {
        Rig::build(models, workers, None, ring)
    }

    /// With a model on a device of so many lanes.
    pub(super) fn on_device(model: TestModel, lanes: u16, ring: usize, control: Arc<Mutex<Control>>) -> Rig {
        Rig::build(vec![model], 0, Some((lanes, control)), ring)
    }

    fn build(models: Vec<TestModel>, workers: usize, device: Option<(u16, Arc<Mutex<Control>>)>, ring: usize) -> Rig {
        let serve = |model: TestModel| {
            let factory: Arc<dyn Factory> = Arc::new(model);
            let instances: Vec<_> = (0..workers).map(|_| Instance::new(&factory).unwrap()).collect();
            let computing = match workers {
                0 if device.is_some() => Computing::Device,
                0 => Computing::Inline,
                _ => Computing::Workers(Arc::new(Workers::start("test", instances, 1).unwrap())),
            };
            Served { factory, computing }
        };
        let models: Vec<Served> = models.into_iter().map(serve).collect();
        let limits = Limits { slots_per_model: 32, kept_replies: 0, max_request_bytes: 4096, ..Limits::default() };
        let plan = Plan::new(models.iter().map(|m| m.factory.spec()), &limits).unwrap();
        let arena = Arena::new("test", &plan.all(), 4).unwrap();
        let telemetry = Arc::new(Shard::new(models.len()));
        let (nic, host) = in_process(ring);
        let parts = Parts {
            shard: 0,
            arena: arena.clone(),
            plan: &plan,
            models: &models,
            requests: REQUESTS,
            telemetry: Arc::clone(&telemetry),
            waker: Arc::new(|| {}),
            device: device
                .map(|(lanes, control)| Box::new(TestDevice::new(arena.clone(), lanes, control)) as Box<dyn Device>),
            launch_limit: LAUNCH_LIMIT,
        };
        // A test may leak what a server holds for its whole life.
        let host = Orchestrator::new(host, parts, Box::leak(Box::new(Storage::new(&plan)))).unwrap();
        let pools: &'static [(u16, PoolLayout)] = Box::leak(plan.inputs.clone().into_boxed_slice());
        let entries = vec![SlotEntry::default(); SlotAllocator::storage_len(pools)];
        let inputs = SlotAllocator::new(pools, Box::leak(entries.into_boxed_slice())).unwrap();
        let (now, live) = (Time::from_nanos(1), HashMap::new());
        Rig { nic, host, arena, telemetry, now, inputs, models, plan, live, next: 0 }
    }

    /// The shape of a request with these rows, each of `row` bytes.
    fn shape(&self, model: u16, rows: u16, row: u32) -> Shape {
        let batched = self.models[usize::from(model)].factory.spec().max_batch > 0;
        if batched { Shape::new(&[u32::from(rows), row]).unwrap() } else { Shape::new(&[row]).unwrap() }
    }

    /// Puts a request into slots, all bytes `fill`, with its manifest beside it.
    pub(super) fn place(&mut self, model: u16, rows: u16, row: u32, fill: u8) -> Option<Run> {
        let desc = TensorDesc::fixed(0, DType::Uint8, self.shape(model, rows, row)).unwrap();
        let input = self.inputs.alloc(self.plan.models[usize::from(model)].inputs[0], rows)?;
        self.arena.span(input, 0, 0, desc.bytes).unwrap().fill(fill);
        let mut manifest = ManifestWriter::new();
        manifest.push(&desc).unwrap();
        self.arena.meta(input).unwrap().copy_from(manifest.finish());
        Some(input)
    }

    pub(super) fn key(&mut self) -> RequestKey {
        self.next += 1;
        // Indexes are used again, under another generation.
        let taken = |index: u32| self.live.keys().any(|k| k.index == index);
        let index = (0..REQUESTS).find(|i| !taken(*i)).expect("a free record");
        RequestKey { index, generation: self.next }
    }

    /// Submits a request of the first model.
    pub(super) fn submit(&mut self, rows: u16, fill: u8) -> RequestKey {
        self.submit_with(rows, ROW, fill, 0, 0).expect("a free slot")
    }

    pub(super) fn submit_with(
        &mut self,
        rows: u16,
        row: u32,
        fill: u8,
        priority: u8,
        deadline_ns: u64,
    ) -> Option<RequestKey> {
        let input = self.place(0, rows, row, fill)?;
        let request = self.key();
        self.send(request, input, 0, priority, deadline_ns);
        Some(request)
    }

    pub(super) fn send(&mut self, request: RequestKey, input: Run, model: u16, priority: u8, deadline_ns: u64) {
        let submission = Submission::Submit {
            request,
            input,
            model,
            priority,
            deadline_ns,
            payload_bytes: 0,
            epoch: 0,
            on_device: false,
        };
        self.live.insert(request, input);
        self.nic.submit(&submission).unwrap();
    }

    pub(super) fn cancel(&mut self, request: RequestKey) {
        self.nic.submit(&Submission::Cancel { request }).unwrap();
    }

    /// Gives a response's slots back; those of an answer that is its own input go to the engine's own allocator.
    pub(super) fn release(&mut self, output: Run) {
        if self.plan.inputs.iter().all(|(id, _)| *id != output.pool) {
            self.nic.submit(&Submission::Release { output }).unwrap();
        }
    }

    pub(super) fn poll(&mut self) {
        while self.host.poll(self.now) {}
    }

    pub(super) fn completion(&mut self) -> Option<Completion> {
        self.nic.completion()
    }

    /// Takes a completion as an engine does, and frees the request's input slots.
    pub(super) fn answer(&mut self) -> Option<(RequestKey, Answered)> {
        let completion = self.completion()?;
        let input = self.live.remove(&completion.request).expect("answered once, and only what was submitted");
        let mut meta = [0; 1024];
        let mut answered = Answered {
            status: completion.status,
            text: String::new(),
            output: completion.output,
            bytes: Vec::new(),
            batch_rows: 0,
            runtime_copied: 0,
            moved: (Mover::Unknown, Memory::Unknown),
            compactions: 0,
        };
        if completion.status == Status::Ok {
            let lease = self.arena.lease(completion.output).unwrap();
            lease.meta().copy_to(&mut meta);
            let manifest = Manifest::parse(&meta).unwrap();
            let tensor = manifest.tensors().next().unwrap();
            answered.bytes = vec![0; tensor.bytes as usize];
            lease.span(0, 0, tensor.bytes).unwrap().copy_to(&mut answered.bytes);
            let path = manifest.path().unwrap();
            (answered.batch_rows, answered.runtime_copied) = (path.batch_rows, path.runtime_copied_bytes);
            (answered.moved, answered.compactions) = ((path.mover, path.memory), path.device_compactions);
        } else if let Some(span) = self.arena.meta(input) {
            span.copy_to(&mut meta);
            if let Ok(payload) = StatusPayload::parse(&meta) {
                answered.text = payload.text.to_owned();
            }
        }
        self.inputs.free(input).ok();
        Some((completion.request, answered))
    }

    /// Polls until a request is answered, which takes a while where workers compute.
    pub(super) fn wait(&mut self) -> (RequestKey, Answered) {
        loop {
            self.poll();
            if let Some(answer) = self.answer() {
                return answer;
            }
            std::thread::yield_now();
        }
    }

    /// Output slots of the first model that are free.
    pub(super) fn outputs_free(&self) -> u64 {
        self.host.desk.outputs_free(self.plan.models[0].output.into_iter())
    }

    pub(super) fn output_slots(&self) -> u64 {
        self.plan.outputs.iter().map(|(_, layout)| u64::from(layout.slots())).sum()
    }

    pub(super) fn pass(&mut self, ns: u64) {
        self.now = self.now + ns;
    }
}
