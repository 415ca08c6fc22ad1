//! A window of load, and what it showed.

use std::collections::BTreeMap;
use std::time::Duration;

use splitrpc_wire::{Path, STAGES};

use super::arrivals::Schedule;
use super::connection::Fault;
use crate::process::ServerCpu;

/// How requests are started.
#[derive(Debug)]
pub(crate) enum Load {
    /// Each connection sends its next request as soon as it has the answer to the last.
    Closed,
    /// Requests are sent when the schedule says, or as soon after as a connection is free. More than `queue` waiting
    /// ones are turned away and counted.
    Open {
        /// When requests are due.
        schedule: Schedule,
        /// How many may wait for a connection.
        queue: usize,
    },
}

/// A window of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Load before it counts.
    pub(crate) warm_up: Duration,
    /// Requests a connection must have finished before anything counts, in a closed loop.
    pub(crate) warm_up_requests: u64,
    /// Load that counts.
    pub(crate) measure: Duration,
    /// When a request that has no answer has failed.
    pub(crate) timeout: Duration,
}

/// What a window showed.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Nanoseconds of each request that succeeded, by connection.
    pub(crate) latencies: Vec<Vec<u64>>,
    /// How many requests failed, by what went wrong.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Requests of an open loop that found the queue full.
    pub(crate) turned_away: u64,
    /// How long the window really was: a little longer than planned where its end came while answers were read.
    pub(crate) elapsed: Duration,
    /// Requests that succeeded meanwhile. One that began before or ended after counts for the part that lies inside.
    pub(crate) completed: f64,
    /// CPU time of the generator meanwhile.
    pub(crate) client_cpu: Duration,
    /// That of the server.
    pub(crate) server_cpu: ServerCpu,
    /// Sums over all responses that told their path.
    pub(crate) paths: PathSums,
}

/// Sums of what responses told of their paths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PathSums {
    /// How many did.
    pub(crate) count: u64,
    /// Nanoseconds by stage.
    pub(crate) stages_ns: [u64; STAGES],
    /// Bytes copied by a CPU on the way in, those copied again, and those that the runtime copied.
    pub(crate) copied: u64,
    /// See `copied`.
    pub(crate) fixup: u64,
    /// See `copied`.
    pub(crate) runtime_copied: u64,
    /// Payload bytes.
    pub(crate) payload: u64,
    /// The last one.
    pub(crate) last: Option<Path>,
}

impl PathSums {
    /// Adds what one response told.
    pub(crate) fn add(&mut self, path: &Path) {
        self.count += 1;
        for (sum, &stage) in self.stages_ns.iter_mut().zip(&path.stages_ns) {
            *sum += u64::from(stage);
        }
        self.copied += u64::from(path.copied_bytes);
        self.fixup += u64::from(path.fixup_bytes);
        self.runtime_copied += u64::from(path.runtime_copied_bytes);
        self.payload += u64::from(path.payload_bytes);
        self.last = Some(*path);
    }

    /// Adds another's sums.
    pub(crate) fn merge(&mut self, other: &PathSums) {
        self.count += other.count;
        for (sum, stage) in self.stages_ns.iter_mut().zip(other.stages_ns) {
            *sum += stage;
        }
        self.copied += other.copied;
        self.fixup += other.fixup;
        self.runtime_copied += other.runtime_copied;
        self.payload += other.payload;
        self.last = other.last.or(self.last);
    }
}

impl Measured {
    /// Requests that were due in the window, however they ended.
    pub(crate) fn came(&self) -> u64 {
        let right: usize = self.latencies.iter().map(Vec::len).sum();
        right as u64 + self.errors.values().sum::<u64>() + self.turned_away
    }

    /// Counts a failure.
    pub(crate) fn fail(&mut self, fault: &Fault) {
        *self.errors.entry(fault.to_string()).or_default() += 1;
    }
}
