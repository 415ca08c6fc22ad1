//! The memory that an engine works in.

use splitrpc_arena::{AllocatorError, PoolLayout, SlotAllocator, SlotEntry};
use splitrpc_engine::{
    ChannelSlot, ConfigError, Control, Ended, ModelPlan, OriginSlot, RequestSlot, SentFrame, Server, ServerConfig,
    SessionSlot, Storage, StorageSizes, Time,
};
use splitrpc_ring::{RequestKey, Submission};

/// An engine over storage of its own.
pub type Engine = Server<'static>;

/// An engine and what its ports need to know of it.
#[derive(Debug)]
pub struct BuiltEngine {
    /// The engine.
    pub server: Engine,
    /// Its configuration.
    pub config: ServerConfig,
    /// The catalogue that it hands out. Ports send slices of it that a slow client has not taken yet.
    pub catalog: &'static [u8],
}

/// Why an engine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A limit that cannot be.
    #[error("engine: {0}")]
    Config(#[from] ConfigError),
    /// Input pools that cannot be.
    #[error("input pools: {0}")]
    Pools(#[from] AllocatorError),
    /// No random numbers for the session secrets.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Builds an engine and everything that it will ever need. `pools` are the input pools.
///
/// The storage is leaked: a data thread builds one engine, at start, and keeps it until the process ends.
///
/// # Errors
/// [`BuildError`].
pub fn build_engine(
    config: &ServerConfig,
    models: &[ModelPlan<'_>],
    catalog: &[u8],
    pools: &[(u16, PoolLayout)],
) -> Result<BuiltEngine, BuildError> {
    config.check()?;
    let sizes = StorageSizes::of(config, models.len(), pools.len());
    let pools: &'static [(u16, PoolLayout)] = leak(pools.to_vec());
    let slots = SlotAllocator::new(pools, leak(vec![SlotEntry::default(); SlotAllocator::storage_len(pools)]))?;
    let models = models.iter().map(|plan| ModelPlan {
        inputs: leak(plan.inputs.to_vec()),
        classes: leak(plan.classes.to_vec()),
        ..*plan
    });
    let models: &'static [ModelPlan<'static>] = leak(models.collect());
    let catalog: &'static [u8] = leak(catalog.to_vec());
    let nothing = Submission::Cancel { request: RequestKey::default() };
    let storage = Storage {
        sessions: leak(vec![SessionSlot::default(); sizes.sessions]),
        channels: leak((0..sizes.channels).map(|_| ChannelSlot::default()).collect()),
        origins: leak(vec![OriginSlot::default(); sizes.channels]),
        timers: leak(vec![Time::NEVER; sizes.channels]),
        flight: leak(vec![SentFrame::default(); sizes.flight]),
        requests: leak(vec![RequestSlot::default(); sizes.requests]),
        submissions: leak(vec![nothing; sizes.submissions]),
        control: leak(vec![Control::default(); sizes.control]),
        active: leak(vec![0; sizes.channels]),
        shares: leak(vec![0; sizes.shares]),
        ended: leak(vec![Ended::default(); sizes.ended]),
    };
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(BuildError::Random)?;
    let epoch = getrandom::u64().map_err(BuildError::Random)?;
    let server = Server::new(config, models, catalog, pools, slots, storage, secret, epoch)?;
    Ok(BuiltEngine { server, config: *config, catalog })
}

fn leak<T>(items: Vec<T>) -> &'static mut [T] {
    Box::leak(items.into_boxed_slice())
}
