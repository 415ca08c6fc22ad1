//! A client of the UDP floor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use splitrpc_socket::{IoVec, IoVecSend, UdpSocket};

use super::{GO_LEN, Go, SETUP_LEN, Setup, burst, later, options};
use crate::arms::ClientOptions;
use crate::load::connection::{Connection, Fault, Step};

/// Share of the server's receive buffer that all clients together may fill: the kernel counts more than payload there.
const SHARE: usize = 4;
/// How long each try to reach the server lasts.
const TRY: Duration = Duration::from_millis(100);

/// A client's connection.
pub(crate) struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    setup: Setup,
    request: Bytes,
    expected: Bytes,
    response: Vec<u8>,
    sequence: u32,
    sent: usize,
    /// How much the server has said it has.
    confirmed: usize,
    received: usize,
    blocked: bool,
}

impl Client {
    /// Sets the sizes up with the server.
    pub(crate) fn connect(options_: &ClientOptions) -> io::Result<Client> {
        let server = options_.server;
        let local: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let mut socket = UdpSocket::bind(local, &options())?;
        socket.connect(server)?;
        let request = options_.exchange.request.clone();
        let ask = Setup {
            request: request.len() as u32,
            response: options_.exchange.expected.len() as u32,
            datagram: u32::from(options_.datagram),
            window: u32::MAX,
            buffer: 0,
        };
        let answer = exchange(&socket, server, &ask, options_.timeout)?;
        let share = answer.buffer as usize / SHARE / options_.peers.max(1);
        let window = share.max(usize::from(options_.datagram));
        let setup = Setup { window: window as u32, ..ask };
        // Once more only where it matters, so that the server says how far it has come.
        if window < request.len() {
            exchange(&socket, server, &setup, options_.timeout)?;
        }
        Ok(Client {
            socket,
            server,
            setup,
            response: vec![0; options_.exchange.expected.len()],
            request,
            expected: options_.exchange.expected.clone(),
            sequence: 0,
            sent: 0,
            confirmed: 0,
            received: 0,
            blocked: false,
        })
    }

    /// Sends a burst if there is one left and the window has room for it; `Idle` if not.
    fn send(&mut self) -> io::Result<Step> {
        let datagram = self.setup.datagram as usize;
        let window_end = self.confirmed.saturating_add(self.setup.window as usize);
        let left = self.request.len() - self.sent;
        let room = window_end.saturating_sub(self.sent);
        // Whole datagrams only, but for the last.
        let length = if room >= left { left } else { room / datagram * datagram };
        let length = length.min(burst(self.setup.datagram as u16));
        if length == 0 {
            return Ok(Step::Idle);
        }
        let piece = &self.request[self.sent..self.sent + length];
        match self.socket.send(self.server, &[IoVecSend::from(piece)], Some(self.setup.datagram as u16)) {
            Ok(count) => {
                self.sent += count;
                self.blocked = false;
                Ok(Step::Moved)
            }
            Err(error) if later(&error) => {
                self.blocked = true;
                Ok(Step::Idle)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends what window and kernel take: nothing announces that a window has room.
    fn send_all(&mut self) -> io::Result<Step> {
        let mut step = Step::Idle;
        while self.send()? == Step::Moved {
            step = Step::Moved;
        }
        Ok(step)
    }

    fn receive(&mut self) -> io::Result<Step> {
        let mut spare = [0; 64];
        let space = &mut self.response[self.received..];
        let received = match self.socket.recv(&mut [IoVec::from(space), IoVec::from(&mut spare[..])]) {
            Ok(received) => received,
            Err(error) if later(&error) => return Ok(Step::Idle),
            Err(error) => return Err(error),
        };
        // A batch is of one kind: goes and payload differ in length.
        let arrived = &self.response[self.received..(self.received + received.len).min(self.response.len())];
        let is_go = received.segment.is_none_or(|segment| usize::from(segment) == GO_LEN);
        if is_go
            && arrived.len() == received.len
            && arrived.len().is_multiple_of(GO_LEN)
            && Go::parse(&arrived[..GO_LEN.min(arrived.len())]).is_some()
        {
            for go in arrived.chunks_exact(GO_LEN).filter_map(Go::parse) {
                if go.sequence == self.sequence {
                    self.confirmed = self.confirmed.max(go.received as usize);
                }
            }
            return Ok(Step::Moved);
        }
        self.received += received.len;
        Ok(if self.received >= self.response.len() { Step::Done } else { Step::Moved })
    }
}

/// Sends a setup until it is answered.
fn exchange(socket: &UdpSocket, server: SocketAddr, setup: &Setup, timeout: Duration) -> io::Result<Setup> {
    let end = Instant::now() + timeout;
    while Instant::now() < end {
        let sent = socket.send(server, &[IoVecSend::from(&setup.encode()[..])], None);
        if let Err(error) = sent
            && !later(&error)
        {
            return Err(error);
        }
        let next = Instant::now() + TRY;
        while Instant::now() < next {
            let mut answer = [0; SETUP_LEN];
            match socket.recv(&mut [IoVec::from(&mut answer[..])]) {
                Ok(_) => {
                    if let Some(answer) = Setup::parse(&answer) {
                        return Ok(answer);
                    }
                }
                Err(error) if later(&error) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

impl Connection for Client {
    fn begin(&mut self) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.sent = 0;
        self.confirmed = 0;
        self.received = 0;
        self.send_all().map(drop)
    }

    fn advance(&mut self) -> io::Result<Step> {
        let sent = self.send_all()?;
        match self.receive()? {
            Step::Idle => Ok(sent),
            Step::Done => Ok(Step::Done),
            // Perhaps word that the window has opened.
            Step::Moved => self.send_all().map(|_| Step::Moved),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        if self.received == self.expected.len() && self.response[..] == self.expected[..] {
            Ok(())
        } else {
            Err(Fault::WrongBytes)
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn wants_write(&self) -> bool {
        // A closed window opens with what arrives.
        self.sent < self.request.len() && self.blocked
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let leave = Setup { request: 0, ..self.setup };
        let _ = self.socket.send(self.server, &[IoVecSend::from(&leave.encode()[..])], None);
    }
}
