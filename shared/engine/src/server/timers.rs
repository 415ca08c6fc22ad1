//! What time brings: lost frames, deadlines, stalled requests, kept replies that expire, silent sessions.

use splitrpc_wire::Status;

use super::receive::TELL_AGAIN;
use super::sessions::settle_frame;
use super::{Server, State};
use crate::Time;
use crate::config::NO_INDEX;
use crate::congestion::Congestion;
use crate::time::SEC;

/// A stream that has not said hello by then is closed.
const GREETING: u64 = 10 * SEC;
const SESSION_SWEEP: u64 = SEC;

impl<C: Congestion> Server<'_, C> {
    /// When [`Server::handle_timeout`] wants to be called at the latest; [`Time::NEVER`] if nothing is pending.
    #[must_use]
    pub fn next_timeout(&self) -> Time {
        self.channel_timer.min(self.request_timer).min(self.session_timer)
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.channel_timer <= now {
            self.sweep_channels(now);
        }
        if self.request_timer <= now {
            self.sweep_requests(now);
        }
        if self.session_timer <= now {
            self.sweep_sessions(now);
        }
    }

    /// A stream that never said hello and should be closed; the port then says so with [`Server::stream_closed`].
    /// Asked until it says that there is none, it looks at each stream once.
    pub fn poll_stale_stream(&mut self, now: Time) -> Option<u32> {
        let from = core::mem::take(&mut self.stale_from);
        let stale = (from..self.config.stream_sessions).find(|id| {
            let session = &self.sessions[*id as usize];
            session.open && !session.greeted && now.since(session.last_heard) > GREETING
        })?;
        self.stale_from = stale + 1;
        Some(stale)
    }

    pub(super) fn set_channel_timer(&mut self, session: u32) {
        let at = self.channel_index(session);
        let timer = self.channels[at].channel.timer(self.flight);
        self.timers[at] = timer;
        self.channel_timer = self.channel_timer.min(timer);
    }

    fn sweep_channels(&mut self, now: Time) {
        let mut earliest = Time::NEVER;
        for at in 0..self.timers.len().min(self.channels.len()) {
            if self.timers[at] > now {
                earliest = earliest.min(self.timers[at]);
                continue;
            }
            let (requests, stats) = (&mut *self.requests, &mut self.stats);
            let channel = &mut self.channels[at].channel;
            let whole = channel.has_shrunk();
            channel.on_timer(self.flight, now, |settled| {
                stats.frames_lost += 1;
                settle_frame(requests, &settled, false).is_some()
            });
            stats.datagram_shrunk += u64::from(channel.has_shrunk() && !whole);
            // Polling the session sets its timer anew.
            self.timers[at] = Time::NEVER;
            self.activate(at as u32 + self.config.stream_sessions);
        }
        self.channel_timer = earliest;
    }

    fn sweep_requests(&mut self, now: Time) {
        let mut earliest = Time::NEVER;
        for index in 0..self.requests.len() as u32 {
            if let Some(at) = self.check_request(now, index) {
                earliest = earliest.min(at);
            }
        }
        self.request_timer = earliest;
    }

    /// Ends a request whose time has come. Returns when to look at it next.
    fn check_request(&mut self, now: Time, index: u32) -> Option<Time> {
        let grace = self.config.progress_grace;
        let keep = self.config.keep_reply;
        let slot = &mut self.requests[index as usize];
        match slot.state {
            State::Free | State::Submitted | State::Orphaned => None,
            State::Receiving if slot.deadline <= now => Some(self.fail(
                now,
                index,
                Status::DeadlineExceeded,
                "the deadline passed while the request was arriving",
            )),
            State::Receiving => {
                let (mark, since) = slot.progress_mark;
                if now < since + grace {
                    return Some((since + grace).min(slot.deadline));
                }
                let have = slot.incoming.received() + slot.partial;
                let least = u64::from(self.config.min_progress).saturating_mul(now.since(since)) / SEC;
                if have.saturating_sub(mark) < least.max(1) {
                    return Some(self.fail(
                        now,
                        index,
                        Status::TooSlow,
                        "limits.min_progress_bytes_per_s was not reached",
                    ));
                }
                slot.progress_mark = (have, now);
                Some((now + grace).min(slot.deadline))
            }
            State::Failed(_) => {
                let settled_at = slot.settled_at;
                if !slot.told {
                    self.push_failure(index);
                }
                if !self.requests[index as usize].told {
                    return Some(now + TELL_AGAIN);
                }
                if now < settled_at + keep {
                    return Some(settled_at + keep);
                }
                if self.is_stream(self.requests[index as usize].session) {
                    // Its error frame still waits to be sent, which frees it.
                    return Some(now + keep);
                }
                self.retire(index);
                None
            }
            State::Responding => {
                let (session, settled_at, kept) = (slot.session, slot.settled_at, slot.kept);
                if self.is_stream(session) {
                    return None;
                }
                let silent = now.since(self.sessions[session as usize].last_heard) > 5 * keep;
                let progressed_at = self.channels[self.channel_index(session)].channel.progressed_at();
                // A client that lets nothing be sent, or confirms nothing, must not hold the outputs.
                let stuck = !kept && now >= settled_at.max(progressed_at) + grace;
                if kept && now >= settled_at + keep || silent || stuck {
                    self.evict(index);
                    return None;
                }
                Some(if kept { settled_at } else { now } + keep)
            }
        }
    }

    fn sweep_sessions(&mut self, now: Time) {
        let mut open = false;
        for index in 0..self.sessions.len() as u32 {
            let session = &self.sessions[index as usize];
            if !session.open {
                continue;
            }
            open = true;
            // Whether a silent stream's peer lives, the kernel's keep-alive finds out.
            let expired = now.since(session.last_heard) > self.config.idle_timeout && session.in_flight == 0;
            if expired && !self.is_stream(index) {
                self.stats.sessions_expired += 1;
                self.close_session(index);
            }
        }
        self.session_timer = if open { now + SESSION_SWEEP } else { Time::NEVER };
    }

    /// The client has all of a response, or it is given up.
    pub(super) fn finish_reply(&mut self, index: u32) {
        self.release_output(index);
        self.retire(index);
    }

    /// Gives a kept answer up that the client has not confirmed.
    fn evict(&mut self, index: u32) {
        let slot = &self.requests[index as usize];
        let (session, key) = (slot.session, slot.key(index));
        let at = self.channel_index(session);
        self.channels[at].channel.flight.forget(self.flight, key, |_| {});
        self.stats.replies_evicted += 1;
        self.sessions[session as usize].unconfirmed = true;
        match slot.state {
            State::Responding => self.finish_reply(index),
            _ => self.retire(index),
        }
        self.activate(session);
    }

    pub(super) fn evict_oldest_reply(&mut self) {
        self.evict_oldest_reply_but(NO_INDEX);
    }

    pub(super) fn evict_oldest_reply_but(&mut self, spare: u32) {
        let oldest = (0..self.requests.len() as u32)
            .filter(|i| *i != spare && self.requests[*i as usize].kept)
            .min_by_key(|i| self.requests[*i as usize].settled_at);
        if let Some(index) = oldest {
            self.evict(index);
        }
    }
}
