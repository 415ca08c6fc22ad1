//! The clients of a soak, each a thread that does one thing over and over until it is told to stop.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use splitrpc_client::{ConnectOptions, Connection, Error, Event, Request, RequestId, Tensor, Transport};
use splitrpc_wire::{DType, Status};

use crate::agent::{Agent, Fold};
use crate::arms::{RESPONSE_BYTES, null_response};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a client sleeps at most while it waits.
const NAP: Duration = Duration::from_millis(5);
/// Faults that are kept in words.
const MOST_FAULTS: usize = 20;

/// The models that are asked beside the built-in ones.
pub(super) fn models() -> [Fold; 4] {
    const LEVELS: &str =
        "dynamic_batching { max_queue_delay_microseconds: 100 priority_levels: 2 default_priority_level: 2 }";
    let fold = |name, bytes, blocks, max_batch, more| Fold { name, bytes, blocks, max_batch, more, stays: false };
    [
        fold("small", 4 << 10, 1, 8, LEVELS),
        fold("image", 602_112, 16, 4, "dynamic_batching { }"),
        fold("large", 16 << 20, 256, 1, LEVELS),
        Fold { stays: true, ..fold("stays", 16 << 10, 2, 8, LEVELS) },
    ]
}

/// How often things happened.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Counts {
    answered_over_tcp: u64,
    answered_over_udp: u64,
    /// Of those, requests of several rows, and answers that shared their launch with others.
    rows_of_several: u64,
    in_batches: u64,
    urgent: u64,
    cancelled: u64,
    /// Refused because the server, or this client's share of it, was full.
    turned_away: u64,
    connections: u64,
    /// Connections that were closed in the middle of requests.
    vanished: u64,
    /// Wrong requests, refused as they should be.
    wrong_refused: u64,
    /// Streams and datagrams of nonsense.
    nonsense: u64,
}

impl Counts {
    fn each(&self) -> [u64; 11] {
        let c = self;
        [
            c.answered_over_tcp,
            c.answered_over_udp,
            c.rows_of_several,
            c.in_batches,
            c.urgent,
            c.cancelled,
            c.turned_away,
            c.connections,
            c.vanished,
            c.wrong_refused,
            c.nonsense,
        ]
    }

    /// Whether there was some of everything that the load is to have; nobody has to be turned away.
    pub(super) fn all_happened(&self) -> bool {
        self.each().iter().enumerate().all(|(place, count)| place == 6 || *count > 0)
    }
}

/// One input and the answer to it.
struct Example {
    dims: Vec<u32>,
    dtype: DType,
    input: Bytes,
    answer: Bytes,
}

/// A model, and what it is asked.
struct Subject {
    name: &'static str,
    examples: Vec<Example>,
}

/// The clients, and what they found.
pub(super) struct Load {
    tcp: SocketAddr,
    udp: SocketAddr,
    seed: u64,
    /// How many phases were begun.
    phases: AtomicU64,
    subjects: Vec<Subject>,
    found: Mutex<(Counts, u64, Vec<String>)>,
}

/// What a client does.
#[derive(Clone, Copy)]
struct Habit {
    transport: Transport,
    /// Places among the subjects.
    subjects: &'static [usize],
    /// Requests under way at once.
    ahead: usize,
    /// Requests of a connection.
    lasts: usize,
    /// Of a thousand requests, how many are cancelled.
    cancels: u32,
    /// The connection is closed while requests are under way.
    vanishes: bool,
    /// Between connections.
    pause: Duration,
}

const SMALL: usize = 0;
const IMAGE: usize = 1;
const LARGE: usize = 2;
const STAYS: usize = 3;
const ECHO: usize = 4;
const NULL_GPU: usize = 5;

const fn habit(transport: Transport, subjects: &'static [usize], ahead: usize, lasts: usize) -> Habit {
    Habit { transport, subjects, ahead, lasts, cancels: 0, vanishes: false, pause: Duration::from_millis(1) }
}

