//! The driver's library: whether it is there, how old it is, and the devices that it has.

use std::ffi::c_void;
use std::fmt;
use std::ptr;

use cudarc::driver::sys::{self, CUdeviceptr, CUmemcpyAttributes, CUresult, CUstream};

use crate::context::Context;
use crate::device::DeviceInfo;
use crate::error::{DriverError, Error, check};
use crate::symbols;

/// The oldest driver that serves: the first that tells what a kernel takes, and reads PTX 8.4.
pub const NEEDED_VERSION: Version = Version { major: 12, minor: 4 };

/// The first driver that copies in batches.
const BATCHED_COPIES: Version = Version { major: 12, minor: 8 };

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// From the driver's number, 12080 for 12.8.
    fn from_number(number: i32) -> Version {
        let number = number.unsigned_abs();
        Version { major: number / 1000, minor: number % 1000 / 10 }
    }

    fn number(self) -> i32 {
        (self.major * 1000 + self.minor * 10) as i32
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The loaded driver and its devices, of which there is at least one.
#[derive(Clone, Debug)]
pub struct Driver {
    version: Version,
    devices: Vec<DeviceInfo>,
    batch: Option<BatchCopy>,
}

impl Driver {
    /// Loads the driver's library, once a process, and asks it for its devices. Takes a while the first time (the
    /// driver wakes the devices), and never panics.
    ///
    /// # Errors
    /// [`Unavailable`], which says what to do.
    pub fn load() -> Result<Driver, Unavailable> {
        // SAFETY: opening a library runs its initialisers, which for the driver's have no conditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(Unavailable::NoLibrary);
        }
        if !symbols::has("cuDriverGetVersion") {
            return Err(Unavailable::Incomplete { function: "cuDriverGetVersion" });
        }
        let mut number = 0;
        // SAFETY: the place for the number outlives the call.
        let result = unsafe { sys::cuDriverGetVersion(&raw mut number) };
        let found = Version::from_number(number);
        // The toolkit's stub answers so, and has no texts for its codes.
        if result == CUresult::CUDA_ERROR_STUB_LIBRARY {
            return Err(Unavailable::Stub);
        }
        if found < NEEDED_VERSION {
            return Err(Unavailable::Outdated { found });
        }
        if let Some(function) = symbols::missing() {
            return Err(Unavailable::Incomplete { function });
        }
        // SAFETY: zero is the only value that the argument may have.
        let result = unsafe { sys::cuInit(0) };
        match result {
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(Unavailable::NoDevice),
            CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(Unavailable::Stub),
            result => check(result, "cannot initialise the CUDA driver")?,
        }
        let devices = DeviceInfo::all()?;
        if devices.is_empty() {
            return Err(Unavailable::NoDevice);
        }
        Ok(Driver { version: found, devices, batch: BatchCopy::find(found) })
    }

    /// The newest CUDA that the driver knows.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The devices, in the driver's order; never none.
    #[must_use]
    pub fn devices(&self) -> &[DeviceInfo] {
        &self.devices
    }

    /// The device's primary context, the one that the runtimes in this process use too.
    ///
    /// # Errors
    /// The driver's, for instance when the device is reserved for another process.
    pub fn context(&self, device: &DeviceInfo) -> Result<Context, Error> {
        Context::retain(device, self.batch)
    }

    /// Whether [`Stream::copy_batch`](crate::Stream::copy_batch) is there.
    #[must_use]
    pub fn batched_copies(&self) -> bool {
        self.batch.is_some()
    }
}

/// Why there is no CUDA here. Its text is for whoever can change that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The library is not where the loader looks.
    #[error(
        "no CUDA driver: libcuda.so.1 is not found; install NVIDIA's driver, or pass it into the container (the NVIDIA \
         container toolkit does), or name its directory in LD_LIBRARY_PATH"
    )]
    NoLibrary,
    /// The library is the toolkit's stand-in for linking.
    #[error(
        "no CUDA driver: the libcuda found is the toolkit's stub; take the toolkit's stubs directory out of \
         LD_LIBRARY_PATH"
    )]
    Stub,
    /// The driver is too old.
    #[error(
        "the CUDA driver is too old: it knows CUDA {found}, and {NEEDED_VERSION} is needed; install a newer driver of \
         NVIDIA's"
    )]
    Outdated {
        /// What the driver knows.
        found: Version,
    },
    /// The library lacks a function that a driver of its version has.
    #[error("the CUDA driver is incomplete: it has no {function}; install NVIDIA's driver anew")]
    Incomplete {
        /// Which.
        function: &'static str,
    },
    /// The driver sees no device.
    #[error(
        "no CUDA device: the driver is there but sees none; check nvidia-smi, CUDA_VISIBLE_DEVICES, and that the \
         container may use /dev/nvidia*"
    )]
    NoDevice,
    /// The driver does not start.
    #[error("{0}; nvidia-smi and the kernel's log (NVRM) say more")]
    Refused(DriverError),
}

impl From<DriverError> for Unavailable {
    fn from(error: DriverError) -> Unavailable {
        Unavailable::Refused(error)
    }
}

/// `cuMemcpyBatchAsync` as CUDA 12.8 has it. Later drivers keep it beside a second form with fewer arguments.
pub(crate) type BatchCopyFn = unsafe extern "C" fn(
    *mut CUdeviceptr,
    *mut CUdeviceptr,
    *mut usize,
    usize,
    *mut CUmemcpyAttributes,
    *mut usize,
    usize,
    *mut usize,
    CUstream,
) -> CUresult;

/// The function that copies in batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchCopy(pub(crate) BatchCopyFn);

impl BatchCopy {
    fn find(version: Version) -> Option<BatchCopy> {
        if version < BATCHED_COPIES {
            return None;
        }
        let mut address: *mut c_void = ptr::null_mut();
        // SAFETY: the name is terminated, and the place for the address outlives the call; whether it was found may be
        // left unasked.
        let result = unsafe {
            sys::cuGetProcAddress_v2(
                c"cuMemcpyBatchAsync".as_ptr(),
                &raw mut address,
                BATCHED_COPIES.number(),
                0,
                ptr::null_mut(),
            )
        };
        if result != CUresult::CUDA_SUCCESS || address.is_null() {
            return None;
        }
        // SAFETY: the driver gave the function's address for the version whose signature this is.
        Some(BatchCopy(unsafe { std::mem::transmute::<*mut c_void, BatchCopyFn>(address) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let version = Version::from_number(12_080);
        assert_eq!(version, BATCHED_COPIES);
        assert_eq!(version.number(), 12_080);
        assert_eq!(version.to_string(), "12.8");
        assert!(Version::from_number(11_080) < NEEDED_VERSION);
        assert!(Version::from_number(13_000) > version);
    }

    #[test]
    fn loading_never_panics_and_says_what_is_missing() {
        match Driver::load() {
            Ok(driver) => assert!(!driver.devices().is_empty()),
            Err(Unavailable::NoLibrary) => assert!(Unavailable::NoLibrary.to_string().contains("libcuda.so.1")),
            Err(other) => assert!(!other.to_string().is_empty()),
        }
    }

    #[test]
    fn an_old_driver_is_told_with_both_versions() {
        let text = Unavailable::Outdated { found: Version::from_number(11_040) }.to_string();
        assert!(text.contains("CUDA 11.4") && text.contains("12.4 is needed"), "{text}");
    }
}
