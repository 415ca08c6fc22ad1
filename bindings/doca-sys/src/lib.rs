//! DOCA's C interface, as far as this project uses it.
//!
//! [`Doca`] has a pointer to each function, found in libraries that are loaded at run time: the SDK's, or those of the software BlueField, which
//! answer to the same names. So one binary runs with either, and says what is missing where there is neither.
//!
//! The types are those of the headers of the SDK that was installed when this was built (2.9 to 3.x), or else of `include/doca.h`, which declares the
//! used part of DOCA 3.0 in the project's own words. [`FROM_SDK`] tells which. Where there is an SDK the build holds the one against the other.

mod load;

pub use self::bindings::*;
pub use self::load::{LoadError, Loaded};

/// Whether the types were read from an installed SDK's headers.
pub const FROM_SDK: bool = cfg!(doca_sdk);

#[expect(
    non_camel_case_types,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    clippy::semicolon_if_nothing_returned,
    clippy::too_many_arguments,
    missing_docs,
    missing_debug_implementations,
    reason = "as bindgen writes it"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/doca.rs"));
}
