//! Work that is recorded once for all slots: where on the host its tensors lie, it reads from a page as it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use splitrpc_arena::Run;
use splitrpc_cuda::Executable;

use crate::carry::Entries;
use crate::error::GpuError;
use crate::kernel::Operand;
use crate::lane::Lane;
use crate::pages::{Pages, Words};
use crate::work::Work;

/// Tensors of all of a lane's recordings of this kind, at most.
const WORDS: usize = 2048;

/// An address for each tensor.
#[repr(C, align(4096))]
pub(crate) struct Addresses([AtomicU64; WORDS]);

// SAFETY: the device writes nothing of it.
unsafe impl Words for Addresses {}

/// A lane's recordings of this kind.
#[derive(Default)]
pub(crate) struct Told {
    // Dropped in this order.
    pub(crate) all: Vec<Recorded>,
    addresses: Option<Arc<Pages<Addresses>>>,
}

pub(crate) struct Recorded {
    executable: Executable,
    inputs: Vec<Place>,
    outputs: Vec<Place>,
}

/// The beginning of a run's tensor. Once it is done for the first time, what its word ever holds is the address of as many bytes in host slots.
struct Place {
    word: usize,
    tensor: u16,
    len: u32,
}

/// Work of one lane that was recorded for all slots: see [`Lane::record_for_all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForAll(usize);

/// A tensor of so many bytes, and where on the device they are meanwhile.
pub type Carried = (u16, u32, Operand);

impl Lane {
    /// Records kernels that carry tensors from host slots to where the operands are, what `compute` submits, and kernels that carry
    /// others back to host slots. Which slots those are is told when it is [done](Lane::replay_for). `None` where so much is recorded already
    /// that it has to go without, or there are more tensors than one kernel carries.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`] and [`GpuError::NoBuffer`] for an operand that does not hold its tensor; those of `compute`; the driver's.
    pub fn record_for_all(
        &mut self,
        inputs: &[Carried],
        outputs: &[Carried],
        compute: impl Fn(&Work<'_>) -> Result<(), GpuError>,
    ) -> Result<Option<ForAll>, GpuError> {
        let first: usize =
            self.held.told.all.iter().map(|recorded| recorded.inputs.len() + recorded.outputs.len()).sum();
        if first + inputs.len() + outputs.len() > WORDS {
            return Ok(None);
        }
        let addresses = match &self.held.told.addresses {
            Some(addresses) => Arc::clone(addresses),
            None => {
                let words = Addresses([const { AtomicU64::new(0) }; WORDS]);
                let addresses = Pages::new(self.held.arena.context(), words)?;
                self.held.told.addresses.insert(addresses).clone()
            }
        };
        let places = |first: usize, carried: &[Carried]| -> Vec<Place> {
            (first..).zip(carried).map(|(word, &(tensor, len, _))| Place { word, tensor, len }).collect()
        };
        let (ins, outs) = (places(first, inputs), places(first + inputs.len(), outputs));
        let work = self.work();
        let entries = |carried: &[Carried]| {
            let side = |(_, len, at): &Carried| Ok((work.place(at, *len)?, *len));
            Ok::<_, GpuError>(Entries::told(&carried.iter().map(side).collect::<Result<Vec<_>, GpuError>>()?))
        };
        let (Some(to), Some(from)) = (entries(inputs)?, entries(outputs)?) else { return Ok(None) };
        let word = |word: usize| addresses.address() + (word * size_of::<u64>()) as u64;
        let executable = self.capture(|work| {
            work.carry_told(true, &to, word(first))?;
            compute(work)?;
            work.carry_told(false, &from, word(first + inputs.len()))
        })?;
        let Some(executable) = executable else { return Ok(None) };
        let told = &mut self.held.told;
        told.all.push(Recorded { executable, inputs: ins, outputs: outs });
        Ok(Some(ForAll(told.all.len() - 1)))
    }

    /// Does work again that this lane has recorded so, on these slots. The last time has to be over: what is still under way may go on with these.
    ///
    /// # Errors
    /// [`GpuError::NoSlots`]; [`GpuError::NoBuffer`] where the lane has no such recording; the driver's, also those of earlier work.
    pub fn replay_for(&self, recorded: ForAll, input: Run, output: Run) -> Result<(), GpuError> {
        let told = &self.held.told;
        let (Some(one), Some(addresses)) = (told.all.get(recorded.0), &told.addresses) else {
            return Err(GpuError::NoBuffer);
        };
        let work = self.work();
        tell(&work, addresses, input, &one.inputs)?;
        tell(&work, addresses, output, &one.outputs)?;
        // SAFETY: as for `replay`; and each word that it reads holds an address of as many bytes of the arena's host slots.
        Ok(unsafe { self.stream.launch_graph(&one.executable) }?)
    }
}

fn tell(work: &Work<'_>, addresses: &Addresses, run: Run, places: &[Place]) -> Result<(), GpuError> {
    places.iter().try_for_each(|place| {
        let address = work.host(run, place.tensor, place.len)?;
        addresses.0[place.word].store(address, Ordering::Release);
        Ok(())
    })
}
