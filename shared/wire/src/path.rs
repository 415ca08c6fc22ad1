//! The path that a request took: every response carries one.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::WireError;

/// Bytes of a path block in a manifest.
pub const PATH_LEN: usize = 56;
/// How many stages are timed.
pub const STAGES: usize = 8;

macro_rules! named_codes {
    ($(#[$doc:meta])* $ty:ident { $($(#[$vdoc:meta])* $name:ident = $code:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $ty { $($(#[$vdoc])* $name = $code,)+ }

        impl $ty {
            /// The name in reports and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($ty::$name => $text,)+ }
            }

            fn from_code(code: u8) -> Result<$ty, WireError> {
                match code { $($code => Ok($ty::$name),)+ _ => Err(WireError::BadManifest) }
            }
        }
    };
}

named_codes! {
    /// The network edge at which the request arrived.
    Port {
        /// Not known, or none.
        Unknown = 0 "unknown",
        /// TCP.
        Tcp = 1 "tcp",
        /// UDP.
        Udp = 2 "udp",
        /// AF_XDP.
        Xdp = 3 "xdp",
        /// RDMA verbs.
        Verbs = 4 "verbs",
        /// A virtual network under test.
        Sim = 5 "sim",
    }
}

named_codes! {
    /// What carried the payload into its slot.
    Mover {
        /// Not known, or none.
        Unknown = 0 "unknown",
        /// The kernel copied it straight into the slot.
        KernelToSlot = 1 "kernel-to-slot",
        /// The CPU copied it from frames.
        Memcpy = 2 "memcpy",
        /// The NIC wrote it.
        Nic = 3 "nic",
        /// The GPU gathered it from pinned frames.
        GpuGather = 4 "gpu-gather",
        /// A GPU copy engine carried it from pinned memory.
        GpuCopy = 5 "gpu-copy",
        /// DOCA DMA over PCIe.
        DocaDma = 6 "doca-dma",
        /// The whole message was read to the heap, decoded and copied: the bundled way.
        Bundled = 7 "bundled",
    }
}

named_codes! {
    /// The memory in which the model read its input.
    Memory {
        /// Not known, or none.
        Unknown = 0 "unknown",
        /// Ordinary host memory.
        Host = 1 "host",
        /// Page-locked host memory.
        Pinned = 2 "pinned",
        /// CUDA device memory.
        Cuda = 3 "cuda",
    }
}

named_codes! {
    /// What joins the engine to the orchestrator.
    Link {
        /// Not known, or none.
        Unknown = 0 "unknown",
        /// Rings in one process.
        InProcess = 1 "in-process",
        /// Rings in memory shared between processes.
        SharedMemory = 2 "shared-memory",
        /// Rings written by DOCA DMA.
        Doca = 3 "doca",
    }
}

/// A stage of a request's life at the server. Client time less the sum of these is the network's and the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stage {
    /// First byte seen to last byte received.
    Receive = 0,
    /// Last byte received to payload in place.
    Place = 1,
    /// In place to taken up by the batcher.
    Queue = 2,
    /// Taken up to launched: waiting for batch mates.
    Batch = 3,
    /// The runtime's own copies in.
    CopyIn = 4,
    /// The model.
    Compute = 5,
    /// The runtime's own copies out.
    CopyOut = 6,
    /// Outputs ready to the response's header built.
    Respond = 7,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Stage; STAGES] = [
        Stage::Receive,
        Stage::Place,
        Stage::Queue,
        Stage::Batch,
        Stage::CopyIn,
        Stage::Compute,
        Stage::CopyOut,
        Stage::Respond,
    ];

    /// The name in reports and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Receive => "receive",
            Stage::Place => "place",
            Stage::Queue => "queue",
            Stage::Batch => "batch",
            Stage::CopyIn => "copy_in",
            Stage::Compute => "compute",
            Stage::CopyOut => "copy_out",
            Stage::Respond => "respond",
        }
    }
}

