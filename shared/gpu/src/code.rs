//! Code from files: PTX, cubin or fatbin.

use splitrpc_cuda::{Context, Module};

use crate::error::GpuError;

/// How a cubin begins, and a fatbin.
const ELF: [u8; 4] = *b"\x7fELF";
const FATBIN: [u8; 4] = 0xBA55_ED50_u32.to_le_bytes();
/// The kind of section that has no bytes in the file.
const NO_BITS: u64 = 8;

/// Loads a module from the bytes of a file: PTX as text, or a cubin or fatbin for this device.
///
/// # Errors
/// [`GpuError::Code`] for a file that was cut short, or is none of these; the driver's, with what its compiler said.
pub fn load_code(context: &Context, bytes: &[u8]) -> Result<Module, GpuError> {
    let refuse = |why: &'static str| GpuError::Code { why };
    let whole = match bytes {
        [a, b, c, d, ..] if [*a, *b, *c, *d] == ELF => is_whole_cubin(bytes),
        [a, b, c, d, ..] if [*a, *b, *c, *d] == FATBIN => is_whole_fatbin(bytes),
        _ => {
            let text = str::from_utf8(bytes).map_err(|_| refuse("is neither PTX nor a cubin nor a fatbin"))?;
            if !text.contains(".entry") {
                return Err(refuse("is text without an .entry, so not PTX with a kernel"));
            }
            return Ok(Module::from_ptx(context, text)?);
        }
    };
    if whole != Some(true) {
        return Err(refuse("was cut short, or its header is damaged"));
    }
    // SAFETY: all that its headers name is inside the bytes. That they come from a compiler is for whoever names the file to
    // answer for, as that its code may run: see `Kernel`.
    Ok(unsafe { Module::from_binary(context, bytes) }?)
}

/// Whether the sections of a 64-bit ELF file, and their table, are inside it; `None` where not even the header is.
fn is_whole_cubin(bytes: &[u8]) -> Option<bool> {
    let inside = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= bytes.len() as u64);
    if bytes.get(4..6)? != [2, 1] {
        return Some(false);
    }
    let (segments, segment_len, segment_count) = (number(bytes, 32, 8)?, number(bytes, 54, 2)?, number(bytes, 56, 2)?);
    let (sections, section_len, section_count) = (number(bytes, 40, 8)?, number(bytes, 58, 2)?, number(bytes, 60, 2)?);
    if !inside(segments, segment_len * segment_count) || !inside(sections, section_len * section_count) {
        return Some(false);
    }
    if section_len < 64 || section_count == 0 || (segment_count > 0 && segment_len < 56) {
        return Some(false);
    }
    for section in 0..section_count {
        let header = usize::try_from(sections + section * section_len).ok()?;
        let (kind, at, len) =
            (number(bytes, header + 4, 4)?, number(bytes, header + 24, 8)?, number(bytes, header + 32, 8)?);
        if kind != NO_BITS && !inside(at, len) {
            return Some(false);
        }
    }
    for segment in 0..segment_count {
        let header = usize::try_from(segments + segment * segment_len).ok()?;
        if !inside(number(bytes, header + 8, 8)?, number(bytes, header + 32, 8)?) {
            return Some(false);
        }
    }
    Some(true)
}

/// Whether the images of a fatbin are all inside it.
fn is_whole_fatbin(bytes: &[u8]) -> Option<bool> {
    let (header, images) = (number(bytes, 6, 2)?, number(bytes, 8, 8)?);
    Some(header >= 16 && header.checked_add(images).is_some_and(|end| end <= bytes.len() as u64))
}

/// A little-endian number of so many bytes, eight at most.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(len)?)?;
    Some(part.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, and one section of ten bytes between it and the table.
    fn cubin() -> Vec<u8> {
        let mut bytes = vec![0; 64 + 10 + 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[40] = 74;
        (bytes[58], bytes[60]) = (64, 1);
        (bytes[74 + 24], bytes[74 + 32]) = (64, 10);
        bytes
    }

    #[test]
    fn a_cubin_that_was_cut_short_anywhere_is_not_whole() {
        let whole = cubin();
        assert_eq!(is_whole_cubin(&whole), Some(true));
        for len in 0..whole.len() {
            assert_ne!(is_whole_cubin(&whole[..len]), Some(true), "{len} bytes");
        }
    }

    #[test]
    fn numbers_beyond_the_end_are_refused_and_do_not_overflow() {
        for at in [32, 40, 54, 56, 58, 60, 74 + 24, 74 + 32] {
            let mut damaged = cubin();
            damaged[at..at + 2].fill(0xff);
            damaged.splice(at.min(damaged.len() - 8)..at.min(damaged.len() - 8) + 8, [0xff; 8]);
            assert_ne!(is_whole_cubin(&damaged), Some(true), "at {at}");
        }
    }

    #[test]
    fn a_fatbin_says_how_long_it_is() {
        let mut bytes = vec![0; 16 + 5];
        bytes[..4].copy_from_slice(&FATBIN);
        (bytes[6], bytes[8]) = (16, 5);
        assert_eq!(is_whole_fatbin(&bytes), Some(true));
        assert_eq!(is_whole_fatbin(&bytes[..20]), Some(false));
        assert_eq!(is_whole_fatbin(&bytes[..10]), None);
        bytes[8..16].fill(0xff);
        assert_eq!(is_whole_fatbin(&bytes), Some(false));
    }
}
