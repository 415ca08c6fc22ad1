//! The protobuf messages of the bundled arm: `ModelInferRequest` and `ModelInferResponse` of the Open Inference
//! Protocol, read without copying and written without allocating, as a good generated codec would at its best.

use std::io::IoSlice;

use splitrpc_wire::{Path, Stage};

use crate::workloads::MAX_TENSORS;

/// Room for everything in a message but the tensors' data.
pub(crate) const HEAD_ROOM: usize = 4096;
/// Dimensions of a tensor, at most.
const MAX_DIMS: usize = 8;

/// A message that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What stands before each message: a flag for compression, never set here, and the length, as in gRPC.
pub(crate) const PREFIX_LEN: usize = 5;

/// The prefix of a message of `length` bytes.
pub(crate) fn prefix(length: usize) -> [u8; PREFIX_LEN] {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [0, a, b, c, d]
}

/// The length of the message after a prefix.
pub(crate) fn parse_prefix(prefix: &[u8; PREFIX_LEN]) -> Result<usize, Malformed> {
    let [flag, a, b, c, d] = *prefix;
    if flag == 0 { Ok(u32::from_be_bytes([a, b, c, d]) as usize) } else { Err(Malformed) }
}

/// A tensor's description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tensor<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its type.
    pub(crate) datatype: &'a str,
    dims: [i64; MAX_DIMS],
    rank: usize,
}

impl<'a> Tensor<'a> {
    /// A tensor of these dimensions, of which there are no more than may be.
    pub(crate) fn new(name: &'a str, datatype: &'a str, shape: &[u32]) -> Tensor<'a> {
        let mut dims = [0; MAX_DIMS];
        dims.iter_mut().zip(shape).for_each(|(dim, &of_shape)| *dim = of_shape.into());
        Tensor { name, datatype, dims, rank: shape.len().min(MAX_DIMS) }
    }

    /// Its dimensions.
    pub(crate) fn shape(&self) -> &[i64] {
        &self.dims[..self.rank]
    }

    fn write(&self, field: u32, out: &mut Vec<u8>) {
        let shape: usize = self.shape().iter().map(|&dim| varint_len(dim as u64)).sum();
        let length = text_len(self.name) + text_len(self.datatype) + 1 + varint_len(shape as u64) + shape;
        put_tag(field, LEN, out);
        put_varint(length as u64, out);
        put_bytes(1, self.name.as_bytes(), out);
        put_bytes(2, self.datatype.as_bytes(), out);
        put_tag(3, LEN, out);
        put_varint(shape as u64, out);
        for &dim in self.shape() {
            put_varint(dim as u64, out);
        }
    }

    fn parse(bytes: &'a [u8]) -> Result<Tensor<'a>, Malformed> {
        let mut tensor = Tensor::default();
        let mut fields = Fields { rest: bytes };
        while let Some((number, value)) = fields.step()? {
            match (number, value) {
                (1, Value::Bytes(name)) => tensor.name = text(name)?,
                (2, Value::Bytes(datatype)) => tensor.datatype = text(datatype)?,
                (3, Value::Varint(dim)) => tensor.push_dim(dim)?,
                (3, Value::Bytes(packed)) => {
                    let mut packed = Fields { rest: packed };
                    while !packed.rest.is_empty() {
                        tensor.push_dim(packed.varint()?)?;
                    }
                }
                _ => {}
            }
        }
        Ok(tensor)
    }

    fn push_dim(&mut self, dim: u64) -> Result<(), Malformed> {
        *self.dims.get_mut(self.rank).ok_or(Malformed)? = dim as i64;
        self.rank += 1;
        Ok(())
    }
}

/// A request or a response, borrowed from the bytes that it was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// The model.
    pub(crate) model: &'a str,
    tensors: [Tensor<'a>; MAX_TENSORS],
    tensor_count: usize,
    raw: [&'a [u8]; MAX_TENSORS],
    raw_count: usize,
    /// Responses: nanoseconds in the stages, and bytes copied.
    pub(crate) trace: [u64; TRACE.len()],
}

/// Which of the two messages: they number their fields apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `ModelInferRequest`.
    Request,
    /// `ModelInferResponse`.
    Response,
}

/// The response parameters that tell where the time went.
const TRACE: [&str; 7] =
    ["receive_ns", "place_ns", "copy_in_ns", "compute_ns", "copy_out_ns", "respond_ns", "copied_bytes"];
/// The stages among them, in the same order.
const STAGES: [Stage; 6] =
    [Stage::Receive, Stage::Place, Stage::CopyIn, Stage::Compute, Stage::CopyOut, Stage::Respond];
const PARAMETERS: u32 = 4;

impl Side {
    /// Field numbers of the tensors and of their raw contents.
    fn fields(self) -> (u32, u32) {
        match self {
            Side::Request => (5, 7),
            Side::Response => (5, 6),
        }
    }
}

