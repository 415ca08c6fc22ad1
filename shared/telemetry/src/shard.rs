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

/// What is measured of each path apart.
#[derive(Debug)]
pub(crate) struct ByPath<T>(Vec<Place<T>>);

#[derive(Debug)]
struct Place<T> {
    tag: Cell,
    // Written once, before the tag: readers that see the tag see the key.
    key: std::sync::OnceLock<PathKey>,
    measured: T,
}

impl<T> ByPath<T> {
    fn new(nothing: impl Fn() -> T) -> ByPath<T> {
        let place = || Place { tag: Cell::new(), key: std::sync::OnceLock::new(), measured: nothing() };
        ByPath((0..MAX_PATHS).map(|_| place()).collect())
    }

    fn of(&self, key: PathKey) -> &T {
        let tag = key.pack();
        for place in &self.0 {
            match place.tag.load() {
                0 => {
                    // Only the owner writes, so nobody can have set the key in between.
                    let _ = place.key.set(key);
                    place.tag.store(tag);
                    return &place.measured;
                }
                known if known == tag => return &place.measured,
                _ => {}
            }
        }
        &self.0[MAX_PATHS - 1].measured
    }

    /// The paths that were taken.
    pub(crate) fn taken(&self) -> impl Iterator<Item = (PathKey, &T)> {
        self.0.iter().filter_map(|place| Some((*place.key.get()?, &place.measured)))
    }
}

/// One model's requests over one path.
#[derive(Debug)]
pub(crate) struct Series {
    /// Requests by status, indexed by the status's code.
    pub(crate) statuses: [Cell; Status::ALL.len()],
    /// Duration at the server.
    pub(crate) total: Histogram,
    pub(crate) payload_bytes: Cell,
    pub(crate) copied_bytes: Cell,
    pub(crate) fixup_bytes: Cell,
    pub(crate) runtime_copied_bytes: Cell,
    pub(crate) device_compactions: Cell,
}

impl Series {
    fn new() -> Series {
        Series {
            statuses: std::array::from_fn(|_| Cell::new()),
            total: Histogram::new(),
            payload_bytes: Cell::new(),
            copied_bytes: Cell::new(),
            fixup_bytes: Cell::new(),
            runtime_copied_bytes: Cell::new(),
            device_compactions: Cell::new(),
        }
    }
}

/// What is measured of one model.
#[derive(Debug)]
pub struct Model {
    pub(crate) series: ByPath<Series>,
    /// Nanoseconds that requests spent in each stage.
    pub(crate) stages_ns: [Cell; STAGES],
    /// Requests without an answer, indexed by the status's code.
    pub(crate) refusals: [Cell; Status::ALL.len()],
    /// Rows in each launch.
    pub batch_rows: Histogram,
    /// Requests in each launch.
    pub batch_requests: Histogram,
    /// Requests that wait for a launch now.
    pub queued: Cell,
    outage: Cell,
}

/// Why a model that was loaded is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// A launch does not end. It may yet.
    Stuck = 1,
    /// The device on which it computes is lost to the process.
    DeviceLost = 2,
}

impl Model {
    /// Says that it is out of service, or not.
    pub fn set_outage(&self, outage: Option<Outage>) {
        self.outage.store(outage.map_or(0, |outage| outage as u64));
    }

    /// Why it is out of service, if it is.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        [Outage::Stuck, Outage::DeviceLost].into_iter().find(|outage| *outage as u64 == self.outage.load())
    }

    fn new() -> Model {
        Model {
            series: ByPath::new(Series::new),
            stages_ns: std::array::from_fn(|_| Cell::new()),
            refusals: std::array::from_fn(|_| Cell::new()),
            batch_rows: Histogram::new(),
            batch_requests: Histogram::new(),
            queued: Cell::new(),
            outage: Cell::new(),
        }
    }
}

/// All that one data thread measures. It alone writes; others only read.
#[derive(Debug)]
pub struct Shard {
    pub(crate) models: Vec<Model>,
    /// Duration of each stage, of all models: for each of them that would be more than anybody looks at.
    pub(crate) stages: ByPath<[Histogram; STAGES]>,
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
            stages: ByPath::new(|| std::array::from_fn(|_| Histogram::new())),
            events: cells(Event::ALL.len()),
            levels: cells(Level::ALL.len()),
            wire_errors: cells(WireError::ALL.len()),
            refusals: std::array::from_fn(|_| Cell::new()),
        }
    }

    /// Counts events.
    #[inline]
    pub fn count(&self, event: Event, n: u64) {
        self.events[event as usize].add(n);
    }

    /// Takes over a counter that is kept elsewhere, such as the engine's own.
    #[inline]
    pub fn set(&self, event: Event, total: u64) {
        self.events[event as usize].store(total);
    }

    /// How often an event has happened.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize].load()
    }

    /// Sets a level.
    #[inline]
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
    #[inline]
    pub fn request(&self, model: u16, path: &Path, status: Status, total_ns: u64) {
        let Some(model) = self.models.get(usize::from(model)) else { return };
        let key = PathKey::from(path);
        let series = model.series.of(key);
        series.statuses[status as usize].add(1);
        series.payload_bytes.add(u64::from(path.payload_bytes));
        series.copied_bytes.add(u64::from(path.copied_bytes));
        series.fixup_bytes.add(u64::from(path.fixup_bytes));
        series.runtime_copied_bytes.add(u64::from(path.runtime_copied_bytes));
        series.device_compactions.add(u64::from(path.device_compactions));
        if status == Status::Ok {
            series.total.record(total_ns);
            let stages = self.stages.of(key);
            for stage in Stage::ALL {
                let spent = u64::from(path.stage(stage));
                stages[stage as usize].record(spent);
                model.stages_ns[stage as usize].add(spent);
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
        let counts = model.series.taken().map(|(key, s)| (key.port, s.statuses[Status::Ok as usize].load()));
        let counts: Vec<_> = counts.collect();
        assert_eq!(counts, [(Port::Tcp, 2), (Port::Udp, 1), (Port::Xdp, 1), (Port::Verbs, 2)]);
    }

    #[test]
    fn every_status_indexes_its_counter() {
        for (i, status) in Status::ALL.iter().enumerate() {
            assert_eq!(*status as usize, i);
        }
    }
}
