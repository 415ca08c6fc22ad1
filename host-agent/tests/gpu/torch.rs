//! Models that PyTorch compiled. They are compiled here, by the PyTorch that the Python of this machine has.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use splitrpc_client::{Event, Request, Tensor};
use splitrpc_wire::DType;
use splitrpc_wire::path::{Memory, Mover};

use crate::common::{Repository, bytes, config, connection, is_alone, next, start};

/// Writes packages of a model that gives what it takes in two ways, and of one that writes where it is told.
const COMPILE: &str = r#"
import sys, torch
from torch.export import Dim, export
folder = sys.argv[1]
class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 8)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[((i * 7 + j * 3) % 11 - 5) / 8 for j in range(16)] for i in range(8)]))
            self.linear.bias.copy_(torch.arange(8) / 4)
    def forward(self, a, b):
        return torch.relu(self.linear(a)), a + b.float()
class InPlace(torch.nn.Module):
    def forward(self, a, out):
        out.copy_(a * 2 + 1)
batch = Dim("batch", min=1, max=8)
def package(module, inputs, shapes, name):
    with torch.no_grad():
        program = export(module.eval().cuda(), tuple(x.cuda() for x in inputs), dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/{name}.pt2")
package(Mixed(), (torch.zeros(2, 16), torch.zeros(2, 16, dtype=torch.int64)), {"a": {0: batch}, "b": {0: batch}}, "mixed")
# Without this what is compiled takes no single row.
with torch.fx.experimental._config.patch(backed_size_oblivious=True):
    package(InPlace(), (torch.zeros(2, 64), torch.zeros(2, 64)), {"a": {0: batch}, "out": {0: batch}}, "in_place")
"#;

/// The folder of PyTorch's libraries; else a line says why there is none.
fn pytorch() -> Option<PathBuf> {
    let ask = Command::new("python3").args(["-c", "import torch; print(torch.__path__[0] + '/lib')"]).output();
    let folder = ask.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    if folder.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: python3 has no PyTorch");
    }
    folder.map(PathBuf::from)
}

fn compile(folder: &Path) {
    // One that links the C++ library that PyTorch has.
    let python = Command::new("python3").args(["-c", COMPILE]).arg(folder).env("CXX", "g++").output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
}

fn with_package(repository: Repository, name: &str, config: &str, package: &Path) -> Repository {
    let folder = repository.path().join(name);
    std::fs::create_dir_all(folder.join("1")).unwrap();
    std::fs::write(folder.join("config.pbtxt"), config).unwrap();
    std::fs::write(folder.join("1/model.pt2"), std::fs::read(package).unwrap()).unwrap();
    repository
}

fn mixed_config(max_batch: u16, gives: u32) -> String {
    format!(
        "platform: \"torch_aoti\" max_batch_size: {max_batch}\n\
         input {{ name: \"a\" data_type: TYPE_FP32 dims: [ 16 ] }}\n\
         input {{ name: \"b\" data_type: TYPE_INT64 dims: [ 16 ] }}\n\
         output {{ name: \"y\" data_type: TYPE_FP32 dims: [ {gives} ] }}\n\
         output {{ name: \"z\" data_type: TYPE_FP32 dims: [ 16 ] }}\n\
         dynamic_batching {{ max_queue_delay_microseconds: 2000 }}\n"
    )
}

/// A request's inputs, and the outputs that are right: both are whole numbers of quarters or eighths, so nothing is rounded.
fn mixed(seed: i64) -> [Vec<u8>; 4] {
    let a: Vec<f32> = (0..16).map(|j| ((j * 5 + seed) % 23 - 11) as f32).collect();
    let b: Vec<i64> = (0..16).map(|j| j * seed - 7).collect();
    let weight = |i: i64, j: i64| ((i * 7 + j * 3) % 11 - 5) as f32 / 8.0;
    let sum = |i: i64| (0..16).map(|j| weight(i, j) * a[j as usize]).sum::<f32>() + i as f32 / 4.0;
    let y = (0..8).map(|i| sum(i).max(0.0));
    let z = a.iter().zip(&b).map(|(a, b)| a + *b as f32);
    [bytes(a.iter().copied()), b.iter().flat_map(|b| b.to_le_bytes()).collect(), bytes(y), bytes(z)]
}

