//! Models on a GPU: copies, launches and their ends, driven by the data thread.
//!
//! A [`Board`] is what one shard has of a GPU. It brings requests into slots in the GPU's memory, puts batches together there
//! where slots do not lie as the model takes them, has a model's [`Program`] submit its computing, and brings the results back;
//! all of it on streams, none of it waited for.

mod batch;
mod board;
mod flight;
mod model;
mod program;
mod shown;
mod tensors;
mod transfers;
mod trial;

use std::cell::OnceCell;
use std::sync::{Arc, OnceLock};

use splitrpc_cuda::{Context, Driver, MemoryOptions};
use splitrpc_torch::Library;

pub use board::{Board, Tenant};
pub use model::GpuModel;
pub use program::{Program, Resources, Rows, Stays};
pub use shown::GpuSlots;
pub(crate) use trial::{Reserved, granules};

use crate::config;

/// The GPU, opened when it is first asked for.
#[derive(Debug, Default)]
pub struct LazyGpu {
    settings: config::Gpu,
    opened: OnceCell<Result<Gpu, String>>,
}

impl LazyGpu {
    /// The GPU that these settings name.
    #[must_use]
    pub fn new(settings: config::Gpu) -> LazyGpu {
        prepare(&settings);
        LazyGpu { settings, opened: OnceCell::new() }
    }

    /// The GPU, if it was asked for and there is one.
    pub(crate) fn opened(&self) -> Option<&Gpu> {
        self.opened.get()?.as_ref().ok()
    }

    /// The GPU.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn get(&self) -> Result<&Gpu, String> {
        self.opened.get_or_init(|| Gpu::open(&self.settings)).as_ref().map_err(Clone::clone)
    }
}

/// Sets what PyTorch is to find in the environment, as long as there is one thread: the driver has threads of its own. What cannot be
/// set now is told when PyTorch is asked for.
pub(crate) fn prepare(settings: &config::Gpu) {
    if settings.torch.is_some() {
        let _ = splitrpc_torch::prepare();
    }
}

/// A GPU that was opened.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// What it is called, and by which driver.
    pub name: String,
    /// The device.
    pub context: Context,
    /// How copies are cut up, and how long a launch may take.
    pub settings: config::Gpu,
    /// What the memory of slots is to be good for.
    pub slots: MemoryOptions,
    torch: Arc<OnceLock<Result<Library, String>>>,
}

impl Gpu {
    /// Opens the GPU that the configuration names.
    ///
    /// # Errors
    /// Why there is none, and what to do.
    pub fn open(settings: &config::Gpu) -> Result<Gpu, String> {
        prepare(settings);
        let driver = Driver::load().map_err(|e| format!("no GPU: {e}"))?;
        let devices = driver.devices();
        let device = devices.get(usize::from(settings.device)).ok_or_else(|| {
            format!("no GPU {}: gpu.device is one of the {} that there are, from 0 on", settings.device, devices.len())
        })?;
        let context = driver.context(device).map_err(|e| format!("GPU {}: {e}", device.name))?;
        let name = format!("{}, CUDA {}", device.name, driver.version());
        let rdma = settings.shared && context.device().rdma_virtual_memory;
        let slots = MemoryOptions { exportable: settings.shared, rdma };
        Ok(Gpu { name, context, settings: settings.clone(), slots, torch: Arc::default() })
    }

    /// The same GPU, with slots that a card may write, as far as the device can. The software BlueField has no other way to them than processes
    /// have.
    #[must_use]
    pub fn beside_a_card(&self, emulated: bool) -> Gpu {
        let (mut gpu, device) = (self.clone(), self.context.device());
        gpu.slots.rdma |= device.rdma_virtual_memory;
        gpu.slots.exportable |= emulated && device.posix_descriptors;
        gpu
    }

    /// Why nothing more can be set up on it, if that is so.
    pub(crate) fn outage(&self) -> Option<&'static str> {
        if self.context.is_lost() {
            return Some(
                "the GPU was lost when a model was tried on it, as the log says: take that out and start the agent anew",
            );
        }
        let stuck =
            "a model that was tried on the GPU does not end, as the log says: take that out and start the agent anew";
        self.context.keeps_all().then_some(stuck)
    }

    /// PyTorch's libraries, loaded when they are first asked for.
    ///
    /// # Errors
    /// Why there are none, and what to do.
    pub fn torch(&self) -> Result<Library, String> {
        let open = || {
            let Some(folder) = &self.settings.torch else {
                return Err("needs PyTorch's libraries: set gpu.torch to the folder of libtorch_cuda.so, as \
                            `python3 -c 'import torch; print(torch.__path__[0] + \"/lib\")'` tells"
                    .to_owned());
            };
            splitrpc_torch::prepare().map_err(|error| error.to_string())?;
            Library::open(folder).map_err(|error| error.to_string())
        };
        self.torch.get_or_init(open).clone()
    }
}
