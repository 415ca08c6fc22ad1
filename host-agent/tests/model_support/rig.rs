//! A loaded model on slots of an arena, without the rest of the server.

use host_agent::runtime::{Batch, Factory, Launch, Output, Runtime};
use splitrpc_arena::{Arena, PoolLayout};
use splitrpc_ring::Run;
use splitrpc_wire::{DType, Shape, Status, TensorDesc};

/// Bytes of a variable tensor's slot.
const CLASS_BYTES: u32 = 1 << 16;
const WINDOWS: u32 = 8;

/// A tensor as a client has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    pub dtype: DType,
    pub dims: Vec<u32>,
    pub bytes: Vec<u8>,
}

impl Data {
    pub fn f32(dims: &[u32], values: &[f32]) -> Data {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Data { dtype: DType::Fp32, dims: dims.to_vec(), bytes }
    }

    pub fn i64(dims: &[u32], values: &[i64]) -> Data {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Data { dtype: DType::Int64, dims: dims.to_vec(), bytes }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, DType::Fp32);
        let (words, rest) = self.bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        words.iter().map(|w| f32::from_le_bytes(*w)).collect()
    }

    pub fn to_i64(&self) -> Vec<i64> {
        assert_eq!(self.dtype, DType::Int64);
        self.bytes.as_chunks::<8>().0.iter().map(|w| i64::from_le_bytes(*w)).collect()
    }
}

/// What one request brings.
pub struct Request {
    pub rows: u16,
    pub inputs: Vec<Data>,
}

/// A request without a batch dimension.
pub fn plain(inputs: Vec<Data>) -> Request {
    Request { rows: 1, inputs }
}

/// How a request failed, and what its client is told.
pub type Failure = (Status, String);

/// What a launch gave.
pub struct Answer {
    /// For each request its outputs.
    pub outputs: Vec<Vec<Data>>,
    /// Bytes that the runtime says it copied.
    pub copied_bytes: u64,
    /// Whether the outputs were in slots.
    pub in_place: bool,
}

pub struct Rig {
    arena: Arena,
    runtime: Box<dyn Runtime>,
    max_batch: u16,
    fixed_outputs: bool,
    outputs: Vec<u32>,
}

impl Rig {
    pub fn new(model: &dyn Factory) -> Rig {
        Rig::with_slots(model, CLASS_BYTES)
    }

    /// As [`Rig::new`], with so many bytes for tensors whose size varies.
    pub fn with_slots(model: &dyn Factory, class_bytes: u32) -> Rig {
        let spec = model.spec();
        let sizes = |tensors: &[_]| -> Vec<Option<u32>> { tensors.iter().map(|t| spec.row_bytes(t)).collect() };
        let inputs: Vec<u32> = sizes(&spec.inputs).into_iter().map(|b| b.unwrap_or(class_bytes)).collect();
        let outputs = sizes(&spec.outputs);
        let fixed_outputs = outputs.iter().all(Option::is_some);
        let outputs: Vec<u32> = outputs.into_iter().map(|b| b.unwrap_or(1).max(1)).collect();
        let layout = |rows: &[u32]| PoolLayout::new(rows, spec.max_batch.max(1), WINDOWS).unwrap();
        let inputs: Vec<u32> = inputs.into_iter().map(|b| b.max(1)).collect();
        let arena = Arena::new("rig", &[(0, layout(&inputs)), (1, layout(&outputs))], 0).unwrap();
        let max_batch = spec.max_batch;
        Rig { arena, runtime: model.instance().unwrap(), max_batch, fixed_outputs, outputs }
    }

    /// Computes requests in one launch, all of which must succeed.
    pub fn launch(&mut self, requests: &[Request]) -> Result<Answer, Failure> {
        let (each, copied_bytes, in_place) = self.each(requests);
        Ok(Answer { outputs: each.into_iter().collect::<Result<_, _>>()?, copied_bytes, in_place })
    }

    /// Computes requests in one launch. Each lies in a window of its own, so that a batch is never contiguous. Returns what
    /// became of each, the bytes that the runtime copied, and whether the outputs were in slots.
    pub fn each(&mut self, requests: &[Request]) -> (Vec<Result<Vec<Data>, Failure>>, u64, bool) {
        let mut batch = Batch::default();
        let mut runs = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            // The last rows of the window: an offset that is not zero, where the window has room for one.
            let window = u32::from(self.max_batch.max(1));
            let first = (index as u32 + 1) * window - u32::from(request.rows);
            let run = |pool| Run { pool, rows: request.rows, first, generation: 0 };
            let mut tensors = Vec::new();
            for (t, data) in request.inputs.iter().enumerate() {
                let desc = TensorDesc::fixed(t as u16, data.dtype, Shape::new(&data.dims).unwrap()).unwrap();
                assert_eq!(desc.bytes as usize, data.bytes.len());
                if desc.bytes > 0 {
                    self.arena.span(run(0), t as u16, 0, desc.bytes).expect("the rig's slots").copy_from(&data.bytes);
                }
                tensors.push(desc);
            }
            let output = self.fixed_outputs.then_some(run(1));
            for (t, bytes) in self.outputs.iter().enumerate().filter(|_| output.is_some()) {
                let span = self.arena.span(run(1), t as u16, 0, bytes * u32::from(request.rows));
                span.expect("the rig's slots").fill(0xAA);
            }
            batch.push(run(0), request.rows, output, &tensors);
            runs.push(run(1));
        }
        let mut launch = Launch::default();
        self.runtime.execute(&self.arena, &batch, &mut launch).unwrap();
        assert_eq!(launch.len(), requests.len());
        let (copied_bytes, mut in_place, mut outputs) = (launch.copied_bytes, false, Vec::new());
        for (index, run) in runs.iter().enumerate() {
            let (at, tensors) = launch.take(index).unwrap();
            assert!(tensors.iter().enumerate().all(|(t, desc)| usize::from(desc.handle) == t));
            let read = |desc: &TensorDesc| {
                let mut bytes = vec![0; desc.bytes as usize];
                if desc.bytes > 0 {
                    self.arena.span(*run, desc.handle, 0, desc.bytes).unwrap().copy_to(&mut bytes);
                }
                bytes
            };
            let buffers = match at {
                Output::InPlace => {
                    in_place = true;
                    tensors.iter().map(read).collect()
                }
                Output::Owned(buffers) => buffers,
                Output::Failed(status, text) => {
                    outputs.push(Err((status, text)));
                    continue;
                }
                Output::Input => panic!("tract never answers with its input"),
            };
            let data = tensors.iter().zip(buffers).map(|(desc, bytes)| Data {
                dtype: desc.dtype,
                dims: desc.shape.dims().to_vec(),
                bytes,
            });
            outputs.push(Ok(data.collect()));
        }
        (outputs, copied_bytes, in_place)
    }

    /// Computes one request.
    pub fn one(&mut self, request: Request) -> Result<Vec<Data>, Failure> {
        self.launch(&[request]).map(|mut answer| answer.outputs.remove(0))
    }
}
