//! Which slots are free: index only, over storage that the caller lends.
//!
//! Windows with free rows form a list, the one freed into most recently at its front; inside a window a hint names the
//! row freed most recently, and allocation starts at the beginning of the free stretch around it. So a slot that has
//! just been freed is handed out again while it is warm, and a burst of single rows comes out in ascending order.
#![forbid(unsafe_code)]

use core::fmt;

use crate::{EXTERNAL_POOL, PoolLayout, Run};

const NIL: u32 = u32::MAX;
const WORD: usize = 64;
/// Windows in which [`SlotAllocator::alloc_near`] looks first.
const NEARBY: u32 = 8;

/// One entry of the allocator's storage; what it means is the allocator's own affair.
///
/// The first entries are the heads of the pools, in order; each pool's slots follow, one entry a slot. Some fields are
/// used only in the first entry of a window, `free` in as many as its rows need bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotEntry {
    /// Bit `b` of the window's entry `w` says that row `64 w + b` is free.
    free: u64,
    /// A slot's lives. In a pool's head: the index of the pool's first slot entry.
    generation: u32,
    /// First entry of a window: the entry of the next window with free rows. In a pool's head: of the first such.
    next: u32,
    /// First entry of a window: the entry before it in the list, for the first window the pool's head.
    prev: u32,
    /// In a pool's head: free slots. In the first entry of a window: its free rows.
    available: u32,
    /// Rows of the live run that begins here, or 0.
    rows: u16,
    /// First entry of a window: where to look first.
    hint: u16,
}

/// Hands out the slots of a set of pools. Nothing is allocated on the heap, ever.
#[derive(Debug)]
pub struct SlotAllocator<'a> {
    pools: &'a [(u16, PoolLayout)],
    entries: &'a mut [SlotEntry],
}

impl<'a> SlotAllocator<'a> {
    /// Entries of storage that these pools need.
    #[must_use]
    pub fn storage_len(pools: &[(u16, PoolLayout)]) -> usize {
        pools.len() + pools.iter().map(|(_, layout)| layout.slots() as usize).sum::<usize>()
    }

