//! Either side's end of a connection, as a test plays it in a process of its own.

use std::process::Command;
use std::time::{Duration, Instant};

use nic_app::setup::{Exported, Hex, Message, ModelShape, PART_HEAD, PROTOCOL, Parts, PoolShape, SERVICE, Setup};
use splitrpc_arena::{Arena, PoolLayout};
use splitrpc_doca::{
    Access, Connection, Device, Library, Lines, Memory, Notice, Options, Producer, ProgressEngine, Server,
};
use splitrpc_engine::ServerConfig;
use splitrpc_ring::CONTROL_LINES;
use splitrpc_wire::DType;

use crate::rig::{Bus, Process, library};

/// Tells a process of this test program that it is such a peer.
const PEER: &str = "SPLITRPC_TEST_PEER";
/// How long anything may take.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A process in which that test plays a peer.
pub(crate) fn peer(bus: &Bus, test: &str, side: &'static str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(PEER, "1");
    bus.start(command, side, "")
}

/// Waits until it is so, and drives what makes it so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The device of the host's side, or else the card's, where this process plays a peer.
pub(crate) fn played(host: bool) -> Option<Device> {
    std::env::var(PEER).ok()?;
    let library = Library::load(Some(&library())).unwrap();
    let all = Device::all(&library).unwrap();
    let mine = all.iter().find(|device| if host { device.can.client } else { device.can.server });
    Some(Device::open(&library, &mine.unwrap().address).unwrap())
}

/// A host's end of a connection.
pub(crate) struct Host {
    pub(crate) client: splitrpc_doca::Client,
    connection: Connection,
    pub(crate) engine: ProgressEngine,
    message_bytes: usize,
    consumer: Option<u32>,
}

