//! Safe handles over the system calls that the data path makes.
//!
//! What may live here: thin, non-blocking handles (UDP with segmentation offload, TCP, epoll, eventfd), and what a data
//! thread asks the kernel about itself. What may not: the protocol, buffers with a meaning, threads, or a policy.
//!
//! No call that moves data allocates. An interrupted call is repeated; one that would block says
//! [`std::io::ErrorKind::WouldBlock`].
#![deny(unsafe_code)]

mod address;
mod buffers;
mod control;
#[allow(unsafe_code)]
mod message;
#[allow(unsafe_code)]
mod poller;
#[allow(unsafe_code)]
mod queue;
mod tcp;
#[allow(unsafe_code)]
mod thread;
mod udp;
mod wake;

pub use message::MAX_IOVECS;
pub use poller::{Event, Events, Interest, Poller};
pub use queue::unacknowledged;
pub use splitrpc_arena::{IoVec, IoVecBuf, IoVecSend, IoVecSendBuf};
pub use tcp::{ListenOptions, TcpListener, TcpOptions, TcpStream};
pub use thread::{allowed_cores, cpu_time_of, cpu_time_process, cpu_time_thread, pin_current_thread};
pub use udp::{MAX_GSO_SEGMENTS, MAX_UDP_PAYLOAD, Peeked, Received, UdpOptions, UdpSocket};
pub use wake::WakeFd;
