use std::sync::Arc;

use splitrpc_cuda::{DeviceMemory, Launch, MemoryOptions, Module, Stream};
use splitrpc_gpu::{GpuError, Kernel, Lane, Operand, Work};

use crate::common::{Gpu, LARGE, SLOTS, gpu, pattern, run};

/// `add(from, to, words, value)`: `to[i] = from[i] + value` for so many words.
const PTX: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry add(
    .param .u64 add_from,
    .param .u64 add_to,
    .param .u32 add_words,
    .param .u32 add_value
)
{
    .reg .pred %past;
    .reg .b32 %words, %value, %word, %block, %threads, %index;
    .reg .b64 %from, %to, %offset;

    ld.param.u64 %from, [add_from];
    ld.param.u64 %to, [add_to];
    ld.param.u32 %words, [add_words];
    ld.param.u32 %value, [add_value];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %index, %tid.x;
    mad.lo.u32 %index, %block, %threads, %index;
    setp.ge.u32 %past, %index, %words;
    @%past bra done;
    mul.wide.u32 %offset, %index, 4;
    add.s64 %from, %from, %offset;
    add.s64 %to, %to, %offset;
    ld.global.u32 %word, [%from];
    add.u32 %word, %word, %value;
    st.global.u32 [%to], %word;
done:
    ret;
}
";

const WORDS: u32 = LARGE / 4;

fn lane(gpu: &Gpu) -> Lane {
    let module = Module::from_ptx(&gpu.context, PTX).unwrap();
    let buffer = DeviceMemory::new(&gpu.context, LARGE as usize, MemoryOptions::default()).unwrap();
    let kernels = vec![Kernel::new(&module, "add").unwrap()];
    Lane::new(&gpu.arena, 0, vec![Arc::new(buffer)], kernels).unwrap()
}

/// What the kernel makes of bytes, word by word.
fn added(bytes: &[u8], value: u32) -> Vec<u8> {
    let word = |four: &[u8]| u32::from_le_bytes(four.try_into().unwrap()).wrapping_add(value).to_le_bytes();
    bytes.chunks_exact(4).flat_map(word).collect()
}

#[test]
fn a_kernel_reads_and_writes_slots_in_place() {
    let Some(gpu) = gpu() else { return };
    let lane = lane(&gpu);
    let (from, to) = (run(SLOTS, 0, 1), run(SLOTS, 5, 1));
    let tensor = pattern(5, LARGE);
    gpu.write(from, 0, 0, &tensor);
    let slots = |run| Operand::Slots { run, tensor: 0, bytes: LARGE };
    let buffer = Operand::Buffer { buffer: 0, at: 0, bytes: u64::from(LARGE) };
    let work = lane.work();
    work.copy_in(from, 0, 0, LARGE).unwrap();
    let launch = Launch::linear(WORDS, 256);
    work.run(0, launch, &[slots(from), buffer, Operand::Word(WORDS), Operand::Word(1)]).unwrap();
    work.run(0, launch, &[buffer, slots(to), Operand::Word(WORDS), Operand::Word(2)]).unwrap();
    work.copy_out(to, 0, 0, LARGE).unwrap();
    lane.finish().unwrap();
    assert!(gpu.read(to, 0, LARGE) == added(&tensor, 3));
}

#[test]
fn what_a_kernel_would_not_take_is_not_launched() {
    let Some(gpu) = gpu() else { return };
    let lane = lane(&gpu);
    let slot = Operand::Slots { run: run(SLOTS, 0, 1), tensor: 0, bytes: LARGE };
    let run_with = |operands: &[Operand]| lane.work().run(0, Launch::linear(1, 1), operands);
    let right = [slot, slot, Operand::Word(0), Operand::Word(0)];
    assert_eq!(run_with(&right), Ok(()));
    let error = run_with(&right[..3]).unwrap_err();
    assert_eq!(error.to_string(), "kernel \"add\" takes arguments of [8, 8, 4, 4] bytes, and is given [8, 8, 4]");
    assert!(matches!(run_with(&[slot, slot, Operand::Long(0), Operand::Word(0)]), Err(GpuError::Arguments { .. })));
    let past = Operand::Slots { run: run(SLOTS, 0, 1), tensor: 0, bytes: LARGE + 1 };
    assert_eq!(run_with(&[past, slot, Operand::Word(0), Operand::Word(0)]), Err(GpuError::NoSlots));
    let past = Operand::Buffer { buffer: 0, at: 0, bytes: 1 << 40 };
    assert_eq!(run_with(&[past, slot, Operand::Word(0), Operand::Word(0)]), Err(GpuError::NoBuffer));
    let none = Operand::Buffer { buffer: 1, at: 0, bytes: 1 };
    assert_eq!(run_with(&[none, slot, Operand::Word(0), Operand::Word(0)]), Err(GpuError::NoBuffer));
    assert_eq!(lane.work().run(1, Launch::linear(1, 1), &right), Err(GpuError::NoBuffer));
    lane.finish().unwrap();
}

