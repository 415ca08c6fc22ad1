//! What crosses a link: submissions to the orchestrator, completions back.
//!
//! Both are plain data that fits the payload of one ring entry ([`DESCRIPTOR_WORDS`] words of 64 bits). A completion
//! takes only the first four words, so that it also fits a DOCA comch immediate (32 bytes).

use splitrpc_wire::{Status, WireError};

/// Payload words of a ring entry.
pub const DESCRIPTOR_WORDS: usize = 6;
/// Payload words that a completion uses.
pub const COMPLETION_WORDS: usize = 4;

/// Names `rows` consecutive slots of a pool, and which of their lives is meant.
///
/// Input and output pools share one numbering, so a run also names a model's outputs, or, where a model answers with
/// its own input, that input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Run {
    /// The pool: one model's tensors of one shape class.
    pub pool: u16,
    /// Consecutive slots, at least 1.
    pub rows: u16,
    /// The first slot.
    pub first: u32,
    /// Counts the lives of the first slot; a stale run names nothing.
    pub generation: u32,
}

impl Run {
    /// No run: an answer without tensors.
    pub const NONE: Run = Run { pool: u16::MAX, rows: 0, first: 0, generation: 0 };
}

/// Names an engine's record of a request, and which of its lives is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RequestKey {
    /// Index of the record.
    pub index: u32,
    /// Counts the record's lives.
    pub generation: u32,
}

/// From the engine to the orchestrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// A request lies complete in its slots; its manifest in their meta area, on the host. The orchestrator owns the slots until it
    /// completes the request.
    Submit {
        /// The request.
        request: RequestKey,
        /// Its input slots.
        input: Run,
        /// The model's handle.
        model: u16,
        /// 0 is the model's default, 1 the highest.
        priority: u8,
        /// Nanoseconds that remain, 0 for no deadline.
        deadline_ns: u64,
        /// Bytes of its tensors.
        payload_bytes: u32,
        /// The link's epoch.
        epoch: u16,
        /// Its tensors lie in its slots in the memory of the device that computes, and not in the host's. Whoever wrote them there is done, so that
        /// what the device does from now on sees them.
        on_device: bool,
    },
    /// Nobody waits for this request any more. It is completed all the same.
    Cancel {
        /// The request.
        request: RequestKey,
    },
    /// A response has left, and its output slots are the orchestrator's again.
    Release {
        /// The output slots.
        output: Run,
    },
}

/// From the orchestrator to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request.
    pub request: RequestKey,
    /// Whether it succeeded.
    pub status: Status,
    /// On success the slots that hold the outputs, whose meta area holds the response's manifest with its path. On
    /// failure [`Run::NONE`], and the input slots' meta area holds a status payload.
    pub output: Run,
}

const SUBMIT: u64 = 1;
const CANCEL: u64 = 2;
const RELEASE: u64 = 3;

impl Submission {
    /// The descriptor as ring words.
    #[must_use]
    pub fn to_words(&self) -> [u64; DESCRIPTOR_WORDS] {
        match *self {
            Submission::Submit { request, input, model, priority, deadline_ns, payload_bytes, epoch, on_device } => [
                SUBMIT | u64::from(priority) << 8 | u64::from(model) << 16 | u64::from(payload_bytes) << 32,
                request_word(request),
                run_word(input),
                u64::from(input.generation) | u64::from(epoch) << 32,
                deadline_ns,
                u64::from(on_device),
            ],
            Submission::Cancel { request } => [CANCEL, request_word(request), 0, 0, 0, 0],
            Submission::Release { output } => [RELEASE, 0, run_word(output), u64::from(output.generation), 0, 0],
        }
    }

    /// The same with so many nanoseconds less that remain, of which one is left: 0 would be none asked for.
    #[must_use]
    pub fn less_time(self, elapsed_ns: u64) -> Submission {
        match self {
            Submission::Submit { deadline_ns, .. } if deadline_ns > 0 => {
                let mut later = self;
                if let Submission::Submit { deadline_ns, .. } = &mut later {
                    *deadline_ns = deadline_ns.saturating_sub(elapsed_ns).max(1);
                }
                later
            }
            other => other,
        }
    }

    /// Reads the descriptor from ring words. Whether what it names exists is for the owner of those things to check.
    ///
    /// # Errors
    /// [`WireError::BadKind`] for an unknown operation.
    pub fn from_words(words: &[u64; DESCRIPTOR_WORDS]) -> Result<Submission, WireError> {
        match words[0] & 0xff {
            SUBMIT => Ok(Submission::Submit {
                request: word_request(words[1]),
                input: word_run(words[2], words[3]),
                model: (words[0] >> 16) as u16,
                priority: (words[0] >> 8) as u8,
                deadline_ns: words[4],
                payload_bytes: (words[0] >> 32) as u32,
                epoch: (words[3] >> 32) as u16,
                on_device: words[5] & 1 != 0,
            }),
            CANCEL => Ok(Submission::Cancel { request: word_request(words[1]) }),
            RELEASE => Ok(Submission::Release { output: word_run(words[2], words[3]) }),
            _ => Err(WireError::BadKind),
        }
    }
}

impl Completion {
    /// The descriptor as ring words, of which only the first [`COMPLETION_WORDS`] are used.
    #[must_use]
    pub fn to_words(&self) -> [u64; DESCRIPTOR_WORDS] {
        [
            u64::from(self.status as u16),
            request_word(self.request),
            run_word(self.output),
            u64::from(self.output.generation),
            0,
            0,
        ]
    }

    /// Reads the descriptor from ring words.
    ///
    /// # Errors
    /// [`WireError::BadStatus`] for an unknown status.
    pub fn from_words(words: &[u64; DESCRIPTOR_WORDS]) -> Result<Completion, WireError> {
        let code = u16::try_from(words[0]).map_err(|_| WireError::BadStatus)?;
        Ok(Completion {
            request: word_request(words[1]),
            status: Status::from_code(code)?,
            output: word_run(words[2], words[3]),
        })
    }
}

fn request_word(request: RequestKey) -> u64 {
    u64::from(request.index) | u64::from(request.generation) << 32
}

fn word_request(word: u64) -> RequestKey {
    RequestKey { index: word as u32, generation: (word >> 32) as u32 }
}

fn run_word(run: Run) -> u64 {
    u64::from(run.pool) | u64::from(run.rows) << 16 | u64::from(run.first) << 32
}

fn word_run(word: u64, generation: u64) -> Run {
    Run { pool: word as u16, rows: (word >> 16) as u16, first: (word >> 32) as u32, generation: generation as u32 }
}
