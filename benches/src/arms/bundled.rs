//! The bundled way, done as well as it can be done over TCP: a whole length-prefixed protobuf message is received into a
//! heap buffer that is used again, decoded without copying, its tensors copied to the model's input, and the answer
//! encoded and sent with one gathering write. Nothing is allocated once the buffers have grown; what remains beside the
//! floor is what bundling costs: the second copy and the codec. The model's input is one for all connections, since the
//! model takes one request at a time: one for each would leave the caches sooner than it had to. Each has an output of its
//! own, which may still be on its way when the next one is computed.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use host_agent::model::spec::{ModelSpec, TensorSpec};
use host_agent::runtime::Factory as _;
use host_agent::runtime::null::Null;
use splitrpc_cuda::PinnedBuffer;
use splitrpc_wire::path::{Link, Memory, Mover, Port};
use splitrpc_wire::{MAX_RANK, Path};

use super::floor_tcp::now_or_later;
use super::gpu::{Device, Times};
use super::protobuf::{self, HEAD_ROOM, Head, Malformed, Message, PREFIX_LEN, Side, Tensor};
use super::tcp_server::{self, Progress, Session};
use super::{ClientOptions, MAX_MESSAGE, ServerOptions, null_response};
use crate::load::connection::{Connection, Fault, Step};
use crate::workloads::{Exchange, MAX_TENSORS, Workload};

const FIRST_READ: usize = 64 << 10;
/// Largest request that a model on a GPU has room for.
const LARGEST_ON_GPU: u32 = MAX_MESSAGE;

/// Runs the server until the process ends. A model on a GPU has its input and output on the host in `pinned` memory, or not.
pub(crate) fn serve(options: &ServerOptions, pinned: bool, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let model = Rc::new(Model::open(options, pinned)?);
    tcp_server::serve(options, ready, |stream| {
        let output = model.output().map_err(io::Error::other)?;
        let (incoming, model) = (Incoming::new(), Rc::clone(&model));
        Ok(BundledSession { stream, incoming, model, output, head: Head::new(), sent: None, respond_ns: 0 })
    })
}

/// Gathers prefixed messages from a stream into one buffer that only ever grows.
struct Incoming {
    buffer: Vec<u8>,
    filled: usize,
    first_byte: Option<Instant>,
}

impl Incoming {
    fn new() -> Incoming {
        Incoming { buffer: vec![0; FIRST_READ], filled: 0, first_byte: None }
    }

    /// Length of prefix and message, once the prefix is there.
    fn length(&self) -> io::Result<Option<usize>> {
        let Some(prefix) = self.buffer[..self.filled].first_chunk() else { return Ok(None) };
        let length = protobuf::parse_prefix(prefix).map_err(invalid)?;
        if length > MAX_MESSAGE as usize + HEAD_ROOM {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some(PREFIX_LEN + length))
    }

    fn read(&mut self, stream: &mut TcpStream) -> io::Result<Progress> {
        match now_or_later(stream.read(&mut self.buffer[self.filled..]))? {
            None => return Ok(Progress::Idle),
            Some(0) => return Ok(Progress::Closed),
            Some(count) => self.filled += count,
        }
        self.first_byte.get_or_insert_with(Instant::now);
        if let Some(length) = self.length()?
            && self.buffer.len() < length
        {
            self.buffer.resize(length, 0);
        }
        Ok(Progress::Moved)
    }

    /// The first message, once it is complete.
    fn message(&self) -> io::Result<Option<&[u8]>> {
        Ok(self.length()?.filter(|&length| length <= self.filled).map(|length| &self.buffer[PREFIX_LEN..length]))
    }

    /// Drops the first message.
    fn consume(&mut self) -> io::Result<()> {
        if let Some(length) = self.length()? {
            self.buffer.copy_within(length..self.filled, 0);
            self.filled -= length;
            self.first_byte = (self.filled > 0).then(Instant::now);
        }
        Ok(())
    }
}

/// A model, and its tensors on the host.
struct Model {
    spec: ModelSpec,
    input: RefCell<Buffer>,
    /// The output of a model that computes nothing, one for all sessions: as in splitrpc's null model, nobody writes it anew.
    fixed: Option<Output>,
    /// Outputs that no session has at present.
    spare: RefCell<Vec<Output>>,
    /// Bytes of each output tensor.
    output_bytes: Vec<usize>,
    device: Option<Device>,
    pinned: bool,
}

type Output = Rc<RefCell<Buffer>>;

