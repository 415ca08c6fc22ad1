//! Another process writes a request into the GPU's memory, and the model reads it there.

use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_agent::gpu::{Board, Tenant};
use host_agent::orchestrator::{Orchestrator, Parts, Storage};
use host_agent::runtime::Execution;
use host_agent::serve::build;
use splitrpc_arena::{Arena, Run};
use splitrpc_cuda::{DeviceMemory, Driver, Stream};
use splitrpc_engine::{SEC, Time};
use splitrpc_ring::{Completion, NicLink, RequestKey, Submission, in_process};
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{DType, Manifest, ManifestWriter, Shape, Status, TensorDesc};

use crate::common::{Repository, config, has_gpu, sum};

const N: u32 = 50_000;
/// Where the second process is to write what: the length of the memory, then seed and places of both tensors, for each request.
const PART: &str = "SPLITRPC_TEST_WRITER";
const SLOTS: [u32; 2] = [2, 0];

#[test]
fn what_another_process_wrote_on_the_device_is_read_there() {
    if let Ok(part) = std::env::var(PART) {
        return write(&part);
    }
    if !has_gpu() {
        return;
    }
    let repository = Repository::new().with_add("add", N, 4, "graph", "");
    let mut config = config(Some(&repository), &[]);
    config.gpu.shared = true;
    let built = build(config).unwrap();
    let (gpu, served) = (built.gpu.as_ref().unwrap(), &built.models[0]);
    let arena = Arena::new("present", &built.plan.all(), 0).unwrap();
    let Execution::Gpu(program) = served.factory.execution() else { panic!("not on the GPU") };
    let pools = &built.plan.models[0];
    let tenant = Tenant { spec: served.factory.spec(), pools, program };
    let board = Board::new(gpu, &arena, &[Some(tenant)], 8, 1).unwrap();
    let (pool, layout) = built.plan.inputs[0];
    let (descriptor, len) = board.export(pool).unwrap();
    let (mut nic, host) = in_process(16);
    let parts = Parts {
        shard: 0,
        arena: arena.clone(),
        plan: &built.plan,
        models: &built.models,
        requests: 8,
        telemetry: Arc::clone(&built.telemetry[0]),
        waker: Arc::new(|| ()),
        device: Some(Box::new(board)),
        launch_limit: 10 * SEC,
    };
    let mut storage = Storage::new(&built.plan);
    let mut orchestrator = Orchestrator::new(host, parts, &mut storage).unwrap();

    let slot = |first| Run { pool, rows: 1, first, generation: 0 };
    let mut part = len.to_string();
    for (seed, first) in SLOTS.into_iter().enumerate() {
        // On the host there is something else.
        (0..2).for_each(|tensor| arena.span(slot(first), tensor, 0, 4 * N).unwrap().fill(0xaa));
        arena.meta(slot(first)).unwrap().copy_from(&manifest());
        let place = |tensor| layout.rows(tensor).unwrap().place(first, 1, 0, 4 * N).unwrap();
        part += &format!(" {seed} {} {}", place(0), place(1));
    }
    // It finds the descriptor in the place of its standard input.
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["present::what_another_process_wrote_on_the_device_is_read_there", "--exact", "--nocapture"])
        .env(PART, part)
        .stdin(Stdio::from(descriptor))
        .status()
        .unwrap();
    assert!(status.success(), "the second process failed: {status}");

    let mut answered = |index: u32, first: u32, on_device: bool| -> Completion {
        let request = RequestKey { index, generation: 1 };
        let (priority, deadline_ns, epoch) = (0, 0, 0);
        let input = slot(first);
        let payload_bytes = 8 * N;
        nic.submit(&Submission::Submit {
            request,
            input,
            model: 0,
            priority,
            deadline_ns,
            payload_bytes,
            epoch,
            on_device,
        })
        .unwrap();
        let begun = Instant::now();
        loop {
            orchestrator.poll(Time::from_nanos(begun.elapsed().as_nanos() as u64));
            match nic.completion() {
                Some(completion) => return completion,
                None => assert!(begun.elapsed() < Duration::from_secs(20), "no answer"),
            }
        }
    };
    for (seed, first) in SLOTS.into_iter().enumerate() {
        let Completion { status, output, .. } = answered(seed as u32, first, true);
        assert_eq!(status, Status::Ok);
        let mut bytes = vec![0; 4 * N as usize];
        arena.span(output, 0, 0, 4 * N).unwrap().copy_to(&mut bytes);
        assert!(bytes == sum(seed as u32, N)[2], "slot {first}");
        let mut meta = vec![0; arena.meta(output).unwrap().len() as usize];
        arena.meta(output).unwrap().copy_to(&mut meta);
        let len = Manifest::peek_len(&meta).unwrap();
        let path = *Manifest::parse(&meta[..len]).unwrap().path().unwrap();
        assert_eq!((path.memory, path.mover), (Memory::Cuda, Mover::Unknown));
    }
    // Without the word for it the host's bytes are what counts.
    let Completion { status, output, .. } = answered(2, SLOTS[0], false);
    assert_eq!(status, Status::Ok);
    let mut bytes = vec![0; 4 * N as usize];
    arena.span(output, 0, 0, 4 * N).unwrap().copy_to(&mut bytes);
    let twice = f32::from_le_bytes([0xaa; 4]) * 2.0;
    assert!(bytes.chunks_exact(4).all(|four| four == twice.to_le_bytes()));
}

fn manifest() -> Vec<u8> {
    let mut writer = ManifestWriter::new();
    for handle in 0..2 {
        writer.push(&TensorDesc::fixed(handle, DType::Fp32, Shape::new(&[1, N]).unwrap()).unwrap()).unwrap();
    }
    writer.finish().to_vec()
}

/// The second process.
fn write(part: &str) {
    let numbers: Vec<u64> = part.split(' ').map(|number| number.parse().unwrap()).collect();
    let driver = Driver::load().unwrap();
    let context = driver.context(&driver.devices()[0]).unwrap();
    let memory = DeviceMemory::import(&context, io::stdin().as_fd(), numbers[0] as usize).unwrap();
    let stream = Stream::new(&context).unwrap();
    for request in numbers[1..].chunks(3) {
        let [a, b, _] = sum(request[0] as u32, N);
        for (place, bytes) in [(request[1], a), (request[2], b)] {
            // Waits for its stream, so that the bytes are there before anybody hears of them.
            stream.upload(memory.range(place as usize, bytes.len()).unwrap(), &bytes).unwrap();
        }
    }
}
