//! The device under test, other processes, and deadlines.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use splitrpc_cuda::{Context, DeviceMemory, DeviceRange, Driver, MemoryOptions, Stream};

/// Whatever takes longer than this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Tells a process which part it plays.
const PART: &str = "SPLITRPC_CUDA_TEST_PART";

/// The first device, for one test at a time: streams that wait for one another must not share a queue of the device
/// with those of other tests.
pub(crate) struct Gpu {
    pub(crate) driver: Driver,
    pub(crate) context: Context,
    _turn: MutexGuard<'static, ()>,
}

impl Gpu {
    pub(crate) fn stream(&self) -> Stream {
        Stream::new(&self.context).expect("a stream")
    }

    pub(crate) fn memory(&self, len: usize) -> DeviceMemory {
        DeviceMemory::new(&self.context, len, MemoryOptions::default()).expect("device memory")
    }
}

/// The device, or `None` after a line that says why there is none.
pub(crate) fn gpu() -> Option<Gpu> {
    static TURN: Mutex<()> = Mutex::new(());
    static SAID: Once = Once::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Driver::load() {
        Ok(driver) => {
            let context = driver.context(&driver.devices()[0]).expect("the device's context");
            SAID.call_once(|| say(&format!("on {}, driver of CUDA {}", context.device().name, driver.version())));
            Some(Gpu { driver, context, _turn: turn })
        }
        Err(why) => {
            assert!(std::env::var_os("SPLITRPC_TESTS_REQUIRE_GPU").is_none(), "no GPU: {why}");
            SAID.call_once(|| say(&format!("skipped: no GPU: {why}")));
            None
        }
    }
}

/// Says why a part of a test is left out.
pub(crate) fn skip(why: &str) {
    say(&format!("skipped: {why}"));
}

/// A line that the test harness does not keep to itself.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `len` bytes that differ from those of another seed.
pub(crate) fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|index| (index.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

pub(crate) fn bytes_of(stream: &Stream, range: DeviceRange<'_>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    stream.download(&mut bytes, range).expect("a copy to the host");
    bytes
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect()
}

pub(crate) fn to_bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|float| float.to_le_bytes()).collect()
}

/// Asks until the answer is yes.
pub(crate) fn until(what: &str, mut yes: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !yes() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The part that this process plays in a test of two processes; `None` in the first.
pub(crate) fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// Runs one test of this program in a process of its own, as `part`, and returns how it ended and what it printed.
pub(crate) fn in_another_process(test: &str, part: &str, stdin: Stdio) -> (ExitStatus, String) {
    let program = std::env::current_exe().expect("this program's own path");
    let mut child = Command::new(program)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(PART, part)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a second process");
    let pipes: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
    ];
    let readers = pipes.map(|pipe| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.expect("both are piped").read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    let status = end_of(&mut child);
    let said = readers.map(|reader| reader.join().expect("what a process says can be read"));
    (status, said.concat())
}

fn end_of(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the second process did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
