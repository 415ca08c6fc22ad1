//! Parts of memory, as copies take them.
#![expect(unsafe_code, reason = "calls of DOCA")]

use std::fmt;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use doca_sys::{doca_buf, doca_buf_inventory};

use crate::device::{not_null, told};
use crate::error::{Code, Error, check};
use crate::library::Library;
use crate::memory::Memory;

/// A number of buffers, made beforehand. Clones are the same.
#[derive(Clone)]
pub struct Inventory {
    inner: Rc<Inner>,
}

struct Inner {
    library: Library,
    inventory: NonNull<doca_buf_inventory>,
}

impl Inventory {
    /// `count` buffers.
    ///
    /// # Errors
    /// Those of DOCA.
    pub fn new(library: &Library, count: usize) -> Result<Inventory, Error> {
        let doca = library.doca();
        let mut inventory = ptr::null_mut();
        // SAFETY: what is written to lives through the call.
        let answer = unsafe { (doca.doca_buf_inventory_create)(count, &raw mut inventory) };
        check("doca_buf_inventory_create", answer)?;
        let inventory = not_null("doca_buf_inventory_create", inventory)?;
        let made = Inventory { inner: Rc::new(Inner { library: library.clone(), inventory }) };
        // SAFETY: it was just made.
        check("doca_buf_inventory_start", unsafe { (doca.doca_buf_inventory_start)(inventory.as_ptr()) })?;
        Ok(made)
    }

    /// `len` bytes at `offset`, to be read.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] where they are not all inside, [`Code::NO_MEMORY`] where no buffer is left.
    pub fn source(&self, memory: &Memory, offset: usize, len: usize) -> Result<Buffer, Error> {
        self.buffer(memory, offset, len, len)
    }

    /// `len` bytes at `offset`, to be written.
    ///
    /// # Errors
    /// As for [`Inventory::source`].
    pub fn target(&self, memory: &Memory, offset: usize, len: usize) -> Result<Buffer, Error> {
        self.buffer(memory, offset, len, 0)
    }

    fn buffer(&self, memory: &Memory, offset: usize, len: usize, data_len: usize) -> Result<Buffer, Error> {
        const CALL: &str = "doca_buf_inventory_buf_get_by_args";
        let outside = Error::refused(CALL, Code::INVALID_VALUE, "the bytes are not all inside the memory");
        let address = memory.address(offset, len).ok_or(outside)?;
        let (inventory, mut buffer) = (self.inner.inventory.as_ptr(), ptr::null_mut());
        // SAFETY: inventory and memory are there; that the bytes are inside was just checked, and DOCA only notes where they are.
        let answer = unsafe {
            let get = self.inner.library.doca().doca_buf_inventory_buf_get_by_args;
            get(inventory, memory.as_ptr(), address, len, address, data_len, &raw mut buffer)
        };
        check(CALL, answer)?;
        Ok(Buffer { buffer: not_null(CALL, buffer)?, len, memory: memory.clone(), inventory: self.clone() })
    }
}

impl fmt::Debug for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inventory").finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made once, given back once; each buffer of it holds it.
        let answer = unsafe { (self.library.doca().doca_buf_inventory_destroy)(self.inventory.as_ptr()) };
        told(check("doca_buf_inventory_destroy", answer));
    }
}

/// Some bytes of a [`Memory`], which stays for as long as this.
pub struct Buffer {
    buffer: NonNull<doca_buf>,
    len: usize,
    memory: Memory,
    inventory: Inventory,
}

impl Buffer {
    /// Bytes of it.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The memory that they are of.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn as_ptr(&self) -> *mut doca_buf {
        self.buffer.as_ptr()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let doca = self.inventory.inner.library.doca();
        // SAFETY: taken out once, given back once; a task that uses it holds it.
        let answer = unsafe { (doca.doca_buf_dec_refcount)(self.as_ptr(), ptr::null_mut()) };
        told(check("doca_buf_dec_refcount", answer));
    }
}
