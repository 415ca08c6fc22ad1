//! How a card and its host agent come to know each other: the messages before and beside the link.
//!
//! ```text
//! host agent                                     card
//!   Hello { protocol, version }          ->
//!                                        <-      Welcome { version }, or Refused { why }
//!   Part { total, offset, bytes } ...    ->      together a Setup, as JSON
//!                                        <-      Ready { .. }, or Refused { why }, or Unreached { why }
//!   Beat                                 <->     each side answers the other's, so that both know of each other's life
//!   Bye { why }                          <->     the sender ends
//! ```
//!
//! Each message begins with its kind. What follows `Hello`'s kind will stay as it is in all versions, so that sides of different ones can tell.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use splitrpc_arena::{LayoutError, MAX_ARENA_BYTES, PoolLayout};
use splitrpc_engine::{InputPlan, ModelPlan, PathInfo, ServerConfig, StorageSizes};
use splitrpc_ring::{CONTROL_LINES, Line, MAX_CAPACITY};
use splitrpc_wire::path::{Link, Memory, Mover, Port};
use splitrpc_wire::{DType, MAX_RANK};

/// The version of all that crosses the link.
pub const PROTOCOL: u32 = 3;
/// The name under which a card waits for its host agent.
pub const SERVICE: &str = "splitrpc";
/// What a host agent is told that comes while another is served.
pub const TAKEN: &str = "the card has a host agent already";
/// Bytes of a set-up at most.
pub const MAX_SETUP: usize = 64 << 20;
/// Slots of all pools together at most.
const MAX_SLOTS: u64 = 1 << 25;
/// Requests at once, and bytes of the engine's tables, at most: what a card has memory for.
const MAX_REQUESTS: u32 = 1 << 16;
const MAX_ENGINE_BYTES: u64 = 1 << 30;
/// Bytes of a text at most; longer ones are cut.
const MAX_TEXT: usize = 1024;
/// What a hello begins with.
const MAGIC: &[u8; 8] = b"splitrpc";

/// A message between card and host agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The host agent's first one.
    Hello {
        /// Its [`PROTOCOL`].
        protocol: u32,
        /// Its version, to be shown.
        version: &'a str,
    },
    /// The card speaks the same protocol.
    Welcome {
        /// Its version, to be shown.
        version: &'a str,
    },
    /// The card will not serve this host agent.
    Refused {
        /// Why, and what to do.
        why: &'a str,
    },
    /// The card will not serve this set-up, since it cannot reach the device's memory that it shows. Another set-up it may.
    Unreached {
        /// Why.
        why: &'a str,
    },
    /// Part of a [`Setup`].
    Part {
        /// Bytes of the whole.
        total: u32,
        /// Where this part belongs.
        offset: u32,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// The card listens.
    Ready {
        /// A [`Ready`], as JSON.
        json: &'a [u8],
    },
    /// The sender lives; to be answered with the same number unless it is an answer.
    Beat {
        /// Counts the sender's beats.
        count: u32,
        /// It is an answer.
        answer: bool,
    },
    /// The sender ends.
    Bye {
        /// Why.
        why: &'a str,
    },
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;
const PART: u8 = 4;
const READY: u8 = 5;
const BEAT: u8 = 6;
const BYE: u8 = 7;
const UNREACHED: u8 = 8;

/// Bytes of a part's head.
pub const PART_HEAD: usize = 9;

/// A message that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message that means nothing")]
pub struct BadMessage;

impl<'a> Message<'a> {
    /// The message's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let with = |kind: u8, parts: &[&[u8]]| {
            let mut bytes = vec![kind];
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
            bytes
        };
        match *self {
            Message::Hello { protocol, version } => with(HELLO, &[MAGIC, &protocol.to_le_bytes(), cut(version)]),
            Message::Welcome { version } => with(WELCOME, &[cut(version)]),
            Message::Refused { why } => with(REFUSED, &[cut(why)]),
            Message::Unreached { why } => with(UNREACHED, &[cut(why)]),
            Message::Part { total, offset, bytes } => with(PART, &[&total.to_le_bytes(), &offset.to_le_bytes(), bytes]),
            Message::Ready { json } => with(READY, &[json]),
            Message::Beat { count, answer } => with(BEAT, &[&count.to_le_bytes(), &[answer.into()]]),
            Message::Bye { why } => with(BYE, &[cut(why)]),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`BadMessage`].
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, BadMessage> {
        let (&kind, rest) = bytes.split_first().ok_or(BadMessage)?;
        let text = |bytes: &'a [u8]| match bytes.len() {
            0..=MAX_TEXT => std::str::from_utf8(bytes).map_err(|_| BadMessage),
            _ => Err(BadMessage),
        };
        Ok(match kind {
            HELLO => {
                let rest = rest.strip_prefix(MAGIC).ok_or(BadMessage)?;
                let (protocol, version) = number(rest)?;
                Message::Hello { protocol, version: text(version)? }
            }
            WELCOME => Message::Welcome { version: text(rest)? },
            REFUSED => Message::Refused { why: text(rest)? },
            UNREACHED => Message::Unreached { why: text(rest)? },
            PART => {
                let (total, rest) = number(rest)?;
                let (offset, bytes) = number(rest)?;
                Message::Part { total, offset, bytes }
            }
            READY => Message::Ready { json: rest },
            BEAT => match number(rest)? {
                (count, [answer @ (0 | 1)]) => Message::Beat { count, answer: *answer == 1 },
                _ => return Err(BadMessage),
            },
            BYE => Message::Bye { why: text(rest)? },
            _ => return Err(BadMessage),
        })
    }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), BadMessage> {
    let (number, rest) = bytes.split_first_chunk().ok_or(BadMessage)?;
    Ok((u32::from_le_bytes(*number), rest))
}

