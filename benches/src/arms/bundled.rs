//! The bundled way, done as well as it can be done over TCP: a whole length-prefixed protobuf message is received into a
//! heap buffer that is used again, decoded without copying, its tensors copied to the model's input, and the answer
//! encoded and sent with one gathering write. Nothing is allocated once the buffers have grown; what remains beside the
//! floor is what bundling costs: the second copy and the codec. The model's input is one for all connections, since the
//! model takes one request at a time: one for each would leave the caches sooner than it had to.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use splitrpc_cuda::PinnedBuffer;
use splitrpc_wire::Path;
use splitrpc_wire::path::{Link, Memory, Mover, Port};

use super::floor_tcp::now_or_later;
use super::gpu::Device;
use super::protobuf::{self, Malformed, Message, PREFIX_LEN, Side, Tensor};
use super::tcp_server::{self, Progress, Session};
use super::{ClientOptions, MAX_MESSAGE, ServerOptions, Workload, null_response};
use crate::load::connection::{Connection, Fault, Step};

const INPUT: &str = "INPUT";
const OUTPUT: &str = "OUTPUT";
const DATATYPE: &str = "UINT8";
/// Room for everything in a message but the tensors' data.
const HEAD_ROOM: usize = 4096;
const FIRST_READ: usize = 64 << 10;
/// Largest request that a model on a GPU has room for.
const LARGEST_ON_GPU: u32 = MAX_MESSAGE;

