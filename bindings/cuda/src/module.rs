//! Code for a device.

use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute as Attribute, CUjit_option, CUmodule, CUresult};

use crate::context::Context;
use crate::error::{Error, describe};

/// Bytes of a compiler's words that are kept.
const LOG_BYTES: usize = 8 << 10;

/// Code that was loaded on a device. A handle: clones and the functions found in it share the code, which is unloaded
/// with the last.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    raw: CUmodule,
}

// SAFETY: modules belong to the context; the driver lets each thread use them, and synchronises inside.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Module {
    /// Compiles PTX for the device and loads the result. Takes up to seconds; the driver keeps compiled code in a cache
    /// on disk.
    ///
    /// # Errors
    /// [`Error::Invalid`] for text with a zero byte; the driver's, with what its compiler said
    /// ([`DriverError::log`](crate::DriverError::log)).
    pub fn from_ptx(context: &Context, ptx: &str) -> Result<Module, Error> {
        let why = || "there is a zero byte in the PTX".to_owned();
        let ptx = CString::new(ptx).map_err(|_| Error::Invalid { what: LOAD, why: why() })?;
        // SAFETY: the text is terminated.
        unsafe { Module::load(context, ptx.as_ptr().cast()) }
    }

    /// Loads code that was compiled before: a cubin, or a fatbin with one for this device.
    ///
    /// # Errors
    /// [`Error::Invalid`] for bytes that begin like neither; the driver's, for instance when it is for other devices.
    ///
    /// # Safety
    /// The bytes are the whole output of a compiler: the driver reads as far as their headers say.
    pub unsafe fn from_binary(context: &Context, image: &[u8]) -> Result<Module, Error> {
        if !is_binary(image) {
            let why = "the bytes begin like neither a cubin nor a fatbin".to_owned();
            return Err(Error::Invalid { what: LOAD, why });
        }
        // SAFETY: the caller promises that the image is whole.
        unsafe { Module::load(context, image.as_ptr().cast()) }
    }

    /// # Safety
    /// The image is terminated PTX, or a whole cubin or fatbin.
    unsafe fn load(context: &Context, image: *const c_void) -> Result<Module, Error> {
        context.make_current()?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            // How much there is room for; the driver leaves there how much it wrote.
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut raw = ptr::null_mut();
        // SAFETY: the caller promises that the image is as the driver expects; there are as many values as options, the
        // log has as many bytes as they say, and all of it outlives the call.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut raw,
                image,
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if result != CUresult::CUDA_SUCCESS {
            return Err(context.failed(describe(result, LOAD, words(&log))));
        }
        Ok(Module { inner: Arc::new(Inner { context: context.clone(), raw }) })
    }

    /// The function of that name, which is an `.entry` of the PTX. It is loaded now: left to the first launch that might have to wait
    /// for all streams.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name with a zero byte; the driver's, when there is none of the name.
    pub fn function(&self, name: &str) -> Result<Function, Error> {
        const WHAT: &str = "cannot find a function in a module";
        let why = || "there is a zero byte in the name".to_owned();
        let terminated = CString::new(name).map_err(|_| Error::Invalid { what: WHAT, why: why() })?;
        let Inner { context, raw: module } = &*self.inner;
        context.make_current()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the module is loaded, the name is terminated, and the place for the function outlives the call.
        let result = unsafe { sys::cuModuleGetFunction(&raw mut raw, *module, terminated.as_ptr()) };
        if result != CUresult::CUDA_SUCCESS {
            return Err(context.failed(describe(result, WHAT, Some(name.into()))));
        }
        // SAFETY: the module is loaded, and the function one of its.
        let result = unsafe { sys::cuFuncLoad(raw) };
        context.check(result, "cannot load a function")?;
        Ok(Function { module: self.clone(), raw })
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("context", &self.inner.context).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.make_current_to_free() {
            // SAFETY: the module is unloaded once, after the last function found in it is gone.
            let _ = unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

/// A function that a device can run: see [`Stream::launch`](crate::Stream::launch).
#[derive(Clone)]
pub struct Function {
    module: Module,
    raw: CUfunction,
}

// SAFETY: a function is part of its module.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Threads that a block may have, at most; fewer than the device's limit where the function needs many registers.
    ///
    /// # Errors
    /// The driver's.
    pub fn threads_max(&self) -> Result<u32, Error> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
    }

    /// Registers of each thread.
    ///
    /// # Errors
    /// The driver's.
    pub fn registers(&self) -> Result<u32, Error> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Bytes of shared memory that each block has beside those of the launch.
    ///
    /// # Errors
    /// The driver's.
    pub fn static_shared_bytes(&self) -> Result<u32, Error> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
    }

    /// Bytes of memory that each thread has for what finds no place in registers.
    ///
    /// # Errors
    /// The driver's.
    pub fn local_bytes(&self) -> Result<u32, Error> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
    }

    /// Bytes of shared memory that a launch may ask for.
    ///
    /// # Errors
    /// The driver's.
    pub fn dynamic_shared_bytes_max(&self) -> Result<u32, Error> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    }

    /// Raises that, together with the static ones up to
    /// [`DeviceInfo::shared_bytes_max_opt_in`](crate::DeviceInfo::shared_bytes_max_opt_in).
    ///
    /// # Errors
    /// The driver's.
    pub fn set_dynamic_shared_bytes_max(&self, bytes: u32) -> Result<(), Error> {
        let context = self.context();
        context.make_current()?;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        // SAFETY: the function is loaded.
        let result = unsafe { sys::cuFuncSetAttribute(self.raw, attribute, bytes) };
        context.check(result, "cannot give a function more shared memory")
    }

    /// How many of its blocks, of so many threads and bytes of dynamic shared memory each, a multiprocessor runs at once.
    ///
    /// # Errors
    /// The driver's.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared_bytes: u32) -> Result<u32, Error> {
        self.context().make_current()?;
        let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
        let mut blocks = 0;
        // SAFETY: the function is loaded, and the place for the number outlives the call.
        let result = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut blocks, self.raw, threads, shared_bytes as usize)
        };
        self.context().check(result, "cannot ask how many blocks a multiprocessor runs")?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Bytes of each of its parameters, in their order.
    ///
    /// # Errors
    /// The driver's.
    pub fn parameters(&self) -> Result<Vec<usize>, Error> {
        self.context().make_current()?;
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function is loaded, and both places outlive the call.
            let result = unsafe { sys::cuFuncGetParamInfo(self.raw, sizes.len(), &raw mut offset, &raw mut size) };
            // How it says that there are no more.
            if result == CUresult::CUDA_ERROR_INVALID_VALUE {
                return Ok(sizes);
            }
            self.context().check(result, "cannot ask for a function's parameters")?;
            sizes.push(size);
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.module.inner.context
    }

    pub(crate) fn raw(&self) -> CUfunction {
        self.raw
    }

    fn attribute(&self, attribute: Attribute) -> Result<u32, Error> {
        let context = self.context();
        context.make_current()?;
        let mut value = 0;
        // SAFETY: the function is loaded, and the place for the value outlives the call.
        let result = unsafe { sys::cuFuncGetAttribute(&raw mut value, attribute, self.raw) };
        context.check(result, "cannot ask for an attribute of a function")?;
        Ok(u32::try_from(value).unwrap_or(0))
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("module", &self.module).finish_non_exhaustive()
    }
}

const LOAD: &str = "cannot load a module";

/// Whether bytes begin as an ELF file or a fatbin does.
fn is_binary(image: &[u8]) -> bool {
    const FATBIN: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
    image.starts_with(b"\x7fELF") || image.starts_with(&FATBIN)
}

/// What a compiler wrote, if it did.
fn words(log: &[u8]) -> Option<Box<str>> {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let text = text.trim();
    if text.is_empty() { None } else { Some(text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_like_code_is_given_to_the_driver() {
        assert!(is_binary(b"\x7fELF\x02\x01"));
        assert!(is_binary(&[0x50, 0xed, 0x55, 0xba, 1, 0]));
        assert!(!is_binary(b".version 7.0"));
        assert!(!is_binary(b""));
    }

    #[test]
    fn a_compilers_words_end_at_the_terminator() {
        assert_eq!(words(b"line 1: bad\n\0\0\0").as_deref(), Some("line 1: bad"));
        assert_eq!(words(b"full").as_deref(), Some("full"));
        assert_eq!(words(b"\n\0"), None);
    }
}
