//! Tensors that go in and come out.

use std::ffi::c_void;
use std::fmt;
use std::ptr;

use crate::error::Error;
use crate::library::{Ask, Functions, Handle, Library};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Float16,
    Bfloat16,
    Float32,
    Float64,
}

impl Element {
    /// All of them, in their order.
    pub(crate) const ALL: [Element; 13] = [
        Element::Bool,
        Element::Uint8,
        Element::Uint16,
        Element::Uint32,
        Element::Uint64,
        Element::Int8,
        Element::Int16,
        Element::Int32,
        Element::Int64,
        Element::Float16,
        Element::Bfloat16,
        Element::Float32,
        Element::Float64,
    ];

    /// Bytes of one.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Element::Bool | Element::Uint8 | Element::Int8 => 1,
            Element::Uint16 | Element::Int16 | Element::Float16 | Element::Bfloat16 => 2,
            Element::Uint32 | Element::Int32 | Element::Float32 => 4,
            Element::Uint64 | Element::Int64 | Element::Float64 => 8,
        }
    }

    /// The name that PyTorch has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Element::Bool => "bool",
            Element::Uint8 => "uint8",
            Element::Uint16 => "uint16",
            Element::Uint32 => "uint32",
            Element::Uint64 => "uint64",
            Element::Int8 => "int8",
            Element::Int16 => "int16",
            Element::Int32 => "int32",
            Element::Int64 => "int64",
            Element::Float16 => "float16",
            Element::Bfloat16 => "bfloat16",
            Element::Float32 => "float32",
            Element::Float64 => "float64",
        }
    }
}

/// A dense tensor at an address of the device, in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'d> {
    /// Of its first byte.
    pub address: u64,
    /// What its elements are.
    pub element: Element,
    /// How many of them, from the outermost dimension on.
    pub sizes: &'d [i64],
}

impl View<'_> {
    fn shown(&self) -> String {
        format!("{}{:?}", self.element.name(), self.sizes)
    }
}

/// A tensor of PyTorch's, which is given back when this is dropped.
pub struct Tensor {
    library: Library,
    handle: Handle,
}

impl Tensor {
    /// # Safety
    /// `handle` is a tensor that is nobody else's to give back.
    pub(crate) unsafe fn own(library: &Library, handle: Handle) -> Tensor {
        Tensor { library: library.clone(), handle }
    }

    /// A tensor over memory of somebody else's, which is not given back with it.
    pub(crate) fn over(library: &Library, view: &View<'_>, device: i32) -> Result<Tensor, Error> {
        let functions = library.functions();
        let strides = row_major(view.sizes);
        let mut handle = ptr::null_mut();
        // SAFETY: sizes and strides are as many as the rank, and are copied; nothing looks at the memory.
        let status = unsafe {
            (functions.from_blob)(
                view.address as *mut c_void,
                view.sizes.len() as i64,
                view.sizes.as_ptr(),
                strides.as_ptr(),
                0,
                functions.number(view.element),
                functions.cuda,
                device,
                &raw mut handle,
                functions.strided,
                ptr::null(),
                0,
            )
        };
        if status != 0 || handle.is_null() {
            return Err(Error::Failed { what: "cannot make a tensor" });
        }
        // SAFETY: it was made just now.
        Ok(unsafe { Tensor::own(library, handle) })
    }

    /// Gives the tensor away.
    pub(crate) fn into_handle(self) -> Handle {
        let handle = self.handle;
        std::mem::forget(self);
        handle
    }

    /// The address of its first byte, after it has been checked that it is dense, on a CUDA device, and as `expected`, whose address
    /// does not count.
    ///
    /// # Errors
    /// [`Error::Output`] with this index; [`Error::Failed`].
    pub fn address(&self, index: usize, expected: &View<'_>) -> Result<u64, Error> {
        let functions = self.library.functions();
        let (rank, dtype, device) =
            (self.ask(functions.rank)?, self.ask(functions.dtype)?, self.ask(functions.device_type)?);
        let (sizes, strides) = (self.ask(functions.sizes)?, self.ask(functions.strides)?);
        let list = |of: *mut i64| match usize::try_from(rank) {
            // SAFETY: PyTorch says that so many are there, as long as the tensor is.
            Ok(len) if len > 0 && !of.is_null() => unsafe { std::slice::from_raw_parts(of, len) },
            _ => &[],
        };
        let (sizes, strides) = (list(sizes), list(strides));
        let dense = is_row_major(sizes, strides);
        if device != functions.cuda || !dense || sizes != expected.sizes || dtype != functions.number(expected.element)
        {
            let element = functions.element(dtype).map_or("of another type", Element::name);
            let layout = if dense { "" } else { " that is not contiguous" };
            let place = if device == functions.cuda { "" } else { ", and not on a CUDA device" };
            let found = format!("{element}{sizes:?}{layout}{place}");
            return Err(Error::Output { index, found, expected: expected.shown() });
        }
        Ok(self.ask(functions.data)? as u64)
    }

    fn ask<T: Answer>(&self, question: Ask<T>) -> Result<T, Error> {
        let mut answer = T::NONE;
        // SAFETY: the tensor is live, and the place for the answer outlives the call.
        let status = unsafe { question(self.handle, &raw mut answer) };
        if status == 0 { Ok(answer) } else { Err(Error::Failed { what: "cannot say what a tensor is like" }) }
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let functions: &Functions = self.library.functions();
        // SAFETY: it is this one's alone.
        let _ = unsafe { (functions.delete)(self.handle) };
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").finish_non_exhaustive()
    }
}

trait Answer {
    const NONE: Self;
}

impl Answer for i32 {
    const NONE: i32 = 0;
}

impl Answer for i64 {
    const NONE: i64 = 0;
}

impl<T> Answer for *mut T {
    const NONE: *mut T = ptr::null_mut();
}

fn row_major(sizes: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; sizes.len()];
    for at in (0..sizes.len().saturating_sub(1)).rev() {
        strides[at] = strides[at + 1] * sizes[at + 1].max(1);
    }
    strides
}

/// Where there is one element in a dimension, its stride means nothing.
fn is_row_major(sizes: &[i64], strides: &[i64]) -> bool {
    let expected = row_major(sizes);
    sizes.contains(&0)
        || sizes.len() == strides.len() && (0..sizes.len()).all(|at| sizes[at] == 1 || strides[at] == expected[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_of_single_elements_mean_nothing() {
        assert_eq!(row_major(&[2, 3, 4]), [12, 4, 1]);
        assert!(is_row_major(&[1, 3, 2, 2], &[1, 4, 2, 1]));
        assert!(is_row_major(&[], &[]));
        assert!(!is_row_major(&[2, 3, 2, 2], &[12, 1, 6, 3]));
        assert!(is_row_major(&[0, 7], &[1, 1]));
    }
}