/// Memory on the host.
enum Buffer {
    Pageable(Vec<u8>),
    Pinned(PinnedBuffer),
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Pageable(bytes) => bytes,
            Buffer::Pinned(bytes) => bytes,
        }
    }

    /// The first `len` bytes, if there can be so many.
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        match self {
            Buffer::Pageable(bytes) => {
                if bytes.len() < len {
                    bytes.resize(len, 0);
                }
                bytes.get_mut(..len)
            }
            Buffer::Pinned(bytes) => bytes.get_mut(..len),
        }
    }
}

impl Model {
    fn open(options: &ServerOptions, pinned: bool) -> anyhow::Result<Model> {
        let ServerOptions { workload, response_bytes, .. } = *options;
        let device = match workload {
            Workload::Null => None,
            _ => Some(Device::open(workload, LARGEST_ON_GPU, response_bytes)?),
        };
        let spec = match &device {
            Some(device) => device.spec().clone(),
            None => Null::new(response_bytes).spec().clone(),
        };
        let bytes = |tensors: &[TensorSpec]| -> Vec<usize> {
            tensors.iter().map(|tensor| spec.row_bytes(tensor).unwrap_or(LARGEST_ON_GPU) as usize).collect()
        };
        let (input, output_bytes) = (bytes(&spec.inputs).iter().sum(), bytes(&spec.outputs));
        let input = match &device {
            Some(device) if pinned => Buffer::Pinned(device.pinned(input)?),
            _ => Buffer::Pageable(Vec::new()),
        };
        let (input, spare) = (RefCell::new(input), RefCell::new(Vec::new()));
        let mut model = Model { spec, input, fixed: None, spare, output_bytes, device, pinned };
        if workload.model().is_none() {
            let output = model.new_output()?;
            let answer = null_response(response_bytes);
            output.borrow_mut().room(answer.len()).context("no room for the answer")?.copy_from_slice(&answer);
            model.fixed = Some(output);
        }
        Ok(model)
    }

    fn answer_bytes(&self) -> usize {
        self.output_bytes.iter().sum()
    }

    fn new_output(&self) -> anyhow::Result<Output> {
        let buffer = match &self.device {
            Some(device) if self.pinned => Buffer::Pinned(device.pinned(self.answer_bytes())?),
            _ => Buffer::Pageable(vec![0; self.answer_bytes()]),
        };
        Ok(Rc::new(RefCell::new(buffer)))
    }

    /// Where a session's answers are to be.
    fn output(&self) -> anyhow::Result<Output> {
        match self.fixed.clone().or_else(|| self.spare.borrow_mut().pop()) {
            Some(output) => Ok(output),
            None => self.new_output(),
        }
    }

    /// Computes on the first `len` bytes of the input.
    fn infer(&self, len: usize, output: &RefCell<Buffer>) -> io::Result<Times> {
        let Some(device) = &self.device else { return Ok(Times::default()) };
        let (input, mut output) = (self.input.borrow(), output.borrow_mut());
        let (Some(request), Some(answer)) = (input.bytes().get(..len), output.room(self.answer_bytes())) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        device.infer(request, answer)
    }
}

/// Whether a tensor of a message, with so many bytes of contents, is what a model takes.
fn fits(tensor: &Tensor<'_>, bytes: usize, spec: &TensorSpec) -> bool {
    let dims = tensor.shape();
    let elements: i64 = dims.iter().product();
    tensor.name == spec.name
        && tensor.datatype == spec.dtype.name()
        && dims.len() == spec.dims.len()
        && dims.iter().zip(&spec.dims).all(|(dim, wanted)| wanted.is_none_or(|wanted| *dim == i64::from(wanted)))
        && elements * i64::from(spec.dtype.size().unwrap_or(0)) == bytes as i64
}

struct BundledSession {
    stream: TcpStream,
    incoming: Incoming,
    model: Rc<Model>,
    /// Its own, since an answer may not have left when the next one is computed.
    output: Output,
    head: Head,
    /// Bytes of the answer that have left, while one is under way.
    sent: Option<usize>,
    /// Encoding of the answer before: that of the present one is known too late to be told in it.
    respond_ns: u64,
}

