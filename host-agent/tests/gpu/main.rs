//! Models served from a GPU, asked over TCP, and by way of a card. Without a GPU each test says so and does nothing.

mod ahead;
mod batches;
mod card;
mod common;
mod faults;
mod images;
mod kernels;
mod persistent;
mod present;
mod serve;
mod torch;
