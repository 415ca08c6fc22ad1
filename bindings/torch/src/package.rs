//! Packages that were opened.

use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::os::unix::{Library as Object, RTLD_LOCAL, RTLD_NOW};

use crate::archive::{Target, Unpacked, unpack};
use crate::error::Error;
use crate::library::{Handle, Library, Status, symbol};
use crate::tensor::{Tensor, View};

type Container = *mut c_void;
type Create = unsafe extern "C" fn(*mut Container, usize, *const c_char, *const c_char) -> Status;
type Count = unsafe extern "C" fn(Container, *mut usize) -> Status;
type Run = unsafe extern "C" fn(
    Container,
    inputs: *mut Handle,
    input_count: usize,
    outputs: *mut Handle,
    output_count: usize,
    stream: *mut c_void,
    executor: *mut c_void,
) -> Status;

/// Bytes of a shared object within which linkers put names.
const HEAD: u64 = 64 << 20;

/// A model that PyTorch compiled ahead of time, with its weights on the device. A handle: clones share it.
#[derive(Clone)]
pub struct Package(Arc<Opened>);

struct Opened {
    library: Library,
    device: i32,
    container: Mutex<Owned>,
    run: Run,
    inputs: usize,
    outputs: usize,
    /// Kernels are loaded from it when they are first used.
    _files: Unpacked,
}

/// A container, given back when this is dropped.
struct Owned {
    container: Container,
    delete: unsafe extern "C" fn(Container) -> Status,
}

// SAFETY: PyTorch binds it to no thread; one at a time uses it, which the lock around it sees to.
unsafe impl Send for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it was created, and is given back once.
        let _ = unsafe { (self.delete)(self.container) };
    }
}

impl Package {
    /// Opens a package, and brings its weights to the device.
    ///
    /// # Errors
    /// [`Error::Package`] for what is none, or was compiled for another machine; [`Error::Failed`], for instance for want of
    /// device memory.
    pub fn open(library: &Library, file: &Path, target: Target) -> Result<Package, Error> {
        let files = unpack(file, target)?;
        let refuse = |why: String| Error::Package(why);
        let names = head(&files.object).map_err(|error| refuse(format!("cannot be read: {error}")))?;
        if !holds(&names, b"libstdc++.so") {
            // The two copies would call each other's halves, and crash.
            return Err(refuse(
                "was linked with a C++ library of its own, not the one that PyTorch uses: compile it with CXX=/usr/bin/g++"
                    .into(),
            ));
        }
        drop(names);
        // SAFETY: what runs when it is loaded is the package's own; whoever names it trusts it as the program itself.
        let object = unsafe { Object::open(Some(&files.object), RTLD_NOW | RTLD_LOCAL) };
        let object = object.map_err(|error| {
            refuse(format!("cannot be loaded from where it was unpacked, which TMPDIR says: {error}"))
        })?;
        let opened = Opened::new(library, &object, files, target).map_err(|error| match error {
            Error::Library(_) => refuse("lacks functions that packages of AOTInductor have".into()),
            other => other,
        });
        // As PyTorch's own libraries it stays: what it has registered with them may outlive its handle.
        std::mem::forget(object);
        opened.map(|opened| Package(Arc::new(opened)))
    }

