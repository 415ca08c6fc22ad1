//! The shape of a pool, and where in it each row of each tensor lies.
#![forbid(unsafe_code)]

use core::fmt;

/// Bytes of the area beside each row that holds a manifest or a status payload.
pub const META_BYTES: u32 = 1024;
/// The pool id of outputs that live in a runtime's own memory.
pub const EXTERNAL_POOL: u16 = 0xFFFE;
/// Tensors of one pool, at most.
pub const MAX_TENSORS: usize = 32;
/// Bytes of one pool, at most.
pub const MAX_POOL_BYTES: u64 = 1 << 48;

const PAGE: u64 = 4096;
const LINE: u64 = 64;

/// The shape of a pool: checked once, and read by everything that computes with slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLayout {
    row_bytes: [u32; MAX_TENSORS],
    windows: u32,
    max_batch: u16,
    tensors: u16,
}

impl PoolLayout {
    /// A pool of `windows` windows of `max_batch` rows, a row having `row_bytes[t]` bytes of tensor `t`.
    ///
    /// # Errors
    /// A named [`LayoutError`] when a count is zero or too large, or a window or the pool too large to address.
    pub fn new(row_bytes: &[u32], max_batch: u16, windows: u32) -> Result<PoolLayout, LayoutError> {
        if max_batch == 0 || windows == 0 {
            return Err(LayoutError::Empty);
        }
        if row_bytes.len() > MAX_TENSORS {
            return Err(LayoutError::TooManyTensors);
        }
        match windows.checked_mul(u32::from(max_batch)) {
            Some(slots) if slots < u32::MAX => {}
            _ => return Err(LayoutError::TooManySlots),
        }
        if row_bytes.iter().any(|&bytes| bytes.checked_mul(u32::from(max_batch)).is_none()) {
            return Err(LayoutError::WindowTooLarge);
        }
        let mut layout =
            PoolLayout { row_bytes: [0; MAX_TENSORS], windows, max_batch, tensors: row_bytes.len() as u16 };
        layout.row_bytes[..row_bytes.len()].copy_from_slice(row_bytes);
        // At most 32 tensors of 2^32 windows of 2^32 bytes: u128 cannot overflow.
        let bytes: u128 = (0..layout.tensors).map(|t| u128::from(layout.stride(t)) * u128::from(windows)).sum();
        if bytes + u128::from(layout.slots()) * u128::from(META_BYTES) + 33 * u128::from(PAGE)
            > u128::from(MAX_POOL_BYTES)
        {
            return Err(LayoutError::PoolTooLarge);
        }
        Ok(layout)
    }

    /// Tensors of the pool.
    #[must_use]
    pub const fn tensors(&self) -> u16 {
        self.tensors
    }

    /// Rows of a window.
    #[must_use]
    pub const fn max_batch(&self) -> u16 {
        self.max_batch
    }

    /// Windows of the pool.
    #[must_use]
    pub const fn windows(&self) -> u32 {
        self.windows
    }

    /// Slots of the pool: windows times rows.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.windows * self.max_batch as u32
    }

    /// Bytes of one row of `tensor`.
    #[must_use]
    #[inline]
    pub fn row_bytes(&self, tensor: u16) -> Option<u32> {
        self.all_row_bytes().get(usize::from(tensor)).copied()
    }

    /// Bytes of one row, tensor by tensor.
    #[must_use]
    pub fn all_row_bytes(&self) -> &[u32] {
        &self.row_bytes[..usize::from(self.tensors)]
    }

    /// Bytes of one row of all tensors together.
    #[must_use]
    pub fn row_total(&self) -> u64 {
        self.all_row_bytes().iter().map(|&bytes| u64::from(bytes)).sum()
    }

    /// Bytes from one window of `tensor` to the next: a multiple of 4096 where a window is larger than that, else of 64.
    #[must_use]
    pub fn window_stride(&self, tensor: u16) -> Option<u64> {
        (tensor < self.tensors).then(|| self.stride(tensor))
    }

    /// Where the area of `tensor` begins, from the pool's own beginning.
    #[must_use]
    pub fn tensor_offset(&self, tensor: u16) -> Option<u64> {
        (tensor < self.tensors).then(|| (0..tensor).map(|t| self.area(t)).sum())
    }

    /// Where the meta area begins, from the pool's own beginning; row `r` has the [`META_BYTES`] at `r * META_BYTES`.
    #[must_use]
    pub fn meta_offset(&self) -> u64 {
        (0..self.tensors).map(|t| self.area(t)).sum()
    }

    /// Bytes of the whole pool, a multiple of 4096.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.meta_offset() + (u64::from(self.slots()) * u64::from(META_BYTES)).next_multiple_of(PAGE)
    }

    /// Whether `rows` rows from `first` exist and lie in one window.
    #[must_use]
    pub fn holds(&self, first: u32, rows: u16) -> bool {
        rows > 0
            && first < self.slots()
            && first % u32::from(self.max_batch) + u32::from(rows) <= u32::from(self.max_batch)
    }

    /// Where the rows of `tensor` lie.
    #[must_use]
    pub fn rows(&self, tensor: u16) -> Option<TensorRows> {
        Some(TensorRows {
            begin: self.tensor_offset(tensor)?,
            stride: self.window_stride(tensor)?,
            row_bytes: self.row_bytes(tensor)?.into(),
            max_batch: self.max_batch.into(),
            slots: self.slots(),
        })
    }

    fn stride(&self, tensor: u16) -> u64 {
        let window = u64::from(self.row_bytes[usize::from(tensor)]) * u64::from(self.max_batch);
        window.next_multiple_of(if window > PAGE { PAGE } else { LINE })
    }

    fn area(&self, tensor: u16) -> u64 {
        (self.stride(tensor) * u64::from(self.windows)).next_multiple_of(PAGE)
    }
}

