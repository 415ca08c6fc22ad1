//! tract, the embedded runtime: pure Rust, on the CPU, for ONNX models.
//!
//! Inputs are copied from their slots into tract's tensors, which is at once the compaction of a batch whose rows do not
//! lie together; outputs are copied into their slots, or into buffers of their own where their size was not known. Both
//! copies are counted and timed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use splitrpc_arena::Arena;
use splitrpc_wire::{Shape, TensorDesc};
use tract_onnx::prelude::{TValue, TVec, Tensor};

use super::{Batch, BatchItem, Execution, Factory, Launch, Runtime, RuntimeError};
use crate::model::config_pbtxt::Warmup;
use crate::model::spec::{ModelSpec, TensorSpec};
use compute::{Failure, Plan};
use data::{bytes_of, copy_in, plain, tensor, wire_dims};
use program::{Program, Shapes};

mod compute;
mod data;
pub(crate) mod probe;
pub(crate) mod program;

/// A loaded ONNX model.
#[derive(Clone, Debug)]
pub struct TractModel {
    model: Arc<Model>,
}

/// What the instances of one model share.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) file: PathBuf,
    pub(crate) program: Program,
    /// For each input the dimensions of a row in the graph, where they differ from those on the wire.
    pub(crate) input_rows: Vec<Option<Vec<u32>>>,
    /// The same of each output.
    pub(crate) output_rows: Vec<Option<Vec<u32>>>,
    pub(crate) warmup: Vec<Warmup>,
}

impl TractModel {
    pub(crate) fn new(model: Model) -> TractModel {
        TractModel { model: Arc::new(model) }
    }
}

impl Factory for TractModel {
    fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.model.file)
    }

    fn execution(&self) -> Execution {
        Execution::Threads
    }

    fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError> {
        let model = &self.model;
        model.warm_up()?;
        Ok(Box::new(Instance { model: model.clone(), prepared: Vec::new(), shapes: Vec::new(), tensors: Vec::new() }))
    }
}

impl Model {
    /// Dimensions of each input for so many rows, or `None` where they vary from request to request.
    pub(crate) fn shapes(&self, rows: u32) -> Option<Shapes> {
        let shape = |(input, graph): (&TensorSpec, &Option<Vec<u32>>)| {
            let row: Vec<u32> = match graph {
                Some(row) => row.clone(),
                None => self.spec.row_dims(input).iter().copied().collect::<Option<_>>()?,
            };
            Some(if self.spec.max_batch > 0 { [&[rows], &row[..]].concat() } else { row })
        };
        self.spec.inputs.iter().zip(&self.input_rows).map(shape).collect()
    }

    /// Makes the plans that launches will most often need, and computes the requests that the configuration asks for.
    fn warm_up(&self) -> Result<(), RuntimeError> {
        let most = self.spec.max_batch.max(1);
        let preferred = self.spec.batching.iter().flat_map(|b| &b.preferred).copied();
        for rows in preferred.chain([1, most]) {
            if let Some(shapes) = self.shapes(rows.into()) {
                self.program.exact(&shapes)?;
            }
        }
        for warmup in &self.warmup {
            let shapes = self.warmup_shapes(warmup);
            let plan = self.program.any(&shapes)?;
            let random = |name: &str| warmup.inputs.iter().any(|i| i.name == name && i.random);
            for _ in 0..warmup.count {
                let inputs = self.spec.inputs.iter().zip(&shapes).enumerate();
                let inputs = inputs.map(|(seed, (input, shape))| {
                    let seed = random(&input.name).then_some(seed as u64);
                    probe::made_up(input.dtype, shape, seed).map(TValue::from)
                });
                self.program.run(&plan, inputs.collect::<Result<_, _>>()?)?;
            }
        }
        Ok(())
    }

    /// The repository has checked that every input is there and fits.
    fn warmup_shapes(&self, warmup: &Warmup) -> Shapes {
        let shape = |(input, graph): (&TensorSpec, &Option<Vec<u32>>)| {
            let given = warmup.inputs.iter().find(|i| i.name == input.name).map_or(&[][..], |i| &i.dims);
            let row = graph.as_deref().unwrap_or(given);
            if self.spec.max_batch > 0 { [&[warmup.batch_size.into()], row].concat() } else { row.to_vec() }
        };
        self.spec.inputs.iter().zip(&self.input_rows).map(shape).collect()
    }
}

