//! What a card could be shown of a GPU.

use std::os::fd::OwnedFd;

use splitrpc_arena::Extent;
use splitrpc_gpu::{GpuArena, GpuError};

use crate::smartnic::DeviceSlots;

/// Input slots on a GPU, which stay as long as this.
#[derive(Debug)]
pub struct GpuSlots {
    pub(super) arena: GpuArena,
    pub(super) pools: Vec<u16>,
}

impl DeviceSlots for GpuSlots {
    fn pools(&self) -> &[u16] {
        &self.pools
    }

    fn extent(&self, pool: u16) -> Result<Extent, String> {
        self.arena.extent(pool).map_err(|error| error.to_string())
    }

    fn dma_buf(&self, pool: u16) -> Result<OwnedFd, String> {
        let told = |error: GpuError| error.to_string();
        self.arena.dma_buf(pool).map(|(file, _)| file).map_err(told)
    }
}
