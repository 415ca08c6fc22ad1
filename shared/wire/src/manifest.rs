//! The manifest: what tensors a message carries.
//!
//! It stands once in each message, at the head of the payload of a frame flagged [`crate::Flags::MANIFEST`]:
//! an 8-byte head (length, tensor count, flags), for responses the 56-byte [`Path`], then for each tensor
//! its handle, type, rank, byte count and dimensions. `docs/wire.md` has the layout.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::path::{PATH_LEN, Path};
use crate::{DType, MAX_RANK, MAX_TENSORS, Shape, WireError};

/// Longest manifest: with a header it fits the smallest datagram that is ever used.
pub const MAX_MANIFEST_LEN: usize = 1024;
/// Bytes of the manifest's head, from which its whole length can be read.
pub const MANIFEST_HEAD_LEN: usize = 8;

const HAS_PATH: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    length: U16,
    tensors: u8,
    flags: u8,
    reserved: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    handle: U16,
    dtype: u8,
    rank: u8,
    bytes: U32,
}

/// Bytes of a tensor's entry, without its dimensions of 4 bytes each.
pub const MANIFEST_ENTRY_LEN: usize = size_of::<Entry>();

/// One tensor of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorDesc {
    /// Index of the tensor among the model's inputs (requests) or outputs (responses), from the catalogue.
    pub handle: u16,
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Shape,
    /// Bytes of data.
    pub bytes: u32,
}

impl TensorDesc {
    /// A tensor whose byte count follows from type and shape.
    ///
    /// # Errors
    /// [`WireError::BadSize`] for [`DType::Bytes`] and for tensors past `u32`.
    #[inline]
    pub fn fixed(handle: u16, dtype: DType, shape: Shape) -> Result<TensorDesc, WireError> {
        let bytes = shape.bytes(dtype).ok_or(WireError::BadSize)?;
        Ok(TensorDesc { handle, dtype, shape, bytes })
    }

    #[inline]
    fn check(&self) -> Result<(), WireError> {
        let fits = match self.dtype {
            // Each element has at least its length word.
            DType::Bytes => {
                self.shape.elements().and_then(|n| n.checked_mul(4)).is_some_and(|least| u64::from(self.bytes) >= least)
            }
            _ => self.shape.bytes(self.dtype) == Some(self.bytes),
        };
        if fits { Ok(()) } else { Err(WireError::BadSize) }
    }
}

/// A validated manifest over the bytes that it was parsed from.
#[derive(Clone, Copy, Debug)]
pub struct Manifest<'a> {
    bytes: &'a [u8],
    path: Option<Path>,
    tensors: u8,
    /// Where the first tensor's entry stands.
    entries: u8,
    data_len: u32,
}

impl<'a> Manifest<'a> {
    /// The length of the manifest that begins at `bytes`, read off its head.
    ///
    /// # Errors
    /// [`WireError::Truncated`] with fewer than [`MANIFEST_HEAD_LEN`] bytes, [`WireError::BadManifest`] for a
    /// length outside what the protocol allows.
    #[inline]
    pub fn peek_len(bytes: &[u8]) -> Result<usize, WireError> {
        let (head, _) = Head::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
        let length = usize::from(head.length.get());
        if (MANIFEST_HEAD_LEN..=MAX_MANIFEST_LEN).contains(&length) { Ok(length) } else { Err(WireError::BadManifest) }
    }

    /// Parses the manifest at the head of `bytes`, which may be longer.
    ///
    /// # Errors
    /// The rule that the bytes break.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Manifest<'a>, WireError> {
        let length = Manifest::peek_len(bytes)?;
        let bytes = bytes.get(..length).ok_or(WireError::Truncated)?;
        let (head, mut rest) = Head::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
        if head.flags & !HAS_PATH != 0 || head.reserved.get() != 0 {
            return Err(WireError::Reserved);
        }
        if usize::from(head.tensors) > MAX_TENSORS {
            return Err(WireError::BadManifest);
        }
        let mut path = None;
        if head.flags & HAS_PATH != 0 {
            let (block, after) = rest.split_at_checked(PATH_LEN).ok_or(WireError::BadManifest)?;
            path = Some(Path::parse(block)?);
            rest = after;
        }
        let entries = (length - rest.len()) as u8;
        let manifest = Manifest { bytes, path, tensors: head.tensors, entries, data_len: 0 };
        let mut data_len = 0u32;
        let mut least_handle = 0;
        let mut walk = Tensors { rest, left: head.tensors };
        while let Some(tensor) = walk.step()? {
            tensor.check()?;
            least_handle = next_handle(&tensor, least_handle)?;
            data_len = data_len.checked_add(tensor.bytes).ok_or(WireError::BadSize)?;
        }
        if !walk.rest.is_empty() {
            return Err(WireError::BadManifest);
        }
        Ok(Manifest { data_len, ..manifest })
    }

    /// The manifest's own bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many tensors it describes.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.tensors)
    }

    /// Whether it describes none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors == 0
    }

    /// Bytes of all its tensors together.
    #[must_use]
    pub fn data_len(&self) -> u32 {
        self.data_len
    }

    /// The path that a response took.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    /// The tensors in order.
    #[must_use]
    #[inline]
    pub fn tensors(&self) -> Tensors<'a> {
        Tensors { rest: &self.bytes[usize::from(self.entries)..], left: self.tensors }
    }
}

/// Handles ascend, so that none stands twice: the least that may follow this tensor's.
fn next_handle(tensor: &TensorDesc, least: u32) -> Result<u32, WireError> {
    let handle = u32::from(tensor.handle);
    if handle >= least { Ok(handle + 1) } else { Err(WireError::BadManifest) }
}