/// As much of a text as may be sent.
fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]
}

/// Puts a set-up's parts together, which come in order.
#[derive(Debug, Default)]
pub struct Parts {
    total: usize,
    bytes: Vec<u8>,
}

impl Parts {
    /// Takes a part. Returns the whole once it is complete.
    ///
    /// # Errors
    /// [`BadMessage`] for a part that is out of order, or belongs to another whole, or to one that is too large.
    pub fn take(&mut self, total: u32, offset: u32, part: &[u8]) -> Result<Option<Vec<u8>>, BadMessage> {
        if offset == 0 {
            *self = Parts { total: total as usize, bytes: Vec::new() };
        }
        let fits = self.total == total as usize
            && self.bytes.len() == offset as usize
            && !part.is_empty()
            && part.len() <= self.total - self.bytes.len();
        if !fits || self.total > MAX_SETUP {
            return Err(BadMessage);
        }
        self.bytes.extend_from_slice(part);
        Ok((self.bytes.len() == self.total).then(|| std::mem::take(self).bytes))
    }
}

/// What a card needs to know to serve in a host agent's stead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The host's slots.
    pub arena: Exported,
    /// The ring into which the card writes its submissions.
    pub ring: Exported,
    /// Entries of the ring, a power of two.
    pub ring_entries: u32,
    /// All pools, ids ascending; those of inputs first.
    pub pools: Vec<PoolShape>,
    /// How many of them are of inputs.
    pub input_pools: u16,
    /// Those of the input pools, ids ascending, whose tensors belong into a device's memory and not into the slots of the arena.
    pub device: Vec<DevicePool>,
    /// The models, by handle.
    pub models: Vec<ModelShape>,
    /// The encoded catalogue, in hexadecimal.
    pub catalog: Hex,
    /// What the engine is limited to.
    pub limits: ServerConfig,
    /// Where a datagram rouses the host agent; without one it never sleeps.
    pub doorbell: Option<SocketAddr>,
    /// What the doorbell's datagram says.
    pub knock: u64,
}

/// Memory that the host shows to the card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// What DOCA exported.
    pub description: Hex,
    /// Its bytes.
    pub bytes: u64,
}

/// Memory of a device for the tensors of a pool, from its beginning on as they lie in the pool. What is said of them, its meta areas, lies in the
/// arena as ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePool {
    /// The pool.
    pub pool: u16,
    /// Its memory there.
    pub memory: Exported,
}

/// A pool's layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolShape {
    /// Its number.
    pub id: u16,
    /// Bytes of a row of each tensor.
    pub row_bytes: Vec<u32>,
    /// Rows of a window.
    pub max_batch: u16,
    /// Windows.
    pub windows: u32,
}

