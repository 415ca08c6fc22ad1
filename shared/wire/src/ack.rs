//! Acknowledgement and credit payloads (datagrams only).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::WireError;

/// Most ranges in one acknowledgement.
pub const MAX_ACK_RANGES: usize = 32;
/// Longest acknowledgement payload.
pub const MAX_ACK_LEN: usize = HEAD + 8 * MAX_ACK_RANGES;

const HEAD: usize = size_of::<Raw>();

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    window: U64,
    delay_us: U32,
    ranges: U16,
    reserved: U16,
}

/// Packet numbers `first..=last`, modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AckRange {
    first: U32,
    last: U32,
}

impl AckRange {
    /// The range of these packet numbers.
    #[must_use]
    pub fn new(first: u32, last: u32) -> AckRange {
        AckRange { first: U32::new(first), last: U32::new(last) }
    }

    /// Lowest packet number.
    #[must_use]
    pub fn first(&self) -> u32 {
        self.first.get()
    }

    /// Highest packet number.
    #[must_use]
    pub fn last(&self) -> u32 {
        self.last.get()
    }

    /// One less than the number of packets in the range.
    #[must_use]
    pub fn span(&self) -> u32 {
        self.last().wrapping_sub(self.first())
    }
}

/// The payload of an acknowledgement, and without ranges that of a credit frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Bytes of frames that may be under way to the sender of this frame.
    pub window: u64,
    /// Microseconds between the arrival of the highest packet and this acknowledgement.
    pub delay_us: u32,
    /// Received packet numbers, highest range first, disjoint, modulo 2^32.
    pub ranges: &'a [AckRange],
}

impl<'a> Ack<'a> {
    /// Parses the payload. All ranges lie within 2^31 below the first one's end and do not touch each other.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::Reserved`], [`WireError::BadAck`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Ack<'a>, WireError> {
        let (raw, rest) = Raw::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
        let count = usize::from(raw.ranges.get());
        if raw.reserved.get() != 0 {
            return Err(WireError::Reserved);
        }
        if count > MAX_ACK_RANGES {
            return Err(WireError::BadAck);
        }
        let (ranges, _) = <[AckRange]>::ref_from_prefix_with_elems(rest, count).map_err(|_| WireError::Truncated)?;
        if let Some(highest) = ranges.first().map(AckRange::last) {
            // Distances below the highest number only grow, whatever the wrap.
            let mut below = None;
            for range in ranges {
                let (to_last, to_first) = (highest.wrapping_sub(range.last()), highest.wrapping_sub(range.first()));
                let apart = below.is_none_or(|b: u32| to_last > b && to_last - b >= 2);
                if to_first < to_last || to_first > u32::MAX / 2 || !apart {
                    return Err(WireError::BadAck);
                }
                below = Some(to_first);
            }
        }
        Ok(Ack { window: raw.window.get(), delay_us: raw.delay_us.get(), ranges })
    }

    /// Writes the payload to the head of `out` and returns its length, or 0 where it does not fit. At most
    /// [`MAX_ACK_RANGES`] ranges are written.
    pub fn write(&self, out: &mut [u8]) -> usize {
        let ranges = &self.ranges[..self.ranges.len().min(MAX_ACK_RANGES)];
        let body = ranges.as_bytes();
        let Some(out) = out.get_mut(..HEAD + body.len()) else { return 0 };
        let raw = Raw {
            window: U64::new(self.window),
            delay_us: U32::new(self.delay_us),
            ranges: U16::new(ranges.len() as u16),
            reserved: U16::ZERO,
        };
        out[..HEAD].copy_from_slice(raw.as_bytes());
        out[HEAD..].copy_from_slice(body);
        HEAD + body.len()
    }
}