impl Host {
    pub(crate) fn new(device: &Device) -> Host {
        let end = Instant::now() + LONG;
        loop {
            let engine = ProgressEngine::new(device.library()).unwrap();
            let options = Options::default();
            let client = splitrpc_doca::Client::new(&engine, device, SERVICE, options).unwrap();
            let tried = Instant::now();
            while tried.elapsed() < Duration::from_secs(1) {
                engine.progress();
                if let Some(connection) = client.connection() {
                    let message_bytes = options.message_bytes as usize;
                    return Host { client, connection, engine, message_bytes, consumer: None };
                }
            }
            assert!(Instant::now() < end, "there is no card");
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        until("it is never sent", || {
            self.engine.progress();
            match self.client.send(&self.connection, bytes) {
                Err(error) if error.is_again() => false,
                // Who is refused meanwhile cannot be told more.
                _ => true,
            }
        });
    }

    /// What the card says next, but for beats; nothing where it hangs up.
    pub(crate) fn hear(&mut self) -> Option<Vec<u8>> {
        let mut said = None;
        until("nothing is heard", || {
            self.engine.progress();
            let consumer = &mut self.consumer;
            self.client.notices(|notice| match notice {
                Notice::Message(_, bytes) if !matches!(Message::parse(bytes), Ok(Message::Beat { .. })) => {
                    said.get_or_insert_with(|| bytes.to_vec());
                }
                Notice::ConsumerUp(_, id) => *consumer = Some(id),
                _ => {}
            });
            said.is_some() || self.client.connection().is_none()
        });
        said
    }

    pub(crate) fn hello(&mut self) {
        self.send(&Message::Hello { protocol: PROTOCOL, version: "bad" }.to_bytes());
        let said = self.hear().unwrap();
        assert!(matches!(Message::parse(&said), Ok(Message::Welcome { .. })), "{said:?}");
    }

    pub(crate) fn set_up(&mut self, json: &[u8]) {
        let part = self.message_bytes - PART_HEAD;
        for (number, bytes) in json.chunks(part).enumerate() {
            self.send(&Message::Part { total: json.len() as u32, offset: (number * part) as u32, bytes }.to_bytes());
        }
    }

    /// The card serves with it from here on. Returns what it is told by.
    pub(crate) fn served(&mut self) -> Producer {
        let said = self.hear().unwrap();
        assert!(matches!(Message::parse(&said), Ok(Message::Ready { .. })), "{said:?}");
        let consumer = self.consumer.expect("the card has told of it");
        let producer = Producer::new(&self.engine, &self.connection, consumer, 64).unwrap();
        until("nothing can be told", || {
            self.engine.progress();
            producer.is_running()
        });
        producer
    }

    /// The card sends it away, with these words.
    pub(crate) fn expect_refusal(mut self, words: &str) {
        let said = self.hear().expect("it is told why");
        match Message::parse(&said) {
            Ok(Message::Refused { why }) => assert!(why.contains(words), "{why}, in place of {words}"),
            other => panic!("{other:?}, in place of {words}"),
        }
        until("it is not hung up on", || {
            self.engine.progress();
            self.client.connection().is_none()
        });
    }
}

/// What a host that means well shows. What it exports goes with the memory.
pub(crate) struct Shown {
    pub(crate) setup: Setup,
    pub(crate) lines: Lines,
    _memories: [Memory; 2],
}

pub(crate) fn sound(device: &Device) -> Shown {
    let layout = PoolLayout::new(&[4096], 1, 8).unwrap();
    let layouts = [(0, layout), (1, layout)];
    let slots = Memory::of_arena(device, &Arena::new("bad-host", &layouts, 0).unwrap(), Access::OtherWrites).unwrap();
    let lines = Lines::new("bad-ring", CONTROL_LINES + 64).unwrap();
    let ring = Memory::of_arena(device, lines.arena(), Access::OtherWrites).unwrap();
    let exported =
        |memory: &Memory| Exported { description: Hex(memory.export().unwrap()), bytes: memory.len() as u64 };
    let (dims, limits) = (vec![-1], ServerConfig { requests: 32, ..ServerConfig::small() });
    let model = ModelShape {
        inputs: vec![(DType::Uint8 as u8, dims)],
        classes: vec![0],
        max_batch: 0,
        priority_levels: 0,
        default_priority: 0,
    };
    let setup = Setup {
        arena: exported(&slots),
        ring: exported(&ring),
        ring_entries: 64,
        pools: layouts.iter().map(|(id, layout)| PoolShape::from((*id, layout))).collect(),
        input_pools: 1,
        device: Vec::new(),
        models: vec![model],
        catalog: Hex(Vec::new()),
        limits,
        doorbell: None,
        knock: 0,
    };
    Shown { setup, lines, _memories: [slots, ring] }
}

/// A card's end of a connection.
pub(crate) struct Card {
    pub(crate) server: Server,
    pub(crate) connection: Connection,
    pub(crate) engine: ProgressEngine,
}

impl Card {
    pub(crate) fn new(device: &Device) -> Card {
        let engine = ProgressEngine::new(device.library()).unwrap();
        let representor = device.representor(&device.representors().unwrap()[0]).unwrap();
        let mut server = Server::new(&engine, device, &representor, SERVICE, Options::default()).unwrap();
        let mut connection = None;
        until("no agent comes", || {
            engine.progress();
            server.notices(|notice| {
                if let Notice::Connected(new) = notice {
                    connection = Some(new);
                }
            });
            connection.is_some()
        });
        Card { server, connection: connection.unwrap(), engine }
    }

    pub(crate) fn say(&mut self, message: &[u8]) {
        self.server.send(&self.connection, message).unwrap();
    }

    /// What the agent says, until `of` has what it wants.
    pub(crate) fn hear<T>(&mut self, mut of: impl FnMut(&Message<'_>) -> Option<T>) -> T {
        let mut found = None;
        until("the agent says nothing", || {
            self.engine.progress();
            self.server.notices(|notice| {
                if let Notice::Message(_, bytes) = notice
                    && found.is_none()
                {
                    found = of(&Message::parse(bytes).expect("an agent says what can be read"));
                }
            });
            found.is_some()
        });
        found.unwrap()
    }

    pub(crate) fn setup(&mut self) -> Setup {
        self.hear(|message| matches!(message, Message::Hello { .. }).then_some(()));
        self.say(&Message::Welcome { version: "bad" }.to_bytes());
        let mut parts = Parts::default();
        let json = self.hear(|message| match message {
            Message::Part { total, offset, bytes } => parts.take(*total, *offset, bytes).unwrap(),
            _ => None,
        });
        Setup::parse(&json).unwrap()
    }

    /// The agent hangs up.
    pub(crate) fn expect_parting(mut self) {
        until("the agent stays", || {
            self.engine.progress();
            self.server.notices(|_| {});
            !self.connection.is_open()
        });
    }
}
