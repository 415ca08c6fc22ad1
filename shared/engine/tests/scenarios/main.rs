//! What the engine does, one scenario a module.
#![allow(missing_docs, unreachable_pub)]

#[path = "../rig/mod.rs"]
mod rig;

mod acknowledging;
mod admission;
mod at_most_once;
mod cancel;
mod completions;
mod congestion;
mod credit;
mod farewell;
mod forgetting;
mod hellos;
mod lost_answers;
mod pings;
mod priorities;
mod reserved;
mod shapes;
mod shares;
mod shrinking_path;
mod stalling;
mod strangers;
mod stream_numbers;
mod windows;
