//! Images before a model: raw ones of 8 bits a channel are resized and normalised on the GPU, where `images.toml` beside the
//! model says so. Clients then send the images as they are, and the model is given what it takes. See `docs/gpu.md`.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use splitrpc_arena::Run;
use splitrpc_cuda::{Context, Launch, Module};
use splitrpc_gpu::{GpuError, Kernel, Operand, Work, filled};
use splitrpc_wire::{DType, MAX_TENSORS};

use crate::gpu::{GpuModel, LazyGpu, Program, Resources, Rows, granules};
use crate::model::read_plain;
use crate::model::spec::{ModelSpec, TensorSpec};
use plan::ImagePlan;

mod plan;

/// What says that there are images, beside the model's file.
pub(crate) const FILE: &str = "images.toml";
const MAX_BYTES: u64 = 1 << 20;
/// Made from `image.cu` by `benches/workloads/build.py`.
const CODE: &str = include_str!("image.ptx");
/// Pixels of a block, along either side.
const SIDE: u32 = 16;

/// The model as clients see it: with images before it where a file beside its own says so, else as it is.
///
/// # Errors
/// What is wrong, with the file that is at fault.
pub(crate) fn before(model: GpuModel, gpu: &LazyGpu) -> Result<GpuModel, (PathBuf, String)> {
    let Some(file) = model.file.as_ref().map(|file| file.with_file_name(FILE)) else { return Ok(model) };
    let wrong = |why: String| (file.clone(), why);
    let bytes = match read_plain(&file, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(model),
        Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
    };
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text".to_owned()))?;
    let images = plan::read(&text, &model.spec).map_err(wrong)?;
    if model.program.stays().is_some() {
        return Err(wrong("goes before kernels that are launched, and the model's is persistent".to_owned()));
    }
    let context = gpu.get().map_err(wrong)?.context.clone();
    let kernels = kernels(&context).map_err(|error| wrong(error.to_string()))?;
    let spec = seen(&model.spec, &images);
    let max_batch = model.spec.max_batch.max(1);
    let program = Images { context, inner: model.program, images, kernels, max_batch, behind: OnceLock::new() };
    Ok(GpuModel { spec, file: model.file, program: Arc::new(program) })
}

/// The kernel for each type that a model may take.
fn kernels(context: &Context) -> Result<[Kernel; 2], GpuError> {
    let module = Module::from_ptx(context, CODE)?;
    Ok([Kernel::new(&module, "image_fp32")?, Kernel::new(&module, "image_fp16")?])
}

/// What clients send: images where the model takes what was made of them.
fn seen(spec: &ModelSpec, images: &[ImagePlan]) -> ModelSpec {
    let mut seen = spec.clone();
    for image in images {
        let input = &mut seen.inputs[image.input];
        let rows = (spec.max_batch > 0).then_some(None);
        let dims = image.from.map(Some).into_iter().chain([Some(3)]);
        *input =
            TensorSpec { name: input.name.clone(), dtype: DType::Uint8, dims: rows.into_iter().chain(dims).collect() };
    }
    seen
}

/// A program, with images resized before it.
struct Images {
    context: Context,
    inner: Arc<dyn Program>,
    images: Vec<ImagePlan>,
    kernels: [Kernel; 2],
    max_batch: u16,
    /// How many buffers and kernels are the model's own, which are counted first; known with the first lane.
    behind: OnceLock<(usize, usize)>,
}

impl Images {
    /// Bytes of the memory in which each image's batch is given to the model.
    fn room(&self, image: &ImagePlan) -> u64 {
        image.bytes() * u64::from(self.max_batch)
    }
}

impl Program for Images {
    fn resources(&self) -> Result<Resources, GpuError> {
        let mut resources = self.inner.resources()?;
        let behind = (resources.buffers.len(), resources.kernels.len());
        if *self.behind.get_or_init(|| behind) != behind {
            return Err(GpuError::NoBuffer);
        }
        for image in &self.images {
            let bytes = usize::try_from(self.room(image)).map_err(|_| GpuError::NoSlots)?;
            resources.buffers.push(filled(&self.context, &vec![0; bytes])?);
        }
        resources.kernels.extend(self.kernels.iter().cloned());
        Ok(resources)
    }

    fn lane_bytes(&self) -> u64 {
        self.images.iter().map(|image| granules(self.room(image))).fold(self.inner.lane_bytes(), u64::saturating_add)
    }

    fn alignment(&self) -> u32 {
        self.inner.alignment()
    }

    fn is_recorded(&self) -> bool {
        self.inner.is_recorded()
    }

    fn rehearses(&self) -> bool {
        self.inner.rehearses()
    }

    fn prepare(&self, work: &Work<'_>, output_slots: &mut dyn Iterator<Item = Run>) -> Result<(), GpuError> {
        self.inner.prepare(work, output_slots)
    }

    fn submit(&self, work: &Work<'_>, rows: &Rows<'_>) -> Result<(), GpuError> {
        let &(first_buffer, first_kernel) = self.behind.get().ok_or(GpuError::NoBuffer)?;
        let mut inputs = [Operand::Word(0); MAX_TENSORS];
        let inputs = inputs.get_mut(..rows.inputs.len()).ok_or(GpuError::NoSlots)?;
        inputs.copy_from_slice(rows.inputs);
        for (index, image) in self.images.iter().enumerate() {
            let bytes = image.bytes() * u64::from(rows.count);
            let to = Operand::Buffer { buffer: first_buffer + index, at: 0, bytes };
            let [from_h, from_w] = image.from.map(Operand::Word);
            let [h, w] = image.to.map(Operand::Word);
            let [s0, s1, s2] = image.scale.map(|x| Operand::Word(x.to_bits()));
            let [t0, t1, t2] = image.shift.map(|x| Operand::Word(x.to_bits()));
            let operands = [inputs[image.input], to, from_h, from_w, h, w, s0, s1, s2, t0, t1, t2];
            let [height, width] = image.to.map(|side| side.div_ceil(SIDE));
            let launch = Launch { grid: [width, height, rows.count], block: [SIDE, SIDE, 1], shared_bytes: 0 };
            work.run(first_kernel + usize::from(image.half), launch, &operands)?;
            inputs[image.input] = to;
        }
        self.inner.submit(work, &Rows { inputs, ..*rows })
    }
}

#[cfg(test)]
mod tests {
    use super::CODE;

    #[test]
    fn the_code_is_made_from_the_source_beside_it() {
        let source = include_bytes!("image.cu");
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = source.iter().fold(0xcbf2_9ce4_8422_2325, step);
        assert!(CODE.starts_with(&format!("// Made from image.cu ({hash:016x}) by build.py.\n")), "run build.py again");
    }
}
