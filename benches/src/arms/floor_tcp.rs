//! The TCP floor: the least that moves these bytes there and back through stream sockets.
//!
//! A connection begins with a setup of 16 bytes that names the sizes. From then on there is nothing on the wire but
//! payload, and both sides count bytes. A request lies complete in memory before it is answered.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;

use super::tcp_server::{self, Progress, Session};
use super::{ClientOptions, MAX_MESSAGE, ServerOptions, null_response};
use crate::load::connection::{Connection, Fault, Step};

const MAGIC: &[u8; 8] = b"floor-1\0";
const SETUP_LEN: usize = 16;

/// `Ok(None)` instead of an error where nothing can move now.
pub(crate) fn now_or_later(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

fn setup(request_bytes: u32, response_bytes: u32) -> [u8; SETUP_LEN] {
    let mut setup = [0; SETUP_LEN];
    setup[..8].copy_from_slice(MAGIC);
    setup[8..12].copy_from_slice(&request_bytes.to_le_bytes());
    setup[12..].copy_from_slice(&response_bytes.to_le_bytes());
    setup
}

fn parse_setup(setup: &[u8; SETUP_LEN]) -> io::Result<(u32, u32)> {
    let (magic, sizes) = setup.split_at(8);
    let word = |at: usize| u32::from_le_bytes([sizes[at], sizes[at + 1], sizes[at + 2], sizes[at + 3]]);
    let (request, response) = (word(0), word(4));
    let fits = |bytes: u32| (1..=MAX_MESSAGE).contains(&bytes);
    if magic == MAGIC && fits(request) && fits(response) {
        Ok((request, response))
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Runs the server until the process ends.
pub(crate) fn serve(options: &ServerOptions, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    tcp_server::serve(options, ready, |stream| {
        Ok(FloorSession { stream, state: State::Setup([0; SETUP_LEN]), done: 0 })
    })
}

enum State {
    Setup([u8; SETUP_LEN]),
    Reading { request: Vec<u8>, response: Vec<u8> },
    Writing { request: Vec<u8>, response: Vec<u8> },
}

struct FloorSession {
    stream: TcpStream,
    state: State,
    /// Bytes of the present state's buffer that have moved.
    done: usize,
}

impl Session for FloorSession {
    fn advance(&mut self) -> io::Result<Progress> {
        let moved = match &mut self.state {
            State::Setup(setup) => self.stream.read(&mut setup[self.done..]),
            State::Reading { request, .. } => self.stream.read(&mut request[self.done..]),
            State::Writing { response, .. } => self.stream.write(&response[self.done..]),
        };
        match now_or_later(moved)? {
            None => return Ok(Progress::Idle),
            Some(0) => return Ok(Progress::Closed),
            Some(count) => self.done += count,
        }
        let full = match &self.state {
            State::Setup(_) => SETUP_LEN,
            State::Reading { request, .. } => request.len(),
            State::Writing { response, .. } => response.len(),
        };
        if self.done < full {
            return Ok(Progress::Moved);
        }
        self.done = 0;
        self.state = match std::mem::replace(&mut self.state, State::Setup([0; SETUP_LEN])) {
            State::Setup(setup) => {
                let (request, response) = parse_setup(&setup)?;
                State::Reading { request: vec![0; request as usize], response: null_response(response) }
            }
            State::Reading { request, response } => State::Writing { request, response },
            State::Writing { request, response } => State::Reading { request, response },
        };
        // An answer leaves at once.
        if matches!(self.state, State::Writing { .. }) {
            self.advance().map(|_| Progress::Moved)
        } else {
            Ok(Progress::Moved)
        }
    }

    fn wants_write(&self) -> bool {
        matches!(self.state, State::Writing { .. })
    }

    fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// A client's connection.
pub(crate) struct Client {
    stream: TcpStream,
    request: Bytes,
    expected: Bytes,
    response: Vec<u8>,
    sent: usize,
    received: usize,
}

impl Client {
    /// Connects and sets the sizes up.
    pub(crate) fn connect(options: &ClientOptions) -> io::Result<Client> {
        let mut stream = TcpStream::connect(options.server)?;
        stream.set_nodelay(true)?;
        stream.write_all(&setup(options.exchange.request.len() as u32, options.exchange.expected.len() as u32))?;
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            request: options.exchange.request.clone(),
            expected: options.exchange.expected.clone(),
            response: vec![0; options.exchange.expected.len()],
            sent: 0,
            received: 0,
        })
    }

    fn write(&mut self) -> io::Result<Step> {
        match now_or_later(self.stream.write(&self.request[self.sent..]))? {
            None => Ok(Step::Idle),
            Some(count) => {
                self.sent += count;
                Ok(Step::Moved)
            }
        }
    }
}

impl Connection for Client {
    fn begin(&mut self) -> io::Result<()> {
        self.sent = 0;
        self.received = 0;
        self.write().map(drop)
    }

    fn advance(&mut self) -> io::Result<Step> {
        if self.sent < self.request.len() {
            return self.write();
        }
        match now_or_later(self.stream.read(&mut self.response[self.received..]))? {
            None => Ok(Step::Idle),
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(count) => {
                self.received += count;
                Ok(if self.received == self.response.len() { Step::Done } else { Step::Moved })
            }
        }
    }

    fn check(&self) -> Result<(), Fault> {
        if self.response[..] == self.expected[..] { Ok(()) } else { Err(Fault::WrongBytes) }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn wants_write(&self) -> bool {
        self.sent < self.request.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setup_survives_the_wire_and_nothing_else_passes_for_one() {
        assert_eq!(parse_setup(&setup(602_112, 4_000)).unwrap(), (602_112, 4_000));
        assert!(parse_setup(&setup(0, 4_000)).is_err());
        assert!(parse_setup(&setup(64, MAX_MESSAGE + 1)).is_err());
        let mut other = setup(64, 64);
        other[0] ^= 1;
        assert!(parse_setup(&other).is_err());
    }
}
