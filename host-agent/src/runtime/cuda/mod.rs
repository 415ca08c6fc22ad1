//! Models made of CUDA kernels: a module (PTX, cubin or fatbin) with a `kernels.toml` beside it, which says what is launched, in
//! what order, and on which tensors and buffers. The tensors themselves are in `config.pbtxt`. See `docs/gpu.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use splitrpc_cuda::Context;
use splitrpc_gpu::{Buffer, GpuError, Kernel, Operand, Persistent, Work, filled, load_code};

use crate::gpu::{LazyGpu, Program, Resources, Rows, Stays, granules};
use crate::model::read_plain;
use crate::model::spec::ModelSpec;
use manifest::{Argument, BufferPlan, KernelPlan, LaunchType, Manifest};

mod manifest;

/// The manifest's usual name.
pub const MANIFEST: &str = "kernels.toml";
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
const MAX_MODULE_BYTES: u64 = 1 << 28;
/// Shared memory that a block may have without asking for it, on every device.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// Loads what a manifest names, and holds it against the tensors that `spec` gives. The manifest is read first, and its files are looked at, so
/// that what is wrong with them is told where there is no GPU, too.
///
/// # Errors
/// What is wrong, with the file that is at fault.
pub(crate) fn load(file: &Path, spec: &ModelSpec, gpu: &LazyGpu) -> Result<Arc<dyn Program>, (PathBuf, String)> {
    let wrong = |why: String| (file.to_owned(), why);
    let bytes = read_plain(file, MAX_MANIFEST_BYTES).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text".to_owned()))?;
    let manifest = manifest::read(&text, spec).map_err(wrong)?;
    let module = file.with_file_name(&manifest.module);
    let code = read_plain(&module, MAX_MODULE_BYTES).map_err(|e| format!("cannot be read: {e}"));
    let code = code.and_then(|code| has_size(code.len() as u64, None).map(|()| code)).map_err(|why| (module, why))?;
    for plan in &manifest.buffers {
        if let BufferPlan::File { name, bytes } = plan {
            let path = file.with_file_name(name);
            let found = std::fs::metadata(&path).map_err(|e| format!("cannot be read: {e}"));
            found.and_then(|found| has_size(found.len(), *bytes)).map_err(|why| (path, why))?;
        }
    }
    let gpu = gpu.get().map_err(wrong)?;
    Ok(Arc::new(Kernels::load(file, &manifest, &code, spec, &gpu.context)?))
}

/// Whether a file has as many bytes as the manifest says, if it does, and any at all.
fn has_size(bytes: u64, expected: Option<u64>) -> Result<(), String> {
    if bytes == 0 {
        return Err("is empty".into());
    }
    match expected.filter(|expected| *expected != bytes) {
        Some(expected) => Err(format!("has {bytes} bytes, where {MANIFEST} says {expected}")),
        None => Ok(()),
    }
}

#[derive(Debug)]
struct Kernels {
    context: Context,
    launch: LaunchType,
    alignment: Option<u32>,
    in_place: bool,
    buffers: Vec<Memory>,
    kernels: Vec<Kernel>,
    plans: Vec<KernelPlan>,
    stays: Option<Stays>,
}

#[derive(Debug)]
enum Memory {
    Shared(Buffer),
    /// So many bytes for each lane.
    Room(u64),
}

impl Kernels {
    fn load(
        file: &Path,
        manifest: &Manifest,
        code: &[u8],
        spec: &ModelSpec,
        context: &Context,
    ) -> Result<Kernels, (PathBuf, String)> {
        let beside = |name: &str| file.with_file_name(name);
        let in_manifest = |why: String| (file.to_owned(), why);
        let module = load_code(context, code).map_err(|e| (beside(&manifest.module), e.to_string()))?;
        let mut buffers = Vec::new();
        for plan in &manifest.buffers {
            buffers.push(match plan {
                BufferPlan::Room { bytes } => Memory::Room(*bytes),
                BufferPlan::File { name, bytes } => {
                    Memory::Shared(contents(context, &beside(name), *bytes).map_err(|why| (beside(name), why))?)
                }
            });
        }
        let loaded = Kernels {
            context: context.clone(),
            launch: manifest.launch,
            alignment: manifest.alignment,
            in_place: manifest.in_place,
            buffers,
            kernels: Vec::new(),
            plans: Vec::new(),
            stays: None,
        };
        let mut kernels = Vec::new();
        for (index, plan) in manifest.kernels.iter().enumerate() {
            let kernel = loaded.kernel(&module, plan, spec, context);
            let say = |why: String| in_manifest(format!("kernel {} ({:?}): {why}", index + 1, plan.function));
            kernels.push(kernel.map_err(say)?);
        }
        let stays = match (manifest.launch, &kernels[..], &manifest.kernels[..]) {
            (LaunchType::Persistent, [kernel], [plan]) => {
                Some(Stays { kernel: kernel.clone(), launch: plan.launch(1), values: plan.arguments.len() })
            }
            _ => None,
        };
        Ok(Kernels { kernels, plans: manifest.kernels.clone(), stays, ..loaded })
    }

