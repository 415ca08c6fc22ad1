//! The agent beside a card: a card's process, an agent's process, and the software BlueField between them.

mod device;
mod doctor;
mod ends;
mod faults;
mod hostile;
mod peers;
mod rig;
mod serves;
mod untouched;
mod watched;
