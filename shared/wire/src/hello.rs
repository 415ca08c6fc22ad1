//! Session set-up: hello, address challenge, answer.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::WireError;

/// Smallest datagram (UDP payload) that every path must carry, and to which a hello is padded.
pub const MIN_DATAGRAM: u16 = 1232;
/// Largest datagram (UDP payload).
pub const MAX_DATAGRAM: u16 = 65_000;

/// What a side can do beyond the base protocol; unknown bits are ignored, so that new ones need no new version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities(pub u32);

impl Abilities {
    /// Replies in several parts.
    pub const STREAMED_REPLIES: u32 = 1;
    /// Header tags.
    pub const TAGS: u32 = 1 << 1;
    /// Sealed payload on datagrams.
    pub const SEALED: u32 = 1 << 2;
    /// RDMA write with immediate into the server's slots.
    pub const RDMA_WRITE: u32 = 1 << 3;
}

/// A client's request to open a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version that the client speaks.
    pub version_min: u16,
    /// Newest version that the client speaks.
    pub version_max: u16,
    /// What the client can do.
    pub abilities: Abilities,
    /// Largest datagram that the client would send and take.
    pub datagram: u16,
    /// Largest response that the client takes, in bytes.
    pub max_response: u32,
    /// The client's choice; tells its sessions apart and comes back in the answer.
    pub nonce: u64,
    /// The token of the last challenge, or 0.
    pub token: u64,
    /// Names the key for tags and sealed payload, or 0.
    pub key_id: u64,
    /// Bytes of frames that may be under way to the client.
    pub window: u64,
}

/// The server's request to prove an address: nothing is kept until the token comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// To be sent back in the next hello.
    pub token: u64,
    /// The hello's nonce.
    pub nonce: u64,
}

/// The server's answer to a hello: the session is in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloAck {
    /// The version that this session speaks.
    pub version: u16,
    /// Requests that the client may have in flight.
    pub max_requests: u16,
    /// What the server can do.
    pub abilities: Abilities,
    /// Datagram size of this session.
    pub datagram: u16,
    /// Largest request, in bytes, manifest included.
    pub max_request: u32,
    /// Bytes of the model catalogue.
    pub catalog_len: u32,
    /// A session that is silent for longer is forgotten, in milliseconds.
    pub idle_timeout_ms: u32,
    /// How long a reply is kept to answer a duplicate, in milliseconds.
    pub keep_reply_ms: u32,
    /// The hello's nonce.
    pub nonce: u64,
    /// Changes whenever the server restarts.
    pub epoch: u64,
    /// Bytes of frames that may be under way to the server.
    pub window: u64,
}

macro_rules! payload {
    ($ty:ident, $raw:ident { $($field:ident : $le:ty = $to:expr;)+ }) => {
        #[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        struct $raw { $($field: $le,)+ }

        impl $ty {
            /// Bytes of the payload. What follows in the frame is padding or extensions of later versions.
            pub const LEN: usize = size_of::<$raw>();

            /// The payload's bytes.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; $ty::LEN] {
                let value = self;
                let raw = $raw { $($field: ($to)(value),)+ };
                zerocopy::transmute!(raw)
            }

            /// Parses the payload; bytes behind it are ignored.
            ///
            /// # Errors
            /// [`WireError::Truncated`], or [`WireError::BadExtent`] for a limit outside what the protocol allows.
            pub fn parse(bytes: &[u8]) -> Result<$ty, WireError> {
                let (raw, _) = $raw::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
                ($ty::from_raw(raw)).check()
            }
        }
    };
}

payload!(Hello, HelloRaw {
    version_min: U16 = |v: &Hello| U16::new(v.version_min);
    version_max: U16 = |v: &Hello| U16::new(v.version_max);
    abilities: U32 = |v: &Hello| U32::new(v.abilities.0);
    datagram: U16 = |v: &Hello| U16::new(v.datagram);
    reserved: U16 = |_: &Hello| U16::ZERO;
    max_response: U32 = |v: &Hello| U32::new(v.max_response);
    nonce: U64 = |v: &Hello| U64::new(v.nonce);
    token: U64 = |v: &Hello| U64::new(v.token);
    key_id: U64 = |v: &Hello| U64::new(v.key_id);
    window: U64 = |v: &Hello| U64::new(v.window);
});

impl Hello {
    fn from_raw(raw: &HelloRaw) -> Hello {
        Hello {
            version_min: raw.version_min.get(),
            version_max: raw.version_max.get(),
            abilities: Abilities(raw.abilities.get()),
            datagram: raw.datagram.get(),
            max_response: raw.max_response.get(),
            nonce: raw.nonce.get(),
            token: raw.token.get(),
            key_id: raw.key_id.get(),
            window: raw.window.get(),
        }
    }

    fn check(self) -> Result<Hello, WireError> {
        let sane = self.version_min <= self.version_max && (MIN_DATAGRAM..=MAX_DATAGRAM).contains(&self.datagram);
        if sane { Ok(self) } else { Err(WireError::BadExtent) }
    }
}

payload!(Challenge, ChallengeRaw {
    token: U64 = |v: &Challenge| U64::new(v.token);
    nonce: U64 = |v: &Challenge| U64::new(v.nonce);
});

impl Challenge {
    fn from_raw(raw: &ChallengeRaw) -> Challenge {
        Challenge { token: raw.token.get(), nonce: raw.nonce.get() }
    }

    fn check(self) -> Result<Challenge, WireError> {
        if self.token == 0 { Err(WireError::BadExtent) } else { Ok(self) }
    }
}

payload!(HelloAck, HelloAckRaw {
    version: U16 = |v: &HelloAck| U16::new(v.version);
    max_requests: U16 = |v: &HelloAck| U16::new(v.max_requests);
    abilities: U32 = |v: &HelloAck| U32::new(v.abilities.0);
    datagram: U16 = |v: &HelloAck| U16::new(v.datagram);
    reserved: U16 = |_: &HelloAck| U16::ZERO;
    max_request: U32 = |v: &HelloAck| U32::new(v.max_request);
    catalog_len: U32 = |v: &HelloAck| U32::new(v.catalog_len);
    idle_timeout_ms: U32 = |v: &HelloAck| U32::new(v.idle_timeout_ms);
    keep_reply_ms: U32 = |v: &HelloAck| U32::new(v.keep_reply_ms);
    reserved_too: U32 = |_: &HelloAck| U32::ZERO;
    nonce: U64 = |v: &HelloAck| U64::new(v.nonce);
    epoch: U64 = |v: &HelloAck| U64::new(v.epoch);
    window: U64 = |v: &HelloAck| U64::new(v.window);
});

impl HelloAck {
    fn from_raw(raw: &HelloAckRaw) -> HelloAck {
        HelloAck {
            version: raw.version.get(),
            max_requests: raw.max_requests.get(),
            abilities: Abilities(raw.abilities.get()),
            datagram: raw.datagram.get(),
            max_request: raw.max_request.get(),
            catalog_len: raw.catalog_len.get(),
            idle_timeout_ms: raw.idle_timeout_ms.get(),
            keep_reply_ms: raw.keep_reply_ms.get(),
            nonce: raw.nonce.get(),
            epoch: raw.epoch.get(),
            window: raw.window.get(),
        }
    }

    fn check(self) -> Result<HelloAck, WireError> {
        let sane = self.max_requests > 0 && (MIN_DATAGRAM..=MAX_DATAGRAM).contains(&self.datagram);
        if sane { Ok(self) } else { Err(WireError::BadExtent) }
    }
}
