//! The agent beside a card: a card's process, an agent's process, and the software BlueField between them.

mod device;
mod ends;
mod faults;
mod rig;
mod serves;
