//! What is counted: declared once, here. A metric's name and help text follow from the declaration.

macro_rules! declared {
    ($(#[$doc:meta])* $ty:ident, $suffix:literal { $($name:ident = $help:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum $ty { $(#[doc = $help] $name,)+ }

        impl $ty {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [$ty] = &[$($ty::$name,)+];

            /// The help text.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $($ty::$name => $help,)+ }
            }

            /// The metric's name.
            #[must_use]
            pub fn metric(self) -> String {
                let name = match self { $($ty::$name => stringify!($name),)+ };
                format!("splitrpc_{}{}", snake(name), $suffix)
            }
        }
    };
}

declared! {
    /// Something that happened and is counted. None carries a label; what does is in [`crate::Model`].
    Event, "_total" {
        FramesReceived = "Frames that parsed.",
        FramesSent = "Frames handed to the network.",
        BytesReceived = "Bytes received from the network, headers included.",
        BytesSent = "Bytes sent to the network, headers included.",
        StreamsAccepted = "TCP connections accepted.",
        StreamsRefused = "TCP connections refused for want of a place.",
        StreamsClosed = "TCP connections closed.",
        StreamsStalled = "Of those, closed because they took or sent nothing for too long.",
        StreamsOverrun = "Of those, closed because more waited to be written to them than may.",
        SessionsOpened = "Sessions opened.",
        SessionsClosed = "Sessions closed or forgotten.",
        SessionsRefused = "Sessions over datagrams refused because all places were in use.",
        AddressChallenges = "Datagram clients asked to prove their address.",
        RequestsAdmitted = "Requests that were given a slot.",
        RequestsRefused = "Requests that were not answered: refused, failed, cancelled, or out of time.",
        RepliesGivenUp = "Answers given up before their client had confirmed them.",
        ControlDropped = "Small frames, such as errors, dropped because too many waited to be sent.",
        DuplicateFrames = "Frames that repeated what had arrived.",
        FramesLost = "Frames that counted as lost and whose bytes were sent again.",
        FramesForeseen = "Frames or small requests that landed in their slots.",
        FramesMoved = "Frames or small requests that landed outside their slots and were copied there.",
        FramesDiscarded = "Frames that belong to no live request or session, or that only servers send.",
        BytesPlaced = "Tensor bytes put into slots, of requests that ended without an answer too.",
        BytesCopied = "Of those, bytes that a CPU copied on the way.",
        BytesMoved = "Of those, bytes that were copied again.",
        BytesAnswered = "Tensor bytes of answers sent, repeats included.",
        FaultHookDrops = "Datagrams dropped on purpose by the fault hook.",
        DatagramsReceived = "Datagrams received.",
        DatagramsLookedAt = "Of those, datagrams looked at before they were received, to see where they belong.",
        DatagramsSent = "Datagrams sent.",
        DatagramsDelayed = "Times that datagrams had to wait for room in the kernel.",
        BurstsSent = "System calls that sent datagrams.",
        BurstsReceived = "System calls that received datagrams.",
        BurstsWithoutOffload = "Bursts of datagrams that the kernel did not cut apart, so that each took a call of its own.",
        DatagramsUnsent = "Datagrams that the kernel did not take: no room, too large, or refused.",
        PathsShrunk = "Datagram sessions that went down to small datagrams because large ones did not arrive.",
        Launches = "Batches launched.",
        PreLaunchesUsed = "Of those, batches whose launch had been waiting on the device.",
        PreLaunchesWasted = "Launches that waited on a device for a request that did not come as foreseen.",
        Submissions = "Submissions taken from the link.",
        Completions = "Completions sent over the link.",
        LinkErrors = "Descriptors that the host took from the link and that named something that does not exist.",
        StrayCompletions = "Completions that the engine took from the link and that named no request.",
        HostLinkFaults = "Entries of the link that were damaged, or out of turn, as the host saw it.",
        EngineLinkFaults = "Entries of the link that were damaged, or out of turn, as the engine saw it.",
        WorkersReplaced = "Runtime instances replaced after a panic.",
        Wakeups = "Times that a data thread was woken from sleep.",
    }
}

declared! {
    /// Something that has a level at any moment.
    Level, "" {
        Streams = "TCP connections open.",
        RequestsInFlight = "Requests admitted and not yet answered.",
        RequestsQueued = "Requests waiting for a launch.",
        InputSlotsFree = "Input slots that are free.",
        OutputSlotsFree = "Output slots that are free.",
    }
}

declared! {
    /// Something that happens to a card beside its requests, whatever host agent it serves.
    CardEvent, "_total" {
        CardCopiesSubmitted = "Copies between card and host that were begun.",
        CardCopiesCompleted = "Of those, copies that arrived.",
        CardCopiesRetried = "Times that a copy was begun once more because it had not arrived.",
        CardCopiesFailed = "Copies that were given up.",
        CardBytesToHost = "Bytes copied into the host's memory.",
        CardBytesFromHost = "Bytes copied from the host's memory.",
        CardDoorbellKnocks = "Datagrams sent to rouse a host agent that sleeps.",
        CardHostAgentsServed = "Host agents that the card began to serve.",
        CardHostAgentsRefused = "Host agents that were sent away, with the reason in the log.",
    }
}

/// `CamelCase` to `snake_case`.
fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for (i, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_from_declarations_and_differ() {
        assert_eq!(Event::FramesReceived.metric(), "splitrpc_frames_received_total");
        assert_eq!(Level::Streams.metric(), "splitrpc_streams");
        let names = Event::ALL.iter().map(|e| e.metric()).chain(Level::ALL.iter().map(|l| l.metric()));
        let names: HashSet<_> = names.chain(CardEvent::ALL.iter().map(|e| e.metric())).collect();
        assert_eq!(names.len(), Event::ALL.len() + Level::ALL.len() + CardEvent::ALL.len());
    }
}
