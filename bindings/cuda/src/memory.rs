//! Memory of a device, which can be handed to other processes and to network cards.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use cudarc::driver::sys::{self, CUmemAllocationHandleType, CUmemAllocationProp, CUmemLocation};

use crate::context::Context;
use crate::error::Error;
use crate::range::{DeviceRange, RangeError, Word, inside, round_up};

pub(crate) const DESCRIPTOR: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

/// What memory is to be good for beyond kernels and copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Other processes shall map it: [`DeviceMemory::export`].
    pub exportable: bool,
    /// Network cards shall write it: [`DeviceMemory::dma_buf`].
    pub rdma: bool,
}

/// Memory of one device, readable and writable by it, with an address that does not change. Not zeroed, and of no use
/// to the CPU: what is in it is reached through copies and kernels only.
///
/// Dropping it gives it back at once, whatever still uses it; see [`Stream`](crate::Stream).
pub struct DeviceMemory {
    context: Context,
    address: u64,
    len: usize,
    /// What the address refers to.
    allocation: Allocation,
    exportable: bool,
}

impl DeviceMemory {
    /// At least `len` bytes, rounded up to what the device gives at once (2 MiB on most).
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device cannot do what the options ask for; [`Error::Invalid`] for no bytes, or
    /// more than can be addressed; the driver's, for instance when the memory is used up.
    pub fn new(context: &Context, len: usize, options: MemoryOptions) -> Result<DeviceMemory, Error> {
        const WHAT: &str = "cannot allocate device memory";
        supported(context, WHAT, options)?;
        let properties = properties(context, options);
        let len = rounded(context, &properties, len, WHAT)?;
        context.make_current()?;
        let mut handle = 0;
        // SAFETY: the properties are complete, the length is a multiple of the granularity, and both places outlive the
        // call.
        let result = unsafe { sys::cuMemCreate(&raw mut handle, len, &raw const properties, 0) };
        context.check(result, WHAT)?;
        let allocation = Allocation { context: context.clone(), handle };
        DeviceMemory::map(allocation, len, options.exportable)
    }

    /// Maps memory that another process, or this one, has exported. `len` is what [`DeviceMemory::len`] says there. The
    /// memory lives until the last process that maps it lets go.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::Invalid`] for a length that no exported memory has; the driver's, for instance
    /// when the descriptor is none of device memory or the memory is smaller.
    pub fn import(context: &Context, descriptor: BorrowedFd<'_>, len: usize) -> Result<DeviceMemory, Error> {
        const WHAT: &str = "cannot import device memory";
        let options = MemoryOptions { exportable: true, rdma: false };
        supported(context, WHAT, options)?;
        let rounded_len = rounded(context, &properties(context, options), len, WHAT)?;
        if rounded_len != len {
            let why =
                format!("{len} bytes are not the length of exported memory, which the device gives in larger parts");
            return Err(Error::Invalid { what: WHAT, why });
        }
        context.make_current()?;
        let mut handle = 0;
        // The driver takes the number itself in the place of an address, and 0 for none. A copy has a number past those of
        // standard input, output and error.
        let failed = |error| Error::Invalid { what: WHAT, why: format!("its descriptor cannot be copied: {error}") };
        let copy = descriptor.try_clone_to_owned().map_err(failed)?;
        let number = ptr::without_provenance_mut::<c_void>(copy.as_raw_fd() as usize);
        // SAFETY: the descriptor is open during the call, which does not close it, and the place outlives the call.
        let result = unsafe { sys::cuMemImportFromShareableHandle(&raw mut handle, number, DESCRIPTOR) };
        context.check(result, WHAT)?;
        let allocation = Allocation { context: context.clone(), handle };
        DeviceMemory::map(allocation, len, true)
    }

    /// Gives an allocation an address. `len` is a multiple of the granularity.
    fn map(allocation: Allocation, len: usize, exportable: bool) -> Result<DeviceMemory, Error> {
        let context = allocation.context.clone();
        let reservation = Reservation::new(&context, len)?;
        // SAFETY: the range was reserved just now, and nothing is mapped there. That the allocation is as large, the
        // driver checks.
        let result = unsafe { sys::cuMemMap(reservation.address, len, 0, allocation.handle, 0) };
        context.check(result, "cannot map device memory")?;
        let address = reservation.address;
        // What is mapped now is undone by the memory's own drop.
        mem::forget(reservation);
        let memory = DeviceMemory { context, address, len, allocation, exportable };
        let access = sys::CUmemAccessDesc {
            location: location(&memory.context),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range is mapped, and the one description outlives the call.
        let result = unsafe { sys::cuMemSetAccess(address, len, &raw const access, 1) };
        memory.context.check(result, "cannot make device memory accessible")?;
        Ok(memory)
    }

    /// Bytes, after rounding.
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

    /// Its device.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    pub fn range(&self, offset: usize, len: usize) -> Result<DeviceRange<'_>, RangeError> {
        DeviceRange::new(self, offset, len)
    }

