//! What a data thread counted, handed to whoever exports it.

use splitrpc_engine::{Stats, Transmit};
use splitrpc_ring::Faults;
use splitrpc_telemetry::{Event, Level, Shard};
use splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
use splitrpc_wire::path::PATH_LEN;
use splitrpc_wire::{Path, Stage, Status, WireError};

use crate::storage::Engine;
use crate::tcp::{TcpPort, TcpStats};
use crate::udp::{UdpPort, UdpStats};

/// Takes over the totals of engine, its end of the link, and ports.
pub(crate) fn publish(
    to: &Shard,
    engine: &Engine<'_>,
    link: Faults,
    input_pools: u16,
    tcp: Option<&TcpPort>,
    udp: Option<&UdpPort>,
) {
    // Every counter is named, so that none can be forgotten.
    let Stats {
        frames_in,
        frames_out,
        sessions_opened,
        sessions_closed,
        sessions_expired,
        sessions_refused,
        challenges,
        unknown_session,
        duplicates,
        before_manifest,
        fragmented,
        outside,
        wrong_direction,
        control_dropped,
        submitted,
        bytes_placed,
        bytes_copied,
        bytes_fixup,
        bytes_sent,
        frames_lost,
        replies_evicted,
        stray_completions,
        datagram_shrunk,
        malformed,
        ended,
    } = *engine.stats();
    to.set(Event::FramesReceived, frames_in);
    to.set(Event::FramesSent, frames_out);
    to.set(Event::SessionsOpened, sessions_opened);
    to.set(Event::SessionsClosed, sessions_closed + sessions_expired);
    to.set(Event::SessionsRefused, sessions_refused);
    to.set(Event::AddressChallenges, challenges);
    to.set(Event::RequestsAdmitted, submitted);
    to.set(Event::DuplicateFrames, duplicates);
    to.set(Event::FramesLost, frames_lost);
    to.set(Event::FramesDiscarded, unknown_session + before_manifest + fragmented + outside + wrong_direction);
    to.set(Event::BytesPlaced, bytes_placed);
    to.set(Event::BytesCopied, bytes_copied);
    to.set(Event::BytesMoved, bytes_fixup);
    to.set(Event::BytesAnswered, bytes_sent);
    to.set(Event::RepliesGivenUp, replies_evicted);
    to.set(Event::ControlDropped, control_dropped);
    to.set(Event::PathsShrunk, datagram_shrunk);
    to.set(Event::StrayCompletions, stray_completions);
    to.set(Event::EngineLinkFaults, link.total());
    publish_ports(to, tcp.map(TcpPort::stats).unwrap_or_default(), udp.map(UdpPort::stats).unwrap_or_default());
    to.level(Level::RequestsInFlight, u64::from(engine.live_requests()));
    to.level(Level::InputSlotsFree, (0..input_pools).map(|pool| u64::from(engine.free_slots(pool))).sum());
    for (error, total) in WireError::ALL.iter().zip(malformed) {
        to.set_wire_error(*error, total);
    }
    let mut refused = 0;
    let failures = || Status::ALL.iter().enumerate().filter(|(_, status)| **status != Status::Ok);
    for (at, status) in failures() {
        let mut unnamed = ended[at];
        refused += unnamed;
        for (model, its) in engine.ended().iter().enumerate() {
            to.set_refused(Some(model as u16), *status, its[at]);
            unnamed -= its[at];
        }
        to.set_refused(None, *status, unnamed);
    }
    to.set(Event::RequestsRefused, refused);
}

fn publish_ports(to: &Shard, tcp: TcpStats, udp: UdpStats) {
    let TcpStats {
        accepted,
        refused,
        closed,
        stalled,
        overrun,
        bytes_in: stream_bytes_in,
        bytes_out: stream_bytes_out,
        foreseen: requests_foreseen,
        misjudged: requests_misjudged,
        open,
    } = tcp;
    let UdpStats {
        bytes_in,
        bytes_out,
        datagrams_in,
        datagrams_out,
        bursts_in,
        bursts_out,
        looks,
        foreseen,
        misjudged,
        dropped,
        send_waits,
        no_room,
        too_large,
        refused: datagrams_refused,
        without_offload,
    } = udp;
    to.set(Event::BytesReceived, stream_bytes_in + bytes_in);
    to.set(Event::BytesSent, stream_bytes_out + bytes_out);
    to.set(Event::FramesForeseen, requests_foreseen + foreseen);
    to.set(Event::FramesMoved, requests_misjudged + misjudged);
    to.set(Event::StreamsAccepted, accepted);
    to.set(Event::StreamsRefused, refused);
    to.set(Event::StreamsClosed, closed);
    to.set(Event::StreamsStalled, stalled);
    to.set(Event::StreamsOverrun, overrun);
    to.level(Level::Streams, u64::from(open));
    to.set(Event::DatagramsReceived, datagrams_in);
    to.set(Event::DatagramsLookedAt, looks);
    to.set(Event::DatagramsSent, datagrams_out);
    to.set(Event::DatagramsDelayed, send_waits);
    to.set(Event::DatagramsUnsent, no_room + too_large + datagrams_refused);
    to.set(Event::BurstsReceived, bursts_in);
    to.set(Event::BurstsSent, bursts_out);
    to.set(Event::BurstsWithoutOffload, without_offload);
    to.set(Event::FaultHookDrops, dropped);
}

/// Answers whose stages are still to be recorded: that can wait until they have left.
#[derive(Debug, Default)]
pub(crate) struct Departures(heapless::Vec<(u16, [u8; PATH_LEN]), DEPARTURES>);

/// Answers remembered at most; then they are recorded at once.
const DEPARTURES: usize = 16;

impl Departures {
    /// Remembers a frame if it answers a request.
    pub(crate) fn note(&mut self, to: &Shard, frame: &Transmit<'_>) {
        if !frame.answers {
            return;
        }
        if self.0.is_full() {
            self.record(to);
        }
        if let Some(block) = frame.head.get(MANIFEST_HEAD_LEN..).and_then(|rest| rest.first_chunk()) {
            // There is room: made just above.
            let _ = self.0.push((frame.header.model, *block));
        }
    }

    /// Records the stages of all that were remembered.
    pub(crate) fn record(&mut self, to: &Shard) {
        for (model, block) in &self.0 {
            if let Ok(path) = Path::parse(block) {
                let total = Stage::ALL.iter().map(|stage| u64::from(path.stage(*stage))).sum();
                to.request(*model, &path, Status::Ok, total);
            }
        }
        self.0.clear();
    }
}
