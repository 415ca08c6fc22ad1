use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use splitrpc_cuda::{Launch, Module};
use splitrpc_gpu::{Direction, Kernel, Lane, Operand, Porter};

use crate::common::{Gpu, LARGE, SLOTS, SMALL, gpu, pattern, run};

fn wait(porter: &mut Porter, number: u64) {
    let end = Instant::now() + Duration::from_secs(5);
    while !porter.are_done(number) {
        porter.check().unwrap();
        assert!(Instant::now() < end, "order {number} is not carried out: {porter:?}");
    }
}

fn running(gpu: &Gpu) -> Porter {
    let mut porter = Porter::new(&gpu.arena, &[SLOTS]).unwrap();
    start(&mut porter);
    porter
}

/// Starts it, and waits until it is there.
fn start(porter: &mut Porter) {
    let end = Instant::now() + Duration::from_secs(5);
    while !(porter.start().unwrap() && porter.is_running()) {
        assert!(Instant::now() < end, "it does not start: {porter:?}");
        std::thread::yield_now();
    }
}

/// Has bytes of a slot's first tensor carried. Where orders come so slowly that it has ended, it is started again.
fn carry(porter: &mut Porter, direction: Direction, slot: u32, offset: u32, len: u32) {
    let order = |porter: &mut Porter| porter.order(direction, run(SLOTS, slot, 1), 0, offset, len).unwrap();
    let number = order(porter).or_else(|| {
        start(porter);
        order(porter)
    });
    wait(porter, number.expect("it has just been started"));
}

#[test]
fn what_is_ordered_is_carried_both_ways() {
    let Some(gpu) = gpu() else { return };
    let mut porter = running(&gpu);
    // Aligned to 16 bytes, to four, and not at all; shorter than a vector, and longer than a piece.
    for (round, (offset, len)) in
        [(0, LARGE), (16, 1), (0, 15), (4, 100_003), (7, 40_000), (32, 32_768), (0, 65_537)].into_iter().enumerate()
    {
        for slot in 0..8 {
            let seed = (round * 8) as u32 + slot;
            let (run, bytes) = (run(SLOTS, slot, 1), pattern(seed, len));
            gpu.write(run, 0, offset, &bytes);
            carry(&mut porter, Direction::In, slot, offset, len);
            gpu.write(run, 0, offset, &vec![0xAA; len as usize]);
            carry(&mut porter, Direction::Out, slot, offset, len);
            let got = gpu.read(run, 0, offset + len);
            assert!(got[offset as usize..] == bytes, "{len} bytes at {offset}, slot {slot}");
        }
    }
}

#[test]
fn many_orders_go_round_the_ring_and_none_is_lost() {
    let Some(gpu) = gpu() else { return };
    let mut porter = running(&gpu);
    let mut last = 0;
    for round in 0..4_000_u32 {
        let slot = run(SLOTS, round % 8, 1);
        // What was carried before into the same slot is done.
        if round % 8 == 0 {
            wait(&mut porter, last);
            for slot in 0..8 {
                gpu.write(run(SLOTS, slot, 1), 1, 0, &pattern(round + slot, SMALL));
            }
        }
        last = loop {
            match porter.order(Direction::In, slot, 1, 0, SMALL).unwrap() {
                Some(number) => break number,
                None => start(&mut porter),
            }
        };
        if round % 400 == 399 {
            wait(&mut porter, last);
            porter.stop();
            let fetched = gpu.fetch(slot, 1, SMALL);
            assert!(fetched == pattern(round / 8 * 8 + round % 8, SMALL), "round {round}");
            start(&mut porter);
        }
    }
    // More than the ring holds is refused and not lost.
    wait(&mut porter, last);
    let orders = std::iter::repeat_with(|| porter.order(Direction::In, run(SLOTS, 0, 1), 0, 0, LARGE).unwrap());
    let taken = orders.take(2_000).filter(Option::is_some).count();
    assert!(taken >= 512 / 19, "{taken}");
}

