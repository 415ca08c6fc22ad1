//! Host memory of one owner that copies run from and to beside other work.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use crate::context::Context;
use crate::error::Error;
use crate::host::HostRegistration;

/// Bytes that are registered with a device from their beginning to their end, zeroes at first. Their owner reads and writes them as any
/// others; a device does only in calls that borrow them and wait, such as [`Stream::upload`](crate::Stream::upload).
pub struct PinnedBuffer {
    // Dropped in this order.
    registration: HostRegistration,
    pages: Box<[Page]>,
    len: usize,
}

const PAGE: usize = 4096;

/// Memory is registered by pages, and each only once.
#[derive(Clone)]
#[repr(align(4096))]
struct Page {
    #[expect(dead_code, reason = "read as part of all pages")]
    bytes: [u8; PAGE],
}

impl PinnedBuffer {
    /// So many bytes, one at least.
    ///
    /// # Errors
    /// Those of [`HostRegistration::new`].
    pub fn new(context: &Context, len: usize) -> Result<PinnedBuffer, Error> {
        let mut pages = vec![Page { bytes: [0; PAGE] }; len.div_ceil(PAGE)].into_boxed_slice();
        let base = NonNull::from(&mut *pages).cast();
        // SAFETY: the box keeps the pages where they are until it is dropped, after the registration, whose memory no call is given
        // but those that borrow the bytes.
        let registration = unsafe { HostRegistration::new(context, base, pages.len() * PAGE) }?;
        Ok(PinnedBuffer { registration, pages, len })
    }
}

impl Deref for PinnedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are as many bytes as that or more, all of them initialised, and borrowed as `self` is.
        unsafe { slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for PinnedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, exclusively.
        unsafe { slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuffer")
            .field("len", &self.len)
            .field("registration", &self.registration)
            .finish_non_exhaustive()
    }
}
