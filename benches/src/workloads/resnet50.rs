//! ResNet-50, as PyTorch compiles it: see `benches/workloads/resnet50.py`, which also says what the answer is.

use std::io;
use std::path::{Path, PathBuf};

use splitrpc_wire::DType;

use super::exchange::{Tensor, Tolerance};
use super::model::Model;

/// The variables that name the folder which the script has made, and that of PyTorch's libraries.
const MODEL: &str = "BENCHES_RESNET50";
const TORCH: &str = "BENCHES_TORCH";

/// The folder of PyTorch's libraries, for all that opens a GPU.
pub(crate) fn torch() -> Option<PathBuf> {
    std::env::var_os(TORCH).map(PathBuf::from)
}

/// The network, compiled for one image.
pub(super) struct Resnet50(PathBuf);

impl Resnet50 {
    /// The one that the environment names; `None` where it names none.
    pub(super) fn named() -> Option<Resnet50> {
        torch().and(std::env::var_os(MODEL)).map(|folder| Resnet50(folder.into()))
    }

    /// What is said where it is missing.
    pub(super) const MISSING: &str = "resnet-50 is not part of this program: run benches/workloads/resnet50.py, and name its folder in \
                                      BENCHES_RESNET50, and that of PyTorch's libraries in BENCHES_TORCH";

    fn read(&self, file: &str) -> Vec<u8> {
        let path = self.0.join(file);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

impl Model for Resnet50 {
    fn inputs(&self) -> Vec<Tensor> {
        vec![Tensor::new("image", DType::Fp16, &[1, 3, 224, 224])]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![Tensor::new("scores", DType::Fp16, &[1, 1000])]
    }

    /// Fifty layers in half precision, in another order.
    fn tolerance(&self) -> Tolerance {
        Tolerance { fp16: 0.02, ..Tolerance::default() }
    }

    fn request(&self) -> Vec<u8> {
        self.read("request.bin")
    }

    fn answer(&self, _: &[u8]) -> Vec<u8> {
        self.read("answer.bin")
    }

    fn backend(&self) -> &'static str {
        "pytorch"
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        std::fs::copy(self.0.join("1/model.pt2"), version.join("model.pt2")).map(drop)
    }
}
