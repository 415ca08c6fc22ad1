//! PyTorch's libraries.

use std::ffi::c_void;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::os::unix::{Library as Object, RTLD_LOCAL, RTLD_NOW};

use crate::error::Error;
use crate::tensor::Element;

/// A tensor of PyTorch's.
pub(crate) type Handle = *mut c_void;
/// 0, or another number where it failed.
pub(crate) type Status = i32;

type FromBlob = unsafe extern "C" fn(
    data: *mut c_void,
    rank: i64,
    sizes: *const i64,
    strides: *const i64,
    offset: i64,
    dtype: i32,
    device_type: i32,
    device: i32,
    tensor: *mut Handle,
    layout: i32,
    metadata: *const u8,
    metadata_len: i64,
) -> Status;
pub(crate) type Ask<T> = unsafe extern "C" fn(tensor: Handle, answer: *mut T) -> Status;
type Constant = unsafe extern "C" fn() -> i32;

/// PyTorch's libraries, loaded into this process, where they stay.
#[derive(Clone)]
pub struct Library(Arc<Functions>);

pub(crate) struct Functions {
    folder: PathBuf,
    pub(crate) from_blob: FromBlob,
    pub(crate) delete: unsafe extern "C" fn(tensor: Handle) -> Status,
    pub(crate) data: Ask<*mut c_void>,
    pub(crate) rank: Ask<i64>,
    pub(crate) sizes: Ask<*mut i64>,
    pub(crate) strides: Ask<*mut i64>,
    pub(crate) dtype: Ask<i32>,
    pub(crate) device_type: Ask<i32>,
    /// PyTorch's numbers for these.
    pub(crate) cuda: i32,
    pub(crate) strided: i32,
    elements: [i32; Element::ALL.len()],
}

impl Library {
    /// Loads the libraries in a folder, usually `torch/lib` of a Python package.
    ///
    /// # Errors
    /// [`Error::Library`].
    pub fn open(folder: &Path) -> Result<Library, Error> {
        let mut objects = Vec::new();
        // Packages ask for all three by name, and find those that are loaded.
        for name in ["libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so"] {
            let path = folder.join(name);
            // SAFETY: what runs when they are loaded is PyTorch's own; whoever names the folder trusts that.
            let object = unsafe { Object::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
            let object = object.map_err(|error| Error::Library(format!("{}: {error}", path.display())))?;
            objects.push(object);
        }
        let functions = Functions::find(folder, &objects[0])?;
        // What they keep for each thread, and what they do at their end, rules out that they ever go.
        objects.into_iter().for_each(std::mem::forget);
        Ok(Library(Arc::new(functions)))
    }

    /// Where they were loaded from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.0
    }
}

impl Functions {
    fn find(folder: &Path, object: &Object) -> Result<Functions, Error> {
        let constant = |name: &str| {
            // SAFETY: PyTorch declares it so.
            let constant: Constant = unsafe { symbol(object, name) }?;
            // SAFETY: it takes nothing and returns a number.
            Ok::<_, Error>(unsafe { constant() })
        };
        let mut elements = [0; Element::ALL.len()];
        for (number, element) in elements.iter_mut().zip(Element::ALL) {
            *number = constant(&format!("aoti_torch_dtype_{}", element.name()))?;
        }
        let (cuda, strided) = (constant("aoti_torch_device_type_cuda")?, constant("aoti_torch_layout_strided")?);
        // SAFETY: PyTorch declares it so.
        let from_blob = unsafe { symbol(object, "aoti_torch_create_tensor_from_blob_v2") }?;
        // SAFETY: as above.
        let delete = unsafe { symbol(object, "aoti_torch_delete_tensor_object") }?;
        // SAFETY: as above.
        let data = unsafe { symbol(object, "aoti_torch_get_data_ptr") }?;
        // SAFETY: as above.
        let rank = unsafe { symbol(object, "aoti_torch_get_dim") }?;
        // SAFETY: as above.
        let sizes = unsafe { symbol(object, "aoti_torch_get_sizes") }?;
        // SAFETY: as above.
        let strides = unsafe { symbol(object, "aoti_torch_get_strides") }?;
        // SAFETY: as above.
        let dtype = unsafe { symbol(object, "aoti_torch_get_dtype") }?;
        // SAFETY: as above.
        let device_type = unsafe { symbol(object, "aoti_torch_get_device_type") }?;
        let folder = folder.to_owned();
        Ok(Functions {
            folder,
            from_blob,
            delete,
            data,
            rank,
            sizes,
            strides,
            dtype,
            device_type,
            cuda,
            strided,
            elements,
        })
    }

    pub(crate) fn number(&self, element: Element) -> i32 {
        self.elements[element as usize]
    }

    pub(crate) fn element(&self, number: i32) -> Option<Element> {
        self.elements.iter().position(|n| *n == number).map(|at| Element::ALL[at])
    }
}

/// Finds a function, which has to be of type `F`.
///
/// # Safety
/// It is.
pub(crate) unsafe fn symbol<F: Copy>(object: &Object, name: &str) -> Result<F, Error> {
    let named: Vec<u8> = name.bytes().chain([0]).collect();
    // SAFETY: the caller says what it is.
    let found = unsafe { object.get::<F>(&*named) };
    found.map(|symbol| *symbol).map_err(|_| Error::Library(format!("it has no {name}: another version of PyTorch?")))
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Library").field(&self.0.folder).finish()
    }
}