/// The path that a request took, as its response tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Network edge.
    pub port: Port,
    /// What carried the payload.
    pub mover: Mover,
    /// Where the model read it.
    pub memory: Memory,
    /// What joins engine and orchestrator.
    pub link: Link,
    /// Whether a software BlueField stood in for a card.
    pub emulated: bool,
    /// Rows of the batch in which the request was computed.
    pub batch_rows: u16,
    /// Payload bytes of the request (tensors only).
    pub payload_bytes: u32,
    /// Bytes that a CPU copied on the way into the slot, the kernel's own copy to user space included.
    pub copied_bytes: u32,
    /// Of those, bytes copied again because they had landed in the wrong place.
    pub fixup_bytes: u32,
    /// Bytes that the runtime copied on the CPU, in and out, beyond its slots.
    pub runtime_copied_bytes: u32,
    /// How often a device had to put the batch together, or its results apart, in its own memory, since slots did not lie as the
    /// model takes them; saturating.
    pub device_compactions: u8,
    /// Nanoseconds in each stage, indexed by [`Stage`], saturating.
    pub stages_ns: [u32; STAGES],
}

impl Default for Path {
    fn default() -> Self {
        Path {
            port: Port::Unknown,
            mover: Mover::Unknown,
            memory: Memory::Unknown,
            link: Link::Unknown,
            emulated: false,
            batch_rows: 0,
            payload_bytes: 0,
            copied_bytes: 0,
            fixup_bytes: 0,
            runtime_copied_bytes: 0,
            device_compactions: 0,
            stages_ns: [0; STAGES],
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    port: u8,
    mover: u8,
    memory: u8,
    link: u8,
    emulated: u8,
    device_compactions: u8,
    batch_rows: U16,
    payload_bytes: U32,
    copied_bytes: U32,
    fixup_bytes: U32,
    runtime_copied_bytes: U32,
    stages_ns: [U32; STAGES],
}

const _: () = assert!(size_of::<Raw>() == PATH_LEN);

impl Path {
    /// CPU copies of each payload byte on the way into the slot: 1 is the kernel's alone. Rounded up, so that a single
    /// byte copied twice shows as 2.
    #[must_use]
    pub fn cpu_copies(&self) -> u32 {
        if self.payload_bytes == 0 { 0 } else { self.copied_bytes.div_ceil(self.payload_bytes) }
    }

    /// Records a stage's duration.
    #[inline]
    pub fn set_stage(&mut self, stage: Stage, ns: u64) {
        self.stages_ns[stage as usize] = u32::try_from(ns).unwrap_or(u32::MAX);
    }

    /// Records a stage's duration in a block that has been written already. Without effect on bytes too short for one.
    #[inline]
    pub fn set_stage_in(block: &mut [u8], stage: Stage, ns: u64) {
        if let Ok((raw, _)) = Raw::mut_from_prefix(block) {
            raw.stages_ns[stage as usize] = U32::new(u32::try_from(ns).unwrap_or(u32::MAX));
        }
    }

    /// A stage's duration in nanoseconds.
    #[must_use]
    #[inline]
    pub fn stage(&self, stage: Stage) -> u32 {
        self.stages_ns[stage as usize]
    }

    /// The block as it stands in a manifest.
    #[must_use]
    #[inline]
    pub fn to_bytes(&self) -> [u8; PATH_LEN] {
        zerocopy::transmute!(Raw {
            port: self.port as u8,
            mover: self.mover as u8,
            memory: self.memory as u8,
            link: self.link as u8,
            emulated: u8::from(self.emulated),
            device_compactions: self.device_compactions,
            batch_rows: U16::new(self.batch_rows),
            payload_bytes: U32::new(self.payload_bytes),
            copied_bytes: U32::new(self.copied_bytes),
            fixup_bytes: U32::new(self.fixup_bytes),
            runtime_copied_bytes: U32::new(self.runtime_copied_bytes),
            stages_ns: self.stages_ns.map(U32::new),
        })
    }

    /// Parses a block.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::BadManifest`] for an unknown code, [`WireError::Reserved`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Path, WireError> {
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
        if raw.emulated > 1 {
            return Err(WireError::Reserved);
        }
        Ok(Path {
            port: Port::from_code(raw.port)?,
            mover: Mover::from_code(raw.mover)?,
            memory: Memory::from_code(raw.memory)?,
            link: Link::from_code(raw.link)?,
            emulated: raw.emulated == 1,
            device_compactions: raw.device_compactions,
            batch_rows: raw.batch_rows.get(),
            payload_bytes: raw.payload_bytes.get(),
            copied_bytes: raw.copied_bytes.get(),
            fixup_bytes: raw.fixup_bytes.get(),
            runtime_copied_bytes: raw.runtime_copied_bytes.get(),
            stages_ns: raw.stages_ns.map(U32::get),
        })
    }
}
