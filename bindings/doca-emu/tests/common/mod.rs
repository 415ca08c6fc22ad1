//! The library as a program loads it, and what most programs would make with it. Whatever fails, fails the test.
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod events;
pub(crate) mod pair;

use std::ffi::{CStr, c_void};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::sync::OnceLock;

use doca_sys::*;

/// Calls one of DOCA's functions.
macro_rules! doca {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        let function = $crate::common::bluefield().$name;
        // SAFETY: it is called as a C program would, rightly or wrongly, and the library is to stand that.
        unsafe { function($($argument),*) }
    }};
}
pub(crate) use doca;

/// Calls one that answers with a code, which must be success.
macro_rules! done {
    ($name:ident($($argument:expr),* $(,)?)) => {
        $crate::common::succeeds(stringify!($name), $crate::common::doca!($name($($argument),*)))
    };
}
pub(crate) use done;

pub(crate) const SUCCESS: doca_error = doca_error::DOCA_SUCCESS;
pub(crate) const LOCAL: u32 = doca_access_flag::DOCA_ACCESS_FLAG_LOCAL_READ_WRITE.0;
pub(crate) const PCI_READ: u32 = doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_ONLY.0;
pub(crate) const PCI_WRITE: u32 = doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_WRITE.0;
/// Progress calls after which whatever was to come has come, in one process.
pub(crate) const ENOUGH: usize = 10_000;

/// What a child process is to do, and the name by which its test knows it.
const ROLE: &str = "SPLITRPC_TEST_ROLE";

pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().join("libdoca_emu.so")
}

/// The library, with the devices that the environment gives this process, or of both sides.
pub(crate) fn bluefield() -> &'static Doca {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        // A child has the environment that its test gave it.
        if role().is_none() {
            let bus = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
            // SAFETY: the library has not been loaded, and no test looks at the environment by C's functions.
            unsafe { std::env::set_var("SPLITRPC_BLUEFIELD", bus) };
            // SAFETY: as above.
            unsafe { std::env::set_var("SPLITRPC_BLUEFIELD_SIDE", "both") };
        }
        Loaded::new(Some(&library())).unwrap()
    });
    assert!(loaded.emulated);
    &loaded.doca
}

/// The role that a test process was started for, if it was started by [`child`].
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// A process that runs one test of this program, in a role, with the devices of a side.
pub(crate) fn child(test: &str, role: &str, side: &str, bus: &Path) -> Command {
    let own = std::env::current_exe().unwrap();
    // Where cargo has an emulator run the tests, it runs their processes too: the kernel knows nothing of it.
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").ok();
    let runner = runner.filter(|_| cfg!(target_arch = "aarch64")).unwrap_or_default();
    let mut words = runner.split_whitespace();
    let mut command = Command::new(words.next().map_or_else(|| own.clone().into_os_string(), Into::into));
    if !runner.is_empty() {
        command.args(words).arg(&own);
    }
    command.args([test, "--exact", "--nocapture"]).stdin(Stdio::null());
    command.env(ROLE, role).env("SPLITRPC_BLUEFIELD", bus).env("SPLITRPC_BLUEFIELD_SIDE", side);
    command
}

/// Runs a test's body in a process that has both sides and is its own: what it changes is the whole process's.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    if role().is_some() {
        return body();
    }
    let bus = tempfile::tempdir().unwrap();
    Running::start(child(test, "alone", "both", bus.path())).succeeds();
}

/// A child that does not outlive its test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(mut command: Command) -> Running {
        Running(command.spawn().unwrap())
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn succeeds(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn name(error: doca_error) -> &'static str {
    let name = doca!(doca_error_get_name(error));
    // SAFETY: it is a text that ends and stays.
    unsafe { CStr::from_ptr(name) }.to_str().unwrap()
}

pub(crate) fn succeeds(what: &str, outcome: doca_error) {
    assert_eq!(name(outcome), "DOCA_SUCCESS", "{what}");
}

/// The device at an address, open.
pub(crate) fn device(address: &CStr) -> *mut doca_dev {
    let (mut list, mut number) = (null_mut(), 0);
    done!(doca_devinfo_create_list(&raw mut list, &raw mut number));
    // SAFETY: the list has so many entries.
    let entries = unsafe { std::slice::from_raw_parts(list, number as usize) };
    let mut opened = null_mut();
    for entry in entries {
        let mut text = [0; 13];
        done!(doca_devinfo_get_pci_addr_str(*entry, text.as_mut_ptr()));
        // SAFETY: it was filled, to its end.
        if unsafe { CStr::from_ptr(text.as_ptr()) } == address {
            done!(doca_dev_open(*entry, &raw mut opened));
        }
    }
    done!(doca_devinfo_destroy_list(list));
    assert!(!opened.is_null(), "no device {address:?} of {number}");
    opened
}

pub(crate) fn arm() -> *mut doca_dev {
    device(c"0000:03:00.0")
}

