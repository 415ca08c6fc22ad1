//! Copies on a stream, one by one and many at once.

use std::ptr;

use cudarc::driver::sys::{self, CUdeviceptr, CUmemLocation, CUmemcpyAttributes, CUmemcpySrcAccessOrder};

use crate::error::Error;
use crate::range::{DeviceRange, HostRange, RangeError, same_length};
use crate::stream::Stream;

impl Stream {
    /// Copies from the host to the device. Where the host's memory is not registered, the call may wait for the copy,
    /// or for all that was submitted before.
    ///
    /// # Errors
    /// [`RangeError::Lengths`]; [`Error::OtherDevice`]; the driver's, also those of earlier work.
    ///
    /// # Safety
    /// The contract of [`Stream`].
    pub unsafe fn copy_to_device(&self, to: DeviceRange<'_>, from: HostRange<'_>) -> Result<(), Error> {
        const WHAT: &str = "cannot copy to a device";
        same_length(from.len(), to.len())?;
        self.same_device(to.memory().context(), WHAT)?;
        self.context().make_current()?;
        // SAFETY: both ranges were checked to be inside their memories, which the caller keeps until the copy is done.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.address(), from.as_mut_ptr().cast_const().cast(), from.len(), self.raw())
        };
        self.context().check(result, WHAT)
    }

    /// Copies from the device to the host. Where the host's memory is not registered, the call may wait for the copy,
    /// or for all that was submitted before.
    ///
    /// # Errors
    /// [`RangeError::Lengths`]; [`Error::OtherDevice`]; the driver's, also those of earlier work.
    ///
    /// # Safety
    /// The contract of [`Stream`].
    pub unsafe fn copy_to_host(&self, to: HostRange<'_>, from: DeviceRange<'_>) -> Result<(), Error> {
        const WHAT: &str = "cannot copy from a device";
        same_length(from.len(), to.len())?;
        self.same_device(from.memory().context(), WHAT)?;
        self.context().make_current()?;
        // SAFETY: as in `copy_to_device`.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from.address(), from.len(), self.raw()) };
        self.context().check(result, WHAT)
    }

    /// Copies inside the device. The ranges do not overlap, or what is in them then is anyone's guess.
    ///
    /// # Errors
    /// [`RangeError::Lengths`]; [`Error::OtherDevice`]; the driver's, also those of earlier work.
    ///
    /// # Safety
    /// The contract of [`Stream`].
    pub unsafe fn copy_on_device(&self, to: DeviceRange<'_>, from: DeviceRange<'_>) -> Result<(), Error> {
        const WHAT: &str = "cannot copy inside a device";
        same_length(from.len(), to.len())?;
        self.same_device(to.memory().context(), WHAT)?;
        self.same_device(from.memory().context(), WHAT)?;
        self.context().make_current()?;
        // SAFETY: as in `copy_to_device`.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to.address(), from.address(), from.len(), self.raw()) };
        self.context().check(result, WHAT)
    }

    /// As [`Stream::copy_on_device`], from an address of the device that is another library's.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; the driver's, also those of earlier work.
    ///
    /// # Safety
    /// The contract of [`Stream`], and as many bytes as the target has are at the address.
    pub unsafe fn copy_from_address(&self, to: DeviceRange<'_>, from: u64) -> Result<(), Error> {
        const WHAT: &str = "cannot copy inside a device";
        self.same_device(to.memory().context(), WHAT)?;
        self.context().make_current()?;
        // SAFETY: as in `copy_to_device`; the caller answers for the source.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to.address(), from, to.len(), self.raw()) };
        self.context().check(result, WHAT)
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; the driver's, also those of earlier work.
    ///
    /// # Safety
    /// The contract of [`Stream`].
    pub unsafe fn fill(&self, range: DeviceRange<'_>, value: u8) -> Result<(), Error> {
        const WHAT: &str = "cannot fill device memory";
        self.same_device(range.memory().context(), WHAT)?;
        self.context().make_current()?;
        // SAFETY: as in `copy_to_device`.
        let result = unsafe { sys::cuMemsetD8Async(range.address(), value, range.len(), self.raw()) };
        self.context().check(result, WHAT)
    }

    /// Copies to the device and waits until that, and all that was submitted before, is done. For start-up and tests.
    ///
    /// # Errors
    /// As [`Stream::copy_to_device`], and those of the work.
    pub fn upload(&self, to: DeviceRange<'_>, from: &[u8]) -> Result<(), Error> {
        // SAFETY: the bytes are borrowed beyond the end of the copy, and a copy to the device does not write them.
        let from = unsafe { HostRange::new(from.as_ptr().cast_mut(), from.len()) };
        // SAFETY: both sides are borrowed until the stream has passed the copy.
        let copied = unsafe { self.copy_to_device(to, from) };
        self.finish(copied)
    }

    /// Copies from the device and waits until that, and all that was submitted before, is done. For start-up and tests.
    ///
    /// # Errors
    /// As [`Stream::copy_to_host`], and those of the work.
    pub fn download(&self, to: &mut [u8], from: DeviceRange<'_>) -> Result<(), Error> {
        // SAFETY: the bytes are borrowed, exclusively, beyond the end of the copy.
        let to = unsafe { HostRange::new(to.as_mut_ptr(), to.len()) };
        // SAFETY: both sides are borrowed until the stream has passed the copy.
        let copied = unsafe { self.copy_to_host(to, from) };
        self.finish(copied)
    }

    /// Waits for a copy of borrowed memory, whether or not it seems to have been submitted.
    fn finish(&self, copied: Result<(), Error>) -> Result<(), Error> {
        let done = self.synchronize();
        copied.and(done)
    }

    /// Submits all copies of a batch at once; they may be carried out in any order and beside each other, after all
    /// that was submitted before and before all that is submitted later. The batch can be submitted again, or cleared.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the driver has no such call, in which case they are to be submitted one by one
    /// ([`Driver::batched_copies`](crate::Driver::batched_copies)); [`Error::OtherDevice`]; the driver's, also those of
    /// earlier work.
    ///
    /// # Safety
    /// The contract of [`Stream`], for all ranges that were put into the batch: they no longer hold their memories.
    pub unsafe fn copy_batch(&self, batch: &mut CopyBatch) -> Result<(), Error> {
        const WHAT: &str = "cannot copy in a batch";
        let Some(function) = self.context().batch() else {
            return Err(Error::Unsupported { what: WHAT, needs: "a driver of CUDA 12.8 or later" });
        };
        let count = batch.sizes.len();
        if count == 0 {
            return Ok(());
        }
        self.context().make_current()?;
        // In the order of the stream; where the memories are, the driver knows.
        let anywhere = CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
        let mut attributes = CUmemcpyAttributes {
            srcAccessOrder: CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: anywhere,
            dstLocHint: anywhere,
            flags: sys::CUmemcpyFlags::CU_MEMCPY_FLAG_DEFAULT as u32,
        };
        let mut first = 0_usize;
        let mut failed = usize::MAX;
        // SAFETY: the three arrays have `count` entries each, the one attribute begins to hold at copy 0, and all of it
        // outlives the call; the ranges were checked when they were put in, and the caller keeps their memories until
        // the copies are done.
        let result = unsafe {
            (function.0)(
                batch.to.as_mut_ptr(),
                batch.from.as_mut_ptr(),
                batch.sizes.as_mut_ptr(),
                count,
                ptr::from_mut(&mut attributes),
                &raw mut first,
                1,
                &raw mut failed,
                self.raw(),
            )
        };
        self.context().check(result, WHAT)
    }
}

