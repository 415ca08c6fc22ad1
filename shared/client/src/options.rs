//! How a connection is made and what it may use.

use std::time::Duration;

/// Settings and limits of one connection. Every limit holds against whatever the server sends.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Time for everything until the session is ready: connection, hello, catalogue.
    pub timeout: Duration,
    /// How long a server may say nothing at all while an answer is due, before the session is given up; over UDP 5 seconds at
    /// most. It is asked for a sign of life well before. Over TCP dead machines are found by the kernel's keep-alive besides.
    pub silence: Duration,
    /// Most requests in flight; the server's own limit counts too.
    pub max_in_flight: u16,
    /// Largest response that is taken, in bytes, manifest included. The server is told.
    pub max_response: u32,
    /// Most bytes that are copied because the socket did not take them at once.
    pub max_unsent: usize,
    /// Whether to fetch the model catalogue. Without it requests need model handles from elsewhere.
    pub catalogue: bool,
    /// Largest catalogue that is taken, in bytes.
    pub max_catalogue: u32,
    /// The socket's send buffer in bytes; `None` leaves it to the system, which then grows it by need.
    pub send_buffer: Option<usize>,
    /// The socket's receive buffer in bytes; `None` leaves it to the system.
    pub recv_buffer: Option<usize>,
    /// Largest datagram in bytes of UDP payload, where the transport is UDP.
    pub datagram: u16,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            timeout: Duration::from_secs(5),
            silence: Duration::from_secs(20),
            max_in_flight: 1024,
            max_response: 64 << 20,
            max_unsent: 64 << 20,
            catalogue: true,
            max_catalogue: 4 << 20,
            send_buffer: None,
            recv_buffer: None,
            datagram: 1472,
        }
    }
}
