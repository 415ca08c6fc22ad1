//! The shape of a message: tensor sizes, and the pieces in which it travels.

use splitrpc_ring::Run;
use splitrpc_wire::{MAX_TENSORS, Manifest};

/// Tensor sizes of a message.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    tensors: u8,
    bytes: [u32; MAX_TENSORS],
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes::NONE
    }
}

impl Sizes {
    pub(crate) const NONE: Sizes = Sizes { tensors: 0, bytes: [0; MAX_TENSORS] };

    #[inline]
    pub(crate) fn of(manifest: &Manifest<'_>) -> Sizes {
        let mut sizes = Sizes::NONE;
        for (to, tensor) in sizes.bytes.iter_mut().zip(manifest.tensors()) {
            *to = tensor.bytes;
        }
        sizes.tensors = manifest.len() as u8;
        sizes
    }

    pub(crate) fn set(&mut self, sizes: impl Iterator<Item = u32>) {
        self.tensors = 0;
        for (to, from) in self.bytes.iter_mut().zip(sizes) {
            *to = from;
            self.tensors += 1;
        }
    }

    /// Becomes equal to `other`. Most messages have few tensors, so only those are copied.
    pub(crate) fn assign(&mut self, other: &Sizes) {
        self.tensors = other.tensors;
        for (to, from) in self.bytes.iter_mut().zip(other.as_slice()) {
            *to = *from;
        }
    }

    /// Bytes of each tensor, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.bytes[..usize::from(self.tensors)]
    }

    /// Bytes of one tensor, or `None` where the message has no such tensor.
    #[must_use]
    pub fn get(&self, tensor: u16) -> Option<u32> {
        self.as_slice().get(usize::from(tensor)).copied()
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.as_slice().iter().map(|b| u64::from(*b)).sum()
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> u16 {
        u16::from(self.tensors)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors == 0
    }

    /// How many tensors a chunk touches.
    pub(crate) fn count(&self, chunk: &Chunk) -> u16 {
        match chunk {
            Chunk::First { whole: true, .. } => self.len(),
            _ => 1,
        }
    }

    /// The `n`th tensor range that a chunk covers, in the key space that puts all tensors' bytes on one line.
    #[inline]
    pub(crate) fn range(&self, chunk: &Chunk, n: u16) -> (u64, u64) {
        match *chunk {
            Chunk::First { whole: true, .. } => key_range(n, 0, self.get(n).unwrap_or(0)),
            Chunk::First { length, .. } => key_range(0, 0, length),
            Chunk::Part { tensor, offset, length } => key_range(tensor, offset, length),
        }
    }
}

fn key_range(tensor: u16, offset: u32, length: u32) -> (u64, u64) {
    let start = u64::from(tensor) << 32 | u64::from(offset);
    (start, start + u64::from(length))
}

/// One frame's worth of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// The manifest and the first `length` data bytes: of tensor 0, or of all tensors if `whole`.
    First {
        /// Data bytes.
        length: u32,
        /// Whether that is all of the message's data.
        whole: bool,
    },
    /// Part of a tensor.
    Part {
        /// The tensor.
        tensor: u16,
        /// First byte.
        offset: u32,
        /// Data bytes.
        length: u32,
    },
}

impl Chunk {
    /// A chunk with as many further ones behind it, each as long as it is.
    pub(crate) fn with_following(self, count: u32) -> Chunk {
        match self {
            Chunk::Part { tensor, offset, length } => Chunk::Part { tensor, offset, length: length * (count + 1) },
            first @ Chunk::First { .. } => first,
        }
    }

    pub(crate) fn length(&self) -> u32 {
        match *self {
            Chunk::First { length, .. } | Chunk::Part { length, .. } => length,
        }
    }
}

/// A stretch of one tensor in one run of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The slots.
    pub run: Run,
    /// The tensor.
    pub tensor: u16,
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

impl Piece {
    /// The share of a train's `n`th frame, each of which carries `length` bytes, where this is what all of it carries.
    #[inline]
    #[must_use]
    pub fn share(self, n: u32, length: u32) -> Piece {
        Piece { offset: self.offset + n * length, length, ..self }
    }
}

/// The stretches that a chunk covers, in the order of its bytes; empty tensors are left out.
#[derive(Clone, Debug)]
pub struct Pieces<'s> {
    run: Run,
    chunk: Chunk,
    sizes: &'s Sizes,
    next: u16,
}

impl<'s> Pieces<'s> {
    pub(crate) fn new(run: Run, chunk: Chunk, sizes: &'s Sizes) -> Pieces<'s> {
        Pieces { run, chunk, sizes, next: 0 }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        while self.next < self.sizes.count(&self.chunk) {
            let (start, end) = self.sizes.range(&self.chunk, self.next);
            self.next += 1;
            if start < end {
                return Some(Piece {
                    run: self.run,
                    tensor: (start >> 32) as u16,
                    offset: start as u32,
                    length: (end - start) as u32,
                });
            }
        }
        None
    }
}
