//! The sum of two vectors.

use std::io;
use std::path::Path;

use super::exchange::Tensor;
use super::model::{Code, Model, bytes, floats, fp32, write_kernels};

pub(super) const CODE: Code = Code { name: "vecadd.ptx", text: include_str!("../../workloads/vecadd.ptx") };

/// Adds vectors of so many numbers.
pub(super) struct Vecadd {
    pub(super) elements: u32,
}

impl Model for Vecadd {
    fn inputs(&self) -> Vec<Tensor> {
        vec![fp32("A", &[self.elements]), fp32("B", &[self.elements])]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![fp32("C", &[self.elements])]
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let numbers = floats(request);
        let (a, b) = numbers.split_at(numbers.len() / 2);
        bytes(&a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f32>>())
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        let n = self.elements;
        let kernels = format!(
            "in_place = true\n[[kernel]]\nfunction = \"vecadd\"\ngrid = [{}]\nblock = [256]\n\
             arguments = [{{ input = \"A\" }}, {{ input = \"B\" }}, {{ output = \"C\" }}, {{ u32 = {n} }}]\n",
            n.div_ceil(256)
        );
        write_kernels(version, &CODE, &kernels)
    }
}
