//! The product of two square matrices.

use std::io;
use std::path::Path;

use super::exchange::{Tensor, Tolerance};
use super::model::{Code, Model, bytes, floats, fp32, write_kernels};

pub(super) const CODE: Code = Code { name: "matmul.ptx", text: include_str!("../../workloads/matmul.ptx") };
/// Rows of a tile, which is what a block computes.
const TILE: u32 = 16;

/// Multiplies matrices of so many rows, a multiple of 16.
pub(super) struct Matmul {
    pub(super) side: u32,
}

impl Model for Matmul {
    fn inputs(&self) -> Vec<Tensor> {
        vec![fp32("A", &[self.side, self.side]), fp32("B", &[self.side, self.side])]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![fp32("C", &[self.side, self.side])]
    }

    /// Sums of up to 64 products of at most 1 are rounded in another order.
    fn tolerance(&self) -> Tolerance {
        Tolerance { fp32: 1e-5, ..Tolerance::default() }
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let (numbers, n) = (floats(request), self.side as usize);
        let (a, b) = numbers.split_at(n * n);
        let element = |at: usize| {
            let (row, column) = (at / n, at % n);
            (0..n).map(|k| f64::from(a[row * n + k]) * f64::from(b[k * n + column])).sum::<f64>() as f32
        };
        bytes(&(0..n * n).map(element).collect::<Vec<f32>>())
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        let (n, tiles) = (self.side, self.side / TILE);
        let kernels = format!(
            "[[kernel]]\nfunction = \"matmul\"\ngrid = [{tiles}, {tiles}]\nblock = [{TILE}, {TILE}]\n\
             arguments = [{{ input = \"A\" }}, {{ input = \"B\" }}, {{ output = \"C\" }}, {{ u32 = {n} }}]\n"
        );
        write_kernels(version, &CODE, &kernels)
    }
}
