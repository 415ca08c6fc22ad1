//! The splitrpc client.
//!
//! Three layers, each usable alone:
//!
//! - [`TcpConnection`] and [`UdpConnection`] (or [`Connection`], which is either): one session, polled, never blocking,
//!   without a thread of its own. `submit` any number of requests, `poll` for their ends in whatever order they come.
//! - [`Client`]: blocking calls by model and tensor name, with reconnection and retries.
//! - [`AsyncClient`]: the same calls as futures on tokio; dropping one cancels its request.
//!
//! ```no_run
//! use splitrpc_client::wire::DType;
//! use splitrpc_client::{Client, ClientOptions, Input};
//!
//! let mut client = Client::connect("127.0.0.1:7100", ClientOptions::default())?;
//! let image = vec![0; 4 * 8 * 8 * 4];
//! let response = client.infer("digits", &[Input::new("IMAGE", DType::Fp32, &[4, 8, 8], &image)])?;
//! for output in response.outputs() {
//!     println!("{:?}: {} bytes", output.desc.shape.dims(), output.data.len());
//! }
//! client.recycle(response);
//! # Ok::<(), splitrpc_client::Error>(())
//! ```
//!
//! Tensors are raw little-endian bytes in row-major order; [`npy`] reads and writes them as NumPy files.
//!
//! May live here: the client's half of a session, its convenience layers, and file formats that its command line needs.
//! May not: protocol layouts (`splitrpc-wire`), datagram protocol rules (`splitrpc-engine`), anything of a server.
#![forbid(unsafe_code)]

mod asynchronous;
mod blocking;
mod catalogue;
mod connection;
mod error;
mod flight;
pub mod npy;
mod options;
mod request;
mod response;
mod tcp;
mod udp;
mod wait;

pub use asynchronous::AsyncClient;
pub use blocking::{CallOptions, Client, ClientOptions};
pub use catalogue::{Catalogue, Model, TensorSpec};
pub use connection::{Connection, Transport, resolve};
pub use error::{Error, Failure};
pub use options::ConnectOptions;
pub use request::{Data, Input, Request, RequestId, Tensor};
pub use response::{Event, Output, Response};
pub use tcp::TcpConnection;
pub use udp::UdpConnection;
pub use wait::{Wait, Waiter};

/// The wire crate, whose types (shapes, element types, paths, statuses) this crate's interface uses.
pub use splitrpc_wire as wire;

/// The port that an address without one means.
pub const DEFAULT_PORT: u16 = 7100;
