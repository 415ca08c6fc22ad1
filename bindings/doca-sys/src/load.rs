//! Where the libraries are found.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::Doca;

/// The libraries, in the order in which they need each other.
const NAMES: [&str; 3] = ["libdoca_common", "libdoca_dma", "libdoca_comch"];
/// What their names end in: as a program is linked to them, and as the development packages have them.
const ENDINGS: [&str; 2] = [".so.2", ".so"];
/// Where NVIDIA's packages put them, below a folder for each architecture.
const INSTALLED: &str = "/opt/mellanox/doca/lib";
/// What the software BlueField has, and no card.
const EMULATED: &[u8] = b"splitrpc_emulated_bluefield\0";

/// Why there is no DOCA.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A library was not found, or could not be loaded.
    #[error("{library} could not be loaded from {place}: {why}")]
    NoLibrary {
        /// Its name, without what it ends in.
        library: &'static str,
        /// Where it was looked for.
        place: String,
        /// What the loader says of each try.
        why: String,
    },
    /// They are there, and a function is missing.
    #[error("the libraries of DOCA were loaded and have not all that is needed (2.9 LTS to 3.x have): {0}")]
    NoFunction(String),
}

/// Loaded libraries. They stay loaded until the process ends.
pub struct Loaded {
    /// Their functions.
    pub doca: Doca,
    /// Whether they are the software BlueField's.
    pub emulated: bool,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("emulated", &self.emulated).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Loads them from a folder, or, where none is given, from where the loader looks for libraries and then from where NVIDIA's packages put them.
    /// Where a file is given it is loaded in place of all of them.
    ///
    /// # Errors
    /// [`LoadError`] where one is missing, or has not all functions.
    pub fn new(place: Option<&Path>) -> Result<Loaded, LoadError> {
        match place {
            Some(file) if file.is_file() => open(file.as_os_str()).map_err(|error| LoadError::NoLibrary {
                library: "the library",
                place: file.display().to_string(),
                why: error.to_string(),
            })?,
            _ => {
                let folders = place.map_or_else(usual, |folder| vec![Some(folder.to_path_buf())]);
                for library in NAMES {
                    load(library, &folders)?;
                }
            }
        }
        let all = Library::this();
        // SAFETY: nothing is called; it is asked for by an address that is not used.
        let emulated = unsafe { all.get::<*const ()>(EMULATED) }.is_ok();
        // SAFETY: each function is declared as the libraries' own headers, or the documentation of their interface, have it.
        let doca = unsafe { Doca::from_library(all) }.map_err(|error| LoadError::NoFunction(error.to_string()))?;
        Ok(Loaded { doca, emulated })
    }
}

/// `None` is wherever the loader looks.
fn usual() -> Vec<Option<PathBuf>> {
    let installed = std::fs::read_dir(INSTALLED).into_iter().flatten().flatten().map(|entry| Some(entry.path()));
    std::iter::once(None).chain(installed).chain([Some(INSTALLED.into())]).collect()
}

/// Finds a library.
fn load(library: &'static str, folders: &[Option<PathBuf>]) -> Result<(), LoadError> {
    let mut tries = Vec::new();
    for folder in folders {
        for ending in ENDINGS {
            let name = OsString::from(format!("{library}{ending}"));
            let path = folder.as_ref().map_or_else(|| name.clone(), |folder| folder.join(&name).into_os_string());
            match open(&path) {
                Ok(()) => return Ok(()),
                Err(error) => tries.push(error.to_string()),
            }
        }
    }
    let place = |folder: &Option<PathBuf>| match folder {
        Some(folder) => folder.display().to_string(),
        None => "where the loader looks".to_owned(),
    };
    let place = folders.iter().map(place).collect::<Vec<_>>().join(", ");
    Err(LoadError::NoLibrary { library, place, why: tries.join("; ") })
}

/// Makes the functions of a library those of the whole process, and has it stay.
fn open(path: &OsStr) -> Result<(), libloading::Error> {
    // SAFETY: what runs when it is loaded is the SDK's, or the software BlueField's, whom the one who says where it is trusts.
    let loaded = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?;
    // Callbacks and handles refer to its code for as long as they live.
    std::mem::forget(loaded);
    Ok(())
}
