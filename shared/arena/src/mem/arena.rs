//! The arena: pools laid out in one shared mapping, and outputs adopted from runtimes.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::external::{AdoptError, Block, External, Externals};
use super::map::Map;
use super::span::Span;
use crate::{EXTERNAL_POOL, META_BYTES, PoolLayout, Run};

/// Bytes of an arena, at most: 1 TiB of addresses, of which only what is touched takes memory.
pub const MAX_ARENA_BYTES: u64 = 1 << 40;

/// Memory for tensors. A handle: clones share the memory, which goes when the last one does.
#[derive(Clone)]
pub struct Arena {
    inner: Arc<Inner>,
}

struct Inner {
    map: Map,
    pools: Box<[Pool]>,
    externals: Externals,
}

struct Pool {
    id: u16,
    layout: PoolLayout,
    base: usize,
    areas: Box<[Area]>,
    meta: usize,
}

/// Where a tensor's rows lie in the mapping.
struct Area {
    base: usize,
    stride: usize,
    row_bytes: usize,
}

impl Arena {
    /// One shared mapping, zeroed, for all `pools` (ids ascending), and a table for `max_external` adopted outputs.
    ///
    /// # Errors
    /// [`ArenaError`] when the pools are not in order or too large together, or the kernel refuses.
    pub fn new(name: &str, pools: &[(u16, PoolLayout)], max_external: usize) -> Result<Arena, ArenaError> {
        if pools.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(ArenaError::PoolsNotAscending);
        }
        if pools.last().is_some_and(|last| last.0 >= EXTERNAL_POOL) {
            return Err(ArenaError::ReservedPool);
        }
        let max_external = u32::try_from(max_external).map_err(|_| ArenaError::TooManyExternal)?;
        // At most 2^16 pools of at most 2^48 bytes: u64 cannot overflow.
        let bytes = pools.iter().map(|(_, layout)| layout.bytes()).sum::<u64>().max(4096);
        if bytes > MAX_ARENA_BYTES {
            return Err(ArenaError::TooLarge { bytes });
        }
        let len = usize::try_from(bytes).map_err(|_| ArenaError::TooLarge { bytes })?;
        let map = Map::new(name, len).map_err(ArenaError::Memory)?;
        let mut base = 0;
        let pools = pools.iter().map(|(id, layout)| {
            let pool = Pool::new(*id, *layout, base);
            base += layout.bytes();
            pool
        });
        let pools = pools.collect();
        Ok(Arena { inner: Arc::new(Inner { map, pools, externals: Externals::new(max_external) }) })
    }

    /// `len` bytes at `offset` of the rows of `tensor` that a run of a pool names; `None` when they are not all inside
    /// the run. Whether the run is live is for its allocator to know.
    ///
    /// Outputs in a runtime's own memory have to be kept alive while viewed: for those see [`Arena::lease`].
    #[must_use]
    #[inline]
    pub fn span(&self, run: Run, tensor: u16, offset: u32, len: u32) -> Option<Span<'_>> {
        self.inner.pool(run)?.span(&self.inner.map, run, tensor, offset, len)
    }

    /// The [`META_BYTES`] beside the first row of a pool's run; for others see [`Arena::lease`].
    #[must_use]
    #[inline]
    pub fn meta(&self, run: Run) -> Option<Span<'_>> {
        Some(self.inner.pool(run)?.meta(&self.inner.map, run))
    }

    /// Access to what a run names, wherever it lives. An adopted output stays alive until its last lease is gone, even
    /// when it is dropped meanwhile; for a pool's run the lease costs nothing.
    ///
    /// ```
    /// # use splitrpc_arena::{Arena, External};
    /// let arena = Arena::new("doc", &[], 1).unwrap();
    /// let run = arena.adopt(External { tensors: vec![vec![1, 2, 3]], meta: Vec::new() }).unwrap();
    /// let lease = arena.lease(run).unwrap();
    /// let span = lease.span(0, 0, 3).unwrap();
    /// arena.drop_external(run);
    /// span.fill(0); // still there
    /// ```
    ///
    /// ```compile_fail,E0505
    /// # use splitrpc_arena::{Arena, External};
    /// let arena = Arena::new("doc", &[], 1).unwrap();
    /// let run = arena.adopt(External { tensors: vec![vec![1, 2, 3]], meta: Vec::new() }).unwrap();
    /// let lease = arena.lease(run).unwrap();
    /// let span = lease.span(0, 0, 3).unwrap();
    /// drop(lease); // what the span views may be freed here
    /// span.fill(0);
    /// ```
    #[must_use]
    #[inline]
    pub fn lease(&self, run: Run) -> Option<Lease<'_>> {
        let place = if run.pool == EXTERNAL_POOL {
            Place::External(self.inner.externals.block(run)?)
        } else {
            Place::Pool(self.inner.pool(run)?, &self.inner.map)
        };
        Some(Lease { run, place })
    }

    /// Takes a runtime's buffers as outputs, from any thread, until [`Arena::drop_external`]. Nothing is copied but the
    /// meta area.
    ///
    /// # Errors
    /// [`AdoptError`], and the buffers are freed.
    pub fn adopt(&self, external: External) -> Result<Run, AdoptError> {
        self.inner.externals.adopt(external)
    }

    /// Gives up an adopted output; returns false when the run names none. Its memory goes with the last lease.
    pub fn drop_external(&self, run: Run) -> bool {
        self.inner.externals.release(run)
    }

    /// The same for all of them.
    pub fn drop_all_external(&self) {
        self.inner.externals.release_all();
    }

    /// The shape of a pool.
    #[must_use]
    pub fn layout(&self, pool: u16) -> Option<&PoolLayout> {
        self.inner.find(pool).map(|pool| &pool.layout)
    }

    /// All bytes of a pool, whole pages, for registration with a device.
    #[must_use]
    pub fn pool(&self, pool: u16) -> Option<Span<'_>> {
        let pool = self.inner.find(pool)?;
        Some(self.inner.map.span(pool.base, pool.layout.bytes() as usize))
    }

    /// The file that holds the pools, to be passed to another process or registered with a device. Its size is sealed.
    #[must_use]
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.inner.map.file()
    }

    /// Bytes of the mapping.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.inner.map.len()
    }

    /// The whole mapping, for registration with a device.
    #[must_use]
    pub fn whole(&self) -> Span<'_> {
        self.inner.map.span(0, self.inner.map.len())
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { map, pools, .. } = &*self.inner;
        f.debug_struct("Arena").field("bytes", &map.len()).field("pools", &pools.len()).finish_non_exhaustive()
    }
}

