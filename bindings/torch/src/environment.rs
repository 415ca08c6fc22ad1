//! What PyTorch reads from the environment when it is loaded.

use crate::error::Error;

/// The variables by which PyTorch chooses how it allocates device memory: which of them counts differs by version.
const ALLOCATOR: [&str; 2] = ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"];
/// Its own cache may give memory back to the device that a recorded graph still names; the driver's allocator makes memory a
/// part of the graph.
const BY_DRIVER: &str = "backend:cudaMallocAsync";
/// Has packages hold what they are given against what they were compiled for.
const CHECK: &str = "AOTI_RUNTIME_CHECK_INPUTS";

/// Has PyTorch allocate device memory by the driver's stream-ordered allocator, without which its work may not be recorded, and packages check
/// their inputs. To be called before anything else of this crate, and while the process has one thread.
///
/// # Errors
/// [`Error::Library`] where the environment says something else of the allocator, or says nothing and there are other threads, which may be
/// reading it.
pub fn prepare() -> Result<(), Error> {
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    let set = |name: &str, value: &str| {
        if alone {
            // SAFETY: there is no other thread that could read the environment meanwhile.
            unsafe { std::env::set_var(name, value) };
        }
        alone
    };
    if std::env::var_os(CHECK).is_none() {
        set(CHECK, "1");
    }
    let mut any = false;
    for name in ALLOCATOR {
        let Some(value) = std::env::var_os(name) else { continue };
        let value = value.to_string_lossy();
        if !value.split(',').any(|setting| setting.trim() == BY_DRIVER) {
            return Err(Error::Library(format!("{name} is {value:?}; add {BY_DRIVER} to it, or unset it")));
        }
        any = true;
    }
    if any || set(ALLOCATOR[0], BY_DRIVER) {
        return Ok(());
    }
    Err(Error::Library(format!("set {}={BY_DRIVER} in the environment", ALLOCATOR[0])))
}
