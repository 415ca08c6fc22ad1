//! What only a GPU can show. Where there is none, each test says so and passes; with `SPLITRPC_TESTS_REQUIRE_GPU=1` it fails.
//!
//! The program needs nothing beside it, so it can be carried to the machine with the GPU and run there.

mod common;
mod copies;
mod device;
mod export;
mod fault;
mod graph;
mod host;
mod kernels;
mod streams;
