//! Answers on their way from the host, and those in its stead.

use splitrpc_arena::{META_BYTES, Run};
use splitrpc_ring::Completion;
use splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
use splitrpc_wire::{Manifest, Path, Stage, Status, StatusPayload};

use super::super::flight::{Flight, State};
use super::{Inner, STATUS_LEN};
use crate::completion::copy_manifest;

impl Inner {
    /// The host has answered a request.
    pub(super) fn completed(&mut self, completion: &Completion) {
        let ticket = self.ticket(completion.request);
        let Some(ticket) = ticket.filter(|ticket| self.flights[*ticket as usize].state == State::Submitted) else {
            self.faults.malformed += 1;
            return;
        };
        let flight = &mut self.flights[ticket as usize];
        (flight.completion, flight.answered, flight.state) = (*completion, self.now, State::Head);
        let ok = completion.status == Status::Ok;
        if ok && completion.output.pool <= self.last_input && completion.output != flight.input {
            // Those are another request's, or nobody's: the engine says so.
            self.faults.malformed += 1;
            return self.deliver(ticket);
        }
        let (run, len) = if ok { (completion.output, META_BYTES) } else { (flight.input, STATUS_LEN) };
        if flight.bring_head(&self.arena, run, len) {
            self.work.push_back(ticket);
        } else {
            self.deliver(ticket);
        }
    }

    /// What the host says of its answer is here.
    pub(super) fn head_here(&mut self, ticket: u32) {
        let Completion { status, output, .. } = self.flights[ticket as usize].completion;
        if status != Status::Ok {
            return self.deliver(ticket);
        }
        self.look_at_manifest(output);
        let flight = &mut self.flights[ticket as usize];
        let sound =
            Manifest::parse(&*self.meta).is_ok_and(|manifest| flight.bring_body(&self.arena, output, &manifest));
        flight.state = State::Body;
        if sound && flight.has_more() {
            self.work.push_back(ticket);
        } else {
            // Of one that makes no sense, the engine says so.
            self.answer_here(ticket);
        }
    }

    /// The last of an answer's tensors is here.
    pub(super) fn body_here(&mut self, ticket: u32) {
        // While they came, others' manifests may have been looked at.
        self.look_at_manifest(self.flights[ticket as usize].completion.output);
        self.answer_here(ticket);
    }

    /// The whole answer is here, and its manifest was looked at last: the card's own stages are added to what it says of itself.
    pub(super) fn answer_here(&mut self, ticket: u32) {
        let flight = &self.flights[ticket as usize];
        let meta = self.arena.meta(flight.completion.output);
        if let Some(meta) = meta.and_then(|meta| meta.slice(MANIFEST_HEAD_LEN, splitrpc_wire::path::PATH_LEN))
            && Manifest::parse(&*self.meta).is_ok_and(|manifest| manifest.path().is_some())
            && let Ok(mut path) = Path::parse(&self.meta[MANIFEST_HEAD_LEN..][..splitrpc_wire::path::PATH_LEN])
        {
            let out = u64::from(path.stage(Stage::CopyOut)) + self.now.since(flight.answered);
            path.set_stage(Stage::Place, flight.copy_in);
            path.set_stage(Stage::CopyOut, out);
            meta.copy_from(&path.to_bytes());
        }
        self.deliver(ticket);
    }

    /// Copies the manifest beside these slots to where it can be parsed.
    pub(super) fn look_at_manifest(&mut self, run: Run) {
        self.meta[..MANIFEST_HEAD_LEN].fill(0);
        if let Some(meta) = self.arena.meta(run) {
            copy_manifest(meta, &mut self.meta);
        }
    }

    pub(super) fn deliver(&mut self, ticket: u32) {
        self.completions.push_back(self.flights[ticket as usize].completion);
        self.release(ticket);
    }

    /// Answers a request in the host's stead.
    pub(super) fn land(&mut self, ticket: u32, status: Status, text: &str) {
        let Flight { request, input, .. } = self.flights[ticket as usize];
        if let Some(meta) = self.arena.meta(input) {
            let mut bytes = [0; STATUS_LEN as usize];
            let len = StatusPayload { status, retry_after_us: 0, text }.write(&mut bytes);
            meta.copy_from(&bytes[..len]);
        }
        self.flights[ticket as usize].completion = Completion { request, status, output: Run::NONE };
        self.deliver(ticket);
    }
}