/// Runs the server until the process ends. A model on a GPU has its input and output on the host in `pinned` memory, or not.
pub(crate) fn serve(options: &ServerOptions, pinned: bool, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let model = Rc::new(Model::open(options, pinned)?);
    tcp_server::serve(options, ready, |stream| BundledSession {
        stream,
        incoming: Incoming::new(),
        model: Rc::clone(&model),
        head: Vec::with_capacity(HEAD_ROOM),
        sent: None,
        respond_ns: 0,
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
    name: &'static str,
    input: RefCell<Buffer>,
    /// Where nothing is computed this is always the same: as in splitrpc's null model, nobody writes it anew.
    output: RefCell<Buffer>,
    device: Option<Device>,
}

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
        let output = null_response(options.response_bytes);
        let device = match options.workload {
            Workload::Null => None,
            Workload::NullGpu => Some(Device::open(options.workload, LARGEST_ON_GPU, options.response_bytes)?),
        };
        let (input, output) = match &device {
            Some(device) if pinned => {
                (Buffer::Pinned(device.pinned(LARGEST_ON_GPU as usize)?), Buffer::Pinned(device.pinned(output.len())?))
            }
            _ => (Buffer::Pageable(Vec::new()), Buffer::Pageable(output)),
        };
        let name = options.workload.name();
        Ok(Model { name, input: RefCell::new(input), output: RefCell::new(output), device })
    }

    /// Computes on the first `len` bytes of the input. Returns nanoseconds that it took, with its copies.
    fn infer(&self, len: usize) -> io::Result<u64> {
        let Some(device) = &self.device else { return Ok(0) };
        let begun = Instant::now();
        let (input, mut output) = (self.input.borrow(), self.output.borrow_mut());
        let answer = output.bytes().len();
        let (Some(request), Some(answer)) = (input.bytes().get(..len), output.room(answer)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        device.infer(request, answer)?;
        Ok(begun.elapsed().as_nanos() as u64)
    }
}

struct BundledSession {
    stream: TcpStream,
    incoming: Incoming,
    model: Rc<Model>,
    head: Vec<u8>,
    /// Bytes of head and output that have left, while an answer is under way.
    sent: Option<usize>,
    /// Encoding of the answer before: that of the present one is known too late to be told in it.
    respond_ns: u64,
}

impl BundledSession {
    fn answer(&mut self) -> io::Result<bool> {
        let Some(bytes) = self.incoming.message()? else { return Ok(false) };
        let received = Instant::now();
        let message = Message::parse(Side::Request, bytes).map_err(invalid)?;
        if message.model != self.model.name {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (mut copied, mut taken) = (bytes.len(), 0);
        for (tensor, raw) in message.tensors().map_err(invalid)? {
            let fits = tensor.name == INPUT && tensor.datatype == DATATYPE && tensor.shape() == [raw.len() as i64];
            if !fits {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut input = self.model.input.borrow_mut();
            input.room(raw.len()).ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(raw);
            copied += raw.len();
            taken = raw.len();
        }
        let placed = Instant::now();
        self.model.infer(taken)?;
        let computed = Instant::now();
        let nanos = |from: Instant, to: Instant| to.saturating_duration_since(from).as_nanos() as u64;
        let receive = self.incoming.first_byte.map_or(0, |first| nanos(first, received));
        let trace = [receive, nanos(received, placed), self.respond_ns, copied as u64];
        let output = self.model.output.borrow().bytes().len();
        let tensor = Tensor::flat(OUTPUT, DATATYPE, output);
        protobuf::write_head(Side::Response, self.model.name, &tensor, Some(&trace), output, &mut self.head);
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
            let output = self.model.output.borrow();
            let total = self.head.len() + output.bytes().len();
            let written = write_both(&mut self.stream, &self.head, output.bytes(), sent)?;
            drop(output);
            match written {
                None => return Ok(Progress::Moved),
                Some(count) if sent + count < total => self.sent = Some(sent + count),
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

fn invalid(_: Malformed) -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Writes what is left of `head` and then `data` after their first `sent` bytes.
fn write_both(stream: &mut TcpStream, head: &[u8], data: &[u8], sent: usize) -> io::Result<Option<usize>> {
    now_or_later(match head.get(sent..) {
        Some(head) => stream.write_vectored(&[IoSlice::new(head), IoSlice::new(data)]),
        None => stream.write(&data[sent - head.len()..]),
    })
}

/// A client's connection.
pub(crate) struct Client {
    stream: TcpStream,
    request: Bytes,
    expected: Bytes,
    workload: Workload,
    head: Vec<u8>,
    sent: usize,
    incoming: Incoming,
    path: Path,
    /// Where in the message just received the answer is; `None` where it is not the tensor expected.
    answer: Option<Range<usize>>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(options: &ClientOptions) -> io::Result<Client> {
        let stream = TcpStream::connect(options.server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            request: options.request.clone(),
            expected: options.expected.clone(),
            workload: options.workload,
            head: Vec::with_capacity(HEAD_ROOM),
            sent: 0,
            incoming: Incoming::new(),
            path: Path::default(),
            answer: None,
        })
    }

    fn total(&self) -> usize {
        self.head.len() + self.request.len()
    }

    fn write(&mut self) -> io::Result<Step> {
        match write_both(&mut self.stream, &self.head, &self.request, self.sent)? {
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
        let output = message.tensors().map_err(invalid)?.next();
        let output = output.filter(|(tensor, raw)| tensor.name == OUTPUT && tensor.shape() == [raw.len() as i64]);
        self.answer = output.map(|(_, raw)| {
            let start = raw.as_ptr().addr() - bytes.as_ptr().addr();
            start..start + raw.len()
        });
        self.path = Path {
            port: Port::Tcp,
            mover: Mover::Bundled,
            memory: if self.workload == Workload::Null { Memory::Host } else { Memory::Cuda },
            link: Link::InProcess,
            batch_rows: 1,
            payload_bytes: self.request.len() as u32,
            ..message.path()
        };
        Ok(true)
    }
}

impl Connection for Client {
    fn begin(&mut self) -> io::Result<()> {
        self.answer = None;
        if self.incoming.message()?.is_some() {
            self.incoming.consume()?;
        }
        let input = Tensor::flat(INPUT, DATATYPE, self.request.len());
        protobuf::write_head(Side::Request, self.workload.name(), &input, None, self.request.len(), &mut self.head);
        self.sent = 0;
        self.write().map(drop)
    }

    fn advance(&mut self) -> io::Result<Step> {
        if self.sent < self.total() {
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
        let answer = message.zip(self.answer.clone()).and_then(|(message, range)| message.get(range));
        if answer == Some(&self.expected[..]) { Ok(()) } else { Err(Fault::WrongBytes) }
    }

    fn path(&self) -> Option<Path> {
        Some(self.path)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn wants_write(&self) -> bool {
        self.sent < self.total()
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
        let options = ClientOptions {
            server: listener.local_addr().unwrap(),
            request: request.to_vec().into(),
            expected: expected.to_vec().into(),
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
        for (name, output, right) in
            [(OUTPUT, &good, true), (OUTPUT, &bad, false), ("X", &good, false), (OUTPUT, &good, true)]
        {
            client.begin().unwrap();
            let mut head = Vec::new();
            let tensor = Tensor::flat(name, DATATYPE, output.len());
            protobuf::write_head(Side::Response, "null", &tensor, None, output.len(), &mut head);
            server.write_all(&[&head[..], output].concat()).unwrap();
            until_done(&mut client);
            assert_eq!(client.check().is_ok(), right, "{name} {}", output[3_999]);
        }
    }
}
