//! What computes beside the data thread, over slots in a device's own memory.

use splitrpc_ring::Run;
use splitrpc_wire::TensorDesc;

use super::{Batch, Launch, RuntimeError};

/// When a request is served: its priority, and what tells those of one priority apart. Less goes first.
pub type Turn = (u8, u64);

/// A device, as the orchestrator of one shard sees it. Every call returns at once; what it asks for happens later, beside the
/// data thread, which looks again and again how far that has come.
///
/// A model has *lanes*, each of which has one batch at a time. From [`Device::begin`] until [`Device::ended`] has told how it
/// ended, the device may use the inputs' slots in its own memory, and write the outputs' slots.
pub trait Device: Send {
    /// Lanes of a model.
    fn lanes(&self, model: u16) -> u16;

    /// A lane without a batch, for one whose most urgent request has this priority; `None` while those are all taken.
    fn idle_lane(&self, model: u16, priority: u8) -> Option<u16>;

    /// Payloads of at least so many bytes are told of while they arrive; `u32::MAX` is none.
    fn early_bytes(&self) -> u32 {
        u32::MAX
    }

    /// Bytes of a tensor are in their slots, while others are yet to come. The request may never be submitted, and the slots be
    /// another's of this or another model.
    fn arriving(&mut self, _request: u32, _input: Run, _tensor: u16, _offset: u32, _len: u32) {}

    /// All of a request's inputs are in their slots in the device's own memory, put there by somebody else, and not in the host's: they are not
    /// copied. Called before the request is fetched or begun. Returns whether that can be relied on.
    fn present(&mut self, _request: u32, _input: Run) -> bool {
        false
    }

    /// How many nanoseconds it will be until inputs of so many bytes are there that are fetched now: what goes before them is known, and how fast
    /// copies were of late. 0 where nothing waits, or that is not known.
    fn booked(&self, _model: u16, _turn: Turn, _bytes: u64) -> u64 {
        0
    }

    /// Begins to copy a request's inputs, of which a batch is yet to be made.
    fn fetch(&mut self, model: u16, request: u32, turn: Turn, input: Run, tensors: &[TensorDesc]);

    /// A request whose copies may have begun will be in no batch.
    fn forget(&mut self, request: u32);

    /// Whether it launches anything ahead for a model: see [`Device::launch_ahead`].
    fn foresees(&self, _model: u16) -> bool {
        false
    }

    /// Has an idle lane launch, before it has come, a request of one row that will lie in `input` and be answered in `output`: the launch waits
    /// for it on the device. Returns whether it does. The output's slots are the device's then until a batch of just that request has
    /// taken them, or [`Device::is_over`].
    fn launch_ahead(&mut self, _model: u16, _lane: u16, _input: Run, _output: Run) -> bool {
        false
    }

    /// The idle lane, of those for a request of this priority, whose launch waits for it in these slots.
    fn waiting_lane(&self, _model: u16, _priority: u8, _input: Run) -> Option<u16> {
        None
    }

    /// The request that a lane's launch waits for will not come.
    fn withdraw(&mut self, _model: u16, _lane: u16) {}

    /// Whether what was launched ahead on a lane is done, and was for nothing: it was withdrawn, another batch began there, or it has
    /// waited for too long. To be asked as long as it is so.
    fn is_over(&mut self, _model: u16, _lane: u16) -> bool {
        true
    }

    /// Begins a batch on an idle lane; what waits there is for this batch or for nothing. `requests` are those of its items, in the same order, and `turn` is that of the first to have
    /// been served.
    fn begin(&mut self, model: u16, lane: u16, turn: Turn, requests: &[u32], batch: &Batch);

    /// The requests of a lane's batch are answered, since it takes too long, and their numbers are given to others; so are their inputs' slots,
    /// into which the device lets nothing come until the batch has ended.
    fn give_up(&mut self, model: u16, lane: u16);

    /// Whether it is worth while to look what has come further. Costs next to nothing.
    fn has_news(&self) -> bool;

    /// Whether it keeps hold of something that it lets go of in [`Device::pump`], once there has been nothing to do for a millisecond.
    fn holds_on(&self) -> bool {
        false
    }

    /// Whether nothing works on it any more, in this process.
    fn is_lost(&self) -> bool {
        false
    }

    /// Goes on with copies. Returns whether any have come further.
    fn pump(&mut self) -> bool;

    /// How the batch of a lane has ended, with one answer for each item in `launch`, which comes empty; the lane is idle then.
    /// `None` while it has not.
    fn ended(&mut self, model: u16, lane: u16, batch: &Batch, launch: &mut Launch) -> Option<Result<(), RuntimeError>>;
}
