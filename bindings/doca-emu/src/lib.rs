//! The software BlueField: DOCA's C symbols, so that programs written for DOCA run on machines without a card.
//!
//! What may live here: what NVIDIA's libraries and the card behind them do for a program, as far as the project calls them (the functions of
//! `doca_sys::Doca`). What may not: anything of the project's protocol, and anything that makes a program's life easier than the card would.
//!
//! Card and host are two processes of one machine, or one that is both. They share a folder, which stands for the PCIe bus, and beyond that only
//! what an exported mmap grants. Nothing runs by itself: all that the card does happens inside `doca_pe_progress`.
//!
//! A program that breaks a rule whose breach hardware punishes in silence (a task freed in flight, a handle used after its end, a progress engine
//! used by two threads) is told on standard error, `software BlueField: RULE BROKEN: <rule> (in <function>)`, and aborted. Whatever has a documented
//! error code gets that code.
//!
//! It is set up by environment variables, which are read when devices are first listed:
//!
//! - `SPLITRPC_BLUEFIELD`: the folder that is the bus. Without it there are no devices.
//! - `SPLITRPC_BLUEFIELD_SIDE`: `arm`, `host`, or `both`: whose devices this process has.
//! - `SPLITRPC_BLUEFIELD_FAULTS`: what goes wrong, as `seed=7,delay=300,fail=20`. [`splitrpc_emulated_bluefield_faults`] takes the same, at any
//!   time, and says what there is.
//! - `SPLITRPC_BLUEFIELD_GPU`: how a GPU's memory can be registered, `dmabuf`, `peermem`, `dmabuf,peermem` (unless given) or `none`.
//!
//! Where DOCA's documents are silent:
//!
//! - `doca_task_submit` takes a task that no copy can be made of; it completes with `IO_FAILED` and stops its context, as an oversize one does.
//!   `doca_task_try_submit` refuses it with `INVALID_VALUE`.
//! - A copy's bytes go to the destination's data pointer, and its data length is set to their number. So do a producer's in a posted receive.
//! - A GPU's memory is taken by a dma-buf's descriptor and its address, or, as with `nvidia-peermem`, by its address alone, where this process uses CUDA
//!   and the memory was made to be exported to other processes; what was not, `NOT_SUPPORTED`. The Arm's process then has to have CUDA and the same GPU.
//!   The host's own device does not copy it (`IO_FAILED`).
//! - Memory is exported by the host's device only, and imported by the Arm's only.
//! - `doca_mmap_stop` refuses an exported mmap, as documented; destroying it ends the export. Copies that follow complete with `IO_FAILED`.
//! - A progress engine belongs to the thread that first makes it progress, or submits a task to one of its contexts.
//! - A context that lacks what must be set before it starts does so with `INVALID_VALUE`; a server whose name a living one has, with
//!   `ALREADY_EXIST`. A client or server whose consumers or producers are not idle stops with `IN_USE`.
//! - A consumer takes no immediate data unless it was told how much. What a posted receive has no room for fails with `IO_FAILED` at the producer,
//!   and the receive stays posted.
//! - A context whose tasks have not all been freed stops with `IN_PROGRESS`, and is idle by the progress call after the last one was.
//! - A message is with the other side once it is submitted. `AGAIN` means that the other side has not yet received as many as its queue holds.
//! - Progress that handled no item, because a copy has to wait or only a piece of it has arrived, returns 0.
//! - Connections end on both sides after what was sent before. A client's context stops then, and so do consumers and producers.

mod buffer;
mod call;
mod comch;
mod context;
mod device;
mod dma;
mod engine;
mod error;
mod faults;
mod handle;
mod memory;
mod settings;
mod symbols;
mod task;

pub use faults::splitrpc_emulated_bluefield_faults;
