//! What memory there is.

use std::fs;
use std::path::Path;

/// Bytes of memory that are free, as far as this process's control group lets it have them.
#[must_use]
pub fn free() -> Option<u64> {
    let free = kib("/proc/meminfo", "MemAvailable:")? << 10;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    bound(Path::new("/sys/fs/cgroup"), &groups).into_iter().chain([free]).min()
}

/// The number that a file of the kernel's has at a name, in KiB.
pub(super) fn kib(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix(name))?;
    number.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The least memory that any of these control groups, or those that they lie in, may have, in bytes. `groups` is what
/// `/proc/PID/cgroup` has: one of the second version, one of the first for each controller, or both.
fn bound(mount: &Path, groups: &str) -> Option<u64> {
    let groups = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(":/"));
    let bounds = groups.filter_map(|(controllers, group)| {
        let (dir, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|c| c == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        // Without a bound the file says "max", or more than any machine has.
        let bound = |group: &Path| fs::read_to_string(dir.join(group).join(file)).ok()?.trim().parse().ok();
        Path::new(group).ancestors().filter_map(bound).min()
    });
    bounds.min()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_control_group_of_either_version_bounds_the_memory() {
        let mount = tempfile::tempdir().unwrap();
        for (file, bound) in [
            ("a/memory.max", "max\n"),
            ("a/b/memory.max", "3000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/c/memory.limit_in_bytes", "2000\n"),
            ("memory/c/d/memory.limit_in_bytes", "5000\n"),
        ] {
            let path = mount.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bound).unwrap();
        }
        for (groups, bound) in [
            ("0::/a\n", None),
            ("0::/a/b\n", Some(3000)),
            ("0::/a/b/elsewhere\n", Some(3000)),
            ("9:cpu,cpuacct:/c\n4:memory:/c/d\n0::/\n", Some(2000)),
            ("3:hugetlb,memory:/c\n", Some(2000)),
            ("9:cpu:/c\n", None),
            // As a container without a namespace of groups sees it: its own is what is mounted.
            ("4:memory:/unseen\n", Some(9223372036854771712)),
            ("memory\n4:memory\n:::\n\n", None),
        ] {
            assert_eq!(super::bound(mount.path(), groups), bound, "{groups}");
        }
    }
}
