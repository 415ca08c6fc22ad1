//! Server, clients and network under virtual time.

use std::net::SocketAddr;

use splitrpc_arena::PoolLayout;
use splitrpc_engine::{CompletionHead, MS, ModelPlan, Peer, SEC, Server, ServerConfig, Time, Verdict};
use splitrpc_ring::Submission;
use splitrpc_wire::{DType, Flags, HEADER_LEN, Header, Kind, StatusPayload};

use super::client::{SimClient, Tally, head_of};
use super::common::{ServerMemory, input};
use super::frames::{encode_all, split, train_len};
use super::host::{Host, parse};
use super::net::{Net, Weather};
use super::rng::Rng;
use super::stream::SimStream;

const SERVER: &str = "10.0.0.1:7100";
const REQUESTS_EACH: u64 = 12;
const STREAMS: u32 = 4;
/// After so long with nothing to do nothing is under way any more: the longest that an answer is kept, with room to spare,
/// and less than it takes for a silent session to be forgotten.
const REST: u64 = 2_500 * MS;

fn config(rng: &mut Rng) -> ServerConfig {
    ServerConfig {
        stream_sessions: STREAMS,
        // Enough for all clients, or so few that some must wait for others to end.
        datagram_sessions: *rng.pick(&[8, 8, 3, 1]),
        requests: 24,
        requests_per_client: 8,
        flight: 256,
        max_request: 1 << 20,
        datagram: *rng.pick(&[1472, 8256]),
        receive_window: 256 << 10,
        idle_timeout: 3 * SEC,
        keep_reply: 300 * MS,
        kept_replies: *rng.pick(&[4, 16]),
        min_progress: 1000,
        progress_grace: SEC,
        ..ServerConfig::small()
    }
}

