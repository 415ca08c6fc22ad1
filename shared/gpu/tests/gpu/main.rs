//! Slots, movers and lanes on a real device. Without one each test says why it is left out; `SPLITRPC_TESTS_REQUIRE_GPU` makes that
//! a failure.

mod common;
mod copies;
mod gate;
mod gather;
mod lanes;
mod persistent;
mod porter;
