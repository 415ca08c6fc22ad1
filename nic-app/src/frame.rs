//! Frames as bytes: where a head ends, and where misplaced tensor data is copied to.

use splitrpc_arena::Arena;
use splitrpc_engine::Piece;
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, Manifest, WireError};

/// Longest payload of a frame that carries no tensors: a hello padded as over datagrams, with room for extensions.
const MAX_CONTROL: u32 = 2048;
/// Longest head: header, and manifest or control payload.
pub(crate) const HEAD_ROOM: usize = HEADER_LEN + MAX_CONTROL as usize;

/// How much of a head there is.
pub(crate) enum Measured {
    /// All of it: so many bytes.
    Whole(Header, usize),
    /// It takes at least so many bytes; more than there are, never more than [`HEAD_ROOM`].
    Needs(usize),
}

/// Measures the head at the beginning of `bytes`.
pub(crate) fn measure(bytes: &[u8]) -> Result<Measured, WireError> {
    if bytes.len() < HEADER_LEN {
        return Ok(Measured::Needs(HEADER_LEN));
    }
    let header = Header::parse(bytes)?;
    let len = head_len(&header, bytes)?;
    Ok(if len <= bytes.len() { Measured::Whole(header, len) } else { Measured::Needs(len) })
}

/// Bytes of the head that begins with `header`; where there are not enough bytes to tell, more than there are.
#[inline]
pub(crate) fn head_len(header: &Header, bytes: &[u8]) -> Result<usize, WireError> {
    match header.kind {
        Kind::Request | Kind::Response if !header.flags.has(Flags::MANIFEST) => Ok(HEADER_LEN),
        Kind::Request | Kind::Response => {
            const PREFIX: usize = HEADER_LEN + splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
            if bytes.len() < PREFIX {
                return Ok(PREFIX);
            }
            let manifest = Manifest::peek_len(&bytes[HEADER_LEN..])?;
            if manifest > header.length as usize {
                return Err(WireError::BadExtent);
            }
            Ok(HEADER_LEN + manifest)
        }
        _ if header.length > MAX_CONTROL => Err(WireError::TooLong),
        _ => Ok(HEADER_LEN + header.length as usize),
    }
}

/// Copies `bytes` to where the bytes of `pieces` from `skip` on belong. Returns whether all of them had a place.
pub(crate) fn place(arena: &Arena, pieces: impl Iterator<Item = Piece>, mut skip: u32, mut bytes: &[u8]) -> bool {
    for piece in pieces {
        let skipped = skip.min(piece.length);
        skip -= skipped;
        let length = ((piece.length - skipped) as usize).min(bytes.len());
        let Some(span) = arena.span(piece.run, piece.tensor, piece.offset + skipped, length as u32) else {
            return false;
        };
        span.copy_from(&bytes[..length]);
        bytes = &bytes[length..];
    }
    bytes.is_empty()
}