pub struct World {
    rng: Rng,
    now: Time,
    net: Net,
    clients: Vec<SimClient>,
    streams: Vec<SimStream>,
    restart_at: Time,
    weather_at: Time,
    /// Sessions were forgotten although their clients live.
    pub evicted: u64,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let weather = if rng.chance(100) { Weather::calm() } else { Weather::random(&mut rng) };
        let clients = (0..rng.range(1, 6))
            .map(|n| {
                let addr = format!("10.0.0.2:{}", 1000 + n).parse().unwrap();
                let left = rng.range(1, REQUESTS_EACH) as u32;
                SimClient::new(&mut rng, Time::from_nanos(0), addr, SERVER.parse().unwrap(), left)
            })
            .collect();
        let streams = (0..rng.below(u64::from(STREAMS) + 1) as u32).map(|id| SimStream::new(&mut rng, id)).collect();
        let restart_at = if rng.chance(200) { Time::from_nanos(rng.below(300 * MS)) } else { Time::NEVER };
        World {
            net: Net::new(weather),
            clients,
            streams,
            restart_at,
            weather_at: Time::from_nanos(50 * MS),
            evicted: 0,
            now: Time::from_nanos(1),
            rng,
        }
    }

    /// Runs until every client is done and the server has forgotten them all.
    pub fn run(&mut self) {
        let restarts = self.restart_at != Time::NEVER;
        while !self.life() {}
        for client in &self.clients {
            assert!(client.is_done(), "a request never ended: {:?}", client.tally);
            let lost = ["ConnectionLost", "UnknownSession"].iter().any(|s| client.tally.by_status.contains_key(s));
            assert!(
                restarts || client.rebooted || self.evicted > 0 || !lost,
                "a session was lost although both ends lived: {:?}",
                client.tally
            );
        }
    }

    /// How all clients' requests ended.
    pub fn tally(&self) -> Tally {
        let mut total = Tally::default();
        for tally in self.clients.iter().map(|c| &c.tally).chain(self.streams.iter().map(|s| &s.tally)) {
            total.add(tally);
        }
        total
    }

    /// One life of the server. Returns whether it was the last.
    fn life(&mut self) -> bool {
        let config = config(&mut self.rng);
        // From so few that most requests are refused to enough for all.
        let roomy = *self.rng.pick(&[1, 2, 6]);
        let pools = [
            (0, PoolLayout::new(&[1200, 56], 4, 3 * roomy).unwrap()),
            (1, PoolLayout::new(&[4096], 1, 8 * roomy).unwrap()),
            (2, PoolLayout::new(&[131_072], 1, 4 * roomy).unwrap()),
        ];
        let batched = [input(DType::Fp32, &[-1, 300]), input(DType::Int64, &[-1, 7])];
        let bytes = [input(DType::Uint8, &[-1])];
        let models = [
            ModelPlan { inputs: &batched, max_batch: 4, priority_levels: 0, default_priority: 0, classes: &[0] },
            ModelPlan { inputs: &bytes, max_batch: 0, priority_levels: 0, default_priority: 2, classes: &[1, 2] },
        ];
        let mut memory = ServerMemory::new(&config, models.len(), &pools);
        let (slots, storage) = memory.lend(&pools);
        let secret = [self.rng.next().to_le_bytes(), self.rng.next().to_le_bytes()].concat().try_into().unwrap();
        let epoch = self.rng.next();
        let mut server: Server<'_> =
            Server::new(&config, &models, b"catalogue", &pools, slots, storage, secret, epoch).unwrap();
        let mut host = Host::new(&pools);
        let mut steps = 0u64;
        let mut rest_at = Time::NEVER;
        loop {
            steps += 1;
            assert!(steps < 3_000_000, "livelock: {:?}", server.stats());
            self.step(&mut server, &mut host);
            if self.now >= self.restart_at {
                self.restart_at = Time::NEVER;
                self.streams.iter_mut().for_each(SimStream::cut);
                return false;
            }
            let done = self.clients.iter().all(SimClient::is_done) && self.streams.iter().all(SimStream::is_done);
            if done && server.open_sessions() == 0 && host.jobs.is_empty() {
                break;
            }
            if done && rest_at == Time::NEVER {
                rest_at = self.now + REST;
            }
            if self.now >= rest_at {
                assert_eq!(server.bytes_under_way(), 0, "credit towards a client was lost: {:?}", server.stats());
                assert!(self.clients.iter().all(SimClient::is_at_rest), "credit towards the server was lost");
            }
            let rest_at = if self.now < rest_at { rest_at } else { Time::NEVER };
            let next = self.next_at(&server, &host).min(rest_at);
            assert!(next != Time::NEVER, "stuck with nothing to wait for: {:?}", server.stats());
            self.now = self.now.max(next);
        }
        assert_eq!(server.live_requests(), 0, "a request's record was lost: {:?}", server.stats());
        host.assert_empty();
        let stats = server.stats();
        assert_eq!(stats.sessions_opened, stats.sessions_closed + stats.sessions_expired, "every session ends once");
        for (pool, layout) in &pools {
            assert_eq!(server.free_slots(*pool), layout.slots(), "a slot was lost: {:?}", server.stats());
        }
        true
    }

    fn next_at(&self, server: &Server<'_>, host: &Host) -> Time {
        let clients = self.clients.iter().filter(|c| !c.is_done()).map(SimClient::next_at).min().unwrap_or(Time::NEVER);
        let streams = self.streams.iter().map(SimStream::next_at).min().unwrap_or(Time::NEVER);
        let others = server.next_timeout().min(host.next_at()).min(self.net.next_at()).min(self.restart_at);
        clients.min(streams).min(others)
    }

    fn step(&mut self, server: &mut Server<'_>, host: &mut Host) {
        let now = self.now;
        if now >= self.weather_at {
            self.weather_at = now + 50 * MS;
            self.net.weather.mtu = *self.rng.pick(&[1232, 1472, 9000]);
        }
        while let Some((from, to, datagrams)) = self.net.deliver(&mut self.rng, now) {
            let mut rest = &datagrams[..];
            while !rest.is_empty() {
                let (train, after) = rest.split_at(train_len(rest.iter().map(Vec::as_slice)) as usize);
                // A client's socket is connected: its kernel drops what strangers send.
                if to == SERVER.parse::<SocketAddr>().unwrap() {
                    self.serve(server, host, from, train);
                } else if let Some(client) = self.clients.iter_mut().find(|c| c.addr == to && c.server() == from) {
                    client.deliver(now, train);
                }
                rest = after;
            }
        }
        for stream in &mut self.streams {
            stream.step(&mut self.rng, now, server, host);
        }
        server.handle_timeout(now);
        while let Some(job) = host.finished(now) {
            let head = if job.completion.status == splitrpc_wire::Status::Ok {
                CompletionHead::Manifest(parse(&job.manifest))
            } else {
                let payload = StatusPayload { status: job.completion.status, retry_after_us: 0, text: "no" };
                CompletionHead::Status(payload)
            };
            server.handle_completion(now, &job.completion, &head);
        }
        self.submit(server, host);
        while let Some(transmit) = server.poll_train(now, self.rng.range(1, 70) as u32) {
            let to = match transmit.peer {
                Peer::Datagram(to) => to,
                Peer::Stream(id) => {
                    self.streams[id as usize].take(transmit, host);
                    continue;
                }
            };
            let mut data = Vec::new();
            for piece in transmit.data {
                data.extend(host.read(&piece));
            }
            for bytes in encode_all(&transmit.header, transmit.frames, transmit.head, &data) {
                self.net.send(&mut self.rng, now, SERVER.parse().unwrap(), to, bytes);
            }
        }
        for client in &mut self.clients {
            for datagram in client.step(&mut self.rng, now) {
                self.net.send(&mut self.rng, now, client.addr, client.server(), datagram);
            }
        }
    }

    fn submit(&mut self, server: &mut Server<'_>, host: &mut Host) {
        while let Some(submission) = server.next_submission().copied() {
            let sizes = match submission {
                Submission::Submit { request, .. } => server.sizes(request).as_slice().to_vec(),
                _ => Vec::new(),
            };
            host.submit(&mut self.rng, self.now, &submission, &sizes, true);
            server.submission_taken();
        }
    }

    /// A hello, for which the server may forget the session of a client that it serves nothing.
    fn greet(&mut self, server: &mut Server<'_>, host: &mut Host, from: Peer, header: &Header, payload: &[u8]) {
        self.submit(server, host);
        let before = (server.stats().sessions_expired, server.live_requests(), host.cancels);
        server.handle_frame(self.now, from, header, payload);
        self.submit(server, host);
        let after = (server.stats().sessions_expired, server.live_requests(), host.cancels);
        if after.0 > before.0 {
            assert_eq!((before.1, before.2), (after.1, after.2), "a client that is served was forgotten");
            self.evicted += after.0 - before.0;
        }
    }

    /// A datagram, or several that make a train.
    fn serve(&mut self, server: &mut Server<'_>, host: &mut Host, from: SocketAddr, datagrams: &[Vec<u8>]) {
        let (bytes, others) = datagrams.split_first().unwrap();
        for frame in split(bytes) {
            let (header, payload) = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    server.handle_garbage(self.now, Peer::Datagram(from), error);
                    return;
                }
            };
            let Some(head) = head_of(&header, payload) else { return };
            let peer = Peer::Datagram(from);
            if header.kind == Kind::Hello {
                self.greet(server, host, peer, &header, payload);
                continue;
            }
            let verdict = match others.len() {
                0 => server.handle_frame(self.now, peer, &header, &payload[..head]),
                more => server.handle_train(self.now, peer, &header, more as u32 + 1),
            };
            if let Verdict::Place(placement) = verdict {
                assert!(!header.flags.has(Flags::SEALED));
                let mut data = payload[head..].to_vec();
                data.extend(others.iter().flat_map(|datagram| &datagram[HEADER_LEN..]));
                let mut data = &data[..];
                for piece in server.pieces(&placement) {
                    let (this, rest) = data.split_at(piece.length as usize);
                    host.place(&piece, this);
                    data = rest;
                }
                assert!(data.is_empty());
                server.placed(self.now, &placement, placement.length(), 0);
            }
        }
    }
}
