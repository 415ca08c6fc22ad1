//! How an agent comes to serve with a card.

use std::time::{Duration, Instant};

use nic_app::setup::{Message, PART_HEAD, PROTOCOL, Ready, SERVICE, Setup};
use splitrpc_doca::{Client, Connection, ContextState, Device, Notice, Options, Producer, ProgressEngine};

use super::CardError;

/// How long the card may take for its next step.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the agent looks: nothing wakes it.
const LOOK: core::ops::RangeInclusive<Duration> = Duration::from_micros(20)..=Duration::from_millis(2);
/// Sends that may be under way to the card's consumer.
const SENDS: u32 = 256;

/// A card that has been found, and speaks.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) engine: ProgressEngine,
    pub(super) client: Client,
    pub(super) connection: Connection,
    /// Bytes of a message at most.
    message_bytes: usize,
    /// Immediates that may be under way.
    sends: u32,
    /// The card's consumer, once it has told of one.
    consumer: Option<u32>,
}

/// What a card has said.
enum Said {
    Welcome(String),
    Ready(Ready),
    Over(CardError),
}

impl Visit {
    /// Looks for a card. There is none yet where this gives nothing.
    pub(super) fn begin(device: &Device, stop: &dyn Fn() -> bool) -> Result<Option<Visit>, CardError> {
        let engine = ProgressEngine::new(device.library())?;
        let can = &device.info().can;
        let options = Options::within(can);
        let client = Client::new(&engine, device, SERVICE, options)?;
        let end = Instant::now() + PATIENCE;
        let mut look = *LOOK.start();
        while !stop() && Instant::now() < end {
            engine.progress();
            match client.state() {
                ContextState::Idle => return Ok(None),
                ContextState::Running => {
                    let Some(connection) = client.connection() else { return Ok(None) };
                    let (message_bytes, consumer) = (options.message_bytes as usize, None);
                    let sends = SENDS.min(can.producer_tasks.max(1));
                    return Ok(Some(Visit { engine, client, connection, message_bytes, sends, consumer }));
                }
                ContextState::Starting | ContextState::Stopping => {}
            }
            look = (look * 2).min(*LOOK.end());
            std::thread::sleep(look);
        }
        Ok(None)
    }

    /// Says hello. Returns the card's version.
    pub(super) fn greet(&mut self, version: &str, stop: &dyn Fn() -> bool) -> Result<String, CardError> {
        self.send(&Message::Hello { protocol: PROTOCOL, version }, stop)?;
        match self.hear(stop)? {
            Said::Welcome(version) => Ok(version),
            Said::Over(error) => Err(error),
            Said::Ready(_) => Err(CardError::Strange("is ready without having been told for what")),
        }
    }

    /// Tells the card what to serve. Returns where it does, and what reaches its consumer.
    pub(super) fn set_up(&mut self, setup: &Setup, stop: &dyn Fn() -> bool) -> Result<(Ready, Producer), CardError> {
        let json = setup.to_json();
        let part = self.message_bytes - PART_HEAD;
        for (number, bytes) in json.chunks(part).enumerate() {
            let (total, offset) = (json.len() as u32, (number * part) as u32);
            self.send(&Message::Part { total, offset, bytes }, stop)?;
        }
        let ready = match self.hear(stop)? {
            Said::Ready(ready) => ready,
            Said::Over(error) => return Err(error),
            Said::Welcome(_) => return Err(CardError::Strange("greets twice")),
        };
        let consumer = self.consumer.ok_or(CardError::Strange("is ready, and nothing can be told it"))?;
        let producer = Producer::new(&self.engine, &self.connection, consumer, self.sends)?;
        let end = Instant::now() + PATIENCE;
        while !producer.is_running() {
            self.engine.progress();
            if stop() || Instant::now() > end {
                return Err(CardError::Strange("lets nothing be told it"));
            }
        }
        Ok((ready, producer))
    }

    /// Sends a message, once there is room for it.
    fn send(&mut self, message: &Message<'_>, stop: &dyn Fn() -> bool) -> Result<(), CardError> {
        let bytes = message.to_bytes();
        let end = Instant::now() + PATIENCE;
        loop {
            match self.client.send(&self.connection, &bytes) {
                Err(error) if error.is_again() && !stop() && Instant::now() < end => {
                    self.engine.progress();
                }
                other => return Ok(other?),
            }
        }
    }

    /// What the card says next.
    fn hear(&mut self, stop: &dyn Fn() -> bool) -> Result<Said, CardError> {
        let end = Instant::now() + PATIENCE;
        let mut look = *LOOK.start();
        while !stop() && Instant::now() < end {
            let moved = self.engine.progress();
            let mut said = None;
            let consumer = &mut self.consumer;
            self.client.notices(|notice| match notice {
                Notice::Message(_, bytes) => {
                    said = Some(match Message::parse(bytes) {
                        Ok(Message::Welcome { version }) => Said::Welcome(version.to_owned()),
                        Ok(Message::Refused { why }) => Said::Over(CardError::Refused(why.to_owned())),
                        Ok(Message::Unreached { why }) => Said::Over(CardError::Unreached(why.to_owned())),
                        Ok(Message::Bye { why }) => Said::Over(CardError::Refused(format!("it ends: {why}"))),
                        Ok(Message::Ready { json }) => match serde_json::from_slice(json) {
                            Ok(ready) => Said::Ready(ready),
                            Err(_) => {
                                Said::Over(CardError::Strange("says where it listens in a way that cannot be read"))
                            }
                        },
                        // A beat, say.
                        Ok(_) => return,
                        Err(_) => Said::Over(CardError::Strange("says something that makes no sense")),
                    });
                }
                Notice::ConsumerUp(_, id) => *consumer = Some(id),
                Notice::ConsumerGone(_, id) => drop(consumer.take_if(|known| *known == id)),
                Notice::Connected(_) | Notice::Disconnected(_) => {}
            });
            if let Some(said) = said {
                return Ok(said);
            }
            if self.client.connection().is_none() {
                return Ok(Said::Over(CardError::Strange("has gone")));
            }
            look = if moved { *LOOK.start() } else { (look * 2).min(*LOOK.end()) };
            if !moved {
                std::thread::sleep(look);
            }
        }
        Ok(Said::Over(CardError::Strange("says nothing")))
    }
}
