//! Which batches are common enough to be recorded.
//!
//! Each recording takes device memory for good and about a millisecond of the thread that makes it, so the rare ones must not be made, least
//! of all one by one for hours: what is common is learnt from a lane's first batches, and after those nothing more is taken.

use std::collections::HashMap;
use std::hash::Hash;

/// So many batches are learnt from.
const LEARNT_FROM: u32 = 4096;
/// So many alike among them are common. No more kinds than a lane may record come so often.
const COMMON: u32 = 16;

/// What has been seen of a lane's batches.
#[derive(Debug)]
pub(super) struct Habits<K> {
    /// How many of each kind were not recorded.
    seen: HashMap<K, u32>,
    /// How many batches are yet to be learnt from.
    left: u32,
}

impl<K: Copy + Eq + Hash> Habits<K> {
    pub(super) fn new() -> Habits<K> {
        Habits { seen: HashMap::new(), left: LEARNT_FROM }
    }

    /// A batch comes, recorded or not.
    #[inline]
    pub(super) fn count_any(&mut self) {
        if self.left > 0 {
            self.left -= 1;
            if self.left == 0 {
                self.seen = HashMap::new();
            }
        }
    }

    /// A batch of this kind comes, which is not recorded. Counts it, and returns whether it should be.
    pub(super) fn count(&mut self, kind: K) -> bool {
        if self.left == 0 {
            return false;
        }
        let seen = self.seen.entry(kind).or_insert(0);
        *seen += 1;
        let is_common = *seen >= COMMON;
        self.count_any();
        is_common
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{COMMON, Habits, LEARNT_FROM};

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
                    self.habits.count_any();
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
    fn rare_kinds_are_not_and_nothing_is_after_the_first_batches() {
        let mut lane = Lane::new();
        // Half of the batches are of two kinds, the others of a thousand.
        lane.submit((0..LEARNT_FROM).map(|i| if i % 2 == 0 { i / 2 % 2 } else { 2 + i / 2 % 1000 }));
        assert_eq!(lane.recorded, HashSet::from([0, 1]));
        lane.submit((0..100 * LEARNT_FROM).map(|i| 2 + i % 20));
        assert_eq!(lane.recorded, HashSet::from([0, 1]));
        assert!(lane.habits.seen.is_empty());
    }

    #[test]
    fn no_more_kinds_are_common_than_a_lane_may_record() {
        let mut lane = Lane::new();
        let most = LEARNT_FROM / COMMON;
        lane.submit((0..LEARNT_FROM).map(|i| i % most));
        assert_eq!(lane.recorded.len(), most as usize);
        let mut lane = Lane::new();
        lane.submit((0..LEARNT_FROM).map(|i| i % (most + 1)));
        assert!(lane.recorded.len() < most as usize);
    }
}
