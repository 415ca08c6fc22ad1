//! Scatter and gather lists with lifetimes, laid out as the kernel wants them.

use std::fmt;
use std::marker::PhantomData;

use crate::Span;

/// Memory that the kernel may write: an element of a scatter list.
#[repr(transparent)]
pub struct IoVec<'a> {
    raw: libc::iovec,
    memory: PhantomData<&'a mut [u8]>,
}

/// Memory that the kernel may read: an element of a gather list.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoVecSend<'a> {
    raw: libc::iovec,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: an address and a length of memory that outlives `'a`; only the kernel follows the address.
unsafe impl Send for IoVec<'_> {}
// SAFETY: as above; a shared reference gives away nothing but the address.
unsafe impl Sync for IoVec<'_> {}
// SAFETY: as above.
unsafe impl Send for IoVecSend<'_> {}
// SAFETY: as above.
unsafe impl Sync for IoVecSend<'_> {}

impl<'a> IoVec<'a> {
    /// No memory.
    pub const EMPTY: IoVec<'static> = IoVec { raw: EMPTY, memory: PhantomData };

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.iov_len == 0
    }

    /// Skips the first `bytes`, or all there are.
    pub fn advance(&mut self, bytes: usize) {
        advance(&mut self.raw, bytes);
    }

    /// Skips the first `bytes` of a list, past whole elements.
    pub fn advance_list(list: &mut &mut [IoVec<'a>], mut bytes: usize) {
        while let Some(first) = list.first_mut() {
            if bytes < first.len() {
                return first.advance(bytes);
            }
            bytes -= first.len();
            *list = &mut std::mem::take(list)[1..];
        }
    }
}

impl<'a> IoVecSend<'a> {
    /// No memory.
    pub const EMPTY: IoVecSend<'static> = IoVecSend { raw: EMPTY, memory: PhantomData };

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.iov_len == 0
    }

    /// Skips the first `bytes`, or all there are.
    pub fn advance(&mut self, bytes: usize) {
        advance(&mut self.raw, bytes);
    }

    /// Skips the first `bytes` of a list, past whole elements.
    pub fn advance_list(list: &mut &mut [IoVecSend<'a>], mut bytes: usize) {
        while let Some(first) = list.first_mut() {
            if bytes < first.len() {
                return first.advance(bytes);
            }
            bytes -= first.len();
            *list = &mut std::mem::take(list)[1..];
        }
    }

    /// At most `len` bytes from `offset` on.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> IoVecSend<'a> {
        let mut part = *self;
        part.advance(offset);
        part.raw.iov_len = part.raw.iov_len.min(len);
        part
    }
}

impl<'a> From<Span<'a>> for IoVec<'a> {
    fn from(span: Span<'a>) -> IoVec<'a> {
        IoVec { raw: libc::iovec { iov_base: span.as_mut_ptr().cast(), iov_len: span.len() }, memory: PhantomData }
    }
}

impl<'a> From<&'a mut [u8]> for IoVec<'a> {
    fn from(bytes: &'a mut [u8]) -> IoVec<'a> {
        IoVec { raw: libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }, memory: PhantomData }
    }
}

impl<'a> From<Span<'a>> for IoVecSend<'a> {
    fn from(span: Span<'a>) -> IoVecSend<'a> {
        IoVecSend { raw: libc::iovec { iov_base: span.as_mut_ptr().cast(), iov_len: span.len() }, memory: PhantomData }
    }
}

impl<'a> From<&'a [u8]> for IoVecSend<'a> {
    fn from(bytes: &'a [u8]) -> IoVecSend<'a> {
        let raw = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        IoVecSend { raw, memory: PhantomData }
    }
}

impl fmt::Debug for IoVec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoVec").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for IoVecSend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoVecSend").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A scatter list whose storage is reused from call to call, each time for other memory.
#[derive(Debug, Default)]
pub struct IoVecBuf {
    list: Vec<IoVec<'static>>,
}

impl IoVecBuf {
    /// Room for `capacity` elements; more grow it.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> IoVecBuf {
        IoVecBuf { list: Vec::with_capacity(capacity) }
    }

    /// The list, empty.
    pub fn begin<'a>(&'a mut self) -> &'a mut Vec<IoVec<'a>> {
        self.list.clear();
        // SAFETY: the two types differ in a lifetime only, so their layouts agree. What is pushed lives for `'a`, the
        // whole time that the list is lent; afterwards its elements are never looked at, only forgotten by `clear`.
        unsafe { &mut *(&raw mut self.list).cast::<Vec<IoVec<'a>>>() }
    }
}

/// A gather list whose storage is reused from call to call, each time for other memory.
#[derive(Debug, Default)]
pub struct IoVecSendBuf {
    list: Vec<IoVecSend<'static>>,
}

impl IoVecSendBuf {
    /// Room for `capacity` elements; more grow it.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> IoVecSendBuf {
        IoVecSendBuf { list: Vec::with_capacity(capacity) }
    }

    /// The list, empty.
    pub fn begin<'a>(&'a mut self) -> &'a mut Vec<IoVecSend<'a>> {
        self.list.clear();
        // SAFETY: as in `IoVecBuf::begin`.
        unsafe { &mut *(&raw mut self.list).cast::<Vec<IoVecSend<'a>>>() }
    }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn advance(raw: &mut libc::iovec, bytes: usize) {
    let bytes = bytes.min(raw.iov_len);
    raw.iov_base = raw.iov_base.cast::<u8>().wrapping_add(bytes).cast();
    raw.iov_len -= bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_advances_past_whole_elements() {
        let (a, b, c) = ([1_u8; 4], [2_u8; 0], [3_u8; 6]);
        let mut list = [IoVecSend::from(&a[..]), IoVecSend::from(&b[..]), IoVecSend::from(&c[..])];
        let mut rest = &mut list[..];
        IoVecSend::advance_list(&mut rest, 3);
        assert_eq!(rest.iter().map(IoVecSend::len).collect::<Vec<_>>(), [1, 0, 6]);
        IoVecSend::advance_list(&mut rest, 1);
        assert_eq!(rest.iter().map(IoVecSend::len).collect::<Vec<_>>(), [6]);
        IoVecSend::advance_list(&mut rest, 100);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_part_stays_inside() {
        let bytes = [0_u8; 10];
        let whole = IoVecSend::from(&bytes[..]);
        assert_eq!(whole.part(4, 3).len(), 3);
        assert_eq!(whole.part(8, 3).len(), 2);
        assert_eq!(whole.part(11, 3).len(), 0);
    }

    #[test]
    fn a_buffer_keeps_its_storage_between_uses() {
        let mut buffer = IoVecBuf::with_capacity(4);
        for _ in 0..3 {
            let mut bytes = [0_u8; 5];
            let list = buffer.begin();
            assert!(list.is_empty() && list.capacity() >= 4);
            list.push(IoVec::from(&mut bytes[..]));
            assert_eq!(list[0].len(), 5);
        }
    }
}
