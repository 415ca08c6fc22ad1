//! What can go wrong on a GPU.

/// Why something could not be done on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The driver, the device, or work that was submitted earlier.
    #[error(transparent)]
    Cuda(#[from] splitrpc_cuda::Error),
    /// PyTorch, or a package of its.
    #[error(transparent)]
    Torch(#[from] splitrpc_torch::Error),
    /// The arena has no such pool.
    #[error("pool {0} is not in the arena")]
    NoPool(u16),
    /// A run, tensor or range that is not among the slots.
    #[error("the GPU has no such slots")]
    NoSlots,
    /// A buffer that the lane does not hold, or bytes past its end.
    #[error("the lane has no such buffer, or it ends earlier")]
    NoBuffer,
    /// A kernel that is given other arguments than it takes.
    #[error("kernel {kernel:?} takes arguments of {wants:?} bytes, and is given {given:?}")]
    Arguments {
        /// The kernel's name.
        kernel: String,
        /// Bytes of each argument, as the kernel declares them.
        wants: Vec<usize>,
        /// Bytes of each argument, as they were given.
        given: Vec<usize>,
    },
    /// A kernel that is to stay has returned, twice, before it had done what it was told.
    #[error("the persistent kernel has ended without computing the batch: see splitrpc/persistent.cuh")]
    Ended,
    /// Bytes that are no code, or not all of it.
    #[error("the module {why}")]
    Code {
        /// What is wrong.
        why: &'static str,
    },
    /// The device has not so much memory left.
    #[error("{needed} bytes of device memory are needed, and {free} are free")]
    NoMemory {
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}

impl GpuError {
    /// Whether nothing works on this device any more, in this process: see [`splitrpc_cuda::Error::is_sticky`].
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        matches!(self, GpuError::Cuda(error) if error.is_sticky())
    }
}
