//! Host memory of one owner that copies run from and to beside other work.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::context::Context;
use crate::error::Error;
use crate::host::HostRegistration;

/// Bytes that are registered with a device from their beginning to their end, zeroes at first. Their owner reads and writes them as any
/// others; a device does only in calls that borrow them and wait, such as [`Stream::upload`](crate::Stream::upload).
pub struct PinnedBuffer {
    // Dropped in this order.
    _registration: HostRegistration,
    bytes: Box<[u8]>,
}

impl PinnedBuffer {
    /// So many bytes, one at least.
    ///
    /// # Errors
    /// Those of [`HostRegistration::new`].
    pub fn new(context: &Context, len: usize) -> Result<PinnedBuffer, Error> {
        let mut bytes = vec![0; len].into_boxed_slice();
        let base = NonNull::from(&mut *bytes).cast();
        // SAFETY: the box keeps the bytes where they are until it is dropped, after the registration, whose memory no call is given
        // but those that borrow the bytes.
        let registration = unsafe { HostRegistration::new(context, base, len) }?;
        Ok(PinnedBuffer { _registration: registration, bytes })
    }
}

impl Deref for PinnedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for PinnedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuffer").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}