/// What a run names, kept alive: see [`Arena::lease`].
pub struct Lease<'a> {
    run: Run,
    place: Place<'a>,
}

enum Place<'a> {
    Pool(&'a Pool, &'a Map),
    External(Arc<Block>),
}

impl Lease<'_> {
    /// The run.
    #[must_use]
    pub fn run(&self) -> Run {
        self.run
    }

    /// As [`Arena::span`]. An external tensor has as many bytes as its buffer.
    #[must_use]
    #[inline]
    pub fn span(&self, tensor: u16, offset: u32, len: u32) -> Option<Span<'_>> {
        match &self.place {
            Place::Pool(pool, map) => pool.span(map, self.run, tensor, offset, len),
            Place::External(block) => block.tensor(tensor)?.slice(offset as usize, len as usize),
        }
    }

    /// As [`Arena::meta`].
    #[must_use]
    #[inline]
    pub fn meta(&self) -> Span<'_> {
        match &self.place {
            Place::Pool(pool, map) => pool.meta(map, self.run),
            Place::External(block) => block.meta(),
        }
    }
}

impl fmt::Debug for Lease<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Inner {
    /// The pool of a run that lies in one of its windows.
    #[inline]
    fn pool(&self, run: Run) -> Option<&Pool> {
        self.find(run.pool).filter(|pool| pool.layout.holds(run.first, run.rows))
    }

    #[inline]
    fn find(&self, pool: u16) -> Option<&Pool> {
        // Ids are usually dense from 0.
        match self.pools.get(usize::from(pool)) {
            Some(found) if found.id == pool => Some(found),
            _ => self.pools.binary_search_by_key(&pool, |pool| pool.id).ok().map(|position| &self.pools[position]),
        }
    }
}

impl Pool {
    /// `base` and all that follows from it are below `MAX_ARENA_BYTES`, which a `usize` holds wherever it can be mapped.
    fn new(id: u16, layout: PoolLayout, base: u64) -> Pool {
        let area = |tensor| {
            Some(Area {
                base: (base + layout.tensor_offset(tensor)?) as usize,
                stride: layout.window_stride(tensor)? as usize,
                row_bytes: layout.row_bytes(tensor)? as usize,
            })
        };
        let areas = (0..layout.tensors()).filter_map(area).collect();
        Pool { id, layout, base: base as usize, areas, meta: (base + layout.meta_offset()) as usize }
    }

    #[inline]
    fn span<'a>(&self, map: &'a Map, run: Run, tensor: u16, offset: u32, len: u32) -> Option<Span<'a>> {
        let area = self.areas.get(usize::from(tensor))?;
        let (offset, len) = (offset as usize, len as usize);
        if offset + len > usize::from(run.rows) * area.row_bytes {
            return None;
        }
        let max_batch = u32::from(self.layout.max_batch());
        let (window, row) = ((run.first / max_batch) as usize, (run.first % max_batch) as usize);
        Some(map.span(area.base + window * area.stride + row * area.row_bytes + offset, len))
    }

    #[inline]
    fn meta<'a>(&self, map: &'a Map, run: Run) -> Span<'a> {
        map.span(self.meta + run.first as usize * META_BYTES as usize, META_BYTES as usize)
    }
}

impl Map {
    fn span(&self, offset: usize, len: usize) -> Span<'_> {
        assert!(offset + len <= self.len(), "every pool lies inside the mapping");
        let base = NonNull::new(self.base().as_ptr().wrapping_add(offset)).unwrap_or(NonNull::dangling());
        // SAFETY: just checked to be inside the mapping, which is readable and writable, lives as long as `self`, and is
        // accessed through spans only.
        unsafe { Span::new(base, len) }
    }
}

/// Why an arena cannot be set up.
#[derive(Debug)]
#[non_exhaustive]
pub enum ArenaError {
    /// Pool ids must ascend, each once.
    PoolsNotAscending,
    /// The two highest pool ids have meanings of their own.
    ReservedPool,
    /// The pools together are larger than [`MAX_ARENA_BYTES`].
    TooLarge {
        /// Their size.
        bytes: u64,
    },
    /// External outputs are numbered with 32 bits.
    TooManyExternal,
    /// The kernel does not give the memory.
    Memory(io::Error),
}

impl fmt::Display for ArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArenaError::PoolsNotAscending => f.write_str("pool ids do not ascend"),
            ArenaError::ReservedPool => f.write_str("a pool id is reserved"),
            ArenaError::TooLarge { bytes } => write!(f, "pools of {bytes} bytes exceed the limit of {MAX_ARENA_BYTES}"),
            ArenaError::TooManyExternal => f.write_str("external outputs are numbered with 32 bits"),
            ArenaError::Memory(_) => f.write_str("the kernel refused the arena's memory"),
        }
    }
}

impl std::error::Error for ArenaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ArenaError::Memory(error) => Some(error),
            _ => None,
        }
    }
}
