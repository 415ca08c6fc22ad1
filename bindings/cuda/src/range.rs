//! Bytes of device and host memory that were checked once to be there.

use std::fmt;
use std::marker::PhantomData;

use crate::context::Context;
use crate::memory::DeviceMemory;

/// Bytes that are not inside a memory, or not as many as are on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// They end behind the memory.
    #[error("{len} bytes at {offset} are not inside a memory of {size} bytes")]
    Outside {
        /// Where they begin.
        offset: usize,
        /// How many.
        len: usize,
        /// Bytes of the memory.
        size: usize,
    },
    /// They do not begin at a multiple of what it takes.
    #[error("offset or length ({offset}, {len}) is not a multiple of {alignment} bytes")]
    Unaligned {
        /// Where they begin.
        offset: usize,
        /// How many.
        len: usize,
        /// What it takes.
        alignment: usize,
    },
    /// The two sides of a copy differ.
    #[error("a copy of {from} bytes to a place of {to}")]
    Lengths {
        /// Bytes of the source.
        from: usize,
        /// Bytes of the target.
        to: usize,
    },
}

/// Bytes of a [`DeviceMemory`], which cannot be dropped as long as they are named.
///
/// ```compile_fail,E0505
/// fn early(memory: splitrpc_cuda::DeviceMemory) -> usize {
///     let range = memory.range(0, 1).unwrap();
///     drop(memory);
///     range.len()
/// }
/// ```
#[derive(Clone, Copy)]
pub struct DeviceRange<'a> {
    memory: &'a DeviceMemory,
    offset: usize,
    len: usize,
}

impl<'a> DeviceRange<'a> {
    pub(crate) fn new(memory: &'a DeviceMemory, offset: usize, len: usize) -> Result<DeviceRange<'a>, RangeError> {
        inside(offset, len, memory.len())?;
        Ok(DeviceRange { memory, offset, len })
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &'a DeviceMemory {
        self.memory
    }

    /// Where it begins in its memory, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it names nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<DeviceRange<'a>, RangeError> {
        inside(offset, len, self.len)?;
        Ok(DeviceRange { memory: self.memory, offset: self.offset + offset, len })
    }

    /// The address of its first byte on the device, for a kernel.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.address() + self.offset as u64
    }
}

impl fmt::Debug for DeviceRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceRange").field("offset", &self.offset).field("len", &self.len).finish_non_exhaustive()
    }
}

/// Bytes of host memory for a copy. Copies run beside other work only where the memory is
/// [registered](crate::HostRegistration); other memory the driver copies through its own.
#[derive(Clone, Copy)]
pub struct HostRange<'a> {
    base: *mut u8,
    len: usize,
    memory: PhantomData<&'a ()>,
}

// SAFETY: an address and a length; what accesses the memory is unsafe, and its caller answers for it.
unsafe impl Send for HostRange<'_> {}
// SAFETY: as above.
unsafe impl Sync for HostRange<'_> {}

impl<'a> HostRange<'a> {
    /// Names `len` bytes from `base` on. For registered memory see
    /// [`HostRegistration::range`](crate::HostRegistration::range), which checks.
    ///
    /// # Safety
    /// The bytes are mapped for `'a`, writable if they are to be written.
    #[must_use]
    pub unsafe fn new(base: *mut u8, len: usize) -> HostRange<'a> {
        HostRange { base, len, memory: PhantomData }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it names nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<HostRange<'a>, RangeError> {
        inside(offset, len, self.len)?;
        Ok(HostRange { base: self.base.wrapping_add(offset), len, memory: PhantomData })
    }

    /// The address of its first byte for the CPU.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.base
    }
}

impl fmt::Debug for HostRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostRange").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Four aligned bytes that a stream can wait for or write.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    context: &'a Context,
    address: u64,
}

impl<'a> Word<'a> {
    /// Bytes of a word, and its alignment.
    pub const BYTES: usize = 4;

    /// The word at `offset` of a memory of `size` bytes that begins, aligned, at `base` on the device.
    pub(crate) fn new(context: &'a Context, base: u64, offset: usize, size: usize) -> Result<Word<'a>, RangeError> {
        inside(offset, Word::BYTES, size)?;
        let address = base + offset as u64;
        if !address.is_multiple_of(Word::BYTES as u64) {
            return Err(RangeError::Unaligned { offset, len: Word::BYTES, alignment: Word::BYTES });
        }
        Ok(Word { context, address })
    }

    pub(crate) fn context(&self) -> &'a Context {
        self.context
    }

    /// Its address on the device, for a kernel.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl fmt::Debug for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Word").finish_non_exhaustive()
    }
}

/// Refuses bytes that are not all inside `size`.
pub(crate) fn inside(offset: usize, len: usize, size: usize) -> Result<(), RangeError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(RangeError::Outside { offset, len, size }),
    }
}

/// Refuses a copy between ranges of different lengths.
pub(crate) fn same_length(from: usize, to: usize) -> Result<(), RangeError> {
    if from == to { Ok(()) } else { Err(RangeError::Lengths { from, to }) }
}

/// `len` rounded up to a multiple of `granularity`, a power of two; `None` beyond what can be addressed.
pub(crate) fn round_up(len: usize, granularity: usize) -> Option<usize> {
    debug_assert!(granularity.is_power_of_two());
    Some(len.checked_add(granularity - 1)? & !(granularity - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_that_are_all_there_are_inside() {
        assert_eq!(inside(0, 16, 16), Ok(()));
        assert_eq!(inside(16, 0, 16), Ok(()));
        assert_eq!(inside(9, 8, 16), Err(RangeError::Outside { offset: 9, len: 8, size: 16 }));
        assert!(inside(17, 0, 16).is_err());
        assert!(inside(usize::MAX, 2, 16).is_err());
    }

    #[test]
    fn sizes_are_rounded_up_to_whole_pages_of_the_device() {
        const MIB: usize = 1 << 20;
        assert_eq!(round_up(0, 2 * MIB), Some(0));
        assert_eq!(round_up(1, 2 * MIB), Some(2 * MIB));
        assert_eq!(round_up(2 * MIB, 2 * MIB), Some(2 * MIB));
        assert_eq!(round_up(2 * MIB + 1, 2 * MIB), Some(4 * MIB));
        assert_eq!(round_up(usize::MAX, 2 * MIB), None);
    }

    #[test]
    fn slices_of_host_memory_stay_inside() {
        let mut memory = [0_u8; 16];
        // SAFETY: the array outlives the range, and nothing accesses it through the range.
        let range = unsafe { HostRange::new(memory.as_mut_ptr(), memory.len()) };
        let part = range.slice(4, 12).unwrap();
        assert_eq!(part.as_mut_ptr(), range.as_mut_ptr().wrapping_add(4));
        assert_eq!(part.slice(12, 0).unwrap().len(), 0);
        assert!(part.slice(4, 9).is_err());
        assert!(range.slice(usize::MAX, 1).is_err());
    }

    #[test]
    fn a_refused_range_says_what_does_not_fit() {
        let outside = RangeError::Outside { offset: 9, len: 8, size: 16 };
        assert_eq!(outside.to_string(), "8 bytes at 9 are not inside a memory of 16 bytes");
        let lengths = same_length(3, 4).unwrap_err();
        assert_eq!(lengths.to_string(), "a copy of 3 bytes to a place of 4");
    }
}
