//! A gate at which work of a lane waits that was submitted before it may be done.
//!
//! A kernel of one thread looks at a word of host memory until it is told to go on. A stream can wait for a word without a kernel too, but looks
//! again only every eight microseconds or so, which is more than a launch takes. And a kernel can end by itself: some calls of the driver wait
//! for all streams, and so might the thread that is to open the gate.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use splitrpc_cuda::{Arg, Context, Function, Launch, Module, Stream};

use crate::error::GpuError;
use crate::pages::{Page, Pages};

/// Words of the page, each on a line of its own: how far the gate is open, the number that is waited for, and how that ended.
const OPEN: usize = 0;
const WANTED: usize = 32;
const VERDICT: usize = 64;

/// A gate, at which work of one lane waits: see [`Work::hold`](crate::Work::hold). Each time it is shut and opened under a number of its own,
/// one more than the last, counting round. It is shut again only when what waited is done.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    page: Arc<Pages<Page>>,
    function: Function,
}

impl Gate {
    /// A gate that is open for 0.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Context) -> Result<Gate, GpuError> {
        let place = |word: usize| (word * size_of::<AtomicU32>()).to_string();
        let ptx = PTX.replace("WANTED", &place(WANTED)).replace("VERDICT", &place(VERDICT));
        let function = Module::from_ptx(context, &ptx)?.function("gate")?;
        let page = Pages::new(context, Page::new())?;
        Ok(Gate(Arc::new(Inner { page, function })))
    }

    /// Has what is submitted from now on wait for this number.
    pub fn shut(&self, number: u32) {
        self.0.page.0[WANTED].store(number, Ordering::Release);
    }

    /// Opens it. What the CPU has written, or has seen written, is there for the work behind it.
    pub fn open(&self, number: u32) {
        self.0.page.0[OPEN].store(number, Ordering::Release);
    }

    /// Whether it was opened for what waited for this number, and not passed because that had waited for too long. To be asked once the work
    /// behind it is done.
    #[must_use]
    pub fn was_opened(&self, number: u32) -> bool {
        self.0.page.0[VERDICT].load(Ordering::Acquire) == number
    }

    /// # Safety
    /// The gate stays until the stream has passed, and what is recorded by this until it is gone.
    pub(crate) unsafe fn hold(&self, stream: &Stream, limit: Duration) -> Result<(), GpuError> {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX / 2);
        let page = self.0.page.address();
        let arguments = [Arg::new(&page), Arg::new(&nanos)];
        let launch = Launch { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
        // SAFETY: these are the kernel's two parameters, and it accesses the page and nothing else, whose words are atomics; the caller
        // promises that the page and the kernel stay.
        Ok(unsafe { stream.launch(&self.0.function, launch, &arguments) }?)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("open_for", &self.0.page.0[OPEN]).finish()
    }
}

/// `gate(page, limit)`: waits until the page's first word has come as far as the number that is wanted, or for `limit` nanoseconds. Leaves
/// the number behind, or its complement where nobody has opened. It reads the number itself, so that it can be recorded.
const PTX: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry gate(
    .param .u64 gate_page,
    .param .u64 gate_limit
)
{
    .reg .pred %open, %early;
    .reg .b32 %number, %word, %ahead;
    .reg .b64 %page, %limit, %begun, %now;

    ld.param.u64 %page, [gate_page];
    ld.param.u64 %limit, [gate_limit];
    ld.acquire.sys.global.u32 %number, [%page+WANTED];
    mov.u64 %begun, %globaltimer;
look:
    ld.acquire.sys.global.u32 %word, [%page];
    sub.s32 %ahead, %word, %number;
    setp.ge.s32 %open, %ahead, 0;
    @%open bra passed;
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begun;
    setp.lt.u64 %early, %now, %limit;
    @%early bra look;
    not.b32 %number, %number;
passed:
    st.release.sys.global.u32 [%page+VERDICT], %number;
    ret;
}
";
