//! Models that PyTorch compiled, over slots.

use splitrpc_torch::{Element, View};

use crate::error::GpuError;
use crate::kernel::Operand;
use crate::work::Work;

/// A dense tensor, in row-major order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shaped<'d> {
    /// Where it is: slots, or a buffer.
    pub operand: Operand,
    /// What its elements are.
    pub element: Element,
    /// How many of them, from the outermost dimension on.
    pub sizes: &'d [i64],
}

impl Shaped<'_> {
    fn bytes(&self) -> Option<u64> {
        let mut sizes = self.sizes.iter().map(|size| u64::try_from(*size).ok());
        sizes.try_fold(self.element.bytes(), |bytes, size| bytes.checked_mul(size?))
    }
}

impl Work<'_> {
    /// Runs one of the lane's packages. It reads its inputs where they are. What it gives is copied to the outputs, unless there are none of
    /// these: then it writes some of its inputs, and what it gives is not looked at.
    ///
    /// # Errors
    /// [`GpuError::NoBuffer`], also for a package that the lane does not hold; [`GpuError::NoSlots`], also where an operand has
    /// another number of bytes than its shape; [`GpuError::Torch`]; the driver's. Part of the work may have been submitted.
    pub fn infer(&self, package: usize, inputs: &[Shaped<'_>], outputs: &[Shaped<'_>]) -> Result<(), GpuError> {
        let package = self.package(package)?;
        let passed = inputs.iter().map(|shaped| self.view(shaped)).collect::<Result<Vec<_>, _>>()?;
        let stream = self.stream();
        stream.context().make_current()?;
        // SAFETY: the stream is of the device whose context is current; the tensors are slots and buffers with as many bytes as their
        // shapes say, which the lane holds until its work is done, as it does the package.
        let given = unsafe { package.submit(stream.as_raw(), &passed) }?;
        if !outputs.is_empty() && given.len() != outputs.len() {
            let (gives, expected) = (given.len(), outputs.len());
            return Err(splitrpc_torch::Error::Gives { gives, expected }.into());
        }
        for (index, (from, to)) in given.iter().zip(outputs).enumerate() {
            let from = from.address(index, &self.view(to)?)?;
            self.copy_from(from, &to.operand)?;
        }
        Ok(())
    }

    fn view<'d>(&self, shaped: &Shaped<'d>) -> Result<View<'d>, GpuError> {
        let &Shaped { operand, element, sizes } = shaped;
        let (Operand::Slots { .. } | Operand::Buffer { .. }) = operand else { return Err(GpuError::NoSlots) };
        if shaped.bytes() != Some(operand.bytes()) {
            return Err(GpuError::NoSlots);
        }
        Ok(View { address: self.value(&operand)?, element, sizes })
    }
}
