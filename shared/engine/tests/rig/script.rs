//! Bytes read as decisions: what fuzz inputs are made of.

use splitrpc_wire::Flags;
use splitrpc_wire::ack::{Ack, AckRange, MAX_ACK_LEN};

/// Inputs up to this length are seeds: when they end, as many decisions as [`LENGTH`] follow from them. Random engines make
/// no longer ones; those that follow coverage do, and such a longer input is a script to the letter.
const SEED: usize = 64;
const LENGTH: usize = 1500;

/// Takes decisions off the front of the input; at its end all of them are 0.
pub struct Script<'b> {
    bytes: &'b [u8],
    state: u64,
    more: usize,
}

impl<'b> Script<'b> {
    pub fn new(bytes: &'b [u8]) -> Script<'b> {
        let state = bytes.iter().fold(1, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        Script { bytes, state, more: if bytes.len() <= SEED { LENGTH } else { 0 } }
    }

    pub fn is_over(&self) -> bool {
        self.bytes.is_empty() && self.more == 0
    }

    pub fn byte(&mut self) -> u8 {
        if let Some((first, rest)) = self.bytes.split_first() {
            self.bytes = rest;
            return *first;
        }
        if self.more == 0 {
            return 0;
        }
        self.more -= 1;
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 48) as u8
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    pub fn chance(&mut self, of_256: u8) -> bool {
        self.byte() < of_256
    }

    /// A number that is mostly small, now and then near a power of two or the largest of its kind.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            kind @ 0..=199 => u64::from(kind),
            200..=215 => u64::from(self.byte()) << 8 | u64::from(self.byte()),
            216..=235 => (1u64 << (self.byte() % 64)).wrapping_add(u64::from(self.byte() % 5)).wrapping_sub(2),
            236..=245 => u64::MAX - u64::from(self.byte()),
            _ => u64::from_le_bytes([0; 8].map(|_: u8| self.byte())),
        }
    }

    pub fn pick<'t, T>(&mut self, of: &'t [T]) -> Option<&'t T> {
        if of.is_empty() { None } else { Some(&of[self.below(of.len())]) }
    }

    /// The payload of an acknowledgement, with ranges that parse.
    pub fn ack(&mut self) -> Vec<u8> {
        let mut last = self.number() as u32;
        let mut ranges = Vec::new();
        for _ in 0..self.below(6) {
            let first = last.wrapping_sub(self.number() as u32);
            ranges.push(AckRange::new(first, last));
            last = first.wrapping_sub(2 + self.below(4) as u32);
        }
        let ack = Ack { window: self.number() << self.below(16), delay_us: self.number() as u32, ranges: &ranges };
        let mut payload = [0; MAX_ACK_LEN];
        let length = ack.write(&mut payload);
        payload[..length].to_vec()
    }

    /// Any flags.
    pub fn flags(&mut self) -> Flags {
        let mut flags = Flags::NONE;
        for flag in
            [Flags::MANIFEST, Flags::LAST, Flags::REPEATABLE, Flags::TAGGED, Flags::SEALED, Flags::MORE, Flags::ACK_NOW]
        {
            if self.chance(50) {
                flags = flags.with(flag);
            }
        }
        flags
    }
}
