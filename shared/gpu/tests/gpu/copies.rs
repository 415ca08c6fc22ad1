use std::time::Duration;

use splitrpc_gpu::{Chunking, Copies, Direction, GpuError};

use crate::common::{LARGE, SLOTS, SMALL, gpu, pattern, run};

#[test]
fn what_is_copied_in_chunks_arrives_whole() {
    let Some(gpu) = gpu() else { return };
    let chunking = Chunking { bytes: 50_000, depth: 2 };
    let mut incoming = Copies::new(gpu.lane(), Direction::In, chunking, 8, 2).unwrap();
    let mut outgoing = Copies::new(gpu.lane(), Direction::Out, chunking, 8, 2).unwrap();
    let slots: Vec<_> = (0..8).map(|slot| run(SLOTS, slot, 1)).collect();
    for (ticket, &slot) in slots.iter().enumerate() {
        let ticket = ticket as u32;
        gpu.write(slot, 0, 0, &pattern(ticket, LARGE));
        gpu.write(slot, 1, 0, &pattern(100 + ticket, SMALL));
        incoming.push(ticket, (ticket as u8 % 3, ticket.into()), slot, 0, 0, LARGE).unwrap();
        incoming.push(ticket, (ticket as u8 % 3, ticket.into()), slot, 1, 0, SMALL).unwrap();
    }
    assert_eq!(incoming.waiting_bytes(), 8 * u64::from(LARGE + SMALL));
    assert!(!incoming.is_idle() && !incoming.are_done(7));
    while !(0..8).all(|ticket| incoming.are_done(ticket)) {
        incoming.pump().unwrap();
    }
    assert!(incoming.is_idle());
    // So much was copied that the pace is known: what is more urgent waits for less.
    incoming.push(0, (1, 0), slots[0], 0, 0, LARGE).unwrap();
    let [first, last] = [(0, 1), (2, 1)].map(|rank| incoming.time_until(rank, LARGE.into()).unwrap());
    assert!(first > Duration::ZERO && last >= first * 2 - Duration::from_nanos(2), "{first:?}, {last:?}");
    while !incoming.are_done(0) {
        incoming.pump().unwrap();
    }
    for (ticket, &slot) in slots.iter().enumerate() {
        gpu.write(slot, 0, 0, &vec![0; LARGE as usize]);
        outgoing.push(ticket as u32, (0, 0), slot, 0, 0, LARGE).unwrap();
    }
    while !(0..8).all(|ticket| outgoing.are_done(ticket)) {
        outgoing.pump().unwrap();
    }
    for (ticket, &slot) in slots.iter().enumerate() {
        assert!(gpu.read(slot, 0, LARGE) == pattern(ticket as u32, LARGE), "slot {ticket}");
        assert!(gpu.fetch(slot, 1, SMALL) == pattern(100 + ticket as u32, SMALL), "slot {ticket}");
    }
}

#[test]
fn a_copy_that_is_forgotten_or_impossible_keeps_no_other_waiting() {
    let Some(gpu) = gpu() else { return };
    let mut copies = Copies::new(gpu.lane(), Direction::In, Chunking::default(), 3, 1).unwrap();
    let slot = run(SLOTS, 3, 1);
    gpu.write(slot, 1, 0, &pattern(1, SMALL));
    copies.push(0, (0, 0), run(SLOTS, 0, 1), 0, 0, LARGE).unwrap();
    assert_eq!(copies.push(1, (0, 1), run(SLOTS, 99, 1), 0, 0, 1), Err(GpuError::NoSlots));
    assert_eq!(copies.push(1, (0, 1), slot, 1, 0, SMALL + 1), Err(GpuError::NoSlots));
    copies.push(2, (0, 2), slot, 1, 0, SMALL).unwrap();
    // The first chunks of it are under way.
    copies.pump().unwrap();
    copies.forget(0);
    while !copies.are_done(2) {
        copies.pump().unwrap();
    }
    assert!(copies.are_done(1) && copies.are_settled() && copies.is_idle());
    assert!(gpu.fetch(slot, 1, SMALL) == pattern(1, SMALL));
}
