//! Parts of files that lie in this process.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

/// A mapped part of a file, which whoever else has the file may write to at any time.
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
    /// Bytes of the first page before `start`.
    lead: usize,
}

// SAFETY: it is memory, which belongs to no thread; what is read and written there is so by atomics or by copies of bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the pages that hold `len` bytes of a file from `offset` on, and no others.
    pub(crate) fn of(file: BorrowedFd<'_>, offset: u64, len: usize, writable: bool) -> io::Result<Mapping> {
        let lead = (offset % page_size() as u64) as usize;
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let all = len.checked_add(lead).ok_or(rustix::io::Errno::OVERFLOW)?;
        // SAFETY: it is mapped wherever there is room.
        let pages = unsafe { mmap(null_mut(), all, protection, MapFlags::SHARED, file, offset - lead as u64) }?;
        Ok(Mapping { start: pages.cast::<u8>().wrapping_add(lead), len, lead })
    }

    /// Where `len` bytes from `offset` on lie.
    ///
    /// # Panics
    /// When they are not all inside.
    pub(crate) fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "{len} bytes at {offset} of {}", self.len);
        self.start.wrapping_add(offset)
    }

    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        let word = self.pointer(offset, size_of::<AtomicU64>()).cast::<AtomicU64>();
        assert!(word.is_aligned(), "a word at {offset}");
        // SAFETY: it lies inside, aligned, and everybody reads and writes it as an atomic.
        unsafe { &*word }
    }

    pub(crate) fn half_word(&self, offset: usize) -> &AtomicU32 {
        let word = self.pointer(offset, size_of::<AtomicU32>()).cast::<AtomicU32>();
        assert!(word.is_aligned(), "a half word at {offset}");
        // SAFETY: as in `word`.
        unsafe { &*word }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let pages = self.start.wrapping_sub(self.lead).cast();
        // SAFETY: these are the pages that were mapped, and nothing refers to them any more. It fails for no such pages.
        let _ = unsafe { munmap(pages, self.len + self.lead) };
    }
}

/// A new file in memory, whose size never changes.
pub(crate) fn sealed_file(name: &str, len: usize) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, len as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Whether these bytes of a file stay: one that becomes shorter would end whoever has it mapped.
pub(crate) fn keeps(file: BorrowedFd<'_>, end: u64) -> bool {
    let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    sealed
        && fstat(file).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size as u64 >= end
        })
}
