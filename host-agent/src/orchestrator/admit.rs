//! A submission held against the model that it names. Neither the link nor the engine is taken at its word.

use nic_app::{Meta, copy_manifest};
use splitrpc_arena::Arena;
use splitrpc_ring::Run;
use splitrpc_wire::{Manifest, Status, TensorDesc};

use crate::model::spec::ModelSpec;
use crate::plan::ModelPools;

/// A status and what to tell the client.
pub(super) type Refusal = (Status, &'static str);

/// Reads the request's manifest from its meta area, by way of `copy`, into `tensors` and checks it. Returns a hash of the
/// row shapes.
pub(super) fn admit(
    arena: &Arena,
    input: Run,
    spec: &ModelSpec,
    pools: &ModelPools,
    copy: &mut Meta,
    tensors: &mut Vec<TensorDesc>,
) -> Result<u64, Refusal> {
    if !pools.inputs.contains(&input.pool) {
        return Err((Status::Internal, "the request's slots belong to another model"));
    }
    let meta = arena.meta(input).ok_or((Status::Internal, "the request's slots do not exist"))?;
    // One copy: what is checked below cannot change afterwards.
    copy_manifest(meta, copy);
    let manifest = Manifest::parse(copy).map_err(|_| (Status::Internal, "the request's manifest is damaged"))?;
    tensors.clear();
    if manifest.len() != spec.inputs.len() {
        return Err((Status::BadTensor, "the model takes another number of tensors"));
    }
    tensors.extend(manifest.tensors());
    let mut shape = Fnv::new();
    for (handle, (tensor, wanted)) in tensors.iter().zip(&spec.inputs).enumerate() {
        let dims = tensor.shape.dims();
        if usize::from(tensor.handle) != handle || tensor.dtype != wanted.dtype || dims.len() != wanted.dims.len() {
            return Err((Status::BadTensor, "a tensor's type or number of dimensions is not what the model takes"));
        }
        let row_dims = usize::from(spec.max_batch > 0);
        if row_dims > dims.len() {
            return Err((Status::BadTensor, "a tensor lacks the batch dimension"));
        }
        if row_dims == 1 && dims[0] != u32::from(input.rows) {
            return Err((Status::BadTensor, "tensors differ in their batch dimension"));
        }
        for (have, want) in dims[row_dims..].iter().zip(&wanted.dims[row_dims..]) {
            if want.is_some_and(|want| want != *have) {
                return Err((Status::BadTensor, "a tensor's shape is not what the model takes"));
            }
            shape.add(*have);
        }
        if arena.span(input, handle as u16, 0, tensor.bytes).is_none() {
            return Err((Status::TooLarge, "a tensor is larger than its slot"));
        }
    }
    if input.rows == 0 || input.rows > spec.max_batch.max(1) {
        return Err((Status::TooLarge, "more rows than the model takes in one batch"));
    }
    Ok(shape.0)
}

/// Whether two requests of one model may share a batch: their rows have the same shapes.
pub(super) fn same_rows(spec: &ModelSpec, a: &[TensorDesc], b: &[TensorDesc]) -> bool {
    let row_dims = usize::from(spec.max_batch > 0);
    let row = |t: &TensorDesc| t.shape.dims().len() >= row_dims;
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| row(a) && row(b) && a.shape.dims()[row_dims..] == b.shape.dims()[row_dims..])
}

/// FNV-1a over dimensions; equality is confirmed by [`same_rows`].
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, dim: u32) {
        for byte in dim.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
