use std::process::Stdio;

use splitrpc_cuda::{Arg, DeviceMemory, Launch, MemoryOptions, Module};

use crate::common::{gpu, in_another_process, part};
use crate::kernels::PTX;

/// What the second process prints when all was as it should be.
const WELL: &str = "the context is lost, and nothing panicked";

#[test]
fn a_kernel_that_faults_loses_the_context_and_nothing_else() {
    if part().is_some() {
        return second_process();
    }
    // Only asked whether there is one; the second process has it to itself.
    let Some(gpu) = gpu() else { return };
    let test = "fault::a_kernel_that_faults_loses_the_context_and_nothing_else";
    let (status, said) = in_another_process(test, "faults", Stdio::null());
    println!("{said}");
    assert!(status.success() && said.contains(WELL), "the second process failed ({status}):\n{said}");
    // This process's own context is as it was.
    gpu.memory(1);
    gpu.stream().synchronize().unwrap();
}

fn second_process() {
    let gpu = gpu().expect("the first process has a GPU");
    let (stream, memory) = (gpu.stream(), gpu.memory(4096));
    let function = Module::from_ptx(&gpu.context, PTX).unwrap().function("poke").unwrap();
    // Aligned, and mapped by nobody.
    let address = 64_u64;
    // SAFETY: none; this is the fault, in a process that does nothing else.
    unsafe { stream.launch(&function, Launch::linear(1, 1), &[Arg::new(&address)]) }.unwrap();
    let error = stream.synchronize().unwrap_err();
    println!("sticky: {error}");
    assert!(error.is_sticky() && gpu.context.is_lost());
    for error in [
        stream.upload(memory.range(0, 4).unwrap(), &[0; 4]).unwrap_err(),
        stream.synchronize().unwrap_err(),
        DeviceMemory::new(&gpu.context, 4096, MemoryOptions::default()).unwrap_err(),
    ] {
        println!("then: {error}");
        assert!(error.is_sticky());
    }
    // Nor do the drops panic.
    drop((function, memory, stream, gpu));
    println!("{WELL}");
}
