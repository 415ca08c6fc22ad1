//! What comes back.

use std::time::{Duration, Instant};

use splitrpc_wire::{Manifest, Path, TensorDesc, WireError};

use crate::{Error, Failure, RequestId};

/// What a poll found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The session is open. Comes once.
    Ready,
    /// The model catalogue was fetched again.
    Catalogue,
    /// A request succeeded.
    Response(Response),
    /// A request ended without a result.
    Failed(Failure),
    /// The server answered a ping.
    Pong {
        /// From the ping's submission to its answer.
        elapsed: Duration,
    },
}

/// The answer to a request: its outputs, the path it took, and what the client's own clock says.
///
/// Give it back with `recycle` when done, and its memory serves a later response.
#[derive(Debug)]
pub struct Response(Box<Inner>);

#[derive(Debug)]
struct Inner {
    id: RequestId,
    model: u16,
    tensors: Vec<TensorDesc>,
    path: Option<Path>,
    /// All bytes are initialised; only `len` of them belong to this response.
    data: Vec<u8>,
    len: usize,
    received: usize,
    submitted: Instant,
    first_byte: Instant,
    completed: Instant,
}

/// One output of a response.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Handle (index among the model's outputs), type, shape, bytes.
    pub desc: TensorDesc,
    /// The bytes: little-endian, row-major.
    pub data: &'a [u8],
}

impl Output<'_> {
    /// The elements of an FP32 output; `None` for other types.
    #[must_use]
    pub fn f32s(&self) -> Option<impl Iterator<Item = f32> + '_> {
        (self.desc.dtype == splitrpc_wire::DType::Fp32)
            .then(|| self.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)))
    }
}

impl Response {
    /// The request that this answers.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.0.id
    }

    /// The model's handle.
    #[must_use]
    pub fn model(&self) -> u16 {
        self.0.model
    }

    /// The outputs in the order of the response's manifest.
    pub fn outputs(&self) -> impl Iterator<Item = Output<'_>> {
        let mut at = 0;
        self.0.tensors.iter().map(move |desc| {
            let from = at;
            at += desc.bytes as usize;
            Output { desc: *desc, data: &self.0.data[from..at] }
        })
    }

    /// The output of this handle.
    #[must_use]
    pub fn output(&self, handle: u16) -> Option<Output<'_>> {
        self.outputs().find(|o| o.desc.handle == handle)
    }

    /// All outputs' bytes, back to back.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.0.data[..self.0.len]
    }

    /// The path that the request took and its time in each stage, as the server tells it.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_ref()
    }

    /// From submission to the last byte, by this machine's clock.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.completed - self.0.submitted
    }

    /// When the request was submitted.
    #[must_use]
    pub fn submitted(&self) -> Instant {
        self.0.submitted
    }

    /// When the head of the response had arrived.
    #[must_use]
    pub fn first_byte(&self) -> Instant {
        self.0.first_byte
    }

    /// When its last byte had arrived.
    #[must_use]
    pub fn completed(&self) -> Instant {
        self.0.completed
    }
}

// The connections' side: a response is first landed in, then published.
impl Response {
    pub(crate) fn empty() -> Response {
        let now = Instant::now();
        Response(Box::new(Inner {
            id: RequestId(0),
            model: 0,
            tensors: Vec::new(),
            path: None,
            data: Vec::new(),
            len: 0,
            received: 0,
            submitted: now,
            first_byte: now,
            completed: now,
        }))
    }

    /// Takes over a checked manifest: from here on the data area is exactly as long as the manifest says. The first
    /// `landed` bytes that are already in the buffer stay.
    pub(crate) fn begin(
        &mut self,
        id: u64,
        model: u16,
        submitted: Instant,
        now: Instant,
        manifest: &Manifest<'_>,
        landed: usize,
    ) {
        let inner = &mut *self.0;
        inner.id = RequestId(id);
        inner.model = model;
        inner.submitted = submitted;
        inner.first_byte = now;
        inner.completed = now;
        inner.path = manifest.path().copied();
        inner.tensors.clear();
        inner.tensors.extend(manifest.tensors());
        inner.len = manifest.data_len() as usize;
        inner.received = landed;
        self.grow(manifest.data_len() as usize, landed);
    }

    /// Makes at least `len` bytes writable, keeping the first `keep`.
    pub(crate) fn grow(&mut self, len: usize, keep: usize) {
        if self.0.data.len() < len {
            // Fresh zeroed memory is mapped by the system as bytes arrive, so a length that the server only claims
            // costs nothing yet.
            let mut data = vec![0; len];
            data[..keep].copy_from_slice(&self.0.data[..keep]);
            self.0.data = data;
        }
    }

    /// Room for data before the manifest is known.
    pub(crate) fn landing(&mut self, len: usize) -> &mut [u8] {
        &mut self.0.data[..len]
    }

    /// What has not arrived yet.
    pub(crate) fn rest(&mut self) -> &mut [u8] {
        &mut self.0.data[self.0.received..self.0.len]
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.0.received += bytes;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.0.received == self.0.len
    }

    pub(crate) fn finish(&mut self, now: Instant) {
        self.0.completed = now;
    }

    /// Where bytes of a tensor begin in the data area; `None` where there are none such.
    pub(crate) fn position(&self, tensor: u16, offset: u32, length: u32) -> Option<usize> {
        let tensors = &self.0.tensors;
        let desc = tensors.get(usize::from(tensor))?;
        let inside = offset.checked_add(length).is_some_and(|end| end <= desc.bytes);
        let base: usize = tensors[..usize::from(tensor)].iter().map(|t| t.bytes as usize).sum();
        inside.then_some(base + offset as usize)
    }

    /// A stretch of the data area, inside it by the caller's checks.
    pub(crate) fn span(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.0.data[at..at + len]
    }

    /// Bytes that the tensor has.
    pub(crate) fn tensor_len(&self, tensor: u16) -> Option<u32> {
        self.0.tensors.get(usize::from(tensor)).map(|t| t.bytes)
    }

    /// Checks that `length` bytes at `offset` of tensor `tensor` are the next ones to arrive.
    pub(crate) fn check_next(&self, tensor: u16, offset: u32, length: u32) -> Result<(), Error> {
        match self.position(tensor, offset, length) {
            Some(at) if at == self.0.received => Ok(()),
            _ => Err(Error::Protocol { error: WireError::BadExtent, context: "response data" }),
        }
    }
}
