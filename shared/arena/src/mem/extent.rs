//! Memory that is known here by its address only.

use std::any::Any;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::arena::Arena;

/// Bytes that a device has at an address of its own, or by which it calls them: a card is shown them by that, and the CPU may have no way to
/// them. They stay for as long as this, whose clones are the same.
#[derive(Clone)]
pub struct Extent {
    address: usize,
    len: usize,
    kept: Arc<dyn Any + Send + Sync>,
}

impl Extent {
    /// `len` bytes at `address`, which `kept` keeps there.
    ///
    /// # Safety
    /// As long as `kept` is there, so are the bytes, and any device may read and write them at any time: nothing refers to them but what is made for
    /// that.
    #[must_use]
    pub unsafe fn new(address: usize, len: usize, kept: Arc<dyn Any + Send + Sync>) -> Extent {
        Extent { address, len, kept }
    }

    /// All of an arena, and its file, which may be shown in a device's stead.
    ///
    /// # Errors
    /// The kernel's, where it gives no more descriptors.
    pub fn of_arena(arena: &Arena) -> std::io::Result<(Extent, OwnedFd)> {
        let whole = arena.whole();
        let extent =
            Extent { address: whole.as_mut_ptr().expose_provenance(), len: whole.len(), kept: Arc::new(arena.clone()) };
        Ok((extent, BorrowedFd::try_clone_to_owned(&arena.memfd())?))
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Its bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is no empty one")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// What keeps it.
    #[must_use]
    pub fn kept(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::clone(&self.kept)
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent").field("len", &self.len).finish_non_exhaustive()
    }
}
