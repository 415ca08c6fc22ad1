//! The fault hook: drops received datagrams one by one, for tests and measurements under loss.

/// Decides which datagrams are dropped. The same seed drops the same ones.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    permille: u16,
    state: u64,
    /// Datagrams dropped.
    pub(super) dropped: u64,
}

impl Fault {
    pub(super) fn new(permille: u16, seed: u64) -> Fault {
        // The generator never leaves 0.
        Fault { permille, state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, dropped: 0 }
    }

    /// Whether the next datagram is dropped.
    pub(super) fn drops(&mut self) -> bool {
        if self.permille == 0 {
            return false;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let drops = (self.state >> 32) % 1000 < u64::from(self.permille);
        self.dropped += u64::from(drops);
        drops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_as_many_are_dropped_as_asked_for() {
        for (permille, from, to) in [(0, 0, 0), (10, 800, 1200), (500, 48_000, 52_000), (1000, 100_000, 100_000)] {
            let mut fault = Fault::new(permille, 7);
            let dropped = (0..100_000).filter(|_| fault.drops()).count() as u64;
            assert_eq!(dropped, fault.dropped);
            assert!((from..=to).contains(&fault.dropped), "{} of 100,000 at {permille}", fault.dropped);
        }
    }
}
