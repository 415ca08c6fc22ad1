//! What the orchestrator's end of a link tells in the 32 bytes of a DOCA comch immediate, where no ring carries completions.
//!
//! ```text
//! byte 0..2    a completion's status; else 0
//! byte 2       what it is: 1 a completion, 2 nothing more than how many were taken, 3 that the orchestrator goes to sleep,
//!              4 that it does so in want of output slots
//! byte 3       0
//! byte 4..8    how many submissions were taken, all that ever were, modulo 2^32
//! byte 8..32   a completion's request and output; else 0
//! ```

use splitrpc_wire::WireError;

use crate::descriptor::{COMPLETION_WORDS, Completion, DESCRIPTOR_WORDS};

/// Bytes of an immediate.
pub const IMMEDIATE_BYTES: usize = 8 * COMPLETION_WORDS;

/// One immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Immediate {
    /// How many submissions were taken from the ring, modulo 2^32: their places can be used again.
    pub taken: u32,
    /// What else it tells.
    pub tells: Tells,
}

/// What an immediate tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// A request is done.
    Completion(Completion),
    /// The orchestrator is awake.
    Awake,
    /// The orchestrator sleeps unless there are more submissions than it has taken; the next one has to rouse it, but for one that only
    /// releases slots, unless it wants them. What is released to nobody who wants it can wait for the next request.
    Sleeps {
        /// Requests wait for output slots.
        wants_slots: bool,
    },
}

const COMPLETION: u64 = 1;
const AWAKE: u64 = 2;
const SLEEPS: u64 = 3;
const WANTS_SLOTS: u64 = 4;
const KIND: u32 = 16;
const TAKEN: u32 = 32;

impl Immediate {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; IMMEDIATE_BYTES] {
        let (kind, words) = match &self.tells {
            Tells::Completion(completion) => (COMPLETION, completion.to_words()),
            Tells::Awake => (AWAKE, [0; DESCRIPTOR_WORDS]),
            Tells::Sleeps { wants_slots: false } => (SLEEPS, [0; DESCRIPTOR_WORDS]),
            Tells::Sleeps { wants_slots: true } => (WANTS_SLOTS, [0; DESCRIPTOR_WORDS]),
        };
        let mut bytes = [0; IMMEDIATE_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let first = words[0] | kind << KIND | u64::from(self.taken) << TAKEN;
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes
    }

    /// Reads it. Whether what it names exists is for the owner of those things to check.
    ///
    /// # Errors
    /// [`WireError`] for one of another length, an unknown kind or status.
    pub fn from_bytes(bytes: &[u8]) -> Result<Immediate, WireError> {
        if bytes.len() != IMMEDIATE_BYTES {
            return Err(WireError::Truncated);
        }
        let mut words = [0; DESCRIPTOR_WORDS];
        for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(from.try_into().expect("chunks of eight"));
        }
        let (kind, taken) = (words[0] >> KIND & 0xffff, (words[0] >> TAKEN) as u32);
        words[0] &= 0xffff;
        let tells = match kind {
            COMPLETION => Tells::Completion(Completion::from_words(&words)?),
            AWAKE => Tells::Awake,
            SLEEPS => Tells::Sleeps { wants_slots: false },
            WANTS_SLOTS => Tells::Sleeps { wants_slots: true },
            _ => return Err(WireError::BadKind),
        };
        Ok(Immediate { taken, tells })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use splitrpc_wire::Status;

    use super::*;
    use crate::{RequestKey, Run};

    #[test]
    fn what_is_told_is_heard() {
        let completion = Completion {
            request: RequestKey { index: 7, generation: u32::MAX },
            status: Status::Cancelled,
            output: Run { pool: 0xfffe, rows: 3, first: u32::MAX, generation: 9 },
        };
        let sleeps = [false, true].map(|wants_slots| Tells::Sleeps { wants_slots });
        for tells in [Tells::Completion(completion), Tells::Awake].into_iter().chain(sleeps) {
            for taken in [0, 1, u32::MAX] {
                let immediate = Immediate { taken, tells };
                assert_eq!(Immediate::from_bytes(&immediate.to_bytes()), Ok(immediate));
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let good = Immediate { taken: 5, tells: Tells::Awake }.to_bytes();
        assert!(Immediate::from_bytes(&good[..31]).is_err() && Immediate::from_bytes(&[]).is_err());
        for (byte, value) in [(2, 0), (2, 5), (3, 1)] {
            let mut bad = good;
            bad[byte] = value;
            assert_eq!(Immediate::from_bytes(&bad), Err(WireError::BadKind));
        }
        let mut bad = good;
        (bad[0], bad[1], bad[2]) = (0xff, 0xff, 1);
        assert_eq!(Immediate::from_bytes(&bad), Err(WireError::BadStatus));
    }
}
