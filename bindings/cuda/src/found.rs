//! Memory of a device that somebody else in this process has made, found by its address.

use std::ffi::{c_int, c_void};
use std::os::fd::OwnedFd;
use std::ptr;

use cudarc::driver::sys::{self, CUpointer_attribute as Attribute, CUresult};

use crate::context::Context;
use crate::driver::Driver;
use crate::error::Error;
use crate::memory::{DESCRIPTOR, owned};

/// An allocation that was made to be exported, and the mapping of it that an address lies in.
#[derive(Debug)]
pub struct FoundMemory {
    /// By which another process maps it, as [`DeviceMemory::export`](crate::DeviceMemory::export) gives it.
    pub descriptor: OwnedFd,
    /// Where the mapping begins.
    pub address: u64,
    /// Its bytes.
    pub len: usize,
    /// Its device: [`DeviceInfo::pci_id`](crate::DeviceInfo::pci_id).
    pub pci_id: String,
}

impl Driver {
    /// The device memory that an address of this process names; `None` where it names none. For whoever stands in for a network card, to which the
    /// address alone is given.
    ///
    /// # Errors
    /// The driver's, for instance where the memory was not made to be exported.
    pub fn find_memory(&self, address: u64) -> Result<Option<FoundMemory>, Error> {
        const WHAT: &str = "cannot find device memory by its address";
        let (Some(kind), Some(ordinal)) = (
            attribute(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address),
            attribute(Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address),
        ) else {
            return Ok(None);
        };
        let is_device = kind == sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as i32;
        let device = usize::try_from(ordinal).ok().and_then(|ordinal| self.devices().get(ordinal));
        let Some(device) = device.filter(|_| is_device) else { return Ok(None) };
        let context = self.context(device)?;
        context.make_current()?;
        let (mut base, mut len) = (0, 0);
        // SAFETY: both places outlive the call.
        let result = unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut len, address) };
        context.check(result, WHAT)?;
        let handle = Retained::new(&context, base)?;
        let mut descriptor: c_int = -1;
        let place = (&raw mut descriptor).cast::<c_void>();
        // SAFETY: for this type of handle the driver writes a descriptor's number, to a place that outlives the call; the allocation is retained.
        let result = unsafe { sys::cuMemExportToShareableHandle(place, handle.handle, DESCRIPTOR, 0) };
        context.check(result, WHAT)?;
        let descriptor = owned(descriptor, WHAT)?;
        Ok(Some(FoundMemory { descriptor, address: base, len, pci_id: device.pci_id.clone() }))
    }
}

/// What the driver knows of an address; `None` for one that it does not know, or where it was not initialised.
fn attribute(attribute: Attribute, address: u64) -> Option<i32> {
    let mut value: c_int = -1;
    // SAFETY: both attributes that are asked for are numbers of this size, and the place outlives the call.
    let result = unsafe { sys::cuPointerGetAttribute((&raw mut value).cast::<c_void>(), attribute, address) };
    (result == CUresult::CUDA_SUCCESS).then_some(value)
}

/// An allocation that is held once more.
struct Retained {
    context: Context,
    handle: sys::CUmemGenericAllocationHandle,
}

impl Retained {
    fn new(context: &Context, address: u64) -> Result<Retained, Error> {
        let mut handle = 0;
        let at = usize::try_from(address).map_or(ptr::null_mut(), ptr::without_provenance_mut::<c_void>);
        // SAFETY: the place outlives the call; that something is mapped at the address, the driver checks.
        let result = unsafe { sys::cuMemRetainAllocationHandle(&raw mut handle, at) };
        context.check(result, "cannot hold device memory by its address")?;
        Ok(Retained { context: context.clone(), handle })
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        if self.context.make_current_to_free() {
            // SAFETY: retained once, released once; its mappings stay.
            let _ = unsafe { sys::cuMemRelease(self.handle) };
        }
    }
}
