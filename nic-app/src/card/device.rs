//! Slots whose tensors lie in memory of a device on the host, such as a GPU's, and not in the host's own.

use splitrpc_arena::PoolLayout;
use splitrpc_doca::{Device, Error, Memory};

use crate::setup::DevicePool;

/// Those pools: of each the tensors lie in a memory of its own, as they are laid out in the pool. What is said of them lies on the host as ever.
#[derive(Debug)]
pub(super) struct OnDevice<M> {
    pools: Box<[Held<M>]>,
}

#[derive(Debug)]
struct Held<M> {
    pool: u16,
    /// Where its tensors begin and end in the slots' memory.
    from: usize,
    to: usize,
    memory: M,
}

impl OnDevice<Memory> {
    /// What the host shows of its device.
    ///
    /// # Errors
    /// Why one of them cannot be reached, or is not as large as it was said to be.
    pub(super) fn import(
        device: &Device,
        pools: &[DevicePool],
        layouts: &[(u16, PoolLayout)],
    ) -> Result<OnDevice<Memory>, String> {
        OnDevice::new(layouts, pools, |shown| {
            let known = |error: Error| format!("pool {}: DOCA: {error}", shown.pool);
            let memory = Memory::import(device, &shown.memory.description.0).map_err(known)?;
            match memory.len() as u64 == shown.memory.bytes {
                true => Ok(memory),
                false => Err(format!("pool {}: it is not as large as it was said to be", shown.pool)),
            }
        })
    }
}

impl<M> OnDevice<M> {
    fn new(
        layouts: &[(u16, PoolLayout)],
        shown: &[DevicePool],
        mut memory: impl FnMut(&DevicePool) -> Result<M, String>,
    ) -> Result<OnDevice<M>, String> {
        let (mut base, mut pools) = (0, Vec::with_capacity(shown.len()));
        for (pool, layout) in layouts {
            if let Some(shown) = shown.iter().find(|shown| shown.pool == *pool) {
                let to = (base + layout.meta_offset()) as usize;
                pools.push(Held { pool: *pool, from: base as usize, to, memory: memory(shown)? });
            }
            base += layout.bytes();
        }
        Ok(OnDevice { pools: pools.into() })
    }

    /// Whether the tensors of a pool are there.
    pub(super) fn holds(&self, pool: u16) -> bool {
        self.pools.binary_search_by_key(&pool, |held| held.pool).is_ok()
    }

    /// Where there the bytes are that lie at this place of the slots' memory; `None` where they are not there. A tensor lies in one of both as a
    /// whole.
    pub(super) fn place(&self, offset: usize) -> Option<(&M, usize)> {
        let after = self.pools.partition_point(|held| held.from <= offset);
        let held = &self.pools[after.checked_sub(1)?];
        (offset < held.to).then(|| (&held.memory, offset - held.from))
    }

    /// Of each pool, where its tensors begin, and how many bytes they have.
    pub(super) fn extents(&self) -> impl Iterator<Item = (u16, usize, usize)> {
        self.pools.iter().map(|held| (held.pool, held.from, held.to - held.from))
    }
}

#[cfg(test)]
mod tests {
    use splitrpc_arena::Arena;
    use splitrpc_ring::Run;

    use super::*;
    use crate::setup::{Exported, Hex};

    /// Three pools, of which the first and the last are on the device.
    fn three() -> (Arena, Vec<(u16, PoolLayout)>, OnDevice<u16>) {
        let layout = |rows: &[u32]| PoolLayout::new(rows, 2, 2).unwrap();
        let layouts = vec![(0, layout(&[100, 5_000])), (1, layout(&[64])), (3, layout(&[4096]))];
        let shown =
            [0, 3].map(|pool| DevicePool { pool, memory: Exported { description: Hex(Vec::new()), bytes: 1 << 21 } });
        let arena = Arena::new("device", &layouts, 0).unwrap();
        let on_device = OnDevice::new(&layouts, &shown, |shown| Ok(shown.pool)).unwrap();
        (arena, layouts, on_device)
    }

    #[test]
    fn tensors_are_where_their_layout_says_and_what_is_said_of_them_is_on_the_host() {
        let (arena, layouts, on_device) = three();
        let at = |span: splitrpc_arena::Span<'_>| span.as_ptr().addr() - arena.whole().as_ptr().addr();
        for (pool, layout) in &layouts {
            for first in 0..layout.slots() {
                let run = Run { pool: *pool, rows: 1, first, generation: 0 };
                for tensor in 0..layout.tensors() {
                    let len = layout.row_bytes(tensor).unwrap();
                    let place = layout.rows(tensor).unwrap().place(first, 1, 0, len).unwrap() as usize;
                    let offset = at(arena.span(run, tensor, 0, len).unwrap());
                    let found = on_device.place(offset);
                    assert_eq!(found, (*pool != 1).then_some((pool, place)), "pool {pool}, slot {first}");
                    // Its last byte is there, too.
                    assert_eq!(on_device.place(offset + len as usize - 1).is_some(), *pool != 1);
                }
                assert_eq!(on_device.place(at(arena.meta(run).unwrap())), None);
            }
        }
        assert_eq!([0, 1, 2, 3].map(|pool| on_device.holds(pool)), [true, false, false, true]);
        assert_eq!(on_device.extents().count(), 2);
    }

    #[test]
    fn what_cannot_be_reached_is_told() {
        let (_, layouts, _) = three();
        let shown = [DevicePool { pool: 3, memory: Exported { description: Hex(Vec::new()), bytes: 1 } }];
        let error = OnDevice::<u16>::new(&layouts, &shown, |_| Err("no".to_owned())).unwrap_err();
        assert_eq!(error, "no");
    }
}