pub(crate) fn host() -> *mut doca_dev {
    device(c"0000:b1:00.0")
}

pub(crate) fn representor(device: *mut doca_dev) -> *mut doca_dev_rep {
    let (mut list, mut number, mut opened) = (null_mut(), 0, null_mut());
    done!(doca_devinfo_rep_create_list(device, 0, &raw mut list, &raw mut number));
    assert_eq!(number, 1);
    // SAFETY: the list has an entry.
    let entry = unsafe { *list };
    done!(doca_dev_rep_open(entry, &raw mut opened));
    done!(doca_devinfo_rep_destroy_list(list));
    opened
}

pub(crate) fn engine() -> *mut doca_pe {
    let mut engine = null_mut();
    done!(doca_pe_create(&raw mut engine));
    engine
}

/// Lets an engine work until something holds. Bounded by calls, with a little time between them for what another process does.
pub(crate) fn until(engine: *mut doca_pe, what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        for _ in 0..64 {
            if holds() {
                return;
            }
            doca!(doca_pe_progress(engine));
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    panic!("in vain: {what}; {:?}", events::all());
}

/// Registered memory, started.
pub(crate) fn mmap(device: *mut doca_dev, memory: &mut [u8], access: u32) -> *mut doca_mmap {
    let mut mmap = null_mut();
    done!(doca_mmap_create(&raw mut mmap));
    done!(doca_mmap_add_dev(mmap, device));
    done!(doca_mmap_set_permissions(mmap, access));
    done!(doca_mmap_set_memrange(mmap, memory.as_mut_ptr().cast(), memory.len()));
    done!(doca_mmap_start(mmap));
    mmap
}

/// A copy of the descriptor of an exported mmap.
pub(crate) fn export(mmap: *mut doca_mmap, device: *mut doca_dev) -> Vec<u8> {
    let (mut bytes, mut len) = (std::ptr::null(), 0);
    done!(doca_mmap_export_pci(mmap, device, &raw mut bytes, &raw mut len));
    // SAFETY: so many bytes stay as long as the mmap does.
    unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) }.to_vec()
}

pub(crate) fn import(device: *mut doca_dev, descriptor: &[u8]) -> Result<*mut doca_mmap, &'static str> {
    let mut mmap = null_mut();
    let (bytes, len) = (descriptor.as_ptr().cast(), descriptor.len());
    match doca!(doca_mmap_create_from_export(std::ptr::null(), bytes, len, device, &raw mut mmap)) {
        SUCCESS => Ok(mmap),
        error => Err(name(error)),
    }
}

pub(crate) fn inventory(elements: usize) -> *mut doca_buf_inventory {
    let mut inventory = null_mut();
    done!(doca_buf_inventory_create(elements, &raw mut inventory));
    done!(doca_buf_inventory_start(inventory));
    inventory
}

/// A buf whose data is its first bytes.
pub(crate) fn buf(
    inventory: *mut doca_buf_inventory,
    mmap: *mut doca_mmap,
    address: usize,
    len: usize,
    data_len: usize,
) -> *mut doca_buf {
    let (mut buf, address) = (null_mut(), std::ptr::with_exposed_provenance_mut::<c_void>(address));
    done!(doca_buf_inventory_buf_get_by_args(inventory, mmap, address, len, address, data_len, &raw mut buf));
    buf
}

pub(crate) fn give_back(buf: *mut doca_buf) {
    done!(doca_buf_dec_refcount(buf, null_mut()));
}

/// A context for copies, running.
pub(crate) fn dma(device: *mut doca_dev, engine: *mut doca_pe, tasks: u32) -> *mut doca_dma {
    let mut dma = null_mut();
    done!(doca_dma_create(device, &raw mut dma));
    let context = doca!(doca_dma_as_ctx(dma));
    let (completed, failed) = (Some(events::copied as _), Some(events::copy_failed as _));
    done!(doca_dma_task_memcpy_set_conf(dma, completed, failed, tasks));
    done!(doca_ctx_set_state_changed_cb(context, Some(events::changed)));
    done!(doca_pe_connect_ctx(engine, context));
    done!(doca_ctx_start(context));
    dma
}

/// A task for a copy, which events call by a number.
pub(crate) fn copy(dma: *mut doca_dma, from: *mut doca_buf, to: *mut doca_buf, number: u64) -> *mut doca_task {
    let mut task = null_mut();
    done!(doca_dma_task_memcpy_alloc_init(dma, from, to, doca_data { u64_: number }, &raw mut task));
    doca!(doca_dma_task_memcpy_as_task(task))
}

pub(crate) fn state(context: *mut doca_ctx) -> doca_ctx_states {
    let mut state = doca_ctx_states::DOCA_CTX_STATE_IDLE;
    done!(doca_ctx_get_state(context, &raw mut state));
    state
}

pub(crate) fn in_flight(context: *mut doca_ctx) -> usize {
    let mut number = 0;
    done!(doca_ctx_get_num_inflight_tasks(context, &raw mut number));
    number
}