/// A model, as an engine knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Type and dimensions of each input; -1 varies.
    pub inputs: Vec<(u8, Vec<i32>)>,
    /// Its input pools, smallest class first.
    pub classes: Vec<u16>,
    /// Most rows of a request; 0 is no batches.
    pub max_batch: u16,
    /// Levels of priority.
    pub priority_levels: u8,
    /// The usual one.
    pub default_priority: u8,
}

/// What a card tells once it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Where it takes TCP connections.
    pub tcp: Option<SocketAddr>,
    /// Where it takes datagrams.
    pub udp: Option<SocketAddr>,
    /// A software BlueField stands in for it.
    pub emulated: bool,
}

/// A set-up that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSetup {
    /// It is not what a host agent writes.
    #[error("the set-up cannot be read: {0}")]
    Json(String),
    /// A pool.
    #[error("pool {0}: {1}")]
    Pool(u16, LayoutError),
    /// What the engine is limited to.
    #[error("the set-up's limits: {0}")]
    Limits(String),
    /// Something else in it.
    #[error("the set-up's {0} cannot be")]
    Field(&'static str),
}

impl Setup {
    /// The set-up's bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers, texts and lists")
    }

    /// Reads and checks a set-up.
    ///
    /// # Errors
    /// [`BadSetup`].
    pub fn parse(json: &[u8]) -> Result<Setup, BadSetup> {
        let setup: Setup = serde_json::from_slice(json).map_err(|error| BadSetup::Json(error.to_string()))?;
        let layouts = setup.layouts()?;
        let bytes: u64 = layouts.iter().map(|(_, layout)| layout.bytes()).fold(0, u64::saturating_add);
        let wrong = |wrong: bool, field| if wrong { Err(BadSetup::Field(field)) } else { Ok(()) };
        wrong(usize::from(setup.input_pools) > setup.pools.len(), "input_pools")?;
        wrong(bytes > MAX_ARENA_BYTES || setup.arena.bytes != bytes.max(4096), "arena")?;
        let (entries, lines) = (setup.ring_entries as usize, setup.ring.bytes / size_of::<Line>() as u64);
        wrong(!entries.is_power_of_two() || entries > MAX_CAPACITY, "ring_entries")?;
        wrong(lines < (CONTROL_LINES + entries) as u64, "ring")?;
        // Pools are looked for by their order, since there may be as many of them, and of what names them, as the set-up has room for.
        wrong(setup.pools.windows(2).any(|pair| pair[0].id >= pair[1].id), "pools: the order of their slots")?;
        let inputs = &setup.pools[..usize::from(setup.input_pools)];
        let input = |pool: &u16| inputs.binary_search_by_key(pool, |shape| shape.id).is_ok();
        wrong(setup.device.windows(2).any(|pair| pair[0].pool >= pair[1].pool), "device: its order")?;
        wrong(!setup.device.iter().map(|device| &device.pool).all(input), "device: a pool")?;
        let layouts = setup.layouts()?;
        let place = |pool| layouts.binary_search_by_key(&pool, |(id, _)| *id);
        let needed = |pool| place(pool).map_or(u64::MAX, |place| layouts[place].1.bytes());
        let fits = |device: &DevicePool| (needed(device.pool)..=MAX_ARENA_BYTES).contains(&device.memory.bytes);
        wrong(!setup.device.iter().all(fits), "device: its bytes")?;
        let known = |(dtype, dims): &(u8, Vec<i32>)| DType::from_code(*dtype).is_ok() && dims.len() <= MAX_RANK;
        for model in &setup.models {
            wrong(model.classes.is_empty() || !model.classes.iter().all(input), "models: a class")?;
            wrong(!model.inputs.iter().all(known), "models: an input")?;
        }
        wrong(setup.models.len() > usize::from(u16::MAX), "models")?;
        let slots: u64 = layouts.iter().map(|(_, layout)| u64::from(layout.slots())).sum();
        wrong(slots > MAX_SLOTS, "pools: their slots")?;
        let limits = &setup.limits;
        limits.check().map_err(|error| BadSetup::Limits(error.to_string()))?;
        card_has_room(limits, setup.models.len(), setup.input_pools.into()).map_err(BadSetup::Limits)?;
        Ok(setup)
    }

    /// The layouts of all pools.
    ///
    /// # Errors
    /// [`BadSetup::Pool`].
    pub fn layouts(&self) -> Result<Vec<(u16, PoolLayout)>, BadSetup> {
        let layout = |shape: &PoolShape| {
            let layout = PoolLayout::new(&shape.row_bytes, shape.max_batch, shape.windows);
            layout.map(|layout| (shape.id, layout)).map_err(|error| BadSetup::Pool(shape.id, error))
        };
        self.pools.iter().map(layout).collect()
    }

    /// The configuration of a card's engine, whose sockets hold so many bytes.
    #[must_use]
    pub fn engine(&self, receive_room: u64, emulated: bool) -> ServerConfig {
        let path = |port| PathInfo { port, mover: Mover::DocaDma, memory: Memory::Host, link: Link::Doca, emulated };
        ServerConfig {
            receive_window: self.limits.receive_window.min(receive_room),
            receive_room,
            stream_path: path(Port::Tcp),
            datagram_path: path(Port::Udp),
            ..self.limits
        }
    }
}

