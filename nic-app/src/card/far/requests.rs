//! Requests on their way to the host, and those that still arrive.

use splitrpc_arena::Run;
use splitrpc_ring::{Full, RequestKey, Submission};
use splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
use splitrpc_wire::{Manifest, Status};

use super::super::flight::{Flight, NONE, State};
use super::{GONE, Inner, Outgoing};
use crate::arrivals::Arrival;
use crate::completion::copy_manifest;

impl Inner {
    pub(super) fn submit(&mut self, submission: &Submission) -> Result<(), Full> {
        let is_request = matches!(submission, Submission::Submit { .. });
        if self.lost.is_some() && !is_request {
            return Ok(());
        }
        if self.outgoing.len() == self.outgoing.capacity() {
            return Err(Full);
        }
        match *submission {
            Submission::Submit { request, input, .. } => return self.take_off(submission, request, input),
            Submission::Cancel { request } => {
                let ticket = self.ticket(request);
                match ticket.map(|ticket| &mut self.flights[ticket as usize]) {
                    Some(flight) if matches!(flight.state, State::Copying | State::Copied) => flight.cancelled = true,
                    _ => self.outgoing.push_back(Outgoing::Cancel(submission.to_words())),
                }
            }
            Submission::Release { .. } => self.outgoing.push_back(Outgoing::Release(submission.to_words())),
        }
        Ok(())
    }

    /// A request is complete in its slots here.
    pub(super) fn take_off(&mut self, submission: &Submission, request: RequestKey, input: Run) -> Result<(), Full> {
        let ticket = self.board(request, input).ok_or(Full)?;
        self.early.retain(|early| *early != ticket);
        let (arena, meta) = (&self.arena, &mut self.meta);
        meta[..MANIFEST_HEAD_LEN].fill(0);
        if let Some(area) = arena.meta(input) {
            copy_manifest(area, meta);
        }
        let flight = &mut self.flights[ticket as usize];
        (flight.state, flight.submission, flight.submitted) = (State::Copying, *submission, self.now);
        if let Submission::Submit { on_device, .. } = &mut flight.submission {
            *on_device = self.reach.carrier.is_on_device(input.pool);
        }
        let known = Manifest::parse(&**meta).is_ok_and(|manifest| flight.complete(arena, &manifest));
        if self.lost.is_some() {
            self.land(ticket, Status::ConnectionLost, GONE);
        } else if known {
            self.work.push_back(ticket);
            self.pump();
        } else {
            self.land(ticket, Status::Internal, "the request's manifest does not describe its slots");
        }
        Ok(())
    }

    /// Some of a request is here.
    pub(super) fn arriving(&mut self, arrival: &Arrival) {
        let Arrival { request, run, tensor, offset, len } = *arrival;
        if self.lost.is_some() {
            return;
        }
        let known = self.ticket(request).is_some();
        let Some(ticket) = self.board(request, run) else { return };
        let flight = &mut self.flights[ticket as usize];
        if flight.state != State::Early {
            return;
        }
        if !known {
            self.early.push(ticket);
        }
        flight.arrived(&self.arena, tensor, offset, offset.saturating_add(len));
        self.pump_early(ticket);
    }

    /// The ticket of a request in these slots, which gets one if it has none. There is none while something of the slots' last request is under way.
    pub(super) fn board(&mut self, request: RequestKey, input: Run) -> Option<u32> {
        if let Some(ticket) = self.ticket(request) {
            return Some(ticket);
        }
        let record = *self.tickets.get(request.index as usize)?;
        if record != NONE {
            self.abandon(record);
        }
        let mut index = 0;
        while let Some(&ticket) = self.early.get(index) {
            if self.flights[ticket as usize].overlaps(input) {
                self.abandon(ticket);
                if self.flights[ticket as usize].state == State::Abandoned {
                    return None;
                }
            } else {
                index += 1;
            }
        }
        let ticket = self.free.pop()?;
        self.flights[ticket as usize].begin(request, input);
        self.tickets[request.index as usize] = ticket;
        Some(ticket)
    }

    /// A request that was not submitted never will be.
    pub(super) fn abandon(&mut self, ticket: u32) {
        let flight = &mut self.flights[ticket as usize];
        let index = flight.request.index as usize;
        if self.tickets[index] == ticket {
            self.tickets[index] = NONE;
        }
        if flight.pending > 0 {
            flight.state = State::Abandoned;
        } else {
            self.release(ticket);
        }
    }

    pub(super) fn release(&mut self, ticket: u32) {
        let index = self.flights[ticket as usize].request.index as usize;
        if self.tickets[index] == ticket {
            self.tickets[index] = NONE;
        }
        self.early.retain(|early| *early != ticket);
        // Where it still stands among those with work, nothing of it is to be begun.
        self.flights[ticket as usize] = Flight::FREE;
        self.free.push(ticket);
    }

    pub(super) fn ticket(&self, request: RequestKey) -> Option<u32> {
        let ticket = *self.tickets.get(request.index as usize)?;
        (ticket != NONE && self.flights[ticket as usize].request == request).then_some(ticket)
    }
}
