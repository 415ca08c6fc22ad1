//! The null model: takes anything, reads none of it, answers with a fixed pattern. It measures everything but computing.

use splitrpc_arena::Arena;
use splitrpc_wire::{DType, Shape, TensorDesc};

use super::{Batch, Execution, Factory, Launch, Runtime, RuntimeError};
use crate::model::spec::{ModelSpec, TensorSpec};

/// Makes instances of the null model.
#[derive(Clone, Debug)]
pub struct Null {
    spec: ModelSpec,
    answer: TensorDesc,
}

impl Null {
    /// A null model whose output has this many bytes.
    ///
    /// # Panics
    /// Never: one dimension always fits.
    #[must_use]
    pub fn new(response_bytes: u32) -> Null {
        let spec = ModelSpec {
            name: "null".into(),
            version: 1,
            max_batch: 0,
            inputs: vec![bytes("INPUT", None)],
            outputs: vec![bytes("OUTPUT", Some(response_bytes))],
            batching: None,
            priority_levels: 0,
            default_priority: 0,
            instances: 1,
            warmup_launches: 0,
        };
        let shape = Shape::new(&[response_bytes]).expect("one dimension is fewer than the most there can be");
        Null { spec, answer: TensorDesc { handle: 0, dtype: DType::Uint8, shape, bytes: response_bytes } }
    }
}

/// A row of bytes, as many as given or as many as there are.
pub(super) fn bytes(name: &str, count: Option<u32>) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: DType::Uint8, dims: vec![count] }
}

/// Byte `index` of the null model's output.
#[must_use]
pub fn pattern(index: usize) -> u8 {
    (index.wrapping_mul(7).wrapping_add(13) % 251) as u8
}

impl Factory for Null {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn execution(&self) -> Execution {
        Execution::Inline
    }

    fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError> {
        let pattern = (0..self.answer.bytes as usize).map(pattern).collect();
        Ok(Box::new(Instance { pattern, answer: self.answer, written: Vec::new() }))
    }
}

struct Instance {
    pattern: Vec<u8>,
    answer: TensorDesc,
    /// Which slots hold the pattern, by the index of their first row. Nothing else is ever written to this model's
    /// output slots, and an instance sees those of one arena.
    written: Vec<bool>,
}

impl Runtime for Instance {
    fn execute(&mut self, arena: &Arena, batch: &Batch, launch: &mut Launch) -> Result<(), RuntimeError> {
        for item in batch.items() {
            let Some(output) = item.output else {
                launch.push_owned(vec![(self.answer, self.pattern.clone())]);
                continue;
            };
            let span = arena.span(output, 0, 0, self.answer.bytes);
            let span = span.ok_or_else(|| RuntimeError("the output's slot is too small".into()))?;
            let slot = output.first as usize;
            if self.written.len() <= slot {
                self.written.resize(slot + 1, false);
            }
            if !std::mem::replace(&mut self.written[slot], true) {
                span.copy_from(&self.pattern);
            }
            launch.push_in_place([self.answer]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Output;
    use splitrpc_arena::PoolLayout;
    use splitrpc_ring::Run;

    #[test]
    fn answers_with_the_pattern() {
        let arena = Arena::new("null", &[(0, PoolLayout::new(&[4000], 1, 1).unwrap())], 0).unwrap();
        let mut null = Null::new(4000).instance().unwrap();
        let output = Run { pool: 0, rows: 1, first: 0, generation: 0 };
        let (mut batch, mut launch) = (Batch::default(), Launch::default());
        batch.push(output, 1, Some(output), &[]);
        batch.push(output, 1, None, &[]);
        null.execute(&arena, &batch, &mut launch).unwrap();
        let mut got = [0; 4000];
        arena.span(output, 0, 0, 4000).unwrap().copy_to(&mut got);
        assert_eq!((got[0], got[1], got[250], got[3999]), (13, 20, 6, 145));
        assert!(got.iter().enumerate().all(|(i, &byte)| byte == pattern(i)));
        let (at, tensors) = launch.take(0).unwrap();
        assert!(matches!(at, Output::InPlace));
        assert_eq!(tensors, [TensorDesc::fixed(0, DType::Uint8, Shape::new(&[4000]).unwrap()).unwrap()]);
        assert!(matches!(launch.take(1).unwrap().0, Output::Owned(buffers) if buffers == [got.to_vec()]));
        assert_eq!(launch.copied_bytes, 0);
    }

    #[test]
    fn a_slot_that_is_too_small_is_an_error() {
        let arena = Arena::new("null", &[(0, PoolLayout::new(&[64], 1, 1).unwrap())], 0).unwrap();
        let run = Run { pool: 0, rows: 1, first: 0, generation: 0 };
        let mut batch = Batch::default();
        batch.push(run, 1, Some(run), &[]);
        assert!(Null::new(65).instance().unwrap().execute(&arena, &batch, &mut Launch::default()).is_err());
    }
}