    /// All slots of `pools`, free. `storage` needs [`Self::storage_len`] entries, of any content.
    ///
    /// # Errors
    /// A named [`AllocatorError`] when pool ids do not ascend or are reserved, or the storage is too small.
    pub fn new(
        pools: &'a [(u16, PoolLayout)],
        storage: &'a mut [SlotEntry],
    ) -> Result<SlotAllocator<'a>, AllocatorError> {
        if pools.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(AllocatorError::PoolsNotAscending);
        }
        if pools.last().is_some_and(|last| last.0 >= EXTERNAL_POOL) {
            return Err(AllocatorError::ReservedPool);
        }
        let needed = Self::storage_len(pools);
        if needed >= NIL as usize {
            return Err(AllocatorError::TooManySlots);
        }
        let entries = storage.get_mut(..needed).ok_or(AllocatorError::StorageTooSmall { needed })?;
        entries.fill(SlotEntry { generation: 1, next: NIL, prev: NIL, ..SlotEntry::default() });
        let mut allocator = SlotAllocator { pools, entries };
        let mut base = pools.len() as u32;
        for (position, (_, layout)) in pools.iter().enumerate() {
            allocator.entries[position].generation = base;
            // Pushed last to first, so that the first window is handed out first.
            for window in (0..layout.windows()).rev() {
                let entry = base + window * u32::from(layout.max_batch());
                allocator.set_bits(entry, 0, layout.max_batch(), true);
                allocator.push_front(position, entry);
                allocator.entries[entry as usize].available = u32::from(layout.max_batch());
            }
            allocator.entries[position].available = layout.slots();
            base += layout.slots();
        }
        Ok(allocator)
    }

    /// Takes `rows` consecutive slots of one window, the most recently freed if they fit. A single row costs the same
    /// however many slots there are; more rows may look at each window once.
    #[inline]
    pub fn alloc(&mut self, pool: u16, rows: u16) -> Option<Run> {
        let position = self.position(pool)?;
        let (window, row) = self.pick(position, rows)?;
        Some(self.take(position, window, row, rows))
    }

    /// Takes `rows` consecutive slots of one window at `near` or soon behind it, if there are any, else as [`Self::alloc`] does: so that who
    /// has slots of two pools has few different pairs of them.
    #[inline]
    pub fn alloc_near(&mut self, pool: u16, rows: u16, near: u32) -> Option<Run> {
        let position = self.position(pool)?;
        let (window, row) = self.pick_near(position, rows, near).or_else(|| self.pick(position, rows))?;
        Some(self.take(position, window, row, rows))
    }

    fn take(&mut self, position: usize, window: u32, row: u16, rows: u16) -> Run {
        let run = self.run_at(position, window, row, rows);
        self.set_bits(window, row, rows, false);
        self.entries[window as usize + usize::from(row)].rows = rows;
        self.entries[position].available -= u32::from(rows);
        let head = &mut self.entries[window as usize];
        head.available -= u32::from(rows);
        head.hint = row + rows;
        if head.available == 0 {
            self.unlink(window);
        }
        run
    }

    /// What [`Self::alloc`] would return now, without taking it.
    #[must_use]
    #[inline]
    pub fn peek(&self, pool: u16, rows: u16) -> Option<Run> {
        let position = self.position(pool)?;
        let (window, row) = self.pick(position, rows)?;
        Some(self.run_at(position, window, row, rows))
    }

    /// Takes back exactly what [`Self::alloc`] returned.
    ///
    /// # Errors
    /// [`StaleRun`] when this run is not live, and nothing changes.
    #[inline]
    pub fn free(&mut self, run: Run) -> Result<(), StaleRun> {
        let (position, slot) = self.live(run).ok_or(StaleRun(run))?;
        let max_batch = u32::from(self.pools[position].1.max_batch());
        let row = (run.first % max_batch) as u16;
        let window = slot - u32::from(row);
        let entry = &mut self.entries[slot as usize];
        entry.rows = 0;
        entry.generation = entry.generation.wrapping_add(1);
        self.set_bits(window, row, run.rows, true);
        self.entries[position].available += u32::from(run.rows);
        let head = &mut self.entries[window as usize];
        head.hint = row;
        let was_full = head.available == 0;
        head.available += u32::from(run.rows);
        if !was_full {
            self.unlink(window);
        }
        self.push_front(position, window);
        Ok(())
    }

    /// Takes back all runs that are out, whoever has them, but those that are to be kept. They are as stale as if each had been freed.
    pub fn free_all(&mut self, keep: impl Fn(Run) -> bool) {
        for position in 0..self.pools.len() {
            let (pool, layout) = self.pools[position];
            let base = self.entries[position].generation;
            for first in 0..layout.slots() {
                let SlotEntry { rows, generation, .. } = self.entries[(base + first) as usize];
                let run = Run { pool, rows, first, generation };
                if rows > 0 && !keep(run) {
                    // It is live: its own entry says so.
                    let _ = self.free(run);
                }
            }
        }
    }

    /// Makes two runs of one, each to be freed by itself: its first `rows` rows, and the others.
    ///
    /// # Errors
    /// [`StaleRun`] when this run is not live or has no more rows than that, and nothing changes.
    pub fn split(&mut self, run: Run, rows: u16) -> Result<(Run, Run), StaleRun> {
        let (_, slot) = self.live(run).filter(|_| rows > 0 && rows < run.rows).ok_or(StaleRun(run))?;
        let (second, others) = (slot as usize + usize::from(rows), run.rows - rows);
        self.entries[slot as usize].rows = rows;
        self.entries[second].rows = others;
        let generation = self.entries[second].generation;
        Ok((Run { rows, ..run }, Run { rows: others, first: run.first + u32::from(rows), generation, ..run }))
    }

    /// Whether this very run is allocated now.
    #[must_use]
    pub fn is_live(&self, run: Run) -> bool {
        self.live(run).is_some()
    }

    /// Free slots of a pool; 0 for an unknown one.
    #[must_use]
    #[inline]
    pub fn available(&self, pool: u16) -> u32 {
        self.position(pool).map_or(0, |position| self.entries[position].available)
    }

    /// The shape of a pool.
    #[must_use]
    #[inline]
    pub fn layout(&self, pool: u16) -> Option<&'a PoolLayout> {
        self.position(pool).map(|position| &self.pools[position].1)
    }

    fn position(&self, pool: u16) -> Option<usize> {
        // Ids are usually dense from 0.
        match self.pools.get(usize::from(pool)) {
            Some(&(id, _)) if id == pool => Some(usize::from(pool)),
            _ => self.pools.binary_search_by_key(&pool, |&(id, _)| id).ok(),
        }
    }

    fn live(&self, run: Run) -> Option<(usize, u32)> {
        let position = self.position(run.pool)?;
        if run.rows == 0 || run.first >= self.pools[position].1.slots() {
            return None;
        }
        let slot = self.entries[position].generation + run.first;
        let entry = &self.entries[slot as usize];
        (entry.rows == run.rows && entry.generation == run.generation).then_some((position, slot))
    }

    fn run_at(&self, position: usize, window: u32, row: u16, rows: u16) -> Run {
        let slot = window + u32::from(row);
        Run {
            pool: self.pools[position].0,
            rows,
            first: slot - self.entries[position].generation,
            generation: self.entries[slot as usize].generation,
        }
    }

    /// The window's first entry, and the row in it, where `rows` rows fit.
    fn pick(&self, position: usize, rows: u16) -> Option<(u32, u16)> {
        let max_batch = self.pools[position].1.max_batch();
        if rows == 0 || rows > max_batch {
            return None;
        }
        let mut window = self.entries[position].next;
        while window != NIL {
            let head = &self.entries[window as usize];
            if head.available >= u32::from(rows)
                && let Some(row) = self.fit(window, max_batch, rows)
            {
                return Some((window, row));
            }
            window = head.next;
        }
        None
    }

    /// The same, at a slot or behind it in its window, or in one of the next few windows.
    fn pick_near(&self, position: usize, rows: u16, near: u32) -> Option<(u32, u16)> {
        let layout = &self.pools[position].1;
        let (max_batch, base) = (layout.max_batch(), self.entries[position].generation);
        if rows == 0 || rows > max_batch {
            return None;
        }
        let first = near / u32::from(max_batch);
        let windows = first..layout.windows().min(first.saturating_add(NEARBY));
        windows.into_iter().find_map(|number| {
            let window = base + number * u32::from(max_batch);
            let from = if number == first { (near % u32::from(max_batch)) as u16 } else { 0 };
            let has_room = self.entries[window as usize].available >= u32::from(rows);
            let row = if has_room { self.bits(window, max_batch).first_stretch(from, rows) } else { None };
            row.map(|row| (window, row))
        })
    }

    fn bits(&self, window: u32, max_batch: u16) -> Bits<'_> {
        Bits { entries: &self.entries[window as usize..][..usize::from(max_batch).div_ceil(WORD)] }
    }

    /// The first stretch of `rows` free rows, beginning with the one around the hint.
    fn fit(&self, window: u32, max_batch: u16, rows: u16) -> Option<u16> {
        let bits = self.bits(window, max_batch);
        let hint = self.entries[window as usize].hint;
        let begin = if bits.is_free(hint) { bits.stretch_start(hint) } else { hint };
        bits.first_stretch(begin, rows).or_else(|| bits.first_stretch(0, rows))
    }

    fn set_bits(&mut self, window: u32, row: u16, rows: u16, free: bool) {
        let (mut row, end) = (usize::from(row), usize::from(row) + usize::from(rows));
        while row < end {
            let count = (WORD - row % WORD).min(end - row);
            let mask = (u64::MAX >> (WORD - count)) << (row % WORD);
            let word = &mut self.entries[window as usize + row / WORD].free;
            if free {
                *word |= mask;
            } else {
                *word &= !mask;
            }
            row += count;
        }
    }

    fn push_front(&mut self, position: usize, window: u32) {
        let next = core::mem::replace(&mut self.entries[position].next, window);
        if next != NIL {
            self.entries[next as usize].prev = window;
        }
        let head = &mut self.entries[window as usize];
        head.next = next;
        head.prev = position as u32;
    }

    fn unlink(&mut self, window: u32) {
        let SlotEntry { next, prev, .. } = self.entries[window as usize];
        self.entries[prev as usize].next = next;
        if next != NIL {
            self.entries[next as usize].prev = prev;
        }
    }
}

