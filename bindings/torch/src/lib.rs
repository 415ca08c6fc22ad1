//! Safe handles over PyTorch's C interface for models that were compiled ahead of time (AOTInductor): packages of the kind
//! that `torch._inductor.aoti_compile_and_package` writes, for CUDA devices.
//!
//! What may live here: PyTorch's libraries, loaded at run time, packages that were opened, and tensors over memory that is
//! another's. What may not: batches, slots, graphs or a policy.
//!
//! A package is code, like a plugin: whoever names one trusts it as the program itself. What *is* checked is that it fits: the
//! machine that it was compiled for, how many tensors it takes and gives, and the type, shape and layout of each that comes back.
//!
//! The declarations are of PyTorch 2.7 and later; what was tried is 2.11.

mod archive;
mod environment;
mod error;
mod library;
mod package;
mod tensor;

pub use archive::Target;
pub use environment::prepare;
pub use error::Error;
pub use library::Library;
pub use package::Package;
pub use tensor::{Element, Tensor, View};
