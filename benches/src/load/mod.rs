//! The load generator: one thread, many connections, closed and open loops.

pub(crate) mod arrivals;
pub(crate) mod connection;
pub(crate) mod driver;
pub(crate) mod window;
