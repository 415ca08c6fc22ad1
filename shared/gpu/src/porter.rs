//! A kernel that stays on the device and carries bytes between slots and their twins as soon as the CPU says so.
//!
//! To the CPU an order is a store, where a copy engine or a launch takes calls of the driver, which after a request has gone through
//! the caches cost a microsecond or two each. The kernel looks for orders over the bus all the time, so it only stays while
//! they follow each other closely: its owner starts and stops it, and it ends by itself when that goes quiet.

mod kernel;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use splitrpc_arena::Run;
use splitrpc_cuda::{Launch, Module};

use crate::arena::GpuArena;
use crate::copies::Direction;
use crate::error::GpuError;
use crate::kernel::{Kernel, Operand};
use crate::lane::{Lane, filled};
use crate::pages::{Pages, Words};

/// Orders that are not known to be done, at most.
const ORDERS: u64 = 512;
/// Bytes of an order, at most: what one block has under way over the bus at once.
const PIECE: u32 = 32 << 10;
/// Blocks, each of which takes every so manieth order. One more looks for orders and hands them on: that many looked over the bus at once made each
/// look take ten times as long.
const WORKERS: u32 = 15;
const THREADS: u32 = 512;
/// Pools that orders can name, at most.
const POOLS: usize = 256;
/// Where in its pool an order can begin, less than this.
const REACH: u64 = 1 << 40;
/// The kernel ends when it has seen no order for so long, in cycles of the device: then the CPU is stopped, or gone. No device has more than three
/// of them in a nanosecond, so it takes longer than [`SURE`]; at low clocks it may take a tenth of a second.
const LIMIT_CYCLES: u64 = 40_000_000;
/// After an order that is not older than this the kernel is still there.
const SURE: Duration = Duration::from_millis(8);

/// What the CPU writes: the orders, of 16 bytes each; and what the kernel writes: the number of the order in each place that was done
/// last.
#[repr(C, align(4096))]
struct Ring {
    orders: [[AtomicU64; 2]; ORDERS as usize],
    done: [AtomicU32; ORDERS as usize],
}

const DONE_AT: u64 = std::mem::offset_of!(Ring, done) as u64;
/// Bytes of device memory for handing orders on: a word by which workers are told to end, and on a line of their own the orders.
const RELAY_BYTES: usize = 128 + 16 * ORDERS as usize;
/// Orders of so many bytes that come alone are carried out at once by the block that looks for them.
const SMALL: u32 = 8 << 10;
/// What an order is, in its second half, beside the length in its 16 low bits and the pool in the next eight.
const OUT: u64 = 1 << 24;
const STOP: u64 = 1 << 25;

// SAFETY: the device writes `done` and nothing else of it.
unsafe impl Words for Ring {}

impl Ring {
    fn new() -> Ring {
        Ring {
            orders: [const { [const { AtomicU64::new(0) }; 2] }; ORDERS as usize],
            done: [const { AtomicU32::new(0) }; ORDERS as usize],
        }
    }
}

/// The kernel, its orders, and what they may name: pools of slots.
pub struct Porter {
    lane: Lane,
    ring: Arc<Pages<Ring>>,
    /// The pools' places in the kernel's table.
    pools: Box<[u16]>,
    /// Orders given, and how many of the first of them are done.
    given: u64,
    done: u64,
    /// The kernel was launched and not told to stop.
    running: bool,
    /// How often it was launched.
    epoch: u32,
    /// The order that shows that it is there: the first of its launch, which carries nothing.
    arrival: u64,
    /// The order to stop, of the last launch.
    stop: Option<u64>,
    last: Instant,
}

impl Porter {
    /// For orders about these pools.
    ///
    /// # Errors
    /// [`GpuError::NoPool`], also for more pools than orders can name; the driver's.
    pub fn new(arena: &GpuArena, pools: &[u16]) -> Result<Porter, GpuError> {
        let context = arena.context();
        if let Some(pool) = pools.get(POOLS) {
            return Err(GpuError::NoPool(*pool));
        }
        let mut table = Vec::new();
        for &pool in pools {
            let (host, device) = arena.bases(pool).ok_or(GpuError::NoPool(pool))?;
            table.extend([host.to_le_bytes(), device.to_le_bytes()].concat());
        }
        table.resize(POOLS * 16, 0);
        let module = Module::from_ptx(context, &kernel::ptx())?;
        let kernels = vec![Kernel::new(&module, "porter")?];
        let buffers = vec![filled(context, &table)?, filled(context, &[0; RELAY_BYTES])?];
        // It is to be there before kernels that fill the device.
        let priority = context.stream_priorities()?.greatest;
        let ring = Pages::new(context, Ring::new())?;
        let lane = Lane::new(arena, priority, buffers, kernels)?.with_pages(ring.clone());
        Ok(Porter {
            lane,
            ring,
            pools: pools.into(),
            given: 0,
            done: 0,
            running: false,
            epoch: 0,
            arrival: 0,
            stop: None,
            last: Instant::now(),
        })
    }

    /// The pools that orders may be about.
    #[must_use]
    pub fn pools(&self) -> &[u16] {
        &self.pools
    }

