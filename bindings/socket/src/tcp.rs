//! Streams.
#![forbid(unsafe_code)]

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::net::{RecvFlags, SocketFlags};
use socket2::{Domain, Protocol, Socket, Type};
use splitrpc_arena::{IoVec, IoVecSend};

use crate::buffers::set_buffers;
use crate::message::{self, MAX_IOVECS};

/// How a connecting stream is set up. `TCP_NODELAY` is always on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Bytes of the kernel's receive buffer; `None` leaves its automatic growth.
    pub recv_buffer: Option<usize>,
    /// Bytes of the kernel's send buffer; `None` leaves its automatic growth.
    pub send_buffer: Option<usize>,
}

/// How a listener is set up. Streams that it accepts inherit the buffer sizes, and have `TCP_NODELAY` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Several listeners share the address, and the kernel spreads the connections over them.
    pub reuse_port: bool,
    /// Connections that may wait to be accepted.
    pub backlog: i32,
    /// Bytes of each stream's receive buffer; `None` leaves its automatic growth.
    pub recv_buffer: Option<usize>,
    /// Bytes of each stream's send buffer; `None` leaves its automatic growth.
    pub send_buffer: Option<usize>,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions { reuse_port: false, backlog: 1024, recv_buffer: None, send_buffer: None }
    }
}

/// A non-blocking stream.
#[derive(Debug)]
pub struct TcpStream {
    socket: Socket,
}

impl TcpStream {
    /// Connects, waiting at most `timeout` for it.
    ///
    /// # Errors
    /// Those of the kernel, and [`io::ErrorKind::TimedOut`].
    pub fn connect(peer: SocketAddr, options: &TcpOptions, timeout: Duration) -> io::Result<TcpStream> {
        let stream = TcpStream::unconnected(peer, options)?;
        stream.socket.connect_timeout(&peer.into(), timeout)?;
        // Waiting left the socket blocking.
        stream.socket.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Begins to connect. The stream becomes writable when that has ended; [`TcpStream::take_error`] tells how.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn connect_start(peer: SocketAddr, options: &TcpOptions) -> io::Result<TcpStream> {
        let stream = TcpStream::unconnected(peer, options)?;
        match stream.socket.connect(&peer.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(stream),
        }
    }

    fn unconnected(peer: SocketAddr, options: &TcpOptions) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(peer), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        // Before connecting: the window scale is fixed by the handshake.
        set_buffers(socket.as_fd(), options.recv_buffer, options.send_buffer)?;
        Ok(TcpStream { socket })
    }

    /// Takes over a connected socket.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn from_fd(fd: OwnedFd) -> io::Result<TcpStream> {
        let socket = Socket::from(fd);
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        Ok(TcpStream { socket })
    }

    /// Reads the next bytes and scatters them over `list`, of which one call takes [`MAX_IOVECS`] elements. 0 is the
    /// end of the stream, unless the list has no room.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there are none yet; others of the kernel.
    pub fn readv(&self, list: &mut [IoVec<'_>]) -> io::Result<usize> {
        let taken = list.len().min(MAX_IOVECS);
        Ok(message::receive(self.as_fd(), &mut list[..taken], 0, false)?.len)
    }

    /// As [`TcpStream::readv`], into one piece of memory.
    ///
    /// # Errors
    /// As [`TcpStream::readv`].
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.readv(&mut [IoVec::from(bytes)])
    }

    /// Copies the next bytes and leaves them in the stream.
    ///
    /// # Errors
    /// As [`TcpStream::readv`].
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::net::recv(self, &mut *bytes, RecvFlags::PEEK))?.0)
    }

    /// Writes what `list` names, of which one call takes [`MAX_IOVECS`] elements; returns how many bytes the kernel
    /// took. A closed stream is an error, never a signal.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the kernel has no room; others of the kernel.
    pub fn writev(&self, list: &[IoVecSend<'_>]) -> io::Result<usize> {
        message::send(self.as_fd(), None, &list[..list.len().min(MAX_IOVECS)], None)
    }

    /// As [`TcpStream::writev`], from one piece of memory.
    ///
    /// # Errors
    /// As [`TcpStream::writev`].
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.writev(&[IoVecSend::from(bytes)])
    }

    /// Ends one direction or both.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }

    /// The other end.
    ///
    /// # Errors
    /// Those of the kernel, for instance when not connected.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// This end.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The error that waits to be reported, if one does; it is reported once.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    /// Asks for kernel buffers of these sizes.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn set_buffers(&self, recv: Option<usize>, send: Option<usize>) -> io::Result<()> {
        set_buffers(self.as_fd(), recv, send)
    }

    /// Bytes of the kernel's receive and send buffers, as the kernel counts them.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn buffers(&self) -> io::Result<(usize, usize)> {
        Ok((self.socket.recv_buffer_size()?, self.socket.send_buffer_size()?))
    }
}

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for TcpStream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A non-blocking listener.
#[derive(Debug)]
pub struct TcpListener {
    socket: Socket,
    local: SocketAddr,
}

impl TcpListener {
    /// Listens on `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn bind(address: SocketAddr, options: &ListenOptions) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // A server that restarts must not wait for its old connections to be forgotten.
        socket.set_reuse_address(true)?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        set_buffers(socket.as_fd(), options.recv_buffer, options.send_buffer)?;
        socket.bind(&address.into())?;
        socket.listen(options.backlog)?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok(TcpListener { socket, local })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none waits; others of the kernel, of which some concern one connection only
    /// ([`io::ErrorKind::ConnectionAborted`]) and some the process (no descriptors left).
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (fd, peer) = rustix::io::retry_on_intr(|| rustix::net::acceptfrom_with(self, flags))?;
        let socket = Socket::from(fd);
        socket.set_tcp_nodelay(true)?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
        Ok((TcpStream { socket }, peer))
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for TcpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
