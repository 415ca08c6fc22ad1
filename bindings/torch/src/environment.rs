//! What PyTorch reads from the environment when it is loaded.

use crate::error::Error;

/// The variable by which PyTorch chooses how it allocates device memory.
const ALLOCATOR: &str = "PYTORCH_CUDA_ALLOC_CONF";
/// Its own cache may give memory back to the device that a recorded graph still names; the driver's allocator makes memory a
/// part of the graph.
const BY_DRIVER: &str = "backend:cudaMallocAsync";

/// Has PyTorch allocate device memory by the driver's stream-ordered allocator, without which its work may not be recorded.
/// To be called before anything else of this crate, and while the process has one thread.
///
/// # Errors
/// [`Error::Library`] where the variable says something else, or where there are other threads, which may be reading the
/// environment.
pub fn prepare() -> Result<(), Error> {
    match std::env::var(ALLOCATOR) {
        Ok(set) if set.split(',').any(|setting| setting.trim() == BY_DRIVER) => return Ok(()),
        Ok(set) => {
            return Err(Error::Library(format!("{ALLOCATOR} is {set:?}; add {BY_DRIVER} to it, or unset it")));
        }
        Err(_) => {}
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count);
    if threads != 1 {
        return Err(Error::Library(format!("set {ALLOCATOR}={BY_DRIVER} in the environment")));
    }
    // SAFETY: there is no other thread that could read the environment meanwhile.
    unsafe { std::env::set_var(ALLOCATOR, BY_DRIVER) };
    Ok(())
}