    /// The four bytes at `offset`, for a stream to wait for or write.
    ///
    /// # Errors
    /// [`RangeError`] when they are not all inside, or not aligned.
    pub fn word(&self, offset: usize) -> Result<Word<'_>, RangeError> {
        Word::new(&self.context, self.address, offset, self.len)
    }

    /// A descriptor by which another process can map it: [`DeviceMemory::import`]. It keeps the memory as a mapping
    /// does.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it was not made exportable; the driver's.
    pub fn export(&self) -> Result<OwnedFd, Error> {
        const WHAT: &str = "cannot export device memory";
        if !self.exportable {
            return Err(Error::Unsupported { what: WHAT, needs: "memory made with MemoryOptions::exportable" });
        }
        self.context.make_current()?;
        let mut descriptor: c_int = -1;
        let place = (&raw mut descriptor).cast::<c_void>();
        // SAFETY: for this type of handle the driver writes a descriptor's number, to a place that outlives the call.
        let result = unsafe { sys::cuMemExportToShareableHandle(place, self.allocation.handle, DESCRIPTOR, 0) };
        self.context.check(result, WHAT)?;
        owned(descriptor, WHAT)
    }

    /// A dma-buf descriptor of `len` bytes from `offset` on, both multiples of the host's page, for a network card's
    /// driver. The CPU cannot map it. It is of no use once the memory is dropped.
    ///
    /// # Errors
    /// [`RangeError`]; [`Error::Unsupported`]; the driver's.
    pub fn dma_buf(&self, offset: usize, len: usize) -> Result<OwnedFd, Error> {
        const WHAT: &str = "cannot get a dma-buf of device memory";
        if !self.context.device().dma_buf {
            return Err(Error::Unsupported { what: WHAT, needs: "a device and kernel with dma-buf" });
        }
        inside(offset, len, self.len)?;
        let alignment = rustix::param::page_size();
        if !offset.is_multiple_of(alignment) || !len.is_multiple_of(alignment) {
            return Err(RangeError::Unaligned { offset, len, alignment }.into());
        }
        self.context.make_current()?;
        let mut descriptor: c_int = -1;
        let place = (&raw mut descriptor).cast::<c_void>();
        let address = self.address + offset as u64;
        let kind = sys::CUmemRangeHandleType::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;
        // SAFETY: the range is inside the mapping, and for this type of handle the driver writes a descriptor's number,
        // to a place that outlives the call.
        let result = unsafe { sys::cuMemGetHandleForAddressRange(place, address, len, kind, 0) };
        self.context.check(result, WHAT)?;
        owned(descriptor, WHAT)
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMemory").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // The allocation itself is released after this.
        if self.context.make_current_to_free() {
            // SAFETY: this range was mapped as a whole, and is unmapped once.
            let _ = unsafe { sys::cuMemUnmap(self.address, self.len) };
            free_address(self.address, self.len);
        }
    }
}

/// Memory without an address.
struct Allocation {
    context: Context,
    handle: sys::CUmemGenericAllocationHandle,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.context.make_current_to_free() {
            // SAFETY: the handle is given back once; what is mapped of it stays until it is unmapped.
            let _ = unsafe { sys::cuMemRelease(self.handle) };
        }
    }
}

/// Addresses without memory.
struct Reservation {
    address: u64,
    len: usize,
}

impl Reservation {
    fn new(context: &Context, len: usize) -> Result<Reservation, Error> {
        let mut address = 0;
        // SAFETY: the place outlives the call; the driver chooses address and alignment.
        let result = unsafe { sys::cuMemAddressReserve(&raw mut address, len, 0, 0, 0) };
        context.check(result, "cannot reserve addresses for device memory")?;
        Ok(Reservation { address, len })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        free_address(self.address, self.len);
    }
}

fn free_address(address: u64, len: usize) {
    // SAFETY: called once for a range that was reserved as a whole, and in which nothing is mapped any more.
    let _ = unsafe { sys::cuMemAddressFree(address, len) };
}

/// Refuses what the device cannot do.
fn supported(context: &Context, what: &'static str, options: MemoryOptions) -> Result<(), Error> {
    let device = context.device();
    let needs = if !device.virtual_memory {
        "a device with virtual memory management"
    } else if options.exportable && !device.posix_descriptors {
        "a device whose memory can be exported as a descriptor"
    } else if options.rdma && !device.rdma_virtual_memory {
        "a device whose mapped memory network cards may write"
    } else {
        return Ok(());
    };
    Err(Error::Unsupported { what, needs })
}

fn location(context: &Context) -> CUmemLocation {
    CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: context.device().device }
}

fn properties(context: &Context, options: MemoryOptions) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: if options.exportable {
            DESCRIPTOR
        } else {
            CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE
        },
        location: location(context),
        win32HandleMetaData: ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: options.rdma.into(),
            usage: 0,
            reserved: [0; 4],
        },
    }
}

/// `len` rounded up to what the device gives at once.
fn rounded(
    context: &Context,
    properties: &CUmemAllocationProp,
    len: usize,
    what: &'static str,
) -> Result<usize, Error> {
    let kind = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    let mut granularity = 0;
    context.make_current()?;
    // SAFETY: the properties are complete, and both places outlive the call.
    let result = unsafe { sys::cuMemGetAllocationGranularity(&raw mut granularity, properties, kind) };
    context.check(result, "cannot ask for the granularity of device memory")?;
    if !granularity.is_power_of_two() {
        return Err(Error::Invalid { what, why: format!("the driver names a granularity of {granularity} bytes") });
    }
    match round_up(len, granularity) {
        Some(rounded) if rounded > 0 => Ok(rounded),
        _ => Err(Error::Invalid { what, why: format!("{len} bytes can be neither mapped nor addressed") }),
    }
}

/// A descriptor that the driver has made for the caller, which no child shall inherit unasked.
pub(crate) fn owned(descriptor: RawFd, what: &'static str) -> Result<OwnedFd, Error> {
    if descriptor < 0 {
        return Err(Error::Invalid { what, why: "the driver gave no descriptor".to_owned() });
    }
    // SAFETY: the driver opened the descriptor for its caller just now, and nobody else knows its number.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    if let Err(error) = rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC) {
        return Err(Error::Invalid { what, why: error.to_string() });
    }
    Ok(owned)
}