/// One instance: its own input tensors, kept between launches.
struct Instance {
    model: Arc<Model>,
    /// Most recently used last.
    prepared: Vec<Prepared>,
    /// Scratch: the shapes of the launch at hand.
    shapes: Shapes,
    /// Scratch: the outputs of the item at hand.
    tensors: Vec<TensorDesc>,
}

/// Tensors for inputs of certain shapes, and what computes them.
struct Prepared {
    shapes: Shapes,
    plan: Plan,
    inputs: Vec<Arc<Tensor>>,
    bytes: usize,
}

/// Prepared shapes that an instance keeps.
const MOST_PREPARED: usize = 32;
/// Bytes of input tensors that an instance keeps, apart from the largest.
const MOST_PREPARED_BYTES: usize = 64 << 20;

impl Runtime for Instance {
    fn execute(&mut self, arena: &Arena, batch: &Batch, launch: &mut Launch) -> Result<(), RuntimeError> {
        let (items, batched) = (batch.items(), self.model.spec.max_batch > 0);
        if batched && items.len() > 1 {
            if self.launch(arena, batch, items, batch.rows(), launch).is_ok() {
                return Ok(());
            }
            // What one request brought must not fail the others: each shows alone whose fault it was.
            launch.clear();
        }
        for item in items {
            let rows = if batched { item.rows.into() } else { 1 };
            if let Err(failure) = self.launch(arena, batch, std::slice::from_ref(item), rows, launch) {
                launch.push_failed(failure.status, format!("model {:?}: {}", self.model.spec.name, failure.text));
            }
        }
        Ok(())
    }
}

impl Instance {
    fn launch(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        items: &[BatchItem],
        rows: u32,
        launch: &mut Launch,
    ) -> Result<(), Failure> {
        let Some(first) = items.first() else { return Ok(()) };
        self.set_shapes(batch.tensors(first), rows)?;
        let start = Instant::now();
        let prepared = self.prepare(batch, items)?;
        let copied_in = copy_in(prepared, arena, batch, items)?;
        let computing = Instant::now();
        let outputs = self.compute()?;
        let computed = Instant::now();
        let copied_out = self.copy_out(&outputs, arena, items, rows, launch)?;
        launch.copy_in_ns += (computing - start).as_nanos() as u64;
        launch.compute_ns += (computed - computing).as_nanos() as u64;
        launch.copy_out_ns += computed.elapsed().as_nanos() as u64;
        launch.copied_bytes += copied_in + copied_out;
        Ok(())
    }

    fn set_shapes(&mut self, tensors: &[TensorDesc], rows: u32) -> Result<(), RuntimeError> {
        let model = &self.model;
        if tensors.len() != model.spec.inputs.len() {
            return fail(format!("{} inputs, where the model takes {}", tensors.len(), model.spec.inputs.len()));
        }
        self.shapes.resize_with(tensors.len(), Vec::new);
        for ((shape, tensor), row) in self.shapes.iter_mut().zip(tensors).zip(&model.input_rows) {
            shape.clear();
            let dims = tensor.shape.dims();
            let dims = if model.spec.max_batch > 0 {
                shape.push(rows);
                dims.get(1..).unwrap_or(&[])
            } else {
                dims
            };
            shape.extend_from_slice(row.as_deref().unwrap_or(dims));
        }
        Ok(())
    }

