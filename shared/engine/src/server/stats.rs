//! What a server engine counts.

use splitrpc_wire::{Status, WireError};

/// Requests that ended with each status, by its place in [`Status::ALL`].
pub type Ended = [u64; Status::ALL.len()];

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counters since the engine started.
        #[derive(Clone, Copy, Debug)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)+
            /// Frames that did not parse, by [`WireError::index`].
            pub malformed: [u64; WireError::ALL.len()],
            /// Requests that ended with each status.
            pub ended: Ended,
        }

        impl Default for Stats {
            fn default() -> Self {
                Stats { $($name: 0,)+ malformed: [0; WireError::ALL.len()], ended: [0; Status::ALL.len()] }
            }
        }

        impl Stats {
            /// Name and value of each plain counter.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

stats! {
    /// Frames taken in.
    frames_in,
    /// Frames handed out for sending.
    frames_out,
    /// Sessions opened.
    sessions_opened,
    /// Sessions closed by their client, with its stream, or because it opened another from the same address.
    sessions_closed,
    /// Sessions forgotten because they were silent, some of them early to make room for another.
    sessions_expired,
    /// Hellos refused because the table was full of sessions in use.
    sessions_refused,
    /// Datagram hellos answered with a challenge.
    challenges,
    /// Frames for sessions that do not exist, or from another address.
    unknown_session,
    /// Frames dropped because all of them was in place already.
    duplicates,
    /// Frames dropped because they came before their manifest and the model's shapes vary.
    before_manifest,
    /// Frames dropped because their message had too many gaps.
    fragmented,
    /// Frames that lie outside their message.
    outside,
    /// Frames of kinds that only servers send.
    wrong_direction,
    /// Control replies dropped for want of room.
    control_dropped,
    /// Requests submitted.
    submitted,
    /// Data bytes placed.
    bytes_placed,
    /// Bytes that a CPU copied on the way in.
    bytes_copied,
    /// Of those, bytes copied again.
    bytes_fixup,
    /// Data bytes sent, repeats included.
    bytes_sent,
    /// Frames that counted as lost and were sent again.
    frames_lost,
    /// Kept replies given up before the client confirmed them.
    replies_evicted,
    /// Completions that named no request in the orchestrator's hands.
    stray_completions,
    /// Datagram sessions whose path refused large datagrams.
    datagram_shrunk,
}
