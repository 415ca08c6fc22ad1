//! What each side tells the other: lines of the ring, immediates, and messages beside the link.

use splitrpc_doca::{Lines, Notice};
use splitrpc_ring::{Immediate, Tells, seal};
use splitrpc_wire::Status;

use super::super::carrier::{Piece, Way};
use super::super::flight::State;
use super::super::status::Loss;
use super::{BEAT, GONE, Inner, LINE, Outgoing, Reach, SILENCE};
use crate::settings::Stop;
use crate::setup::{Message, TAKEN};

impl Inner {
    /// Writes submissions to the host's ring, as many as it has places for.
    pub(super) fn write(&mut self) -> Result<(), Loss> {
        while self.reach.carrier.has_room()
            && self.written - self.taken < self.ring
            && let Some(outgoing) = self.outgoing.pop_front()
        {
            let words = match outgoing {
                Outgoing::Cancel(words) | Outgoing::Release(words) => words,
                Outgoing::Request(ticket) => {
                    let flight = &mut self.flights[ticket as usize];
                    if flight.cancelled {
                        self.land(ticket, Status::Cancelled, "");
                        continue;
                    }
                    flight.state = State::Submitted;
                    flight.submission.less_time(flight.copy_in).to_words()
                }
            };
            let line = (self.written % self.ring) as usize;
            for (to, word) in self.reach.lines.as_ref()[line].words().iter().zip(seal(self.written, &words)) {
                to.store(word, std::sync::atomic::Ordering::Relaxed);
            }
            self.written += 1;
            if !matches!(outgoing, Outgoing::Release(_)) {
                self.rousing = self.written;
            }
            self.lines += 1;
            let piece =
                Piece { way: Way::ToRing, offset: Lines::offset(line), len: Lines::offset(1) as u32, tag: LINE };
            self.reach.carrier.begin(piece)?;
        }
        if !self.outgoing.is_empty() && self.written - self.taken == self.ring && self.lines == 0 {
            // However little it cares for what is there, it has to make room.
            self.reach.bell.ring(self.now);
        }
        Ok(())
    }

    /// Rings for a host that sleeps and has not taken what it wants to be roused for.
    pub(super) fn rouse(&mut self) {
        let wanted = if self.reach.bell.wants_slots() { self.written } else { self.rousing };
        if wanted > self.taken {
            self.reach.bell.ring(self.now);
        }
    }

    /// The host has told something.
    pub(super) fn told(&mut self, immediate: &Immediate) {
        self.heard = self.now;
        let taken = self.taken + u64::from(immediate.taken.wrapping_sub(self.taken as u32));
        if taken > self.written {
            self.faults.bad_head += 1;
        } else {
            self.taken = taken;
        }
        self.reach.bell.heard();
        match immediate.tells {
            Tells::Completion(completion) => self.completed(&completion),
            Tells::Awake => {}
            Tells::Sleeps { wants_slots } => {
                self.reach.bell.sleeps(wants_slots);
                // What it has not taken and is not under way either was written while it fell asleep.
                if self.lines == 0 {
                    self.rouse();
                }
            }
        }
    }

    /// Hears what the host says beside the link, and shows it that the card lives.
    pub(super) fn hear(&mut self) -> Result<(), Loss> {
        let Inner { reach: Reach { server, connection, bell, .. }, now, heard, beat, beats, .. } = self;
        let (mut over, mut parting) = (None, false);
        let mut answers = heapless::Vec::<u32, 4>::new();
        let mut strangers = Vec::new();
        server.notices(|notice| match notice {
            Notice::Disconnected(gone) if gone == *connection => over = Some(Loss::Gone),
            Notice::Message(from, bytes) if from == *connection => {
                *heard = *now;
                match Message::parse(bytes) {
                    Ok(Message::Beat { count, answer: false }) => drop(answers.push(count)),
                    // That it was awake then does not say that it is now.
                    Ok(Message::Beat { .. }) => {}
                    Ok(Message::Bye { .. }) => parting = true,
                    _ => over = Some(Loss::Strange),
                }
            }
            Notice::Message(from, _) => strangers.push(from),
            _ => {}
        });
        for stranger in strangers {
            let _ = server.send(&stranger, &Message::Refused { why: TAKEN }.to_bytes());
        }
        for count in answers {
            let _ = server.send(connection, &Message::Beat { count, answer: true }.to_bytes());
        }
        if *beat <= *now {
            (*beat, *beats) = (*now + BEAT, beats.wrapping_add(1));
            let said = server.send(connection, &Message::Beat { count: *beats, answer: false }.to_bytes());
            if said.is_ok() {
                bell.ring(*now);
            }
            if now.since(*heard) > SILENCE {
                over = Some(Loss::Silent);
            }
        }
        if parting {
            // What is under way is finished first.
            tracing::info!("the host agent ends");
            self.stop.iter().for_each(Stop::stop);
        }
        over.map_or(Ok(()), Err)
    }

    /// Nothing more comes from the host: all that it has is answered in its stead.
    pub(super) fn lose(&mut self, why: Loss) {
        if self.lost.is_some() {
            return;
        }
        tracing::warn!(%why, "the host agent is lost");
        self.lost = Some(why);
        self.work.clear();
        self.outgoing.clear();
        for ticket in 0..self.flights.len() as u32 {
            match self.flights[ticket as usize].state {
                State::Free => {}
                State::Early | State::Abandoned => self.release(ticket),
                _ => self.land(ticket, Status::ConnectionLost, GONE),
            }
        }
        self.stop.iter().for_each(Stop::stop);
    }
}
