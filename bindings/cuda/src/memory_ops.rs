//! Streams that wait for a value in memory, and write one.

use cudarc::driver::sys::{self, CUresult};

use crate::error::Error;
use crate::range::Word;
use crate::stream::Stream;

/// When a stream that waits for a word goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCondition {
    /// The word has come as far as the value, counting round: their difference, as a signed number, is not negative.
    AtLeast,
    /// The word is the value.
    Equal,
    /// A bit that is set in the value is set in the word.
    AnySet,
    /// A bit that is clear in the value is clear in the word. Not every device can do that:
    /// [`DeviceInfo::wait_any_clear`](crate::DeviceInfo::wait_any_clear).
    AnyClear,
}

impl Stream {
    /// Has all that is submitted from now on wait until the word fulfils the condition, whoever writes it: the CPU,
    /// another stream, a kernel, a network card. The calling thread does not wait.
    ///
    /// Nobody ends a wait that is never fulfilled: the stream, [`Context::synchronize`](crate::Context::synchronize)
    /// and the process's end hang on it. Streams that share one of the device's queues hang on it too (there are
    /// `CUDA_DEVICE_MAX_CONNECTIONS`, 8 unless set), so what releases it should not itself be on a stream where there
    /// are more streams than that.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::OtherDevice`]; the driver's.
    ///
    /// # Safety
    /// The contract of [`Stream`], for the word's memory.
    pub unsafe fn wait_value32(&self, word: Word<'_>, value: u32, condition: WaitCondition) -> Result<(), Error> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.wait_value(word, value, condition, false) }
    }

    /// As [`Stream::wait_value32`], and then makes what network cards have written into the device's memory, before
    /// they or somebody else wrote the word, visible to the work behind it.
    ///
    /// # Errors
    /// As [`Stream::wait_value32`]; [`Error::Unsupported`] also where
    /// [`DeviceInfo::flush_in_stream`](crate::DeviceInfo::flush_in_stream) is false.
    ///
    /// # Safety
    /// The contract of [`Stream`], for the word's memory.
    pub unsafe fn wait_value32_and_flush(
        &self,
        word: Word<'_>,
        value: u32,
        condition: WaitCondition,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.wait_value(word, value, condition, true) }
    }

    /// # Safety
    /// The contract of [`Stream`], for the word's memory.
    unsafe fn wait_value(
        &self,
        word: Word<'_>,
        value: u32,
        condition: WaitCondition,
        flush: bool,
    ) -> Result<(), Error> {
        use sys::CUstreamWaitValue_flags as Flags;
        const WHAT: &str = "cannot have a stream wait for a value";
        let device = self.context().device();
        if condition == WaitCondition::AnyClear && !device.wait_any_clear {
            return Err(Error::Unsupported { what: WHAT, needs: "a device whose streams wait for clear bits" });
        }
        if flush && !device.flush_in_stream {
            return Err(Error::Unsupported { what: WHAT, needs: "a device whose streams flush remote writes" });
        }
        self.same_device(word.context(), WHAT)?;
        self.context().make_current()?;
        let condition = match condition {
            WaitCondition::AtLeast => Flags::CU_STREAM_WAIT_VALUE_GEQ,
            WaitCondition::Equal => Flags::CU_STREAM_WAIT_VALUE_EQ,
            WaitCondition::AnySet => Flags::CU_STREAM_WAIT_VALUE_AND,
            WaitCondition::AnyClear => Flags::CU_STREAM_WAIT_VALUE_NOR,
        };
        let flush = if flush { Flags::CU_STREAM_WAIT_VALUE_FLUSH as u32 } else { 0 };
        // SAFETY: the word is aligned and inside memory of this device, which the caller keeps until the stream has
        // passed.
        let result =
            unsafe { sys::cuStreamWaitValue32_v2(self.raw(), word.address(), value, condition as u32 | flush) };
        self.answer(result, WHAT)
    }

    /// Writes the word when all that was submitted before is done, and what that wrote can be seen by whoever sees the
    /// word.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::OtherDevice`]; the driver's.
    ///
    /// # Safety
    /// The contract of [`Stream`], for the word's memory.
    pub unsafe fn write_value32(&self, word: Word<'_>, value: u32) -> Result<(), Error> {
        const WHAT: &str = "cannot have a stream write a value";
        self.same_device(word.context(), WHAT)?;
        self.context().make_current()?;
        let flags = sys::CUstreamWriteValue_flags::CU_STREAM_WRITE_VALUE_DEFAULT as u32;
        // SAFETY: as in `wait_value`.
        let result = unsafe { sys::cuStreamWriteValue32_v2(self.raw(), word.address(), value, flags) };
        self.answer(result, WHAT)
    }

    /// No attribute says whether a device has these calls at all, but the driver does.
    fn answer(&self, result: CUresult, what: &'static str) -> Result<(), Error> {
        if result == CUresult::CUDA_ERROR_NOT_SUPPORTED {
            return Err(Error::Unsupported { what, needs: "a device with stream memory operations" });
        }
        self.context().check(result, what)
    }
}
