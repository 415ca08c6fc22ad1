//! A model's own part of what happens on a GPU.

use splitrpc_arena::Run;
use splitrpc_cuda::Launch;
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

/// A kernel that stays on the GPU and computes batch after batch.
#[derive(Clone, Debug)]
pub struct Stays {
    /// The kernel.
    pub kernel: Kernel,
    /// How many threads of it there are.
    pub launch: Launch,
    /// How many values it is told of a batch.
    pub values: usize,
}

impl Stays {
    /// Multiprocessors on which its blocks are: as many as there are blocks, since the GPU spreads them.
    ///
    /// # Errors
    /// What does not fit; the driver's.
    pub fn multiprocessors(&self) -> Result<u64, String> {
        let Launch { grid, block, shared_bytes } = self.launch;
        let count = |sides: [u32; 3]| sides.iter().fold(1_u64, |all, side| all.saturating_mul((*side).into()));
        let threads = u32::try_from(count(block)).unwrap_or(u32::MAX);
        let function = self.kernel.function();
        let each = function.blocks_per_multiprocessor(threads, shared_bytes).map_err(|error| error.to_string())?;
        if each == 0 {
            return Err("has a kernel of which no multiprocessor runs a block".into());
        }
        Ok(count(grid))
    }
}

/// A model that computes on a GPU's stream, or by a kernel that stays there.
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

    /// The kernel that computes its batches, if that stays on the GPU. Then it submits nothing, and [launches](Program::launches) nothing.
    fn stays(&self) -> Option<&Stays> {
        None
    }

    /// Appends what that is told of a batch.
    fn tell(&self, _rows: &Rows<'_>, _values: &mut Vec<Operand>) {}

    /// Whether [`Program::submit`] is recorded, and what was recorded submitted as a whole.
    fn is_recorded(&self) -> bool {
        false
    }

    /// Whether [`Program::submit`] takes long when it is first called for so many rows, and has to have been called for them before it is
    /// recorded. Then lanes do so before their first batch, and record nothing after it.
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
