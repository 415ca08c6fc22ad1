//! A model's kernel that stays on the device and computes one batch after the other, as the CPU rings for them.
//!
//! A launch takes calls of the driver and the device's time to begin; to a kernel that is there already, a batch is some stores of the CPU's. It
//! looks at a page of the host's memory over the bus, where the CPU says which batch is next and where its tensors are, and where
//! it says itself which one it has done. What the kernel does for that is in `host-agent/include/splitrpc/persistent.cuh`.
//!
//! It holds a place on the device, and some calls of the driver wait for it; so its owner stops it when nothing comes, and it ends by itself
//! when that goes quiet.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use splitrpc_cuda::Launch;

use crate::arena::GpuArena;
use crate::error::GpuError;
use crate::kernel::{Kernel, Operand};
use crate::lane::{Buffer, Lane, filled};
use crate::pages::{Pages, Words};

/// Values that a batch can come with.
pub const MAX_VALUES: usize = ENTRIES - 1;
/// What the CPU says of a batch: the rows, and the values. As many as a warp has threads, so that one look reads all.
const ENTRIES: usize = 32;
/// Bytes of device memory in which one block tells the others what it has read, and they each other that they are done.
const RELAY_BYTES: usize = 1024;
/// Where in it they count those that are.
const ARRIVED_AT: u64 = 512;
/// The number before the first: they go round soon, so that every process has seen that they can.
const BEFORE_FIRST: u32 = u32::MAX - 100;
/// The kernel ends when it was told nothing for so long: then the CPU is stopped, or gone.
const LIMIT: Duration = Duration::from_millis(50);
/// After a batch that is not older than this the kernel is still there.
const SURE: Duration = Duration::from_millis(8);

/// What both sides read and write, on lines of their own.
#[repr(C, align(4096))]
struct Page {
    /// In each entry the lower and the upper half of a value, each below the number of the batch that it is of: so it does not matter in
    /// which order they are seen. The first entry has the rows.
    told: [[AtomicU64; 2]; ENTRIES],
    _apart: [u64; 64],
    /// The batch that was computed last, by the kernel.
    done: AtomicU32,
}

const _: () = assert!(std::mem::offset_of!(Page, done) == 1024);

/// The kernel's one parameter: `splitrpc::Doorbell`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Doorbell {
    page: u64,
    relay: u64,
    limit_ns: u64,
    /// The number of the first batch that it waits for.
    first: u32,
    /// Values of a batch.
    values: u32,
}

// SAFETY: the device writes `done` and nothing else of it.
unsafe impl Words for Page {}

impl Page {
    fn new() -> Page {
        Page {
            told: [const { [const { AtomicU64::new(0) }; 2] }; ENTRIES],
            _apart: [0; 64],
            done: AtomicU32::new(BEFORE_FIRST),
        }
    }
}

/// A model's kernel that stays on the device, and the batch that it computes.
pub struct Persistent {
    lane: Lane,
    page: Arc<Pages<Page>>,
    /// The lane's buffer for the kernel's own affairs.
    relay: usize,
    launch: Launch,
    values: u32,
    /// The last number that was used, and that of the batch which was rung for last.
    number: u32,
    rung: u32,
    /// The kernel was launched and not told to end.
    running: bool,
    /// It has ended before it had computed the batch, and was launched again for it.
    again: bool,
    /// Some of its blocks may have said that they are done, and others not.
    unclean: bool,
    /// Nobody wants the batch any more.
    abandoned: bool,
    /// When it was rung for.
    last: Instant,
}

impl Persistent {
    /// Bytes of device memory that each takes, beside those of the kernel's buffers.
    pub const DEVICE_BYTES: u64 = RELAY_BYTES as u64;

    /// For batches of the slots of an arena, with so many values each. Operands may name these buffers.
    ///
    /// # Errors
    /// [`GpuError::Arguments`] for a kernel with other parameters than one `splitrpc::Doorbell`, or for more than [`MAX_VALUES`]; the
    /// driver's.
    pub fn new(
        arena: &GpuArena,
        priority: i32,
        mut buffers: Vec<Buffer>,
        kernel: Kernel,
        launch: Launch,
        values: usize,
    ) -> Result<Persistent, GpuError> {
        Persistent::check_kernel(&kernel)?;
        let context = arena.context();
        let relay = buffers.len();
        // Nothing that it says first is of a later number than the first.
        let mut untold = [0; RELAY_BYTES];
        [4, 12].iter().for_each(|at| untold[*at..at + 4].copy_from_slice(&BEFORE_FIRST.to_le_bytes()));
        buffers.push(filled(context, &untold)?);
        let page = Pages::new(context, Page::new())?;
        let lane = Lane::new(arena, priority, buffers, vec![kernel])?.with_pages(page.clone());
        Ok(Persistent {
            lane,
            page,
            relay,
            launch,
            values: u32::try_from(values).ok().filter(|_| values <= MAX_VALUES).ok_or(GpuError::NoBuffer)?,
            number: BEFORE_FIRST,
            rung: BEFORE_FIRST,
            running: false,
            again: false,
            unclean: false,
            abandoned: false,
            last: Instant::now(),
        })
    }

    /// Refuses a kernel whose parameters are others than one `splitrpc::Doorbell`.
    ///
    /// # Errors
    /// [`GpuError::Arguments`].
    pub fn check_kernel(kernel: &Kernel) -> Result<(), GpuError> {
        kernel.check_bytes([size_of::<Doorbell>()].into_iter())
    }

