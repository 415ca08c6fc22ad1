//! A session over whichever transport.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use crate::{
    Catalogue, ConnectOptions, DEFAULT_PORT, Error, Event, Request, RequestId, Response, TcpConnection, UdpConnection,
};

/// What carries a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A session over whichever transport, polled by its owner. Its methods are those of [`TcpConnection`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Connection {
    /// Over TCP.
    Tcp(Box<TcpConnection>),
    /// Over UDP.
    Udp(Box<UdpConnection>),
}

macro_rules! each {
    ($self:ident, $connection:ident => $body:expr) => {
        match $self {
            Connection::Tcp($connection) => $body,
            Connection::Udp($connection) => $body,
        }
    };
}

impl Connection {
    /// Connects to the first of the addresses that `address` (host or host:port) means and that answers; blocks until
    /// the session is ready.
    ///
    /// # Errors
    /// [`Error::Address`], or the last address's own error.
    pub fn connect(address: &str, transport: Transport, options: &ConnectOptions) -> Result<Connection, Error> {
        let mut last = None;
        for addr in resolve(address)? {
            let made = match transport {
                Transport::Tcp => TcpConnection::connect(addr, options.clone()).map(|c| Connection::Tcp(Box::new(c))),
                Transport::Udp => UdpConnection::connect(addr, options.clone()).map(|c| Connection::Udp(Box::new(c))),
            };
            match made {
                Ok(connection) => return Ok(connection),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| no_address(address, "it means no address")))
    }

    /// Begins to connect to one address.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub fn start(addr: SocketAddr, transport: Transport, options: ConnectOptions) -> Result<Connection, Error> {
        match transport {
            Transport::Tcp => Ok(Connection::Tcp(Box::new(TcpConnection::start(addr, options)?))),
            Transport::Udp => Ok(Connection::Udp(Box::new(UdpConnection::start(addr, options)?))),
        }
    }

    /// See [`TcpConnection::submit`].
    ///
    /// # Errors
    /// As there.
    pub fn submit(&mut self, request: &Request<'_>) -> Result<RequestId, Error> {
        each!(self, c => c.submit(request))
    }

    /// See [`TcpConnection::submit_with`]. `blocked` gets the descriptor, whether it should be writable, and until when
    /// to wait at most.
    ///
    /// # Errors
    /// As there.
    pub fn submit_with(
        &mut self,
        request: &Request<'_>,
        mut blocked: impl FnMut(BorrowedFd<'_>, bool, Option<Instant>) -> Result<(), Error>,
    ) -> Result<RequestId, Error> {
        match self {
            Connection::Tcp(c) => c.submit_with(request, |c| blocked(c.as_fd(), true, c.next_timeout())),
            // Sent again if need be, the data must outlive the call.
            Connection::Udp(c) => c.submit(request),
        }
    }

    /// See [`TcpConnection::poll`].
    ///
    /// # Errors
    /// As there.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        each!(self, c => c.poll())
    }

    /// See [`TcpConnection::cancel`].
    pub fn cancel(&mut self, id: RequestId) -> bool {
        each!(self, c => c.cancel(id))
    }

    /// See [`TcpConnection::ping`].
    ///
    /// # Errors
    /// As there.
    pub fn ping(&mut self) -> Result<(), Error> {
        each!(self, c => c.ping())
    }

    /// Takes no answer to earlier pings for one any more. Over TCP none is lost, and they come in turn.
    pub(crate) fn forget_pings(&mut self) {
        if let Connection::Udp(connection) = self {
            connection.forget_pings();
        }
    }

    /// See [`UdpConnection::acknowledge`]. TCP does so itself.
    pub fn acknowledge(&mut self) {
        match self {
            Connection::Tcp(_) => {}
            Connection::Udp(c) => c.acknowledge(),
        }
    }

    /// See [`TcpConnection::refresh_catalogue`].
    ///
    /// # Errors
    /// As there.
    pub fn refresh_catalogue(&mut self) -> Result<(), Error> {
        each!(self, c => c.refresh_catalogue())
    }

    /// See [`TcpConnection::recycle`].
    pub fn recycle(&mut self, response: Response) {
        each!(self, c => c.recycle(response));
    }

    /// See [`TcpConnection::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        each!(self, c => c.is_ready())
    }

    /// See [`TcpConnection::in_flight`].
    #[must_use]
    pub fn in_flight(&self) -> usize {
        each!(self, c => c.in_flight())
    }

    /// See [`TcpConnection::max_in_flight`].
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        each!(self, c => c.max_in_flight())
    }

    /// See [`TcpConnection::wants_write`].
    #[must_use]
    pub fn wants_write(&self) -> bool {
        each!(self, c => c.wants_write())
    }

    /// See [`TcpConnection::has_more`].
    #[must_use]
    pub fn has_more(&self) -> bool {
        each!(self, c => c.has_more())
    }

    /// See [`TcpConnection::next_timeout`].
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        each!(self, c => c.next_timeout())
    }

    /// See [`TcpConnection::limits`].
    #[must_use]
    pub fn limits(&self) -> Option<&splitrpc_wire::hello::HelloAck> {
        each!(self, c => c.limits())
    }

    /// See [`TcpConnection::catalogue`].
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        each!(self, c => c.catalogue())
    }

    /// See [`TcpConnection::peer_addr`].
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        each!(self, c => c.peer_addr())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(self, c => c.as_fd())
    }
}

/// The socket addresses that `host:port`, or a host alone, means.
///
/// # Errors
/// [`Error::Address`].
pub fn resolve(address: &str) -> Result<Vec<SocketAddr>, Error> {
    if let Ok(ip) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_PORT)]);
    }
    let found = match address.rsplit_once(':') {
        Some(_) => address.to_socket_addrs(),
        None => (address, DEFAULT_PORT).to_socket_addrs(),
    };
    let found: Vec<SocketAddr> = found.map_err(|e| no_address(address, &e.to_string()))?.collect();
    if found.is_empty() { Err(no_address(address, "it means no address")) } else { Ok(found) }
}

fn no_address(address: &str, reason: &str) -> Error {
    Error::Address { address: address.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_be_left_out() {
        let one = |s: &str| resolve(s).unwrap()[0].to_string();
        assert_eq!(one("127.0.0.1"), "127.0.0.1:7100");
        assert_eq!(one("127.0.0.1:9"), "127.0.0.1:9");
        assert_eq!(one("::1"), "[::1]:7100");
        assert_eq!(one("[::1]:9"), "[::1]:9");
        assert_eq!(resolve("localhost").unwrap()[0].port(), DEFAULT_PORT);
        assert!(matches!(resolve("127.0.0.1:port"), Err(Error::Address { .. })));
        assert!(matches!(resolve(""), Err(Error::Address { .. })));
    }
}
