//! Kernels on a stream.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;

use cudarc::driver::sys;

use crate::error::Error;
use crate::module::Function;
use crate::stream::Stream;

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of each block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of shared memory of each block, beside the static ones.
    pub shared_bytes: u32,
}

impl Launch {
    /// At least `threads` threads in a row, in blocks of `block`; at least one block.
    #[must_use]
    pub fn linear(threads: u32, block: u32) -> Launch {
        Launch { grid: [threads.div_ceil(block.max(1)).max(1), 1, 1], block: [block.max(1), 1, 1], shared_bytes: 0 }
    }
}

/// An argument of a kernel: a borrowed value, which the driver copies when the kernel is launched.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Arg<'a> {
    value: *mut c_void,
    lifetime: PhantomData<&'a ()>,
}

impl<'a> Arg<'a> {
    /// The value has the size, alignment and meaning of the kernel's parameter: an address is a `u64`.
    #[must_use]
    pub fn new<T: Copy>(value: &'a T) -> Arg<'a> {
        Arg { value: ptr::from_ref(value).cast_mut().cast(), lifetime: PhantomData }
    }
}

impl Stream {
    /// Runs a kernel.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; the driver's, for instance when a block has more threads or shared memory than the
    /// function may have; also those of earlier work.
    ///
    /// # Safety
    /// There is one argument for each parameter of the function, in their order and of their types. The kernel accesses
    /// only memory that is there, with this many threads and this much shared memory. The contract of [`Stream`] holds
    /// for that memory, and for the function.
    pub unsafe fn launch(&self, function: &Function, launch: Launch, arguments: &[Arg<'_>]) -> Result<(), Error> {
        const WHAT: &str = "cannot launch a kernel";
        self.same_device(function.context(), WHAT)?;
        self.context().make_current()?;
        let Launch { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_bytes } = launch;
        // An argument is nothing but the value's address.
        let values = arguments.as_ptr().cast_mut().cast::<*mut c_void>();
        // SAFETY: the caller promises that there are as many values as the function has parameters, each as large; the
        // driver only reads them, during the call.
        let result = unsafe {
            sys::cuLaunchKernel(
                function.raw(),
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                shared_bytes,
                self.raw(),
                values,
                ptr::null_mut(),
            )
        };
        self.context().check(result, WHAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_threads_is_covered_by_whole_blocks() {
        assert_eq!(Launch::linear(256, 128).grid, [2, 1, 1]);
        assert_eq!(Launch::linear(257, 128).grid, [3, 1, 1]);
        assert_eq!(Launch::linear(0, 128).grid, [1, 1, 1]);
        assert_eq!(Launch::linear(3, 0), Launch { grid: [3, 1, 1], block: [1, 1, 1], shared_bytes: 0 });
    }
}
