//! How a card comes to know its host agent.

use std::time::{Duration, Instant};

use splitrpc_doca::{Connection, Error, Notice, ProgressEngine, Server};
use splitrpc_telemetry::CardEvent;

use super::status::Status;
use crate::setup::{Message, PROTOCOL, Parts, Setup, TAKEN};

/// How long a host agent that has connected may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a queue may be full.
const ROOM_WITHIN: Duration = Duration::from_millis(200);
/// How often the card looks for one: nothing wakes it.
const LOOK: core::ops::RangeInclusive<Duration> = Duration::from_micros(50)..=Duration::from_millis(10);

/// A host agent that wants to be served.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) connection: Connection,
    pub(super) setup: Setup,
}

/// One that has connected, and how far it has come.
struct Visitor {
    connection: Connection,
    since: Instant,
    welcome: bool,
    parts: Parts,
}

/// Waits for a host agent, until `stop` says so. Those that cannot be served are told why.
///
/// # Errors
/// Those of DOCA, when it can no longer be listened.
pub(super) fn wait_for_guest(
    engine: &ProgressEngine,
    server: &mut Server,
    version: &str,
    status: &Status,
    stop: impl Fn() -> bool,
) -> Result<Option<Guest>, Error> {
    let mut visitor: Option<Visitor> = None;
    let mut look = *LOOK.start();
    while !stop() {
        let moved = engine.progress();
        let mut said = Vec::new();
        let mut guest = None;
        server.notices(|notice| match notice {
            Notice::Connected(connection) if visitor.is_none() => {
                let (since, parts) = (Instant::now(), Parts::default());
                visitor = Some(Visitor { connection, since, welcome: false, parts });
            }
            Notice::Connected(other) => said.push((other, Err(TAKEN.to_owned()))),
            Notice::Disconnected(gone) => drop(visitor.take_if(|visitor| visitor.connection == gone)),
            Notice::Message(from, bytes) => {
                if let Some(visitor) = visitor.as_mut().filter(|visitor| visitor.connection == from) {
                    match visitor.hear(bytes, version) {
                        Ok(Heard::Nothing) => {}
                        Ok(Heard::Say(message)) => said.push((from, Ok(message))),
                        Ok(Heard::Whole(setup)) => guest = Some(Guest { connection: from, setup: *setup }),
                        Err(why) => said.push((from, Err(why))),
                    }
                }
            }
            Notice::ConsumerUp(..) | Notice::ConsumerGone(..) => {}
        });
        for (to, what) in said {
            match what {
                Ok(message) => say(engine, server, &to, &message),
                Err(why) => refuse(engine, server, &to, &why, status),
            }
        }
        // It may have gone meanwhile.
        if let Some(guest) = guest.filter(|guest| guest.connection.is_open()) {
            return Ok(Some(guest));
        }
        if let Some(late) = visitor.take_if(|visitor| visitor.since.elapsed() > PATIENCE) {
            refuse(engine, server, &late.connection, "nothing was heard for ten seconds", status);
        }
        look = if moved { *LOOK.start() } else { (look * 2).min(*LOOK.end()) };
        if !moved {
            std::thread::sleep(look);
        }
    }
    Ok(None)
}

/// Sends a message, once there is room for it. Who cannot be told has gone, which is heard of elsewhere.
pub(super) fn say(engine: &ProgressEngine, server: &mut Server, to: &Connection, message: &[u8]) {
    let end = Instant::now() + ROOM_WITHIN;
    loop {
        match server.send(to, message) {
            Ok(()) => break,
            Err(error) if error.is_again() && Instant::now() < end => {
                engine.progress();
            }
            Err(error) => {
                tracing::debug!(%error, "the host agent cannot be told");
                break;
            }
        }
    }
}

/// Sends a host agent away, with the reason.
pub(super) fn refuse(engine: &ProgressEngine, server: &mut Server, to: &Connection, why: &str, status: &Status) {
    send_away(engine, server, to, why, &Message::Refused { why }, status);
}

/// The same, said so.
pub(super) fn send_away(
    engine: &ProgressEngine,
    server: &mut Server,
    to: &Connection,
    why: &str,
    said: &Message<'_>,
    status: &Status,
) {
    tracing::warn!(why, "a host agent is refused");
    status.count(CardEvent::CardHostAgentsRefused, 1);
    say(engine, server, to, &said.to_bytes());
    // What was said is to arrive first.
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end && to.is_open() {
        if !engine.progress() {
            std::thread::sleep(*LOOK.start());
        }
    }
    if let Err(error) = server.disconnect(to) {
        tracing::debug!(%error, "the connection stays until the other side ends it");
    }
}

/// What is to be done about a message.
enum Heard {
    Nothing,
    Say(Vec<u8>),
    Whole(Box<Setup>),
}

impl Visitor {
    fn hear(&mut self, bytes: &[u8], own: &str) -> Result<Heard, String> {
        self.since = Instant::now();
        match Message::parse(bytes) {
            Ok(Message::Hello { protocol: PROTOCOL, version }) => {
                tracing::info!(version, "a host agent has come");
                self.welcome = true;
                Ok(Heard::Say(Message::Welcome { version: own }.to_bytes()))
            }
            Ok(Message::Hello { protocol, version }) => Err(format!(
                "the versions do not match: the host agent {version} speaks protocol {protocol} to the card, and nic-app {own} \
                 speaks {PROTOCOL}; install the same version on both sides"
            )),
            Ok(Message::Part { total, offset, bytes }) if self.welcome => {
                match self.parts.take(total, offset, bytes).map_err(|error| error.to_string())? {
                    Some(whole) => Ok(Heard::Whole(Box::new(Setup::parse(&whole).map_err(|error| error.to_string())?))),
                    None => Ok(Heard::Nothing),
                }
            }
            Ok(Message::Bye { why }) => Err(format!("it ends: {why}")),
            _ => Err("what it says makes no sense here".to_owned()),
        }
    }
}
