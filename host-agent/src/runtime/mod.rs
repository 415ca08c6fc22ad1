//! What computes. A runtime reads its inputs in the arena's slots and writes its outputs into slots.
//!
//! [`Batch`] and [`Launch`] are filled, cleared and filled again, so that a launch allocates nothing once both have
//! grown to their working size. A [`Factory`] stands for a loaded model file and makes the instances that compute.

use std::path::Path;
use std::sync::Arc;

use splitrpc_arena::Arena;
use splitrpc_ring::Run;
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{Status, TensorDesc};

use crate::gpu::Program;
use crate::model::spec::ModelSpec;

pub mod cuda;
pub mod device;
pub mod echo;
pub mod image;
pub mod null;
pub mod null_gpu;
pub mod torch;
pub mod tract;

/// One request of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchItem {
    /// Where its inputs lie. Tensor `t` of the model's inputs begins at `arena.span(input, t, 0, bytes)`, whatever the
    /// order of the tensors in the manifest.
    pub input: Run,
    /// Its rows: the size of the batch dimension that the client sent, or 1 where the model has none.
    pub rows: u16,
    /// Where its outputs belong: a run of `rows` rows in the model's output pool, tensor `t` of the outputs at
    /// `arena.span(output, t, 0, rows * row_bytes)`. `None` where the model's output sizes are not known beforehand, and
    /// then the runtime answers with [`Launch::push_owned`] or [`Launch::push_input`].
    pub output: Option<Run>,
    /// First of its tensors in the batch's list.
    first: u32,
    /// How many there are.
    tensors: u16,
}

/// Requests that are computed in one launch. Rows are the items' rows in order. All items have the same tensors, of the
/// same types and, apart from the batch dimension, the same shapes, checked against the model.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    items: Vec<BatchItem>,
    tensors: Vec<TensorDesc>,
    rows: u32,
}

impl Batch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.tensors.clear();
        self.rows = 0;
    }

    /// Adds a request. `tensors` are its inputs, one for each input of the model, in the model's order.
    pub fn push(&mut self, input: Run, rows: u16, output: Option<Run>, tensors: &[TensorDesc]) {
        self.items.push(BatchItem {
            input,
            rows,
            output,
            first: self.tensors.len() as u32,
            tensors: tensors.len() as u16,
        });
        self.tensors.extend_from_slice(tensors);
        self.rows += u32::from(rows);
    }

    /// The requests, in row order.
    #[must_use]
    pub fn items(&self) -> &[BatchItem] {
        &self.items
    }

    /// An item's input tensors as its manifest gives them, sorted into the order of the model's inputs: tensor `t` has
    /// handle `t`.
    #[must_use]
    pub fn tensors(&self, item: &BatchItem) -> &[TensorDesc] {
        let first = item.first as usize;
        &self.tensors[first..first + usize::from(item.tensors)]
    }

    /// Rows of all items.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }
}

/// Where one item's outputs are.
#[derive(Debug)]
pub enum Output {
    /// In the output run that the item brought.
    InPlace,
    /// The answer is the request's own input run.
    Input,
    /// In the runtime's own memory, one buffer a tensor, as its size was not known beforehand.
    Owned(Vec<Vec<u8>>),
    /// There are none: how it failed, and a text for the client.
    Failed(Status, String),
}

/// What a launch did. The runtime pushes one answer for each item, in the items' order.
#[derive(Debug, Default)]
pub struct Launch {
    outputs: Vec<(Output, u32)>,
    tensors: Vec<TensorDesc>,
    /// Nanoseconds in the runtime's own copies in.
    pub copy_in_ns: u64,
    /// Nanoseconds in the model.
    pub compute_ns: u64,
    /// Nanoseconds in the runtime's own copies out.
    pub copy_out_ns: u64,
    /// Bytes that the runtime copied on the CPU, in and out, over the whole batch.
    pub copied_bytes: u64,
    /// What carried the inputs to where the model read them, and where that was, if not to the slots that the port had filled.
    pub moved: Option<(Mover, Memory)>,
    /// How often a device put the batch together, or its results apart.
    pub compactions: u8,
}

