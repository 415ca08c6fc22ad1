//! The model catalogue: what a server serves. Records stand back to back; a client fetches them in pieces by offset.

use zerocopy::little_endian::{I32, U16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{DType, MAX_RANK, MAX_TENSORS, WireError};

/// Longest name of a model or tensor, in bytes.
pub const MAX_NAME: usize = 128;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    length: U16,
    handle: U16,
    version: U16,
    max_batch: U16,
    inputs: u8,
    outputs: u8,
    name_len: u8,
    reserved: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    dtype: u8,
    rank: u8,
    name_len: u8,
    reserved: u8,
}

/// A tensor that a model takes or gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its name in the model.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    dims: [i32; MAX_RANK],
    rank: u8,
}

impl<'a> TensorInfo<'a> {
    /// A tensor of this name, type and shape; -1 stands for a dimension that varies. The batch dimension, where the
    /// model has one, is included and varies.
    ///
    /// # Errors
    /// [`WireError::BadRank`], [`WireError::BadText`] for a name that is too long, [`WireError::BadSize`] for a dimension
    /// below -1.
    pub fn new(name: &'a str, dtype: DType, dims: &[i32]) -> Result<TensorInfo<'a>, WireError> {
        if name.len() > MAX_NAME {
            return Err(WireError::BadText);
        }
        if dims.iter().any(|&dim| dim < -1) {
            return Err(WireError::BadSize);
        }
        let mut all = [0; MAX_RANK];
        all.get_mut(..dims.len()).ok_or(WireError::BadRank)?.copy_from_slice(dims);
        Ok(TensorInfo { name, dtype, dims: all, rank: dims.len() as u8 })
    }

    /// Dimensions; -1 varies.
    #[must_use]
    pub fn dims(&self) -> &[i32] {
        &self.dims[..usize::from(self.rank)]
    }
}

/// One model of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct ModelInfo<'a> {
    /// What request headers call it.
    pub handle: u16,
    /// Its name.
    pub name: &'a str,
    /// The version that is served.
    pub version: u16,
    /// Rows that the server may batch; 0 where the model has no batch dimension.
    pub max_batch: u16,
    inputs: u8,
    outputs: u8,
    tensors: &'a [u8],
}

impl<'a> ModelInfo<'a> {
    /// The tensors it takes, in the order of their handles.
    pub fn inputs(&self) -> impl Iterator<Item = TensorInfo<'a>> + use<'a> {
        TensorWalk { rest: self.tensors }.take(usize::from(self.inputs))
    }

    /// The tensors it gives, in the order of their handles.
    pub fn outputs(&self) -> impl Iterator<Item = TensorInfo<'a>> + use<'a> {
        TensorWalk { rest: self.tensors }.skip(usize::from(self.inputs)).take(usize::from(self.outputs))
    }
}

/// Walks a catalogue's models. Yields an error once and then ends, where the bytes break the format.
#[derive(Clone, Debug)]
pub struct Catalog<'a> {
    rest: &'a [u8],
}

impl<'a> Catalog<'a> {
    /// The catalogue in these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Catalog<'a> {
        Catalog { rest: bytes }
    }

    fn step(&mut self) -> Result<ModelInfo<'a>, WireError> {
        let (head, _) = Head::ref_from_prefix(self.rest).map_err(|_| WireError::Truncated)?;
        let (record, after) = self.rest.split_at_checked(usize::from(head.length.get())).ok_or(WireError::Truncated)?;
        let body = record.get(size_of::<Head>()..).ok_or(WireError::BadManifest)?;
        let (inputs, outputs) = (usize::from(head.inputs), usize::from(head.outputs));
        if head.reserved != 0 {
            return Err(WireError::Reserved);
        }
        if inputs > MAX_TENSORS || outputs > MAX_TENSORS {
            return Err(WireError::BadManifest);
        }
        let (name, tensors) = take_name(body, head.name_len)?;
        let mut walk = TensorWalk { rest: tensors };
        for _ in 0..inputs + outputs {
            walk.step()?;
        }
        if !walk.rest.is_empty() {
            return Err(WireError::BadManifest);
        }
        self.rest = after;
        Ok(ModelInfo {
            handle: head.handle.get(),
            name,
            version: head.version.get(),
            max_batch: head.max_batch.get(),
            inputs: head.inputs,
            outputs: head.outputs,
            tensors,
        })
    }
}

