//! What a call may answer.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::range::RangeError;

/// Why a call failed. None of them panics, and after all but the sticky ones the context is as usable as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver refused, or reports that earlier work failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// This device or driver cannot do it.
    #[error("{what}: not supported here ({needs})")]
    Unsupported {
        /// What was tried.
        what: &'static str,
        /// What it takes.
        needs: &'static str,
    },
    /// Bytes outside a memory, or two ranges that do not match.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Handles of two devices in one call.
    #[error("{what}: the handles belong to different devices")]
    OtherDevice {
        /// What was tried.
        what: &'static str,
    },
    /// An argument that no device takes.
    #[error("{what}: {why}")]
    Invalid {
        /// What was tried.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// Whether the context is lost: each further call on that device gives the same error
    /// ([`Context::is_lost`](crate::Context::is_lost)), its memory is no longer readable, and only a new process helps.
    /// Other errors concern the one call.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        matches!(self, Error::Driver(error) if error.is_sticky())
    }

    /// The driver's code, if it is the driver's error.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Error::Driver(error) => Some(error.code),
            _ => None,
        }
    }
}

/// An error code of the driver, in its own words.
#[derive(Clone, PartialEq, Eq)]
pub struct DriverError {
    tried: &'static str,
    code: u32,
    name: &'static str,
    text: &'static str,
    /// What there is to say beyond that.
    log: Option<Box<str>>,
}

impl DriverError {
    /// What was tried. Errors of work on a stream surface in whichever call comes next, so this may not be what failed.
    #[must_use]
    pub fn tried(&self) -> &'static str {
        self.tried
    }

    /// The number, as in `cuda.h`.
    #[must_use]
    pub fn code(&self) -> u32 {
        self.code
    }

    /// The code's name, for instance `CUDA_ERROR_OUT_OF_MEMORY`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The driver's sentence about it.
    #[must_use]
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// As [`Error::is_sticky`].
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        is_sticky(self.code)
    }

    /// What the compiler of a module said, line by line, or the name that was not found.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        self.log.as_deref()
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DriverError { tried, code, name, text, log } = self;
        write!(f, "{tried}: {name} ({code}): {text}")?;
        if self.is_sticky() {
            f.write_str("; the device is lost to this process, which must be started anew")?;
        }
        match log {
            Some(log) => write!(f, "\n{log}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for DriverError {}

/// The driver's answer as a result. The driver must be loaded.
#[inline]
pub(crate) fn check(result: CUresult, tried: &'static str) -> Result<(), DriverError> {
    if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(describe(result, tried, None)) }
}

/// The error of a code. The driver must be loaded.
#[cold]
pub(crate) fn describe(result: CUresult, tried: &'static str, log: Option<Box<str>>) -> DriverError {
    let (mut name, mut text) = (ptr::null(), ptr::null());
    // SAFETY: the place for the address outlives the call, which leaves it null for a code that it does not know.
    let _ = unsafe { sys::cuGetErrorName(result, &raw mut name) };
    // SAFETY: as above.
    let _ = unsafe { sys::cuGetErrorString(result, &raw mut text) };
    let name = words(name).unwrap_or("unknown code");
    let text = words(text).unwrap_or("the driver has no text for it");
    DriverError { tried, code: result as u32, name, text, log }
}

/// A text of the driver's, whose library is never unloaded.
fn words(text: *const c_char) -> Option<&'static str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the driver's texts are constants in its library, terminated, and the library stays loaded for ever.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// Codes that the driver's manual says leave the process, or the context, in a state from which no call recovers.
fn is_sticky(code: u32) -> bool {
    const STICKY: [CUresult; 18] = [
        CUresult::CUDA_ERROR_DEINITIALIZED,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
        CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE,
        CUresult::CUDA_ERROR_CONTAINED,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
        CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        CUresult::CUDA_ERROR_ASSERT,
        CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
        CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUresult::CUDA_ERROR_INVALID_PC,
        CUresult::CUDA_ERROR_LAUNCH_FAILED,
        CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK,
        CUresult::CUDA_ERROR_MPS_RPC_FAILURE,
        CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED,
        CUresult::CUDA_ERROR_EXTERNAL_DEVICE,
    ];
    STICKY.iter().any(|&sticky| sticky as u32 == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: CUresult, name: &'static str, text: &'static str) -> Error {
        DriverError { tried: "cannot launch a kernel", code: code as u32, name, text, log: None }.into()
    }

    #[test]
    fn a_driver_error_says_what_was_tried_and_what_the_driver_calls_it() {
        let error = error(CUresult::CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory");
        assert_eq!(error.to_string(), "cannot launch a kernel: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory");
        assert_eq!(error.code(), Some(2));
        assert!(!error.is_sticky());
    }

    #[test]
    fn an_error_that_loses_the_context_says_so() {
        let error = error(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal access");
        assert!(error.is_sticky());
        assert!(error.to_string().ends_with("started anew"), "{error}");
    }

    #[test]
    fn a_compilers_words_follow_the_error() {
        let error = DriverError {
            tried: "cannot load a module",
            code: CUresult::CUDA_ERROR_INVALID_PTX as u32,
            name: "CUDA_ERROR_INVALID_PTX",
            text: "a PTX JIT compilation failed",
            log: Some("line 3: unknown opcode".into()),
        };
        assert!(error.to_string().ends_with("failed\nline 3: unknown opcode"), "{error}");
    }

    #[test]
    fn errors_of_ours_name_what_it_takes() {
        let error = Error::Unsupported { what: "cannot copy in a batch", needs: "a driver of CUDA 12.8 or later" };
        assert_eq!(error.to_string(), "cannot copy in a batch: not supported here (a driver of CUDA 12.8 or later)");
        assert!(!error.is_sticky());
        assert_eq!(error.code(), None);
    }
}