/// Walks a manifest's tensors.
#[derive(Clone, Debug)]
pub struct Tensors<'a> {
    rest: &'a [u8],
    left: u8,
}

impl Tensors<'_> {
    #[inline]
    fn step(&mut self) -> Result<Option<TensorDesc>, WireError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (entry, rest) = Entry::ref_from_prefix(self.rest).map_err(|_| WireError::BadManifest)?;
        let rank = usize::from(entry.rank);
        if rank > MAX_RANK {
            return Err(WireError::BadRank);
        }
        let (dims, rest) = <[U32]>::ref_from_prefix_with_elems(rest, rank).map_err(|_| WireError::BadManifest)?;
        self.rest = rest;
        Ok(Some(TensorDesc {
            handle: entry.handle.get(),
            dtype: DType::from_code(entry.dtype)?,
            shape: Shape::from_wire(dims),
            bytes: entry.bytes.get(),
        }))
    }
}

impl Iterator for Tensors<'_> {
    type Item = TensorDesc;

    #[inline]
    fn next(&mut self) -> Option<TensorDesc> {
        // `Manifest::parse` has walked these bytes once without an error.
        self.step().ok().flatten()
    }
}

/// Writes a manifest into a fixed buffer.
#[derive(Clone, Debug)]
pub struct ManifestWriter {
    bytes: [u8; MAX_MANIFEST_LEN],
    length: usize,
    tensors: u8,
    flags: u8,
    data_len: u32,
    least_handle: u32,
}

impl Default for ManifestWriter {
    fn default() -> Self {
        ManifestWriter::new()
    }
}

impl ManifestWriter {
    /// A manifest with no tensors, as requests start.
    #[must_use]
    pub fn new() -> ManifestWriter {
        ManifestWriter {
            bytes: [0; MAX_MANIFEST_LEN],
            length: MANIFEST_HEAD_LEN,
            tensors: 0,
            flags: 0,
            data_len: 0,
            least_handle: 0,
        }
    }

    /// A manifest with room for a [`Path`], as responses start. [`ManifestWriter::set_path`] fills it in.
    #[must_use]
    pub fn with_path() -> ManifestWriter {
        ManifestWriter { length: MANIFEST_HEAD_LEN + PATH_LEN, flags: HAS_PATH, ..ManifestWriter::new() }
    }

    /// Starts over, as it was when new, in the same memory.
    #[inline]
    pub fn clear(&mut self) {
        self.length = self.entries();
        self.bytes[MANIFEST_HEAD_LEN..self.length].fill(0);
        (self.tensors, self.data_len, self.least_handle) = (0, 0, 0);
    }

    /// Adds a tensor. Handles ascend.
    ///
    /// # Errors
    /// [`WireError::BadManifest`] when the manifest is full or the handle does not ascend, [`WireError::BadSize`] when the byte count does not
    /// follow from type and shape or the message would exceed `u32`.
    #[inline]
    pub fn push(&mut self, tensor: &TensorDesc) -> Result<(), WireError> {
        tensor.check()?;
        let least_handle = next_handle(tensor, self.least_handle)?;
        let data_len = self.data_len.checked_add(tensor.bytes).ok_or(WireError::BadSize)?;
        let end = self.length + MANIFEST_ENTRY_LEN + 4 * tensor.shape.dims().len();
        if end > MAX_MANIFEST_LEN || usize::from(self.tensors) == MAX_TENSORS {
            return Err(WireError::BadManifest);
        }
        let entry = Entry {
            handle: U16::new(tensor.handle),
            dtype: tensor.dtype as u8,
            rank: tensor.shape.dims().len() as u8,
            bytes: U32::new(tensor.bytes),
        };
        let (head, dims) = self.bytes[self.length..end].split_at_mut(MANIFEST_ENTRY_LEN);
        head.copy_from_slice(entry.as_bytes());
        for (to, dim) in dims.chunks_exact_mut(4).zip(tensor.shape.dims()) {
            to.copy_from_slice(&dim.to_le_bytes());
        }
        self.length = end;
        self.tensors += 1;
        self.data_len = data_len;
        self.least_handle = least_handle;
        Ok(())
    }

    /// Fills in the path of a manifest made by [`ManifestWriter::with_path`]; without effect on others.
    #[inline]
    pub fn set_path(&mut self, path: &Path) {
        if self.flags & HAS_PATH != 0 {
            self.bytes[MANIFEST_HEAD_LEN..MANIFEST_HEAD_LEN + PATH_LEN].copy_from_slice(&path.to_bytes());
        }
    }

    /// Bytes of all tensors together.
    #[must_use]
    pub fn data_len(&self) -> u32 {
        self.data_len
    }

    /// The manifest. Its tensors were checked when they were added; a path is left out, as only who reads it wants it.
    #[inline]
    pub fn manifest(&mut self) -> Manifest<'_> {
        let (tensors, entries, data_len) = (self.tensors, self.entries() as u8, self.data_len);
        Manifest { bytes: self.finish(), path: None, tensors, entries, data_len }
    }

    /// Where the first tensor's entry stands.
    fn entries(&self) -> usize {
        MANIFEST_HEAD_LEN + if self.flags & HAS_PATH != 0 { PATH_LEN } else { 0 }
    }

    /// The manifest's bytes.
    #[inline]
    pub fn finish(&mut self) -> &[u8] {
        let head = Head {
            length: U16::new(self.length as u16),
            tensors: self.tensors,
            flags: self.flags,
            reserved: U32::ZERO,
        };
        self.bytes[..MANIFEST_HEAD_LEN].copy_from_slice(head.as_bytes());
        &self.bytes[..self.length]
    }
}