#[test]
fn it_ends_when_nobody_orders_anything_and_can_be_started_again() {
    let Some(gpu) = gpu() else { return };
    let mut porter = running(&gpu);
    let number = porter.order(Direction::In, run(SLOTS, 0, 1), 1, 0, SMALL).unwrap().unwrap();
    wait(&mut porter, number);
    assert!(porter.is_running());
    std::thread::sleep(Duration::from_millis(60));
    assert!(!porter.is_running());
    // Nothing of it is left on the device.
    gpu.context.synchronize().unwrap();
    start(&mut porter);
    gpu.write(run(SLOTS, 1, 1), 1, 0, &pattern(3, SMALL));
    let number = porter.order(Direction::In, run(SLOTS, 1, 1), 1, 0, SMALL).unwrap().unwrap();
    wait(&mut porter, number);
    porter.stop();
    assert!(gpu.fetch(run(SLOTS, 1, 1), 1, SMALL) == pattern(3, SMALL));
}

#[test]
fn what_is_not_among_its_slots_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut porter = running(&gpu);
    assert!(porter.order(Direction::In, run(SLOTS, 99, 1), 0, 0, 1).is_err());
    assert!(porter.order(Direction::In, run(SLOTS, 0, 1), 0, 0, LARGE + 1).is_err());
    assert!(porter.order(Direction::In, run(crate::common::FRAMES, 0, 1), 0, 0, 1).is_err());
    assert!(Porter::new(&gpu.arena, &[crate::common::FRAMES]).is_err());
}

#[test]
fn who_stops_it_right_behind_orders_gets_them_carried_out() {
    let Some(gpu) = gpu() else { return };
    let mut porter = running(&gpu);
    for round in 0..200 {
        let slot = run(SLOTS, round % 8, 1);
        gpu.write(slot, 0, 0, &pattern(round, LARGE));
        let number = loop {
            start(&mut porter);
            if let Some(number) = porter.order(Direction::In, slot, 0, 0, LARGE).unwrap() {
                break number;
            }
        };
        porter.stop();
        wait(&mut porter, number);
        if round % 20 == 0 {
            assert!(gpu.fetch(slot, 0, LARGE) == pattern(round, LARGE), "round {round}");
        }
    }
}

#[test]
fn one_that_is_not_there_takes_no_orders() {
    let Some(gpu) = gpu() else { return };
    let mut porter = Porter::new(&gpu.arena, &[SLOTS]).unwrap();
    let order = |porter: &mut Porter| porter.order(Direction::In, run(SLOTS, 0, 1), 1, 0, SMALL).unwrap();
    assert_eq!(order(&mut porter), None);
    start(&mut porter);
    let number = order(&mut porter).unwrap();
    wait(&mut porter, number);
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(order(&mut porter), None);
    porter.check().unwrap();
    start(&mut porter);
    assert!(order(&mut porter).is_some());
}

/// `fill(flag)`: every thread waits until the flag is set.
const FILL: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry fill(
    .param .u64 p_flag
)
{
    .reg .pred %p;
    .reg .b32 %word;
    .reg .b64 %flag;

    ld.param.u64 %flag, [p_flag];
again:
    ld.volatile.global.u32 %word, [%flag];
    setp.eq.u32 %p, %word, 0;
    @%p bra again;
    ret;
}
";

/// Ends the kernel that fills the device, also where the test fails.
struct Filler<'g> {
    gpu: &'g Gpu,
    other: Lane,
    lane: Lane,
}

const FLAG: u32 = 7;