impl Launch {
    /// Empties the launch and keeps its memory.
    pub fn clear(&mut self) {
        let Launch { mut outputs, mut tensors, .. } = std::mem::take(self);
        outputs.clear();
        tensors.clear();
        *self = Launch { outputs, tensors, ..Launch::default() };
    }

    /// The next item's outputs are in its output run; `tensors` describes them, handle `t` being the model's output `t`.
    pub fn push_in_place(&mut self, tensors: impl IntoIterator<Item = TensorDesc>) {
        self.push(Output::InPlace, tensors);
    }

    /// The next item's answer is its own input, tensor by tensor.
    pub fn push_input(&mut self, tensors: impl IntoIterator<Item = TensorDesc>) {
        self.push(Output::Input, tensors);
    }

    /// The next item's outputs are in these buffers, in the order of the model's outputs.
    pub fn push_owned(&mut self, tensors: Vec<(TensorDesc, Vec<u8>)>) {
        let (tensors, buffers): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
        self.push(Output::Owned(buffers), tensors);
    }

    /// The next item has no outputs, for a reason that is its own: [`Status::BadTensor`] where its values are at fault, else
    /// [`Status::ModelFailed`]. `text` goes to the client.
    pub fn push_failed(&mut self, status: Status, text: String) {
        self.push(Output::Failed(status, text), []);
    }

    fn push(&mut self, output: Output, tensors: impl IntoIterator<Item = TensorDesc>) {
        self.outputs.push((output, self.tensors.len() as u32));
        self.tensors.extend(tensors);
    }

    /// How many items have been answered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.outputs.len()
    }

    /// Whether no item has been answered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    /// Where an item's outputs are, taken out of the launch, and the tensors as they are to be described; `None` where
    /// the runtime did not answer the item.
    pub fn take(&mut self, item: usize) -> Option<(Output, &[TensorDesc])> {
        let end = self.outputs.get(item + 1).map_or(self.tensors.len(), |next| next.1 as usize);
        let (output, first) = self.outputs.get_mut(item)?;
        let output = std::mem::replace(output, Output::InPlace);
        Some((output, &self.tensors[*first as usize..end]))
    }
}

/// Why a launch failed; every item of the batch fails with it. The text goes to the client.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RuntimeError(pub String);

impl std::fmt::Debug for dyn Factory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Factory").field("model", &self.spec().name).finish_non_exhaustive()
    }
}

/// One instance of a loaded model, ready to compute.
pub trait Runtime: Send {
    /// Computes a batch and pushes one answer for each item to `launch`, which comes empty. What only one item is to blame for
    /// is that item's answer ([`Launch::push_failed`]), and the others get theirs.
    ///
    /// # Errors
    /// [`RuntimeError`] when the model fails; the runtime stays usable.
    fn execute(&mut self, arena: &Arena, batch: &Batch, launch: &mut Launch) -> Result<(), RuntimeError>;
}

/// Who computes a model, and where.
#[derive(Clone)]
pub enum Execution {
    /// The data thread itself: launches return at once.
    Inline,
    /// Worker threads.
    Threads,
    /// A GPU, to which the data thread submits what this program says.
    Gpu(Arc<dyn Program>),
}

impl Execution {
    /// Where a model reads its inputs, if it copies none.
    #[must_use]
    pub const fn memory(&self) -> Memory {
        match self {
            Execution::Inline | Execution::Threads => Memory::Host,
            Execution::Gpu(_) => Memory::Cuda,
        }
    }
}

/// A loaded model, from which instances are made.
pub trait Factory: Send + Sync {
    /// What the model takes and gives.
    fn spec(&self) -> &ModelSpec;

    /// The file that the model comes from, where there is one.
    fn file(&self) -> Option<&Path> {
        None
    }

    /// Who computes, and where.
    fn execution(&self) -> Execution;

    /// A new instance, of a model that the CPU computes. Called at start, and again to replace an instance that panicked.
    ///
    /// # Errors
    /// [`RuntimeError`] with the reason.
    fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError>;
}
