//! NumPy's `.npy` files, versions 1 to 3, of every type that the protocol carries.
//!
//! What is read comes out little-endian and row-major, whatever it was in the file. Strings (`S` and `U`) become
//! `BYTES` tensors; Python objects, complex numbers, dates and records are refused by name. bfloat16, which NumPy does
//! not know, is read from the two-byte opaque type that ml_dtypes writes, and written as FP32, which holds it exactly.

mod convert;
mod header;

use std::fmt;
use std::io::{self, Read, Write};

use splitrpc_wire::{DType, MAX_RANK, Shape};

use self::header::Layout;

/// A tensor from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub dims: Vec<u32>,
    /// The bytes as the protocol carries them.
    pub data: Vec<u8>,
}

/// Why a file could not be read or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum NpyError {
    /// The file system's own error.
    Io(io::Error),
    /// Not an `.npy` file.
    NotNpy,
    /// The file ends before its array does.
    Truncated,
    /// There are bytes behind the array.
    TrailingBytes,
    /// The header cannot be understood.
    BadHeader(&'static str),
    /// A type that the protocol does not carry, or that this crate does not convert.
    Unsupported(String),
    /// Larger than allowed, in bytes.
    TooLarge {
        /// What the header says.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A tensor whose bytes do not follow from its type and shape.
    BadTensor(&'static str),
}

/// Reads an array; it and its converted form may have up to `limit` bytes each.
///
/// # Errors
/// See [`NpyError`].
pub fn read(input: &mut impl Read, limit: u64) -> Result<Array, NpyError> {
    let layout = header::read(input)?;
    let stored = layout.stored_bytes().filter(|&b| b <= limit);
    let stored = stored.ok_or(NpyError::TooLarge { bytes: layout.stored_bytes().unwrap_or(u64::MAX), limit })?;
    // Grows with what arrives, whatever the header claims.
    let mut data = Vec::new();
    input.by_ref().take(stored).read_to_end(&mut data)?;
    if data.len() as u64 != stored {
        return Err(NpyError::Truncated);
    }
    if input.read(&mut [0])? != 0 {
        return Err(NpyError::TrailingBytes);
    }
    let Layout { element, fortran, ref dims, .. } = layout;
    let data = if fortran { convert::to_row_major(&data, dims, element.size as usize) } else { data };
    let (dtype, data) = convert::to_wire(data, element, limit)?;
    Ok(Array { dtype, dims: dims.clone(), data })
}

/// Writes a tensor whose bytes are as the protocol carries them.
///
/// # Errors
/// [`NpyError::BadTensor`] where type, shape and bytes contradict each other, [`NpyError::Unsupported`] for byte strings
/// that the format cannot hold, [`NpyError::Io`].
pub fn write(output: &mut impl Write, dtype: DType, dims: &[u32], data: &[u8]) -> Result<(), NpyError> {
    let shape = Shape::new(dims).map_err(|_| NpyError::BadTensor("too many dimensions"))?;
    let elements = shape.elements().ok_or(NpyError::BadTensor("too many elements"))?;
    if dtype.size().is_some() && shape.bytes(dtype).map(u64::from) != Some(data.len() as u64) {
        return Err(NpyError::BadTensor("its bytes do not follow from its type and shape"));
    }
    let (descr, converted) = convert::from_wire(dtype, elements, data)?;
    output.write_all(&header::write(&descr, dims))?;
    output.write_all(converted.as_deref().unwrap_or(data))?;
    Ok(())
}

/// Dimensions of a file, checked against the protocol's rank.
fn checked_dims(dims: &[u64]) -> Result<Vec<u32>, NpyError> {
    if dims.len() > MAX_RANK {
        return Err(NpyError::Unsupported(format!("{} dimensions; at most {MAX_RANK} are carried", dims.len())));
    }
    let narrow = |d: &u64| u32::try_from(*d).map_err(|_| NpyError::BadHeader("a dimension is too large"));
    dims.iter().map(narrow).collect()
}

impl From<io::Error> for NpyError {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::UnexpectedEof { NpyError::Truncated } else { NpyError::Io(e) }
    }
}

impl fmt::Display for NpyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NpyError::Io(e) => e.fmt(f),
            NpyError::NotNpy => f.write_str("not an .npy file; write one with numpy.save"),
            NpyError::Truncated => f.write_str("the file ends before its array does"),
            NpyError::TrailingBytes => f.write_str("there are bytes behind the array; one file holds one array"),
            NpyError::BadHeader(why) => write!(f, "the header cannot be read: {why}"),
            NpyError::Unsupported(what) => write!(f, "not supported: {what}"),
            NpyError::TooLarge { bytes, limit } => write!(f, "{bytes} bytes, at most {limit} are allowed"),
            NpyError::BadTensor(why) => write!(f, "malformed tensor: {why}"),
        }
    }
}

impl std::error::Error for NpyError {}