const HABITS: [Habit; 11] = [
    habit(Transport::Tcp, &[SMALL], 8, 100_000),
    habit(Transport::Udp, &[SMALL, ECHO], 8, 20_000),
    habit(Transport::Tcp, &[STAYS], 4, 20_000),
    habit(Transport::Tcp, &[IMAGE, SMALL, ECHO], 4, 5_000),
    habit(Transport::Udp, &[IMAGE], 2, 2_000),
    habit(Transport::Tcp, &[NULL_GPU], 1, 100_000),
    Habit { cancels: 300, ..habit(Transport::Tcp, &[LARGE], 2, 50) },
    Habit { cancels: 300, ..habit(Transport::Udp, &[IMAGE, SMALL, STAYS], 4, 200) },
    Habit { pause: Duration::from_millis(5), ..habit(Transport::Tcp, &[SMALL, NULL_GPU, STAYS], 1, 3) },
    Habit { vanishes: true, pause: Duration::from_millis(20), ..habit(Transport::Tcp, &[LARGE, IMAGE], 2, 2) },
    Habit { vanishes: true, pause: Duration::from_millis(100), ..habit(Transport::Udp, &[IMAGE], 2, 2) },
];

impl Load {
    pub(super) fn new(agent: &Agent, seed: u64) -> anyhow::Result<Load> {
        let (tcp, udp) = (agent.tcp.context("no TCP")?, agent.udp.context("no UDP")?);
        let mut subjects: Vec<Subject> = models().iter().map(Subject::of).collect();
        let echoed = |len: u32| Bytes::from((0..len).map(|at| (at * 7 % 251) as u8).collect::<Vec<_>>());
        let bytes =
            |input: Bytes, answer| Example { dims: vec![input.len() as u32], dtype: DType::Uint8, input, answer };
        let echoes = [1, 4_000, 300_000].map(|len| bytes(echoed(len), echoed(len)));
        subjects.push(Subject { name: "echo", examples: echoes.into() });
        let answers = [64, 65_536].map(|len| bytes(echoed(len), null_response(RESPONSE_BYTES).into()));
        subjects.push(Subject { name: "null-gpu", examples: answers.into() });
        let served = Connection::connect(&tcp.to_string(), Transport::Tcp, &ConnectOptions::default())?;
        subjects.iter().try_for_each(|subject| served.catalogue().model(subject.name).map(drop))?;
        Ok(Load { tcp, udp, seed, phases: AtomicU64::new(0), subjects, found: Mutex::default() })
    }

