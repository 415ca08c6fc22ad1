//! How stream clients behave: well, in whole messages or in parts, or badly.

use splitrpc_engine::Verdict;
use splitrpc_wire::ack::Ack;
use splitrpc_wire::{Flags, Header, Kind, MANIFEST_TENSOR};

use super::client::{Ask, deadline_us};
use super::rng::Rng;
use super::stream::{SimStream, Up};

/// The frames of a request: one, or a manifest and parts in any order.
pub fn request(rng: &mut Rng, session: u64, id: u64, ask: &Ask) -> Vec<Up> {
    let data: usize = ask.tensors.iter().map(Vec::len).sum();
    let base = Header {
        session,
        request: id,
        model: ask.model,
        priority: rng.below(5) as u8,
        deadline_us: deadline_us(rng),
        total: (ask.manifest.len() + data) as u32,
        ..Header::new(Kind::Request)
    };
    if rng.chance(600) {
        return vec![first(&base, ask, &ask.tensors.concat())];
    }
    let most = *rng.pick(&[500, 5_000, 50_000]);
    let with_first = rng.below(ask.tensors[0].len() as u64 / 2) as usize;
    let mut parts = Vec::new();
    for (tensor, bytes) in ask.tensors.iter().enumerate() {
        let mut from = if tensor == 0 { with_first } else { 0 };
        while from < bytes.len() {
            // Few enough that not even the worst order leaves too many gaps.
            let to = bytes.len().min(from + rng.range(most / 2, most).max(bytes.len() as u64 / 40) as usize);
            parts.push(part(&base, tensor as u16, from as u32, &bytes[from..to]));
            from = to;
        }
    }
    for n in (1..parts.len()).rev() {
        parts.swap(n, rng.below(n as u64 + 1) as usize);
    }
    parts.insert(0, first(&base, ask, &ask.tensors[0][..with_first]));
    parts
}

fn first(base: &Header, ask: &Ask, data: &[u8]) -> Up {
    let header = Header {
        flags: Flags::MANIFEST,
        tensor: if data.is_empty() { MANIFEST_TENSOR } else { 0 },
        length: (ask.manifest.len() + data.len()) as u32,
        ..*base
    };
    Up { header, head: ask.manifest.clone(), data: data.to_vec(), verdict: None }
}

fn part(base: &Header, tensor: u16, offset: u32, data: &[u8]) -> Up {
    let header = Header { tensor, offset, length: data.len() as u32, ..*base };
    Up { header, head: Vec::new(), data: data.to_vec(), verdict: None }
}

/// Frames that a client must not send, and what the engine must say to the last of them.
pub fn offend(rng: &mut Rng, client: &mut SimStream) -> Vec<Up> {
    let of_session = |kind| Header { session: client.session, ..Header::new(kind) };
    let close = |header| Up { verdict: Some(Verdict::Close), ..Up::control(header, Vec::new()) };
    let done = |header| Up { verdict: Some(Verdict::Done), ..Up::control(header, Vec::new()) };
    match rng.below(10) {
        0 => vec![close(Header::new(Kind::Hello))],
        1 => vec![close(Header { session: client.session ^ 1 << 30, ..Header::new(Kind::Ping) })],
        2 => vec![close(of_session(*rng.pick(&[Kind::Response, Kind::Error, Kind::HelloAck, Kind::Challenge])))],
        3 => vec![close(Header { flags: Flags::SEALED, ..of_session(Kind::Request) })],
        4 => vec![done(Header { request: u64::MAX, ..of_session(Kind::Cancel) })],
        5 => {
            let mut ack = [0; 64];
            let length = Ack { window: u64::MAX, delay_us: 0, ranges: &[] }.write(&mut ack);
            vec![Up { verdict: Some(Verdict::Done), ..Up::control(of_session(Kind::Ack), ack[..length].to_vec()) }]
        }
        6 => {
            // The rest of something that nobody knows; it may look just like a part of what the model takes.
            let header = Header { request: u64::MAX, total: 1288, ..of_session(Kind::Request) };
            vec![Up { verdict: Some(Verdict::Discard), ..part(&header, 0, 0, &[7; 1200]) }]
        }
        7 => (0..rng.range(1, 40)).map(|n| done(Header { request: n, ..of_session(Kind::Ping) })).collect(),
        8 => (0..rng.range(1, 10)).map(|_| done(of_session(Kind::List))).collect(),
        _ => {
            // The same part twice, or one past the end.
            let ask = Ask::random(rng, true);
            let (id, session) = (client.next_id, client.session);
            client.next_id += 1;
            let total = (ask.manifest.len() + ask.tensors.iter().map(Vec::len).sum::<usize>()) as u32;
            let base = Header { session, request: id, model: ask.model, total, ..Header::new(Kind::Request) };
            let last = if rng.chance(500) { part(&base, 0, 0, &[1; 8]) } else { part(&base, 1, total - 8, &[1; 8]) };
            vec![first(&base, &ask, &[1; 8]), last]
        }
    }
}
