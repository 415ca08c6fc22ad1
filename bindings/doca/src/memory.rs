//! Memory that a device may reach: this machine's, shown to the other side or not, and what the other side shows.
#![expect(unsafe_code, reason = "calls of DOCA")]

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use doca_sys::{doca_access_flag, doca_mmap};
use splitrpc_arena::{Arena, Extent};

use crate::device::{Device, not_null, told};
use crate::error::{Code, Error, check};
use crate::library::Library;

/// Who may do what with memory beside the program that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// This side's device.
    Local,
    /// The other side's device reads it, too.
    OtherReads,
    /// The other side's device reads and writes it, too.
    OtherWrites,
}

/// Memory that is registered with a device. Clones are the same.
#[derive(Clone)]
pub struct Memory {
    inner: Rc<Inner>,
}

struct Inner {
    mmap: NonNull<doca_mmap>,
    base: *mut u8,
    len: usize,
    device: Device,
    /// What keeps the memory; nothing, where it is the other side's.
    _kept: Option<Box<dyn Any>>,
}

impl Memory {
    /// All of an arena, which stays for as long as this.
    ///
    /// # Errors
    /// Those of DOCA; [`Code::NOT_PERMITTED`] also where the limit of locked memory is too low.
    pub fn of_arena(device: &Device, arena: &Arena, access: Access) -> Result<Memory, Error> {
        let whole = arena.whole();
        Memory::of_range(device, (whole.as_mut_ptr(), whole.len()), None, Box::new(arena.clone()), access)
    }

    /// All of a device's memory, which stays for as long as this. With a dma-buf's descriptor, of just this memory, DOCA takes it by that; without
    /// one by its address, for which the kernel needs a module that knows such addresses (`nvidia-peermem`).
    ///
    /// # Errors
    /// Those of DOCA.
    pub fn of_device(
        device: &Device,
        extent: &Extent,
        dma_buf: Option<OwnedFd>,
        access: Access,
    ) -> Result<Memory, Error> {
        let base = ptr::with_exposed_provenance_mut(extent.address());
        Memory::of_range(device, (base, extent.len()), dma_buf, Box::new(extent.clone()), access)
    }

    /// A range that `kept` keeps, which it has to do.
    fn of_range(
        device: &Device,
        (base, len): (*mut u8, usize),
        dma_buf: Option<OwnedFd>,
        kept: Box<dyn Any>,
        access: Access,
    ) -> Result<Memory, Error> {
        let doca = device.library().doca();
        let mut mmap = ptr::null_mut();
        // SAFETY: what is written to lives through the call.
        check("doca_mmap_create", unsafe { (doca.doca_mmap_create)(&raw mut mmap) })?;
        let mmap = not_null("doca_mmap_create", mmap)?;
        let file = dma_buf.as_ref().map(AsRawFd::as_raw_fd);
        // From here on it is given back whatever happens.
        let kept: Option<Box<dyn Any>> = Some(Box::new((kept, dma_buf)));
        let memory = Memory { inner: Rc::new(Inner { mmap, base, len, device: device.clone(), _kept: kept }) };
        let mmap = mmap.as_ptr();
        // SAFETY: the mmap was just made, and the device is open and stays so.
        check("doca_mmap_add_dev", unsafe { (doca.doca_mmap_add_dev)(mmap, device.as_ptr()) })?;
        // SAFETY: it was just made.
        check("doca_mmap_set_permissions", unsafe { (doca.doca_mmap_set_permissions)(mmap, access.mask()) })?;
        let address = base.cast::<c_void>();
        match file {
            // SAFETY: the memory lives as long as `memory`, and so does its descriptor; its bytes are such that a device may write them at any time.
            Some(file) => check("doca_mmap_set_dmabuf_memrange", unsafe {
                (doca.doca_mmap_set_dmabuf_memrange)(mmap, file, address, 0, len)
            })?,
            // SAFETY: as above.
            None => check("doca_mmap_set_memrange", unsafe { (doca.doca_mmap_set_memrange)(mmap, address, len) })?,
        }
        // SAFETY: all that it needs was said.
        check("doca_mmap_start", unsafe { (doca.doca_mmap_start)(mmap) })?;
        Ok(memory)
    }

    /// What the other side exported.
    ///
    /// # Errors
    /// Those of DOCA, for a description that is none.
    pub fn import(device: &Device, description: &[u8]) -> Result<Memory, Error> {
        let doca = device.library().doca();
        let (mut mmap, mut base, mut len) = (ptr::null_mut(), ptr::null_mut(), 0);
        // SAFETY: the description is read during the call only, the device is open, and what is written to lives through the call.
        let answer = unsafe {
            let (bytes, count) = (description.as_ptr().cast::<c_void>(), description.len());
            (doca.doca_mmap_create_from_export)(ptr::null(), bytes, count, device.as_ptr(), &raw mut mmap)
        };
        check("doca_mmap_create_from_export", answer)?;
        let mmap = not_null("doca_mmap_create_from_export", mmap)?;
        // SAFETY: it was just made, and what is written to lives through the call.
        let answer = unsafe { (doca.doca_mmap_get_memrange)(mmap.as_ptr(), &raw mut base, &raw mut len) };
        let base = base.cast();
        let memory = Memory { inner: Rc::new(Inner { mmap, base, len, device: device.clone(), _kept: None }) };
        check("doca_mmap_get_memrange", answer)?;
        Ok(memory)
    }

    /// What the other side needs to reach it. It can until this memory goes.
    ///
    /// # Errors
    /// Those of DOCA: [`Code::NOT_PERMITTED`] for [`Access::Local`].
    pub fn export(&self) -> Result<Vec<u8>, Error> {
        let doca = self.library().doca();
        let (mut description, mut len) = (ptr::null(), 0);
        // SAFETY: mmap and device are there, and what is written to lives through the call.
        let answer = unsafe {
            (doca.doca_mmap_export_pci)(self.as_ptr(), self.inner.device.as_ptr(), &raw mut description, &raw mut len)
        };
        check("doca_mmap_export_pci", answer)?;
        if description.is_null() {
            return Err(Error::refused("doca_mmap_export_pci", Code::UNEXPECTED, "it succeeded and made nothing"));
        }
        // SAFETY: DOCA wrote so many bytes there, which stay as they are for as long as the mmap is started.
        Ok(unsafe { std::slice::from_raw_parts(description.cast::<u8>(), len) }.to_vec())
    }

    /// Bytes of it.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is no empty memory")]
    pub fn len(&self) -> usize {
        self.inner.len
    }

    pub(crate) fn library(&self) -> &Library {
        self.inner.device.library()
    }

    pub(crate) fn as_ptr(&self) -> *mut doca_mmap {
        self.inner.mmap.as_ptr()
    }

    /// Where `len` bytes at `offset` are, as the side sees it that has them.
    pub(crate) fn address(&self, offset: usize, len: usize) -> Option<*mut c_void> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.inner.len);
        fits.then(|| self.inner.base.wrapping_add(offset).cast())
    }
}

impl Access {
    fn mask(self) -> u32 {
        let other = match self {
            Access::Local => doca_access_flag(0),
            Access::OtherReads => doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_ONLY,
            Access::OtherWrites => doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_WRITE,
        };
        doca_access_flag::DOCA_ACCESS_FLAG_LOCAL_READ_WRITE.0 | other.0
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.inner.len).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made once, given back once, which stops it; all that uses it holds it.
        let answer = unsafe { (self.device.library().doca().doca_mmap_destroy)(self.mmap.as_ptr()) };
        told(check("doca_mmap_destroy", answer));
    }
}
