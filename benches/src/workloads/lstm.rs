//! An LSTM of 256 units over 16 steps of 128 features, which answers with its last state.

use std::io;
use std::path::Path;

use super::exchange::{Tensor, Tolerance};
use super::model::{Code, Model, bytes, floats, fp32, uniform, write_kernels};

pub(super) const CODE: Code = Code { name: "lstm.ptx", text: include_str!("../../workloads/lstm.ptx") };
const SEED: u64 = 7;
const STEPS: usize = 16;
const FEATURES: usize = 128;
const UNITS: usize = 256;
/// Numbers that a gate of a unit has: one for each feature, one for each unit, and the bias.
const GATE: usize = FEATURES + UNITS + 1;

fn weights() -> Vec<f32> {
    uniform(SEED, UNITS * 4 * GATE, (UNITS as f32).sqrt().recip())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The state after a step, whose unit has the four gates input, forget, cell and output, each with a number for each feature,
/// one for each unit, and the bias.
pub(super) fn step(features: &[f32], state: &[f64], cells: &mut [f64], weights: &[f32]) -> Vec<f64> {
    let gate_len = features.len() + state.len() + 1;
    let values = || features.iter().map(|&x| f64::from(x)).chain(state.iter().copied());
    let gate = |row: &[f32]| {
        let weighed: f64 = row.iter().zip(values()).map(|(weight, value)| f64::from(*weight) * value).sum();
        weighed + f64::from(row[gate_len - 1])
    };
    let unit = |(cell, own): (&mut f64, &[f32])| {
        let mut gates = own.chunks_exact(gate_len).map(gate);
        let mut next = || gates.next().unwrap_or_default();
        let (input, forget, candidate, output) = (next(), next(), next(), next());
        *cell = sigmoid(forget) * *cell + sigmoid(input) * candidate.tanh();
        sigmoid(output) * cell.tanh()
    };
    cells.iter_mut().zip(weights.chunks_exact(4 * gate_len)).map(unit).collect()
}

/// The network.
pub(super) struct Lstm;

impl Model for Lstm {
    fn inputs(&self) -> Vec<Tensor> {
        vec![fp32("SEQUENCE", &[STEPS as u32, FEATURES as u32])]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![fp32("STATE", &[UNITS as u32])]
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance { fp32: 1e-5, ..Tolerance::default() }
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let (sequence, weights) = (floats(request), weights());
        let (mut state, mut cells) = (vec![0.0; UNITS], vec![0.0; UNITS]);
        for features in sequence.chunks_exact(FEATURES) {
            state = step(features, &state, &mut cells, &weights);
        }
        bytes(&state.into_iter().map(|value| value as f32).collect::<Vec<f32>>())
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        let mut text = "[[buffer]]\nname = \"weights\"\nfile = \"weights.bin\"\n".to_owned();
        for name in ["even", "odd", "cells"] {
            text += &format!("[[buffer]]\nname = \"{name}\"\nbytes = {}\n", UNITS * 4);
        }
        let buffer = |step: usize| format!("{{ buffer = \"{}\" }}", ["even", "odd"][step % 2]);
        for step in 0..STEPS {
            let after = if step + 1 == STEPS { "{ output = \"STATE\" }".to_owned() } else { buffer(step) };
            text += &format!(
                "[[kernel]]\nfunction = \"lstm_step\"\ngrid = [{UNITS}]\nblock = [128]\n\
                 arguments = [{{ input = \"SEQUENCE\" }}, {{ buffer = \"weights\" }}, {}, {{ buffer = \"cells\" }}, {after}, \
                 {{ u32 = {step} }}, {{ u32 = {} }}]\n",
                buffer(step + 1),
                u32::from(step == 0)
            );
        }
        std::fs::write(version.join("weights.bin"), bytes(&weights()))?;
        write_kernels(version, &CODE, &text)
    }
}
