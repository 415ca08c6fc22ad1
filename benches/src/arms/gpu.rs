//! Models on a GPU without splitrpc's server: the model alone, and the device side of the bundled way.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context as _;
use bytes::Bytes;
use splitrpc_arena::{Arena, PoolLayout, Run};
use splitrpc_cuda::{Driver, Event, MemoryOptions, PinnedBuffer};
use splitrpc_gpu::{GpuArena, Lane};
use splitrpc_wire::path::{Link, Memory, Mover};
use splitrpc_wire::{Path, Stage};

use super::{ClientOptions, Workload, null_response};
use crate::load::connection::{Connection, Fault, Step};

/// The pools of requests and of answers, in each of which there is one slot.
const INPUT: Run = Run { pool: 0, rows: 1, first: 0, generation: 0 };
const OUTPUT: Run = Run { pool: 1, rows: 1, first: 0, generation: 0 };

/// A model on the first GPU, which takes one request at a time.
pub(super) struct Device {
    lane: Lane,
    begun: Event,
    filled: Event,
}

impl Device {
    /// The model, with room for requests of this size.
    pub(super) fn open(workload: Workload, request_bytes: u32, response_bytes: u32) -> anyhow::Result<Device> {
        let driver = Driver::load()?;
        let context = driver.context(driver.devices().first().context("there is no GPU")?)?;
        let layout = |bytes: u32| PoolLayout::new(&[bytes.max(1)], 1, 1);
        let pools = [(INPUT.pool, layout(request_bytes)?), (OUTPUT.pool, layout(response_bytes)?)];
        let host = Arena::new("local", &pools, 0)?;
        let arena = GpuArena::new(&context, &host, &[INPUT.pool, OUTPUT.pool], &[], MemoryOptions::default())?;
        let lane = Lane::new(&arena, context.stream_priorities()?.least, Vec::new(), Vec::new())?;
        match workload {
            // Its answer is always the same and lies there already, as it does at splitrpc's.
            Workload::Null | Workload::NullGpu => {
                lane.exchange(&[(OUTPUT, 0, &null_response(response_bytes))], |_| Ok(()), &mut [])?;
            }
        }
        Ok(Device { lane, begun: Event::timed(&context)?, filled: Event::timed(&context)? })
    }

    /// Pinned memory for those who keep requests and answers there.
    pub(super) fn pinned(&self, len: usize) -> anyhow::Result<PinnedBuffer> {
        Ok(PinnedBuffer::new(self.lane.arena().context(), len.max(1))?)
    }

    /// Computes, and waits for the answer.
    pub(super) fn infer(&self, request: &[u8], answer: &mut [u8]) -> io::Result<()> {
        let outputs = &mut [(OUTPUT, 0, answer)];
        self.lane.exchange(&[(INPUT, 0, request)], |_| Ok(()), outputs).map_err(io::Error::other)
    }

    /// Copies a request to the device and waits for that. Returns nanoseconds of the copy by the device's clock.
    fn fill(&self, request: &[u8]) -> io::Result<u64> {
        let filled = || {
            self.lane.mark(&self.begun)?;
            self.lane.exchange(&[(INPUT, 0, request)], |_| self.lane.mark(&self.filled), &mut [])?;
            Ok::<_, splitrpc_gpu::GpuError>(self.filled.elapsed_since(&self.begun)?)
        };
        Ok(filled().map_err(io::Error::other)?.map_or(0, |time| time.as_nanos() as u64))
    }
}

/// A model in the client's own process, or no more than the copy of a request.
pub(crate) struct Local {
    device: Device,
    computes: bool,
    request: PinnedBuffer,
    answer: PinnedBuffer,
    expected: Bytes,
    path: Path,
    /// Something that can be waited for, and is always ready.
    file: File,
}

impl Local {
    /// Opens the device.
    pub(crate) fn new(options: &ClientOptions, computes: bool) -> anyhow::Result<Local> {
        let ClientOptions { request, expected, workload, .. } = options;
        let device = Device::open(*workload, request.len() as u32, expected.len() as u32)?;
        let mut pinned = device.pinned(request.len())?;
        pinned.copy_from_slice(request);
        let path = Path {
            mover: Mover::GpuCopy,
            memory: Memory::Cuda,
            link: Link::InProcess,
            batch_rows: 1,
            payload_bytes: request.len() as u32,
            ..Path::default()
        };
        let answer = device.pinned(expected.len())?;
        let expected = expected.clone();
        Ok(Local { device, computes, request: pinned, answer, expected, path, file: File::open("/dev/zero")? })
    }
}

impl Connection for Local {
    fn begin(&mut self) -> io::Result<()> {
        let Local { device, computes, request, answer, path, .. } = self;
        if *computes {
            return device.infer(request, answer);
        }
        path.set_stage(Stage::CopyIn, device.fill(request)?);
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        Ok(Step::Done)
    }

    fn check(&self) -> Result<(), Fault> {
        let right = !self.computes || self.answer[..] == self.expected[..];
        if right { Ok(()) } else { Err(Fault::WrongBytes) }
    }

    fn path(&self) -> Option<Path> {
        Some(self.path)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }
}
