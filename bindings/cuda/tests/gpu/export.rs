use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;

use splitrpc_cuda::{DeviceMemory, Error, MemoryOptions};

use crate::common::{bytes_of, gpu, in_another_process, part, pattern, skip};

const LEN: usize = 1 << 20;
const SHARED: MemoryOptions = MemoryOptions { exportable: true, rdma: false };

#[test]
fn two_processes_share_device_memory() {
    if let Some(len) = part() {
        return second_process(len.parse().expect("the length of the shared memory"));
    }
    let Some(gpu) = gpu() else { return };
    if !gpu.context.device().posix_descriptors {
        return skip("no exported memory: this device has no POSIX descriptors");
    }
    let stream = gpu.stream();
    let memory = DeviceMemory::new(&gpu.context, LEN, SHARED).unwrap();
    stream.upload(memory.range(0, LEN).unwrap(), &pattern(1, LEN)).unwrap();
    // The second process finds the descriptor in the place of its standard input.
    let descriptor = memory.export().unwrap();
    let test = "export::two_processes_share_device_memory";
    let (status, said) = in_another_process(test, &memory.len().to_string(), Stdio::from(descriptor));
    assert!(status.success(), "the second process failed:\n{said}");
    let answer = bytes_of(&stream, memory.range(0, LEN).unwrap());
    assert!(answer == pattern(2, LEN), "the second process's bytes are not there; it said:\n{said}");
}

fn second_process(len: usize) {
    let gpu = gpu().expect("the first process has a GPU");
    let memory = DeviceMemory::import(&gpu.context, io::stdin().as_fd(), len).unwrap();
    let stream = gpu.stream();
    let range = memory.range(0, LEN).unwrap();
    assert!(bytes_of(&stream, range) == pattern(1, LEN), "the first process's bytes are not there");
    stream.upload(range, &pattern(2, LEN)).unwrap();
}

#[test]
fn an_import_outlives_the_memory_that_was_exported() {
    let Some(gpu) = gpu() else { return };
    if !gpu.context.device().posix_descriptors {
        return skip("no exported memory: this device has no POSIX descriptors");
    }
    let stream = gpu.stream();
    let memory = DeviceMemory::new(&gpu.context, LEN, SHARED).unwrap();
    stream.upload(memory.range(0, LEN).unwrap(), &pattern(3, LEN)).unwrap();
    let descriptor = memory.export().unwrap();
    let too_short = DeviceMemory::import(&gpu.context, descriptor.as_fd(), 1).unwrap_err();
    assert!(matches!(too_short, Error::Invalid { .. }), "{too_short}");
    let again = DeviceMemory::import(&gpu.context, descriptor.as_fd(), memory.len()).unwrap();
    drop((memory, descriptor));
    assert!(bytes_of(&stream, again.range(0, LEN).unwrap()) == pattern(3, LEN));
}

#[test]
fn what_was_not_made_for_it_is_not_exported() {
    let Some(gpu) = gpu() else { return };
    let error = gpu.memory(LEN).export().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    // A descriptor of something else.
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = DeviceMemory::import(&gpu.context, file.as_fd(), gpu.memory(1).len()).unwrap_err();
    println!("a file is no memory: {error}");
    assert!(!error.is_sticky());
}

#[test]
fn network_cards_get_a_dma_buf() {
    let Some(gpu) = gpu() else { return };
    let device = gpu.context.device();
    if !device.dma_buf || !device.rdma_virtual_memory {
        return skip("no dma-buf: this device or kernel has none for mapped memory");
    }
    let options = MemoryOptions { rdma: true, exportable: false };
    let memory = DeviceMemory::new(&gpu.context, LEN, options).unwrap();
    let whole = memory.dma_buf(0, memory.len()).unwrap();
    let part = memory.dma_buf(65_536, 65_536).unwrap();
    println!("{whole:?} {part:?}");
    assert!(matches!(memory.dma_buf(1, 4096), Err(Error::Range(_))));
    assert!(matches!(memory.dma_buf(0, 2 * memory.len()), Err(Error::Range(_))));
}