    /// Launches the kernel, unless that was done not long ago. Returns whether it was or is: while one that was told to stop has not
    /// ended it is not.
    ///
    /// # Errors
    /// As [`Porter::check`]; the driver's.
    pub fn start(&mut self) -> Result<bool, GpuError> {
        if self.running && self.last.elapsed() < SURE {
            return Ok(true);
        }
        self.stop();
        self.check()?;
        if !self.lane.is_done()? {
            return Ok(false);
        }
        // One that ended by itself has not seen the order to stop.
        (self.done, self.stop) = (self.given, None);
        let last = Instant::now();
        self.launch()?;
        (self.running, self.last) = (true, last);
        self.put(0, 0);
        self.arrival = self.given;
        Ok(true)
    }

    /// Launches the kernel for the orders behind those that are done.
    fn launch(&mut self) -> Result<(), GpuError> {
        self.epoch = self.epoch.wrapping_add(1).max(1);
        let operands = [
            Operand::Long(self.ring.address()),
            Operand::Buffer { buffer: 0, at: 0, bytes: (POOLS * 16) as u64 },
            Operand::Buffer { buffer: 1, at: 0, bytes: RELAY_BYTES as u64 },
            Operand::Word(self.done as u32),
            Operand::Word(self.epoch),
            Operand::Long(LIMIT_CYCLES),
        ];
        let launch = Launch { grid: [WORKERS + 1, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        self.lane.work().run(0, launch, &operands)
    }

    /// Has the kernel end. Orders given before are carried out.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            // There is always a place for it.
            self.put(0, STOP);
            self.stop = Some(self.given);
        }
    }

    /// Puts an order into the next place.
    fn put(&mut self, first: u64, second: u64) {
        self.given += 1;
        let number = self.given as u32;
        let order = &self.ring.orders[(self.given % ORDERS) as usize];
        // Each half says by its number which order it is of, so it does not matter which is seen first.
        order[0].store(first | u64::from(number & 0xffff) << 48, Ordering::Release);
        order[1].store(second | u64::from(number) << 32, Ordering::Release);
    }

    /// Whether the kernel is there to carry out orders: it has said so, and was told something not long ago.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running && self.last.elapsed() < SURE && (self.done >= self.arrival || self.is_done(self.arrival))
    }

    /// How long ago the last order was given, or the kernel started.
    #[must_use]
    pub fn idle_for(&self) -> Option<Duration> {
        self.running.then(|| self.last.elapsed())
    }

    /// Orders bytes of a run's tensor to be carried. Returns the number of the last order that it took, or `None` where there is no
    /// room for so many, or the kernel is not [running](Porter::is_running).
    ///
    /// # Errors
    /// [`GpuError::NoSlots`].
    pub fn order(
        &mut self,
        direction: Direction,
        run: Run,
        tensor: u16,
        offset: u32,
        len: u32,
    ) -> Result<Option<u64>, GpuError> {
        let place = self.lane.arena().offset(run, tensor, offset, len).ok_or(GpuError::NoSlots)?;
        let pool = self.pools.iter().position(|known| *known == run.pool).ok_or(GpuError::NoSlots)?;
        let end = place.checked_add(len.into()).filter(|end| *end <= REACH).ok_or(GpuError::NoSlots)?;
        let pieces = u64::from(len.div_ceil(PIECE));
        self.settle();
        // Before the orders: one that is given after the kernel has ended then counts as of a time at which it was there.
        let now = Instant::now();
        if !self.is_running() {
            return Ok(None);
        }
        // One place is for the order to stop.
        if self.given - self.done + pieces >= ORDERS {
            return Ok(None);
        }
        let way = (pool as u64) << 16 | if direction == Direction::Out { OUT } else { 0 };
        for at in (place..end).step_by(PIECE as usize) {
            let len = (end - at).min(PIECE.into());
            self.put(at, len | way);
        }
        self.last = now;
        Ok(Some(self.given))
    }

    /// Looks what is done. Returns whether that is more than it was.
    pub fn progress(&mut self) -> bool {
        let before = self.done;
        self.settle();
        self.done > before
    }

    /// Whether all orders up to this number are done. What they have carried can be seen then.
    pub fn are_done(&mut self, number: u64) -> bool {
        self.settle();
        number <= self.done
    }

    fn settle(&mut self) {
        while self.done < self.given && self.is_done(self.done + 1) {
            self.done += 1;
        }
    }

    fn is_done(&self, number: u64) -> bool {
        self.ring.done[(number % ORDERS) as usize].load(Ordering::Acquire) == number as u32
    }

    /// Fails where the device does. Where the kernel has ended, because this thread was stopped for long, before it saw all orders, it is launched
    /// again for those that it has not seen: they are still there, and none of them is with a worker, since those finish what they were handed.
    ///
    /// # Errors
    /// The driver's.
    pub fn check(&mut self) -> Result<(), GpuError> {
        if !self.lane.is_done()? {
            return Ok(());
        }
        self.settle();
        let unseen = u64::from(self.stop.is_some_and(|stop| stop > self.done));
        if self.given - self.done > unseen { self.launch() } else { Ok(()) }
    }
}

impl fmt::Debug for Porter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Porter").field("given", &self.given).field("done", &self.done).finish_non_exhaustive()
    }
}

impl Drop for Porter {
    fn drop(&mut self) {
        // The lane waits for it, and keeps all that it uses where it does not end.
        self.stop();
    }
}
