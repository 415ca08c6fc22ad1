//! Pools of a host arena that a GPU uses, and what it has of them in its own memory.

use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use splitrpc_arena::{Arena, Extent, PoolLayout, Run, TensorRows};
use splitrpc_cuda::{Context, DeviceMemory, DeviceRange, HostRange, HostRegistration, MemoryOptions};

use crate::carry::Carry;
use crate::error::GpuError;

/// Pools that a GPU uses. Those of slots are in two places: in the host's arena, locked there for the copy engines, and, laid
/// out alike, in memory of the device. A slot is one name for both; it is given and freed once, by the arena's allocator.
/// Those of frames are on the host only, where the GPU reads them in place.
///
/// A handle: clones share the memory, which goes with the last of them and of the [lanes](crate::Lane) over it.
#[derive(Clone)]
pub struct GpuArena {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    carry: Carry,
    // Dropped in this order: what is registered is part of the arena.
    pools: Box<[Pool]>,
    arena: Arena,
}

struct Pool {
    id: u16,
    layout: PoolLayout,
    /// None for frames.
    device: Option<DeviceMemory>,
    host: HostRegistration,
}

impl GpuArena {
    /// Locks the host's memory of these pools (each once, for one GPU), all of whose pages are then in use, and allocates as much on the device for
    /// those of `slots`.
    ///
    /// # Errors
    /// [`GpuError::NoPool`]; [`GpuError::NoMemory`]; the driver's.
    pub fn new(
        context: &Context,
        arena: &Arena,
        slots: &[u16],
        frames: &[u16],
        options: MemoryOptions,
    ) -> Result<GpuArena, GpuError> {
        let layout = |&id: &u16| arena.layout(id).copied().ok_or(GpuError::NoPool(id));
        let needed = slots.iter().map(|id| Ok(layout(id)?.bytes())).sum::<Result<u64, GpuError>>()?;
        let (free, _) = context.memory_bytes()?;
        if needed > free {
            return Err(GpuError::NoMemory { needed, free });
        }
        let slots = slots.iter().map(|id| Pool::new(context, arena, *id, layout(id)?, Some(options)));
        let frames = frames.iter().map(|id| Pool::new(context, arena, *id, layout(id)?, None));
        let pools = slots.chain(frames).collect::<Result<_, _>>()?;
        let carry = Carry::load(context)?;
        Ok(GpuArena { inner: Arc::new(Inner { context: context.clone(), carry, pools, arena: arena.clone() }) })
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.inner.context
    }

    /// The host's side.
    #[must_use]
    pub fn host_arena(&self) -> &Arena {
        &self.inner.arena
    }

