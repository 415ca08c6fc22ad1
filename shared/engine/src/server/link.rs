//! The engine's side of the link: submissions out, completions in.

use splitrpc_ring::{Completion, RequestKey, Run, Submission};
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{Manifest, Path, Stage, Status, StatusPayload};

use super::{Server, State};
use crate::Time;
use crate::congestion::Congestion;
use crate::message::Sizes;
use crate::model::holds;

/// What the slots' meta area said about a completion, parsed by the caller.
#[derive(Clone, Copy, Debug)]
pub enum CompletionHead<'m> {
    /// Success: the manifest of the outputs.
    Manifest(Manifest<'m>),
    /// Failure: what to tell the client.
    Status(StatusPayload<'m>),
    /// The meta area held neither.
    Nonsense,
}

impl<C: Congestion> Server<'_, C> {
    /// The next submission for the link, left in place until [`Server::submission_taken`].
    #[must_use]
    pub fn next_submission(&self) -> Option<&Submission> {
        self.submissions.front()
    }

    /// The link took the submission that [`Server::next_submission`] showed.
    pub fn submission_taken(&mut self) {
        if let Some(Submission::Submit { request, .. }) = self.submissions.pop() {
            // A record whose submission waits is not used again, so this is the life that was submitted.
            self.requests[request.index as usize].taken = true;
        }
    }

    /// The input slots of a request in the orchestrator's hands. Where such a request failed, their meta area says why.
    #[must_use]
    pub fn input_of(&self, request: RequestKey) -> Option<Run> {
        let slot = self.requests.get(request.index as usize)?;
        let held = matches!(slot.state, State::Submitted | State::Orphaned);
        (slot.generation == request.generation && held).then_some(slot.input)
    }

    /// Takes a completion back from the orchestrator, whose word on what it names is checked.
    pub fn handle_completion(&mut self, now: Time, completion: &Completion, head: &CompletionHead<'_>) {
        let index = completion.request.index;
        let held = self.requests.get(index as usize).is_some_and(|slot| {
            slot.generation == completion.request.generation
                && matches!(slot.state, State::Submitted | State::Orphaned)
                && slot.taken
        });
        if !held {
            self.stats.stray_completions += 1;
            return;
        }
        if self.requests[index as usize].state == State::Orphaned {
            self.bury(index, completion.output);
            return;
        }
        let (status, text) = match (completion.status, head) {
            (Status::Ok, CompletionHead::Manifest(manifest)) => {
                if self.may_answer(index, completion.output, manifest) {
                    self.respond(now, index, completion.output, manifest);
                    return;
                }
                (Status::Internal, "the response names slots that cannot hold it")
            }
            (Status::Ok, _) => (Status::Internal, "the response's manifest is malformed"),
            (status, CompletionHead::Status(payload)) => (status, payload.text),
            (status, _) => (status, ""),
        };
        self.drop_output(index, completion.output);
        self.fail(now, index, status, text);
    }

    /// Whether these slots may be what the request is answered with: the orchestrator's own, or the request's input where
    /// the response fits it, or none where the response has no data.
    fn may_answer(&self, index: u32, output: Run, manifest: &Manifest<'_>) -> bool {
        if output == Run::NONE {
            return manifest.data_len() == 0;
        }
        match self.slots.layout(output.pool) {
            None => true,
            Some(layout) => {
                output == self.requests[index as usize].input && holds(layout, output.rows, &Sizes::of(manifest))
            }
        }
    }

    /// A request that nobody waits for came back.
    fn bury(&mut self, index: u32, output: Run) {
        self.drop_output(index, output);
        self.free_input(index);
        self.retire(index);
    }

    fn drop_output(&mut self, index: u32, output: Run) {
        // Input slots are not the orchestrator's to be given back to.
        if output != Run::NONE
            && output != self.requests[index as usize].input
            && self.slots.layout(output.pool).is_none()
        {
            self.push_submission(Submission::Release { output });
        }
    }

    fn respond(&mut self, now: Time, index: u32, output: Run, manifest: &Manifest<'_>) {
        let session = self.requests[index as usize].session;
        let limit = self.sessions[session as usize].max_response;
        let total = manifest.as_bytes().len() as u64 + u64::from(manifest.data_len());
        if total > u64::from(limit) {
            self.drop_output(index, output);
            self.fail(now, index, Status::TooLarge, "the response exceeds what the client takes");
            return;
        }
        let stream = self.is_stream(session);
        let info = if stream { self.config.stream_path } else { self.config.datagram_path };
        if output != self.requests[index as usize].input {
            self.free_input(index);
        }
        let slot = &mut self.requests[index as usize];
        slot.state = State::Responding;
        slot.settled_at = now;
        slot.output = output;
        slot.header_built = manifest.path().is_none();
        slot.head_len = manifest.as_bytes().len() as u16;
        slot.head[..manifest.as_bytes().len()].copy_from_slice(manifest.as_bytes());
        if let Some(told) = manifest.path() {
            let mut path = Path {
                port: info.port,
                // The host knows better where it did not read what the port had put into the slots.
                mover: if told.mover == Mover::Unknown { info.mover } else { told.mover },
                memory: if told.memory == Memory::Unknown { info.memory } else { told.memory },
                link: info.link,
                emulated: info.emulated,
                payload_bytes: slot.incoming.received() as u32,
                copied_bytes: slot.copied,
                fixup_bytes: slot.fixup,
                ..*told
            };
            path.set_stage(Stage::Receive, slot.arrived_at.since(slot.begun_at));
            let block = path.to_bytes();
            slot.path_block().copy_from_slice(&block);
        }
        let head_len = slot.head_len;
        slot.outgoing.start(&Sizes::of(manifest), head_len);
        self.sessions[session as usize].in_flight -= 1;
        self.sessions[session as usize].leaving += 1;
        self.count_end(self.requests[index as usize].model, Status::Ok);
        self.enqueue_response(session, index);
        if !stream {
            self.request_timer = self.request_timer.min(now + self.config.keep_reply);
            self.activate(session);
        }
    }
}
