//! How a GPU's slots are shown to a card: by dma-buf, by their address, or not at all, and then the GPU copies from the host's.
//!
//! What was chosen is told, and so is each way that could not be had, with the reason.

use std::os::fd::OwnedFd;

use nic_app::setup::{DevicePool, Exported, Hex};
use splitrpc_arena::Extent;
use splitrpc_doca::{Access, Device, Error, Memory};

use super::CardError;
use crate::config::GpuMemory;

/// Slots that a device has in its own memory, as far as a card could write them.
pub trait DeviceSlots: Send {
    /// The input pools that are there, ids ascending.
    fn pools(&self) -> &[u16];

    /// Where a pool's tensors are, laid out as in the pool.
    ///
    /// # Errors
    /// Why that cannot be told.
    fn extent(&self, pool: u16) -> Result<Extent, String>;

    /// A dma-buf's descriptor of just that memory.
    ///
    /// # Errors
    /// Why there is none.
    fn dma_buf(&self, pool: u16) -> Result<OwnedFd, String>;
}

/// A way in which a request comes into a GPU's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuWay {
    /// The card writes there; it is shown them by dma-buf.
    DmaBuf,
    /// The card writes there; it is shown them by their address, which `nvidia-peermem` knows.
    Peermem,
    /// The card writes the host's slots, which are pinned, and the GPU copies.
    Pinned,
}

impl GpuWay {
    /// As it is called in the configuration and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            GpuWay::DmaBuf => "dmabuf",
            GpuWay::Peermem => "peermem",
            GpuWay::Pinned => "pinned",
        }
    }
}

/// What is left of the ways that the configuration allows.
#[derive(Debug)]
struct Choice {
    wanted: GpuMemory,
    /// The first one is tried next.
    left: &'static [GpuWay],
    /// Those that could not be had, and why.
    refused: Vec<(GpuWay, String)>,
}

impl Choice {
    fn new(wanted: GpuMemory) -> Choice {
        let left: &[GpuWay] = match wanted {
            GpuMemory::Auto => &[GpuWay::DmaBuf, GpuWay::Peermem, GpuWay::Pinned],
            GpuMemory::DmaBuf => &[GpuWay::DmaBuf],
            GpuMemory::Peermem => &[GpuWay::Peermem],
            GpuMemory::Pinned => &[GpuWay::Pinned],
        };
        Choice { wanted, left, refused: Vec::new() }
    }

    /// The first way by which `attempt` succeeds. One that fails is tried no more.
    fn take<T>(&mut self, mut attempt: impl FnMut(GpuWay) -> Result<T, String>) -> Result<(GpuWay, T), CardError> {
        loop {
            let Some(&way) = self.left.first() else { return Err(self.nothing()) };
            match attempt(way) {
                Ok(made) => return Ok((way, made)),
                Err(why) => self.reject(why)?,
            }
        }
    }

    /// The way that is tried next, or was taken, cannot be had.
    fn reject(&mut self, why: String) -> Result<(), CardError> {
        // Where there is only one, it stays: whatever is in its way may go.
        let [way, rest @ ..] = self.left else { return Err(self.nothing()) };
        let Some(next) = rest.first() else {
            self.refused.retain(|(refused, _)| refused != way);
            self.refused.push((*way, why));
            return Err(self.nothing());
        };
        let (tried, next) = (way.name(), next.name());
        tracing::warn!(tried, why, next, "the card cannot be shown the GPU's slots this way; the next one is tried");
        self.refused.push((*way, why));
        self.left = rest;
        Ok(())
    }

    fn nothing(&self) -> CardError {
        let why = self.refused.iter().map(|(way, why)| format!("{}: {why}", way.name())).collect::<Vec<_>>().join("; ");
        CardError::GpuMemory { wanted: self.wanted.name(), why }
    }
}

/// Hears by which way requests come to the GPU.
pub type ToldWay = Box<dyn Fn(GpuWay) + Send>;

/// A device's slots, and how they are shown.
pub(super) struct Shows {
    slots: Box<dyn DeviceSlots>,
    choice: Choice,
    told: ToldWay,
    /// What was told last.
    way: Option<GpuWay>,
}

/// What one card is shown of the device. Where it is nothing, its slots are filled from the host's.
#[derive(Debug, Default)]
pub(super) struct OnDevice {
    pub(super) pools: Vec<DevicePool>,
    /// When these go, the card can no longer reach them.
    pub(super) memory: Vec<Memory>,
}

impl Shows {
    /// Of a device, if there is one.
    ///
    /// # Errors
    /// Where there is none, and its memory is to be shown.
    pub(super) fn new(
        wanted: GpuMemory,
        slots: Option<Box<dyn DeviceSlots>>,
        told: ToldWay,
    ) -> Result<Option<Shows>, CardError> {
        match slots.filter(|slots| !slots.pools().is_empty()) {
            Some(slots) => Ok(Some(Shows { slots, choice: Choice::new(wanted), told, way: None })),
            None if matches!(wanted, GpuMemory::DmaBuf | GpuMemory::Peermem) => {
                let why = "no model is served from a GPU".to_owned();
                Err(CardError::GpuMemory { wanted: wanted.name(), why })
            }
            None => Ok(None),
        }
    }

    /// Shows the slots to the next card, by the first way that is left.
    ///
    /// # Errors
    /// [`CardError::GpuMemory`] where none is.
    pub(super) fn show(&mut self, device: &Device) -> Result<OnDevice, CardError> {
        let Shows { slots, choice, told, way } = self;
        let (taken, shown) = choice.take(|way| show(device, &**slots, way))?;
        if way.replace(taken) != Some(taken) {
            let (pools, wanted) = (slots.pools().len(), choice.wanted.name());
            tracing::info!(way = taken.name(), wanted, pools, "how requests come into the GPU's slots");
            told(taken);
        }
        Ok(shown)
    }