    /// Bytes of device memory that its pools take.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.inner.pools.iter().filter_map(|pool| pool.device.as_ref()).map(|memory| memory.len() as u64).sum()
    }

    /// `len` bytes at `offset` of the rows of `tensor` that a run names, on the device; `None` when they are not all
    /// inside the run, or the pool is not the GPU's. Whether the run is live is for its allocator to know.
    #[must_use]
    pub fn device(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Option<DeviceRange<'_>> {
        let (pool, place) = self.place(run, tensor, offset, len)?;
        pool.device.as_ref()?.range(place, len as usize).ok()
    }

    /// The same bytes on the host, for a copy.
    pub(crate) fn host(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Option<HostRange<'_>> {
        let (pool, place) = self.place(run, tensor, offset, len)?;
        pool.host.range(place, len as usize).ok()
    }

    /// The device's addresses of a pool of slots on the host and in its own memory.
    pub(crate) fn bases(&self, pool: u16) -> Option<(u64, u64)> {
        let pool = self.pool(pool)?;
        Some((pool.host.address(), pool.device.as_ref()?.address()))
    }

    /// Where in its pool, on either side, bytes of a run's tensor are.
    pub(crate) fn offset(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Option<u64> {
        let (pool, place) = self.place(run, tensor, offset, len)?;
        pool.device.as_ref().map(|_| place as u64)
    }

    /// Where the device finds the rows of a tensor on the host.
    pub(crate) fn host_rows(&self, pool: u16, tensor: u16) -> Option<Rows> {
        let pool = self.pool(pool)?;
        Some(Rows { base: pool.host.address(), rows: pool.layout.rows(tensor)? })
    }

    /// Where it finds them in its own memory.
    pub(crate) fn device_rows(&self, pool: u16, tensor: u16) -> Option<Rows> {
        let pool = self.pool(pool)?;
        Some(Rows { base: pool.device.as_ref()?.address(), rows: pool.layout.rows(tensor)? })
    }

    /// The kernel of [`Work::gather`](crate::Work::gather) and [`Work::scatter`](crate::Work::scatter).
    pub(crate) fn carry(&self) -> &Carry {
        &self.inner.carry
    }

    /// A descriptor by which another process maps a pool's device memory, and how many bytes that has. What it writes
    /// there is a tensor where it is in the layout of the pool.
    ///
    /// # Errors
    /// [`GpuError::NoPool`]; that of [`DeviceMemory::export`], for instance when `options` did not ask for it.
    pub fn export(&self, pool: u16) -> Result<(OwnedFd, usize), GpuError> {
        let memory = self.memory(pool)?;
        Ok((memory.export()?, memory.len()))
    }

    /// The same as a dma-buf, for a network card's driver.
    ///
    /// # Errors
    /// [`GpuError::NoPool`]; that of [`DeviceMemory::dma_buf`], for instance where machine or device cannot.
    pub fn dma_buf(&self, pool: u16) -> Result<(OwnedFd, usize), GpuError> {
        let memory = self.memory(pool)?;
        Ok((memory.dma_buf(0, memory.len())?, memory.len()))
    }

    /// All of a pool's device memory, by the address by which the device calls it, for a network card's driver. It is there for as long as the extent is.
    ///
    /// # Errors
    /// [`GpuError::NoPool`].
    pub fn extent(&self, pool: u16) -> Result<Extent, GpuError> {
        let memory = self.memory(pool)?;
        let address = usize::try_from(memory.address()).map_err(|_| GpuError::NoPool(pool))?;
        // SAFETY: the memory goes with the last handle of this arena, of which the extent has one. No reference is ever made to memory of a device,
        // and work on it reckons with others that write it.
        Ok(unsafe { Extent::new(address, memory.len(), Arc::new(self.clone())) })
    }

    fn memory(&self, pool: u16) -> Result<&DeviceMemory, GpuError> {
        let found = self.pool(pool).and_then(|pool| pool.device.as_ref());
        found.ok_or(GpuError::NoPool(pool))
    }

    fn pool(&self, pool: u16) -> Option<&Pool> {
        self.inner.pools.iter().find(|known| known.id == pool)
    }

    fn place(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Option<(&Pool, usize)> {
        let pool = self.pool(run.pool)?;
        let place = pool.layout.rows(tensor)?.place(run.first, run.rows, offset, len)?;
        Some((pool, usize::try_from(place).ok()?))
    }
}

/// Where the rows of a tensor are for the device.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    base: u64,
    rows: TensorRows,
}

impl Rows {
    /// The address of `len` bytes at `offset` of a run's rows, if they are all inside.
    #[inline]
    pub(crate) fn address(&self, run: Run, offset: u32, len: u32) -> Option<u64> {
        Some(self.base + self.rows.place(run.first, run.rows, offset, len)?)
    }
}

impl Pool {
    fn new(
        context: &Context,
        arena: &Arena,
        id: u16,
        layout: PoolLayout,
        on_device: Option<MemoryOptions>,
    ) -> Result<Pool, GpuError> {
        let span = arena.pool(id).ok_or(GpuError::NoPool(id))?;
        let base = NonNull::new(span.as_mut_ptr()).ok_or(GpuError::NoPool(id))?;
        let device = on_device.map(|options| DeviceMemory::new(context, span.len(), options)).transpose()?;
        // SAFETY: the pool is mapped, readable and writable, as long as there is a handle of the arena, and the
        // `GpuArena` drops its own after the registration. Spans access the memory as one that others may write.
        let host = unsafe { HostRegistration::new(context, base, span.len()) }?;
        Ok(Pool { id, layout, device, host })
    }
}

impl fmt::Debug for GpuArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { context, pools, .. } = &*self.inner;
        f.debug_struct("GpuArena").field("context", context).field("pools", &pools.len()).finish_non_exhaustive()
    }
}
