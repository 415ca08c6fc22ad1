//! Requests' records: taken, found, taken from their session, freed.

use splitrpc_ring::{RequestKey, Run};
use splitrpc_wire::Header;

use super::{RequestSlot, Server, SessionSlot, State};
use crate::Time;
use crate::config::NO_INDEX;
use crate::congestion::Congestion;
use crate::message::Sizes;
use crate::time::US;

impl<C: Congestion> Server<'_, C> {
    /// Takes a free record, of which there must be one, for a request that has its slots.
    pub(super) fn open_request(
        &mut self,
        now: Time,
        session: u32,
        header: &Header,
        priority: u8,
        input: Run,
        sizes: &Sizes,
    ) -> u32 {
        let index = self.free_request;
        let owner = &mut self.sessions[session as usize];
        let slot = &mut self.requests[index as usize];
        self.free_request = slot.next;
        self.live_requests += 1;
        slot.state = State::Receiving;
        slot.id = header.request;
        slot.session = session;
        slot.next = owner.first;
        slot.next_out = NO_INDEX;
        slot.model = header.model;
        slot.priority = priority;
        slot.input = input;
        slot.payer = owner.id;
        slot.output = Run::NONE;
        slot.incoming.start(sizes);
        slot.head_len = 0;
        slot.begun_at = now;
        slot.settled_at = Time::default();
        slot.copied = 0;
        slot.fixup = 0;
        slot.progress_mark = (0, now);
        slot.partial = 0;
        slot.taken = false;
        slot.header_built = false;
        slot.handed_out = false;
        slot.kept = false;
        slot.told = false;
        slot.last_resend = Time::default();
        slot.deadline = match header.deadline_us {
            0 => Time::NEVER,
            us => now + u64::from(us) * US,
        };
        owner.first = index;
        owner.in_flight += 1;
        let share = self.share(session, input.pool);
        self.shares[share] += u32::from(input.rows);
        let slot = &self.requests[index as usize];
        self.request_timer = self.request_timer.min(slot.deadline).min(now + self.config.progress_grace);
        index
    }

    /// Gives a request's input slots back. The engine has handed them out, and nobody freed them since.
    pub(super) fn free_input(&mut self, index: u32) {
        let RequestSlot { input, payer, .. } = self.requests[index as usize];
        let freed = self.slots.free(input);
        debug_assert!(freed.is_ok());
        let session = Self::session_index(payer);
        if self.sessions.get(session as usize).is_some_and(|owner| owner.id == payer) {
            let share = self.share(session, input.pool);
            self.shares[share] -= u32::from(input.rows);
        }
    }

    /// Whether a client may take so many more slots of a pool, as far as the others are concerned. It never holds more than
    /// it leaves free, so that who comes later finds some however greedy a few are. The first request may always.
    pub(super) fn has_share(&self, session: u32, pool: u16, rows: u16) -> bool {
        let held = self.shares[self.share(session, pool)];
        let (rows, free) = (u32::from(rows), self.slots.available(pool));
        // Where it would not fit anyway, that is what the client should hear.
        held == 0 || held + rows <= free || free < rows
    }

    /// Forgets what a session holds; the slots that are still taken count for nobody from now on.
    pub(super) fn clear_shares(&mut self, session: u32) {
        let (pools, first) = (self.pools.len(), session as usize * self.pools.len());
        self.shares[first..first + pools].fill(0);
    }

    /// Where a session's share of a pool stands.
    fn share(&self, session: u32, pool: u16) -> usize {
        // Ids are usually dense from 0.
        let position = match self.pools.get(usize::from(pool)) {
            Some((id, _)) if *id == pool => usize::from(pool),
            // Pools are in the order of their ids, and slots come from no others.
            _ => self.pools.partition_point(|(id, _)| *id < pool),
        };
        session as usize * self.pools.len() + position
    }

    pub(super) fn find_request(&self, session: u32, id: u64) -> Option<u32> {
        let SessionSlot { first, recent, .. } = self.sessions[session as usize];
        // A record that is free or was taken from its session names none.
        if self.requests.get(recent as usize).is_some_and(|slot| slot.session == session && slot.id == id) {
            return Some(recent);
        }
        let mut index = first;
        while index != NO_INDEX {
            let slot = &self.requests[index as usize];
            if slot.id == id {
                return Some(index);
            }
            index = slot.next;
        }
        None
    }

    pub(super) fn receiving(&self, key: RequestKey) -> Option<u32> {
        let slot = self.requests.get(key.index as usize)?;
        (slot.generation == key.generation && slot.state == State::Receiving).then_some(key.index)
    }

    /// Takes a request from its session's list.
    pub(super) fn unlink(&mut self, index: u32) {
        let RequestSlot { session, next, .. } = self.requests[index as usize];
        if session == NO_INDEX {
            return;
        }
        let slot = &self.requests[index as usize];
        if slot.in_flight() {
            self.sessions[session as usize].in_flight -= 1;
        } else if slot.state == State::Responding && !slot.kept {
            self.sessions[session as usize].leaving -= 1;
        }
        self.unlink_out(index);
        let mut at = self.sessions[session as usize].first;
        if at == index {
            self.sessions[session as usize].first = next;
        }
        while at != NO_INDEX && at != index {
            let after = self.requests[at as usize].next;
            if after == index {
                self.requests[at as usize].next = next;
            }
            at = after;
        }
        self.requests[index as usize].session = NO_INDEX;
    }

    /// Frees a record that holds nothing any more.
    pub(super) fn retire(&mut self, index: u32) {
        self.unlink(index);
        let slot = &mut self.requests[index as usize];
        if slot.kept {
            self.kept -= 1;
        }
        slot.state = State::Free;
        slot.kept = false;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next = self.free_request;
        self.free_request = index;
        self.live_requests -= 1;
    }
}
