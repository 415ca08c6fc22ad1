//! What a request over datagrams needs until it ends: its data, to be sent as often as it takes, and its response.

use std::time::Instant;

use bytes::Bytes;
use splitrpc_ring::RequestKey;

use crate::{Data, RequestId, Response, Tensor};

/// The calls in flight, each at the index of its engine record.
#[derive(Debug)]
pub(crate) struct Calls(Vec<Call>);

#[derive(Debug)]
pub(crate) struct Call {
    key: Option<RequestKey>,
    pub(crate) model: u16,
    pub(crate) submitted: Instant,
    /// Copies of what was lent, in a buffer that is reused.
    lent: Vec<u8>,
    parts: Vec<Part>,
    /// From when its manifest has come.
    pub(crate) response: Option<Response>,
    /// What the server's frames call the request.
    pub(crate) wire_id: u64,
    /// Nothing at or behind this place of the response has arrived: tensor and offset.
    pub(crate) frontier: (u16, u32),
}

#[derive(Debug)]
enum Part {
    Lent { from: usize, len: usize },
    Shared(Bytes),
}

impl Calls {
    pub(crate) fn new(count: usize) -> Calls {
        let now = Instant::now();
        let call = || Call {
            key: None,
            model: 0,
            submitted: now,
            lent: Vec::new(),
            parts: Vec::new(),
            response: None,
            wire_id: 0,
            frontier: (0, 0),
        };
        Calls((0..count).map(|_| call()).collect())
    }

    /// Keeps a request's data.
    pub(crate) fn start(&mut self, key: RequestKey, model: u16, now: Instant, tensors: &[Tensor<'_>]) {
        let Some(call) = self.0.get_mut(key.index as usize) else { return };
        call.key = Some(key);
        call.model = model;
        call.submitted = now;
        (call.wire_id, call.frontier) = (0, (0, 0));
        for tensor in tensors {
            match tensor.data {
                Data::Borrowed(bytes) => {
                    let from = call.lent.len();
                    call.lent.extend_from_slice(bytes);
                    call.parts.push(Part::Lent { from, len: bytes.len() });
                }
                Data::Shared(bytes) => call.parts.push(Part::Shared(bytes.clone())),
            }
        }
    }

    pub(crate) fn get(&self, key: RequestKey) -> Option<&Call> {
        self.0.get(key.index as usize).filter(|c| c.key == Some(key))
    }

    pub(crate) fn get_mut(&mut self, key: RequestKey) -> Option<&mut Call> {
        self.0.get_mut(key.index as usize).filter(|c| c.key == Some(key))
    }

    /// Ends a call. Returns its response, as far as it has come.
    pub(crate) fn end(&mut self, key: RequestKey) -> Option<Response> {
        let call = self.get_mut(key)?;
        call.key = None;
        call.lent.clear();
        call.parts.clear();
        call.response.take()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = RequestKey> + '_ {
        self.0.iter().filter_map(|c| c.key)
    }
}

impl Call {
    /// A stretch of one of the request's tensors.
    pub(crate) fn data(&self, tensor: u16, offset: u32, length: u32) -> Option<&[u8]> {
        let bytes = match self.parts.get(usize::from(tensor))? {
            Part::Lent { from, len } => &self.lent[*from..from + len],
            Part::Shared(bytes) => bytes,
        };
        bytes.get(offset as usize..)?.get(..length as usize)
    }
}

/// Ids are made of the engine's keys, so that one gives the other.
pub(crate) fn id_of(key: RequestKey) -> RequestId {
    RequestId(u64::from(key.generation) << 32 | (u64::from(key.index) + 1))
}

pub(crate) fn key_of(id: RequestId) -> Option<RequestKey> {
    Some(RequestKey { index: (id.0 as u32).checked_sub(1)?, generation: (id.0 >> 32) as u32 })
}