    /// Finds a kernel, and refuses a launch that it or the device would not take.
    fn kernel(
        &self,
        module: &splitrpc_cuda::Module,
        plan: &KernelPlan,
        spec: &ModelSpec,
        context: &Context,
    ) -> Result<Kernel, String> {
        let kernel = Kernel::new(module, &plan.function).map_err(|e| e.to_string())?;
        if self.launch == LaunchType::Persistent {
            let takes = "where launch is \"persistent\" it takes one splitrpc::Doorbell";
            Persistent::check_kernel(&kernel).map_err(|e| format!("{e}: {takes}"))?;
        } else {
            let slots = |count: usize| vec![Operand::Long(0); count];
            let rows = Rows { count: 1, inputs: &slots(spec.inputs.len()), outputs: &slots(spec.outputs.len()) };
            let (operands, count) = self.operands(plan, &rows);
            kernel.check(&operands[..count]).map_err(|e| e.to_string())?;
        }
        let function = kernel.function();
        let threads = plan.block.iter().fold(1_u64, |threads, side| threads.saturating_mul((*side).into()));
        let most = function.threads_max().map_err(|e| e.to_string())?;
        if threads > u64::from(most) || plan.block[2] > 64 {
            return Err(format!("a block has {threads} threads, where {most} may be (and 64 in z)"));
        }
        let room = context.device().shared_bytes_max_opt_in;
        let fixed = function.static_shared_bytes().map_err(|e| e.to_string())?;
        if fixed.checked_add(plan.shared_bytes).is_none_or(|bytes| bytes > room) {
            return Err(format!("takes {fixed} + {} bytes of shared memory, where {room} may be", plan.shared_bytes));
        }
        if fixed + plan.shared_bytes > USUAL_SHARED_BYTES {
            // It is the function's, of which there may be several launches.
            let before = function.dynamic_shared_bytes_max().map_err(|e| e.to_string())?;
            let most = before.max(plan.shared_bytes);
            function.set_dynamic_shared_bytes_max(most).map_err(|e| e.to_string())?;
        }
        Ok(kernel)
    }

    /// What a kernel is given for a batch.
    fn operands(&self, plan: &KernelPlan, rows: &Rows<'_>) -> ([Operand; splitrpc_gpu::MAX_ARGUMENTS], usize) {
        let mut operands = [Operand::Word(0); splitrpc_gpu::MAX_ARGUMENTS];
        for (operand, argument) in operands.iter_mut().zip(&plan.arguments) {
            *operand = match *argument {
                Argument::Input(tensor) => rows.inputs[tensor],
                Argument::Output(tensor) => rows.outputs[tensor],
                Argument::Buffer(buffer) => Operand::Buffer { buffer, at: 0, bytes: self.buffers[buffer].len() },
                Argument::Rows(each) => Operand::Word(rows.count * each),
                Argument::Word(value) => Operand::Word(value),
                Argument::Long(value) => Operand::Long(value),
            };
        }
        (operands, plan.arguments.len())
    }
}

impl Memory {
    fn len(&self) -> u64 {
        match self {
            Memory::Shared(buffer) => buffer.len() as u64,
            Memory::Room(bytes) => *bytes,
        }
    }
}

/// A file's bytes on the device.
fn contents(context: &Context, path: &Path, expected: Option<u64>) -> Result<Buffer, String> {
    let (free, _) = context.memory_bytes().map_err(|e| e.to_string())?;
    let bytes = read_plain(path, free).map_err(|e| format!("cannot be read into the GPU's memory: {e}"))?;
    has_size(bytes.len() as u64, expected)?;
    filled(context, &bytes).map_err(|e| e.to_string())
}

impl Program for Kernels {
    /// Room starts out as zeroes: device memory may hold what another model left there.
    fn resources(&self) -> Result<Resources, GpuError> {
        let buffers = self.buffers.iter().map(|memory| match memory {
            Memory::Shared(buffer) => Ok(Arc::clone(buffer)),
            Memory::Room(bytes) => {
                let len = usize::try_from(*bytes).map_err(|_| GpuError::NoMemory { needed: *bytes, free: 0 })?;
                filled(&self.context, &vec![0; len])
            }
        });
        let buffers = buffers.collect::<Result<_, GpuError>>()?;
        Ok(Resources { buffers, kernels: self.kernels.clone(), packages: Vec::new() })
    }

    fn lane_bytes(&self) -> u64 {
        let bytes = |memory: &Memory| if let Memory::Room(bytes) = memory { granules(*bytes) } else { 0 };
        self.buffers.iter().map(bytes).fold(0, u64::saturating_add)
    }

    fn alignment(&self) -> u32 {
        self.alignment.unwrap_or(16)
    }

    fn launches(&self) -> bool {
        self.stays.is_none()
    }

    fn stays(&self) -> Option<&Stays> {
        self.stays.as_ref()
    }

    fn tell(&self, rows: &Rows<'_>, values: &mut Vec<Operand>) {
        for plan in &self.plans {
            let (operands, count) = self.operands(plan, rows);
            values.extend_from_slice(&operands[..count]);
        }
    }

    fn is_recorded(&self) -> bool {
        self.launch == LaunchType::Graph
    }

    fn works_in_place(&self) -> bool {
        self.in_place
    }

    fn submit(&self, work: &Work<'_>, rows: &Rows<'_>) -> Result<(), GpuError> {
        for (index, plan) in self.plans.iter().enumerate() {
            let (operands, count) = self.operands(plan, rows);
            work.run(index, plan.launch(rows.count), &operands[..count])?;
        }
        Ok(())
    }
}
