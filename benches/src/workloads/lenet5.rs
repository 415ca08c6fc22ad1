//! LeNet-5: an image of 28 x 28 to scores of ten classes.

use std::io;
use std::path::Path;

use super::exchange::{Tensor, Tolerance};
use super::model::{Code, Model, bytes, floats, fp32, uniform, write_kernels};

pub(super) const CODE: Code = Code { name: "lenet5.ptx", text: include_str!("../../workloads/lenet5.ptx") };
const SEED: u64 = 5;

/// Convolutions: channels, side and padding of what goes in, filters, and the side of what comes out when it is pooled.
const CONVOLUTIONS: [Convolution; 2] = [
    Convolution { channels: 1, in_side: 28, pad: 2, filters: 6, side: 14 },
    Convolution { channels: 6, in_side: 14, pad: 0, filters: 16, side: 5 },
];
/// Dense layers: inputs and outputs.
const DENSE: [(usize, usize); 3] = [(400, 120), (120, 84), (84, 10)];

#[derive(Clone, Copy)]
pub(super) struct Convolution {
    pub(super) channels: usize,
    pub(super) in_side: usize,
    pub(super) pad: usize,
    pub(super) filters: usize,
    pub(super) side: usize,
}

impl Convolution {
    fn weights(&self) -> usize {
        self.filters * (self.channels * 25 + 1)
    }

    /// Convolved, through tanh, and pooled.
    pub(super) fn apply(&self, input: &[f64], weights: &[f32]) -> Vec<f64> {
        let Convolution { channels, in_side, pad, filters, side } = *self;
        let pixel = |channel: usize, y: usize, x: usize| {
            let inside = (pad..in_side + pad).contains(&y) && (pad..in_side + pad).contains(&x);
            if inside { input[(channel * in_side + y - pad) * in_side + x - pad] } else { 0.0 }
        };
        let convolved = |filter: usize, y: usize, x: usize| {
            let own = &weights[filter * (channels * 25 + 1)..];
            let mut sum = f64::from(own[channels * 25]);
            for channel in 0..channels {
                for k in 0..25 {
                    sum += f64::from(own[channel * 25 + k]) * pixel(channel, y + k / 5, x + k % 5);
                }
            }
            sum.tanh()
        };
        let mut out = Vec::with_capacity(filters * side * side);
        for filter in 0..filters {
            for y in 0..side {
                for x in 0..side {
                    let corners =
                        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(dy, dx)| convolved(filter, 2 * y + dy, 2 * x + dx));
                    out.push(corners.iter().sum::<f64>() / 4.0);
                }
            }
        }
        out
    }
}

/// A dense layer, before tanh.
pub(super) fn dense(input: &[f64], weights: &[f32], outputs: usize) -> Vec<f64> {
    let rows = weights.chunks_exact(input.len() + 1).take(outputs);
    let sum = |row: &[f32]| {
        let (bias, own) = row.split_last().expect("a row has its bias at least");
        f64::from(*bias) + own.iter().zip(input).map(|(weight, value)| f64::from(*weight) * value).sum::<f64>()
    };
    rows.map(sum).collect()
}

/// A layer as it is launched.
struct Layer {
    function: &'static str,
    /// How many weights it has, and of how many values each of its own is a sum.
    weights: usize,
    inputs: usize,
    /// How many values it gives.
    values: usize,
    blocks: usize,
    threads: usize,
    /// What the kernel is given behind the addresses.
    numbers: Vec<usize>,
}

fn layers() -> Vec<Layer> {
    let convolutions = CONVOLUTIONS.iter().map(|c| {
        let values = c.filters * c.side * c.side;
        let numbers = vec![c.channels, c.in_side, c.pad, c.filters, c.side];
        let (function, blocks, threads) = ("conv_pool", values.div_ceil(64), 64);
        Layer { function, weights: c.weights(), inputs: c.channels * 25, values, blocks, threads, numbers }
    });
    let dense = DENSE.into_iter().enumerate().map(|(at, (inputs, values))| {
        let numbers = vec![inputs, values, usize::from(at + 1 == DENSE.len())];
        let (function, blocks, threads) = ("dense", values.div_ceil(4), 128);
        Layer { function, weights: values * (inputs + 1), inputs, values, blocks, threads, numbers }
    });
    convolutions.chain(dense).collect()
}

/// The weights of each layer, drawn as wide as its inputs are few.
fn weights() -> Vec<Vec<f32>> {
    let layers = layers();
    let draw =
        |(at, layer): (usize, &Layer)| uniform(SEED + at as u64, layer.weights, (layer.inputs as f32).sqrt().recip());
    layers.iter().enumerate().map(draw).collect()
}

/// The network.
pub(super) struct Lenet5;

impl Model for Lenet5 {
    fn inputs(&self) -> Vec<Tensor> {
        vec![fp32("IMAGE", &[1, 28, 28])]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![fp32("SCORES", &[10])]
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance { fp32: 1e-5, ..Tolerance::default() }
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let weights = weights();
        let (of_convolutions, of_dense) = weights.split_at(CONVOLUTIONS.len());
        let mut values: Vec<f64> = floats(request).into_iter().map(f64::from).collect();
        for (convolution, weights) in CONVOLUTIONS.iter().zip(of_convolutions) {
            values = convolution.apply(&values, weights);
        }
        for (layer, ((_, outputs), weights)) in DENSE.into_iter().zip(of_dense).enumerate() {
            values = dense(&values, weights, outputs);
            if layer + 1 < DENSE.len() {
                values.iter_mut().for_each(|value| *value = value.tanh());
            }
        }
        bytes(&values.into_iter().map(|value| value as f32).collect::<Vec<f32>>())
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        let (layers, weights) = (layers(), weights());
        let (mut buffers, mut kernels) = (String::new(), String::new());
        let mut from = "{ input = \"IMAGE\" }".to_owned();
        for (at, (layer, weights)) in layers.iter().zip(&weights).enumerate() {
            let file = format!("weights-{at}.bin");
            std::fs::write(version.join(&file), bytes(weights))?;
            buffers += &format!("[[buffer]]\nname = \"weights-{at}\"\nfile = \"{file}\"\n");
            let to = if at + 1 == layers.len() {
                "{ output = \"SCORES\" }".to_owned()
            } else {
                buffers += &format!("[[buffer]]\nname = \"values-{at}\"\nbytes = {}\n", layer.values * 4);
                format!("{{ buffer = \"values-{at}\" }}")
            };
            let numbers: String = layer.numbers.iter().map(|number| format!(", {{ u32 = {number} }}")).collect();
            kernels += &format!(
                "[[kernel]]\nfunction = \"{}\"\ngrid = [{}]\nblock = [{}]\n\
                 arguments = [{from}, {{ buffer = \"weights-{at}\" }}, {to}{numbers}]\n",
                layer.function, layer.blocks, layer.threads
            );
            from = to;
        }
        write_kernels(version, &CODE, &(buffers + &kernels))
    }
}