    /// Finds or makes what these shapes need and moves it to the end of the list.
    fn prepare(&mut self, batch: &Batch, items: &[BatchItem]) -> Result<&mut Prepared, RuntimeError> {
        if let Some(at) = self.prepared.iter().position(|p| p.shapes == self.shapes) {
            self.prepared[at..].rotate_left(1);
        } else {
            let spec = &self.model.spec;
            let mut inputs = Vec::with_capacity(self.shapes.len());
            for (t, (shape, input)) in self.shapes.iter().zip(&spec.inputs).enumerate() {
                // Nothing is allocated that the requests did not bring.
                let brought: u64 = items.iter().map(|i| u64::from(batch.tensors(i)[t].bytes)).sum();
                if bytes_of(shape, input.dtype) != Some(brought) {
                    return fail(format!("input {:?} has {brought} bytes, which is not shape {shape:?}", input.name));
                }
                inputs.push(Arc::new(tensor(input.dtype, shape)?));
            }
            let bytes = inputs.iter().map(|t| t.as_bytes().len()).sum();
            let plan = self.model.program.any(&self.shapes)?;
            let mut kept: usize = self.prepared.iter().map(|p| p.bytes).sum();
            while !self.prepared.is_empty()
                && (self.prepared.len() >= MOST_PREPARED || kept + bytes > MOST_PREPARED_BYTES)
            {
                kept -= self.prepared.remove(0).bytes;
            }
            self.prepared.push(Prepared { shapes: self.shapes.clone(), plan, inputs, bytes });
        }
        self.prepared.last_mut().ok_or_else(|| RuntimeError("nothing was prepared".into()))
    }

    /// Computes what was prepared last.
    fn compute(&mut self) -> Result<TVec<TValue>, Failure> {
        let Some(prepared) = self.prepared.last_mut() else { return Ok(fail("nothing was prepared")?) };
        let inputs = || prepared.inputs.iter().cloned().map(TValue::from_const).collect();
        let program = &self.model.program;
        let first = program.run(&prepared.plan, inputs());
        if first.is_ok() || !program.is_general(&prepared.plan) {
            return first;
        }
        // The general plan is a convenience; where it fails, the exact one decides who is at fault.
        let exact = program.exact(&prepared.shapes)?;
        let outputs = program.run(&exact, inputs())?;
        program.distrust_general();
        prepared.plan = exact;
        Ok(outputs)
    }

    fn copy_out(
        &mut self,
        outputs: &[TValue],
        arena: &Arena,
        items: &[BatchItem],
        rows: u32,
        launch: &mut Launch,
    ) -> Result<u64, RuntimeError> {
        let spec = &self.model.spec;
        if outputs.len() != spec.outputs.len() {
            return fail(format!("the model gave {} outputs instead of {}", outputs.len(), spec.outputs.len()));
        }
        let mut cast = TVec::new();
        for (output, declared) in outputs.iter().zip(&spec.outputs) {
            cast.push(plain(output, declared)?);
        }
        let mut copied = 0;
        let mut row = 0;
        for item in items {
            self.tensors.clear();
            let mut owned = Vec::new();
            for (t, ((value, declared), graph)) in
                cast.iter().zip(&spec.outputs).zip(&self.model.output_rows).enumerate()
            {
                let dims = wire_dims(spec, declared, graph.as_deref(), value.shape(), rows, item.rows)?;
                let shape = Shape::new(&dims);
                let shape =
                    shape.map_err(|_| RuntimeError(format!("output {:?} has too many dimensions", declared.name)))?;
                let desc = TensorDesc::fixed(t as u16, declared.dtype, shape);
                let desc =
                    desc.map_err(|_| RuntimeError(format!("output {:?} is too large to send", declared.name)))?;
                let all = value.as_bytes();
                let part = if spec.max_batch > 0 {
                    let per_row = all.len() / rows.max(1) as usize;
                    all.get(row as usize * per_row..).and_then(|rest| rest.get(..desc.bytes as usize))
                } else {
                    Some(all)
                };
                let part = part.filter(|part| part.len() == desc.bytes as usize);
                let part = part.ok_or_else(|| RuntimeError(format!("output {:?} is too short", declared.name)))?;
                match item.output {
                    Some(_) if part.is_empty() => {}
                    Some(run) => {
                        let span = arena.span(run, desc.handle, 0, desc.bytes);
                        let span =
                            span.ok_or_else(|| RuntimeError(format!("output {:?} exceeds its slot", declared.name)))?;
                        span.copy_from(part);
                    }
                    None => owned.push((desc, part.to_vec())),
                }
                copied += part.len() as u64;
                self.tensors.push(desc);
            }
            match item.output {
                Some(_) => launch.push_in_place(self.tensors.iter().copied()),
                None => launch.push_owned(owned),
            }
            row += u32::from(item.rows);
        }
        Ok(copied)
    }
}

fn fail<T>(why: impl Into<String>) -> Result<T, RuntimeError> {
    Err(RuntimeError(why.into()))
}
