use std::time::{Duration, Instant};

use splitrpc_gpu::{Direction, Porter};

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
            let number = porter.order(Direction::In, run, 0, offset, len).unwrap().unwrap();
            wait(&mut porter, number);
            gpu.write(run, 0, offset, &vec![0xAA; len as usize]);
            let number = porter.order(Direction::Out, run, 0, offset, len).unwrap().unwrap();
            wait(&mut porter, number);
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