#[test]
fn packages_of_pytorch_are_served_alone_and_in_batches() {
    let prepared = [("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync"), ("AOTI_RUNTIME_CHECK_INPUTS", "1")];
    if !is_alone("torch::packages_of_pytorch_are_served_alone_and_in_batches", &prepared) {
        return;
    }
    let Some(libraries) = pytorch() else { return };
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path());
    let package = |name: &str| folder.path().join(format!("{name}.pt2"));
    let in_place = "backend: \"pytorch\"\ninput { name: \"a\" data_type: TYPE_FP32 dims: [ 64 ] }\n\
                    output { name: \"out\" data_type: TYPE_FP32 dims: [ 64 ] } max_batch_size: 4\n\
                    parameters { key: \"outputs_as_inputs\" value { string_value: \"true\" } }\n";
    let repository = with_package(Repository::new(), "in_place", in_place, &package("in_place"));
    let repository = with_package(repository, "lies", &mixed_config(4, 9), &package("mixed"));
    let repository = with_package(repository, "mixed", &mixed_config(8, 8), &package("mixed"));
    let repository = with_package(repository, "nothing", &mixed_config(4, 8), Path::new("/dev/null"));
    let mut config = config(Some(&repository), &[]);
    config.gpu.torch = Some(libraries);
    // A client may have as many requests as are free.
    config.limits.slots_per_model = 64;
    let server = start(config);
    let summary = server.summary();
    assert!(summary.contains("output 0 is float32[2, 8], where float32[2, 9] was expected"), "{summary}");
    assert!(summary.contains("model.pt2: is no package of PyTorch's"), "{summary}");
    assert!(["in_place", "mixed"].iter().all(|m| summary.contains(&format!("{m} version 1: ready"))), "{summary}");
    let (in_place, mixed_model) = (0, 1);

    let mut asks = connection(&server);
    for seed in 0..40 {
        let a: Vec<f32> = (0..64).map(|i| (i * seed) as f32).collect();
        let given = bytes(a.iter().copied());
        let id =
            asks.submit(&Request::new(in_place, &[Tensor::new(0, DType::Fp32, &[1, 64], &given).unwrap()])).unwrap();
        let event = next(&mut asks);
        let Event::Response(response) = event else { panic!("{event:?}") };
        assert_eq!((response.id(), response.data()), (id, &bytes(a.iter().map(|a| a * 2.0 + 1.0))[..]));
        let path = response.path().unwrap();
        // It was recorded for the first slots before the first batch.
        assert_eq!((path.memory, path.mover, path.device_compactions), (Memory::Cuda, Mover::GpuCopy, 0));
    }
    // Alone, and then many at once, which come to be batches of all sizes.
    for round in 0..60 {
        let many = if round < 10 { 1 } else { 1 + round % 13 };
        let requests: Vec<_> = (0..many).map(|i| mixed(i64::from(round * 16 + i))).collect();
        let submit = |[a, b, ..]: &[Vec<u8>; 4]| {
            let tensors =
                [Tensor::new(0, DType::Fp32, &[1, 16], a).unwrap(), Tensor::new(1, DType::Int64, &[1, 16], b).unwrap()];
            asks.submit(&Request::new(mixed_model, &tensors)).unwrap()
        };
        let ids: Vec<_> = requests.iter().map(submit).collect();
        for _ in 0..many {
            let event = next(&mut asks);
            let Event::Response(response) = event else { panic!("round {round}: {event:?}") };
            let at = ids.iter().position(|id| *id == response.id()).unwrap();
            let [.., y, z] = &requests[at];
            assert_eq!(response.data(), [&y[..], &z[..]].concat(), "round {round}");
        }
    }
    assert!(server.stop());
}
