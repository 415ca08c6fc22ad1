//! One anonymous file, mapped shared, of a size that nobody can change any more.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// Gains from huge pages begin where there is at least one.
const HUGE_PAGE: usize = 2 << 20;

pub(super) struct Map {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access goes through spans, which use atomic
// operations only, or through the unsafe `Span::as_slice`, whose caller answers for exclusion.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// `len` zero bytes that take memory only once touched.
    pub(super) fn new(name: &str, len: usize) -> io::Result<Map> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, len as u64)?;
        // Whoever gets the descriptor could otherwise truncate the file, and a touch of it would kill the process.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing; `len` is the file's size.
        let base =
            unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        if len >= HUGE_PAGE {
            // SAFETY: the range is the mapping made above; the advice changes no content. That the kernel may lack huge
            // pages is no error.
            let _ = unsafe { madvise(base.as_ptr().cast::<c_void>(), len, Advice::LinuxHugepage) };
        }
        Ok(Map { base, len, file })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this map's own, and every span borrows from what owns the map, so none is left.
        let _ = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}
