//! The allocator against a naive model of the same pools.

use std::collections::BTreeMap;

use proptest::prelude::*;
use splitrpc_arena::{AllocatorError, EXTERNAL_POOL, PoolLayout, Run, SlotAllocator, SlotEntry, StaleRun, merge_runs};

fn pool(id: u16, max_batch: u16, windows: u32) -> (u16, PoolLayout) {
    (id, PoolLayout::new(&[8], max_batch, windows).unwrap())
}

fn storage(pools: &[(u16, PoolLayout)]) -> Vec<SlotEntry> {
    vec![SlotEntry::default(); SlotAllocator::storage_len(pools)]
}

/// Which slots are taken, one flag each, and the runs that took them.
struct Oracle {
    taken: BTreeMap<u16, Vec<bool>>,
    live: Vec<Run>,
    dead: Vec<Run>,
}

impl Oracle {
    fn new(pools: &[(u16, PoolLayout)]) -> Oracle {
        let taken = pools.iter().map(|(id, layout)| (*id, vec![false; layout.slots() as usize])).collect();
        Oracle { taken, live: Vec::new(), dead: Vec::new() }
    }

    fn fits(&self, layout: &PoolLayout, pool: u16, rows: u16) -> bool {
        rows > 0
            && self.taken[&pool]
                .chunks(usize::from(layout.max_batch()))
                .any(|window| window.windows(usize::from(rows)).any(|stretch| stretch.iter().all(|taken| !taken)))
    }

