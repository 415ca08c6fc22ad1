//! What a caller asks for.

use std::time::Duration;

use bytes::Bytes;
use splitrpc_wire::{DType, ManifestWriter, Shape, TensorDesc, WireError};

use crate::Error;

/// Names a request within its connection. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A tensor's bytes: little-endian, row-major, without padding.
///
/// What the socket takes at once is read from here by the kernel and copied by nobody else. The rest, if any, is kept:
/// borrowed bytes by a copy into a buffer that is reused, shared ones by counting a reference.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Lent for the call.
    Borrowed(&'a [u8]),
    /// Shared; the connection may keep a reference until the bytes have left.
    Shared(&'a Bytes),
}

impl<'a> Data<'a> {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &'a [u8] {
        match self {
            Data::Borrowed(bytes) => bytes,
            Data::Shared(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Data<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Data::Borrowed(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Data<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Data::Borrowed(bytes)
    }
}

impl<'a> From<&'a Bytes> for Data<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        Data::Shared(bytes)
    }
}

/// One input of a request, by handle.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Handle (index among the model's inputs), type, shape, bytes.
    pub desc: TensorDesc,
    /// As many bytes as `desc` says.
    pub data: Data<'a>,
}

impl<'a> Tensor<'a> {
    /// The model's input number `handle`, of this type and shape.
    ///
    /// # Errors
    /// [`WireError::BadRank`] for too many dimensions, [`WireError::BadSize`] where the bytes do not follow from type
    /// and shape.
    pub fn new(handle: u16, dtype: DType, dims: &[u32], data: impl Into<Data<'a>>) -> Result<Tensor<'a>, WireError> {
        let (shape, data) = (Shape::new(dims)?, data.into());
        let bytes = u32::try_from(data.as_slice().len()).map_err(|_| WireError::BadSize)?;
        let desc = match dtype {
            DType::Bytes => TensorDesc { handle, dtype, shape, bytes },
            _ => TensorDesc::fixed(handle, dtype, shape)?,
        };
        if desc.bytes == bytes { Ok(Tensor { desc, data }) } else { Err(WireError::BadSize) }
    }
}

/// A request, by handles. [`crate::Model::bind`] makes the tensors from names.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The model's handle.
    pub model: u16,
    /// Its inputs.
    pub tensors: &'a [Tensor<'a>],
    /// The time within which the answer is of use, counted from the submission. Both sides give up after it.
    pub deadline: Option<Duration>,
    /// 0 is the model's default, 1 the highest.
    pub priority: u8,
    /// Whether executing it twice does no harm.
    pub repeatable: bool,
}

impl<'a> Request<'a> {
    /// A request without a deadline, of default priority, to be executed at most once.
    #[must_use]
    pub fn new(model: u16, tensors: &'a [Tensor<'a>]) -> Request<'a> {
        Request { model, tensors, deadline: None, priority: 0, repeatable: false }
    }
}

/// Writes the manifest of a request with these tensors.
pub(crate) fn describe(tensors: &[Tensor<'_>], manifest: &mut ManifestWriter) -> Result<(), Error> {
    manifest.clear();
    for tensor in tensors {
        let bytes = tensor.data.as_slice().len();
        if tensor.desc.bytes as usize != bytes {
            let (handle, said) = (tensor.desc.handle, tensor.desc.bytes);
            return Err(Error::BadInput(format!("input {handle} has {bytes} bytes, its type and shape make {said}")));
        }
        manifest.push(&tensor.desc).map_err(|e| Error::BadInput(format!("input {}: {e}", tensor.desc.handle)))?;
    }
    Ok(())
}

/// A deadline as requests carry it: microseconds, 0 for none.
pub(crate) fn deadline_us(deadline: Option<Duration>) -> u32 {
    deadline.map_or(0, |d| u32::try_from(d.as_micros()).unwrap_or(u32::MAX).max(1))
}

/// One input of a call by name.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The input's name in the model; may be empty where the model has but one.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first, the batch dimension included.
    pub dims: &'a [u32],
    /// The bytes.
    pub data: Data<'a>,
}

impl<'a> Input<'a> {
    /// An input of this name, type and shape.
    pub fn new(name: &'a str, dtype: DType, dims: &'a [u32], data: impl Into<Data<'a>>) -> Input<'a> {
        Input { name, dtype, dims, data: data.into() }
    }
}
