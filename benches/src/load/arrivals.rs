//! When requests are meant to be sent.

use std::time::Duration;

use serde::Serialize;

/// How the requests of an open loop are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arrivals {
    /// Evenly.
    Deterministic,
    /// With exponentially distributed gaps, as independent clients send.
    Poisson,
}

impl Arrivals {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arrivals::Deterministic => "deterministic",
            Arrivals::Poisson => "poisson",
        }
    }
}

/// The intended send times of an open loop, counted from its start, without end. The same seed gives the same times.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    arrivals: Arrivals,
    gap_ns: f64,
    at_ns: f64,
    rng: fastrand::Rng,
}

impl Schedule {
    /// `rps` requests a second on average.
    pub(crate) fn new(arrivals: Arrivals, rps: f64, seed: u64) -> Schedule {
        Schedule { arrivals, gap_ns: 1e9 / rps.max(1e-3), at_ns: 0.0, rng: fastrand::Rng::with_seed(seed) }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at_ns += match self.arrivals {
            Arrivals::Deterministic => self.gap_ns,
            // `f64` is below 1, so the logarithm is finite.
            Arrivals::Poisson => -(1.0 - self.rng.f64()).ln() * self.gap_ns,
        };
        Some(Duration::from_nanos(self.at_ns as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_schedule() {
        let times = |seed| Schedule::new(Arrivals::Poisson, 5_000.0, seed).take(1_000).collect::<Vec<_>>();
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
    }

    #[test]
    fn both_kinds_keep_the_rate_and_only_one_varies() {
        for (arrivals, variation) in [(Arrivals::Deterministic, 0.0), (Arrivals::Poisson, 1.0)] {
            let times: Vec<f64> = Schedule::new(arrivals, 1_000.0, 3).take(50_000).map(|at| at.as_secs_f64()).collect();
            let rate = times.len() as f64 / times[times.len() - 1];
            assert!((rate / 1_000.0 - 1.0).abs() < 0.02, "{arrivals:?} came at {rate} a second");
            let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((variance.sqrt() / mean - variation).abs() < 0.05, "{arrivals:?}");
        }
    }
}
