//! CPU time of servers on another machine, as each of them tells it beside its port: its own, and its card's.
//!
//! A question is one byte, whichever. An answer is two 64-bit counts of nanoseconds, little-endian: the server's and its card's, all ones where
//! that is not known. Both are of when the question came, so that who asks need not wait for the answer.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Pid;

use crate::process::{CpuClock, ServerCpu};

/// How far beyond a server's own port it answers.
pub(crate) const BESIDE: u16 = 100;
const PATIENCE: Duration = Duration::from_secs(2);
/// How long somebody may stay without a question.
const SILENCE: Duration = Duration::from_secs(600);
/// Who may ask at once.
const ASKERS: usize = 16;
const ANSWER: usize = 16;
const UNKNOWN: u64 = u64::MAX;
/// Bytes of a program's metrics at most, and what begins the line that is wanted.
const METRICS: u64 = 1 << 20;
const WANTED: &str = "splitrpc_process_cpu_seconds_total ";

/// By what a server knows its card's CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CardClock {
    /// The software BlueField's card is a process.
    Process(Pid),
    /// A card has nic-app's metrics there.
    Metrics(SocketAddr),
}

impl CardClock {
    /// # Errors
    /// Where it is not told.
    pub(crate) fn read(self) -> anyhow::Result<Duration> {
        match self {
            CardClock::Process(pid) => CpuClock::Process(pid).read().context("the card's process has ended"),
            CardClock::Metrics(at) => {
                let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {at}\r\n\r\n").as_bytes())?;
                let mut text = String::new();
                stream.take(METRICS).read_to_string(&mut text)?;
                cpu_in(&text).context("nic-app's metrics are not there")
            }
        }
    }
}

fn cpu_in(metrics: &str) -> Option<Duration> {
    let seconds = metrics.lines().find_map(|line| line.strip_prefix(WANTED))?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Answers whoever connects to `listener` from now on.
pub(crate) fn stand(listener: TcpListener, card: Option<CardClock>) -> io::Result<()> {
    let askers = Arc::new(());
    let serve = move || {
        for stream in listener.incoming().flatten() {
            let one = Arc::clone(&askers);
            if Arc::strong_count(&askers) <= ASKERS + 1 {
                // Who cannot have a thread is hung up on.
                let _ = std::thread::Builder::new().name("clock".into()).spawn(move || {
                    let _one = one;
                    // Who goes away has not lost anything.
                    let _ = answer(stream, card);
                });
            }
        }
    };
    std::thread::Builder::new().name("clock".into()).spawn(serve).map(drop)
}

fn answer(mut to: TcpStream, card: Option<CardClock>) -> io::Result<()> {
    to.set_read_timeout(Some(SILENCE))?;
    to.set_write_timeout(Some(PATIENCE))?;
    to.set_nodelay(true)?;
    while to.read(&mut [0])? > 0 {
        let nanoseconds = |time: Option<Duration>| time.map_or(UNKNOWN, |time| time.as_nanos() as u64);
        let mut answer = [0; ANSWER];
        answer[..8].copy_from_slice(&nanoseconds(CpuClock::Own.read()).to_le_bytes());
        answer[8..].copy_from_slice(&nanoseconds(card.and_then(|card| card.read().ok())).to_le_bytes());
        to.write_all(&answer)?;
    }
    Ok(())
}

/// A server elsewhere, which is asked.
#[derive(Debug)]
pub(crate) struct FarClock {
    stream: RefCell<TcpStream>,
}

impl FarClock {
    /// Of the server that listens there.
    ///
    /// # Errors
    /// Where nobody answers.
    pub(crate) fn of(server: SocketAddr) -> anyhow::Result<FarClock> {
        let port = server.port().checked_add(BESIDE).context("its port is too high")?;
        let stream = TcpStream::connect_timeout(&SocketAddr::new(server.ip(), port), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let clock = FarClock { stream: RefCell::new(stream) };
        // Who is there may be somebody else.
        clock.ask();
        ensure!(clock.answer().host.is_some(), "what listens at port {port} tells no CPU time");
        Ok(clock)
    }

    /// Asks. The answer is taken later, in the order of the questions.
    pub(crate) fn ask(&self) {
        // Where it fails there is no answer either.
        let _ = self.stream.borrow_mut().write_all(&[1]);
    }

    /// The next answer; nothing is known where none comes.
    pub(crate) fn answer(&self) -> ServerCpu {
        let mut answer = [0; ANSWER];
        if self.stream.borrow_mut().read_exact(&mut answer).is_err() {
            return ServerCpu::default();
        }
        let count = |from: usize| u64::from_le_bytes(answer[from..from + 8].try_into().expect("eight bytes"));
        let time = |count: u64| (count != UNKNOWN).then(|| Duration::from_nanos(count));
        ServerCpu { host: time(count(0)), nic: time(count(8)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port with one to spare beside it, both on an address that nobody else has.
    fn server() -> (SocketAddr, TcpListener) {
        let ip = [127, 91, (std::process::id() >> 8) as u8, std::process::id() as u8];
        let listener = TcpListener::bind((std::net::IpAddr::from(ip), 0)).unwrap();
        let mut server = listener.local_addr().unwrap();
        server.set_port(server.port() - BESIDE);
        (server, listener)
    }

    #[test]
    fn what_was_asked_first_is_answered_first() {
        let (server, listener) = server();
        stand(listener, Some(CardClock::Process(rustix::process::getpid()))).unwrap();
        let clock = FarClock::of(server).unwrap();
        clock.ask();
        let burnt = CpuClock::Own.read().unwrap() + Duration::from_millis(30);
        while CpuClock::Own.read().unwrap() < burnt {}
        clock.ask();
        let (first, second) = (clock.answer(), clock.answer());
        let used = second.since(first);
        assert!(used.host.unwrap() >= Duration::from_millis(20), "{first:?} {second:?}");
        assert!(used.nic.is_some(), "the card's process is this one");
    }

    #[test]
    fn metrics_are_read_and_nonsense_is_not() {
        let text = "HTTP/1.0 200 OK\r\n\r\n# HELP splitrpc_process_cpu_seconds_total Processor time.\n\
                    splitrpc_process_cpu_seconds_total 12.5\nsplitrpc_other 1\n";
        assert_eq!(cpu_in(text), Some(Duration::from_millis(12_500)));
        for nonsense in ["", "splitrpc_process_cpu_seconds_total x", "splitrpc_process_cpu_seconds_total -1"] {
            assert_eq!(cpu_in(nonsense), None, "{nonsense}");
        }
        // One at which nobody answers is not known, and the host's is all the same.
        let (server, listener) = server();
        let nobody = TcpListener::bind((server.ip(), 0)).unwrap().local_addr().unwrap();
        stand(listener, Some(CardClock::Metrics(nobody))).unwrap();
        let clock = FarClock::of(server).unwrap();
        clock.ask();
        let answer = clock.answer();
        assert!(answer.host.is_some() && answer.nic.is_none(), "{answer:?}");
    }

    #[test]
    fn somebody_else_beside_a_server_is_no_clock() {
        let (server, listener) = server();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|mut to| drop(to.write_all(b"hello"))));
        assert!(FarClock::of(server).is_err());
    }
}
