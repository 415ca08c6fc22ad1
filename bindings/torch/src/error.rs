//! What can go wrong with PyTorch.

/// Why a package cannot be used, or its computing not be submitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// PyTorch's libraries.
    #[error("PyTorch cannot be loaded: {0}")]
    Library(String),
    /// The package itself.
    #[error("{0}")]
    Package(String),
    /// A call of PyTorch's that says no more than that. What it has to say it writes to the standard error.
    #[error("PyTorch {what}; the reason is in the standard error of this process")]
    Failed {
        /// What it failed to do.
        what: &'static str,
    },
    /// Not as many tensors as were expected, apart from those that are `None`.
    #[error("the package gives {gives} tensors, where {expected} were expected")]
    Gives {
        /// As it did.
        gives: usize,
        /// As many as the caller has room for.
        expected: usize,
    },
    /// Other tensors than the package takes.
    #[error("the package takes {wants} tensors and is given {given}")]
    Count {
        /// As the package has it.
        wants: usize,
        /// As it was called.
        given: usize,
    },
    /// A tensor that came out otherwise than was expected.
    #[error("output {index} is {found}, where {expected} was expected")]
    Output {
        /// Its place among the outputs.
        index: usize,
        /// Type, shape and layout.
        found: String,
        /// The same, as expected.
        expected: String,
    },
}