    fn mark(&mut self, run: Run, taken: bool) {
        let slots = self.taken.get_mut(&run.pool).unwrap();
        for slot in &mut slots[run.first as usize..][..usize::from(run.rows)] {
            assert_ne!(*slot, taken, "{run:?} handed out or taken back twice");
            *slot = taken;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc { pool: u16, rows: u16, near: Option<u32> },
    Free { index: usize },
    FreeDead { index: usize },
    FreeForged { run: (u16, u16, u32, u32) },
    Split { index: usize, rows: u16 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u16..5, prop_oneof![3 => Just(1_u16), 2 => 0_u16..9, 1 => 0_u16..80], prop::option::of(0_u32..150))
            .prop_map(|(pool, rows, near)| Step::Alloc { pool, rows, near }),
        3 => any::<usize>().prop_map(|index| Step::Free { index }),
        1 => any::<usize>().prop_map(|index| Step::FreeDead { index }),
        1 => (0_u16..5, 0_u16..5, 0_u32..300, 0_u32..3).prop_map(|run| Step::FreeForged { run }),
        1 => (any::<usize>(), 0_u16..9).prop_map(|(index, rows)| Step::Split { index, rows }),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn no_slot_is_lost_or_handed_out_twice(steps in steps()) {
        // Ids with a gap, a pool of single rows, and windows of more than one and of more than two words of bits.
        let pools = [pool(0, 1, 9), pool(1, 8, 4), pool(3, 70, 2), pool(4, 130, 1)];
        let mut storage = storage(&pools);
        let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
        let mut oracle = Oracle::new(&pools);
        for step in steps {
            match step {
                Step::Alloc { pool: id, rows, near } => {
                    let expected = allocator.peek(id, rows);
                    let run = match near {
                        Some(near) => allocator.alloc_near(id, rows, near),
                        None => allocator.alloc(id, rows),
                    };
                    prop_assert!(near.is_some() || run == expected);
                    let Some((_, layout)) = pools.iter().find(|pool| pool.0 == id) else {
                        prop_assert_eq!(run, None);
                        continue;
                    };
                    prop_assert_eq!(run.is_some(), oracle.fits(layout, id, rows));
                    if let Some(run) = run {
                        prop_assert_eq!((run.pool, run.rows), (id, rows));
                        prop_assert!(layout.holds(run.first, run.rows), "{:?} crosses a window", run);
                        prop_assert!(allocator.is_live(run));
                        if let Some(near) = near.filter(|near| layout.holds(*near, rows)) {
                            let there = near as usize..near as usize + usize::from(rows);
                            let is_free = oracle.taken[&id][there].iter().all(|taken| !taken);
                            prop_assert_eq!(is_free, run.first == near);
                        }
                        oracle.mark(run, true);
                        oracle.live.push(run);
                    }
                }
                Step::Free { index } if !oracle.live.is_empty() => {
                    let run = oracle.live.swap_remove(index % oracle.live.len());
                    prop_assert_eq!(allocator.free(run), Ok(()));
                    prop_assert!(!allocator.is_live(run));
                    oracle.mark(run, false);
                    oracle.dead.push(run);
                    // Warm: a single row comes from the free stretch that the run went back to.
                    let next = allocator.peek(run.pool, 1).unwrap();
                    prop_assert!(next.first <= run.first);
                    let between = next.first as usize..=run.first as usize;
                    prop_assert!(oracle.taken[&run.pool][between].iter().all(|taken| !taken));
                    let (_, layout) = pools.iter().find(|pool| pool.0 == run.pool).unwrap();
                    let rows = u32::from(layout.max_batch());
                    prop_assert_eq!(next.first / rows, run.first / rows);
                }
                Step::Free { .. } => {}
                Step::Split { index, rows } if !oracle.live.is_empty() => {
                    let index = index % oracle.live.len();
                    let run = oracle.live[index];
                    let Ok((first, others)) = allocator.split(run, rows) else {
                        prop_assert!(rows == 0 || rows >= run.rows);
                        continue;
                    };
                    prop_assert_eq!((first.pool, first.first, first.rows), (run.pool, run.first, rows));
                    prop_assert_eq!((others.pool, others.first), (run.pool, run.first + u32::from(rows)));
                    prop_assert_eq!(others.rows, run.rows - rows);
                    prop_assert!(!allocator.is_live(run));
                    oracle.live[index] = first;
                    oracle.live.push(others);
                }
                Step::Split { .. } => {}
                Step::FreeDead { index } => {
                    if !oracle.dead.is_empty() {
                        let run = oracle.dead[index % oracle.dead.len()];
                        prop_assert_eq!(allocator.free(run), Err(StaleRun(run)));
                    }
                }
                Step::FreeForged { run: (pool, rows, first, generation) } => {
                    let run = Run { pool, rows, first, generation };
                    if !oracle.live.contains(&run) {
                        prop_assert!(!allocator.is_live(run));
                        prop_assert_eq!(allocator.free(run), Err(StaleRun(run)));
                    }
                }
            }
            for (id, taken) in &oracle.taken {
                let free = taken.iter().filter(|taken| !**taken).count();
                prop_assert_eq!(allocator.available(*id), free as u32);
            }
            prop_assert!(oracle.live.iter().all(|run| allocator.is_live(*run)));
        }
        // Everything comes back, and whole windows can be had again.
        for run in oracle.live.drain(..) {
            prop_assert_eq!(allocator.free(run), Ok(()));
        }
        for (id, layout) in &pools {
            for _ in 0..layout.windows() {
                prop_assert!(allocator.alloc(*id, layout.max_batch()).is_some());
            }
            prop_assert_eq!(allocator.alloc(*id, 1), None);
        }
    }

    #[test]
    fn single_row_windows_are_a_stack(frees in prop::collection::vec(any::<bool>(), 1..200)) {
        let pools = [pool(0, 1, 16)];
        let mut storage = storage(&pools);
        let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
        let mut stack: Vec<u32> = (0..16).rev().collect();
        let mut live = Vec::new();
        for free in frees {
            if free && !live.is_empty() {
                let run: Run = live.remove(live.len() / 2);
                stack.push(run.first);
                allocator.free(run).unwrap();
            } else {
                let run = allocator.alloc(0, 1);
                prop_assert_eq!(run.map(|run| run.first), stack.pop());
                live.extend(run);
            }
        }
    }
}

#[test]
fn a_burst_of_single_rows_is_one_run() {
    let pools = [pool(0, 8, 4)];
    let mut storage = storage(&pools);
    let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
    // In whatever order the last burst went back.
    for order in [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 7, 4, 1, 6, 2, 5]] {
        let burst: Vec<Run> = (0..8).map(|_| allocator.alloc(0, 1).unwrap()).collect();
        let firsts: Vec<u32> = burst.iter().map(|run| run.first).collect();
        assert_eq!(firsts, [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut runs = burst.clone();
        assert_eq!(merge_runs(&mut runs, |_| 8), 1);
        assert_eq!(runs[0].rows, 8);
        order.into_iter().for_each(|index: usize| allocator.free(burst[index]).unwrap());
    }
}

#[test]
fn slots_near_another_pools_are_those_behind_where_it_is_taken() {
    let pools = [pool(0, 1, 40)];
    let mut storage = storage(&pools);
    let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
    let near: Vec<u32> = (0..9).map(|_| allocator.alloc_near(0, 1, 3).unwrap().first).collect();
    // After that, where any is.
    assert_eq!(near, [3, 4, 5, 6, 7, 8, 9, 10, 0]);
    assert_eq!(allocator.alloc_near(0, 1, 39).unwrap().first, 39);
    assert_eq!(allocator.alloc_near(0, 1, 4_000).unwrap().first, 1);
}

#[test]
fn one_at_a_time_stays_on_one_warm_slot() {
    let pools = [pool(0, 8, 4)];
    let mut storage = storage(&pools);
    let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
    let other = allocator.alloc(0, 3).unwrap();
    let mut last = None;
    for _ in 0..10 {
        let run = allocator.alloc(0, 1).unwrap();
        assert_eq!(last.replace(run.first).unwrap_or(run.first), run.first);
        allocator.free(run).unwrap();
    }
    assert!(allocator.is_live(other));
}

#[test]
fn another_number_of_rows_does_not_free_a_run() {
    let pools = [pool(0, 8, 1)];
    let mut storage = storage(&pools);
    let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
    let run = allocator.alloc(0, 4).unwrap();
    for forged in [Run { rows: 3, ..run }, Run { rows: 5, ..run }, Run { first: 1, rows: 3, ..run }, Run::NONE] {
        assert_eq!(allocator.free(forged), Err(StaleRun(forged)));
    }
    assert_eq!(allocator.free(run), Ok(()));
    assert_eq!(allocator.free(run), Err(StaleRun(run)));
}

#[test]
fn the_largest_window_works() {
    let pools = [pool(0, u16::MAX, 1)];
    let mut storage = storage(&pools);
    let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
    let all = allocator.alloc(0, u16::MAX).unwrap();
    allocator.free(all).unwrap();
    let runs: Vec<Run> = (0..u16::MAX).map(|_| allocator.alloc(0, 1).unwrap()).collect();
    assert_eq!(allocator.alloc(0, 1), None);
    let last = runs[usize::from(u16::MAX) - 1];
    allocator.free(last).unwrap();
    assert_eq!(allocator.alloc(0, 1).map(|run| run.first), Some(last.first));
}

#[test]
fn bad_setups_are_refused_by_name() {
    let refused = |pools: &[(u16, PoolLayout)], entries: usize| {
        SlotAllocator::new(pools, &mut vec![SlotEntry::default(); entries]).map(drop).unwrap_err()
    };
    assert_eq!(refused(&[pool(1, 1, 1), pool(0, 1, 1)], 9), AllocatorError::PoolsNotAscending);
    assert_eq!(refused(&[pool(1, 1, 1), pool(1, 1, 1)], 9), AllocatorError::PoolsNotAscending);
    assert_eq!(refused(&[pool(EXTERNAL_POOL, 1, 1)], 9), AllocatorError::ReservedPool);
    assert_eq!(refused(&[pool(0, 4, 2)], 8), AllocatorError::StorageTooSmall { needed: 9 });
}
