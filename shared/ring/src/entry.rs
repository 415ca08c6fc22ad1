//! One ring entry: how a descriptor is sealed for a position of the ring, and what it takes to be accepted there.
//!
//! ```text
//! word 0      tag: position + 1, so that zeroed memory holds no entry and each lap has other tags
//! word 1..=6  the descriptor
//! word 7      checksum over words 0..=6 in the upper half, the tag's lower half in the lower
//! ```
//!
//! The tag stands at both ends because a copy engine may write the line in any order and in pieces: only when both
//! ends and the checksum agree has all of it arrived.

use crate::DESCRIPTOR_WORDS;
use crate::sync::AtomicU64;

/// Words of a line: one cache line.
pub const LINE_WORDS: usize = 8;

/// One cache line of ring memory. The other side may write it at any time, so that it is read word by word, each once.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line([AtomicU64; LINE_WORDS]);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    /// A line of zeros, which holds no entry.
    #[must_use]
    pub fn new() -> Line {
        Line(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// The line's words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64; LINE_WORDS] {
        &self.0
    }

    /// Lines in memory that is shared with another process or device.
    ///
    /// # Safety
    /// `lines` lines from `first` on are mapped, readable, writable and aligned to 64 bytes for all of `'a`, and in
    /// this process only atomic operations touch them.
    #[cfg(not(loom))]
    #[must_use]
    pub unsafe fn slice_from_raw<'a>(first: core::ptr::NonNull<Line>, lines: usize) -> &'a [Line] {
        // SAFETY: the caller vouches for extent, alignment and life. Any bit pattern is a valid line, and what others
        // write behind the shared reference they write to atomics.
        unsafe { core::slice::from_raw_parts(first.as_ptr(), lines) }
    }
}

impl Default for Line {
    fn default() -> Self {
        Line::new()
    }
}

/// Why a line holds no entry for a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntry {
    /// Nothing new: it holds the previous lap's entry, or zeros.
    Empty,
    /// Its tag belongs to this position, but the rest does not: half written, or damaged.
    Torn,
    /// Its tag belongs to neither this lap nor the last.
    Alien,
}

/// The tag of the entry at `position`, which counts entries since the ring began.
pub(crate) const fn tag(position: u64) -> u64 {
    position.wrapping_add(1)
}

/// The eight words that carry `descriptor` at `position`.
#[must_use]
pub fn seal(position: u64, descriptor: &[u64; DESCRIPTOR_WORDS]) -> [u64; LINE_WORDS] {
    let tag = tag(position);
    let [a, b, c, d, e, f] = *descriptor;
    [tag, a, b, c, d, e, f, checksum(tag, descriptor) << 32 | tag & LOW]
}

/// The descriptor in `line`, read out of a ring of `capacity` entries for `position`.
///
/// # Errors
/// Why there is none.
pub fn open(position: u64, capacity: u64, line: &[u64; LINE_WORDS]) -> Result<[u64; DESCRIPTOR_WORDS], NoEntry> {
    let [first, a, b, c, d, e, f, last] = *line;
    check_tag(position, capacity, first)?;
    let descriptor = [a, b, c, d, e, f];
    if last == checksum(first, &descriptor) << 32 | first & LOW { Ok(descriptor) } else { Err(NoEntry::Torn) }
}

/// Judges a line by its first word alone.
pub(crate) fn check_tag(position: u64, capacity: u64, first: u64) -> Result<(), NoEntry> {
    if first == tag(position) {
        return Ok(());
    }
    let before = position.checked_sub(capacity).map_or(0, tag);
    Err(if first == before { NoEntry::Empty } else { NoEntry::Alien })
}

const LOW: u64 = 0xffff_ffff;

/// 32 bits in the lower half. Against tearing and stray writes, not against forgery: who may write the memory may
/// also compute this.
fn checksum(tag: u64, words: &[u64; DESCRIPTOR_WORDS]) -> u64 {
    // Odd constants without pattern: digits of the square roots of small primes. Three products side by side, and one
    // to mix in the tag.
    let ab = fold(words[0] ^ 0x6a09_e667_f3bc_c909, words[1] ^ 0xbb67_ae85_84ca_a73b);
    let cd = fold(words[2] ^ 0x3c6e_f372_fe94_f82b, words[3] ^ 0xa54f_f53a_5f1d_36f1);
    let ef = fold(words[4] ^ 0x510e_527f_ade6_82d1, words[5] ^ 0x9b05_688c_2b3e_6c1f);
    fold(ab ^ cd.rotate_left(21) ^ ef.rotate_left(42), tag ^ 0x1f83_d9ab_fb41_bd6b) >> 32
}

/// Both halves of the 128-bit product, one over the other.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const WORDS: [u64; DESCRIPTOR_WORDS] = [1, 0, u64::MAX, 0x0102_0304_0506_0708, 0, 9];

    #[test]
    fn an_entry_opens_at_its_own_position_only() {
        let line = seal(5, &WORDS);
        assert_eq!(open(5, 4, &line), Ok(WORDS));
        assert_eq!(open(9, 4, &line), Err(NoEntry::Empty));
        assert_eq!(open(4, 4, &line), Err(NoEntry::Alien));
        assert_eq!(open(13, 4, &line), Err(NoEntry::Alien));
        assert_eq!(open(0, 4, &[0; LINE_WORDS]), Err(NoEntry::Empty));
        assert_eq!(open(4, 4, &[0; LINE_WORDS]), Err(NoEntry::Alien));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for descriptor in [WORDS, [0; DESCRIPTOR_WORDS], [u64::MAX; DESCRIPTOR_WORDS]] {
            let line = seal(77, &descriptor);
            for bit in 0..LINE_WORDS * 64 {
                let mut bad = line;
                bad[bit / 64] ^= 1 << (bit % 64);
                assert!(open(77, 8, &bad).is_err(), "bit {bit} of {descriptor:?}");
            }
        }
    }

    #[test]
    fn a_line_that_arrived_in_part_is_torn() {
        let (old, new) = (seal(3, &WORDS), seal(7, &[2; DESCRIPTOR_WORDS]));
        for have in 1..(1u32 << LINE_WORDS) - 1 {
            let line = core::array::from_fn(|i| if have >> i & 1 == 1 { new[i] } else { old[i] });
            // What has not arrived may be equal in both lines; then nothing is missing.
            if line != new {
                let refused = if have & 1 == 1 { NoEntry::Torn } else { NoEntry::Empty };
                assert_eq!(open(7, 4, &line), Err(refused), "arrived: {have:08b}");
            }
        }
    }
}
