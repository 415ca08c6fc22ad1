//! Datagrams, with segmentation offload where the kernel has it.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Domain, Protocol, Socket, Type};
use splitrpc_arena::{IoVec, IoVecSend};

use crate::buffers::set_buffers;
use crate::message::{self, Arrival};

/// Datagrams that one send may be cut into.
pub const MAX_GSO_SEGMENTS: usize = 64;
/// Bytes of one send or receive, at most: the largest UDP payload over IPv4.
pub const MAX_UDP_PAYLOAD: usize = 65_507;

/// Pieces that one datagram may be gathered from where the kernel does not cut sends into datagrams.
const MAX_PIECES: usize = 64;

/// How a socket is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    /// Several sockets share the address, and the kernel spreads the senders over them.
    pub reuse_port: bool,
    /// Bytes of the kernel's receive buffer; without privileges the kernel may grant less.
    pub recv_buffer: Option<usize>,
    /// Bytes of the kernel's send buffer; without privileges the kernel may grant less.
    pub send_buffer: Option<usize>,
    /// Let the kernel put datagrams of one sender together (`UDP_GRO`), if it can.
    pub gro: bool,
    /// Let the kernel cut one send into many datagrams (`UDP_SEGMENT`), if it can.
    pub gso: bool,
    /// Never fragment: a datagram larger than the interface allows is an error, and routers drop what they cannot pass.
    pub dont_fragment: bool,
}

impl Default for UdpOptions {
    fn default() -> UdpOptions {
        UdpOptions {
            reuse_port: false,
            recv_buffer: None,
            send_buffer: None,
            gro: true,
            gso: true,
            dont_fragment: false,
        }
    }
}

/// A look at the next datagram, which stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// The datagram's own length (of all together where the kernel put several together), however much was looked at.
    pub len: usize,
    /// The sender.
    pub from: SocketAddr,
    /// Size of the datagrams (the last may be shorter) when the kernel put several together.
    pub segment: Option<u16>,
}

/// A datagram that has been placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes placed.
    pub len: usize,
    /// The sender.
    pub from: SocketAddr,
    /// Size of the datagrams (the last may be shorter) when the kernel put several together.
    pub segment: Option<u16>,
    /// Whether there was more than the list had room for; the rest is lost.
    pub truncated: bool,
}

/// A non-blocking datagram socket.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
    connected: Option<SocketAddr>,
    gro: bool,
    gso: AtomicBool,
    gso_fallbacks: AtomicU64,
}

