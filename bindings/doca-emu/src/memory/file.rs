//! Which file a range of this process's memory lies in.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{fstat, makedev};
use rustix::io::fcntl_dupfd_cloexec;

use super::descriptor::FilePlace;
use super::mapping::keeps;

/// The file that a range is a shared mapping of, if all of it is of one, which stays as long as it is, and which this process has open.
pub(super) fn of_range(start: usize, len: usize) -> Option<(OwnedFd, FilePlace)> {
    let place = mapped(&fs::read_to_string("/proc/self/maps").ok()?, start, len)?;
    fs::read_dir("/proc/self/fd").ok()?.flatten().find_map(|entry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        // SAFETY: it was open just now. If it no longer is, or is another, then what follows says so: only the duplicate counts.
        let file = fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, 0).ok()?;
        let stat = fstat(&file).ok()?;
        let same = stat.st_dev == place.device && stat.st_ino == place.inode;
        (same && keeps(std::os::fd::AsFd::as_fd(&file), place.offset + len as u64)).then_some((file, place))
    })
}

/// Where a range lies by the text of `/proc/self/maps`.
fn mapped(maps: &str, start: usize, len: usize) -> Option<FilePlace> {
    let mut found: Option<FilePlace> = None;
    let mut reached = start;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        if to <= reached {
            continue;
        }
        let shared = fields.next()?.ends_with('s');
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let inode = fields.next()?.parse().ok()?;
        if from > reached || !shared {
            return None;
        }
        let here = FilePlace { device, inode, offset: offset + (reached - from) as u64 };
        let first = *found.get_or_insert(here);
        let expected = first.offset + (reached - start) as u64;
        if (here.device, here.inode, here.offset) != (first.device, first.inode, expected) {
            return None;
        }
        reached = to;
        if reached >= start + len {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-3000 rw-s 00000000 00:01 42 /memfd:a (deleted)
3000-4000 rw-s 00002000 00:01 42 /memfd:a (deleted)
4000-5000 rw-s 00007000 00:01 42 /memfd:a (deleted)
6000-7000 rw-p 00000000 00:00 0
";

    #[test]
    fn a_range_is_in_a_file_if_all_of_it_is() {
        let offset = |start, len| mapped(MAPS, start, len).map(|place| place.offset);
        assert_eq!(offset(0x1000, 0x3000), Some(0));
        assert_eq!(offset(0x2010, 0x1000), Some(0x1010));
        assert_eq!(offset(0x4800, 0x800), Some(0x7800));
        // The file goes on elsewhere, the mapping ends, nothing is mapped, and private memory.
        assert_eq!(offset(0x3000, 0x1001), None);
        assert_eq!(offset(0x4000, 0x1001), None);
        assert_eq!(offset(0x5000, 1), None);
        assert_eq!(offset(0x6000, 1), None);
    }
}
