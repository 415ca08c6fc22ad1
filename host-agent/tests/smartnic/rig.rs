//! Both sides' processes, and who asks them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nic_app::DataThreadConfig;
use nic_app::card::{self, CardConfig, CardPorts, CardStop, Status};
use nic_app::program::http::{Bounds, Http};
use splitrpc_client::{Client, ClientOptions, Error, Input, Response, Transport};
use splitrpc_wire::DType;

/// Tells a process of this test program that it is a card, and where it listens.
const CARD: &str = "SPLITRPC_TEST_CARD";
/// MiB that it may use.
const CARD_MEMORY: &str = "SPLITRPC_TEST_CARD_MEMORY";
/// Where it answers over HTTP.
const CARD_HTTP: &str = "SPLITRPC_TEST_CARD_HTTP";
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
    card_http: SocketAddr,
    /// What agents are told beside the usual, by environment variables.
    pub(crate) settings: Vec<(&'static str, String)>,
}

/// A process.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Bus {
    pub(crate) fn new() -> Bus {
        let (listens, http, card_http) = (own_address(), own_address(), own_address());
        Bus { folder: tempfile::tempdir().unwrap(), listens, http, card_http, settings: Vec::new() }
    }

    /// A card, which waits for its host agent. `faults` is what goes wrong on its side.
    pub(crate) fn card(&self, faults: &str) -> Process {
        self.card_with(faults, None)
    }

    /// The same, which may use so many MiB.
    pub(crate) fn card_with(&self, faults: &str, memory_mib: Option<u64>) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "rig::be_a_card", "--nocapture"]).env(CARD, self.listens.to_string());
        command.env(CARD_HTTP, self.card_http.to_string());
        command.envs(memory_mib.map(|mib| (CARD_MEMORY, mib.to_string())));
        let card = self.start(command, "arm", faults);
        card.says("waiting");
        card
    }

    /// A host agent, which looks for its card.
    pub(crate) fn agent(&self, faults: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-agent"));
        command.arg("serve");
        self.agent_of(command, faults).0
    }

    /// The same of another program, and how it said that it is ready.
    pub(crate) fn agent_of(&self, mut command: Command, faults: &str) -> (Process, String) {
        command.env("SPLITRPC_NIC_KIND", "smartnic").env("SPLITRPC_NIC_LIBRARIES", library());
        self.start_agent(command, faults)
    }

    /// A host agent that needs no card, and listens where one would.
    #[allow(dead_code, reason = "of the tests that this is part of, those of all ways need it")]
    pub(crate) fn agent_alone(&self) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-agent"));
        command.arg("serve").env("SPLITRPC_NIC_KIND", "commodity");
        let listens = self.listens.to_string();
        command.env("SPLITRPC_LISTEN_TCP", &listens).env("SPLITRPC_LISTEN_UDP", &listens);
        self.start_agent(command, "").0
    }

    fn start_agent(&self, mut command: Command, faults: &str) -> (Process, String) {
        command.env("SPLITRPC_LISTEN_HTTP", self.http.to_string());
        // Tests run beside each other, and ask for little at once.
        command.env("SPLITRPC_LIMITS_SESSIONS", "64").env("SPLITRPC_LIMITS_CLASS_BYTES", (16 << 20).to_string());
        command.env("SPLITRPC_LIMITS_SLOTS_PER_MODEL", "8").env("SPLITRPC_LOG", "error");
        command.envs(self.settings.iter().map(|(key, value)| (key, value)));
        let agent = self.start(command, "host", faults);
        let said = agent.says("ready");
        (agent, said)
    }

    /// What the agent's `doctor` prints, and whether it is content.
    pub(crate) fn doctor(&self) -> (String, bool) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-agent"));
        command.args(["doctor", "--nic", "smartnic", "--http", &self.http.to_string()]);
        command.env("SPLITRPC_NIC_LIBRARIES", library());
        let output = self.on_the_bus(&mut command, "host").stdin(Stdio::null()).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    }

    fn on_the_bus<'a>(&self, command: &'a mut Command, side: &str) -> &'a mut Command {
        command.env("SPLITRPC_BLUEFIELD", self.folder.path()).env("SPLITRPC_BLUEFIELD_SIDE", side)
    }

    /// Both, when they serve together.
    pub(crate) fn both(&self, faults: &str) -> (Process, Process) {
        let card = self.card(faults);
        let agent = self.agent(faults);
        card.says("serving");
        (card, agent)
    }

    pub(crate) fn start(&self, mut command: Command, side: &'static str, faults: &str) -> Process {
        self.on_the_bus(&mut command, side);
        if !faults.is_empty() {
            command.env("SPLITRPC_BLUEFIELD_FAULTS", faults);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, log) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (told, lines) = channel();
        let tell = told.clone();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                eprintln!("{side}: {line}");
                // Whether anybody still listens or not, it is to be written on.
                let _ = told.send(line);
            }
        });
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
        get(self.http, path)
    }

    /// What the card says over HTTP.
    pub(crate) fn card_says(&self, path: &str) -> String {
        get(self.card_http, path)
    }

    /// A counter of the agent's.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        number(&self.get("/metrics"), name)
    }

    /// A counter of the card's.
    pub(crate) fn card_counter(&self, name: &str) -> u64 {
        number(&self.card_says("/metrics"), name)
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

impl Process {
    /// Waits until it says so. Returns the line.
    pub(crate) fn says(&self, what: &str) -> String {
        let until = Instant::now() + LONG;
        loop {
            let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|error| panic!("it never said {what:?}: {error}"));
            if line.contains(what) {
                return line;
            }
        }
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself. Returns the signal that ended it.
    pub(crate) fn died_of(mut self) -> Option<i32> {
        let until = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.signal();
            }
            assert!(Instant::now() < until, "it goes on");
            std::thread::sleep(Duration::from_millis(5));
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
        memory: std::env::var(CARD_MEMORY).ok().map(|mib| mib.parse::<u64>().unwrap() << 20),
        ports: CardPorts { tcp: listens, udp: listens, buffer: 1 << 20 },
        thread: DataThreadConfig { crowded: true, ..DataThreadConfig::default() },
        version: "test".to_owned(),
    };
    let stop = CardStop::default();
    let told = stop.clone();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).unwrap();
    std::thread::spawn(move || signals.forever().for_each(|_| told.stop()));
    let status = std::sync::Arc::new(Status::default());
    let http = std::env::var(CARD_HTTP).unwrap().parse().unwrap();
    let _http = Http::start(http, status.router(), Bounds::USUAL).unwrap();
    card::serve_watched(&config, &stop, &status, |ready| {
        println!("{}", if ready.is_some() { "serving" } else { "waiting" });
    })
    .unwrap();
}