impl BundledSession {
    fn answer(&mut self) -> io::Result<bool> {
        let BundledSession { model, .. } = self;
        let Some(bytes) = self.incoming.message()? else { return Ok(false) };
        let received = Instant::now();
        let message = Message::parse(Side::Request, bytes).map_err(invalid)?;
        if message.model != model.spec.name {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (mut count, mut taken) = (0, 0);
        for (tensor, raw) in message.tensors().map_err(invalid)? {
            if !model.spec.inputs.get(count).is_some_and(|spec| fits(&tensor, raw.len(), spec)) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut input = model.input.borrow_mut();
            let room = input.room(taken + raw.len()).ok_or(io::ErrorKind::InvalidData)?;
            room[taken..].copy_from_slice(raw);
            (count, taken) = (count + 1, taken + raw.len());
        }
        if count != model.spec.inputs.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let copied = bytes.len() + taken;
        let placed = Instant::now();
        let times = model.infer(taken, &self.output)?;
        let computed = Instant::now();
        let nanos = |from: Instant, to: Instant| to.saturating_duration_since(from).as_nanos() as u64;
        let receive = self.incoming.first_byte.map_or(0, |first| nanos(first, received));
        let Times { copy_in, compute, copy_out } = times;
        let trace = [receive, nanos(received, placed), copy_in, compute, copy_out, self.respond_ns, copied as u64];
        let outputs = model.spec.outputs.iter().zip(&model.output_bytes).map(|(spec, &bytes)| {
            let mut dims = [0; MAX_RANK];
            dims.iter_mut().zip(&spec.dims).for_each(|(dim, of_spec)| *dim = of_spec.unwrap_or(0));
            (Tensor::new(&spec.name, spec.dtype.name(), &dims[..spec.dims.len().min(MAX_RANK)]), bytes)
        });
        self.head.write(Side::Response, &model.spec.name, outputs, Some(&trace));
        self.respond_ns = nanos(computed, Instant::now());
        self.incoming.consume()?;
        self.sent = Some(0);
        Ok(true)
    }
}

impl Session for BundledSession {
    fn advance(&mut self) -> io::Result<Progress> {
        if self.sent.is_none() {
            match self.incoming.read(&mut self.stream)? {
                Progress::Moved => {}
                other => return Ok(other),
            }
            if !self.answer()? {
                return Ok(Progress::Moved);
            }
        }
        while let Some(sent) = self.sent {
            let written = write(&mut self.stream, &self.head, self.output.borrow().bytes(), sent)?;
            match written {
                None => return Ok(Progress::Moved),
                Some(count) if sent + count < self.head.total() => self.sent = Some(sent + count),
                Some(_) => {
                    self.sent = None;
                    // A message that came with the one just answered is not announced again.
                    self.answer()?;
                }
            }
        }
        Ok(Progress::Moved)
    }

    fn wants_write(&self) -> bool {
        self.sent.is_some()
    }

    fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for BundledSession {
    fn drop(&mut self) {
        if self.model.fixed.is_none() {
            self.model.spare.borrow_mut().push(Rc::clone(&self.output));
        }
    }
}

fn invalid(_: Malformed) -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Writes what is left of a message after its first `sent` bytes.
fn write(stream: &mut TcpStream, head: &Head, data: &[u8], sent: usize) -> io::Result<Option<usize>> {
    let (slices, count) = head.slices(data, sent);
    now_or_later(stream.write_vectored(&slices[..count]))
}

/// A client's connection.
pub(crate) struct Client {
    stream: TcpStream,
    exchange: Arc<Exchange>,
    workload: Workload,
    head: Head,
    sent: usize,
    incoming: Incoming,
    path: Path,
    /// Where in the message just received each output is; `None` where they are not those expected.
    answer: Option<[Range<usize>; MAX_TENSORS]>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(options: &ClientOptions) -> io::Result<Client> {
        let stream = TcpStream::connect(options.server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            exchange: Arc::clone(&options.exchange),
            workload: options.workload,
            head: Head::new(),
            sent: 0,
            incoming: Incoming::new(),
            path: Path::default(),
            answer: None,
        })
    }

    fn write(&mut self) -> io::Result<Step> {
        match write(&mut self.stream, &self.head, &self.exchange.request, self.sent)? {
            None => Ok(Step::Idle),
            Some(count) => {
                self.sent += count;
                Ok(Step::Moved)
            }
        }
    }