    /// Tensors that it takes.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.0.inputs
    }

    /// Tensors that it gives, those that are `None` included.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.0.outputs
    }

    /// Submits its computing to a stream. Returns the outputs, in memory that is theirs in the order of that stream: it is given
    /// back, when they are dropped, after what was submitted until then. Those that are Python's `None` are left out.
    ///
    /// # Errors
    /// [`Error::Count`]; [`Error::Failed`], and part of the work may have been submitted.
    ///
    /// # Safety
    /// `stream` is a stream of the package's device, whose context is current on this thread. All inputs are dense tensors in memory of that device,
    /// aligned to 16 bytes, and stay there until the stream has passed the work, as does this package.
    pub unsafe fn submit(&self, stream: *mut c_void, inputs: &[View<'_>]) -> Result<Vec<Tensor>, Error> {
        let opened = &*self.0;
        if inputs.len() != opened.inputs {
            return Err(Error::Count { wants: opened.inputs, given: inputs.len() });
        }
        let tensors = inputs.iter().map(|view| Tensor::over(&opened.library, view, opened.device));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let mut given: Vec<Handle> = tensors.into_iter().map(Tensor::into_handle).collect();
        let mut outputs = vec![ptr::null_mut(); opened.outputs];
        let status = {
            let owned = opened.container.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the container is live and used by this thread alone; it takes the tensors over, which are as many as it
            // takes, and there is room for as many as it gives. The stream, and the memory, the caller answers for.
            unsafe {
                (opened.run)(
                    owned.container,
                    given.as_mut_ptr(),
                    given.len(),
                    outputs.as_mut_ptr(),
                    outputs.len(),
                    stream,
                    ptr::null_mut(),
                )
            }
        };
        let outputs = outputs.into_iter().filter(|handle| !handle.is_null());
        // SAFETY: they are the caller's now, by the interface.
        let outputs: Vec<Tensor> = outputs.map(|handle| unsafe { Tensor::own(&opened.library, handle) }).collect();
        if status != 0 {
            return Err(Error::Failed { what: "cannot compute the model" });
        }
        Ok(outputs)
    }
}

impl Opened {
    fn new(library: &Library, object: &Object, files: Unpacked, target: Target) -> Result<Opened, Error> {
        let prefix = "AOTInductorModelContainer";
        // SAFETY: packages declare it so.
        let create: Create = unsafe { symbol(object, &format!("{prefix}CreateWithDevice")) }?;
        // SAFETY: as above.
        let delete = unsafe { symbol(object, &format!("{prefix}Delete")) }?;
        // SAFETY: as above.
        let inputs: Count = unsafe { symbol(object, &format!("{prefix}GetNumInputs")) }?;
        // SAFETY: as above.
        let outputs: Count = unsafe { symbol(object, &format!("{prefix}GetNumOutputs")) }?;
        // SAFETY: as above. This one asks the device for nothing that cannot be recorded.
        let run: Run = unsafe { symbol(object, &format!("{prefix}RunSingleThreaded")) }?;
        let device = CString::new(format!("cuda:{}", target.device)).unwrap_or_default();
        let folder = CString::new(files.folder().as_os_str().as_bytes()).unwrap_or_default();
        let mut container = ptr::null_mut();
        // SAFETY: the place for the container and both texts outlive the call.
        let status = unsafe { create(&raw mut container, 1, device.as_ptr(), folder.as_ptr()) };
        if status != 0 || container.is_null() {
            return Err(Error::Failed { what: "cannot load the package" });
        }
        let owned = Owned { container, delete };
        let count = |count: Count| {
            let mut of = 0;
            // SAFETY: the container is live, and the place for the count outlives the call.
            let status = unsafe { count(owned.container, &raw mut of) };
            if status == 0 { Ok(of) } else { Err(Error::Failed { what: "cannot count the package's tensors" }) }
        };
        let (inputs, outputs) = (count(inputs)?, count(outputs)?);
        // It is loaded, weights and all. Should this process be killed, no more than small files stay behind.
        let _ = std::fs::remove_file(&files.object);
        Ok(Opened {
            library: library.clone(),
            device: target.device.into(),
            container: Mutex::new(owned),
            run,
            inputs,
            outputs,
            _files: files,
        })
    }
}

/// The part of a shared object in which the names of those that it needs are.
fn head(object: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(object)?.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

impl fmt::Debug for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Opened { inputs, outputs, .. } = &*self.0;
        f.debug_struct("Package").field("inputs", inputs).field("outputs", outputs).finish_non_exhaustive()
    }
}