/// Copies to be submitted at once: see [`Stream::copy_batch`]. Filled and cleared again and again, it allocates only
/// when it holds more than ever before.
#[derive(Debug, Default)]
pub struct CopyBatch {
    to: Vec<CUdeviceptr>,
    from: Vec<CUdeviceptr>,
    sizes: Vec<usize>,
}

impl CopyBatch {
    /// Room for so many copies.
    #[must_use]
    pub fn with_capacity(copies: usize) -> CopyBatch {
        CopyBatch {
            to: Vec::with_capacity(copies),
            from: Vec::with_capacity(copies),
            sizes: Vec::with_capacity(copies),
        }
    }

    /// Adds a copy from the host to the device. Empty ones are left out.
    ///
    /// # Errors
    /// [`RangeError::Lengths`].
    pub fn to_device(&mut self, to: DeviceRange<'_>, from: HostRange<'_>) -> Result<(), RangeError> {
        same_length(from.len(), to.len())?;
        self.push(to.address(), from.as_mut_ptr() as CUdeviceptr, to.len());
        Ok(())
    }

    /// Adds a copy from the device to the host. Empty ones are left out.
    ///
    /// # Errors
    /// [`RangeError::Lengths`].
    pub fn to_host(&mut self, to: HostRange<'_>, from: DeviceRange<'_>) -> Result<(), RangeError> {
        same_length(from.len(), to.len())?;
        self.push(to.as_mut_ptr() as CUdeviceptr, from.address(), to.len());
        Ok(())
    }

    /// Adds a copy inside the device. Empty ones are left out.
    ///
    /// # Errors
    /// [`RangeError::Lengths`].
    pub fn on_device(&mut self, to: DeviceRange<'_>, from: DeviceRange<'_>) -> Result<(), RangeError> {
        same_length(from.len(), to.len())?;
        self.push(to.address(), from.address(), to.len());
        Ok(())
    }

    /// Copies in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Empties it, keeping its room.
    pub fn clear(&mut self) {
        self.to.clear();
        self.from.clear();
        self.sizes.clear();
    }

    /// The driver refuses a copy of no bytes.
    fn push(&mut self, to: CUdeviceptr, from: CUdeviceptr, len: usize) {
        if len > 0 {
            self.to.push(to);
            self.from.push(from);
            self.sizes.push(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_keeps_its_room_and_leaves_out_what_is_empty() {
        let mut batch = CopyBatch::with_capacity(2);
        batch.push(16, 32, 8);
        batch.push(64, 96, 0);
        batch.push(64, 96, 4);
        assert_eq!((batch.len(), batch.to.as_slice(), batch.from.as_slice()), (2, &[16, 64][..], &[32, 96][..]));
        let room = batch.sizes.capacity();
        batch.clear();
        assert!(batch.is_empty());
        assert_eq!(batch.sizes.capacity(), room);
    }
}
