pub mod client;
pub mod frames;
pub mod host;
pub mod net;
pub mod rng;
pub mod world;
