//! A virtual datagram network: it delays, loses, duplicates, reorders, corrupts, and changes its largest datagram.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use splitrpc_engine::Time;

use super::rng::Rng;

/// How badly the network behaves; per mille where not said otherwise.
#[derive(Clone, Debug)]
pub struct Weather {
    pub loss: u64,
    pub duplication: u64,
    pub reordering: u64,
    pub corruption: u64,
    pub delay_us: u64,
    pub mtu: usize,
}

impl Weather {
    pub fn calm() -> Weather {
        Weather { loss: 0, duplication: 0, reordering: 0, corruption: 0, delay_us: 20, mtu: 65_507 }
    }

    pub fn random(rng: &mut Rng) -> Weather {
        let some = |rng: &mut Rng, most: u64| if rng.chance(500) { rng.below(most) } else { 0 };
        Weather {
            loss: some(rng, 200),
            duplication: some(rng, 100),
            reordering: some(rng, 300),
            corruption: some(rng, 50),
            delay_us: *rng.pick(&[5, 50, 500, 20_000]),
            mtu: *rng.pick(&[1232, 1400, 1472, 9000, 65_507]),
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: u64,
    order: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

pub struct Net {
    pub weather: Weather,
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
}

impl Net {
    pub fn new(weather: Weather) -> Net {
        Net { weather, flying: BinaryHeap::new(), order: 0 }
    }

    pub fn send(&mut self, rng: &mut Rng, now: Time, from: SocketAddr, to: SocketAddr, mut bytes: Vec<u8>) {
        if bytes.len() > self.weather.mtu || rng.chance(self.weather.loss) {
            return;
        }
        if rng.chance(self.weather.corruption) {
            // The kernel's checksum finds a flipped bit and drops the datagram. What it cannot find is a datagram that
            // was wrong when it was made, so some arrive with a broken header and a right checksum, from a stranger.
            if rng.chance(500) {
                return;
            }
            let bit = rng.below(8 * bytes.len().min(64) as u64);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            let stranger = SocketAddr::new(from.ip(), from.port() ^ 0x4000);
            self.fly(rng, now, stranger, to, bytes);
            return;
        }
        if rng.chance(self.weather.duplication) {
            self.fly(rng, now, from, to, bytes.clone());
        }
        self.fly(rng, now, from, to, bytes);
    }

    fn fly(&mut self, rng: &mut Rng, now: Time, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let mut delay = self.weather.delay_us * 1000;
        if rng.chance(self.weather.reordering) {
            delay += rng.below(3 * delay + 1);
        }
        self.order += 1;
        self.flying.push(Reverse(Flying { at: now.nanos() + delay, order: self.order, from, to, bytes }));
    }

    pub fn next_at(&self) -> Time {
        self.flying.peek().map_or(Time::NEVER, |f| Time::from_nanos(f.0.at))
    }

    /// What arrives next: a datagram, or several that the receiver's kernel put together.
    pub fn deliver(&mut self, rng: &mut Rng, now: Time) -> Option<(SocketAddr, SocketAddr, Vec<Vec<u8>>)> {
        if self.next_at() > now {
            return None;
        }
        let Reverse(Flying { from, to, bytes, .. }) = self.flying.pop()?;
        let mut datagrams = vec![bytes];
        while self.next_at() <= now
            && self.flying.peek().is_some_and(|next| (next.0.from, next.0.to) == (from, to))
            && rng.chance(900)
        {
            datagrams.extend(self.flying.pop().map(|next| next.0.bytes));
        }
        Some((from, to, datagrams))
    }
}
