//! The two ends of a link, whatever carries it.

use crate::{Completion, Faults, Submission};

/// The far end has not yet taken what was sent; try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The engine's end of a link.
pub trait NicLink {
    /// Hands a submission to the orchestrator.
    ///
    /// # Errors
    /// [`Full`], and nothing was sent.
    fn submit(&mut self, submission: &Submission) -> Result<(), Full>;

    /// The next completion, if one has come. Malformed ones are counted and skipped.
    fn completion(&mut self) -> Option<Completion>;

    /// What this end has seen amiss.
    fn faults(&self) -> Faults;
}

/// The orchestrator's end of a link.
pub trait HostLink {
    /// The next submission, if one has come. Malformed ones are counted and skipped.
    fn submission(&mut self) -> Option<Submission>;

    /// Hands a completion to the engine.
    ///
    /// # Errors
    /// [`Full`], and nothing was sent.
    fn complete(&mut self, completion: &Completion) -> Result<(), Full>;

    /// What this end has seen amiss.
    fn faults(&self) -> Faults;
}

/// No link yet: nothing comes, and nothing can be handed over.
impl HostLink for () {
    fn submission(&mut self) -> Option<Submission> {
        None
    }

    fn complete(&mut self, _: &Completion) -> Result<(), Full> {
        Err(Full)
    }

    fn faults(&self) -> Faults {
        Faults::default()
    }
}
