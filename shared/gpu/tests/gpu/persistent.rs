use std::thread::sleep;
use std::time::{Duration, Instant};

use splitrpc_cuda::{Launch, Module};
use splitrpc_gpu::{GpuError, Kernel, Operand, Persistent};

use crate::common::{Gpu, SLOTS, gpu, run};

/// Kernels that stay: see `persistent.cu` beside it.
const CODE: &str = include_str!("../../../../host-agent/tests/gpu/persistent.ptx");
const WORDS: u32 = 1_000;
/// In one block, and in several of which the first tells the others.
const BLOCKS: [u32; 2] = [1, 8];

fn kernel(gpu: &Gpu, function: &str, blocks: u32, values: usize) -> Persistent {
    let module = Module::from_ptx(&gpu.context, CODE).unwrap();
    let launch = Launch { grid: [blocks, 1, 1], block: [128, 1, 1], shared_bytes: 0 };
    Persistent::new(&gpu.arena, 0, Vec::new(), Kernel::new(&module, function).unwrap(), launch, values).unwrap()
}

/// Waits until the batch is done, and looks after the kernel as its owner does.
fn wait(kernel: &mut Persistent) -> Result<(), GpuError> {
    let end = Instant::now() + Duration::from_secs(5);
    let mut asked = Instant::now();
    while !kernel.is_done() {
        if asked.elapsed() > Duration::from_millis(1) {
            kernel.check()?;
            asked = Instant::now();
        }
        assert!(Instant::now() < end, "the batch is not computed: {kernel:?}");
    }
    Ok(())
}

/// Words of the second slot, where the kernel finds a number, and of the third one, where it answers.
fn pinned(slot: u32) -> Operand {
    Operand::Pinned { run: run(SLOTS, slot, 1), tensor: 0, bytes: 4 * WORDS }
}

/// Has sums computed, all of whose words are looked at.
fn add(gpu: &Gpu, kernel: &mut Persistent, seed: u32) {
    let floats = |add: u32| (0..WORDS).flat_map(|i| ((i + add) as f32).to_le_bytes()).collect::<Vec<u8>>();
    gpu.write(run(SLOTS, 0, 1), 0, 0, &floats(seed));
    gpu.write(run(SLOTS, 1, 1), 0, 0, &floats(0));
    gpu.write(run(SLOTS, 2, 1), 0, 0, &vec![0xee; 4 * WORDS as usize]);
    kernel.ring(1, &[pinned(0), pinned(1), pinned(2), Operand::Word(WORDS)]).unwrap();
    wait(kernel).unwrap();
    let expected: Vec<u8> = (0..WORDS).flat_map(|i| ((2 * i + seed) as f32).to_le_bytes()).collect();
    assert!(gpu.read(run(SLOTS, 2, 1), 0, 4 * WORDS) == expected, "batch {seed}: {kernel:?}");
}

#[test]
fn numbers_go_round_and_every_batch_is_whole() {
    let Some(gpu) = gpu() else { return };
    for blocks in BLOCKS {
        let mut kernel = kernel(&gpu, "add", blocks, 4);
        (0..500).for_each(|seed| add(&gpu, &mut kernel, seed));
    }
}

#[test]
fn one_that_has_ended_by_itself_is_launched_again_whoever_has_noticed() {
    let Some(gpu) = gpu() else { return };
    for blocks in BLOCKS {
        let mut kernel = kernel(&gpu, "add", blocks, 4);
        for round in 0..12 {
            add(&gpu, &mut kernel, round);
            // Longer than it waits.
            sleep(Duration::from_millis(90));
            match round % 4 {
                0 => {}
                1 => kernel.check().unwrap(),
                2 => kernel.stop(),
                _ => {
                    kernel.check().unwrap();
                    kernel.stop();
                    kernel.check().unwrap();
                }
            }
        }
    }
}

#[test]
fn one_that_is_told_to_end_after_every_batch_comes_back_at_once() {
    let Some(gpu) = gpu() else { return };
    for blocks in BLOCKS {
        let mut kernel = kernel(&gpu, "add", blocks, 4);
        for round in 0..200 {
            add(&gpu, &mut kernel, round);
            kernel.stop();
        }
    }
}

#[test]
fn a_batch_whose_blocks_have_left_is_abandoned_and_the_next_one_computed() {
    let Some(gpu) = gpu() else { return };
    let mut kernel = kernel(&gpu, "parts", 8, 2);
    let ask = |number: i32, kernel: &mut Persistent| {
        gpu.write(run(SLOTS, 1, 1), 0, 0, &number.to_le_bytes());
        kernel.ring(1, &[pinned(1), pinned(2)]).unwrap();
        match number {
            7 | 8 => {
                sleep(Duration::from_millis(100));
                assert!(!kernel.is_done());
                kernel.abandon();
                wait(kernel).unwrap();
            }
            _ => {
                wait(kernel).unwrap();
                assert_eq!(gpu.read(run(SLOTS, 2, 1), 0, 4), (2 * number).to_le_bytes());
            }
        }
    };
    for number in [1, 2, 7, 3, 8, 4, 8, 7, 5] {
        ask(number, &mut kernel);
    }
}

#[test]
fn one_that_leaves_fails_its_batch_and_no_other() {
    let Some(gpu) = gpu() else { return };
    let mut kernel = kernel(&gpu, "leaves", 2, 2);
    for _ in 0..5 {
        kernel.ring(1, &[pinned(1), pinned(2)]).unwrap();
        assert_eq!(wait(&mut kernel), Err(GpuError::Ended));
        assert!(kernel.is_done());
    }
}

#[test]
fn what_it_was_not_made_for_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut kernel = kernel(&gpu, "add", 1, 4);
    assert_eq!(kernel.ring(1, &[Operand::Word(1)]), Err(GpuError::NoBuffer));
    let beyond = Operand::Pinned { run: run(SLOTS, 9, 1), tensor: 0, bytes: 4 };
    assert_eq!(kernel.ring(1, &[beyond; 4]), Err(GpuError::NoSlots));
    add(&gpu, &mut kernel, 3);
    kernel.ring(1, &[pinned(0), pinned(1), pinned(2), Operand::Word(WORDS)]).unwrap();
    // The one before has to be done.
    if !kernel.is_done() {
        assert_eq!(kernel.ring(1, &[pinned(0), pinned(1), pinned(2), Operand::Word(0)]), Err(GpuError::NoBuffer));
    }
    wait(&mut kernel).unwrap();
}
