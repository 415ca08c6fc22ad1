//! Memory that this process must not touch: for tests which prove that it does not.

use std::io;
use std::ptr;

use rustix::mm::{MprotectFlags, mprotect};

/// Takes from this process every right to `len` bytes at `offset` of the arenas of that name, however often it has them mapped: who touches one of them
/// from then on is ended by the kernel. Other processes keep their rights. Both numbers are multiples of the page size. Returns the bytes of all
/// mappings together to which that was done.
///
/// # Errors
/// Those of the kernel, which knows of no mapping of part of a page.
pub fn forbid(name: &str, offset: u64, len: u64) -> io::Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut forbidden = 0;
    for (start, bytes) in maps.lines().filter_map(|line| part(line, name, offset, offset.checked_add(len)?)) {
        // SAFETY: the pages stay mapped to what they were mapped to, so no address comes to mean anything else. Arenas are accessed through spans only,
        // and an access that is refused ends the process before anything could follow from it.
        unsafe { mprotect(ptr::with_exposed_provenance_mut(start), bytes, MprotectFlags::empty()) }?;
        forbidden += bytes;
    }
    Ok(forbidden)
}

/// Where what lies from `from` to `to` in the arena of that name is mapped by a line of the map, and how many bytes of it.
fn part(line: &str, name: &str, from: u64, to: u64) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
    let file = fields.nth(2)?.strip_prefix("/memfd:")?;
    let (first, last) = (from.max(offset), to.min(offset + (end - start)));
    (file == name && first < last).then(|| ((start + first - offset) as usize, (last - first) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_found_in_the_map() {
        let line = "10000-14000 rw-s 00002000 00:01 42                       /memfd:a (deleted)";
        assert_eq!(part(line, "a", 0, 0x100_000), Some((0x10000, 0x4000)));
        assert_eq!(part(line, "a", 0x3000, 0x4000), Some((0x11000, 0x1000)));
        assert_eq!(part(line, "a", 0x5000, 0x9000), Some((0x13000, 0x1000)));
        assert_eq!(
            (part(line, "a", 0, 0x2000), part(line, "a", 0x6000, 0x7000), part(line, "b", 0, 0x9000)),
            (None, None, None)
        );
        assert_eq!(part("20000-21000 rw-p 00000000 00:00 0", "a", 0, 0x9000), None);
    }
}
