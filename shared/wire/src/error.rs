//! Why bytes from a peer were refused.

use core::fmt;

macro_rules! wire_errors {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Why bytes from a peer were refused. Each reason has a counter of its own in the metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum WireError { $($(#[$doc])* $name,)+ }

        impl WireError {
            /// Every reason, in the order of [`WireError::index`].
            pub const ALL: &'static [WireError] = &[$(WireError::$name,)+];

            /// The name under which this reason is counted.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(WireError::$name => stringify!($name),)+ }
            }
        }

        impl fmt::Display for WireError {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(WireError::$name => $text,)+ })
            }
        }
    };
}

wire_errors! {
    /// Fewer bytes than the structure needs.
    Truncated = "fewer bytes than the structure needs",
    /// The first two bytes are not a splitrpc frame's.
    BadMagic = "not a splitrpc frame",
    /// A protocol version that is not spoken here.
    BadVersion = "protocol version not spoken here",
    /// A frame kind that does not exist.
    BadKind = "unknown frame kind",
    /// A reserved bit or byte is set.
    Reserved = "a reserved bit or byte is set",
    /// A tag or sealed payload on a session that negotiated neither.
    NotNegotiated = "authentication or encryption was not negotiated",
    /// Offset, length and total contradict each other.
    BadExtent = "offset, length and total contradict each other",
    /// A frame longer than the limit in force.
    TooLong = "frame longer than the limit in force",
    /// The manifest contradicts itself.
    BadManifest = "malformed tensor manifest",
    /// A tensor type that does not exist.
    BadType = "unknown tensor type",
    /// More dimensions than the protocol allows.
    BadRank = "more dimensions than the protocol allows",
    /// A tensor's bytes do not follow from its type and shape.
    BadSize = "tensor bytes do not follow from type and shape",
    /// An acknowledgement whose ranges are not descending and disjoint.
    BadAck = "acknowledged ranges are not descending and disjoint",
    /// A status code that does not exist.
    BadStatus = "unknown status code",
    /// Text that is not UTF-8.
    BadText = "text is not UTF-8",
}

impl WireError {
    /// A dense index for counters, less than `WireError::ALL.len()`.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl core::error::Error for WireError {}
