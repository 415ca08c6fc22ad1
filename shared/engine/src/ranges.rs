//! A bounded set of disjoint half-open ranges.

use heapless::Vec;

/// No room for another separate range; the set is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooFragmented;

/// Sorted, disjoint, non-touching ranges `start..end`, at most `N` of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeSet<const N: usize> {
    ranges: Vec<(u64, u64), N>,
}

impl<const N: usize> RangeSet<N> {
    pub(crate) const fn new() -> Self {
        RangeSet { ranges: Vec::new() }
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, lowest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }

    /// The lowest range.
    pub(crate) fn first(&self) -> Option<(u64, u64)> {
        self.ranges.first().copied()
    }

    /// The highest range.
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        self.ranges.last().copied()
    }

    pub(crate) fn contains(&self, start: u64, end: u64) -> bool {
        let at = self.ranges.partition_point(|r| r.1 < end);
        start >= end || self.ranges.get(at).is_some_and(|r| r.0 <= start && end <= r.1)
    }

    /// Whether [`RangeSet::insert`] of this range would succeed.
    pub(crate) fn can_insert(&self, start: u64, end: u64) -> bool {
        !self.ranges.is_full() || self.ranges.iter().any(|r| r.0 <= end && start <= r.1)
    }

    /// Adds a range and returns how much of it was new.
    pub(crate) fn insert(&mut self, start: u64, end: u64) -> Result<u64, TooFragmented> {
        if start >= end {
            return Ok(0);
        }
        // In order is the common case: it extends the last range.
        if let Some(last) = self.ranges.last_mut()
            && last.1 == start
        {
            last.1 = end;
            return Ok(end - start);
        }
        let first = self.ranges.partition_point(|r| r.1 < start);
        let after = self.ranges.partition_point(|r| r.0 <= end);
        if first == after {
            self.ranges.insert(first, (start, end)).map_err(|_| TooFragmented)?;
            return Ok(end - start);
        }
        let merged = &self.ranges[first..after];
        let covered: u64 = merged.iter().map(|r| r.1.min(end).saturating_sub(r.0.max(start))).sum();
        let whole = (merged[0].0.min(start), merged[merged.len() - 1].1.max(end));
        self.ranges[first] = whole;
        self.drop_between(first + 1, after);
        Ok(end - start - covered)
    }

    /// Takes a range out. Where that would need one range more than there is room for, it stays in: callers keep here
    /// what must be sent again, and to send once too often is the safe side.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.ranges.partition_point(|r| r.1 <= start);
        let mut at = first;
        while let Some(&(lo, hi)) = self.ranges.get(at) {
            if lo >= end {
                break;
            }
            match (lo < start, hi > end) {
                (true, true) => {
                    if self.ranges.insert(at + 1, (end, hi)).is_ok() {
                        self.ranges[at].1 = start;
                    }
                    return;
                }
                (true, false) => {
                    self.ranges[at].1 = start;
                    at += 1;
                }
                (false, true) => {
                    self.ranges[at].0 = end;
                    return;
                }
                (false, false) => {
                    self.ranges.remove(at);
                }
            }
        }
    }

    /// Takes at most `most` from the lowest range.
    pub(crate) fn pop_first(&mut self, most: u64) -> Option<(u64, u64)> {
        let first = self.ranges.first_mut()?;
        let taken = (first.0, first.1.min(first.0.saturating_add(most)));
        if taken.1 == first.1 {
            self.ranges.remove(0);
        } else {
            first.0 = taken.1;
        }
        Some(taken)
    }

    /// Forgets the lowest range, to make room.
    pub(crate) fn forget_lowest(&mut self) {
        if !self.ranges.is_empty() {
            self.ranges.remove(0);
        }
    }

    fn drop_between(&mut self, from: usize, to: usize) {
        let gone = to - from;
        if gone > 0 {
            self.ranges.copy_within(to.., from);
            self.ranges.truncate(self.ranges.len() - gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_points(ops in proptest::collection::vec((0u8..3, 0u64..60, 0u64..20), 1..60)) {
            let mut set = RangeSet::<64>::new();
            let mut model = BTreeSet::new();
            for (op, start, len) in ops {
                let end = start + len;
                match op {
                    0 => {
                        let fresh = (start..end).filter(|p| model.insert(*p)).count() as u64;
                        prop_assert_eq!(set.insert(start, end), Ok(fresh));
                    }
                    1 => {
                        set.remove(start, end);
                        model.retain(|p| *p < start || *p >= end);
                    }
                    _ => {
                        let whole = (start..end).all(|p| model.contains(&p));
                        prop_assert_eq!(set.contains(start, end), whole);
                    }
                }
                let points: BTreeSet<u64> = set.iter().flat_map(|(a, b)| a..b).collect();
                prop_assert_eq!(&points, &model);
                prop_assert!(set.ranges.windows(2).all(|w| w[0].1 < w[1].0));
            }
        }

        #[test]
        fn a_full_set_refuses_only_what_does_not_fit(ops in proptest::collection::vec((0u64..200, 1u64..4), 1..80)) {
            let mut set = RangeSet::<8>::new();
            for (start, len) in ops {
                let fits = set.can_insert(start, start + len);
                prop_assert_eq!(set.insert(start, start + len).is_ok(), fits);
            }
        }
    }
}
