//! The memory that an engine works in.

use std::sync::Arc;

use splitrpc_arena::{AllocatorError, PoolLayout, SlotAllocator, SlotEntry};
use splitrpc_engine::{
    ChannelSlot, ConfigError, Control, Ended, ModelPlan, OriginSlot, RequestSlot, SentFrame, Server, ServerConfig,
    SessionSlot, Storage, StorageSizes, Time,
};
use splitrpc_ring::{RequestKey, Submission};

/// An engine over [`EngineMemory`].
pub type Engine<'e> = Server<'e>;

/// An engine and what its ports need to know of it.
#[derive(Debug)]
pub struct BuiltEngine<'e> {
    /// The engine.
    pub server: Engine<'e>,
    /// Its configuration.
    pub config: ServerConfig,
    /// The catalogue that it hands out. Ports send slices of it that a slow client has not taken yet.
    pub catalog: Arc<[u8]>,
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

/// All that an engine will ever need.
#[derive(Debug)]
pub struct EngineMemory {
    config: ServerConfig,
    slots: Vec<SlotEntry>,
    sessions: Vec<SessionSlot>,
    channels: Vec<ChannelSlot>,
    origins: Vec<OriginSlot>,
    timers: Vec<Time>,
    flight: Vec<SentFrame>,
    requests: Vec<RequestSlot>,
    submissions: Vec<Submission>,
    control: Vec<Control>,
    active: Vec<u32>,
    shares: Vec<u32>,
    ended: Vec<Ended>,
}

impl EngineMemory {
    /// Memory for an engine with so many models and these input pools.
    ///
    /// # Errors
    /// [`BuildError::Config`].
    pub fn new(config: &ServerConfig, models: usize, pools: &[(u16, PoolLayout)]) -> Result<EngineMemory, BuildError> {
        config.check()?;
        let sizes = StorageSizes::of(config, models, pools.len());
        let nothing = Submission::Cancel { request: RequestKey::default() };
        Ok(EngineMemory {
            config: *config,
            slots: vec![SlotEntry::default(); SlotAllocator::storage_len(pools)],
            sessions: vec![SessionSlot::default(); sizes.sessions],
            channels: (0..sizes.channels).map(|_| ChannelSlot::default()).collect(),
            origins: vec![OriginSlot::default(); sizes.channels],
            timers: vec![Time::NEVER; sizes.channels],
            flight: vec![SentFrame::default(); sizes.flight],
            requests: vec![RequestSlot::default(); sizes.requests],
            submissions: vec![nothing; sizes.submissions],
            control: vec![Control::default(); sizes.control],
            active: vec![0; sizes.channels],
            shares: vec![0; sizes.shares],
            ended: vec![Ended::default(); sizes.ended],
        })
    }

    /// An engine in it, for as many models and the pools that it was made for.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn engine<'e>(
        &'e mut self,
        models: &'e [ModelPlan<'e>],
        catalog: &'e [u8],
        pools: &'e [(u16, PoolLayout)],
    ) -> Result<BuiltEngine<'e>, BuildError> {
        let slots = SlotAllocator::new(pools, &mut self.slots)?;
        let storage = Storage {
            sessions: &mut self.sessions,
            channels: &mut self.channels,
            origins: &mut self.origins,
            timers: &mut self.timers,
            flight: &mut self.flight,
            requests: &mut self.requests,
            submissions: &mut self.submissions,
            control: &mut self.control,
            active: &mut self.active,
            shares: &mut self.shares,
            ended: &mut self.ended,
        };
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(BuildError::Random)?;
        let epoch = getrandom::u64().map_err(BuildError::Random)?;
        let server = Server::new(&self.config, models, catalog, pools, slots, storage, secret, epoch)?;
        Ok(BuiltEngine { server, config: self.config, catalog: catalog.into() })
    }
}

/// An engine that stays until the process ends, with all that it needs. `pools` are the input pools.
///
/// # Errors
/// [`BuildError`].
pub fn build_engine(
    config: &ServerConfig,
    models: &[ModelPlan<'_>],
    catalog: &[u8],
    pools: &[(u16, PoolLayout)],
) -> Result<BuiltEngine<'static>, BuildError> {
    let memory = Box::leak(Box::new(EngineMemory::new(config, models.len(), pools)?));
    let models = models.iter().map(|plan| ModelPlan {
        inputs: leak(plan.inputs.to_vec()),
        classes: leak(plan.classes.to_vec()),
        ..*plan
    });
    memory.engine(leak(models.collect()), leak(catalog.to_vec()), leak(pools.to_vec()))
}

fn leak<T>(items: Vec<T>) -> &'static [T] {
    Box::leak(items.into_boxed_slice())
}