impl UdpSocket {
    /// A socket on `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// Those of the kernel. That it lacks an offload is none: see [`UdpSocket::gro_supported`] and
    /// [`UdpSocket::gso_supported`].
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        set_buffers(socket.as_fd(), options.recv_buffer, options.send_buffer)?;
        if options.dont_fragment {
            match address {
                SocketAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
                SocketAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
            }
        }
        let gro = options.gro && message::set_udp_option(socket.as_fd(), libc::UDP_GRO, 1).is_ok();
        // 0 is what the option is already, so this only asks whether the kernel knows it.
        let gso = options.gso && message::set_udp_option(socket.as_fd(), libc::UDP_SEGMENT, 0).is_ok();
        socket.bind(&address.into())?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let (gso, gso_fallbacks) = (AtomicBool::new(gso), AtomicU64::new(0));
        Ok(UdpSocket { socket, local, connected: None, gro, gso, gso_fallbacks })
    }

    /// Where it is bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Talks to `peer` only: datagrams of others are no longer received, and sends need no routing of their own.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn connect(&mut self, peer: SocketAddr) -> io::Result<()> {
        self.socket.connect(&peer.into())?;
        self.connected = Some(peer);
        self.local = self.socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok(())
    }

    /// Whether the kernel puts datagrams together for this socket.
    #[must_use]
    pub fn gro_supported(&self) -> bool {
        self.gro
    }

    /// Whether the kernel cuts sends into datagrams for this socket. Turns false when a device proves unable to.
    #[must_use]
    pub fn gso_supported(&self) -> bool {
        self.gso.load(Relaxed)
    }

    /// Sends of several datagrams that took one system call each, for lack of offload.
    #[must_use]
    pub fn gso_fallbacks(&self) -> u64 {
        self.gso_fallbacks.load(Relaxed)
    }

    /// Bytes of the kernel's receive and send buffers, as the kernel counts them.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn buffers(&self) -> io::Result<(usize, usize)> {
        Ok((self.socket.recv_buffer_size()?, self.socket.send_buffer_size()?))
    }

    /// Copies the beginning of the next datagram, as much as `head` holds, and leaves it in the queue.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; others of the kernel.
    pub fn peek(&self, head: &mut [u8]) -> io::Result<Peeked> {
        let flags = libc::MSG_PEEK | libc::MSG_TRUNC;
        let Arrival { len, from, segment, .. } = message::receive(self.as_fd(), &mut [IoVec::from(head)], flags, true)?;
        Ok(Peeked { len, from: known(from)?, segment })
    }

    /// Takes the next datagram and scatters it over `list`, which has at most [`crate::MAX_IOVECS`] elements.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; others of the kernel.
    pub fn recv(&self, list: &mut [IoVec<'_>]) -> io::Result<Received> {
        let Arrival { len, from, segment, truncated } = message::receive(self.as_fd(), list, 0, true)?;
        Ok(Received { len, from: known(from)?, segment, truncated })
    }

    /// Sends what `list` names as one datagram, or as datagrams of `segment` bytes of which only the last may be
    /// shorter: at most [`MAX_GSO_SEGMENTS`] of them, of [`MAX_UDP_PAYLOAD`] bytes together. Returns the bytes sent; that
    /// are less than all only where the kernel offers no offload and ran out of room between two datagrams.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the kernel has no room; [`io::ErrorKind::InvalidInput`] for a segment size
    /// that the list does not fit; others of the kernel.
    pub fn send(&self, to: SocketAddr, list: &[IoVecSend<'_>], segment: Option<u16>) -> io::Result<usize> {
        let to = (self.connected != Some(to)).then_some(to);
        let total: usize = list.iter().map(IoVecSend::len).sum();
        let Some(segment) = segment.filter(|&segment| total > usize::from(segment)) else {
            return message::send(self.as_fd(), to, list, None);
        };
        if segment == 0 || total > MAX_UDP_PAYLOAD || total.div_ceil(usize::from(segment)) > MAX_GSO_SEGMENTS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.gso.load(Relaxed) {
            match message::send(self.as_fd(), to, list, Some(segment)) {
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    // The device behind this route cannot; asking again for every send would be waste.
                    self.gso.store(false, Relaxed);
                }
                // This one does not fit the rules of the offload (its path may take less than a segment).
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        self.gso_fallbacks.fetch_add(1, Relaxed);
        self.send_one_by_one(to, list, usize::from(segment))
    }

    fn send_one_by_one(&self, to: Option<SocketAddr>, list: &[IoVecSend<'_>], segment: usize) -> io::Result<usize> {
        let (mut index, mut offset, mut sent) = (0, 0, 0);
        loop {
            let mut pieces = [IoVecSend::EMPTY; MAX_PIECES];
            let (mut count, mut room) = (0, segment);
            while room > 0 && index < list.len() {
                let piece = list[index].part(offset, room);
                room -= piece.len();
                offset += piece.len();
                if offset == list[index].len() {
                    (index, offset) = (index + 1, 0);
                }
                if !piece.is_empty() {
                    *pieces.get_mut(count).ok_or(io::ErrorKind::InvalidInput)? = piece;
                    count += 1;
                }
            }
            if count == 0 {
                return Ok(sent);
            }
            match message::send(self.as_fd(), to, &pieces[..count], None) {
                Ok(bytes) => sent += bytes,
                Err(error) if sent == 0 => return Err(error),
                // What is sent is sent; the caller meets the error again when it sends the rest.
                Err(_) => return Ok(sent),
            }
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The kernel names the sender of every internet datagram.
fn known(from: Option<SocketAddr>) -> io::Result<SocketAddr> {
    from.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
