pub mod client;
pub mod frames;
pub mod host;
pub mod manners;
pub mod net;
pub mod rng;
pub mod stream;
pub mod world;
