//! Tensor types and shapes.

use zerocopy::little_endian::U32;

use crate::WireError;

/// Most dimensions a tensor may have.
pub const MAX_RANK: usize = 8;
/// Most tensors that one message may carry.
pub const MAX_TENSORS: usize = 32;

/// Element type, with the names of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// One byte, 0 or 1.
    Bool = 1,
    /// Unsigned, 8 bits.
    Uint8 = 2,
    /// Unsigned, 16 bits.
    Uint16 = 3,
    /// Unsigned, 32 bits.
    Uint32 = 4,
    /// Unsigned, 64 bits.
    Uint64 = 5,
    /// Signed, 8 bits.
    Int8 = 6,
    /// Signed, 16 bits.
    Int16 = 7,
    /// Signed, 32 bits.
    Int32 = 8,
    /// Signed, 64 bits.
    Int64 = 9,
    /// IEEE half precision.
    Fp16 = 10,
    /// IEEE single precision.
    Fp32 = 11,
    /// IEEE double precision.
    Fp64 = 12,
    /// Elements of variable length: each a little-endian `u32` length and that many bytes.
    Bytes = 13,
    /// bfloat16.
    Bf16 = 14,
}

impl DType {
    /// Every type, in the order of its code.
    pub const ALL: [DType; 14] = [
        DType::Bool,
        DType::Uint8,
        DType::Uint16,
        DType::Uint32,
        DType::Uint64,
        DType::Int8,
        DType::Int16,
        DType::Int32,
        DType::Int64,
        DType::Fp16,
        DType::Fp32,
        DType::Fp64,
        DType::Bytes,
        DType::Bf16,
    ];

    /// The type with this wire code.
    ///
    /// # Errors
    /// [`WireError::BadType`] where there is none.
    #[inline]
    pub fn from_code(code: u8) -> Result<DType, WireError> {
        DType::ALL.get(usize::from(code).wrapping_sub(1)).copied().ok_or(WireError::BadType)
    }

    /// Bytes of one element, or `None` where elements vary in length.
    #[must_use]
    pub const fn size(self) -> Option<u32> {
        match self {
            DType::Bool | DType::Uint8 | DType::Int8 => Some(1),
            DType::Uint16 | DType::Int16 | DType::Fp16 | DType::Bf16 => Some(2),
            DType::Uint32 | DType::Int32 | DType::Fp32 => Some(4),
            DType::Uint64 | DType::Int64 | DType::Fp64 => Some(8),
            DType::Bytes => None,
        }
    }

    /// The Open Inference Protocol's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "BOOL",
            DType::Uint8 => "UINT8",
            DType::Uint16 => "UINT16",
            DType::Uint32 => "UINT32",
            DType::Uint64 => "UINT64",
            DType::Int8 => "INT8",
            DType::Int16 => "INT16",
            DType::Int32 => "INT32",
            DType::Int64 => "INT64",
            DType::Fp16 => "FP16",
            DType::Fp32 => "FP32",
            DType::Fp64 => "FP64",
            DType::Bytes => "BYTES",
            DType::Bf16 => "BF16",
        }
    }
}

/// A tensor's dimensions, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    rank: u8,
    dims: [u32; MAX_RANK],
}

impl Shape {
    /// A shape of these dimensions.
    ///
    /// # Errors
    /// [`WireError::BadRank`] for more than [`MAX_RANK`] of them.
    pub fn new(dims: &[u32]) -> Result<Shape, WireError> {
        let mut shape = Shape { rank: 0, dims: [0; MAX_RANK] };
        shape.dims.get_mut(..dims.len()).ok_or(WireError::BadRank)?.copy_from_slice(dims);
        shape.rank = dims.len() as u8;
        Ok(shape)
    }

    /// The shape of the dimensions as they lie on the wire; what is past [`MAX_RANK`] is left out. Taken one by one, since
    /// the few there are cost less than a call to copy them.
    #[inline]
    pub(crate) fn from_wire(dims: &[U32]) -> Shape {
        let mut shape = Shape { rank: dims.len().min(MAX_RANK) as u8, dims: [0; MAX_RANK] };
        for (to, from) in shape.dims.iter_mut().zip(dims) {
            *to = from.get();
        }
        shape
    }

    /// The dimensions.
    #[must_use]
    #[inline]
    pub fn dims(&self) -> &[u32] {
        &self.dims[..usize::from(self.rank)]
    }

    /// The number of elements, or `None` past `u64`.
    #[must_use]
    #[inline]
    pub fn elements(&self) -> Option<u64> {
        self.dims().iter().try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)))
    }

    /// Bytes of a tensor of this shape, or `None` for [`DType::Bytes`] and past `u32`.
    #[must_use]
    #[inline]
    pub fn bytes(&self, dtype: DType) -> Option<u32> {
        let bytes = self.elements()?.checked_mul(u64::from(dtype.size()?))?;
        u32::try_from(bytes).ok()
    }
}
