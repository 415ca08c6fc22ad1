//! A stand-in for arena and orchestrator: slots are plain vectors, a model answers each input byte with its complement.

use std::collections::{HashMap, HashSet};

use splitrpc_arena::PoolLayout;
use splitrpc_engine::{Piece, Time};
use splitrpc_ring::{Completion, RequestKey, Run, Submission};
use splitrpc_wire::{DType, Manifest, ManifestWriter, Shape, Status, TensorDesc};

use super::rng::Rng;

/// Output pools begin here; input pools are the server's.
const OUTPUT_POOL: u16 = 1000;

pub struct Job {
    pub at: Time,
    pub completion: Completion,
    /// What the meta area of the output holds.
    pub manifest: Vec<u8>,
}

pub struct Host {
    layouts: Vec<(u16, PoolLayout)>,
    inputs: HashMap<(u16, u16), Vec<u8>>,
    outputs: HashMap<Run, Vec<Vec<u8>>>,
    next_output: u32,
    pub jobs: Vec<Job>,
    held: HashSet<RequestKey>,
    seen: HashSet<[u8; 16]>,
    pub cancels: u64,
}

impl Host {
    pub fn new(layouts: &[(u16, PoolLayout)]) -> Host {
        let mut inputs = HashMap::new();
        for (pool, layout) in layouts {
            for tensor in 0..layout.tensors() {
                let row = layout.row_bytes(tensor).unwrap() as usize;
                inputs.insert((*pool, tensor), vec![0; row * layout.slots() as usize]);
            }
        }
        Host {
            layouts: layouts.to_vec(),
            inputs,
            outputs: HashMap::new(),
            next_output: 1,
            jobs: Vec::new(),
            held: HashSet::new(),
            seen: HashSet::new(),
            cancels: 0,
        }
    }

    /// Bytes of a stretch of an input run.
    fn input(&mut self, piece: &Piece) -> &mut [u8] {
        let layout = &self.layouts.iter().find(|(p, _)| *p == piece.run.pool).unwrap().1;
        let row = layout.row_bytes(piece.tensor).unwrap();
        assert!(u64::from(piece.offset) + u64::from(piece.length) <= u64::from(row) * u64::from(piece.run.rows));
        let start = (piece.run.first * row + piece.offset) as usize;
        &mut self.inputs.get_mut(&(piece.run.pool, piece.tensor)).unwrap()[start..start + piece.length as usize]
    }

    /// The port's copy of payload into a slot.
    pub fn place(&mut self, piece: &Piece, data: &[u8]) {
        self.input(piece).copy_from_slice(data);
    }

    /// The port's read of a response.
    pub fn read(&mut self, piece: &Piece) -> Vec<u8> {
        if piece.run.pool >= OUTPUT_POOL {
            let tensor = &self.outputs[&piece.run][piece.tensor as usize];
            return tensor[piece.offset as usize..(piece.offset + piece.length) as usize].to_vec();
        }
        self.input(piece).to_vec()
    }

    /// Takes a submission. `once` says that the payload's mark must not have been seen before.
    pub fn submit(&mut self, rng: &mut Rng, now: Time, submission: &Submission, sizes: &[u32], once: bool) {
        match *submission {
            Submission::Submit { request, input, payload_bytes, .. } => {
                assert!(self.held.insert(request), "submitted twice: {request:?}");
                let tensors: Vec<Vec<u8>> = sizes
                    .iter()
                    .enumerate()
                    .map(|(t, &length)| self.read(&Piece { run: input, tensor: t as u16, offset: 0, length }))
                    .collect();
                assert_eq!(tensors.iter().map(Vec::len).sum::<usize>(), payload_bytes as usize);
                if let Some(mark) = tensors[0].first_chunk::<16>() {
                    let fresh = self.seen.insert(*mark);
                    assert!(fresh || !once, "the same request was executed twice");
                }
                let failed = rng.chance(30);
                let echo = !failed && rng.chance(300);
                let output = if failed {
                    Run::NONE
                } else if echo {
                    // The answer is the input itself, so it must become what the model would have said.
                    for (t, tensor) in tensors.iter().enumerate() {
                        let answer: Vec<u8> = tensor.iter().map(|b| !b).collect();
                        self.place(
                            &Piece { run: input, tensor: t as u16, offset: 0, length: answer.len() as u32 },
                            &answer,
                        );
                    }
                    input
                } else {
                    let run = Run { pool: OUTPUT_POOL, rows: 1, first: self.next_output, generation: 1 };
                    self.next_output += 1;
                    let answers = tensors.iter().map(|t| t.iter().map(|b| !b).collect()).collect();
                    self.outputs.insert(run, answers);
                    run
                };
                let mut writer = ManifestWriter::with_path();
                for (t, size) in sizes.iter().enumerate() {
                    let shape = Shape::new(&[*size]).unwrap();
                    writer.push(&TensorDesc::fixed(t as u16, DType::Uint8, shape).unwrap()).unwrap();
                }
                let status = if failed { Status::ModelFailed } else { Status::Ok };
                self.jobs.push(Job {
                    at: now + rng.below(3_000_000),
                    completion: Completion { request, status, output },
                    manifest: writer.finish().to_vec(),
                });
            }
            Submission::Cancel { .. } => self.cancels += 1,
            Submission::Release { output } => {
                assert!(self.outputs.remove(&output).is_some(), "released twice or never made: {output:?}");
            }
        }
    }

    pub fn next_at(&self) -> Time {
        self.jobs.iter().map(|j| j.at).min().unwrap_or(Time::NEVER)
    }

    pub fn finished(&mut self, now: Time) -> Option<Job> {
        let at = self.jobs.iter().position(|j| j.at <= now)?;
        let job = self.jobs.swap_remove(at);
        self.held.remove(&job.completion.request);
        Some(job)
    }

    pub fn assert_empty(&self) {
        assert!(self.outputs.is_empty(), "outputs never released: {:?}", self.outputs.keys());
        assert!(self.held.is_empty());
    }
}

pub fn parse(manifest: &[u8]) -> Manifest<'_> {
    Manifest::parse(manifest).unwrap()
}