impl<'a> Message<'a> {
    /// Reads a message.
    pub(crate) fn parse(side: Side, bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let (tensors, raw) = side.fields();
        let mut message = Message::default();
        let mut fields = Fields { rest: bytes };
        while let Some((number, value)) = fields.step()? {
            match value {
                Value::Bytes(name) if number == 1 => message.model = text(name)?,
                Value::Bytes(tensor) if number == tensors => {
                    *message.tensors.get_mut(message.tensor_count).ok_or(Malformed)? = Tensor::parse(tensor)?;
                    message.tensor_count += 1;
                }
                Value::Bytes(contents) if number == raw => {
                    *message.raw.get_mut(message.raw_count).ok_or(Malformed)? = contents;
                    message.raw_count += 1;
                }
                Value::Bytes(entry) if number == PARAMETERS => message.parse_parameter(entry)?,
                _ => {}
            }
        }
        Ok(message)
    }

    /// The tensors with their raw contents.
    pub(crate) fn tensors(&self) -> Result<impl Iterator<Item = (Tensor<'a>, &'a [u8])> + '_, Malformed> {
        if self.tensor_count != self.raw_count {
            return Err(Malformed);
        }
        Ok((0..self.raw_count).map(|i| (self.tensors[i], self.raw[i])))
    }

    /// The path that a response tells of.
    pub(crate) fn path(&self) -> Path {
        let [.., copied] = self.trace;
        let mut path = Path { copied_bytes: copied as u32, ..Path::default() };
        STAGES.into_iter().zip(self.trace).for_each(|(stage, nanos)| path.set_stage(stage, nanos));
        path
    }

    fn parse_parameter(&mut self, entry: &'a [u8]) -> Result<(), Malformed> {
        let (mut key, mut parameter) = ("", &[][..]);
        let mut fields = Fields { rest: entry };
        while let Some((number, value)) = fields.step()? {
            match (number, value) {
                (1, Value::Bytes(name)) => key = text(name)?,
                (2, Value::Bytes(inner)) => parameter = inner,
                _ => {}
            }
        }
        let Some(index) = TRACE.iter().position(|&name| name == key) else { return Ok(()) };
        let mut fields = Fields { rest: parameter };
        while let Some((number, value)) = fields.step()? {
            if let (5, Value::Varint(count)) = (number, value) {
                self.trace[index] = count;
            }
        }
        Ok(())
    }
}

/// All of a message but its raw contents, each of which follows a part of this. The prefix comes first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    bytes: Vec<u8>,
    /// Where each part ends, and the length of the contents that follow it.
    parts: [(usize, usize); MAX_TENSORS],
    count: usize,
}

impl Head {
    /// One with room for whatever it may hold.
    pub(crate) fn new() -> Head {
        Head { bytes: Vec::with_capacity(HEAD_ROOM), ..Head::default() }
    }

    /// Writes it anew, for tensors with contents of these lengths.
    pub(crate) fn write<'t>(
        &mut self,
        side: Side,
        model: &str,
        tensors: impl Iterator<Item = (Tensor<'t>, usize)> + Clone,
        trace: Option<&[u64; TRACE.len()]>,
    ) {
        let (of_tensors, of_raw) = side.fields();
        let out = &mut self.bytes;
        out.clear();
        out.extend_from_slice(&[0; PREFIX_LEN]);
        put_bytes(1, model.as_bytes(), out);
        for (name, &count) in TRACE.iter().zip(trace.into_iter().flatten()) {
            let inner = 1 + varint_len(count);
            put_tag(PARAMETERS, LEN, out);
            put_varint((text_len(name) + 2 + inner) as u64, out);
            put_bytes(1, name.as_bytes(), out);
            put_tag(2, LEN, out);
            put_varint(inner as u64, out);
            put_tag(5, VARINT, out);
            put_varint(count, out);
        }
        tensors.clone().for_each(|(tensor, _)| tensor.write(of_tensors, out));
        self.count = 0;
        for ((_, raw), part) in tensors.zip(&mut self.parts) {
            put_tag(of_raw, LEN, out);
            put_varint(raw as u64, out);
            *part = (out.len(), raw);
            self.count += 1;
        }
        let length = self.total() - PREFIX_LEN;
        self.bytes[..PREFIX_LEN].copy_from_slice(&prefix(length));
    }

    /// Bytes of prefix and message, the raw contents included.
    pub(crate) fn total(&self) -> usize {
        self.bytes.len() + self.parts[..self.count].iter().map(|part| part.1).sum::<usize>()
    }

