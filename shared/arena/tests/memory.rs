//! The arena's memory: where runs lie, what is refused, and who keeps what alive.
#![cfg(feature = "mem")]

use std::thread;

use splitrpc_arena::{
    AdoptError, Arena, ArenaError, EXTERNAL_POOL, External, META_BYTES, PoolLayout, Run, SlotAllocator, SlotEntry, Span,
};

fn layout(row_bytes: &[u32], max_batch: u16, windows: u32) -> PoolLayout {
    PoolLayout::new(row_bytes, max_batch, windows).unwrap()
}

fn run(pool: u16, first: u32, rows: u16) -> Run {
    Run { pool, rows, first, generation: 1 }
}

fn bytes_of(span: Span<'_>) -> Vec<u8> {
    let mut bytes = vec![0; span.len()];
    span.copy_to(&mut bytes);
    bytes
}

#[test]
fn every_row_of_every_tensor_has_its_own_bytes() {
    let pools = [(0, layout(&[100, 5000], 4, 3)), (1, layout(&[7], 1, 5)), (9, layout(&[64, 1, 4096], 2, 2))];
    let arena = Arena::new("rows", &pools, 0).unwrap();
    // Every row and every meta area gets a pattern of its own; an overlap would spoil an earlier one.
    let pattern = |pool: u16, tensor: u16, slot: u32, len: u32| -> Vec<u8> {
        let seed = u32::from(pool) * 7919 + u32::from(tensor) * 104_729 + slot * 1_299_709;
        (0..len).map(|index| ((seed + index).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    };
    let each = |visit: &dyn Fn(Span<'_>, Vec<u8>)| {
        for (id, layout) in &pools {
            for slot in 0..layout.slots() {
                for tensor in 0..layout.tensors() {
                    let len = layout.row_bytes(tensor).unwrap();
                    let span = arena.span(run(*id, slot, 1), tensor, 0, len).unwrap();
                    visit(span, pattern(*id, tensor, slot, len));
                }
                visit(arena.meta(run(*id, slot, 1)).unwrap(), pattern(*id, 99, slot, META_BYTES));
            }
        }
    };
    each(&|span, _| assert!(bytes_of(span).iter().all(|byte| *byte == 0), "new memory is zero"));
    each(&|span, pattern| assert_eq!(span.copy_from(&pattern), pattern.len()));
    each(&|span, pattern| assert_eq!(bytes_of(span), pattern));
}

#[test]
fn rows_of_a_run_lie_back_to_back_on_an_aligned_base() {
    let pools = [(0, layout(&[1500, 3], 4, 2))];
    let arena = Arena::new("batch", &pools, 0).unwrap();
    let window = arena.span(run(0, 4, 4), 0, 0, 6000).unwrap();
    assert_eq!(window.as_ptr().addr() % 4096, 0);
    assert_eq!(arena.span(run(0, 4, 4), 1, 0, 12).unwrap().as_ptr().addr() % 64, 0);
    for row in 0..4 {
        let span = arena.span(run(0, 4 + row, 1), 0, 0, 1500).unwrap();
        assert_eq!(span.as_ptr().addr() - window.as_ptr().addr(), row as usize * 1500);
        span.fill(row as u8 + 1);
    }
    let middle = arena.span(run(0, 5, 2), 0, 1499, 2).unwrap();
    assert_eq!(bytes_of(middle), [2, 3]);
    // SAFETY: nothing else writes to this arena.
    let slice = unsafe { window.as_slice() };
    assert!(slice.chunks(1500).zip(1..).all(|(row, value)| row.iter().all(|byte| *byte == value)));
}

#[test]
fn nothing_outside_a_run_can_be_named() {
    let pools = [(0, layout(&[100], 4, 2)), (5, layout(&[10], 1, 1))];
    let arena = Arena::new("bounds", &pools, 1).unwrap();
    assert!(arena.span(run(0, 2, 2), 0, 0, 200).is_some());
    assert!(arena.span(run(0, 2, 2), 0, 200, 0).is_some());
    assert!(arena.span(run(0, 2, 2), 0, 0, 201).is_none());
    assert!(arena.span(run(0, 2, 2), 0, u32::MAX, u32::MAX).is_none());
    assert!(arena.span(run(0, 2, 2), 1, 0, 1).is_none());
    assert!(arena.span(run(0, 2, 3), 0, 0, 1).is_none());
    assert!(arena.span(run(0, 8, 1), 0, 0, 1).is_none());
    assert!(arena.span(run(0, 0, 0), 0, 0, 0).is_none());
    assert!(arena.span(run(1, 0, 1), 0, 0, 1).is_none());
    assert!(arena.span(Run::NONE, 0, 0, 0).is_none());
    assert!(arena.span(run(EXTERNAL_POOL, 0, 1), 0, 0, 0).is_none());
    assert!(arena.meta(run(5, 1, 1)).is_none());
    assert!(arena.lease(run(5, 1, 1)).is_none());
    assert!(arena.lease(run(EXTERNAL_POOL, 0, 1)).is_none());
    assert!(arena.lease(run(5, 0, 1)).unwrap().span(0, 9, 2).is_none());
}

#[test]
fn allocated_runs_have_memory_and_leases_see_it() {
    let pools = [(0, layout(&[32], 8, 4))];
    let arena = Arena::new("allocated", &pools, 0).unwrap();
    let mut storage = vec![SlotEntry::default(); SlotAllocator::storage_len(&pools)];
    let mut allocator = SlotAllocator::new(&pools, &mut storage).unwrap();
    while let Some(run) = allocator.alloc(0, 3) {
        arena.span(run, 0, 0, 96).unwrap().fill(run.first as u8 + 1);
        let lease = arena.lease(run).unwrap();
        assert_eq!(bytes_of(lease.span(0, 95, 1).unwrap()), [run.first as u8 + 1]);
        assert_eq!(lease.meta().len(), META_BYTES as usize);
        assert_eq!(lease.run(), run);
    }
}

#[test]
fn the_file_holds_the_same_bytes_and_cannot_shrink() {
    let arena = Arena::new("file", &[(0, layout(&[16], 1, 1))], 0).unwrap();
    arena.span(run(0, 0, 1), 0, 0, 4).unwrap().copy_from(b"same");
    let mut bytes = [0; 4];
    assert_eq!(rustix::io::pread(arena.memfd(), &mut bytes, 0).unwrap(), 4);
    assert_eq!(&bytes, b"same");
    assert_eq!(rustix::fs::ftruncate(arena.memfd(), 0), Err(rustix::io::Errno::PERM));
    assert_eq!(arena.whole().len(), arena.bytes());
}

#[test]
fn bad_setups_are_refused_by_name() {
    let small = layout(&[1], 1, 1);
    let refused = |pools: &[(u16, PoolLayout)]| Arena::new("refused", pools, 0).map(drop).unwrap_err();
    assert!(matches!(refused(&[(1, small), (1, small)]), ArenaError::PoolsNotAscending));
    assert!(matches!(refused(&[(EXTERNAL_POOL, small)]), ArenaError::ReservedPool));
    let huge = layout(&[1 << 31], 1, 1 << 10);
    assert!(matches!(refused(&[(0, huge)]), ArenaError::TooLarge { bytes } if bytes > 1 << 40));
}

#[test]
fn large_arenas_take_no_memory_until_touched() {
    let arena = Arena::new("lazy", &[(0, layout(&[64 << 20], 1, 4096))], 0).unwrap();
    assert!(arena.bytes() >= 256 << 30);
    let last = arena.span(run(0, 4095, 1), 0, (64 << 20) - 1, 1).unwrap();
    last.fill(9);
    assert_eq!(bytes_of(last), [9]);
    let blocks = rustix::fs::fstat(arena.memfd()).unwrap().st_blocks;
    assert!(blocks * 512 <= 4 << 20, "{blocks} blocks for one byte");
}

fn external(tensors: &[&[u8]]) -> External {
    External { tensors: tensors.iter().map(|bytes| bytes.to_vec()).collect(), meta: b"meta".to_vec() }
}

#[test]
fn an_adopted_output_is_there_until_it_is_dropped() {
    let arena = Arena::new("external", &[], 2).unwrap();
    let adopted = arena.adopt(external(&[b"first", b""])).unwrap();
    let other = arena.adopt(external(&[])).unwrap();
    assert_eq!(adopted.pool, EXTERNAL_POOL);
    assert_eq!(arena.adopt(external(&[])), Err(AdoptError::Full));
    let lease = arena.lease(adopted).unwrap();
    assert_eq!(bytes_of(lease.span(0, 1, 4).unwrap()), b"irst");
    assert!(lease.span(0, 1, 5).is_none());
    assert!(lease.span(1, 0, 0).is_some());
    assert!(lease.span(2, 0, 0).is_none());
    assert_eq!(lease.meta().len(), META_BYTES as usize);
    assert_eq!(&bytes_of(lease.meta())[..6], b"meta\0\0");
    assert!(arena.drop_external(adopted));
    assert!(!arena.drop_external(adopted), "dropped twice");
    assert!(arena.lease(adopted).is_none());
    // The entry has a new life, which the old run does not name; what is leased is still the old one's.
    let next = arena.adopt(external(&[b"other"])).unwrap();
    assert_eq!(next.first, adopted.first);
    assert!(arena.lease(adopted).is_none());
    assert_eq!(bytes_of(lease.span(0, 0, 5).unwrap()), b"first");
    assert_eq!(bytes_of(arena.lease(next).unwrap().span(0, 0, 5).unwrap()), b"other");
    for forged in [Run { rows: 2, ..other }, Run { first: 2, ..other }, Run { pool: 0, ..other }] {
        assert!(!arena.drop_external(forged));
    }
    assert!(arena.drop_external(other));
}

#[test]
fn adopting_copies_no_tensor() {
    let arena = Arena::new("no-copy", &[], 1).unwrap();
    let mut bytes = Vec::with_capacity(100);
    bytes.extend_from_slice(b"here");
    let address = bytes.as_ptr().addr();
    let run = arena.adopt(External { tensors: vec![bytes], meta: Vec::new() }).unwrap();
    let lease = arena.lease(run).unwrap();
    assert_eq!(lease.span(0, 0, 4).unwrap().as_ptr().addr(), address);
}

#[test]
fn outputs_over_the_limits_are_refused() {
    let arena = Arena::new("limits", &[], 1).unwrap();
    assert_eq!(arena.adopt(external(&[&[][..]; 33])), Err(AdoptError::TooLarge));
    let meta = vec![0; META_BYTES as usize + 1];
    assert_eq!(arena.adopt(External { tensors: Vec::new(), meta }), Err(AdoptError::TooLarge));
    assert!(arena.adopt(external(&[&[][..]; 32])).is_ok(), "what was refused took no entry");
}

#[test]
fn workers_adopt_while_the_data_thread_sends() {
    let arena = Arena::new("threads", &[], 8).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let workers: Vec<_> = (0..2_u8)
        .map(|worker| {
            let (arena, tell) = (arena.clone(), tell.clone());
            thread::spawn(move || {
                for round in 0..500_u32 {
                    let bytes = [&[worker][..], &round.to_le_bytes()].concat();
                    let run = loop {
                        match arena.adopt(external(&[&bytes])) {
                            Ok(run) => break run,
                            Err(AdoptError::Full) => thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    };
                    tell.send((run, bytes)).unwrap();
                }
            })
        })
        .collect();
    drop(tell);
    let mut seen = 0;
    for (run, bytes) in told {
        let lease = arena.lease(run).unwrap();
        assert!(arena.drop_external(run));
        assert_eq!(bytes_of(lease.span(0, 0, 5).unwrap()), bytes);
        seen += 1;
    }
    assert_eq!(seen, 1000);
    for worker in workers {
        worker.join().unwrap();
    }
}
