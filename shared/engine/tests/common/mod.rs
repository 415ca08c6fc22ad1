//! What engines under test are made of: memory lent to them, and descriptions of models.
#![allow(missing_docs, unreachable_pub, dead_code)]

use splitrpc_arena::{PoolLayout, SlotAllocator, SlotEntry};
use splitrpc_engine::{
    ChannelSlot, ClientSlot, ClientStorage, Control, Ended, InputPlan, OriginSlot, RequestSlot, SentFrame,
    ServerConfig, SessionSlot, Storage, StorageSizes, Time,
};
use splitrpc_ring::{RequestKey, Submission};
use splitrpc_wire::{DType, MAX_RANK};

/// Memory of a server.
pub struct ServerMemory {
    entries: Vec<SlotEntry>,
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

impl ServerMemory {
    pub fn new(config: &ServerConfig, models: usize, pools: &[(u16, PoolLayout)]) -> ServerMemory {
        let need = StorageSizes::of(config, models, pools.len());
        ServerMemory {
            entries: vec![SlotEntry::default(); SlotAllocator::storage_len(pools)],
            sessions: vec![SessionSlot::default(); need.sessions],
            channels: (0..need.channels).map(|_| ChannelSlot::default()).collect(),
            origins: vec![OriginSlot::default(); need.channels],
            timers: vec![Time::NEVER; need.channels],
            flight: vec![SentFrame::default(); need.flight],
            requests: vec![RequestSlot::default(); need.requests],
            submissions: vec![Submission::Cancel { request: RequestKey::default() }; need.submissions],
            control: vec![Control::default(); need.control],
            active: vec![0; need.channels],
            shares: vec![0; need.shares],
            ended: vec![Ended::default(); need.ended],
        }
    }

    /// The slots of these pools, and the rest.
    pub fn lend<'m>(&'m mut self, pools: &'m [(u16, PoolLayout)]) -> (SlotAllocator<'m>, Storage<'m>) {
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
        (SlotAllocator::new(pools, &mut self.entries).unwrap(), storage)
    }
}

/// Memory of a client.
pub struct ClientMemory {
    slots: Vec<ClientSlot>,
    flight: Vec<SentFrame>,
}

impl ClientMemory {
    pub fn new(slots: usize, flight: usize) -> ClientMemory {
        ClientMemory { slots: vec![ClientSlot::default(); slots], flight: vec![SentFrame::default(); flight] }
    }
}

impl ClientStorage for ClientMemory {
    fn parts(&mut self) -> (&mut [ClientSlot], &mut [SentFrame]) {
        (&mut self.slots, &mut self.flight)
    }
    fn slots(&self) -> &[ClientSlot] {
        &self.slots
    }
    fn flight(&self) -> &[SentFrame] {
        &self.flight
    }
}

/// An input of a model; -1 varies.
pub fn input(dtype: DType, dims: &[i32]) -> InputPlan {
    let mut all = [0; MAX_RANK];
    all[..dims.len()].copy_from_slice(dims);
    InputPlan { dtype, dims: all, rank: dims.len() as u8 }
}
