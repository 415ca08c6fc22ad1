//! What a data thread counted, handed to whoever exports it.

use splitrpc_engine::Stats;
use splitrpc_telemetry::{Event, Level, Shard};
use splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
use splitrpc_wire::path::PATH_LEN;
use splitrpc_wire::{Flags, Header, Kind, Path, Stage, Status, WireError};

use crate::storage::Engine;
use crate::tcp::TcpPort;
use crate::udp::UdpPort;

/// Takes over the totals of engine and ports.
pub(crate) fn publish(to: &Shard, engine: &Engine, input_pools: u16, tcp: Option<&TcpPort>, udp: Option<&UdpPort>) {
    let stats: &Stats = engine.stats();
    let tcp = tcp.map(TcpPort::stats).unwrap_or_default();
    let udp = udp.map(UdpPort::stats).unwrap_or_default();
    to.set(Event::FramesReceived, stats.frames_in);
    to.set(Event::FramesSent, stats.frames_out);
    to.set(Event::BytesReceived, tcp.bytes_in + udp.bytes_in);
    to.set(Event::BytesSent, tcp.bytes_out + udp.bytes_out);
    to.set(Event::StreamsAccepted, tcp.accepted);
    to.set(Event::StreamsRefused, tcp.refused);
    to.set(Event::StreamsClosed, tcp.closed);
    to.set(Event::StreamsStalled, tcp.stalled);
    to.set(Event::StreamsOverrun, tcp.overrun);
    to.set(Event::SessionsOpened, stats.sessions_opened);
    to.set(Event::SessionsClosed, stats.sessions_closed + stats.sessions_expired);
    to.set(Event::AddressChallenges, stats.challenges);
    to.set(Event::RequestsAdmitted, stats.submitted);
    to.set(Event::DuplicateFrames, stats.duplicates);
    to.set(Event::FramesLost, stats.frames_lost);
    to.set(Event::FramesMoved, tcp.misjudged + udp.misjudged);
    to.set(Event::RepliesGivenUp, stats.replies_evicted);
    to.set(Event::ControlDropped, stats.control_dropped);
    to.set(Event::FramesDiscarded, stats.unknown_session + stats.before_manifest + stats.fragmented + stats.outside);
    to.set(Event::FaultHookDrops, udp.dropped);
    to.set(Event::BurstsReceived, udp.bursts_in);
    to.set(Event::BurstsSent, udp.bursts_out);
    to.set(Event::BurstsWithoutOffload, udp.without_offload);
    to.set(Event::DatagramsUnsent, udp.no_room + udp.too_large + udp.refused);
    to.set(Event::PathsShrunk, stats.datagram_shrunk);
    to.level(Level::Streams, u64::from(tcp.open));
    to.level(Level::RequestsInFlight, u64::from(engine.live_requests()));
    to.level(Level::InputSlotsFree, (0..input_pools).map(|pool| u64::from(engine.free_slots(pool))).sum());
    for (error, total) in WireError::ALL.iter().zip(stats.malformed) {
        to.set_wire_error(*error, total);
    }
    let mut refused = 0;
    let failures = || Status::ALL.iter().enumerate().filter(|(_, status)| **status != Status::Ok);
    for (at, status) in failures() {
        let mut unnamed = stats.ended[at];
        refused += unnamed;
        for (model, ended) in engine.ended().iter().enumerate() {
            to.set_refused(Some(model as u16), *status, ended[at]);
            unnamed -= ended[at];
        }
        to.set_refused(None, *status, unnamed);
    }
    to.set(Event::RequestsRefused, refused);
}

/// Answers whose stages are still to be recorded: that can wait until they have left.
#[derive(Debug, Default)]
pub(crate) struct Departures(heapless::Vec<(u16, [u8; PATH_LEN]), DEPARTURES>);

/// Answers remembered at most; then they are recorded at once.
const DEPARTURES: usize = 16;

impl Departures {
    /// Remembers a frame if it begins an answer.
    pub(crate) fn note(&mut self, to: &Shard, header: &Header, head: &[u8]) {
        if header.kind != Kind::Response || !header.flags.has(Flags::MANIFEST) {
            return;
        }
        if self.0.is_full() {
            self.record(to);
        }
        if let Some(block) = head.get(MANIFEST_HEAD_LEN..).and_then(|rest| rest.first_chunk()) {
            // There is room: made just above.
            let _ = self.0.push((header.model, *block));
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
