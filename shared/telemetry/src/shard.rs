//! What one data thread measures.

use splitrpc_wire::path::{Link, Memory, Mover, Port};
use splitrpc_wire::{Path, STAGES, Stage, Status, WireError};

use crate::{Cell, Event, Histogram, Level};

/// Paths told apart for each model; what takes a further one is counted under the last.
pub const MAX_PATHS: usize = 4;

/// The labels of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathKey {
    /// The network edge.
    pub port: Port,
    /// What carried the payload into its slot.
    pub mover: Mover,
    /// The memory in which the model read it.
    pub memory: Memory,
    /// What joined engine and orchestrator.
    pub link: Link,
    /// Whether a software BlueField stood in for a card.
    pub emulated: bool,
}

impl From<&Path> for PathKey {
    fn from(path: &Path) -> PathKey {
        PathKey { port: path.port, mover: path.mover, memory: path.memory, link: path.link, emulated: path.emulated }
    }
}

impl PathKey {
    /// Never 0, which stands for a series that is not in use.
    fn pack(self) -> u64 {
        let bytes =
            [1, self.port as u8, self.mover as u8, self.memory as u8, self.link as u8, u8::from(self.emulated), 0, 0];
        u64::from_le_bytes(bytes)
    }

    /// The five labels, in order of their names.
    #[must_use]
    pub fn labels(self) -> [(&'static str, &'static str); 5] {
        [
            ("emulated", if self.emulated { "true" } else { "false" }),
            ("link", self.link.name()),
            ("memory", self.memory.name()),
            ("mover", self.mover.name()),
            ("port", self.port.name()),
        ]
    }
}

/// One model's requests over one path.
#[derive(Debug)]
pub struct Series {
    tag: Cell,
    // Written once, before the tag: readers that see the tag see the key.
    key: std::sync::OnceLock<PathKey>,
    /// Requests by status, indexed by the status's code.
    pub(crate) statuses: [Cell; Status::ALL.len()],
    /// Duration at the server.
    pub(crate) total: Histogram,
    /// Duration of each stage.
    pub(crate) stages: [Histogram; STAGES],
    pub(crate) payload_bytes: Cell,
    pub(crate) copied_bytes: Cell,
    pub(crate) fixup_bytes: Cell,
    pub(crate) runtime_copied_bytes: Cell,
}

impl Series {
    fn new() -> Series {
        Series {
            tag: Cell::new(),
            key: std::sync::OnceLock::new(),
            statuses: std::array::from_fn(|_| Cell::new()),
            total: Histogram::new(),
            stages: std::array::from_fn(|_| Histogram::new()),
            payload_bytes: Cell::new(),
            copied_bytes: Cell::new(),
            fixup_bytes: Cell::new(),
            runtime_copied_bytes: Cell::new(),
        }
    }

    /// The path, if the series is in use.
    #[must_use]
    pub fn key(&self) -> Option<PathKey> {
        self.key.get().copied()
    }
}

/// What is measured of one model.
#[derive(Debug)]
pub struct Model {
    pub(crate) series: Vec<Series>,
    /// Requests without an answer, indexed by the status's code.
    pub(crate) refusals: [Cell; Status::ALL.len()],
    /// Rows in each launch.
    pub batch_rows: Histogram,
    /// Requests in each launch.
    pub batch_requests: Histogram,
    /// Requests that wait for a launch now.
    pub queued: Cell,
}

impl Model {
    fn new() -> Model {
        Model {
            series: (0..MAX_PATHS).map(|_| Series::new()).collect(),
            refusals: std::array::from_fn(|_| Cell::new()),
            batch_rows: Histogram::new(),
            batch_requests: Histogram::new(),
            queued: Cell::new(),
        }
    }

    fn series(&self, key: PathKey) -> &Series {
        let tag = key.pack();
        for series in &self.series {
            match series.tag.load() {
                0 => {
                    // Only the owner writes, so nobody can have set the key in between.
                    let _ = series.key.set(key);
                    series.tag.store(tag);
                    return series;
                }
                known if known == tag => return series,
                _ => {}
            }
        }
        &self.series[MAX_PATHS - 1]
    }
}

