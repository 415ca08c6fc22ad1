//! A model's own part of what happens on a GPU.

use splitrpc_arena::Run;
use splitrpc_gpu::{Buffer, GpuError, Kernel, Operand, Work};
use splitrpc_torch::Package;

/// What a model computes with, beside slots.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Device memory, by which [`Operand::Buffer`] names it.
    pub buffers: Vec<Buffer>,
    /// Its kernels.
    pub kernels: Vec<Kernel>,
    /// What PyTorch compiled.
    pub packages: Vec<Package>,
}

/// A batch, as a program is given it: each tensor's rows lie one after the other, and begin at a multiple of
/// [`Program::alignment`].
#[derive(Clone, Copy, Debug)]
pub struct Rows<'b> {
    /// How many.
    pub count: u32,
    /// Where each input is.
    pub inputs: &'b [Operand],
    /// Where each output belongs.
    pub outputs: &'b [Operand],
}

/// A model that computes on a GPU's stream.
///
/// What it submits is done later, on inputs that are there by then. It may be recorded and done again as it is, for a batch of as many
/// rows at the same places.
pub trait Program: Send + Sync {
    /// What a lane of the model computes with. What every lane may share is the same for each; what a batch writes is made anew.
    ///
    /// # Errors
    /// The device's, for instance for want of memory.
    fn resources(&self) -> Result<Resources, GpuError>;

    /// Bytes of device memory that each lane's resources take.
    fn lane_bytes(&self) -> u64 {
        0
    }

    /// What the address of each tensor is a multiple of, in bytes: a power of two.
    fn alignment(&self) -> u32 {
        16
    }

    /// Whether [`Program::submit`] launches anything.
    fn launches(&self) -> bool {
        true
    }

    /// Whether [`Program::submit`] is recorded, and what was recorded submitted as a whole.
    fn is_recorded(&self) -> bool {
        false
    }

    /// Whether [`Program::submit`] takes long when it is first called for so many rows, and has to have been called for them before it is
    /// recorded. Then lanes do so before their first batch.
    fn rehearses(&self) -> bool {
        false
    }

    /// Whether it reads and writes each byte of its tensors once: small ones then stay where the host has them.
    fn works_in_place(&self) -> bool {
        false
    }

    /// Writes once, before any batch, what output slots are to hold.
    ///
    /// # Errors
    /// The device's.
    fn prepare(&self, _work: &Work<'_>, _output_slots: &mut dyn Iterator<Item = Run>) -> Result<(), GpuError> {
        Ok(())
    }

    /// Submits the computing of a batch.
    ///
    /// # Errors
    /// The device's.
    fn submit(&self, work: &Work<'_>, rows: &Rows<'_>) -> Result<(), GpuError>;
}
