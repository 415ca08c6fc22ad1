//! Which connections a spinning thread tries itself, so that a ping-pong needs no question to the poller.

/// Connections that are tried directly.
const HOT: usize = 4;
/// Tries in vain after which a connection is left to the poller.
const PATIENCE: u32 = 256;
/// Tries in vain after which another may take its place.
const COLD: u32 = PATIENCE / 2;
/// Polls during which only the poller is asked after more connections were active than can be tried directly.
const CROWDED: u32 = 1024;

/// The most recently active connections.
#[derive(Debug, Default)]
pub(super) struct Hot {
    entries: heapless::Vec<(u32, u32), HOT>,
    crowded: u32,
}

impl Hot {
    /// A connection brought something.
    pub(super) fn touched(&mut self, id: u32) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.0 == id) {
            entry.1 = 0;
        } else if self.crowded == 0 && self.entries.push((id, 0)).is_err() {
            match self.entries.iter_mut().max_by_key(|e| e.1) {
                Some(coldest) if coldest.1 > COLD => *coldest = (id, 0),
                _ => {
                    self.entries.clear();
                    self.crowded = CROWDED;
                }
            }
        }
    }

    /// A connection was tried in vain.
    pub(super) fn missed(&mut self, id: u32) {
        if let Some(at) = self.entries.iter().position(|e| e.0 == id) {
            self.entries[at].1 += 1;
            if self.entries[at].1 > PATIENCE {
                self.entries.swap_remove(at);
            }
        }
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.entries.iter().any(|e| e.0 == id)
    }

    /// A connection is gone.
    pub(super) fn forget(&mut self, id: u32) {
        self.entries.retain(|e| e.0 != id);
    }

    /// The connections to try now.
    pub(super) fn to_try(&self) -> heapless::Vec<u32, HOT> {
        self.entries.iter().map(|e| e.0).collect()
    }

    /// Called once a poll. Returns how many connections will be tried directly.
    pub(super) fn tick(&mut self) -> u32 {
        self.crowded = self.crowded.saturating_sub(1);
        self.entries.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_connection_is_left_to_the_poller() {
        let mut hot = Hot::default();
        hot.touched(1);
        for _ in 0..=PATIENCE {
            hot.missed(1);
        }
        assert!(hot.to_try().is_empty());
        assert_eq!(hot.tick(), 0);
    }

    #[test]
    fn a_crowd_is_left_to_the_poller_for_a_while() {
        let mut hot = Hot::default();
        for id in 0..=HOT as u32 {
            hot.touched(id);
        }
        for _ in 0..CROWDED {
            hot.touched(1);
            assert_eq!(hot.tick(), 0);
        }
        hot.touched(2);
        assert_eq!(hot.to_try(), [2]);
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_coldest() {
        let mut hot = Hot::default();
        (0..HOT as u32).for_each(|id| hot.touched(id));
        for _ in 0..=COLD {
            (1..HOT as u32).for_each(|id| {
                hot.missed(id);
                hot.touched(id);
            });
            hot.missed(0);
        }
        hot.touched(99);
        assert!(!hot.to_try().contains(&0));
        assert!(hot.to_try().contains(&99));
    }
}