/// All that one data thread measures. It alone writes; others only read.
#[derive(Debug)]
pub struct Shard {
    pub(crate) models: Vec<Model>,
    pub(crate) events: Vec<Cell>,
    pub(crate) levels: Vec<Cell>,
    pub(crate) wire_errors: Vec<Cell>,
    /// What cannot be told a model for.
    pub(crate) refusals: [Cell; Status::ALL.len()],
}

impl Shard {
    /// Of a server with this many models, whose handles are the indexes below it.
    #[must_use]
    pub fn new(models: usize) -> Shard {
        let cells = |n: usize| (0..n).map(|_| Cell::new()).collect();
        Shard {
            models: (0..models).map(|_| Model::new()).collect(),
            events: cells(Event::ALL.len()),
            levels: cells(Level::ALL.len()),
            wire_errors: cells(WireError::ALL.len()),
            refusals: std::array::from_fn(|_| Cell::new()),
        }
    }

    /// Counts events.
    pub fn count(&self, event: Event, n: u64) {
        self.events[event as usize].add(n);
    }

    /// Takes over a counter that is kept elsewhere, such as the engine's own.
    pub fn set(&self, event: Event, total: u64) {
        self.events[event as usize].store(total);
    }

    /// How often an event has happened.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize].load()
    }

    /// Sets a level.
    pub fn level(&self, level: Level, value: u64) {
        self.levels[level as usize].store(value);
    }

    /// Takes over the number of times that bytes were refused for this reason.
    pub fn set_wire_error(&self, error: WireError, total: u64) {
        self.wire_errors[error.index()].store(total);
    }

    /// Counts bytes refused for this reason.
    pub fn wire_error(&self, error: WireError) {
        self.wire_errors[error.index()].add(1);
    }

    /// Takes over the number of requests that ended with this status instead of an answer: those of a model, or those that
    /// named none. Without effect for a model that does not exist.
    pub fn set_refused(&self, model: Option<u16>, status: Status, total: u64) {
        let refusals = match model {
            Some(model) => self.model(model).map(|m| &m.refusals),
            None => Some(&self.refusals),
        };
        if let Some(refusals) = refusals {
            refusals[status as usize].store(total);
        }
    }

    /// Counts an answered request: its status, and where it succeeded its durations. `total_ns` is from its first byte
    /// to its answer. Without effect for a model that does not exist.
    pub fn request(&self, model: u16, path: &Path, status: Status, total_ns: u64) {
        let Some(model) = self.models.get(usize::from(model)) else { return };
        let series = model.series(PathKey::from(path));
        series.statuses[status as usize].add(1);
        series.payload_bytes.add(u64::from(path.payload_bytes));
        series.copied_bytes.add(u64::from(path.copied_bytes));
        series.fixup_bytes.add(u64::from(path.fixup_bytes));
        series.runtime_copied_bytes.add(u64::from(path.runtime_copied_bytes));
        if status == Status::Ok {
            series.total.record(total_ns);
            for stage in Stage::ALL {
                series.stages[stage as usize].record(u64::from(path.stage(stage)));
            }
        }
    }

    /// A model's own measurements.
    #[must_use]
    pub fn model(&self, model: u16) -> Option<&Model> {
        self.models.get(usize::from(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_past_the_last_place_share_it() {
        let shard = Shard::new(1);
        for port in [Port::Tcp, Port::Udp, Port::Xdp, Port::Verbs, Port::Sim, Port::Tcp] {
            shard.request(0, &Path { port, ..Path::default() }, Status::Ok, 1);
        }
        let model = shard.model(0).unwrap();
        let counts: Vec<_> = model.series.iter().map(|s| s.statuses[Status::Ok as usize].load()).collect();
        assert_eq!(counts, [2, 1, 1, 2]);
        assert_eq!(model.series[3].key().unwrap().port, Port::Verbs);
    }

    #[test]
    fn every_status_indexes_its_counter() {
        for (i, status) in Status::ALL.iter().enumerate() {
            assert_eq!(*status as usize, i);
        }
    }
}
