//! Which batches are common enough to be recorded.
//!
//! Each recording takes device memory for good and about a millisecond of the thread that makes it, so the rare ones must not be made, least
//! of all one by one for hours: what a steady load needs is learnt from its first batches, and then nothing more is taken.

use std::collections::HashMap;
use std::hash::Hash;

/// So many batches make a round.
const ROUND: u32 = 4096;
/// So many alike within a round are common. No more kinds than a lane may record come so often in a round.
const COMMON: u32 = 16;
/// So many more unrecorded ones in a round than there were at first mean another load.
const CHANGED: u32 = ROUND / 4;

/// What has been seen of a lane's batches.
#[derive(Debug)]
pub(super) struct Habits<K> {
    /// How many of each kind were seen in this round, while that is learnt.
    seen: HashMap<K, u32>,
    /// How many batches of this round are yet to come.
    left: u32,
    /// How many of this round's were not recorded.
    unrecorded: u32,
    learning: Learning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Learning {
    /// In this round.
    Now,
    /// In the round before. How many stay unrecorded is seen in this one.
    Done,
    /// So many stayed unrecorded in the round after it.
    Settled(u32),
}

impl<K: Copy + Eq + Hash> Habits<K> {
    pub(super) fn new() -> Habits<K> {
        Habits { seen: HashMap::new(), left: ROUND, unrecorded: 0, learning: Learning::Now }
    }

    /// A batch comes that is recorded.
    #[inline]
    pub(super) fn count_recorded(&mut self) {
        self.left -= 1;
        if self.left == 0 {
            self.end_round();
        }
    }

    /// A batch of this kind comes, which is not recorded. Returns whether it should be.
    pub(super) fn count(&mut self, kind: K) -> bool {
        self.unrecorded += 1;
        let is_common = self.learning == Learning::Now && {
            let seen = self.seen.entry(kind).or_insert(0);
            *seen += 1;
            *seen >= COMMON
        };
        self.count_recorded();
        is_common
    }

    fn end_round(&mut self) {
        self.learning = match self.learning {
            Learning::Now => Learning::Done,
            Learning::Done => Learning::Settled(self.unrecorded),
            Learning::Settled(usual) if self.unrecorded > usual + CHANGED => Learning::Now,
            settled => settled,
        };
        self.seen = HashMap::new();
        (self.left, self.unrecorded) = (ROUND, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{CHANGED, COMMON, Habits, ROUND};

    /// A lane that records what is common.
    struct Lane {
        habits: Habits<u32>,
        recorded: HashSet<u32>,
    }

    impl Lane {
        fn new() -> Lane {
            Lane { habits: Habits::new(), recorded: HashSet::new() }
        }

        fn submit(&mut self, kinds: impl IntoIterator<Item = u32>) {
            for kind in kinds {
                if self.recorded.contains(&kind) {
                    self.habits.count_recorded();
                } else if self.habits.count(kind) {
                    self.recorded.insert(kind);
                }
            }
        }
    }

    #[test]
    fn what_comes_all_the_time_is_recorded_after_a_few() {
        let mut lane = Lane::new();
        lane.submit((1..COMMON).map(|_| 7));
        assert!(lane.recorded.is_empty());
        lane.submit([7]);
        assert_eq!(lane.recorded, HashSet::from([7]));
    }

    #[test]
    fn a_steady_load_takes_nothing_after_its_first_round() {
        let mut lane = Lane::new();
        // Half of the batches are of two kinds, the others of a thousand.
        let load = |from: u32| (from..from + ROUND).map(|i| if i % 2 == 0 { i / 2 % 2 } else { 2 + i / 2 % 1000 });
        lane.submit(load(0));
        assert_eq!(lane.recorded, HashSet::from([0, 1]));
        // The rare ones become a little more common: not enough for them to be learnt.
        let more = (0..200 * ROUND).map(|i| if i % 2 == 0 { i / 2 % 2 } else { 2 + i / 2 % 20 });
        lane.submit(more);
        assert_eq!(lane.recorded, HashSet::from([0, 1]));
    }

    #[test]
    fn another_load_is_learnt_anew() {
        let mut lane = Lane::new();
        lane.submit((0..3 * ROUND).map(|_| 1));
        // One round shows that it is another one, the next one is learnt from.
        lane.submit((0..ROUND).map(|i| u32::from(i >= CHANGED)));
        assert_eq!(lane.recorded, HashSet::from([1]), "as many as may change");
        lane.submit((0..ROUND).map(|i| u32::from(i > CHANGED)));
        assert_eq!(lane.recorded, HashSet::from([1]), "learning has yet to begin");
        lane.submit((0..COMMON).map(|_| 0));
        assert_eq!(lane.recorded, HashSet::from([0, 1]));
    }

    #[test]
    fn a_slow_load_is_learnt_over_the_whole_round() {
        let mut lane = Lane::new();
        let kinds = ROUND / COMMON;
        lane.submit((0..ROUND).map(|i| i % kinds));
        assert_eq!(lane.recorded.len(), kinds as usize);
        let mut lane = Lane::new();
        lane.submit((0..100 * ROUND).map(|i| i % (kinds + kinds / 8)));
        assert!(lane.recorded.is_empty(), "none comes so often");
    }
}