    /// Has the kernel compute a batch of so many rows, with these values. The one before has to be done.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; [`GpuError::NoBuffer`], also for another number of values than it was made for; the driver's.
    pub fn ring(&mut self, rows: u32, operands: &[Operand]) -> Result<(), GpuError> {
        if operands.len() != self.values as usize || !self.is_done() {
            return Err(GpuError::NoBuffer);
        }
        let work = self.lane.work();
        let mut values = [u64::from(rows); ENTRIES];
        for (value, operand) in values[1..].iter_mut().zip(operands) {
            *value = work.value(operand)?;
        }
        let now = Instant::now();
        let stays = self.running && now.saturating_duration_since(self.last) < SURE;
        if !stays {
            // One that is about to end by itself may not see it. The next one begins when it has ended.
            self.stop();
        }
        self.number = self.number.wrapping_add(1);
        (self.rung, self.again, self.abandoned, self.last) = (self.number, false, false, now);
        self.tell(&values);
        if stays {
            return Ok(());
        }
        // Where it cannot be launched nobody will do it.
        self.start().inspect_err(|_| self.pass_over())
    }

    /// The batch counts as done.
    fn pass_over(&mut self) {
        self.number = self.number.wrapping_add(1);
        self.page.done.store(self.rung, Ordering::Release);
    }

    /// The kernel waits for the number that was rung for.
    fn start(&mut self) -> Result<(), GpuError> {
        let relay = Operand::Buffer { buffer: self.relay, at: 0, bytes: RELAY_BYTES as u64 };
        if std::mem::take(&mut self.unclean) {
            self.lane.work().clear(self.relay, ARRIVED_AT, 4)?;
        }
        let doorbell = Doorbell {
            page: self.page.address(),
            relay: self.lane.work().value(&relay)?,
            limit_ns: LIMIT.as_nanos() as u64,
            first: self.rung,
            values: self.values,
        };
        // SAFETY: the kernel was checked to take one parameter of this size. It accesses the page, of which it writes `done`, the relay, and what the
        // values name, all of which the lane and `self` hold until it has ended; what it does with them is its own: it is trusted as the
        // program is, which `Kernel` says.
        unsafe { self.lane.work().run_with(0, self.launch, &doorbell) }?;
        self.running = true;
        Ok(())
    }

    /// Has the kernel end. The batch that was rung for last is done, or nobody's any more: if the kernel has yet to see it, it does not compute it.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            // It waits for the next number, and ends when it sees a later one.
            self.number = self.number.wrapping_add(2);
            self.put(0, 0);
        }
    }

    /// Has the kernel end even where some of its blocks wait for others that have left. The batch counts as done once it has.
    pub fn abandon(&mut self) {
        self.stop();
        self.abandoned = true;
    }

    fn tell(&self, values: &[u64; ENTRIES]) {
        for (place, value) in values.iter().enumerate().take(1 + self.values as usize).rev() {
            self.put(place, *value);
        }
    }

    fn put(&self, place: usize, value: u64) {
        let number = u64::from(self.number) << 32;
        let [low, high] = &self.page.told[place];
        // What the CPU has written, or has seen written, is there for who sees either.
        low.store(number | value & u64::from(u32::MAX), Ordering::Release);
        high.store(number | value >> 32, Ordering::Release);
    }

    /// Whether the batch that was rung for last is computed; or there was none. What the kernel has written can be seen then.
    #[must_use]
    #[inline]
    pub fn is_done(&self) -> bool {
        self.page.done.load(Ordering::Acquire) == self.rung
    }

    /// Whether the kernel has ended, for which this waits for a while.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.lane.ends()
    }

    /// Whether the kernel was launched and not told to end.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Fails where the device does. Where the kernel has ended before it saw the batch, because this thread was stopped for long, it is launched again
    /// for that, once.
    ///
    /// # Errors
    /// [`GpuError::Ended`]; the driver's.
    pub fn check(&mut self) -> Result<(), GpuError> {
        if !self.lane.is_done().inspect_err(|_| self.running = false)? {
            return Ok(());
        }
        if std::mem::take(&mut self.running) {
            // Its blocks have heard that there is a number beyond that for which they waited.
            self.number = self.number.wrapping_add(2);
        }
        if self.is_done() {
            return Ok(());
        }
        self.unclean = true;
        if self.abandoned || std::mem::replace(&mut self.again, true) {
            self.pass_over();
            return if self.abandoned { Ok(()) } else { Err(GpuError::Ended) };
        }
        self.rung = self.number;
        let halves = self.page.told.each_ref().map(|halves| halves.each_ref().map(|h| h.load(Ordering::Relaxed)));
        let low = u64::from(u32::MAX);
        self.tell(&halves.map(|[a, b]| a & low | b << 32));
        self.last = Instant::now();
        self.start().inspect_err(|_| self.pass_over())
    }
}

impl fmt::Debug for Persistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Persistent { number, rung, running, .. } = self;
        f.debug_struct("Persistent").field("number", number).field("rung", rung).field("running", running).finish()
    }
}

impl Drop for Persistent {
    fn drop(&mut self) {
        // The lane waits for it, and keeps all that it uses where it does not end.
        self.stop();
    }
}