impl<'a> Iterator for Catalog<'a> {
    type Item = Result<ModelInfo<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.rest = &[];
        }
        Some(step)
    }
}

#[derive(Clone, Debug)]
struct TensorWalk<'a> {
    rest: &'a [u8],
}

impl<'a> TensorWalk<'a> {
    fn step(&mut self) -> Result<TensorInfo<'a>, WireError> {
        let (entry, rest) = Entry::ref_from_prefix(self.rest).map_err(|_| WireError::Truncated)?;
        let rank = usize::from(entry.rank);
        if entry.reserved != 0 {
            return Err(WireError::Reserved);
        }
        if rank > MAX_RANK {
            return Err(WireError::BadRank);
        }
        let (dims, rest) = <[I32]>::ref_from_prefix_with_elems(rest, rank).map_err(|_| WireError::Truncated)?;
        let (name, rest) = take_name(rest, entry.name_len)?;
        let mut all = [0; MAX_RANK];
        for (to, from) in all.iter_mut().zip(dims) {
            *to = from.get();
        }
        self.rest = rest;
        TensorInfo::new(name, DType::from_code(entry.dtype)?, &all[..rank])
    }
}

impl<'a> Iterator for TensorWalk<'a> {
    type Item = TensorInfo<'a>;

    fn next(&mut self) -> Option<TensorInfo<'a>> {
        // `Catalog::step` has walked these bytes once without an error.
        self.step().ok()
    }
}

fn take_name(bytes: &[u8], len: u8) -> Result<(&str, &[u8]), WireError> {
    if usize::from(len) > MAX_NAME {
        return Err(WireError::BadText);
    }
    let (name, rest) = bytes.split_at_checked(usize::from(len)).ok_or(WireError::Truncated)?;
    Ok((core::str::from_utf8(name).map_err(|_| WireError::BadText)?, rest))
}

/// Writes one model's record to the head of `out` and returns its length.
///
/// # Errors
/// [`WireError::TooLong`] where `out` or the record format has no room, [`WireError::BadText`] for a name that is too
/// long, [`WireError::BadManifest`] for more than [`MAX_TENSORS`] tensors.
pub fn write_model(
    out: &mut [u8],
    handle: u16,
    name: &str,
    version: u16,
    max_batch: u16,
    inputs: &[TensorInfo<'_>],
    outputs: &[TensorInfo<'_>],
) -> Result<usize, WireError> {
    if name.len() > MAX_NAME {
        return Err(WireError::BadText);
    }
    if inputs.len() > MAX_TENSORS || outputs.len() > MAX_TENSORS {
        return Err(WireError::BadManifest);
    }
    let mut at = size_of::<Head>();
    let mut put = |bytes: &[u8]| {
        let room = out.get_mut(at..at + bytes.len()).ok_or(WireError::TooLong)?;
        room.copy_from_slice(bytes);
        at += bytes.len();
        Ok(())
    };
    put(name.as_bytes())?;
    for tensor in inputs.iter().chain(outputs) {
        let entry =
            Entry { dtype: tensor.dtype as u8, rank: tensor.rank, name_len: tensor.name.len() as u8, reserved: 0 };
        put(entry.as_bytes())?;
        for &dim in tensor.dims() {
            put(&dim.to_le_bytes())?;
        }
        put(tensor.name.as_bytes())?;
    }
    let head = Head {
        length: U16::new(u16::try_from(at).map_err(|_| WireError::TooLong)?),
        handle: U16::new(handle),
        version: U16::new(version),
        max_batch: U16::new(max_batch),
        inputs: inputs.len() as u8,
        outputs: outputs.len() as u8,
        name_len: name.len() as u8,
        reserved: 0,
    };
    out.get_mut(..size_of::<Head>()).ok_or(WireError::TooLong)?.copy_from_slice(head.as_bytes());
    Ok(at)
}