    /// The card cannot reach what it was shown.
    ///
    /// # Errors
    /// As [`Shows::show`].
    pub(super) fn unreached(&mut self, why: String) -> Result<(), CardError> {
        self.choice.reject(why)
    }
}

/// Shows a card all pools of a device one way.
fn show(device: &Device, slots: &dyn DeviceSlots, way: GpuWay) -> Result<OnDevice, String> {
    let mut shown = OnDevice::default();
    if way == GpuWay::Pinned {
        return Ok(shown);
    }
    for pool in slots.pools() {
        let of_pool = |why: String| format!("pool {pool}: {why}");
        let extent = slots.extent(*pool).map_err(of_pool)?;
        let file = match way {
            GpuWay::DmaBuf => Some(slots.dma_buf(*pool).map_err(of_pool)?),
            _ => None,
        };
        let failed = |error: Error| of_pool(format!("DOCA: {error}{}", hint(way)));
        let memory = Memory::of_device(device, &extent, file, Access::OtherWrites).map_err(failed)?;
        let description = Hex(memory.export().map_err(failed)?);
        let memory_shown = Exported { description, bytes: memory.len() as u64 };
        shown.pools.push(DevicePool { pool: *pool, memory: memory_shown });
        shown.memory.push(memory);
    }
    Ok(shown)
}

/// What the usual reason is.
fn hint(way: GpuWay) -> &'static str {
    let loaded = || std::path::Path::new("/sys/module/nvidia_peermem").exists();
    if way == GpuWay::Peermem && !loaded() { " (the module nvidia-peermem is not loaded)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries with those ways failing. Returns what was tried, in order, and what came of it.
    fn tried(choice: &mut Choice, failing: &[GpuWay]) -> (Vec<GpuWay>, Result<GpuWay, String>) {
        let mut tried = Vec::new();
        let taken = choice.take(|way| {
            tried.push(way);
            if failing.contains(&way) { Err(format!("no {}", way.name())) } else { Ok(()) }
        });
        (tried, taken.map(|(way, ())| way).map_err(|error| error.to_string()))
    }

    #[test]
    fn auto_goes_from_dma_buf_to_peermem_to_pinned_and_remembers_why() {
        use GpuWay::{DmaBuf, Peermem, Pinned};
        let auto = || Choice::new(GpuMemory::Auto);
        assert_eq!(tried(&mut auto(), &[]), (vec![DmaBuf], Ok(DmaBuf)));
        assert_eq!(tried(&mut auto(), &[DmaBuf]), (vec![DmaBuf, Peermem], Ok(Peermem)));
        let mut choice = auto();
        assert_eq!(tried(&mut choice, &[DmaBuf, Peermem]), (vec![DmaBuf, Peermem, Pinned], Ok(Pinned)));
        assert_eq!(choice.refused, [(DmaBuf, "no dmabuf".to_owned()), (Peermem, "no peermem".to_owned())]);
        // What has failed once is not tried for the next card.
        assert_eq!(tried(&mut choice, &[]), (vec![Pinned], Ok(Pinned)));
    }

    #[test]
    fn what_the_card_cannot_reach_is_followed_by_the_next_way() {
        let mut choice = Choice::new(GpuMemory::Auto);
        assert_eq!(tried(&mut choice, &[]).1, Ok(GpuWay::DmaBuf));
        choice.reject("the card says so".to_owned()).unwrap();
        assert_eq!(tried(&mut choice, &[]).1, Ok(GpuWay::Peermem));
        choice.reject("nor this".to_owned()).unwrap();
        assert_eq!(tried(&mut choice, &[]).1, Ok(GpuWay::Pinned));
        assert_eq!(choice.refused.len(), 2);
    }

    #[test]
    fn what_was_asked_for_by_name_is_had_or_refused() {
        for (wanted, way) in [(GpuMemory::DmaBuf, GpuWay::DmaBuf), (GpuMemory::Peermem, GpuWay::Peermem)] {
            assert_eq!(tried(&mut Choice::new(wanted), &[]), (vec![way], Ok(way)));
            let (tried, refused) = tried(&mut Choice::new(wanted), &[way]);
            assert_eq!(tried, [way]);
            let text = refused.unwrap_err();
            assert!(text.contains(&format!("nic.gpu_memory is {0}", way.name())), "{text}");
            assert!(text.contains(&format!("no {0}", way.name())), "{text}");
            // Nor does it become another one because a card cannot reach it.
            assert!(Choice::new(wanted).reject("unreached".to_owned()).is_err());
        }
        let all = [GpuWay::DmaBuf, GpuWay::Peermem];
        assert_eq!(tried(&mut Choice::new(GpuMemory::Pinned), &all), (vec![GpuWay::Pinned], Ok(GpuWay::Pinned)));
    }

    #[test]
    fn without_a_gpu_only_its_memory_by_name_is_refused() {
        let new = |wanted| Shows::new(wanted, None, Box::new(|_| unreachable!()));
        assert!(new(GpuMemory::Auto).unwrap().is_none() && new(GpuMemory::Pinned).unwrap().is_none());
        for wanted in [GpuMemory::DmaBuf, GpuMemory::Peermem] {
            assert!(new(wanted).err().unwrap().to_string().contains("no model is served from a GPU"));
        }
    }
}
