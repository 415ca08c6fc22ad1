//! The UDP floor's server: one socket, any number of clients.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use splitrpc_socket::{IoVec, IoVecSend, MAX_UDP_PAYLOAD, UdpSocket};

use super::{Go, SETUP_LEN, Setup, burst, later, options};
use crate::arms::{ServerOptions, null_response};
use crate::wait::{Ready, Waiter};

/// More clients than this are taken for ones that left without a word.
const MAX_PEERS: usize = 2_048;
/// Receives before others get their turn.
const RECEIVES: usize = 16;

struct Peer {
    setup: Setup,
    request: Vec<u8>,
    response: Vec<u8>,
    received: usize,
    /// Bytes received when the client was last told.
    told: usize,
    sequence: u32,
    /// Bytes of the response that have left, while one is under way.
    sent: Option<usize>,
}

struct Server {
    socket: UdpSocket,
    buffer: u32,
    peers: HashMap<SocketAddr, Peer>,
    /// Clients whose answers found no room.
    blocked: Vec<SocketAddr>,
    /// Where datagrams go that belong to no request.
    spare: Vec<u8>,
}

/// Runs the server until the process ends.
pub(crate) fn serve(options_: &ServerOptions, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(options_.bind, &options())?;
    let mut waiter = Waiter::new(options_.wait)?;
    waiter.add(&socket, 0, false)?;
    ready(socket.local_addr());
    let buffer = socket.buffers()?.0 as u32;
    let spare = vec![0; MAX_UDP_PAYLOAD];
    let mut server = Server { socket, buffer, peers: HashMap::new(), blocked: Vec::new(), spare };
    let mut writing = false;
    let mut moved = false;
    loop {
        match waiter.next(moved, 1, Instant::now(), None)? {
            Ready::All => {}
            Ready::Listed if waiter.tokens().next().is_some() => {}
            Ready::Listed => {
                moved = false;
                continue;
            }
        }
        moved = false;
        for _ in 0..RECEIVES {
            if !server.receive()? {
                break;
            }
            moved = true;
        }
        moved |= server.retry();
        if writing == server.blocked.is_empty() {
            writing = !writing;
            waiter.modify(&server.socket, 0, writing)?;
        }
    }
}

impl Server {
    /// Takes what has arrived from one client; `false` if nothing has.
    fn receive(&mut self) -> io::Result<bool> {
        let from = match self.sender() {
            Ok(from) => from,
            Err(error) if later(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(peer) = self.peers.get_mut(&from) else {
            return self.receive_stray();
        };
        let space = &mut peer.request[peer.received..];
        let mut list = [IoVec::from(space), IoVec::from(&mut self.spare[..])];
        let received = match self.socket.recv(&mut list) {
            Ok(received) => received,
            Err(error) if later(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if received.from != from {
            // Of another client after all, which came while this one was alone: it will ask again.
            if let Some(setup) = self.landed(&from, received.len) {
                self.set_up(received.from, &setup);
            }
            return Ok(true);
        }
        if received.len == SETUP_LEN
            && let Some(setup) = self.landed(&from, received.len)
        {
            self.set_up(from, &setup);
            return Ok(true);
        }
        self.arrived(from, received.len);
        Ok(true)
    }

    /// Who sent what comes next: known without asking while there is only one client.
    fn sender(&self) -> io::Result<SocketAddr> {
        match self.peers.len() {
            1 => self.peers.keys().next().copied().ok_or_else(|| io::ErrorKind::WouldBlock.into()),
            _ => self.socket.peek(&mut [0]).map(|peeked| peeked.from),
        }
    }

    /// The setup that landed where a client's payload belongs, if one did.
    fn landed(&self, at: &SocketAddr, length: usize) -> Option<Setup> {
        let peer = self.peers.get(at)?;
        let space = &peer.request[peer.received..];
        let mut bytes = [0; SETUP_LEN];
        if length != SETUP_LEN {
            return None;
        }
        let head = space.len().min(SETUP_LEN);
        bytes[..head].copy_from_slice(&space[..head]);
        bytes[head..].copy_from_slice(&self.spare[..SETUP_LEN - head]);
        Setup::parse(&bytes)
    }

    /// A datagram of a client that is not known yet.
    fn receive_stray(&mut self) -> io::Result<bool> {
        let received = match self.socket.recv(&mut [IoVec::from(&mut self.spare[..])]) {
            Ok(received) => received,
            Err(error) if later(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if let Some(setup) = Setup::parse(&self.spare[..received.len]) {
            self.set_up(received.from, &setup);
        }
        Ok(true)
    }

    fn set_up(&mut self, from: SocketAddr, setup: &Setup) {
        if setup.request == 0 {
            self.peers.remove(&from);
            return;
        }
        if self.peers.len() >= MAX_PEERS {
            self.peers.clear();
        }
        let peer = Peer {
            setup: *setup,
            request: vec![0; setup.request as usize],
            response: null_response(setup.response),
            received: 0,
            told: 0,
            sequence: 1,
            sent: None,
        };
        self.peers.insert(from, peer);
        let answer = Setup { buffer: self.buffer, ..*setup };
        // A lost answer is asked for again.
        let _ = self.socket.send(from, &[IoVecSend::from(&answer.encode()[..])], None);
    }

    fn arrived(&mut self, from: SocketAddr, count: usize) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.received = (peer.received + count).min(peer.request.len());
        if peer.received == peer.request.len() {
            (peer.received, peer.told) = (0, 0);
            peer.sequence = peer.sequence.wrapping_add(1);
            peer.sent = Some(0);
            self.respond(from);
            return;
        }
        let window = peer.setup.window as usize;
        if window < peer.request.len() && peer.received - peer.told >= window / 2 {
            peer.told = peer.received;
            let go = Go { sequence: peer.sequence, received: peer.received as u32 };
            // A lost go is made good by the next, or the request times out.
            let _ = self.socket.send(from, &[IoVecSend::from(&go.encode()[..])], None);
        }
    }

    /// Sends what the kernel takes of a client's answer.
    fn respond(&mut self, to: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let datagram = peer.setup.datagram as u16;
        while let Some(sent) = peer.sent {
            let end = (sent + burst(datagram)).min(peer.response.len());
            match self.socket.send(to, &[IoVecSend::from(&peer.response[sent..end])], Some(datagram)) {
                Ok(count) if sent + count == peer.response.len() => peer.sent = None,
                Ok(count) => peer.sent = Some(sent + count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.push(to);
                    return;
                }
                // The client has left, or its sample is void.
                Err(_) => peer.sent = None,
            }
        }
    }

    fn retry(&mut self) -> bool {
        let waiting = self.blocked.len();
        for to in std::mem::take(&mut self.blocked) {
            self.respond(to);
        }
        self.blocked.len() < waiting
    }
}
