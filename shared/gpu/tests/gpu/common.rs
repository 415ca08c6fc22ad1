//! The device under test, and an arena on it.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use splitrpc_arena::{Arena, PoolLayout, Run};
use splitrpc_cuda::{Context, Driver, MemoryOptions};
use splitrpc_gpu::{GpuArena, Lane};

/// The pool of slots: windows of four, with a large and a small tensor.
pub(crate) const SLOTS: u16 = 0;
/// The pool of frames.
pub(crate) const FRAMES: u16 = 1;
pub(crate) const LARGE: u32 = 602_112;
pub(crate) const SMALL: u32 = 1_000;
pub(crate) const FRAME: u32 = 8_256;

pub(crate) struct Gpu {
    pub(crate) context: Context,
    pub(crate) host: Arena,
    pub(crate) arena: GpuArena,
    _turn: MutexGuard<'static, ()>,
}

impl Gpu {
    pub(crate) fn lane(&self) -> Lane {
        Lane::new(&self.arena, 0, Vec::new(), Vec::new()).expect("a lane")
    }

    /// Fills a tensor of a run on the host.
    pub(crate) fn write(&self, run: Run, tensor: u16, offset: u32, bytes: &[u8]) {
        let span = self.host.span(run, tensor, offset, bytes.len() as u32).expect("bytes of the arena");
        assert_eq!(span.copy_from(bytes), bytes.len());
    }

    /// What is there on the host.
    pub(crate) fn read(&self, run: Run, tensor: u16, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.host.span(run, tensor, 0, len).expect("bytes of the arena").copy_to(&mut bytes);
        bytes
    }

    /// What is there on the device, by way of the host's side.
    pub(crate) fn fetch(&self, run: Run, tensor: u16, len: u32) -> Vec<u8> {
        self.write(run, tensor, 0, &vec![0xee; len as usize]);
        let lane = self.lane();
        lane.work().copy_out(run, tensor, 0, len).expect("a copy out");
        lane.finish().expect("the copy");
        self.read(run, tensor, len)
    }
}

pub(crate) fn run(pool: u16, first: u32, rows: u16) -> Run {
    Run { pool, rows, first, generation: 0 }
}

/// The device with a fresh arena, for one test at a time, or `None` after a line that says why there is none.
pub(crate) fn gpu() -> Option<Gpu> {
    static TURN: Mutex<()> = Mutex::new(());
    static SAID: Once = Once::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let driver = match Driver::load() {
        Ok(driver) => driver,
        Err(why) => {
            assert!(std::env::var_os("SPLITRPC_TESTS_REQUIRE_GPU").is_none(), "no GPU: {why}");
            // Not kept by the test harness.
            SAID.call_once(|| drop(writeln!(std::io::stderr(), "skipped: no GPU: {why}")));
            return None;
        }
    };
    let context = driver.context(&driver.devices()[0]).expect("the device's context");
    let slots = PoolLayout::new(&[LARGE, SMALL], 4, 2).expect("a layout");
    let frames = PoolLayout::new(&[FRAME], 512, 1).expect("a layout");
    let host = Arena::new("gpu-test", &[(SLOTS, slots), (FRAMES, frames)], 0).expect("an arena");
    let options = MemoryOptions { exportable: true, ..MemoryOptions::default() };
    let arena = GpuArena::new(&context, &host, &[SLOTS], &[FRAMES], options).expect("an arena on the device");
    Some(Gpu { context, host, arena, _turn: turn })
}

/// `len` bytes that differ from those of another seed.
pub(crate) fn pattern(seed: u32, len: u32) -> Vec<u8> {
    (0..len).map(|index| (index.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(97)) >> 13) as u8).collect()
}
