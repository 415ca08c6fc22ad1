//! A way from a client to a model, and a server that has it.

use std::path::Path;
use std::time::{Duration, Instant};

use splitrpc_client::{ConnectOptions, Connection, Event, Failure, Request, RequestId, Response, Tensor, Transport};
use splitrpc_wire::DType;
use splitrpc_wire::path::{Link, Memory, Mover, Port};

use crate::model_support::onnx::{D, FLOAT, Graph, INT64};
use crate::model_support::put;
use crate::rig::{Bus, Process};

/// How long anything may take.
const LONG: Duration = Duration::from_secs(60);
/// Slots that each class has, as `rig` says; classes of large requests have fewer.
pub(crate) const SLOTS: usize = 8;
/// Bytes of a request, manifest included.
pub(crate) const MAX_REQUEST: usize = 8 << 20;
/// Rows of a batch of the patient model, which waits for all of them.
pub(crate) const ROWS: u32 = 4;

/// A way.
#[derive(Clone, Copy)]
pub(crate) struct Arm {
    /// What carries the client's sessions.
    pub(crate) transport: Transport,
    /// What receives them.
    pub(crate) port: Port,
    pub(crate) inner: Inner,
}

/// The part of a way that the client does not see.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    mover: Mover,
    link: Link,
    emulated: bool,
    /// Starts what serves, the agent last.
    start: fn(&Bus) -> (Option<Process>, Process),
    /// The agent's metrics that tell of free slots.
    levels: &'static [&'static str],
}

/// Port and engine are in the agent's own process.
pub(crate) const IN_PROCESS: Inner = Inner {
    mover: Mover::KernelToSlot,
    link: Link::InProcess,
    emulated: false,
    start: |bus| (None, bus.agent_alone()),
    levels: &["splitrpc_input_slots_free", "splitrpc_output_slots_free"],
};

/// They are on a card, for which the software BlueField stands in. The slots of inputs are the card's to know of.
pub(crate) const CARD: Inner = Inner {
    mover: Mover::DocaDma,
    link: Link::Doca,
    emulated: true,
    start: |bus| {
        let (card, agent) = bus.both("");
        (Some(card), agent)
    },
    levels: &["splitrpc_output_slots_free"],
};

/// A server, and a client's way to it.
pub(crate) struct Up {
    arm: Arm,
    pub(crate) bus: Bus,
    agent: Process,
    card: Option<Process>,
    /// Slots that were free at first, by the metrics that this arm's agent has.
    free: Vec<(&'static str, u64)>,
    _models: tempfile::TempDir,
}

impl Arm {
    /// A server with the models of the scenarios.
    pub(crate) fn up(self) -> Up {
        let models = models();
        let mut bus = Bus::new();
        bus.settings = vec![
            ("SPLITRPC_MODELS_BUILTINS", "[null, echo]".to_owned()),
            ("SPLITRPC_MODELS_REPOSITORY", models.path().to_str().unwrap().to_owned()),
            ("SPLITRPC_LIMITS_MAX_REQUEST_BYTES", MAX_REQUEST.to_string()),
            ("SPLITRPC_LIMITS_PROGRESS_GRACE_MS", "1000".to_owned()),
        ];
        let (card, agent) = (self.inner.start)(&bus);
        let mut up = Up { arm: self, bus, agent, card, free: Vec::new(), _models: models };
        for level in self.inner.levels {
            up.wait_for("slots are never told of", |up| up.bus.counter(level) > 0);
            up.free.push((level, up.bus.counter(level)));
        }
        up
    }
}

impl Up {
    pub(crate) fn transport(&self) -> Transport {
        self.arm.transport
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::connect(&self.bus.listens.to_string(), self.transport(), &ConnectOptions::default()).unwrap()
    }

    /// Whether an answer has come the way that it should, and says so.
    pub(crate) fn check_way(&self, response: &Response, bytes: usize) {
        let path = response.path().expect("every answer says which way its request took");
        let Arm { port, inner: Inner { mover, link, emulated, .. }, .. } = self.arm;
        let took = (path.port, path.mover, path.memory, path.link, path.emulated);
        assert_eq!(took, (port, mover, Memory::Host, link, emulated));
        assert_eq!((path.payload_bytes as usize, path.runtime_copied_bytes), (bytes, 0));
        // The kernel makes the only copy of a stream's large payloads; datagrams out of order, and small requests, may be moved once, which is counted.
        let (copied, moved) = (path.copied_bytes as usize, path.fixup_bytes as usize);
        assert!(copied == bytes && moved <= bytes, "{path:?}");
        if port == Port::Tcp && bytes > 64 << 10 {
            assert_eq!(moved, 0, "{path:?}");
        }
    }

