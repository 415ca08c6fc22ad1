use std::ptr::NonNull;

use splitrpc_arena::Arena;
use splitrpc_cuda::{Arg, Error, HostRegistration, Launch, Module};

use crate::common::{bytes_of, floats, gpu, skip, to_bytes};
use crate::kernels::PTX;

const COUNT: u32 = 256;
const BYTES: usize = 4 * COUNT as usize;

#[test]
fn a_kernel_reads_and_writes_the_arenas_own_mapping() {
    let Some(gpu) = gpu() else { return };
    if !gpu.context.device().host_register {
        return skip("no registered host memory: this device cannot");
    }
    // A memfd, mapped shared: what the network's side writes, and other processes can map.
    let arena = Arena::new("cuda-test", &[], 0).unwrap();
    let whole = arena.whole();
    let base = NonNull::new(whole.as_mut_ptr()).unwrap();
    // SAFETY: the arena, which never gives out references to its bytes, outlives the registration.
    let registration = unsafe { HostRegistration::new(&gpu.context, base, whole.len()) }.unwrap();
    if gpu.context.device().registered_pointer_usable {
        assert_eq!(registration.address(), base.as_ptr().addr() as u64);
    }
    let a: Vec<f32> = (0..COUNT).map(|index| index as f32).collect();
    let b: Vec<f32> = (0..COUNT).map(|index| 0.5 * index as f32).collect();
    whole.slice(0, BYTES).unwrap().copy_from(&to_bytes(&a));
    whole.slice(BYTES, BYTES).unwrap().copy_from(&to_bytes(&b));

    let function = Module::from_ptx(&gpu.context, PTX).unwrap().function("vecadd").unwrap();
    let stream = gpu.stream();
    let address = registration.address();
    let [first, second, sum] = [0, 1, 2].map(|part| address + part * BYTES as u64);
    let arguments = [Arg::new(&first), Arg::new(&second), Arg::new(&sum), Arg::new(&COUNT)];
    // SAFETY: the arguments are those of the kernel, all three areas are inside the registration, and it outlives the
    // synchronisation.
    unsafe { stream.launch(&function, Launch::linear(COUNT, 128), &arguments) }.unwrap();
    stream.synchronize().unwrap();

    let mut bytes = vec![0; BYTES];
    whole.slice(2 * BYTES, BYTES).unwrap().copy_to(&mut bytes);
    let expected: Vec<f32> = (0..COUNT).map(|index| 1.5 * index as f32).collect();
    assert_eq!(floats(&bytes), expected);

    // And by a copy from the same memory.
    let memory = gpu.memory(BYTES);
    let range = memory.range(0, BYTES).unwrap();
    // SAFETY: the registration and the memory outlive the download below, which waits.
    unsafe { stream.copy_to_device(range, registration.range(2 * BYTES, BYTES).unwrap()) }.unwrap();
    assert_eq!(floats(&bytes_of(&stream, range)), expected);
}

#[test]
fn memory_is_registered_once_at_a_time() {
    let Some(gpu) = gpu() else { return };
    if !gpu.context.device().host_register {
        return skip("no registered host memory: this device cannot");
    }
    let arena = Arena::new("cuda-test", &[], 0).unwrap();
    let whole = arena.whole();
    let base = NonNull::new(whole.as_mut_ptr()).unwrap();
    // SAFETY: the arena outlives every registration in this test.
    let register = |len| unsafe { HostRegistration::new(&gpu.context, base, len) };
    assert!(matches!(register(0), Err(Error::Invalid { .. })));
    let registration = register(whole.len()).unwrap();
    assert!(registration.range(whole.len(), 1).is_err());
    let error = register(whole.len()).unwrap_err();
    assert!(error.to_string().contains("ALREADY_REGISTERED"), "{error}");
    drop(registration);
    register(whole.len()).unwrap();
}
