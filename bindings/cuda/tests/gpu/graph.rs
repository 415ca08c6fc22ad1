use splitrpc_cuda::{Arg, DeviceMemory, Error, Function, Graph, Launch, Module, Stream, Update};

use crate::common::{bytes_of, floats, gpu, to_bytes};
use crate::kernels::PTX;

const COUNT: u32 = 1000;
const BYTES: usize = 4 * COUNT as usize;

/// Records `memory[to] = memory[0] + memory[1]`, counted in vectors.
fn record(stream: &mut Stream, function: &Function, memory: &DeviceMemory, to: usize) -> Result<Graph, Error> {
    stream.capture(|stream| {
        let [a, b, out] = [0, 1, to].map(|part| memory.address() + (part * BYTES) as u64);
        let arguments = [Arg::new(&a), Arg::new(&b), Arg::new(&out), Arg::new(&COUNT)];
        // SAFETY: the arguments are those of the kernel, and the areas are inside the memory, which outlives the
        // launches.
        unsafe { stream.launch(function, Launch::linear(COUNT, 256), &arguments) }
    })
}

#[test]
fn a_graph_is_replayed_and_updated() {
    let Some(gpu) = gpu() else { return };
    let (mut stream, memory) = (gpu.stream(), gpu.memory(4 * BYTES));
    let function = Module::from_ptx(&gpu.context, PTX).unwrap().function("vecadd").unwrap();
    let area = |part: usize| memory.range(part * BYTES, BYTES).unwrap();
    let ones = to_bytes(&[1.0; COUNT as usize]);
    stream.upload(memory.range(0, 4 * BYTES).unwrap(), &vec![0; 4 * BYTES]).unwrap();
    stream.upload(area(0), &ones).unwrap();

    let graph = record(&mut stream, &function, &memory, 2).unwrap();
    assert_eq!(graph.nodes().unwrap(), 1);
    assert_eq!(floats(&bytes_of(&stream, area(2))), [0.0; COUNT as usize], "recording carries nothing out");
    let mut executable = graph.instantiate().unwrap();
    drop(graph);
    for round in 0..3 {
        stream.upload(area(1), &to_bytes(&[round as f32; COUNT as usize])).unwrap();
        // SAFETY: memory and function are there until the download, which waits.
        unsafe { stream.launch_graph(&executable) }.unwrap();
        assert_eq!(floats(&bytes_of(&stream, area(2))), [1.0 + round as f32; COUNT as usize]);
    }

    let elsewhere = record(&mut stream, &function, &memory, 3).unwrap();
    assert_eq!(executable.update(&elsewhere).unwrap(), Update::Done);
    // SAFETY: as above.
    unsafe { stream.launch_graph(&executable) }.unwrap();
    assert_eq!(floats(&bytes_of(&stream, area(3))), [3.0; COUNT as usize]);

    let other = stream
        .capture(|stream| {
            // SAFETY: it is never launched.
            unsafe { stream.fill(area(0), 0) }?;
            // SAFETY: as above.
            unsafe { stream.fill(area(1), 0) }
        })
        .unwrap();
    assert_eq!(executable.update(&other).unwrap(), Update::Differs);
}

#[test]
fn a_recording_that_fails_leaves_the_stream_usable() {
    let Some(gpu) = gpu() else { return };
    let (mut stream, memory) = (gpu.stream(), gpu.memory(BYTES));
    let range = memory.range(0, BYTES).unwrap();
    // To wait for a stream that records is refused, and spoils the recording.
    let error = stream.capture(|stream| stream.upload(range, &[1; BYTES])).unwrap_err();
    println!("waiting while recording: {error}");
    assert!(!error.is_sticky() && !gpu.context.is_lost());
    stream.upload(range, &[2; BYTES]).unwrap();
    assert!(bytes_of(&stream, range) == [2; BYTES]);
    // Nor does a panic leave it recording.
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = stream.capture(|_| panic!("while recording, on purpose"));
    }));
    assert!(panicked.is_err());
    stream.upload(range, &[3; BYTES]).unwrap();
    assert!(bytes_of(&stream, range) == [3; BYTES]);
}

#[test]
fn a_module_tells_what_its_functions_take() {
    let Some(gpu) = gpu() else { return };
    let module = Module::from_ptx(&gpu.context, PTX).unwrap();
    let function = module.function("vecadd").unwrap();
    println!("{} threads, {} registers", function.threads_max().unwrap(), function.registers().unwrap());
    assert!(function.threads_max().unwrap() >= 256);
    assert!(function.registers().unwrap() > 0);
    assert_eq!(function.static_shared_bytes().unwrap(), 0);
    assert_eq!(function.local_bytes().unwrap(), 0);
    let more = gpu.context.device().shared_bytes_max_opt_in;
    function.set_dynamic_shared_bytes_max(more).unwrap();
    assert_eq!(function.dynamic_shared_bytes_max().unwrap(), more);
    let error = module.function("no_such").unwrap_err();
    assert!(error.to_string().contains("no_such"), "{error}");
    let wrong = ".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry f() { nonsense; }\n";
    let error = Module::from_ptx(&gpu.context, wrong).unwrap_err();
    println!("{error}");
    assert!(matches!(&error, Error::Driver(error) if error.log().is_some()), "the compiler's words are missing");
    assert!(matches!(Module::from_ptx(&gpu.context, "a\0b"), Err(Error::Invalid { .. })));
    // A block of more threads than there can be.
    let address = 0_u64;
    let arguments = [Arg::new(&address)];
    let poke = module.function("poke").unwrap();
    // SAFETY: the driver refuses it, so nothing is accessed.
    let error = unsafe { gpu.stream().launch(&poke, Launch::linear(4096, 4096), &arguments) }.unwrap_err();
    assert!(!error.is_sticky(), "{error}");
}
