//! The fixed 64-byte frame header.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{VERSION, WireError};

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 64;
/// `tensor` of a frame that carries only a manifest.
pub const MANIFEST_TENSOR: u16 = 0xffff;
/// `total` of a message whose size is known only when its last frame is sent.
pub const TOTAL_UNKNOWN: u32 = u32::MAX;

const MAGIC: u16 = 0x5273; // "sR" on the wire

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A client opens a session.
    Hello = 1,
    /// The server asks a datagram client to prove its address.
    Challenge = 2,
    /// The server's answer: limits, abilities, credit.
    HelloAck = 3,
    /// Asks for a piece of the model catalogue.
    List = 4,
    /// A piece of the model catalogue.
    ListAck = 5,
    /// Part or all of a request.
    Request = 6,
    /// Part or all of a response.
    Response = 7,
    /// Selective acknowledgement (datagrams only).
    Ack = 8,
    /// Credit without an acknowledgement (datagrams only).
    Credit = 9,
    /// The client no longer wants a request's answer.
    Cancel = 10,
    /// The request, or the session if `request` is 0, failed.
    Error = 11,
    /// Are you there?
    Ping = 12,
    /// Yes.
    Pong = 13,
    /// The sender has closed the session.
    Goodbye = 14,
}

impl Kind {
    /// Every kind, in the order of its code.
    pub const ALL: [Kind; 14] = [
        Kind::Hello,
        Kind::Challenge,
        Kind::HelloAck,
        Kind::List,
        Kind::ListAck,
        Kind::Request,
        Kind::Response,
        Kind::Ack,
        Kind::Credit,
        Kind::Cancel,
        Kind::Error,
        Kind::Ping,
        Kind::Pong,
        Kind::Goodbye,
    ];

    /// Whether frames of this kind carry a message's manifest and tensors.
    #[must_use]
    pub const fn carries_tensors(self) -> bool {
        matches!(self, Kind::Request | Kind::Response)
    }

    fn from_code(code: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(code).wrapping_sub(1)).copied()
    }
}

/// Header flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Flags = Flags(0);
    /// The payload begins with the message's manifest; tensor data follows it.
    pub const MANIFEST: Flags = Flags(1);
    /// The last frame of a message whose total was unknown; `total` is now right.
    pub const LAST: Flags = Flags(1 << 1);
    /// The request may be executed more than once.
    pub const REPEATABLE: Flags = Flags(1 << 2);
    /// The header's tag is valid and must be checked.
    pub const TAGGED: Flags = Flags(1 << 3);
    /// The payload is encrypted.
    pub const SEALED: Flags = Flags(1 << 4);
    /// Further parts of this reply follow (streamed replies).
    pub const MORE: Flags = Flags(1 << 5);
    /// The receiver is asked to acknowledge at once.
    pub const ACK_NOW: Flags = Flags(1 << 6);
    const KNOWN: u8 = 0x7f;

    /// Whether all of `other` is set.
    #[must_use]
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// The bits as they stand on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// The header as it lies on the wire: little-endian, no padding.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Raw {
    magic: U16,
    version: u8,
    kind: u8,
    flags: u8,
    priority: u8,
    model: U16,
    session: U64,
    request: U64,
    tensor: U16,
    credit: U16,
    pub(crate) packet: U32,
    length: U32,
    deadline_us: U32,
    pub(crate) offset: U32,
    total: U32,
    tag: [u8; 16],
}

const _: () = assert!(size_of::<Raw>() == HEADER_LEN);

/// A validated frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Modifiers.
    pub flags: Flags,
    /// 0 means the model's default, 1 is the highest.
    pub priority: u8,
    /// The model's handle from the catalogue.
    pub model: u16,
    /// The session, 0 before there is one.
    pub session: u64,
    /// The request within the session; 0 where the frame concerns the session.
    pub request: u64,
    /// Index into the manifest of the tensor whose bytes follow, or [`MANIFEST_TENSOR`].
    pub tensor: u16,
    /// How many more requests the sender of this frame would take now.
    pub credit: u16,
    /// Packet number, modulo 2^32; 0 on transports that are reliable by themselves.
    pub packet: u32,
    /// Payload bytes that follow this header.
    pub length: u32,
    /// Requests: microseconds that remain, 0 for no deadline. Responses: the part's number in a streamed reply.
    pub deadline_us: u32,
    /// Where in the tensor the data (after a leading manifest) belongs.
    pub offset: u32,
    /// Bytes of the whole message, manifest and tensors, or [`TOTAL_UNKNOWN`].
    pub total: u32,
    /// Authentication tag; zero unless [`Flags::TAGGED`].
    pub tag: [u8; 16],
}

