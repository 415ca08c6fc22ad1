//! What a thread may ask about itself and its process: processor time, and where it runs.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Processor time that the calling thread has used, in the kernel's code and its own.
#[must_use]
pub fn cpu_time_thread() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

/// Processor time that all threads of this process have used.
#[must_use]
pub fn cpu_time_process() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

/// Processor time that all threads of another process have used, to the nanosecond where the kernel gives its clock, else
/// in the ticks of `/proc`.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time_of(pid: u32) -> io::Result<Duration> {
    clock_of(pid).or_else(|_| ticks_of(pid))
}

/// Binds the calling thread to one core.
///
/// # Errors
/// Those of the kernel, for instance when there is no such core or this process may not use it.
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// The cores that the calling thread may run on, ascending.
///
/// # Errors
/// Those of the kernel.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

fn duration(time: Timespec) -> Duration {
    // These clocks count up from zero.
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn clock_of(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::NotFound)?;
    let mut clock = 0;
    // SAFETY: the call writes one clock id to a place that outlives it.
    let result = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the call writes one time to a place that outlives it.
    if unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it wrote the time.
    let time = unsafe { time.assume_init() };
    Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
}

fn ticks_of(pid: u32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks_in(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / per_second)))
}

/// User and system time of a `/proc/PID/stat` line. The second field is a name in parentheses, which may itself contain
/// spaces and parentheses.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_ask_about_a_process_agree() {
        let burnt = cpu_time_process() + Duration::from_millis(50);
        while cpu_time_process() < burnt {
            std::hint::spin_loop();
        }
        let pid = std::process::id();
        let (before, clock, after) = (cpu_time_process(), clock_of(pid).unwrap(), cpu_time_process());
        assert!(before <= clock && clock <= after);
        // Ticks are coarse, but what they count is the same.
        let ticks = ticks_of(pid).unwrap();
        assert!(ticks <= cpu_time_process() + Duration::from_millis(50));
        assert!(!ticks.is_zero());
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 90 0 0 0 17 5 0 0 20 0 1 0 100 1000 10";
        assert_eq!(ticks_in(stat), Some(22));
        assert_eq!(ticks_in("42 (cut"), None);
        assert_eq!(ticks_in("42 (cut) S 1"), None);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(cpu_time_of(u32::MAX).is_err());
    }

    #[test]
    fn a_pinned_thread_runs_on_its_core_only() {
        std::thread::spawn(|| {
            let core = *allowed_cores().unwrap().last().unwrap();
            pin_current_thread(core).unwrap();
            assert_eq!(allowed_cores().unwrap(), [core]);
            assert!(pin_current_thread(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_threads_time_is_part_of_its_processs() {
        let thread = cpu_time_thread();
        assert!(thread <= cpu_time_process());
        assert!(thread <= cpu_time_thread());
    }
}
