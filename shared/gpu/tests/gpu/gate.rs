use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use splitrpc_gpu::{Direction, Gate, GpuError, Lane, Operand, Piece, Porter, Work, filled};

use crate::common::{FRAME, FRAMES, Gpu, LARGE, SLOTS, SMALL, gpu, pattern, run};

/// Longer than any test takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A place in a lane's first buffer.
fn place(at: u64, bytes: u32) -> Operand {
    Operand::Buffer { buffer: 0, at, bytes: bytes.into() }
}

/// A lane, and the gate at which it waits.
fn gated(gpu: &Gpu) -> (Lane, Gate) {
    let gate = Gate::new(&gpu.context).unwrap();
    (gpu.lane().with_gate(&gate), gate)
}

/// Waits for a lane's signal, without a call of the driver.
fn wait(lane: &Lane, number: u32) {
    while lane.signalled() != number {
        thread::yield_now();
    }
}

/// Does something while a gate is shut, which is opened should that never end: then the test fails, and does not hang.
fn while_shut(gate: &Gate, number: u32, act: impl FnOnce()) {
    let done = Arc::new(AtomicBool::new(false));
    let (gate, seen) = (gate.clone(), Arc::clone(&done));
    let guard = thread::spawn(move || {
        for _ in 0..2_000 {
            if seen.load(Ordering::SeqCst) {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        gate.open(number);
        true
    });
    act();
    done.store(true, Ordering::SeqCst);
    assert!(!guard.join().unwrap(), "it waits for the lane that waits at the gate");
}

#[test]
fn what_waits_at_a_gate_is_done_once_it_is_opened_and_holds_up_nobody() {
    let Some(gpu) = gpu() else { return };
    let (gate, other) = (Gate::new(&gpu.context).unwrap(), gpu.lane());
    let buffer = filled(&gpu.context, &vec![0; 1024 + LARGE as usize]).unwrap();
    let mut lane = Lane::new(&gpu.arena, 0, vec![buffer], Vec::new()).unwrap().with_gate(&gate);
    // Fetched from the host's side, and brought to another place there. Every other time it is what was recorded.
    let (slot, frame, theirs) = (run(SLOTS, 0, 1), run(FRAMES, 0, 1), run(SLOTS, 1, 1));
    let piece = Piece { frame, frame_offset: 0, slot, tensor: 0, offset: LARGE - FRAME, len: FRAME };
    let submit = |work: &Work<'_>| {
        work.hold(LIMIT)?;
        work.fetch([((slot, 0, LARGE), &place(1024, LARGE))].into_iter())?;
        work.spread(0, 1024, slot, 0, LARGE)?;
        work.scatter(&[piece]).map(drop)
    };
    let recording = lane.record(submit).unwrap().unwrap();
    for number in 1..=20_u32 {
        let tensor = pattern(number, LARGE);
        gate.shut(number);
        if number % 2 == 0 { submit(&lane.work()) } else { lane.replay(recording) }.unwrap();
        lane.signal(number).unwrap();
        while_shut(&gate, number, || {
            for _ in 0..50 {
                other.work().copy_in(theirs, 0, 0, LARGE).unwrap();
            }
            other.signal(number).unwrap();
            wait(&other, number);
            assert_eq!(lane.signalled(), number - 1, "it did not wait");
        });
        gpu.write(slot, 0, 0, &tensor);
        gate.open(number);
        wait(&lane, number);
        assert!(gate.was_opened(number));
        assert!(gpu.read(frame, 0, FRAME) == tensor[(LARGE - FRAME) as usize..], "{number}");
    }
    let past = lane.work().fetch([((slot, 0, LARGE), &place(1 << 40, LARGE))].into_iter());
    assert_eq!((past, other.work().hold(LIMIT)), (Err(GpuError::NoBuffer), Err(GpuError::NoBuffer)));
}

#[test]
fn a_gate_that_nobody_opens_is_passed_in_the_end_and_says_so() {
    let Some(gpu) = gpu() else { return };
    let (lane, gate) = gated(&gpu);
    for (number, opens) in [(1, false), (2, true), (3, false), (4, true)] {
        gate.shut(number);
        lane.work().hold(if opens { LIMIT } else { Duration::from_millis(2) }).unwrap();
        lane.signal(number).unwrap();
        if opens {
            gate.open(number);
        }
        wait(&lane, number);
        assert_eq!(gate.was_opened(number), opens, "{number}");
        if !opens {
            gate.open(number);
        }
    }
}

/// What is done while requests are served waits for no lane but its own. To take memory or give it back does wait for all of them.
#[test]
fn a_lane_that_waits_holds_up_nothing_that_is_submitted() {
    let Some(gpu) = gpu() else { return };
    let (lane, gate) = gated(&gpu);
    let slot = run(SLOTS, 1, 1);
    let buffer = filled(&gpu.context, &[1; 8192]).unwrap();
    let mut theirs = Lane::new(&gpu.arena, 0, vec![buffer], Vec::new()).unwrap();
    let mut porter = Porter::new(&gpu.arena, &[SLOTS]).unwrap();
    gate.shut(1);
    lane.work().hold(LIMIT).unwrap();
    lane.signal(1).unwrap();
    while_shut(&gate, 1, || {
        // For the first time, so that code is loaded and a graph made.
        let submit = |work: &Work<'_>| {
            work.spread(0, 0, slot, 0, 4096)?;
            work.fetch([((slot, 1, SMALL), &place(4096, SMALL))].into_iter())?;
            work.deliver([(slot, 0, 4096)].into_iter())
        };
        let recording = theirs.record(submit).unwrap().unwrap();
        theirs.replay(recording).unwrap();
        submit(&theirs.work()).unwrap();
        theirs.signal(1).unwrap();
        wait(&theirs, 1);
        assert!(porter.start().unwrap());
        while !porter.is_running() {
            thread::yield_now();
        }
        let order = porter.order(Direction::In, slot, 0, 0, 4096).unwrap().unwrap();
        while !porter.are_done(order) {
            thread::yield_now();
        }
        assert_eq!(lane.signalled(), 0, "it did not wait");
    });
    gate.open(1);
    wait(&lane, 1);
    assert_eq!(gpu.read(slot, 0, 4096), [1; 4096]);
}