    pub(crate) fn wait_for(&self, otherwise: &str, is_so: impl Fn(&Up) -> bool) {
        let until = Instant::now() + LONG;
        while !is_so(self) {
            assert!(Instant::now() < until, "{otherwise}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until so many requests are in the agent's queues.
    pub(crate) fn wait_until_queued(&self, count: u64, client: &mut Connection) {
        let until = Instant::now() + LONG;
        while self.bus.counter("splitrpc_requests_queued") != count {
            assert!(Instant::now() < until, "there are never {count} requests that wait");
            assert!(client.poll().unwrap().is_none(), "answered too soon");
        }
    }

    /// Everything is there again that was there at first, and all end as they are told.
    pub(crate) fn end(self) {
        for (level, at_first) in &self.free {
            self.wait_for(&format!("{level} is not {at_first} again"), |up| up.bus.counter(level) == *at_first);
        }
        self.wait_for("requests go on waiting", |up| up.bus.counter("splitrpc_requests_queued") == 0);
        self.stop();
    }

    /// All end as they are told.
    pub(crate) fn stop(self) {
        assert!(self.agent.end(), "the agent did not end well");
        assert!(self.card.is_none_or(Process::end), "the card did not end well");
    }
}

/// What a client hears next.
pub(crate) fn next(client: &mut Connection) -> Event {
    let until = Instant::now() + LONG;
    loop {
        match client.poll().unwrap() {
            Some(event) => return event,
            None => assert!(Instant::now() < until, "nothing is heard"),
        }
        std::thread::yield_now();
    }
}

pub(crate) fn answer(client: &mut Connection) -> Response {
    match next(client) {
        Event::Response(response) => response,
        event => panic!("{event:?}"),
    }
}

pub(crate) fn failure(client: &mut Connection) -> Failure {
    match next(client) {
        Event::Failed(failure) => failure,
        event => panic!("{event:?}"),
    }
}

/// Asks the patient model about so many images; `with` changes the request.
pub(crate) fn ask_patient(client: &mut Connection, rows: u32, with: impl Fn(&mut Request<'_>)) -> RequestId {
    let model = client.catalogue().model("patient").unwrap().handle;
    let images = vec![0; rows as usize * 64 * 4];
    let tensors = [Tensor::new(0, DType::Fp32, &[rows, 8, 8], &images[..]).unwrap()];
    let mut request = Request::new(model, &tensors);
    with(&mut request);
    client.submit(&request).unwrap()
}

/// Asks for bytes back.
pub(crate) fn ask_echo(client: &mut Connection, bytes: &[u8]) -> RequestId {
    let model = client.catalogue().model("echo").unwrap().handle;
    let tensors = [Tensor::new(0, DType::Uint8, &[bytes.len() as u32], bytes).unwrap()];
    client.submit(&Request::new(model, &tensors)).unwrap()
}

/// `patient`, whose batches wait to be full for longer than anybody waits for anything; `several`, with more tensors than one; and `lookup`, which some
/// values make fail.
fn models() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let digits = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/1/model.onnx")).unwrap();
    let patient = format!(
        "max_batch_size: {ROWS} dynamic_batching {{ max_queue_delay_microseconds: 3600000000 priority_levels: 2 \
         default_priority_level: 2 }}"
    );
    put(folder.path(), "patient", &digits, Some(&patient));
    let several = [("a", 3000), ("b", 3000), ("c", 5)]
        .iter()
        .fold(Graph::default(), |graph, (name, len)| graph.input(name, FLOAT, &[D::N(*len)]));
    let several = several.node("Add", &["a", "b"], &["sum"], vec![]).output("sum", FLOAT, &[D::N(3000)]);
    let several = several.node("Relu", &["c"], &["positive"], vec![]).output("positive", FLOAT, &[D::N(5)]);
    put(folder.path(), "several", &several.file(), None);
    let lookup = Graph::default().input("at", INT64, &[D::N(1)]).floats("table", &[3], &[1.0, 2.0, 3.0]);
    let lookup = lookup.node("Gather", &["table", "at"], &["y"], vec![]).output("y", FLOAT, &[D::N(1)]);
    put(folder.path(), "lookup", &lookup.file(), None);
    folder
}
