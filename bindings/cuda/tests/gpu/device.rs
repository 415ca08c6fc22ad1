use splitrpc_cuda::{DeviceMemory, Error, FlushScope, MemoryOptions};

use crate::common::gpu;

#[test]
fn the_driver_describes_its_devices() {
    let Some(gpu) = gpu() else { return };
    for device in gpu.driver.devices() {
        println!("{device:#?}");
        assert!(device.total_bytes > 1 << 30);
        assert!(device.compute_capability.0 >= 5);
        assert!(device.multiprocessors > 0);
        assert!(device.shared_bytes_max_opt_in >= device.shared_bytes_max);
        // Domain, bus, device and function, as the kernel writes them.
        let parts: Vec<&str> = device.pci_id.split([':', '.']).collect();
        assert_eq!(parts.len(), 4, "{}", device.pci_id);
    }
    println!("batched copies: {}", gpu.driver.batched_copies());
}

#[test]
fn memory_is_rounded_up_and_ends_with_the_devices() {
    let Some(gpu) = gpu() else { return };
    let (free, total) = gpu.context.memory_bytes().unwrap();
    assert!(free <= total && total <= gpu.context.device().total_bytes);
    let memory = gpu.memory(1);
    println!("one byte takes {}", memory.len());
    assert!(memory.len() > 1 && memory.len().is_power_of_two());
    assert_ne!(memory.address(), 0);
    // More than there is.
    let error = DeviceMemory::new(&gpu.context, 4 * total as usize, MemoryOptions::default()).unwrap_err();
    assert_eq!(error.code(), Some(2), "{error}");
    assert!(error.to_string().contains("OUT_OF_MEMORY"), "{error}");
    assert!(!error.is_sticky() && !gpu.context.is_lost());
    assert!(matches!(DeviceMemory::new(&gpu.context, 0, MemoryOptions::default()), Err(Error::Invalid { .. })));
}

#[test]
fn remote_writes_are_flushed_where_the_device_can() {
    let Some(gpu) = gpu() else { return };
    let flushed = gpu.context.flush_remote_writes(FlushScope::Owner);
    if gpu.context.device().flush_from_host {
        flushed.unwrap();
    } else {
        assert!(matches!(flushed, Err(Error::Unsupported { .. })));
    }
}
