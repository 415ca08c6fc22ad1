//! What the engine must know of a model: enough to place a request and to refuse a wrong one.

use splitrpc_arena::PoolLayout;
use splitrpc_wire::{DType, MAX_RANK, Manifest, Status};

use crate::message::Sizes;

/// An input tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputPlan {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, the batch dimension included; -1 varies.
    pub dims: [i32; MAX_RANK],
    /// How many of them count.
    pub rank: u8,
}

/// A model as the engine sees it. Its handle is its place in the table.
#[derive(Clone, Copy, Debug)]
pub struct ModelPlan<'a> {
    /// Inputs in the order of their handles.
    pub inputs: &'a [InputPlan],
    /// Most rows in one request; 0 where the model has no batch dimension.
    pub max_batch: u16,
    /// Number of priority levels; 0 where the model tells none apart, and they only order answers.
    pub priority_levels: u8,
    /// Priority of requests that name none, or one that is past the lowest level.
    pub default_priority: u8,
    /// Input pools for its shape classes, smallest first: ids into the server's pools.
    pub classes: &'a [u16],
}

impl ModelPlan<'_> {
    /// The priority of a request that asks for this one.
    pub(crate) fn priority(&self, asked: u8) -> u8 {
        let lowest = if self.priority_levels == 0 { u8::MAX } else { self.priority_levels };
        if (1..=lowest).contains(&asked) { asked } else { self.default_priority }
    }

    /// Rows and tensor sizes of a request with this manifest.
    #[inline]
    pub(crate) fn admit(&self, manifest: &Manifest<'_>) -> Result<(u16, Sizes), Status> {
        if manifest.len() != self.inputs.len() || manifest.path().is_some() {
            return Err(Status::BadTensor);
        }
        let mut rows = None;
        for (handle, (tensor, input)) in manifest.tensors().zip(self.inputs).enumerate() {
            let dims = tensor.shape.dims();
            let fits = usize::from(tensor.handle) == handle
                && tensor.dtype == input.dtype
                && dims.len() == usize::from(input.rank)
                && dims
                    .iter()
                    .zip(&input.dims)
                    .all(|(have, want)| i64::from(*want) < 0 || i64::from(*have) == i64::from(*want));
            if !fits {
                return Err(Status::BadTensor);
            }
            if self.max_batch > 0 {
                let these = *dims.first().ok_or(Status::BadTensor)?;
                if rows.is_some_and(|r| r != these) {
                    return Err(Status::BadTensor);
                }
                rows = Some(these);
            }
        }
        let rows = u16::try_from(rows.unwrap_or(1)).map_err(|_| Status::TooLarge)?;
        if rows == 0 {
            return Err(Status::BadTensor);
        }
        if rows > self.max_batch.max(1) {
            return Err(Status::TooLarge);
        }
        Ok((rows, Sizes::of(manifest)))
    }

    /// Rows and tensor sizes of a request of `total` bytes, where they follow from the model alone: every dimension but
    /// the batch's is fixed.
    pub(crate) fn presume(&self, total: u32) -> Option<(u16, Sizes)> {
        let batched = usize::from(self.max_batch > 0);
        let mut head = splitrpc_wire::manifest::MANIFEST_HEAD_LEN as u64;
        let mut row_total = 0u64;
        let mut row_bytes = [0u64; splitrpc_wire::MAX_TENSORS];
        for (bytes, input) in row_bytes.iter_mut().zip(self.inputs) {
            let dims = input.dims[..usize::from(input.rank)].get(batched..)?;
            let elements = dims.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?))?;
            *bytes = elements.checked_mul(u64::from(input.dtype.size()?))?;
            row_total = row_total.checked_add(*bytes)?;
            head += 8 + 4 * u64::from(input.rank);
        }
        let data = u64::from(total).checked_sub(head)?;
        if row_total == 0 || data % row_total != 0 {
            return None;
        }
        let rows = u16::try_from(data / row_total).ok()?;
        if rows == 0 || rows > self.max_batch.max(1) {
            return None;
        }
        let mut sizes = Sizes::NONE;
        sizes.set(row_bytes.get(..self.inputs.len())?.iter().map(|b| (b * u64::from(rows)) as u32));
        Some((rows, sizes))
    }

    /// The smallest pool whose rows hold these tensors.
    #[inline]
    pub(crate) fn class(&self, pools: &[(u16, PoolLayout)], rows: u16, sizes: &Sizes) -> Result<u16, Status> {
        let fits = |layout: &PoolLayout| layout.tensors() == sizes.len() && holds(layout, rows, sizes);
        let layout_of = |id: u16| pools.iter().find(|(p, _)| *p == id).map(|(_, layout)| layout);
        self.classes.iter().copied().find(|id| layout_of(*id).is_some_and(fits)).ok_or(Status::TooLarge)
    }
}

/// Whether so many rows of a pool hold tensors of these sizes.
pub(crate) fn holds(layout: &PoolLayout, rows: u16, sizes: &Sizes) -> bool {
    (0..).zip(sizes.as_slice()).all(|(tensor, need)| {
        layout.row_bytes(tensor).is_some_and(|row| u64::from(*need) <= u64::from(row) * u64::from(rows))
    })
}