#[test]
fn recorded_work_is_done_as_often_as_wanted() {
    let Some(gpu) = gpu() else { return };
    let mut lane = lane(&gpu);
    let slot = run(SLOTS, 2, 1);
    let tensor = pattern(9, LARGE);
    gpu.write(slot, 0, 0, &tensor);
    lane.work().copy_in(slot, 0, 0, LARGE).unwrap();
    let recording = lane
        .record(|work| {
            let operand = Operand::Slots { run: slot, tensor: 0, bytes: LARGE };
            work.run(0, Launch::linear(WORDS, 256), &[operand, operand, Operand::Word(WORDS), Operand::Word(1)])
        })
        .unwrap()
        .expect("room for a recording");
    for _ in 0..5 {
        lane.replay(recording).unwrap();
    }
    lane.finish().unwrap();
    assert!(gpu.fetch(slot, 0, LARGE) == added(&tensor, 5));
    // One that fails records nothing, and leaves the lane usable.
    let failed = lane.record(|work| work.copy_in(run(SLOTS, 77, 1), 0, 0, 1));
    assert_eq!(failed, Err(GpuError::NoSlots));
    lane.replay(recording).unwrap();
    lane.finish().unwrap();
}

#[test]
fn memory_stays_until_the_work_on_it_is_done() {
    let Some(gpu) = gpu() else { return };
    for _ in 0..20 {
        let lane = lane(&gpu);
        for slot in 0..8 {
            lane.work().copy_in(run(SLOTS, slot, 1), 0, 0, LARGE).unwrap();
            let operand = Operand::Slots { run: run(SLOTS, slot, 1), tensor: 0, bytes: LARGE };
            let buffer = Operand::Buffer { buffer: 0, at: 0, bytes: u64::from(LARGE) };
            let operands = [operand, buffer, Operand::Word(WORDS), Operand::Word(1)];
            lane.work().run(0, Launch::linear(WORDS, 256), &operands).unwrap();
        }
        // Its buffer and its kernel have no other owner.
        drop(lane);
    }
    gpu.context.synchronize().unwrap();
}

#[test]
fn what_another_party_writes_through_the_handle_is_read_in_place() {
    let Some(gpu) = gpu() else { return };
    let (descriptor, bytes) = gpu.arena.export(SLOTS).unwrap();
    use std::os::fd::AsFd;
    let theirs = DeviceMemory::import(&gpu.context, descriptor.as_fd(), bytes).unwrap();
    // Where the layout says that a slot is, which is all that they need to know.
    let layout = gpu.host.layout(SLOTS).unwrap();
    let place = layout.rows(0).unwrap().place(6, 1, 0, LARGE).unwrap() as usize;
    let tensor = pattern(11, LARGE);
    let stream = Stream::new(&gpu.context).unwrap();
    stream.upload(theirs.range(place, LARGE as usize).unwrap(), &tensor).unwrap();
    assert!(gpu.fetch(run(SLOTS, 6, 1), 0, LARGE) == tensor);
    assert!(matches!(gpu.arena.export(crate::common::FRAMES), Err(GpuError::NoPool(_))));
    assert!(matches!(gpu.arena.dma_buf(crate::common::FRAMES), Err(GpuError::NoPool(_))));
    if gpu.context.device().dma_buf {
        assert_eq!(gpu.arena.dma_buf(SLOTS).unwrap().1, bytes);
    }
}

#[test]
fn what_is_recorded_for_all_slots_is_done_on_those_that_it_is_told() {
    let Some(gpu) = gpu() else { return };
    let mut lane = lane(&gpu);
    let slots = [0, 1, 2].map(|slot| run(SLOTS, slot, 1));
    for slot in slots {
        gpu.write(slot, 0, 0, &pattern(9, LARGE));
        lane.work().collect([(slot, 0, LARGE)].into_iter()).unwrap();
    }
    let [whole, beside] = [0, 1 << 40].map(|at| Operand::Buffer { buffer: 0, at, bytes: LARGE.into() });
    let launch = Launch { grid: [WORDS.div_ceil(256), 1, 1], block: [256, 1, 1], shared_bytes: 0 };
    let carried = [(0, LARGE, whole)];
    let mut record = |value| {
        let compute =
            |work: &Work<'_>| work.run(0, launch, &[whole, whole, Operand::Word(WORDS), Operand::Word(value)]);
        lane.record_for_all(&carried, &carried, compute).unwrap().unwrap()
    };
    let recorded = [record(5), record(7)];
    for round in 0..30 {
        let [from, to] = [slots[round % 3], slots[round / 3 % 3]];
        let (which, tensor) = (round % 2, pattern(round as u32, LARGE));
        gpu.write(from, 0, 0, &tensor);
        lane.replay_for(recorded[which], from, to).unwrap();
        lane.finish().unwrap();
        assert!(gpu.read(to, 0, LARGE) == added(&tensor, [5, 7][which]), "round {round}");
    }
    // Past the slots on the device.
    assert!(slots.iter().all(|slot| gpu.fetch(*slot, 0, LARGE) == pattern(9, LARGE)));
    let nowhere = run(SLOTS, 1 << 20, 1);
    assert_eq!(lane.replay_for(recorded[0], nowhere, slots[0]), Err(GpuError::NoSlots));
    assert_eq!(lane.replay_for(recorded[0], slots[0], nowhere), Err(GpuError::NoSlots));
    // An operand holds all that is carried there.
    let part = Operand::Buffer { buffer: 0, at: 0, bytes: u64::from(LARGE) - 1 };
    for wrong in [part, Operand::Word(0), beside] {
        let wrong = [(0, LARGE, wrong)];
        assert_eq!(lane.record_for_all(&wrong, &carried, |_| Ok(())), Err(GpuError::NoBuffer));
        assert_eq!(lane.record_for_all(&carried, &wrong, |_| Ok(())), Err(GpuError::NoBuffer));
    }
    let many = vec![(0, LARGE, whole); 17];
    assert_eq!(lane.record_for_all(&many, &carried, |_| Ok(())), Ok(None));
}
