//! What a device is and can do.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute};

use crate::error::{DriverError, check};

/// A device, and those of its abilities by which something is decided.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    pub(crate) device: CUdevice,
    ordinal: usize,
    /// For instance `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Domain, bus, device and function, as in `/sys/bus/pci/devices`.
    pub pci_id: String,
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// Major and minor number.
    pub compute_capability: (u32, u32),
    /// Its memory can be had as a dma-buf descriptor, for a network card.
    pub dma_buf: bool,
    /// Network cards may write its memory.
    pub rdma: bool,
    /// That holds for [`DeviceMemory`](crate::DeviceMemory) too.
    pub rdma_virtual_memory: bool,
    /// Who sees such writes in order without a flush.
    pub rdma_writes_ordering: WritesOrdering,
    /// The CPU can flush them: [`Context::flush_remote_writes`](crate::Context::flush_remote_writes).
    pub flush_from_host: bool,
    /// A stream's wait for a value can flush them.
    pub flush_in_stream: bool,
    /// It can use host memory that is mapped already: [`HostRegistration`](crate::HostRegistration).
    pub host_register: bool,
    /// Such memory has the same address on the device.
    pub registered_pointer_usable: bool,
    /// Streams have priorities.
    pub stream_priorities: bool,
    /// A stream can wait until bits of a value are clear: [`WaitCondition::AnyClear`](crate::WaitCondition::AnyClear).
    pub wait_any_clear: bool,
    /// Addresses and memory can be had apart, which [`DeviceMemory`](crate::DeviceMemory) needs.
    pub virtual_memory: bool,
    /// Memory can be exported as a POSIX descriptor.
    pub posix_descriptors: bool,
    /// Copies that run at the same time, beside kernels.
    pub copy_engines: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may have.
    pub shared_bytes_max: u32,
    /// The same for a kernel that asks for more:
    /// [`Function::set_dynamic_shared_bytes_max`](crate::Function::set_dynamic_shared_bytes_max).
    pub shared_bytes_max_opt_in: u32,
}

/// Who sees writes of a network card into a device's memory in order, once their completion is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WritesOrdering {
    /// Nobody: they have to be flushed.
    None,
    /// Work on the device that owns the memory.
    Owner,
    /// Work on every device.
    AllDevices,
}

impl DeviceInfo {
    /// All devices. The driver must be initialised.
    pub(crate) fn all() -> Result<Vec<DeviceInfo>, DriverError> {
        let mut count = 0;
        // SAFETY: the place for the count outlives the call.
        let result = unsafe { sys::cuDeviceGetCount(&raw mut count) };
        check(result, "cannot count the CUDA devices")?;
        (0..count).map(DeviceInfo::read).collect()
    }

    /// The device's place in the driver's order.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    fn read(ordinal: c_int) -> Result<DeviceInfo, DriverError> {
        let mut device = 0;
        // SAFETY: the place for the device outlives the call.
        let result = unsafe { sys::cuDeviceGet(&raw mut device, ordinal) };
        check(result, "cannot find a CUDA device")?;
        let number = |attribute| attribute_of(device, attribute);
        let able = |attribute| Ok::<bool, DriverError>(number(attribute)? != 0);
        let flushes = number(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS)?;
        Ok(DeviceInfo {
            device,
            ordinal: ordinal as usize,
            name: name_of(device)?,
            pci_id: pci_id_of(device)?,
            total_bytes: total_bytes_of(device)?,
            compute_capability: (
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            dma_buf: able(Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED)?,
            rdma: able(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED)?,
            rdma_virtual_memory: able(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED)?,
            rdma_writes_ordering: WritesOrdering::from_number(number(
                Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING,
            )?),
            flush_from_host: flushes & FLUSH_HOST != 0,
            flush_in_stream: flushes & FLUSH_MEMOPS != 0
                && able(Attribute::CU_DEVICE_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES)?,
            host_register: able(Attribute::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED)?,
            registered_pointer_usable: able(Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM)?,
            stream_priorities: able(Attribute::CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED)?,
            wait_any_clear: able(Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR)?,
            virtual_memory: able(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED)?,
            posix_descriptors: able(Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED)?,
            copy_engines: number(Attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT)?,
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_max: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
            shared_bytes_max_opt_in: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }
}

const FLUSH_HOST: u32 = sys::CUflushGPUDirectRDMAWritesOptions::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST as u32;
const FLUSH_MEMOPS: u32 = sys::CUflushGPUDirectRDMAWritesOptions::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_MEMOPS as u32;

impl WritesOrdering {
    fn from_number(number: u32) -> WritesOrdering {
        use sys::CUGPUDirectRDMAWritesOrdering as Ordering;
        if number >= Ordering::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_ALL_DEVICES as u32 {
            WritesOrdering::AllDevices
        } else if number >= Ordering::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as u32 {
            WritesOrdering::Owner
        } else {
            WritesOrdering::None
        }
    }
}

fn attribute_of(device: CUdevice, attribute: Attribute) -> Result<u32, DriverError> {
    let mut value = 0;
    // SAFETY: the place for the value outlives the call.
    let result = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
    check(result, "cannot ask for an attribute of a CUDA device")?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn name_of(device: CUdevice) -> Result<String, DriverError> {
    text(|text, room| {
        // SAFETY: the driver writes at most `room` bytes, with the terminator, to a place that outlives the call.
        let result = unsafe { sys::cuDeviceGetName(text, room, device) };
        check(result, "cannot ask for the name of a CUDA device")
    })
}

fn pci_id_of(device: CUdevice) -> Result<String, DriverError> {
    let id = text(|text, room| {
        // SAFETY: the driver writes at most `room` bytes, with the terminator, to a place that outlives the call.
        let result = unsafe { sys::cuDeviceGetPCIBusId(text, room, device) };
        check(result, "cannot ask for the PCI id of a CUDA device")
    })?;
    // The kernel writes its digits small.
    Ok(id.to_ascii_lowercase())
}

fn total_bytes_of(device: CUdevice) -> Result<u64, DriverError> {
    let mut bytes = 0;
    // SAFETY: the place for the size outlives the call.
    let result = unsafe { sys::cuDeviceTotalMem_v2(&raw mut bytes, device) };
    check(result, "cannot ask for the memory of a CUDA device")?;
    Ok(bytes as u64)
}

/// A text that the driver writes, of at most 127 bytes.
fn text(write: impl FnOnce(*mut c_char, c_int) -> Result<(), DriverError>) -> Result<String, DriverError> {
    let mut bytes = [0_u8; 128];
    write(ptr::from_mut(&mut bytes).cast(), bytes.len() as c_int)?;
    let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orderings_that_are_not_known_yet_count_as_the_next_weaker() {
        let read = WritesOrdering::from_number;
        assert_eq!([read(0), read(99)], [WritesOrdering::None; 2]);
        assert_eq!([read(100), read(199)], [WritesOrdering::Owner; 2]);
        assert_eq!([read(200), read(300)], [WritesOrdering::AllDevices; 2]);
    }
}
