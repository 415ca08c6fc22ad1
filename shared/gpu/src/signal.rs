//! A word by which a stream says how far it has come, so that the CPU sees it without a call.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use splitrpc_cuda::{Context, HostRegistration, Word};

use crate::error::GpuError;

const PAGE: usize = 4096;

/// Memory is registered by pages, and each only once.
#[repr(C, align(4096))]
struct Page([AtomicU32; PAGE / 4]);

/// A word on a page of its own, which the device writes and the CPU reads.
pub(crate) struct Signal {
    // Dropped in this order.
    registration: HostRegistration,
    page: Box<Page>,
}

impl Signal {
    pub(crate) fn new(context: &Context) -> Result<Signal, GpuError> {
        let page = Box::new(Page([const { AtomicU32::new(0) }; PAGE / 4]));
        let base = NonNull::from(&*page).cast();
        // SAFETY: the box keeps the page where it is until it is dropped, after the registration; its words are atomics, which may be
        // written through a shared reference and are accessed in no other way.
        let registration = unsafe { HostRegistration::new(context, base, PAGE) }?;
        Ok(Signal { registration, page })
    }

    /// The word, for a stream to write.
    pub(crate) fn word(&self) -> Result<Word<'_>, GpuError> {
        Ok(self.registration.word(0).map_err(splitrpc_cuda::Error::from)?)
    }

    /// What the word is. What was written before it can be seen from now on.
    pub(crate) fn value(&self) -> u32 {
        self.page.0[0].load(Ordering::Acquire)
    }
}
