//! What servers compute: models, each with a request and the answer that it must give, as plain Rust on the CPU computes it.
//!
//! A model is a folder as a model repository has it, written anew by whoever is to load it. What an arm knows of one is
//! what its folder says, whatever it is made of.

mod exchange;
mod lenet5;
mod lstm;
mod matmul;
mod model;
mod resnet50;
mod shaped;
mod vecadd;

pub(crate) use exchange::{Exchange, MAX_TENSORS, Tensor};
pub(crate) use model::Model;
pub(crate) use resnet50::torch;

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tempfile::TempDir;

use model::Code;
use resnet50::Resnet50;

/// Kernels that add up all of their input.
pub(crate) const FOLD: Code = Code { name: "fold.ptx", text: include_str!("../../workloads/fold.ptx") };
/// A kernel that adds one to numbers, for the commands that measure launches.
pub(crate) const STEP: Code = Code { name: "step.ptx", text: include_str!("../../workloads/step.ptx") };
/// The same, which stays on the GPU.
pub(crate) const STAYS: Code = Code { name: "stays.ptx", text: include_str!("../../workloads/stays.ptx") };

/// What the servers compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Nothing, on the CPU: a fixed answer.
    #[default]
    Null,
    /// Nothing, on a GPU: its memory takes the request, and gives the answer.
    NullGpu,
    /// The sum of two vectors of 1 KiB.
    #[value(name = "vecadd-1k")]
    #[serde(rename = "vecadd-1k")]
    Vecadd1k,
    /// The sum of two vectors of 1 MiB.
    #[value(name = "vecadd-1m")]
    #[serde(rename = "vecadd-1m")]
    Vecadd1m,
    /// The product of two matrices of 16 rows.
    #[value(name = "matmul-16")]
    #[serde(rename = "matmul-16")]
    Matmul16,
    /// The same of 32 rows.
    #[value(name = "matmul-32")]
    #[serde(rename = "matmul-32")]
    Matmul32,
    /// The same of 64 rows.
    #[value(name = "matmul-64")]
    #[serde(rename = "matmul-64")]
    Matmul64,
    /// LeNet-5 on one image of a digit, with weights drawn at random.
    #[value(name = "lenet-5")]
    #[serde(rename = "lenet-5")]
    Lenet5,
    /// An LSTM over 16 steps, with weights drawn at random.
    Lstm,
    /// No network: tensors as large as YOLO's, filled by a formula.
    YoloShaped,
    /// No network: tensors as large as DeepLab's, filled by a formula.
    DeeplabShaped,
    /// No network: tensors as large as BERT's, filled by a formula.
    BertShaped,
    /// ResNet-50 in half precision, compiled by PyTorch, where the environment names it.
    #[value(name = "resnet-50")]
    #[serde(rename = "resnet-50")]
    Resnet50,
}

impl Workload {
    /// Those that compute something, in the order of reports.
    pub(crate) const MODELS: [Workload; 10] = [
        Workload::Vecadd1k,
        Workload::Vecadd1m,
        Workload::Matmul16,
        Workload::Matmul32,
        Workload::Matmul64,
        Workload::Lenet5,
        Workload::Lstm,
        Workload::BertShaped,
        Workload::YoloShaped,
        Workload::DeeplabShaped,
    ];

    /// The name in options and reports, which is the model's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Workload::Null => "null",
            Workload::NullGpu => "null-gpu",
            Workload::Vecadd1k => "vecadd-1k",
            Workload::Vecadd1m => "vecadd-1m",
            Workload::Matmul16 => "matmul-16",
            Workload::Matmul32 => "matmul-32",
            Workload::Matmul64 => "matmul-64",
            Workload::Lenet5 => "lenet-5",
            Workload::Lstm => "lstm",
            Workload::YoloShaped => "yolo-shaped",
            Workload::DeeplabShaped => "deeplab-shaped",
            Workload::BertShaped => "bert-shaped",
            Workload::Resnet50 => "resnet-50",
        }
    }

    /// Whether it can be computed here.
    ///
    /// # Errors
    /// What it lacks.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        ensure!(self != Workload::Resnet50 || Resnet50::named().is_some(), Resnet50::MISSING);
        Ok(())
    }

    /// Whether it is computed on a GPU.
    pub(crate) fn is_on_gpu(self) -> bool {
        self != Workload::Null
    }

    /// Its model; `None` where that is built in, and takes requests of any size.
    pub(crate) fn model(self) -> Option<Box<dyn Model>> {
        Some(match self {
            Workload::Null | Workload::NullGpu => return None,
            Workload::Vecadd1k => Box::new(vecadd::Vecadd { elements: 1 << 8 }),
            Workload::Vecadd1m => Box::new(vecadd::Vecadd { elements: 1 << 18 }),
            Workload::Matmul16 => Box::new(matmul::Matmul { side: 16 }),
            Workload::Matmul32 => Box::new(matmul::Matmul { side: 32 }),
            Workload::Matmul64 => Box::new(matmul::Matmul { side: 64 }),
            Workload::Lenet5 => Box::new(lenet5::Lenet5),
            Workload::Lstm => Box::new(lstm::Lstm),
            Workload::YoloShaped => Box::new(shaped::Yolo),
            Workload::DeeplabShaped => Box::new(shaped::Deeplab),
            Workload::BertShaped => Box::new(shaped::Bert),
            Workload::Resnet50 => Box::new(Resnet50::named().expect(Resnet50::MISSING)),
        })
    }

    /// Its request and the answer to that. The sizes are those of the models that take any.
    pub(crate) fn exchange(self, request_bytes: u32, response_bytes: u32) -> Exchange {
        match self.model() {
            None => Exchange::of_bytes(self.name(), request_bytes, response_bytes),
            Some(model) => {
                let request = model.request();
                let answer = model.answer(&request);
                Exchange::new(self.name(), (model.inputs(), request), (model.outputs(), answer), model.tolerance())
            }
        }
    }

    /// Bytes of a request and of its answer, where they are the model's.
    pub(crate) fn sizes(self) -> Option<(u32, u32)> {
        let bytes = |tensors: Vec<Tensor>| tensors.iter().map(Tensor::bytes).sum::<usize>() as u32;
        self.model().map(|model| (bytes(model.inputs()), bytes(model.outputs())))
    }

    /// A repository with its model alone, to be loaded before it is dropped; `None` where the model is built in.
    pub(crate) fn repository(self) -> anyhow::Result<Option<TempDir>> {
        let Some(model) = self.model() else { return Ok(None) };
        let folder = TempDir::new().context("a folder for the model")?;
        write(&*model, &folder.path().join(self.name()))
            .with_context(|| format!("writing the model {}", self.name()))?;
        Ok(Some(folder))
    }
}

/// Writes a model's folder.
fn write(model: &dyn Model, folder: &Path) -> std::io::Result<()> {
    let version = folder.join("1");
    std::fs::create_dir_all(&version)?;
    std::fs::write(folder.join("config.pbtxt"), model::config(model))?;
    model.write(&version)
}

#[cfg(test)]
mod tests;
