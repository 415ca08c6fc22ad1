//! Memory of a GPU, as a card that stands in for one gets at it.
//!
//! A card would write it over PCIe, by what the GPU's driver tells the card's. This one cannot: the process that is the card maps the same memory by
//! the handle that CUDA has for processes, and its copies are CUDA's. For that the memory has to have been made so that other processes may map it. The
//! program gives what it would give for a card, a dma-buf's descriptor or an address; the handle is found by the address.

use std::ffi::CStr;
use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use splitrpc_cuda::{DeviceMemory, Driver, FoundMemory, Stream};

use super::OutOfReach;
use crate::settings;

/// Bytes that are moved at once.
const THROUGH: usize = 256 << 10;

/// What of a GPU an address range of this process names.
pub(super) struct Named {
    found: FoundMemory,
    /// Where the range begins in it.
    pub(super) offset: u64,
}

impl Named {
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.found.descriptor.as_fd()
    }

    /// Bytes of the whole.
    pub(super) fn bytes(&self) -> u64 {
        self.found.len as u64
    }

    pub(super) fn device(&self) -> u64 {
        place_of(&self.found.pci_id)
    }
}

/// Why a range that is a GPU's cannot be had.
pub(super) struct NotShared;

/// What of a GPU these bytes are; `None` where they are none of one that this process uses.
pub(super) fn find(address: usize, len: usize) -> Result<Option<Named>, NotShared> {
    let Some(driver) = driver_in_use() else { return Ok(None) };
    let found = driver.find_memory(address as u64).map_err(|error| tell(&error))?;
    let Some(found) = found else { return Ok(None) };
    let offset = address as u64 - found.address;
    let inside = (offset as usize).checked_add(len).is_some_and(|end| end <= found.len);
    if inside {
        Ok(Some(Named { found, offset }))
    } else {
        Err(tell(&"the range is larger than what the GPU has there"))
    }
}

/// Whether a descriptor is a dma-buf's of so many bytes at least.
pub(super) fn is_dma_buf(file: BorrowedFd<'_>, end: usize) -> bool {
    use std::os::fd::AsRawFd;
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let named = name.is_ok_and(|name| name.to_string_lossy().starts_with("/dmabuf"));
    let size = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0));
    named && size.is_ok_and(|size| size >= end as u64)
}

/// A GPU's memory that another process has, mapped here.
pub(super) struct Mapped {
    memory: DeviceMemory,
    offset: usize,
    /// Copies go by here, one after the other.
    way: Mutex<(Stream, Box<[u8]>)>,
}

impl Mapped {
    /// Maps an allocation of so many bytes of the GPU at that place.
    pub(super) fn new(descriptor: &OwnedFd, device: u64, bytes: u64, offset: u64) -> Option<Mapped> {
        let driver = driver().map_err(|why| tell(&why)).ok()?;
        let device = driver.devices().iter().find(|known| place_of(&known.pci_id) == device);
        let Some(device) = device else {
            tell(&"the host's GPU is none that this process sees");
            return None;
        };
        let map = || {
            let context = driver.context(device)?;
            let memory = DeviceMemory::import(&context, descriptor.as_fd(), bytes as usize)?;
            let way = Mutex::new((Stream::new(&context)?, vec![0; THROUGH].into()));
            Ok::<_, splitrpc_cuda::Error>(Mapped { memory, offset: offset as usize, way })
        };
        map().map_err(|error| tell(&error)).ok()
    }

    /// Copies bytes from there, which `to` takes piece by piece. Pieces are given where they begin.
    pub(super) fn read(
        &self,
        at: usize,
        len: usize,
        mut to: impl FnMut(usize, &[u8]) -> Result<(), OutOfReach>,
    ) -> Result<(), OutOfReach> {
        let (stream, through) = &mut *self.way.lock().unwrap_or_else(PoisonError::into_inner);
        for done in (0..len).step_by(THROUGH) {
            let part = &mut through[..THROUGH.min(len - done)];
            let from = self.memory.range(self.offset + at + done, part.len()).map_err(|_| OutOfReach)?;
            stream.download(part, from).map_err(|error| failed(&error))?;
            to(done, part)?;
        }
        Ok(())
    }

    /// Copies bytes there, which `from` gives piece by piece. They are there when this returns, for whatever the GPU does from then on.
    pub(super) fn write(
        &self,
        at: usize,
        len: usize,
        mut from: impl FnMut(usize, &mut [u8]) -> Result<(), OutOfReach>,
    ) -> Result<(), OutOfReach> {
        let (stream, through) = &mut *self.way.lock().unwrap_or_else(PoisonError::into_inner);
        for done in (0..len).step_by(THROUGH) {
            let part = &mut through[..THROUGH.min(len - done)];
            from(done, part)?;
            let to = self.memory.range(self.offset + at + done, part.len()).map_err(|_| OutOfReach)?;
            stream.upload(to, part).map_err(|error| failed(&error))?;
        }
        Ok(())
    }
}

/// The driver, loaded when it is first needed.
fn driver() -> Result<&'static Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(|| Driver::load().map_err(|error| error.to_string())).as_ref().map_err(Clone::clone)
}

/// The driver, if this process has loaded it: else none of its memory can be a GPU's.
fn driver_in_use() -> Option<&'static Driver> {
    const NAME: &CStr = c"libcuda.so.1";
    // SAFETY: it is only asked for, and not loaded; what is had of it is never used.
    let loaded = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if loaded.is_null() {
        return None;
    }
    // SAFETY: had just above, given back once.
    let _ = unsafe { libc::dlclose(loaded) };
    driver().ok()
}

/// A place on the PCI bus as a number, 0 for what is none.
fn place_of(pci_id: &str) -> u64 {
    let parts = pci_id.split([':', '.']).map(|part| u64::from_str_radix(part, 16).unwrap_or(0));
    parts.fold(0, |place, part| place << 16 | part & 0xffff)
}

/// Says what CUDA said, which no code of DOCA's does.
fn tell(why: &dyn Display) -> NotShared {
    settings::tell(&format!("GPU memory: {why}"));
    NotShared
}

fn failed(why: &dyn Display) -> OutOfReach {
    tell(why);
    OutOfReach
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_the_bus_differ() {
        let places = ["0000:03:00.0", "0000:03:00.1", "0001:03:00.0", "0000:c3:00.0"].map(place_of);
        assert!(places.iter().enumerate().all(|(at, place)| !places[..at].contains(place)), "{places:?}");
        assert_eq!(place_of("0000:C3:00.0"), place_of("0000:c3:00.0"));
    }

    #[test]
    fn memory_of_the_host_and_files_are_no_gpus() {
        let bytes = vec![0_u8; 4096];
        assert!(matches!(find(bytes.as_ptr().addr(), bytes.len()), Ok(None)));
        let file = std::fs::File::open("/dev/zero").unwrap();
        assert!(!is_dma_buf(file.as_fd(), 1));
    }
}