impl Filler<'_> {
    /// Ready to fill it.
    fn new(gpu: &Gpu) -> Filler<'_> {
        let module = Module::from_ptx(&gpu.context, FILL).unwrap();
        let least = gpu.context.stream_priorities().unwrap().least;
        let lane = Lane::new(&gpu.arena, least, Vec::new(), vec![Kernel::new(&module, "fill").unwrap()]).unwrap();
        let filler = Filler { gpu, other: gpu.lane(), lane };
        // The first launch takes its time.
        filler.set(1);
        filler.fill();
        filler.lane.finish().unwrap();
        filler.set(0);
        filler
    }

    fn set(&self, value: u8) {
        let flag = run(SLOTS, FLAG, 1);
        self.gpu.write(flag, 1, 0, &[value; 4]);
        self.other.work().copy_in(flag, 1, 0, 4).unwrap();
        self.other.finish().unwrap();
    }

    /// Launches more blocks than there can be at once.
    fn fill(&self) {
        let blocks = 4 * self.gpu.context.device().multiprocessors;
        let launch = Launch { grid: [blocks, 1, 1], block: [1024, 1, 1], shared_bytes: 0 };
        let flag = Operand::Slots { run: run(SLOTS, FLAG, 1), tensor: 1, bytes: 4 };
        self.lane.work().run(0, launch, &[flag]).unwrap();
    }
}

impl Drop for Filler<'_> {
    fn drop(&mut self) {
        self.set(1);
    }
}

#[test]
fn it_carries_beside_a_kernel_that_fills_the_device() {
    let Some(gpu) = gpu() else { return };
    let filler = Filler::new(&gpu);
    let mut porter = running(&gpu);
    filler.fill();
    let mut last = 0;
    for number in 0..512_u32 {
        let slot = run(SLOTS, number % FLAG, 1);
        if number % FLAG == 0 {
            wait(&mut porter, last);
        }
        gpu.write(slot, 1, 0, &pattern(number, SMALL));
        // Not started again: the device is full, so it could not be.
        last = loop {
            assert!(porter.is_running(), "it has gone after {number} orders");
            if let Some(number) = porter.order(Direction::In, slot, 1, 0, SMALL).unwrap() {
                break number;
            }
        };
    }
    wait(&mut porter, last);
    assert!(!filler.lane.is_done().unwrap(), "the device was not full");
    drop(filler);
    for number in 505..512 {
        assert!(gpu.fetch(run(SLOTS, number % FLAG, 1), 1, SMALL) == pattern(number, SMALL), "order {number}");
    }
}

/// Says that this process is the one that is stopped.
const STOPPED: &str = "SPLITRPC_TEST_STOPPED";

#[test]
fn a_process_that_is_stopped_for_a_while_loses_no_order() {
    if std::env::var_os(STOPPED).is_some() {
        return keep_ordering();
    }
    // Only asked whether there is one; the second process has it to itself.
    if gpu().is_none() {
        return;
    }
    let test = "porter::a_process_that_is_stopped_for_a_while_loses_no_order";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(STOPPED, "1")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let signal =
        |name: &str| assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    // Longer than the kernel waits for orders at any clock, and each time at another moment.
    std::thread::sleep(Duration::from_secs(1));
    for time in 0..12 {
        std::thread::sleep(Duration::from_micros(20_000 + 1_237 * time));
        signal("-STOP");
        std::thread::sleep(Duration::from_millis(150));
        signal("-CONT");
    }
    // The end of its input tells it to end.
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}, signal {:?}", status.signal());
}

/// Has orders under way all the time, until the input ends.
fn keep_ordering() {
    let gpu = gpu().expect("the first process has a GPU");
    let ends = std::thread::spawn(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let mut porter = Porter::new(&gpu.arena, &[SLOTS]).unwrap();
    let mut round = 0;
    while !ends.is_finished() || round == 0 {
        let each = || (0..8).map(|slot| run(SLOTS, slot, 1));
        for direction in [Direction::In, Direction::Out] {
            if direction == Direction::In {
                each().for_each(|slot| gpu.write(slot, 0, 0, &pattern(round + slot.first, LARGE)));
            } else {
                each().for_each(|slot| gpu.write(slot, 0, 0, &[0xaa; LARGE as usize]));
            }
            for slot in each() {
                let number = loop {
                    start(&mut porter);
                    if let Some(number) = porter.order(direction, slot, 0, 0, LARGE).unwrap() {
                        break number;
                    }
                };
                if slot.first == 7 {
                    wait(&mut porter, number);
                }
            }
        }
        for slot in each() {
            assert!(gpu.read(slot, 0, LARGE) == pattern(round + slot.first, LARGE), "round {round}, {slot:?}");
        }
        round += 1;
    }
}