/// Where the rows of one tensor lie in its pool, computed once for those who ask often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRows {
    begin: u64,
    stride: u64,
    row_bytes: u64,
    max_batch: u32,
    slots: u32,
}

impl TensorRows {
    /// Where `len` bytes at `offset` of `rows` rows from slot `first` on lie, from the pool's own beginning; `None` when they
    /// are not all inside those rows, or the rows not in one window.
    #[must_use]
    #[inline]
    pub fn place(&self, first: u32, rows: u16, offset: u32, len: u32) -> Option<u64> {
        // Many pools have one window, and to divide takes longer than all else.
        let (window, row) =
            if first < self.max_batch { (0, first) } else { (first / self.max_batch, first % self.max_batch) };
        let inside = rows > 0
            && first < self.slots
            && row + u32::from(rows) <= self.max_batch
            && u64::from(offset) + u64::from(len) <= u64::from(rows) * self.row_bytes;
        if !inside {
            return None;
        }
        // Less than the pool's bytes.
        Some(self.begin + u64::from(window) * self.stride + u64::from(row) * self.row_bytes + u64::from(offset))
    }
}

/// Why a pool cannot have the shape that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// No windows, or windows without rows.
    Empty,
    /// More than [`MAX_TENSORS`] tensors.
    TooManyTensors,
    /// Slots are numbered with 32 bits.
    TooManySlots,
    /// Offsets inside a window have 32 bits.
    WindowTooLarge,
    /// The pool is larger than [`MAX_POOL_BYTES`].
    PoolTooLarge,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LayoutError::Empty => "a pool needs at least one window of at least one row",
            LayoutError::TooManyTensors => "a pool has at most 32 tensors",
            LayoutError::TooManySlots => "a pool has at most 2^32 - 2 slots",
            LayoutError::WindowTooLarge => "a window of one tensor has less than 4 GiB",
            LayoutError::PoolTooLarge => "a pool has at most 256 TiB",
        })
    }
}

impl core::error::Error for LayoutError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_windows_are_line_aligned_and_large_ones_page_aligned() {
        let layout = PoolLayout::new(&[100, 1025, 0], 4, 3).unwrap();
        assert_eq!(layout.window_stride(0), Some(448));
        assert_eq!(layout.window_stride(1), Some(8192));
        assert_eq!(layout.window_stride(2), Some(0));
        assert_eq!(layout.window_stride(3), None);
        assert_eq!(layout.tensor_offset(1), Some(4096));
        assert_eq!(layout.meta_offset(), 4096 + 3 * 8192);
        assert_eq!(layout.bytes(), 4096 + 3 * 8192 + 3 * 4096);
        assert_eq!(layout.row_total(), 1125);
        assert_eq!(layout.slots(), 12);
    }

    #[test]
    fn a_run_stays_in_its_window() {
        let layout = PoolLayout::new(&[8], 4, 2).unwrap();
        assert!(layout.holds(0, 4));
        assert!(layout.holds(5, 3));
        assert!(!layout.holds(5, 4));
        assert!(!layout.holds(8, 1));
        assert!(!layout.holds(0, 0));
        assert!(!layout.holds(u32::MAX, u16::MAX));
    }

    #[test]
    fn rows_lie_packed_in_their_window() {
        let layout = PoolLayout::new(&[100, 1025], 4, 3).unwrap();
        let [small, large] = [0, 1].map(|tensor| layout.rows(tensor).unwrap());
        // The second row of the second window, in the area of the first tensor and in that of the other.
        assert_eq!(small.place(5, 1, 7, 93), Some(448 + 100 + 7));
        assert_eq!(large.place(5, 3, 1025, 2050), Some(4096 + 8192 + 2 * 1025));
        assert_eq!(small.place(3, 1, 0, 100), Some(300));
        assert_eq!(small.place(5, 1, 8, 93), None);
        assert_eq!(small.place(5, 4, 0, 1), None);
        assert_eq!(small.place(5, 0, 0, 0), None);
        assert_eq!(small.place(12, 1, 0, 0), None);
        assert_eq!(small.place(u32::MAX, u16::MAX, u32::MAX, u32::MAX), None);
        assert_eq!(layout.rows(2), None);
    }

    #[test]
    fn shapes_that_cannot_be_addressed_are_refused_by_name() {
        assert_eq!(PoolLayout::new(&[1], 0, 1), Err(LayoutError::Empty));
        assert_eq!(PoolLayout::new(&[1], 1, 0), Err(LayoutError::Empty));
        assert_eq!(PoolLayout::new(&[1; 33], 1, 1), Err(LayoutError::TooManyTensors));
        assert_eq!(PoolLayout::new(&[1], 2, u32::MAX), Err(LayoutError::TooManySlots));
        assert_eq!(PoolLayout::new(&[u32::MAX], 2, 1), Err(LayoutError::WindowTooLarge));
        assert_eq!(PoolLayout::new(&[u32::MAX; 32], 1, u32::MAX - 1), Err(LayoutError::PoolTooLarge));
        assert!(PoolLayout::new(&[], 1, 1).is_ok());
    }
}
