//! The echo model: the answer is the request, sent from the slots in which it arrived.

use splitrpc_arena::Arena;

use super::null::bytes;
use super::{Batch, Execution, Factory, Launch, Runtime, RuntimeError};
use crate::model::spec::ModelSpec;

/// Makes instances of the echo model.
#[derive(Clone, Debug)]
pub struct Echo {
    spec: ModelSpec,
}

impl Default for Echo {
    fn default() -> Self {
        Echo::new()
    }
}

impl Echo {
    /// The echo model.
    #[must_use]
    pub fn new() -> Echo {
        Echo {
            spec: ModelSpec {
                name: "echo".into(),
                version: 1,
                max_batch: 0,
                inputs: vec![bytes("INPUT", None)],
                outputs: vec![bytes("OUTPUT", None)],
                batching: None,
                priority_levels: 0,
                default_priority: 0,
                instances: 1,
                warmup_launches: 0,
            },
        }
    }
}

impl Factory for Echo {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn execution(&self) -> Execution {
        Execution::Inline
    }

    fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError> {
        Ok(Box::new(Instance))
    }
}

struct Instance;

impl Runtime for Instance {
    fn execute(&mut self, _: &Arena, batch: &Batch, launch: &mut Launch) -> Result<(), RuntimeError> {
        for item in batch.items() {
            launch.push_input(batch.tensors(item).iter().copied());
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
    use splitrpc_wire::{DType, Shape, TensorDesc};

    #[test]
    fn every_item_is_its_own_answer() {
        let arena = Arena::new("echo", &[(0, PoolLayout::new(&[64], 1, 2).unwrap())], 0).unwrap();
        let tensor = |n| TensorDesc::fixed(0, DType::Uint8, Shape::new(&[n]).unwrap()).unwrap();
        let (mut batch, mut launch) = (Batch::default(), Launch::default());
        for n in [5, 60] {
            batch.push(Run { pool: 0, rows: 1, first: n / 60, generation: 0 }, 1, None, &[tensor(n)]);
        }
        Echo::new().instance().unwrap().execute(&arena, &batch, &mut launch).unwrap();
        for (index, n) in [5, 60].into_iter().enumerate() {
            let (at, tensors) = launch.take(index).unwrap();
            assert!(matches!(at, Output::Input));
            assert_eq!(tensors, [tensor(n)]);
        }
        assert_eq!((launch.len(), launch.copied_bytes), (2, 0));
    }
}
