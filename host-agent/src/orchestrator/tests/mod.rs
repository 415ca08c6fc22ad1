//! The orchestrator behind the in-process link, with small models that record what they were given.

mod ahead;
mod device;
mod faults;
mod random;
mod rig;
mod scenarios;
