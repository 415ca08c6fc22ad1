//! Pages of the host's memory on which the CPU and the device tell each other things.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use splitrpc_cuda::{Context, HostRegistration, Word};

use crate::error::GpuError;

/// Memory is registered by pages, and each only once.
pub(crate) const PAGE: usize = 4096;

/// What lies on pages of its own, beginning with the first.
///
/// # Safety
/// All that the device writes there are atomics.
pub(crate) unsafe trait Words: Send + Sync + 'static {}

/// Nothing but words.
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [AtomicU32; PAGE / 4]);

// SAFETY: so is everything there.
unsafe impl Words for Page {}

impl Page {
    pub(crate) fn new() -> Page {
        Page([const { AtomicU32::new(0) }; PAGE / 4])
    }
}

/// Pages that are registered with the device.
pub(crate) struct Pages<T> {
    // Dropped in this order.
    registration: HostRegistration,
    words: Box<T>,
}

impl<T: Words> Pages<T> {
    pub(crate) fn new(context: &Context, words: T) -> Result<Arc<Pages<T>>, GpuError> {
        const { assert!(align_of::<T>() == PAGE, "what else is on a page is registered with it") };
        let words = Box::new(words);
        let base = NonNull::from(&*words).cast();
        // SAFETY: the box keeps the pages, which are whole, where they are until it is dropped, after the registration. What the device writes
        // are atomics, which may be written through a shared reference and are accessed in no other way.
        let registration = unsafe { HostRegistration::new(context, base, size_of::<T>()) }?;
        Ok(Arc::new(Pages { registration, words }))
    }

    /// Where the device has them.
    pub(crate) fn address(&self) -> u64 {
        self.registration.address()
    }

    /// The first word, for a stream to write.
    pub(crate) fn word(&self) -> Result<Word<'_>, GpuError> {
        Ok(self.registration.word(0).map_err(splitrpc_cuda::Error::from)?)
    }
}

impl<T> Deref for Pages<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.words
    }
}
