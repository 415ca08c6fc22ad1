//! Models that PyTorch compiled ahead of time for a GPU: a package (`model.pt2`), as `torch._inductor.aoti_compile_and_package`
//! writes it. The tensors are in `config.pbtxt`, in the order in which the package takes and gives them. See `docs/gpu.md`.

use std::path::Path;
use std::sync::Arc;

use splitrpc_gpu::{GpuError, Shaped, Work};
use splitrpc_torch::{Element, Package, Target};
use splitrpc_wire::DType;

use crate::gpu::{LazyGpu, Program, Resources, Rows};
use crate::model::spec::{ModelSpec, TensorSpec};

/// A package's usual name.
pub const PACKAGE: &str = "model.pt2";

/// Opens a package, and holds it against the tensors that `spec` gives, the outputs of which it takes as further inputs where they are
/// `outputs_as_inputs`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn load(
    file: &Path,
    spec: &ModelSpec,
    outputs_as_inputs: bool,
    gpu: &LazyGpu,
) -> Result<Arc<dyn Program>, String> {
    let gpu = gpu.get()?;
    let library = gpu.torch()?;
    let target = Target { device: gpu.settings.device, capability: gpu.context.device().compute_capability };
    let package = Package::open(&library, file, target).map_err(|error| error.to_string())?;
    Ok(Arc::new(Compiled::new(package, spec, outputs_as_inputs)?))
}

#[derive(Debug)]
struct Compiled {
    package: Package,
    inputs: Vec<Described>,
    outputs: Vec<Described>,
    /// The package takes them, and writes them.
    outputs_as_inputs: bool,
}

/// A tensor, for any number of rows.
#[derive(Debug)]
struct Described {
    element: Element,
    sizes: Vec<i64>,
    /// Whether the first size is the number of rows.
    has_rows: bool,
}

impl Compiled {
    fn new(package: Package, spec: &ModelSpec, outputs_as_inputs: bool) -> Result<Compiled, String> {
        let (inputs, outputs) = (spec.inputs.len(), spec.outputs.len());
        let (takes, gives) = (package.inputs(), package.outputs());
        // What takes its outputs too may give them once more.
        let fits = if outputs_as_inputs { takes == inputs + outputs } else { (takes, gives) == (inputs, outputs) };
        if !fits {
            let how = if outputs_as_inputs { ", of which the package is to take both" } else { "" };
            return Err(format!(
                "takes {takes} tensors and gives {gives}, where config.pbtxt has {inputs} inputs and {outputs} outputs{how}"
            ));
        }
        let describe = |tensors: &[TensorSpec]| {
            tensors.iter().map(|tensor| Described::new(spec, tensor)).collect::<Result<Vec<_>, String>>()
        };
        let (inputs, outputs) = (describe(&spec.inputs)?, describe(&spec.outputs)?);
        Ok(Compiled { package, inputs, outputs, outputs_as_inputs })
    }
}

impl Described {
    fn new(spec: &ModelSpec, tensor: &TensorSpec) -> Result<Described, String> {
        let element = element(tensor.dtype).ok_or_else(|| {
            format!("{:?} is of type {}, which PyTorch does not have", tensor.name, tensor.dtype.name())
        })?;
        let has_rows = spec.max_batch > 0;
        let row = spec.row_dims(tensor).iter().map(|size| size.unwrap_or(0).into());
        let sizes = has_rows.then_some(1).into_iter().chain(row).collect();
        Ok(Described { element, sizes, has_rows })
    }

    fn sizes(&self, rows: u32) -> Vec<i64> {
        let mut sizes = self.sizes.clone();
        if self.has_rows {
            sizes[0] = rows.into();
        }
        sizes
    }
}

/// What PyTorch calls a type.
fn element(dtype: DType) -> Option<Element> {
    Some(match dtype {
        DType::Bool => Element::Bool,
        DType::Uint8 => Element::Uint8,
        DType::Uint16 => Element::Uint16,
        DType::Uint32 => Element::Uint32,
        DType::Uint64 => Element::Uint64,
        DType::Int8 => Element::Int8,
        DType::Int16 => Element::Int16,
        DType::Int32 => Element::Int32,
        DType::Int64 => Element::Int64,
        DType::Fp16 => Element::Float16,
        DType::Bf16 => Element::Bfloat16,
        DType::Fp32 => Element::Float32,
        DType::Fp64 => Element::Float64,
        DType::Bytes => return None,
    })
}

impl Program for Compiled {
    fn resources(&self) -> Result<Resources, GpuError> {
        Ok(Resources { packages: vec![self.package.clone()], ..Resources::default() })
    }

    fn is_recorded(&self) -> bool {
        true
    }

    /// PyTorch loads kernels, and chooses among them, when it first sees a shape.
    fn rehearses(&self) -> bool {
        true
    }

    /// Allocates, as PyTorch itself does: what is recorded comes by here once.
    fn submit(&self, work: &Work<'_>, rows: &Rows<'_>) -> Result<(), GpuError> {
        let tensors = || self.inputs.iter().chain(&self.outputs);
        let operands = rows.inputs.iter().chain(rows.outputs);
        let sizes: Vec<Vec<i64>> = tensors().map(|tensor| tensor.sizes(rows.count)).collect();
        let shaped = tensors().zip(operands).zip(&sizes);
        let shaped: Vec<Shaped<'_>> =
            shaped.map(|((tensor, at), sizes)| Shaped { operand: *at, element: tensor.element, sizes }).collect();
        let takes = if self.outputs_as_inputs { shaped.len() } else { self.inputs.len() };
        let (inputs, outputs) = shaped.split_at(takes);
        work.infer(0, inputs, outputs)
    }
}