    fn decode(&mut self) -> io::Result<bool> {
        let Some(bytes) = self.incoming.message()? else { return Ok(false) };
        let message = Message::parse(Side::Response, bytes).map_err(invalid)?;
        self.answer = found(&message, bytes, &self.exchange).map_err(invalid)?;
        self.path = Path {
            port: Port::Tcp,
            mover: Mover::Bundled,
            memory: if self.workload.is_on_gpu() { Memory::Cuda } else { Memory::Host },
            link: Link::InProcess,
            batch_rows: 1,
            payload_bytes: self.exchange.request.len() as u32,
            ..message.path()
        };
        Ok(true)
    }
}

/// Where in a message's bytes the outputs are that are expected.
fn found(
    message: &Message<'_>,
    bytes: &[u8],
    exchange: &Exchange,
) -> Result<Option<[Range<usize>; MAX_TENSORS]>, Malformed> {
    let mut answer: [Range<usize>; MAX_TENSORS] = std::array::from_fn(|_| 0..0);
    let mut count = 0;
    for (tensor, raw) in message.tensors()? {
        let expected = exchange.outputs.get(count);
        let as_described = expected.is_some_and(|expected| {
            let wanted = Tensor::new(&expected.name, expected.dtype.name(), &expected.dims);
            tensor == wanted && raw.len() == expected.bytes()
        });
        if !as_described {
            return Ok(None);
        }
        let start = raw.as_ptr().addr() - bytes.as_ptr().addr();
        answer[count] = start..start + raw.len();
        count += 1;
    }
    Ok((count == exchange.outputs.len()).then_some(answer))
}

impl Connection for Client {
    fn begin(&mut self) -> io::Result<()> {
        self.answer = None;
        if self.incoming.message()?.is_some() {
            self.incoming.consume()?;
        }
        let tensors = self.exchange.inputs.iter();
        let tensors = tensors.map(|t| (Tensor::new(&t.name, t.dtype.name(), &t.dims), t.bytes()));
        self.head.write(Side::Request, self.exchange.model, tensors, None);
        self.sent = 0;
        self.write().map(drop)
    }

    fn advance(&mut self) -> io::Result<Step> {
        if self.sent < self.head.total() {
            return self.write();
        }
        match self.incoming.read(&mut self.stream)? {
            Progress::Idle => Ok(Step::Idle),
            Progress::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
            Progress::Moved => Ok(if self.decode()? { Step::Done } else { Step::Moved }),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        let message = self.incoming.message().ok().flatten();
        let Some((message, answer)) = message.zip(self.answer.as_ref()) else { return Err(Fault::WrongBytes) };
        let right = |output: usize| {
            message.get(answer[output].clone()).is_some_and(|bytes| self.exchange.is_right_in(output, bytes))
        };
        if (0..self.exchange.outputs.len()).all(right) { Ok(()) } else { Err(Fault::WrongBytes) }
    }

    fn path(&self) -> Option<Path> {
        Some(self.path)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn wants_write(&self) -> bool {
        self.sent < self.head.total()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    /// A client, and the other end of its connection.
    fn pair(request: &[u8], expected: &[u8]) -> (Client, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut exchange = Workload::Null.exchange(request.len() as u32, expected.len() as u32);
        exchange.expected = expected.to_vec().into();
        let options = ClientOptions {
            server: listener.local_addr().unwrap(),
            exchange: exchange.into(),
            device: None,
            workload: Workload::Null,
            datagram: 0,
            peers: 1,
            timeout: Duration::from_secs(5),
        };
        (Client::connect(&options).unwrap(), listener.accept().unwrap().0)
    }

    fn until_done(client: &mut Client) {
        while client.advance().unwrap() != Step::Done {
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_answer_is_compared_after_it_was_received_and_a_wrong_one_spoils_no_other() {
        let (mut client, mut server) = pair(&[1; 64], &[5; 4_000]);
        let good = [5; 4_000];
        let mut bad = good;
        bad[3_999] = 6;
        let flat = &[4_000][..];
        for (name, shape, output, right) in [
            ("OUTPUT", flat, &good, true),
            ("OUTPUT", flat, &bad, false),
            ("X", flat, &good, false),
            ("OUTPUT", &[40, 100], &good, false),
            ("OUTPUT", flat, &good, true),
        ] {
            client.begin().unwrap();
            let mut head = Head::new();
            let tensor = (Tensor::new(name, "UINT8", shape), output.len());
            head.write(Side::Response, "null", std::iter::once(tensor), None);
            let (slices, count) = head.slices(output, 0);
            slices[..count].iter().for_each(|slice| server.write_all(slice).unwrap());
            until_done(&mut client);
            assert_eq!(client.check().is_ok(), right, "{name} {shape:?} {}", output[3_999]);
        }
    }
}
