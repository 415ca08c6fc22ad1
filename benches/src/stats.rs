//! What is made of the latencies of many connections.

use hdrhistogram::Histogram;
use serde::Serialize;

/// How far the 5th and the 15th percentile of connections' medians may lie apart where the 10th is settled.
const SETTLED: f64 = 1.1;

/// The percentiles of which a distribution's curve is drawn.
const CURVE: [f64; 19] =
    [0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.99];

/// Latencies of any number of connections.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
    medians: Vec<u64>,
}

/// Latencies in microseconds, as reports give them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct LatencyUs {
    /// Median over all requests.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Mean.
    pub(crate) mean: f64,
    /// Slowest.
    pub(crate) max: f64,
    /// 5th percentile of the connections' medians.
    pub(crate) p5_of_medians: f64,
    /// 10th percentile of the connections' medians: the arm's figure.
    pub p10_of_medians: f64,
    /// 15th percentile of the connections' medians.
    pub(crate) p15_of_medians: f64,
}

impl LatencyUs {
    /// Whether the figure would be much the same if a few connections had been slower or faster. Where a machine is at one
    /// pace for about a tenth of the time, it may be of that pace in one arm and of the other in the next.
    pub(crate) fn is_settled(&self) -> bool {
        self.p15_of_medians <= self.p5_of_medians * SETTLED
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies::new()
    }
}

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Latencies {
        let bounds = "1 ns to 5 minutes at three digits are bounds that the histogram takes";
        Latencies { histogram: Histogram::new_with_bounds(1, 300_000_000_000, 3).expect(bounds), medians: Vec::new() }
    }

    /// Adds a connection's latencies in nanoseconds, and changes their order.
    pub(crate) fn add_connection(&mut self, latencies: &mut [u64]) {
        for &latency in latencies.iter() {
            self.histogram.saturating_record(latency);
        }
        self.medians.extend(median(latencies));
    }

    /// How many latencies there are.
    pub(crate) fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// How many connections contributed.
    pub(crate) fn connections(&self) -> usize {
        self.medians.len()
    }

    /// Share of latencies of at most `limit_us` microseconds.
    pub(crate) fn share_within(&self, limit_us: f64) -> f64 {
        if self.len() == 0 {
            return 0.0;
        }
        self.histogram.count_between(0, (limit_us * 1e3) as u64) as f64 / self.len() as f64
    }

    /// All that reports want.
    pub(crate) fn summary(&self) -> LatencyUs {
        let at = |percentile| self.histogram.value_at_percentile(percentile) as f64 / 1e3;
        let of_medians = |quantile| quantile_of(&self.medians, quantile).unwrap_or_default() / 1e3;
        LatencyUs {
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            mean: self.histogram.mean() / 1e3,
            max: self.histogram.max() as f64 / 1e3,
            p5_of_medians: of_medians(0.05),
            p10_of_medians: of_medians(0.1),
            p15_of_medians: of_medians(0.15),
        }
    }

    /// The distribution as pairs of percentile and microseconds, as far as the number of latencies bears it.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let finest = 100.0 - 100.0 / (self.len().max(1) as f64);
        let bears = |percentile: &&f64| **percentile <= finest;
        CURVE.iter().filter(bears).map(|&p| (p, self.histogram.value_at_percentile(p) as f64 / 1e3)).collect()
    }
}

/// The median, of an even number the mean of the middle two. Changes their order.
pub(crate) fn median(values: &mut [u64]) -> Option<u64> {
    let (middle, even) = (values.len() / 2, values.len().is_multiple_of(2));
    if values.is_empty() {
        return None;
    }
    let (below, &mut upper, _) = values.select_nth_unstable(middle);
    let lower = below.iter().max().filter(|_| even).copied();
    Some(lower.unwrap_or(upper).midpoint(upper))
}

/// A quantile, by linear interpolation between the neighbouring values.
fn quantile_of(values: &[u64], quantile: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    let at = quantile * last as f64;
    let below = values[at as usize] as f64;
    let above = values[(at as usize + 1).min(last)] as f64;
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut latencies = Latencies::new();
        latencies.add_connection(&mut (1..=10_000).map(|i| i * 1_000).collect::<Vec<_>>());
        let summary = latencies.summary();
        for (value, expected) in [
            (summary.p50, 5_000.0),
            (summary.p90, 9_000.0),
            (summary.p99, 9_900.0),
            (summary.p999, 9_990.0),
            (summary.max, 10_000.0),
            (summary.mean, 5_000.5),
        ] {
            assert!((value / expected - 1.0).abs() < 2e-3, "{value} for {expected}");
        }
        assert!((latencies.share_within(2_500.0) - 0.25).abs() < 1e-3);
        assert!(latencies.curve().iter().all(|&(percentile, _)| percentile <= 99.99));
    }

    #[test]
    fn the_figure_is_the_tenth_percentile_of_medians_and_not_of_requests() {
        let mut latencies = Latencies::new();
        // Ten fast requests on each connection, but the middle of each connection is its number.
        for connection in 1..=11u64 {
            let mut values = vec![1; 10];
            values.push(connection * 1_000);
            values.extend([1_000_000; 10]);
            latencies.add_connection(&mut values);
        }
        assert_eq!(latencies.summary().p10_of_medians, 2.0);
        assert_eq!(quantile_of(&[], 0.1), None);
        assert_eq!(quantile_of(&[10, 20], 0.1), Some(11.0));
    }

    #[test]
    fn a_figure_at_the_edge_between_two_paces_is_not_settled() {
        let settled = |fast: usize| {
            let mut latencies = Latencies::new();
            for connection in 0..60 {
                latencies.add_connection(&mut [if connection < fast { 70_000 } else { 150_000 }]);
            }
            latencies.summary().is_settled()
        };
        assert_eq!([0, 2, 4, 6, 8, 12, 60].map(settled), [true, true, false, false, false, true, true]);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [5, 1, 9]), Some(5));
        assert_eq!(median(&mut [4, 1, 9, 6]), Some(5));
    }
}
