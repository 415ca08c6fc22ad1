//! Bounded views of memory that another party may write.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use super::copy;
use crate::{IoVec, IoVecSend};

/// Bytes that the kernel, a device, another process or another thread may write at any time: never a `&[u8]`, only
/// copies. A span cannot outlive the memory it views.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a ()>,
}

// SAFETY: a span is an address and a length; its safe methods access memory only with atomic operations, and the lifetime
// keeps that memory alive on whichever thread.
unsafe impl Send for Span<'_> {}
// SAFETY: as above.
unsafe impl Sync for Span<'_> {}

impl<'a> Span<'a> {
    /// # Safety
    /// `len` bytes from `base` must stay mapped, readable and writable for `'a`, and be accessed by this process through
    /// spans only, or by those who keep to the contract of [`Span::as_slice`].
    pub(super) unsafe fn new(base: NonNull<u8>, len: usize) -> Span<'a> {
        Span { base, len, memory: PhantomData }
    }

    /// Bytes viewed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it views nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset` on, if they are all inside.
    #[must_use]
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<Span<'a>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // `offset` is at most `len`, so this stays inside or one past the end.
        let base = NonNull::new(self.base.as_ptr().wrapping_add(offset))?;
        Some(Span { base, len, memory: PhantomData })
    }

    /// Copies the beginning of the span out, as much as both sides hold; returns how many bytes.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        counted(len);
        // SAFETY: `len` bytes from `base` are inside the span, whose constructor promised the rest.
        unsafe { copy::read(self.base.as_ptr(), &mut to[..len]) };
        len
    }

    /// Copies to the beginning of the span, as much as both sides hold; returns how many bytes.
    #[inline]
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let len = self.len.min(from.len());
        counted(len);
        // SAFETY: as in `copy_to`.
        unsafe { copy::write(self.base.as_ptr(), &from[..len]) };
        len
    }

    /// Copies from the beginning of another span, as much as both hold; returns how many bytes. They may overlap.
    pub fn copy_from_span(&self, from: Span<'_>) -> usize {
        let len = self.len.min(from.len);
        counted(len);
        // SAFETY: `len` bytes are inside both spans, whose constructors promised the rest.
        unsafe { copy::transfer(self.base.as_ptr(), from.base.as_ptr(), len) };
        len
    }

    /// Sets every byte.
    pub fn fill(&self, value: u8) {
        // SAFETY: as in `copy_to`.
        unsafe { copy::fill(self.base.as_ptr(), self.len, value) };
    }

    /// For the kernel to write here.
    #[must_use]
    pub fn iovec(&self) -> IoVec<'a> {
        IoVec::from(*self)
    }

    /// For the kernel to read from here.
    #[must_use]
    pub fn iovec_send(&self) -> IoVecSend<'a> {
        IoVecSend::from(*self)
    }

    /// The address of the first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.base.as_ptr()
    }

    /// The address of the first byte.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The bytes themselves, for a runtime that owns them from submission to completion.
    ///
    /// # Safety
    /// Until the slice is last used, nobody may write these bytes: no span, no kernel, no device, no other process.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &'a [u8] {
        // SAFETY: the range is mapped and initialised for `'a`; the caller promises that nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// The bytes themselves, to be written, for a runtime that owns them from submission to completion.
    ///
    /// # Safety
    /// Until the slice is last used, nobody else may read or write these bytes.
    #[must_use]
    pub unsafe fn as_mut_slice(&self) -> &'a mut [u8] {
        // SAFETY: the range is mapped and initialised for `'a`; the caller promises exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

/// Counts a copy, in builds for tests that ask for it.
#[inline]
fn counted(bytes: usize) {
    #[cfg(feature = "count-copies")]
    super::count::add(bytes);
    let _ = bytes;
}

impl fmt::Debug for Span<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(memory: &mut [u64]) -> Span<'_> {
        let len = size_of_val(memory);
        // SAFETY: the slice is borrowed exclusively for the span's lifetime.
        unsafe { Span::new(NonNull::from(memory).cast(), len) }
    }

    fn bytes_of(span: Span<'_>) -> Vec<u8> {
        let mut bytes = vec![0; span.len()];
        span.copy_to(&mut bytes);
        bytes
    }

    #[test]
    fn every_alignment_and_length_copies_exactly_its_bytes() {
        let pattern: Vec<u8> = (1..=64).collect();
        let mut memory = [0_u64; 8];
        let span = over(&mut memory);
        for offset in 0..24 {
            for len in 0..40 {
                span.fill(0xee);
                let part = span.slice(offset, len).unwrap();
                assert_eq!(part.copy_from(&pattern), len);
                let mut expected = vec![0xee; 64];
                expected[offset..offset + len].copy_from_slice(&pattern[..len]);
                assert_eq!(bytes_of(span), expected);
                assert_eq!(bytes_of(part), &pattern[..len]);
                part.fill(7);
                expected[offset..offset + len].fill(7);
                assert_eq!(bytes_of(span), expected);
            }
        }
    }

    #[test]
    fn overlapping_spans_move_like_memmove() {
        let pattern: Vec<u8> = (1..=64).collect();
        let mut memory = [0_u64; 8];
        let span = over(&mut memory);
        for from in 0..24 {
            for to in 0..24 {
                for len in [0, 1, 7, 8, 9, 31, 40] {
                    span.copy_from(&pattern);
                    let target = span.slice(to, len).unwrap();
                    assert_eq!(target.copy_from_span(span.slice(from, len).unwrap()), len);
                    let mut expected = pattern.clone();
                    expected.copy_within(from..from + len, to);
                    assert_eq!(bytes_of(span), expected);
                }
            }
        }
    }

    #[test]
    fn slices_stay_inside() {
        let mut memory = [0_u64; 2];
        let span = over(&mut memory);
        assert!(span.slice(16, 0).is_some_and(|empty| empty.is_empty()));
        assert!(span.slice(16, 1).is_none());
        assert!(span.slice(17, 0).is_none());
        assert!(span.slice(usize::MAX, 2).is_none());
        assert_eq!(span.slice(9, 7).unwrap().len(), 7);
    }
}
