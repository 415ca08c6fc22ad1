//! What is known of a model's tensors: how many bytes there are, and where each is put together.

use splitrpc_wire::{DType, Shape, TensorDesc};

use super::Program;
use super::batch::Stretch;
use crate::model::spec::{ModelSpec, TensorSpec};
use crate::runtime::Batch;

/// Where in the memory for compactions a tensor may begin, unless the model asks for more.
const ALIGNMENT: u64 = 256;
/// What the address of every slot of a window of one row is a multiple of.
const SLOT_ALIGNMENT: u64 = 64;

/// Bytes that a thread of a kernel reads at once.
const VECTOR: u32 = 16;

/// What all lanes of a model know of its tensors.
pub(super) struct Tensors {
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<Tensor>,
    /// Rows of a window, of the inputs' and the outputs' pools.
    pub(super) max_batch: u16,
    has_rows: bool,
    pub(super) alignment: u64,
    /// Bytes of memory in which rows are put together, of each lane's own.
    staging: u64,
    /// The rows of a batch may have to be.
    pub(super) lie_apart: bool,
}

pub(super) struct Tensor {
    /// Bytes of a row; `None` where they vary, and then there is one request in a batch.
    pub(super) row: Option<u32>,
    /// Where it is put together, in that memory.
    pub(super) at: u64,
    dtype: DType,
    /// Those of one row, for outputs.
    dims: Vec<u32>,
}

impl Tensors {
    /// Of a model whose lanes launch ahead, or not. Tensors of at most `by_kernel` bytes a row are carried by kernels.
    pub(super) fn new(spec: &ModelSpec, program: &dyn Program, launches_ahead: bool, by_kernel: u32) -> Tensors {
        let max_batch = spec.max_batch.max(1);
        let alignment = u64::from(program.alignment().max(1));
        let is_small = |tensors: &[TensorSpec]| {
            let row = |tensor| spec.row_bytes(tensor).map(u64::from);
            tensors.iter().map(row).sum::<Option<u64>>().is_some_and(|bytes| bytes <= by_kernel.into())
        };
        // Slots of single rows are where they should be, as long as not too much is asked.
        let lie_apart = max_batch > 1 || alignment > SLOT_ALIGNMENT || program.rehearses();
        // Kernels carry small ones past the slots on the device.
        let small = (is_small(&spec.inputs), is_small(&spec.outputs));
        let passes = program.is_recorded() && !program.works_in_place() && small == (true, true);
        let staged = lie_apart || passes || launches_ahead && small.0;
        let mut staging = 0;
        let mut tensor = |tensor| {
            let row = spec.row_bytes(tensor);
            let at = staging;
            if staged {
                let window = u64::from(row.unwrap_or(0)) * u64::from(max_batch);
                staging += window.next_multiple_of(ALIGNMENT.max(alignment));
            }
            let dims = spec.row_dims(tensor).iter().map(|d| d.unwrap_or(0)).collect();
            Tensor { row, at, dtype: tensor.dtype, dims }
        };
        let inputs = spec.inputs.iter().map(&mut tensor).collect();
        let outputs = spec.outputs.iter().map(&mut tensor).collect();
        Tensors { inputs, outputs, max_batch, has_rows: spec.max_batch > 0, alignment, staging, lie_apart }
    }

    /// Bytes of each lane's memory in which rows are put together; 0 where none are.
    pub(super) fn staging(&self) -> u64 {
        self.staging
    }

    /// The greater of how many inputs and outputs there are.
    pub(super) fn most(&self) -> usize {
        self.inputs.len().max(self.outputs.len()).max(1)
    }

    /// Outputs of a batch, each request's apart.
    pub(super) fn most_outputs(&self) -> usize {
        self.outputs.len().max(1) * usize::from(self.max_batch)
    }

    pub(super) fn row_bytes(tensors: &[Tensor]) -> u64 {
        tensors.iter().map(|t| u64::from(t.row.unwrap_or(0))).sum()
    }

    pub(super) fn is_fixed(&self) -> bool {
        self.inputs.iter().all(|tensor| tensor.row.is_some())
    }

    /// Whether a kernel can read each row of the inputs in whole vectors.
    pub(super) fn is_even(&self) -> bool {
        self.max_batch == 1 || self.inputs.iter().all(|tensor| tensor.row.is_some_and(|row| row.is_multiple_of(VECTOR)))
    }

    /// Bytes of an input in a stretch of a batch.
    pub(super) fn input_bytes(&self, tensor: usize, stretch: &Stretch, batch: &Batch) -> u32 {
        match self.inputs[tensor].row {
            Some(row) => row * u32::from(stretch.run.rows),
            None => batch.items().first().map_or(0, |item| batch.tensors(item)[tensor].bytes),
        }
    }

    /// Descriptions of the outputs of a request with so many rows.
    pub(super) fn describe(&self, rows: u16) -> impl Iterator<Item = TensorDesc> {
        self.outputs.iter().enumerate().filter_map(move |(handle, tensor)| {
            let mut dims = [0; splitrpc_wire::MAX_RANK];
            let rank = usize::from(self.has_rows) + tensor.dims.len();
            let dims = dims.get_mut(..rank)?;
            dims[rank - tensor.dims.len()..].copy_from_slice(&tensor.dims);
            if self.has_rows {
                dims[0] = rows.into();
            }
            TensorDesc::fixed(handle as u16, tensor.dtype, Shape::new(dims).ok()?).ok()
        })
    }
}
