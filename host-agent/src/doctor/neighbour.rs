//! Asking whoever has an address whether it is a server of this kind.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use splitrpc_client::{ConnectOptions, Connection, Error, Transport};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of an HTTP answer within which the first metric stands.
const HTTP_HEAD: usize = 4096;

/// Whether a splitrpc server takes requests at this address.
pub(super) fn takes_requests(address: SocketAddr, transport: Transport) -> bool {
    let options = ConnectOptions { timeout: PATIENCE, ..ConnectOptions::default() };
    let session = Connection::connect(&address.to_string(), transport, &options);
    // A server that is full or draining refuses the session, and is one all the same.
    matches!(session, Ok(_) | Err(Error::Refused(_)))
}

/// Whether a splitrpc server publishes its metrics at this address.
pub(super) fn publishes(address: SocketAddr) -> bool {
    let marker = b"splitrpc_build_info";
    metrics(address).is_ok_and(|said| said.windows(marker.len()).any(|part| part == marker))
}

fn metrics(address: SocketAddr) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let (mut said, mut part) = (Vec::new(), [0; 1024]);
    while said.len() < HTTP_HEAD && Instant::now() < until {
        match stream.read(&mut part)? {
            0 => break,
            n => said.extend_from_slice(&part[..n]),
        }
    }
    Ok(said)
}
