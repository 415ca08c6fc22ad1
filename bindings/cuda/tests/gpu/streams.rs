use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::Release};

use splitrpc_arena::Arena;
use splitrpc_cuda::{Error, Event, HostRegistration, Stream, WaitCondition};

use crate::common::{bytes_of, gpu, pattern, skip, until};

const LEN: usize = 4 << 20;

#[test]
fn streams_have_the_priorities_of_the_device() {
    let Some(gpu) = gpu() else { return };
    let range = gpu.context.stream_priorities().unwrap();
    println!("{range:?}");
    for priority in range.greatest..=range.least {
        assert_eq!(Stream::with_priority(&gpu.context, priority).unwrap().priority().unwrap(), priority);
    }
    assert_eq!(gpu.stream().priority().unwrap(), range.least);
    let error = Stream::with_priority(&gpu.context, range.greatest - 1).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[test]
fn an_event_orders_two_streams() {
    let Some(gpu) = gpu() else { return };
    let greatest = gpu.context.stream_priorities().unwrap().greatest;
    let (first, second) = (gpu.stream(), Stream::with_priority(&gpu.context, greatest).unwrap());
    let (from, to) = (gpu.memory(LEN), gpu.memory(LEN));
    let (from, to) = (from.range(0, LEN).unwrap(), to.range(0, LEN).unwrap());
    first.upload(from, &pattern(1, LEN)).unwrap();
    let event = Event::new(&gpu.context).unwrap();
    assert!(event.has_happened().unwrap(), "an event that was never recorded holds nothing up");
    // SAFETY: the memories outlive the download below, which waits for both streams.
    unsafe { first.fill(from, 9) }.unwrap();
    first.record(&event).unwrap();
    second.wait(&event).unwrap();
    // SAFETY: as above.
    unsafe { second.copy_on_device(to, from) }.unwrap();
    assert!(bytes_of(&second, to) == [9; LEN], "the copy did not wait for the fill");
    event.synchronize().unwrap();
    assert!(event.has_happened().unwrap() && first.is_done().unwrap());
}

#[test]
fn timed_events_measure_what_lies_between_them() {
    let Some(gpu) = gpu() else { return };
    let (stream, memory) = (gpu.stream(), gpu.memory(LEN));
    let (before, after) = (Event::timed(&gpu.context).unwrap(), Event::timed(&gpu.context).unwrap());
    stream.record(&before).unwrap();
    // SAFETY: the memory outlives the synchronisation below.
    unsafe { stream.fill(memory.range(0, LEN).unwrap(), 1) }.unwrap();
    stream.record(&after).unwrap();
    after.synchronize().unwrap();
    let elapsed = after.elapsed_since(&before).unwrap().expect("both have happened");
    println!("a fill of {LEN} bytes: {elapsed:?}");
    assert!(!elapsed.is_zero());
    let error = after.elapsed_since(&Event::new(&gpu.context).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[test]
fn a_wait_for_a_value_is_released_by_another_stream() {
    let Some(gpu) = gpu() else { return };
    let (waiting, writing, memory) = (gpu.stream(), gpu.stream(), gpu.memory(4096));
    let word = memory.word(64).unwrap();
    writing.upload(memory.range(0, 4096).unwrap(), &[0; 4096]).unwrap();
    let event = Event::new(&gpu.context).unwrap();
    // SAFETY: the memory outlives the end of the wait, below.
    match unsafe { waiting.wait_value32(word, 5, WaitCondition::AtLeast) } {
        Err(Error::Unsupported { needs, .. }) => return skip(&format!("no wait for a value: it takes {needs}")),
        result => result.unwrap(),
    }
    waiting.record(&event).unwrap();
    // SAFETY: as above.
    unsafe { writing.write_value32(word, 4) }.unwrap();
    writing.synchronize().unwrap();
    assert!(!event.has_happened().unwrap(), "4 is not as far as 5");
    // SAFETY: as above.
    unsafe { writing.write_value32(word, 5) }.unwrap();
    until("a wait for a value that was written", || event.has_happened().unwrap());
    assert_eq!(bytes_of(&writing, memory.range(64, 4).unwrap()), 5_u32.to_le_bytes());
}

#[test]
fn a_wait_for_a_value_is_released_by_the_cpu() {
    let Some(gpu) = gpu() else { return };
    if !gpu.context.device().host_register {
        return skip("no registered host memory: this device cannot");
    }
    let arena = Arena::new("cuda-test", &[], 0).unwrap();
    let whole = arena.whole();
    let base = NonNull::new(whole.as_mut_ptr()).unwrap();
    // SAFETY: the arena outlives the registration.
    let registration = unsafe { HostRegistration::new(&gpu.context, base, whole.len()) }.unwrap();
    // SAFETY: the word is inside the mapping and aligned, and is accessed as an atomic only.
    let word = unsafe { AtomicU32::from_ptr(base.as_ptr().wrapping_add(128).cast()) };
    let (stream, event) = (gpu.stream(), Event::new(&gpu.context).unwrap());
    // SAFETY: the registration outlives the end of the wait, below.
    match unsafe { stream.wait_value32(registration.word(128).unwrap(), 1, WaitCondition::Equal) } {
        Err(Error::Unsupported { needs, .. }) => return skip(&format!("no wait for a value: it takes {needs}")),
        result => result.unwrap(),
    }
    stream.record(&event).unwrap();
    assert!(!event.has_happened().unwrap(), "nobody has written the word");
    word.store(1, Release);
    until("a wait for a value that the CPU wrote", || event.has_happened().unwrap());
    if gpu.context.device().flush_in_stream {
        let word = registration.word(128).unwrap();
        // SAFETY: the value is there already.
        unsafe { stream.wait_value32_and_flush(word, 1, WaitCondition::AnySet) }.unwrap();
    }
    stream.synchronize().unwrap();
}
