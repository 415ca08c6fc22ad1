use std::ptr::NonNull;

use splitrpc_arena::Arena;
use splitrpc_cuda::{CopyBatch, Error, HostRegistration, RangeError};

use crate::common::{bytes_of, gpu, pattern, skip};

const LEN: usize = 602_112;

#[test]
fn bytes_come_back_from_the_device_as_they_went() {
    let Some(gpu) = gpu() else { return };
    let (stream, memory) = (gpu.stream(), gpu.memory(2 * LEN));
    let sent = pattern(1, LEN);
    stream.upload(memory.range(0, LEN).unwrap(), &sent).unwrap();
    let (from, to) = (memory.range(0, LEN).unwrap(), memory.range(LEN, LEN).unwrap());
    // SAFETY: the memory outlives the download below, which waits.
    unsafe { stream.copy_on_device(to, from) }.unwrap();
    assert!(bytes_of(&stream, to) == sent, "what came back is not what was sent");
    // SAFETY: as above.
    unsafe { stream.fill(to.slice(1, LEN - 2).unwrap(), 7) }.unwrap();
    let mut expected = vec![7; LEN];
    (expected[0], expected[LEN - 1]) = (sent[0], sent[LEN - 1]);
    assert!(bytes_of(&stream, to) == expected, "a fill writes its range and nothing beside it");
}

#[test]
fn ranges_that_do_not_fit_reach_no_driver() {
    let Some(gpu) = gpu() else { return };
    let (stream, memory) = (gpu.stream(), gpu.memory(LEN));
    let size = memory.len();
    assert_eq!(memory.range(1, size).unwrap_err(), RangeError::Outside { offset: 1, len: size, size });
    assert!(memory.range(size, 0).unwrap().is_empty());
    assert!(memory.word(2).is_err());
    assert!(memory.word(size).is_err());
    let error = stream.upload(memory.range(0, 8).unwrap(), &[0; 9]).unwrap_err();
    assert_eq!(error, Error::Range(RangeError::Lengths { from: 9, to: 8 }));
}

#[test]
fn a_batch_copies_what_single_copies_do() {
    let Some(gpu) = gpu() else { return };
    if !gpu.context.device().host_register {
        return skip("no registered host memory: this device cannot");
    }
    const PART: usize = 128;
    const PARTS: usize = 16;
    const ALL: usize = PART * PARTS;
    let (stream, memory) = (gpu.stream(), gpu.memory(2 * ALL));
    // What is sent, and behind it what is received.
    let arena = Arena::new("cuda-test", &[], 0).unwrap();
    let whole = arena.whole();
    let sent = pattern(2, ALL);
    whole.copy_from(&sent);
    // SAFETY: the arena, which never gives out references to its bytes, outlives the registration.
    let registration =
        unsafe { HostRegistration::new(&gpu.context, NonNull::new(whole.as_mut_ptr()).unwrap(), whole.len()) }.unwrap();
    let (from, to) = (registration.range(0, ALL).unwrap(), registration.range(ALL, ALL).unwrap());
    // Each part to where the part counted from the end was.
    let mut batch = CopyBatch::with_capacity(PARTS);
    for part in 0..PARTS {
        let place = memory.range((PARTS - 1 - part) * PART, PART).unwrap();
        batch.to_device(place, from.slice(part * PART, PART).unwrap()).unwrap();
    }
    // SAFETY: the memories outlive the synchronisation below.
    let copied = unsafe { stream.copy_batch(&mut batch) };
    if !gpu.driver.batched_copies() {
        assert!(matches!(copied, Err(Error::Unsupported { .. })), "{copied:?}");
        return skip("no batched copies: the driver is older than CUDA 12.8");
    }
    copied.unwrap();
    batch.clear();
    for part in 0..PARTS {
        let (near, far) =
            (memory.range(part * PART, PART).unwrap(), memory.range((PARTS + part) * PART, PART).unwrap());
        batch.on_device(far, near).unwrap();
    }
    // SAFETY: as above.
    unsafe { stream.copy_batch(&mut batch) }.unwrap();
    batch.clear();
    for part in 0..PARTS {
        let place = memory.range((PARTS + PARTS - 1 - part) * PART, PART).unwrap();
        batch.to_host(to.slice(part * PART, PART).unwrap(), place).unwrap();
    }
    // SAFETY: as above.
    unsafe { stream.copy_batch(&mut batch) }.unwrap();
    stream.synchronize().unwrap();
    let mut received = vec![0; ALL];
    whole.slice(ALL, ALL).unwrap().copy_to(&mut received);
    assert!(received == sent, "what came back is not what was sent");
    batch.clear();
    // SAFETY: there is nothing in it.
    unsafe { stream.copy_batch(&mut batch) }.unwrap();
}