    /// What is left of the message after its first `sent` bytes, its raw contents lying back to back in `data`.
    pub(crate) fn slices<'s>(&'s self, data: &'s [u8], sent: usize) -> ([IoSlice<'s>; 2 * MAX_TENSORS], usize) {
        let mut slices = [IoSlice::new(&[]); 2 * MAX_TENSORS];
        let (mut count, mut skip) = (0, sent);
        let mut push = |bytes: &'s [u8]| {
            let left = &bytes[skip.min(bytes.len())..];
            skip -= bytes.len() - left.len();
            if !left.is_empty() {
                slices[count] = IoSlice::new(left);
                count += 1;
            }
        };
        let (mut head, mut contents) = (0, data);
        for &(end, raw) in &self.parts[..self.count] {
            push(&self.bytes[head..end]);
            let (own, others) = contents.split_at(raw.min(contents.len()));
            push(own);
            (head, contents) = (end, others);
        }
        (slices, count)
    }
}

const VARINT: u32 = 0;
const LEN: u32 = 2;

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn step(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed),
        };
        Ok(Some((number, value)))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(Malformed)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

fn text_len(text: &str) -> usize {
    1 + varint_len(text.len() as u64) + text.len()
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_tag(field: u32, kind: u32, out: &mut Vec<u8>) {
    put_varint(u64::from(field << 3 | kind), out);
}

fn put_bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_tag(field, LEN, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    struct OracleTensor {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        datatype: String,
        #[prost(int64, repeated, tag = "3")]
        shape: Vec<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct OracleParameter {
        #[prost(uint64, tag = "5")]
        count: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct OracleRequest {
        #[prost(string, tag = "1")]
        model: String,
        #[prost(string, tag = "3")]
        id: String,
        #[prost(message, repeated, tag = "5")]
        inputs: Vec<OracleTensor>,
        #[prost(bytes = "vec", repeated, tag = "7")]
        raw: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct OracleResponse {
        #[prost(string, tag = "1")]
        model: String,
        #[prost(map = "string, message", tag = "4")]
        parameters: HashMap<String, OracleParameter>,
        #[prost(message, repeated, tag = "5")]
        outputs: Vec<OracleTensor>,
        #[prost(bytes = "vec", repeated, tag = "6")]
        raw: Vec<Vec<u8>>,
    }

    #[test]
    fn another_codec_reads_what_this_one_writes() {
        let trace = [1, 200, u64::MAX, 0, 5, 6, 7];
        let tensors = [(Tensor::new("A", "UINT8", &[3, 1_000]), 3_000), (Tensor::new("B", "INT32", &[1]), 4)];
        let mut head = Head::new();
        head.write(Side::Request, "another one", tensors.into_iter(), None);
        head.write(Side::Response, "null", tensors.into_iter(), Some(&trace));
        let data = [[5; 3_000].to_vec(), [6; 4].to_vec()].concat();
        let rest = |sent: usize| {
            let (slices, count) = head.slices(&data, sent);
            slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>()
        };
        let out = rest(0);
        assert_eq!(out.len(), head.total());
        // Wherever sending stops, it goes on with what is left.
        assert!((0..=out.len()).all(|sent| rest(sent) == out[sent..]));
        let length = parse_prefix(out.first_chunk().unwrap()).unwrap();
        assert_eq!(length, out.len() - PREFIX_LEN);
        let read = OracleResponse::decode(&out[PREFIX_LEN..]).unwrap();
        assert_eq!(read.model, "null");
        assert_eq!((&read.outputs[0].shape[..], &read.outputs[1].shape[..]), (&[3, 1_000][..], &[1][..]));
        assert_eq!((&read.raw[0][..], &read.raw[1][..]), (&data[..3_000], &data[3_000..]));
        assert_eq!(read.parameters["copy_in_ns"].count, u64::MAX);
        assert_eq!(Message::parse(Side::Response, &out[PREFIX_LEN..]).unwrap().trace, trace);
    }

    #[test]
    fn this_codec_reads_what_another_one_writes() {
        let tensor = |name: &str| OracleTensor { name: name.into(), datatype: "FP32".into(), shape: vec![1, 300, 2] };
        let request = OracleRequest {
            model: "m".into(),
            id: "an id, which is passed over".into(),
            inputs: vec![tensor("A"), tensor("B")],
            raw: vec![vec![1; 2_400], vec![2; 2_400]],
        };
        let bytes = request.encode_to_vec();
        let read = Message::parse(Side::Request, &bytes).unwrap();
        let tensors: Vec<_> = read.tensors().unwrap().collect();
        assert_eq!(tensors.len(), 2);
        assert_eq!((tensors[1].0.name, tensors[1].0.shape()), ("B", &[1, 300, 2][..]));
        assert_eq!(tensors[1].1, [2; 2_400]);
        for cut in 1..bytes.len() {
            if let Ok(part) = Message::parse(Side::Request, &bytes[..cut]) {
                assert!(part.raw_count < 2, "half a message passed for a whole one at {cut}");
            }
        }
    }
}
