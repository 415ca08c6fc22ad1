//! What a model takes and gives, and how it may be batched: the meeting point of repository, runtimes and orchestrator.

use splitrpc_wire::DType;

/// A tensor that a model takes or gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the model.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, the batch dimension included where the model has one; `None` varies.
    pub dims: Vec<Option<u32>>,
}

/// How requests of a model are put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchingSpec {
    /// Longest that a request waits for batch mates, in microseconds. 0 is greedy: whatever is ready goes.
    pub max_queue_delay_us: u64,
    /// Batch sizes that launch at once when reached; empty means only the maximum does.
    pub preferred: Vec<u16>,
    /// Requests that may wait; more are refused as busy. 0 means bounded by slots alone.
    pub max_queue: u32,
}

/// One model that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// Name.
    pub name: String,
    /// Version that is served.
    pub version: u16,
    /// Most rows in one launch, and so in one request; 0 where the model has no batch dimension (one request, one launch).
    pub max_batch: u16,
    /// What it takes, in the order of the handles.
    pub inputs: Vec<TensorSpec>,
    /// What it gives, in the order of the handles.
    pub outputs: Vec<TensorSpec>,
    /// Dynamic batching, if it is on.
    pub batching: Option<BatchingSpec>,
    /// Number of priority levels, 0 for none; level 1 is the highest.
    pub priority_levels: u8,
    /// Priority of requests that name none.
    pub default_priority: u8,
    /// Parallel instances of the runtime.
    pub instances: u16,
    /// Launches made before the model is called ready.
    pub warmup_launches: u16,
}

impl ModelSpec {
    /// Whether every dimension but the batch dimension is fixed, for all inputs.
    #[must_use]
    pub fn fixed_inputs(&self) -> bool {
        self.inputs.iter().all(|t| self.row_dims(t).iter().all(Option::is_some))
    }

    /// A tensor's dimensions without the batch dimension.
    #[must_use]
    pub fn row_dims<'t>(&self, tensor: &'t TensorSpec) -> &'t [Option<u32>] {
        if self.max_batch > 0 { tensor.dims.get(1..).unwrap_or(&[]) } else { &tensor.dims }
    }

    /// Bytes of one row of a tensor, or `None` where a dimension or the element size varies.
    #[must_use]
    pub fn row_bytes(&self, tensor: &TensorSpec) -> Option<u32> {
        let elements = self.row_dims(tensor).iter().try_fold(1u32, |n, d| n.checked_mul((*d)?))?;
        elements.checked_mul(tensor.dtype.size()?)
    }

    /// Bytes of input that even the smallest request brings.
    #[must_use]
    pub fn least_request_bytes(&self) -> u64 {
        least_request_bytes(&self.inputs, self.max_batch > 0)
    }
}

/// Bytes of these inputs in the smallest request: one row, and nothing where a dimension varies, since that may be 0.
pub(crate) fn least_request_bytes(inputs: &[TensorSpec], batched: bool) -> u64 {
    let least = |t: &TensorSpec| {
        let element = u64::from(t.dtype.size().unwrap_or(0));
        let row = t.dims.iter().skip(usize::from(batched));
        row.fold(element, |bytes, dim| bytes.saturating_mul(u64::from(dim.unwrap_or(0))))
    };
    inputs.iter().fold(0, |sum, t| sum.saturating_add(least(t)))
}