    /// Starts all clients, until `over`.
    pub(super) fn start<'s, 'e: 's>(
        &'e self,
        scope: &'s Scope<'s, 'e>,
        over: &'e AtomicBool,
    ) -> Vec<ScopedJoinHandle<'s, ()>> {
        let phase = self.phases.fetch_add(1, Ordering::Relaxed);
        let rng = move |number: usize| Rng::with_seed(self.seed << 32 | phase << 16 | number as u64);
        let mut clients: Vec<_> = HABITS
            .iter()
            .enumerate()
            .map(|(number, habit)| {
                scope.spawn(move || self.keep_on(over, |counts| self.converse(habit, over, &mut rng(number), counts)))
            })
            .collect();
        clients.push(scope.spawn(move || self.keep_on(over, |counts| self.be_wrong(counts))));
        let mut nonsense = rng(HABITS.len());
        clients.push(scope.spawn(move || self.keep_on(over, |counts| self.talk_nonsense(&mut nonsense, counts))));
        clients
    }

    /// What was counted, the faults, and some of them in words.
    pub(super) fn found(&self) -> (Counts, u64, Vec<String>) {
        self.found.lock().expect("no client panics").clone()
    }

    /// Does one thing over and over. What goes wrong is noted.
    fn keep_on(&self, over: &AtomicBool, mut once: impl FnMut(&mut Counts) -> anyhow::Result<()>) {
        while !over.load(Ordering::Relaxed) {
            let mut counts = Counts::default();
            let done = once(&mut counts);
            let mut found = self.found.lock().expect("no client panics");
            found.0.add(&counts);
            if let Err(error) = done {
                found.1 += 1;
                if found.2.len() < MOST_FAULTS {
                    found.2.push(format!("{error:#}"));
                }
                // Not so many as to drown what follows.
                drop(found);
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn connect(&self, transport: Transport) -> anyhow::Result<Connection> {
        let address = if transport == Transport::Tcp { self.tcp } else { self.udp };
        Ok(Connection::connect(&address.to_string(), transport, &ConnectOptions::default())?)
    }

    /// One connection, from its beginning to its end.
    fn converse(&self, habit: &Habit, over: &AtomicBool, rng: &mut Rng, counts: &mut Counts) -> anyhow::Result<()> {
        let mut connection = self.connect(habit.transport)?;
        counts.connections += 1;
        let mut open: HashMap<RequestId, &Example> = HashMap::new();
        let (mut asked, mut heard) = (0, Instant::now());
        loop {
            let more = |asked: usize| asked < habit.lasts && !over.load(Ordering::Relaxed);
            while more(asked) && open.len() < habit.ahead {
                let subject = &self.subjects[habit.subjects[rng.usize(..habit.subjects.len())]];
                let example = &subject.examples[rng.usize(..subject.examples.len())];
                let handle = connection.catalogue().model(subject.name)?.handle;
                let tensors = [Tensor::new(0, example.dtype, &example.dims, &example.input)?];
                let priority = rng.u8(..3);
                let request = Request { priority, ..Request::new(handle, &tensors) };
                let id = match connection.submit(&request) {
                    Ok(id) => id,
                    // The bytes of those that were cancelled have yet to leave.
                    Err(Error::Backpressure { .. }) => break,
                    Err(error) => return Err(error.into()),
                };
                asked += 1;
                counts.urgent += u64::from(priority == 1);
                // One that has been answered already is not cancelled any more; of one that is nothing more is heard.
                if rng.u32(..1000) < habit.cancels && connection.cancel(id) {
                    counts.cancelled += 1;
                } else {
                    open.insert(id, example);
                }
                heard = Instant::now();
            }
            if habit.vanishes && !more(asked) {
                counts.vanished += 1;
                break;
            }
            if open.is_empty() && !more(asked) {
                break;
            }
            match connection.poll()? {
                Some(Event::Response(response)) => {
                    let example = open.remove(&response.id()).context("an answer that nobody asked for")?;
                    ensure!(
                        response.data() == &example.answer[..],
                        "an answer of {} bytes is wrong",
                        example.answer.len()
                    );
                    let path = response.path().context("an answer without its path")?;
                    let rows = if example.dims.len() > 1 { example.dims[0] } else { 1 };
                    counts.rows_of_several += u64::from(rows > 1);
                    counts.in_batches += u64::from(u32::from(path.batch_rows) > rows);
                    match habit.transport {
                        Transport::Tcp => counts.answered_over_tcp += 1,
                        Transport::Udp => counts.answered_over_udp += 1,
                    }
                    connection.recycle(response);
                    heard = Instant::now();
                }
                Some(Event::Failed(failure)) => {
                    let id = failure.id.context("the session has failed")?;
                    open.remove(&id).context("a failure that nobody asked for")?;
                    match failure.status {
                        Status::Busy | Status::Quota => counts.turned_away += 1,
                        status => bail!("a request has failed: {status}: {}", failure.text),
                    }
                    heard = Instant::now();
                }
                Some(_) => {}
                None => {
                    ensure!(heard.elapsed() < PATIENCE, "{} answers have not come", open.len());
                    nap(&connection)?;
                }
            }
        }
        drop(connection);
        thread::sleep(habit.pause);
        Ok(())
    }

    /// Requests that no server may accept.
    fn be_wrong(&self, counts: &mut Counts) -> anyhow::Result<()> {
        let bytes = [5_u8; 4096];
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut connection = self.connect(transport)?;
            let small = connection.catalogue().model("small")?.handle;
            let wrongs: [(u16, &[u32], DType, Status); 4] = [
                (small, &[1, 1023], DType::Uint32, Status::BadTensor),
                (small, &[1, 1024], DType::Int32, Status::BadTensor),
                (small, &[4096], DType::Uint8, Status::BadTensor),
                (9_999, &[4096], DType::Uint8, Status::UnknownModel),
            ];
            for (model, dims, dtype, expected) in wrongs {
                let len = dims.iter().product::<u32>() * if dtype == DType::Uint8 { 1 } else { 4 };
                let tensors = [Tensor::new(0, dtype, dims, &bytes[..len as usize])?];
                let id = connection.submit(&Request::new(model, &tensors))?;
                let since = Instant::now();
                loop {
                    match connection.poll()? {
                        Some(Event::Failed(failure)) if failure.id == Some(id) => {
                            ensure!(failure.status == expected, "{} where {expected} was due", failure.status);
                            counts.wrong_refused += 1;
                            break;
                        }
                        Some(Event::Response(_)) => bail!("a wrong request was answered"),
                        Some(_) => {}
                        None => {
                            ensure!(since.elapsed() < PATIENCE, "a wrong request is not refused");
                            nap(&connection)?;
                        }
                    }
                }
            }
        }
        thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    /// Bytes that are no protocol at all.
    fn talk_nonsense(&self, rng: &mut Rng, counts: &mut Counts) -> anyhow::Result<()> {
        let len = rng.usize(1..1400);
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
        UdpSocket::bind(("127.0.0.1", 0))?.send_to(&bytes, self.udp)?;
        let mut stream = TcpStream::connect(self.tcp)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // The server may close it before all is written.
        let _ = stream.write_all(&bytes);
        if bytes.len() >= 128 {
            // Whatever comes before its end.
            while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
        }
        counts.nonsense += 2;
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        let added = other.each();
        let places = [
            &mut self.answered_over_tcp,
            &mut self.answered_over_udp,
            &mut self.rows_of_several,
            &mut self.in_batches,
            &mut self.urgent,
            &mut self.cancelled,
            &mut self.turned_away,
            &mut self.connections,
            &mut self.vanished,
            &mut self.wrong_refused,
            &mut self.nonsense,
        ];
        places.into_iter().zip(added).for_each(|(count, more)| *count += more);
    }
}

impl Subject {
    /// A few rows, and a few together where the model takes so many.
    fn of(model: &Fold) -> Subject {
        let (inputs, answers): (Vec<_>, Vec<_>) = (0..3).map(|seed| model.example(seed)).unzip();
        let example = |rows: &[usize]| {
            let join =
                |of: &[Vec<u8>]| rows.iter().flat_map(|row| of[*row].iter().copied()).collect::<Vec<u8>>().into();
            let dims = vec![rows.len() as u32, model.bytes / 4];
            Example { dims, dtype: DType::Uint32, input: join(&inputs), answer: join(&answers) }
        };
        let mut examples: Vec<_> = (0..3).map(|row| example(&[row])).collect();
        if model.max_batch > 1 {
            examples.push(example(&[1, 2, 0]));
        }
        Subject { name: model.name, examples }
    }
}

/// Sleeps until there may be something to do.
fn nap(connection: &Connection) -> anyhow::Result<()> {
    if connection.has_more() {
        return Ok(());
    }
    let write = if connection.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
    let fd = connection.as_fd();
    let until = connection.next_timeout().map_or(NAP, |at| at.saturating_duration_since(Instant::now()).min(NAP));
    let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: until.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&fd, PollFlags::IN | write)], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
