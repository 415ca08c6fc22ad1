//! What a workload's model is made of.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use splitrpc_wire::DType;

use super::exchange::{Tensor, Tolerance};

/// A model, with a request and what it must answer.
pub(crate) trait Model {
    /// What it takes.
    fn inputs(&self) -> Vec<Tensor>;

    /// What it gives.
    fn outputs(&self) -> Vec<Tensor>;

    /// How far from [`Model::answer`] an answer may lie.
    fn tolerance(&self) -> Tolerance {
        Tolerance::default()
    }

    /// A request, always the same: numbers from -1 to 1.
    fn request(&self) -> Vec<u8> {
        let elements = self.inputs().iter().map(Tensor::elements).sum();
        bytes(&uniform(REQUEST_SEED, elements, 1.0))
    }

    /// The answer to a request, computed on the CPU by other code than that which is measured.
    fn answer(&self, request: &[u8]) -> Vec<u8>;

    /// What `backend` says in its configuration.
    fn backend(&self) -> &'static str {
        "cuda"
    }

    /// Writes the files of its version into a folder that is there.
    fn write(&self, version: &Path) -> io::Result<()>;
}

const REQUEST_SEED: u64 = 1;

/// The text of `config.pbtxt`.
pub(super) fn config(model: &dyn Model) -> String {
    let mut text = format!("backend: \"{}\"\n", model.backend());
    for (kind, tensors) in [("input", model.inputs()), ("output", model.outputs())] {
        for Tensor { name, dtype, dims } in tensors {
            let dims: Vec<String> = dims.iter().map(u32::to_string).collect();
            let (dtype, dims) = (dtype.name(), dims.join(", "));
            // Writing to a string does not fail.
            let _ = writeln!(text, "{kind} {{ name: \"{name}\" data_type: TYPE_{dtype} dims: [ {dims} ] }}");
        }
    }
    text
}

/// Code of this folder's kernels, by the name of its file.
pub(crate) struct Code {
    /// The file.
    pub(crate) name: &'static str,
    /// PTX.
    pub(crate) text: &'static str,
}

/// Writes the code of a version that is made of kernels, and what its manifest says of them.
pub(super) fn write_kernels(version: &Path, code: &Code, kernels: &str) -> io::Result<()> {
    fs::write(version.join(code.name), code.text)?;
    fs::write(version.join("kernels.toml"), format!("module = \"{}\"\n{kernels}", code.name))
}

/// An FP32 tensor.
pub(super) fn fp32(name: &str, dims: &[u32]) -> Tensor {
    Tensor::new(name, DType::Fp32, dims)
}

/// Numbers from -bound to bound, the same ones for the same seed.
pub(super) fn uniform(seed: u64, count: usize, bound: f32) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| (2.0 * rng.f32() - 1.0) * bound).collect()
}

/// Numbers as they travel.
pub(super) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Numbers that have travelled.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
