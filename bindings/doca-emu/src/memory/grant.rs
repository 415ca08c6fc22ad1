//! What an export rests on: a page that the exporter keeps, which repeats the descriptor and says whether it still holds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use zerocopy::{FromBytes, IntoBytes};

use super::descriptor::Descriptor;
use super::mapping::{Mapping, keeps, sealed_file};

const SIZE: usize = 4096;
/// Nanoseconds for which a process that was seen alive is taken to be: as long as until a connection's end is seen.
const SEEN_FOR: u64 = 1_000_000;
/// Where the page says that the grant holds, behind the descriptor.
const HOLDS: usize = 256;
const _: () = assert!(size_of::<Descriptor>() <= HOLDS);

/// The exporter's end. The grant ends with it.
pub(super) struct Grant {
    page: Mapping,
    _file: OwnedFd,
}

impl Grant {
    /// Writes the descriptor into a new page, with the page's own number in it.
    pub(super) fn new(descriptor: &mut Descriptor) -> io::Result<Grant> {
        let file = sealed_file("splitrpc-bluefield-grant", SIZE)?;
        descriptor.grant = file.as_raw_fd().unsigned_abs();
        let page = Mapping::of(file.as_fd(), 0, SIZE, true)?;
        let bytes = descriptor.as_bytes();
        // SAFETY: the page has room for it, and nobody else knows of it yet.
        unsafe { page.pointer(0, bytes.len()).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        page.word(HOLDS).store(1, Ordering::Release);
        Ok(Grant { page, _file: file })
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.page.word(HOLDS).store(0, Ordering::Release);
        fence(Ordering::SeqCst);
    }
}

/// The importer's view of an exporter.
pub(super) struct Exporter {
    page: Mapping,
    /// `None` for this process itself.
    process: Option<Process>,
    pub(super) pid: Pid,
}

impl Exporter {
    /// Finds the exporter that a descriptor names, if it grants exactly what the descriptor says.
    pub(super) fn find(descriptor: &Descriptor) -> Option<Exporter> {
        let pid = Pid::from_raw(descriptor.process.cast_signed())?;
        let process = match pid == rustix::process::getpid() {
            true => None,
            false => Some(Process::new(pidfd_open(pid, PidfdFlags::empty()).ok()?)),
        };
        let file = opened(pid, descriptor.grant, OFlags::RDONLY, None)?;
        if !keeps(file.as_fd(), SIZE as u64) {
            return None;
        }
        let page = Mapping::of(file.as_fd(), 0, SIZE, false).ok()?;
        let mut bytes = [0; size_of::<Descriptor>()];
        // SAFETY: the page is longer; if somebody writes to it meanwhile then the copy is of no use and is refused.
        unsafe { page.pointer(0, bytes.len()).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        let granted = Descriptor::read_from_bytes(&bytes).ok()?;
        let exporter = Exporter { page, process, pid };
        // Last, so that what was opened was this very process's.
        (granted == *descriptor && exporter.grants()).then_some(exporter)
    }

    /// Whether the grant holds: one system call at most, and mostly none.
    pub(super) fn grants(&self) -> bool {
        self.page.word(HOLDS).load(Ordering::Acquire) == 1 && self.process.as_ref().is_none_or(Process::lives)
    }

    /// The exporter's own file of a GPU's memory, which cannot be opened anew.
    pub(super) fn handle(&self, number: u32) -> Option<OwnedFd> {
        let number = i32::try_from(number).ok()?;
        match &self.process {
            Some(process) => pidfd_getfd(&process.descriptor, number, PidfdGetfdFlags::empty()).ok(),
            // SAFETY: it was open when it was granted. If it no longer is, or is another, then CUDA refuses it.
            None => rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, 0).ok(),
        }
    }

    /// Opens the file that the granted memory lies in.
    pub(super) fn memory(&self, descriptor: &Descriptor, writable: bool) -> Option<OwnedFd> {
        let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let file = opened(self.pid, descriptor.file, flags, Some((descriptor.device, descriptor.inode)))?;
        keeps(file.as_fd(), descriptor.offset + descriptor.length).then_some(file)
    }
}

/// Another process, which may end without having taken its grants back.
struct Process {
    descriptor: OwnedFd,
    since: Instant,
    /// Nanoseconds since then, when it was last seen alive.
    seen: AtomicU64,
}

impl Process {
    fn new(descriptor: OwnedFd) -> Process {
        Process { descriptor, since: Instant::now(), seen: AtomicU64::new(u64::MAX) }
    }

    /// Whether it has not ended, or had not a moment ago: hardware takes as long to learn of it, and each piece of a request
    /// would wait for a look.
    fn lives(&self) -> bool {
        let (now, seen) = (self.since.elapsed().as_nanos() as u64, self.seen.load(Ordering::Relaxed));
        if seen <= now && now - seen < SEEN_FOR {
            return true;
        }
        // Its descriptor is readable once it has ended.
        let mut of_process = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let lives = poll(&mut of_process, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready == 0);
        self.seen.store(if lives { now } else { u64::MAX }, Ordering::Relaxed);
        lives
    }
}

/// Opens another process's file anew. Looks at what it is before that has an effect.
fn opened(pid: Pid, number: u32, flags: OFlags, expected: Option<(u64, u64)>) -> Option<OwnedFd> {
    let path = format!("/proc/{}/fd/{number}", pid.as_raw_nonzero());
    let seen = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = fstat(&seen).ok()?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile
        || expected.is_some_and(|expected| expected != (stat.st_dev, stat.st_ino))
    {
        return None;
    }
    open(format!("/proc/self/fd/{}", seen.as_raw_fd()), flags | OFlags::CLOEXEC, Mode::empty()).ok()
}
