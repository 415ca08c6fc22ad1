//! Log-linear histograms with fixed buckets, so that those of several threads or machines add up exactly.

use crate::Cell;

/// Buckets of equal width in each power of two: the relative width of a bucket is at most 1/16.
const SUB: usize = 16;
const SUB_BITS: u32 = SUB.trailing_zeros();
/// Values from 2^40 on (18 minutes in nanoseconds) share the last bucket.
const TOP_BITS: u32 = 40;
/// Buckets in all: the first octaves hold one value each.
const BUCKETS: usize = SUB + (TOP_BITS - SUB_BITS) as usize * SUB;

/// Index of the bucket that holds a value.
fn bucket(value: u64) -> usize {
    if value < SUB as u64 {
        return value as usize;
    }
    let octave = value.ilog2();
    if octave >= TOP_BITS {
        return BUCKETS - 1;
    }
    let within = (value >> (octave - SUB_BITS)) as usize - SUB;
    SUB + (octave - SUB_BITS) as usize * SUB + within
}

/// Smallest value of a bucket.
fn low(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let (octave, within) = ((bucket - SUB) / SUB, (bucket - SUB) % SUB);
    ((SUB + within) as u64) << octave
}

/// A histogram of whole numbers (nanoseconds, rows, bytes) with one writer and any number of readers.
#[derive(Debug)]
pub struct Histogram {
    counts: Box<[Cell]>,
    sum: Cell,
    max: Cell,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram::new()
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Histogram {
        Histogram { counts: (0..BUCKETS).map(|_| Cell::new()).collect(), sum: Cell::new(), max: Cell::new() }
    }

    /// Counts a value.
    #[inline]
    pub fn record(&self, value: u64) {
        self.counts[bucket(value)].add(1);
        self.sum.add(value);
        if value > self.max.load() {
            self.max.store(value);
        }
    }
}

/// What one or several histograms held when they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot::new()
    }
}

impl Snapshot {
    /// Of nothing.
    #[must_use]
    pub fn new() -> Snapshot {
        Snapshot { counts: vec![0; BUCKETS], count: 0, sum: 0, max: 0 }
    }

    /// Adds what a histogram holds now.
    pub fn add(&mut self, histogram: &Histogram) {
        for (to, from) in self.counts.iter_mut().zip(&histogram.counts) {
            let n = from.load();
            *to += n;
            self.count += n;
        }
        self.sum = self.sum.wrapping_add(histogram.sum.load());
        self.max = self.max.max(histogram.max.load());
    }

    /// Adds another snapshot.
    pub fn merge(&mut self, other: &Snapshot) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of the values counted.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Largest value counted.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Mean of the values counted, 0 where there are none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The value below or at which the share `q` (0 to 1) of all values lies, to within a sixteenth: the middle of its
    /// bucket, never more than the largest value. 0 where nothing was counted.
    #[must_use]
    pub fn quantile(&self, q: f64) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank {
                let (low, next) = (low(bucket), low(bucket + 1));
                return if bucket == BUCKETS - 1 { self.max } else { (low + (next - 1 - low) / 2).min(self.max) };
            }
        }
        self.max
    }

    /// Values less than 2^`bits`. Exact for `bits` up to 40.
    #[must_use]
    pub fn below_power(&self, bits: u32) -> u64 {
        let end = if bits >= TOP_BITS { BUCKETS } else { bucket(1 << bits) };
        self.counts[..end].iter().sum()
    }

    /// Values of at most 2^`bits`. Exact for `bits` up to 4; past that the bound is a sixteenth too high.
    #[must_use]
    pub fn at_most_power(&self, bits: u32) -> u64 {
        let end = if bits >= TOP_BITS { BUCKETS } else { bucket(1 << bits) + 1 };
        self.counts[..end].iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_cover_all_values_without_gap_or_overlap() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(low(index)), index);
            assert_eq!(bucket(low(index + 1) - 1), index);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn an_empty_snapshot_has_no_quantiles() {
        assert_eq!((Snapshot::new().quantile(0.5), Snapshot::new().mean()), (0, 0.0));
    }

    proptest! {
        #[test]
        fn quantiles_agree_with_hdrhistogram(values in prop::collection::vec(1u64..1 << 39, 1..400), q in 0.0f64..=1.0) {
            let ours = Histogram::new();
            let mut oracle = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 1 << 40, 4).unwrap();
            for &value in &values {
                ours.record(value);
                oracle.record(value).unwrap();
            }
            let mut snapshot = Snapshot::new();
            snapshot.add(&ours);
            let (ours, theirs) = (snapshot.quantile(q) as f64, oracle.value_at_quantile(q) as f64);
            prop_assert!((ours - theirs).abs() <= theirs / 15.0 + 1.0, "{ours} against {theirs}");
            prop_assert_eq!(snapshot.max(), *values.iter().max().unwrap());
            prop_assert_eq!(snapshot.sum(), values.iter().sum::<u64>());
        }

        #[test]
        fn parts_add_up_to_the_whole(values in prop::collection::vec(any::<u64>(), 0..200), at in 0usize..200, bits in 0u32..40) {
            let (whole, left, right) = (Histogram::new(), Histogram::new(), Histogram::new());
            for (i, &value) in values.iter().enumerate() {
                whole.record(value);
                if i < at { left.record(value) } else { right.record(value) }
            }
            let (mut sum, mut all, mut other) = (Snapshot::new(), Snapshot::new(), Snapshot::new());
            sum.add(&left);
            other.add(&right);
            sum.merge(&other);
            all.add(&whole);
            prop_assert_eq!(&sum, &all);
            prop_assert_eq!(all.below_power(bits), values.iter().filter(|&&v| v < 1 << bits).count() as u64);
        }
    }
}