impl From<(u16, &PoolLayout)> for PoolShape {
    fn from((id, layout): (u16, &PoolLayout)) -> Self {
        let row_bytes = layout.all_row_bytes().to_vec();
        PoolShape { id, row_bytes, max_batch: layout.max_batch(), windows: layout.windows() }
    }
}

impl From<&ModelPlan<'_>> for ModelShape {
    fn from(plan: &ModelPlan<'_>) -> Self {
        let input = |input: &InputPlan| (input.dtype as u8, input.dims[..usize::from(input.rank)].to_vec());
        ModelShape {
            inputs: plan.inputs.iter().map(input).collect(),
            classes: plan.classes.to_vec(),
            max_batch: plan.max_batch,
            priority_levels: plan.priority_levels,
            default_priority: plan.default_priority,
        }
    }
}

impl ModelShape {
    /// Its inputs, as the engine borrows them. Those of a set-up that was parsed can all be.
    #[must_use]
    pub fn inputs(&self) -> Vec<InputPlan> {
        let input = |(dtype, dims): &(u8, Vec<i32>)| {
            let mut plan = InputPlan { dtype: DType::from_code(*dtype).ok()?, dims: [0; MAX_RANK], rank: 0 };
            plan.rank = dims.len().min(MAX_RANK) as u8;
            plan.dims[..usize::from(plan.rank)].copy_from_slice(&dims[..usize::from(plan.rank)]);
            Some(plan)
        };
        self.inputs.iter().filter_map(input).collect()
    }

    /// The model, as the engine borrows it.
    #[must_use]
    pub fn plan<'a>(&'a self, inputs: &'a [InputPlan]) -> ModelPlan<'a> {
        let ModelShape { classes, max_batch, priority_levels, default_priority, .. } = self;
        ModelPlan {
            inputs,
            classes,
            max_batch: *max_batch,
            priority_levels: *priority_levels,
            default_priority: *default_priority,
        }
    }
}

/// Whether a card has room for what an engine with these limits works in, for so many models and pools of inputs. All of it is set aside, and a
/// host that asked for too much would end the card's program with it.
///
/// # Errors
/// What they come to, and what a card takes.
pub fn card_has_room(limits: &ServerConfig, models: usize, pools: usize) -> Result<(), String> {
    let bytes = StorageSizes::of(limits, models, pools).bytes();
    if limits.requests <= MAX_REQUESTS && bytes <= MAX_ENGINE_BYTES {
        return Ok(());
    }
    let most = format!("at most {MAX_REQUESTS} requests, and {MAX_ENGINE_BYTES} bytes for all of them");
    Err(format!("{} requests, and {bytes} bytes; a card takes {most}", limits.requests))
}

/// Bytes, which JSON has in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hex({} bytes)", self.0.len())
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let text: String = digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Hex, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let digit = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks_exact(2).map(pair).collect();
        let bytes = bytes.filter(|_| text.len() % 2 == 0);
        bytes.map(Hex).ok_or_else(|| serde::de::Error::custom("not a number of bytes in hexadecimal"))
    }
}
