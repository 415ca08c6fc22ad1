//! Both sides' processes, and who asks them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nic_app::DataThreadConfig;
use nic_app::card::{self, CardConfig, CardPorts, CardStop};
use splitrpc_client::{Client, ClientOptions, Error, Input, Response, Transport};
use splitrpc_wire::DType;

/// Tells a process of this test program that it is a card, and where it listens.
const CARD: &str = "SPLITRPC_TEST_CARD";
/// How long anything may take.
const LONG: Duration = Duration::from_secs(60);
/// What the null model answers with.
pub(crate) fn null_answer() -> Vec<u8> {
    (0..4_000u32).map(|i| ((i * 7 + 13) % 251) as u8).collect()
}

/// A bus, and where the card listens on this machine.
pub(crate) struct Bus {
    folder: tempfile::TempDir,
    pub(crate) listens: SocketAddr,
    http: SocketAddr,
}

/// A process.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Bus {
    pub(crate) fn new() -> Bus {
        let (listens, http) = (own_address(), own_address());
        Bus { folder: tempfile::tempdir().unwrap(), listens, http }
    }

    /// A card, which waits for its host agent. `faults` is what goes wrong on its side.
    pub(crate) fn card(&self, faults: &str) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "rig::be_a_card", "--nocapture"]).env(CARD, self.listens.to_string());
        let card = self.start(command, "arm", faults);
        card.says("waiting");
        card
    }

    /// A host agent, which looks for its card.
    pub(crate) fn agent(&self, faults: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-agent"));
        command.args(["serve", "--nic", "smartnic", "--http", &self.http.to_string()]);
        command.env("SPLITRPC_NIC_LIBRARIES", library());
        // Tests run beside each other, and ask for little at once.
        command.env("SPLITRPC_LIMITS_SESSIONS", "64").env("SPLITRPC_LIMITS_CLASS_BYTES", (16 << 20).to_string());
        command.env("SPLITRPC_LIMITS_SLOTS_PER_MODEL", "8").env("SPLITRPC_LOG", "error");
        let agent = self.start(command, "host", faults);
        agent.says("ready");
        agent
    }

    /// Both, when they serve together.
    pub(crate) fn both(&self, faults: &str) -> (Process, Process) {
        let card = self.card(faults);
        let agent = self.agent(faults);
        card.says("serving");
        (card, agent)
    }

    pub(crate) fn start(&self, mut command: Command, side: &str, faults: &str) -> Process {
        command.env("SPLITRPC_BLUEFIELD", self.folder.path()).env("SPLITRPC_BLUEFIELD_SIDE", side);
        if !faults.is_empty() {
            command.env("SPLITRPC_BLUEFIELD_FAULTS", faults);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Process { child, lines }
    }

    pub(crate) fn client(&self, transport: Transport) -> Client {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        Client::connect(&self.listens.to_string(), options).unwrap()
    }

    /// A client, as soon as anybody listens.
    pub(crate) fn client_again(&self, transport: Transport) -> Client {
        let until = Instant::now() + LONG;
        loop {
            let options = ClientOptions { transport, ..ClientOptions::default() };
            match Client::connect(&self.listens.to_string(), options) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < until, "nobody serves again: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the agent says over HTTP.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A counter of the agent's.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Process {
    /// Waits until it says so.
    pub(crate) fn says(&self, what: &str) {
        let until = Instant::now() + LONG;
        loop {
            let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|error| panic!("it never said {what:?}: {error}"));
            if line.contains(what) {
                return;
            }
        }
    }

    /// Kills it as nothing that it could notice.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to end. Returns whether it did so well.
    pub(crate) fn end(mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that nobody else has, so that it is still free for the next card when one has gone: of this process alone, and with a port that the kernel
/// gives nobody.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
    SocketAddr::from(([127, 64 + high % 64, middle, low], port))
}

/// Bytes that differ from seed to seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Asks a model.
pub(crate) fn ask(client: &mut Client, model: &str, bytes: &[u8]) -> Result<Response, Error> {
    client.infer(model, &[Input::new("INPUT", DType::Uint8, &[bytes.len() as u32], bytes)])
}

/// The software BlueField, which was built with what this is built of.
pub(crate) fn library() -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("libdoca_emu.so");
    assert!(beside.is_file(), "{} is not there", beside.display());
    beside
}

/// What a card's process is.
#[test]
fn be_a_card() {
    let Ok(listens) = std::env::var(CARD) else { return };
    let listens = Some(listens.parse().unwrap());
    let config = CardConfig {
        libraries: Some(library()),
        device: None,
        representor: None,
        ports: CardPorts { tcp: listens, udp: listens, buffer: 1 << 20 },
        thread: DataThreadConfig { crowded: true, ..DataThreadConfig::default() },
        version: "test".to_owned(),
    };
    let stop = CardStop::default();
    let told = stop.clone();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).unwrap();
    std::thread::spawn(move || signals.forever().for_each(|_| told.stop()));
    card::serve(&config, &stop, |ready| println!("{}", if ready.is_some() { "serving" } else { "waiting" })).unwrap();
}
