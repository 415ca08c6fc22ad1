//! Frames that follow one another, each in a datagram of its own.

use zerocopy::little_endian::U32;

use crate::header::Raw;
use crate::{Flags, HEADER_LEN, Header};

/// The headers of frames that carry on one tensor of one message: equal but for packet number and offset, which count
/// up. The kernel hands such datagrams over together, and takes them so, which makes it worth while not to parse and
/// decide frame by frame.
#[derive(Clone, Copy, Debug)]
pub struct Train {
    raw: Raw,
    packet: u32,
    offset: u32,
    length: u32,
    total: u32,
    carries_on: bool,
}

impl Train {
    /// The train that begins with this header.
    #[must_use]
    pub fn new(first: &Header) -> Train {
        Train {
            raw: Raw::from(first),
            packet: first.packet,
            offset: first.offset,
            length: first.length,
            total: first.total,
            carries_on: first.kind.carries_tensors()
                && first.length > 0
                && !first.flags.has(Flags::MANIFEST)
                && !first.flags.has(Flags::TAGGED)
                && !first.flags.has(Flags::SEALED),
        }
    }

    /// The header that these begin with, and how many of them, from that one on, make a train; 1 where the next does not
    /// carry on. `None` where there are none or the first is not valid.
    #[inline]
    #[must_use]
    pub fn measure(headers: &[[u8; HEADER_LEN]]) -> Option<(Header, u32)> {
        let (first, others) = headers.split_first()?;
        let first = Header::parse(first).ok()?;
        let train = Train::new(&first);
        let more = others.iter().zip(1..).take_while(|(bytes, n)| train.is_nth(*n, bytes)).count();
        Some((first, more as u32 + 1))
    }

    /// The bytes of the `n`th header; the first is number 0.
    #[inline]
    #[must_use]
    pub fn nth(&self, n: u32) -> [u8; HEADER_LEN] {
        let mut raw = self.raw;
        raw.packet = U32::new(self.packet.wrapping_add(n));
        raw.offset = U32::new(self.offset.wrapping_add(n.wrapping_mul(self.length)));
        zerocopy::transmute!(raw)
    }

    /// Whether these bytes are the `n`th header, and a valid one, given that the first was.
    #[inline]
    #[must_use]
    pub fn is_nth(&self, n: u32, bytes: &[u8; HEADER_LEN]) -> bool {
        let end = u64::from(self.offset) + (u64::from(n) + 1) * u64::from(self.length);
        // Larger numbers than the others make the comparison short.
        let expected: [u64; HEADER_LEN / 8] = zerocopy::transmute!(self.nth(n));
        let found: [u64; HEADER_LEN / 8] = zerocopy::transmute!(*bytes);
        self.carries_on && end <= u64::from(self.total) && expected == found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn first() -> Header {
        let of = Header { session: 7, request: 9, total: 5_000, ..Header::new(Kind::Request) };
        Header { tensor: 1, offset: 100, length: 1_000, packet: u32::MAX - 1, ..of }
    }

    #[test]
    fn what_is_taken_for_a_header_of_the_train_parses_to_it() {
        let train = Train::new(&first());
        for n in 0..4 {
            let header = Header { packet: first().packet.wrapping_add(n), offset: 100 + n * 1_000, ..first() };
            assert_eq!(train.nth(n), header.to_bytes());
            assert!(train.is_nth(n, &header.to_bytes()));
            assert_eq!(Header::parse(&train.nth(n)), Ok(header));
        }
        // It would end past the message.
        assert!(!train.is_nth(4, &train.nth(4)) && Header::parse(&train.nth(5)).is_err());
    }

    #[test]
    fn a_train_is_as_long_as_its_headers_carry_on() {
        let train = Train::new(&first());
        let mut headers = [0, 1, 2, 3, 4].map(|n| train.nth(n));
        assert_eq!(Train::measure(&headers), Some((first(), 4)), "the last would end past the message");
        assert_eq!(Train::measure(&headers[2..3]).map(|(_, frames)| frames), Some(1));
        headers.swap(1, 2);
        assert_eq!(Train::measure(&headers), Some((first(), 1)));
        assert_eq!(Train::measure(&[]), None);
        assert_eq!(Train::measure(&[[0; HEADER_LEN]]), None);
    }

    #[test]
    fn any_other_byte_ends_a_train() {
        let train = Train::new(&first());
        for at in 0..HEADER_LEN {
            let mut bytes = train.nth(1);
            bytes[at] ^= 1;
            assert!(!train.is_nth(1, &bytes), "byte {at}");
        }
    }

    #[test]
    fn only_tensor_data_comes_in_trains() {
        for header in [
            Header { length: 0, ..first() },
            Header { flags: Flags::MANIFEST, offset: 0, ..first() },
            Header { flags: Flags::TAGGED, ..first() },
            Header { kind: Kind::Ack, ..first() },
        ] {
            let train = Train::new(&header);
            assert!(!train.is_nth(1, &train.nth(1)), "{header:?}");
        }
    }
}
