//! Host memory that a device reads and writes in place.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;

use cudarc::driver::sys;

use crate::context::Context;
use crate::error::Error;
use crate::range::{HostRange, RangeError, Word, inside};

/// Host memory that is mapped already and that devices may access from now on: by copies that run beside other work,
/// and in place by kernels. Its pages stay where they are until it is dropped.
pub struct HostRegistration {
    context: Context,
    base: NonNull<u8>,
    len: usize,
    address: u64,
}

// SAFETY: a registration is of the process, not of a thread; the memory is accessed through unsafe calls only.
unsafe impl Send for HostRegistration {}
// SAFETY: as above.
unsafe impl Sync for HostRegistration {}

impl HostRegistration {
    /// Registers `len` bytes from `base` on, of whichever kind (private memory, or a file's such as a memfd's), for
    /// every device of the process. The kernel locks the pages, which takes a while for each and counts against nothing
    /// but the machine's memory.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::Invalid`] for no bytes; the driver's, for instance when part of the range is
    /// registered already, or is not writable.
    ///
    /// # Safety
    /// The range stays mapped, readable and writable, to the same pages, until the registration is dropped, and is
    /// dropped by whoever maps it only afterwards. Devices may write it, so it is accessed only as memory which others
    /// may write: no reference to its bytes exists while work that writes them is submitted.
    pub unsafe fn new(context: &Context, base: NonNull<u8>, len: usize) -> Result<HostRegistration, Error> {
        const WHAT: &str = "cannot register host memory";
        if !context.device().host_register {
            return Err(Error::Unsupported {
                what: WHAT,
                needs: "a device that takes host memory which is mapped already",
            });
        }
        if len == 0 {
            return Err(Error::Invalid { what: WHAT, why: "there are no bytes".to_owned() });
        }
        context.make_current()?;
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the caller promises that the range is mapped, and stays so until this is undone by the drop.
        let result = unsafe { sys::cuMemHostRegister_v2(base.as_ptr().cast::<c_void>(), len, flags) };
        context.check(result, WHAT)?;
        let mut registration = HostRegistration { context: context.clone(), base, len, address: 0 };
        // SAFETY: the memory is registered, and the place for the address outlives the call.
        let result = unsafe {
            sys::cuMemHostGetDevicePointer_v2(&raw mut registration.address, base.as_ptr().cast::<c_void>(), 0)
        };
        context.check(result, "cannot ask for the device's address of host memory")?;
        Ok(registration)
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The address of its first byte on the device, for a kernel.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The address of its first byte for the CPU; the same where
    /// [`DeviceInfo::registered_pointer_usable`](crate::DeviceInfo::registered_pointer_usable).
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// `len` bytes from `offset` on, for a copy.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    pub fn range(&self, offset: usize, len: usize) -> Result<HostRange<'_>, RangeError> {
        inside(offset, len, self.len)?;
        // SAFETY: just checked to be inside memory that whoever registered it keeps mapped as long as `self` is there.
        Ok(unsafe { HostRange::new(self.base.as_ptr().wrapping_add(offset), len) })
    }

    /// The four bytes at `offset`, for a stream to wait for or write. The CPU accesses them as an atomic, or not at
    /// all.
    ///
    /// # Errors
    /// [`RangeError`] when they are not all inside, or not aligned.
    pub fn word(&self, offset: usize) -> Result<Word<'_>, RangeError> {
        Word::new(&self.context, self.address, offset, self.len)
    }
}

impl fmt::Debug for HostRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostRegistration").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for HostRegistration {
    fn drop(&mut self) {
        if self.context.make_current_to_free() {
            // SAFETY: the range was registered by this, and is taken back once.
            let _ = unsafe { sys::cuMemHostUnregister(self.base.as_ptr().cast::<c_void>()) };
        }
    }
}