impl Header {
    /// A header of `kind` in which all else is zero.
    #[must_use]
    pub const fn new(kind: Kind) -> Header {
        Header {
            kind,
            flags: Flags::NONE,
            priority: 0,
            model: 0,
            session: 0,
            request: 0,
            tensor: 0,
            credit: 0,
            packet: 0,
            length: 0,
            deadline_us: 0,
            offset: 0,
            total: 0,
            tag: [0; 16],
        }
    }

    /// Parses and validates the first [`HEADER_LEN`] bytes of `bytes`.
    ///
    /// # Errors
    /// The first rule of `docs/wire.md` that the bytes break.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Header, WireError> {
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
        if raw.magic.get() != MAGIC {
            return Err(WireError::BadMagic);
        }
        if raw.version != VERSION {
            return Err(WireError::BadVersion);
        }
        let kind = Kind::from_code(raw.kind).ok_or(WireError::BadKind)?;
        if raw.flags & !Flags::KNOWN != 0 {
            return Err(WireError::Reserved);
        }
        let flags = Flags(raw.flags);
        if !flags.has(Flags::TAGGED) && raw.tag != [0; 16] {
            return Err(WireError::Reserved);
        }
        let header = Header {
            kind,
            flags,
            priority: raw.priority,
            model: raw.model.get(),
            session: raw.session.get(),
            request: raw.request.get(),
            tensor: raw.tensor.get(),
            credit: raw.credit.get(),
            packet: raw.packet.get(),
            length: raw.length.get(),
            deadline_us: raw.deadline_us.get(),
            offset: raw.offset.get(),
            total: raw.total.get(),
            tag: raw.tag,
        };
        header.check_extent()?;
        Ok(header)
    }

    /// The header as bytes.
    #[must_use]
    #[inline]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(Raw::from(self))
    }

    /// Whether this one frame is a whole message: its manifest and then all of its tensors, back to back.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.flags.has(Flags::MANIFEST) && self.length == self.total
    }

    fn check_extent(&self) -> Result<(), WireError> {
        match self.kind {
            Kind::Request | Kind::Response => {
                let end = self.offset.checked_add(self.length).ok_or(WireError::BadExtent)?;
                if self.total != TOTAL_UNKNOWN && end > self.total {
                    return Err(WireError::BadExtent);
                }
                let manifest = self.flags.has(Flags::MANIFEST);
                if manifest && (self.offset != 0 || !matches!(self.tensor, 0 | MANIFEST_TENSOR)) {
                    return Err(WireError::BadExtent);
                }
                if self.tensor == MANIFEST_TENSOR && !manifest {
                    return Err(WireError::BadExtent);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl From<&Header> for Raw {
    #[inline]
    fn from(header: &Header) -> Raw {
        Raw {
            magic: U16::new(MAGIC),
            version: VERSION,
            kind: header.kind as u8,
            flags: header.flags.bits(),
            priority: header.priority,
            model: U16::new(header.model),
            session: U64::new(header.session),
            request: U64::new(header.request),
            tensor: U16::new(header.tensor),
            credit: U16::new(header.credit),
            packet: U32::new(header.packet),
            length: U32::new(header.length),
            deadline_us: U32::new(header.deadline_us),
            offset: U32::new(header.offset),
            total: U32::new(header.total),
            tag: header.tag,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header {
            flags: Flags::MANIFEST,
            priority: 3,
            model: 7,
            session: u64::MAX - 1,
            request: 42,
            credit: 9,
            packet: 0xdead_beef,
            length: 100,
            deadline_us: 5,
            total: 1000,
            ..Header::new(Kind::Request)
        };
        assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
    }

    #[test]
    fn an_extent_past_the_total_is_refused() {
        let header = Header { offset: u32::MAX, length: 2, total: 9, ..Header::new(Kind::Request) };
        assert_eq!(Header::parse(&header.to_bytes()), Err(WireError::BadExtent));
        let header = Header { offset: 8, length: 2, total: 9, ..Header::new(Kind::Response) };
        assert_eq!(Header::parse(&header.to_bytes()), Err(WireError::BadExtent));
    }
}
