//! Kernels, and what they are given.

use splitrpc_arena::Run;
use splitrpc_cuda::{Function, Module};

use crate::error::GpuError;

/// Arguments of a kernel, at most.
pub const MAX_ARGUMENTS: usize = 32;

/// A kernel of a module, whose arguments are checked against what it declares.
///
/// A kernel is code: it reaches all memory that this process has on the device, and all host memory that the device
/// reaches, which is what is registered and on some machines all. Whoever names a module to load, and how its kernels are
/// launched, trusts that as the program itself.
#[derive(Clone, Debug)]
pub struct Kernel {
    name: Box<str>,
    function: Function,
    parameters: Box<[usize]>,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// The device's address of a tensor in a run of slots, `bytes` of which the kernel may use.
    Slots {
        /// The slots.
        run: Run,
        /// The tensor.
        tensor: u16,
        /// How many bytes have to be there.
        bytes: u32,
    },
    /// The device's address of the same on the host, which it reads and writes over the bus.
    Pinned {
        /// The slots.
        run: Run,
        /// The tensor.
        tensor: u16,
        /// How many bytes have to be there.
        bytes: u32,
    },
    /// The device's address of a byte of one of the lane's buffers, from which on the kernel may use `bytes`.
    Buffer {
        /// The buffer's place among the lane's.
        buffer: usize,
        /// The byte.
        at: u64,
        /// How many bytes have to be there.
        bytes: u64,
    },
    /// A value of four bytes: an `int`, an `unsigned` or a `float` by its bits.
    Word(u32),
    /// A value of eight bytes.
    Long(u64),
}

impl Operand {
    /// Bytes that it names.
    pub(crate) fn bytes(&self) -> u64 {
        match *self {
            Operand::Slots { bytes, .. } | Operand::Pinned { bytes, .. } => bytes.into(),
            Operand::Buffer { bytes, .. } => bytes,
            Operand::Word(_) | Operand::Long(_) => 0,
        }
    }

    /// Bytes of the parameter that it is for.
    fn len(&self) -> usize {
        if matches!(self, Operand::Word(_)) { 4 } else { 8 }
    }
}

impl Kernel {
    /// Finds a kernel in a module.
    ///
    /// # Errors
    /// The driver's, for instance when there is none of that name.
    pub fn new(module: &Module, name: &str) -> Result<Kernel, GpuError> {
        let function = module.function(name)?;
        let parameters = function.parameters()?.into();
        Ok(Kernel { name: name.into(), function, parameters })
    }

    /// Its name in the module.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver's function, for instance to ask how many threads it may have.
    #[must_use]
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Refuses arguments that the kernel would not take.
    ///
    /// # Errors
    /// [`GpuError::Arguments`].
    pub fn check(&self, operands: &[Operand]) -> Result<(), GpuError> {
        self.check_bytes(operands.iter().map(Operand::len))
    }

    /// Refuses arguments of so many bytes each.
    pub(crate) fn check_bytes(&self, given: impl ExactSizeIterator<Item = usize> + Clone) -> Result<(), GpuError> {
        if given.len() <= MAX_ARGUMENTS && given.clone().eq(self.parameters.iter().copied()) {
            return Ok(());
        }
        Err(GpuError::Arguments {
            kernel: self.name.to_string(),
            wants: self.parameters.to_vec(),
            given: given.collect(),
        })
    }
}