/// The free rows of one window. Bits past its last row are never set.
struct Bits<'a> {
    entries: &'a [SlotEntry],
}

impl Bits<'_> {
    fn is_free(&self, row: u16) -> bool {
        let row = usize::from(row);
        self.entries.get(row / WORD).is_some_and(|entry| entry.free >> (row % WORD) & 1 == 1)
    }

    fn first_stretch(&self, from: u16, rows: u16) -> Option<u16> {
        let mut begin = self.next(from, true)?;
        loop {
            let end = self.next(begin, false).unwrap_or((self.entries.len() * WORD) as u16);
            if end - begin >= rows {
                return Some(begin);
            }
            begin = self.next(end, true)?;
        }
    }

    /// The first row from `from` on that is free, or taken.
    fn next(&self, from: u16, free: bool) -> Option<u16> {
        let first = usize::from(from) / WORD;
        let mut mask = u64::MAX << (usize::from(from) % WORD);
        for (index, entry) in self.entries.iter().enumerate().skip(first) {
            let word = if free { entry.free } else { !entry.free } & mask;
            if word != 0 {
                return Some((index * WORD) as u16 + word.trailing_zeros() as u16);
            }
            mask = u64::MAX;
        }
        None
    }

    /// The first row of the free stretch that `row` belongs to.
    fn stretch_start(&self, row: u16) -> u16 {
        let last = usize::from(row) / WORD;
        let mut mask = u64::MAX >> (WORD - 1 - usize::from(row) % WORD);
        for index in (0..=last).rev() {
            let taken = !self.entries[index].free & mask;
            if taken != 0 {
                return ((index + 1) * WORD - taken.leading_zeros() as usize) as u16;
            }
            mask = u64::MAX;
        }
        0
    }
}

/// A run that is not allocated: freed before, or never handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleRun(pub Run);

impl fmt::Display for StaleRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots from {} of pool {} are not allocated in this life", self.0.rows, self.0.first, self.0.pool)
    }
}

impl core::error::Error for StaleRun {}

/// Why an allocator cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocatorError {
    /// Pool ids must ascend, each once.
    PoolsNotAscending,
    /// The two highest pool ids have meanings of their own.
    ReservedPool,
    /// All slots and pools together are numbered with 32 bits.
    TooManySlots,
    /// The lent storage is too small.
    StorageTooSmall {
        /// Entries needed.
        needed: usize,
    },
}

impl fmt::Display for AllocatorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocatorError::PoolsNotAscending => f.write_str("pool ids do not ascend"),
            AllocatorError::ReservedPool => f.write_str("a pool id is reserved"),
            AllocatorError::TooManySlots => f.write_str("the pools together have more than 2^32 - 2 slots"),
            AllocatorError::StorageTooSmall { needed } => write!(f, "the allocator needs storage for {needed} entries"),
        }
    }
}

impl core::error::Error for AllocatorError {}
