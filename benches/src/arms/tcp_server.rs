//! The event loop that the TCP arms of this crate share: one thread, any number of connections.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use super::ServerOptions;
use crate::wait::{Ready, Waiter};

/// What a session did when it was given the chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing could move.
    Idle,
    /// Bytes moved.
    Moved,
    /// The peer has closed.
    Closed,
}

/// One client's connection at the server.
pub(crate) trait Session {
    /// Moves what can be moved without blocking. An error closes the session.
    fn advance(&mut self) -> io::Result<Progress>;
    /// Whether it waits for room to send.
    fn wants_write(&self) -> bool;
    /// The socket.
    fn stream(&self) -> &TcpStream;
}

struct Entry<S> {
    session: S,
    watched: bool,
    writing: bool,
}

const LISTENER: u64 = u64::MAX;

struct Server<S, F> {
    listener: TcpListener,
    waiter: Waiter,
    sessions: Vec<Option<Entry<S>>>,
    live: usize,
    open: F,
}

/// Serves connections until the process ends; `open` makes a session of each.
pub(crate) fn serve<S: Session, F: FnMut(TcpStream) -> io::Result<S>>(
    options: &ServerOptions,
    ready: impl FnOnce(SocketAddr),
    open: F,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.bind)?;
    listener.set_nonblocking(true)?;
    let waiter = Waiter::new(options.wait)?;
    waiter.add(&listener, LISTENER, false)?;
    ready(listener.local_addr()?);

    let mut server = Server { listener, waiter, sessions: Vec::new(), live: 0, open };
    let mut moved = false;
    let mut tokens = Vec::with_capacity(256);
    loop {
        tokens.clear();
        match server.waiter.next(moved, server.live, Instant::now(), None)? {
            Ready::All => tokens.extend(0..server.sessions.len() as u64),
            Ready::Listed => tokens.extend(server.waiter.tokens()),
        }
        moved = false;
        for &token in &tokens {
            moved |= if token == LISTENER { server.accept()? } else { server.advance(token)? };
        }
    }
}

impl<S: Session, F: FnMut(TcpStream) -> io::Result<S>> Server<S, F> {
    fn accept(&mut self) -> io::Result<bool> {
        let mut any = false;
        // An error means that none waits, or that one gave up before it was accepted; others are told of again.
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let entry = Entry { session: (self.open)(stream)?, watched: false, writing: false };
            match self.sessions.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => *slot = Some(entry),
                None => self.sessions.push(Some(entry)),
            }
            self.live += 1;
            any = true;
        }
        if any && !self.waiter.direct(self.live) {
            for (token, entry) in self.sessions.iter_mut().enumerate() {
                if let Some(entry) = entry.as_mut().filter(|entry| !entry.watched) {
                    self.waiter.add(entry.session.stream(), token as u64, false)?;
                    entry.watched = true;
                }
            }
        }
        Ok(any)
    }

    fn advance(&mut self, token: u64) -> io::Result<bool> {
        let Some(slot) = self.sessions.get_mut(token as usize) else { return Ok(false) };
        let Some(entry) = slot else { return Ok(false) };
        let progress = match entry.session.advance() {
            Ok(Progress::Closed) | Err(_) => {
                // Closing the socket also takes it out of the poller.
                *slot = None;
                self.live -= 1;
                return Ok(false);
            }
            Ok(progress) => progress,
        };
        let writing = entry.session.wants_write();
        if entry.watched && writing != entry.writing {
            self.waiter.modify(entry.session.stream(), token, writing)?;
            entry.writing = writing;
        }
        Ok(progress == Progress::Moved)
    }
}
