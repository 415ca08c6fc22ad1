//! DOCA's functions, loaded.

use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;

use doca_sys::{Doca, LoadError, Loaded};

/// DOCA, or the software BlueField that answers to its names.
#[derive(Clone, Debug)]
pub struct Library {
    loaded: Arc<Loaded>,
}

impl Library {
    /// Loads it from a folder or a file, or from where the loader and NVIDIA's packages have it.
    ///
    /// # Errors
    /// [`LoadError`] where it is not there, or is too old.
    pub fn load(from: Option<&Path>) -> Result<Library, LoadError> {
        Ok(Library { loaded: Arc::new(Loaded::new(from)?) })
    }

    /// Whether it is the software BlueField.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.loaded.emulated
    }

    /// The version of what was loaded.
    #[must_use]
    #[expect(unsafe_code, reason = "a call of DOCA")]
    pub fn version(&self) -> String {
        // SAFETY: it takes nothing and gives a string that stays.
        let version = unsafe { (self.doca().doca_version_runtime)() };
        if version.is_null() {
            return "unknown".to_owned();
        }
        // SAFETY: a string that ends with a zero, as C's do.
        unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned()
    }

    pub(crate) fn doca(&self) -> &Doca {
        &self.loaded.doca
    }
}
