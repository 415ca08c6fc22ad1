//! What a client sends next.

use splitrpc_ring::{RequestKey, Run};
use splitrpc_wire::hello::{Abilities, Hello};
use splitrpc_wire::{Flags, HEADER_LEN, Header, Kind, VERSION};

use super::slot::State;
use super::{Client, ClientSlot, ClientStorage, HELLO_LEN, HELLO_RETRY, LIST_RETRY, Phase};
use crate::Time;
use crate::channel::Sent;
use crate::congestion::Congestion;
use crate::flight::{Cargo, Settled};
use crate::message::{Chunk, Pieces};
use crate::server::{describe, nothing};

/// Makes a ping as long as the answer that the session is unknown: no answer may be longer than its question.
const PING_PADDING: [u8; 8] = [0; 8];

/// One frame to send to the server.
#[derive(Debug)]
pub struct ClientTransmit<'e> {
    /// The header.
    pub header: Header,
    /// What follows the header: manifest or control payload.
    pub head: &'e [u8],
    /// The request whose data follows that.
    pub request: Option<RequestKey>,
    /// The data, as stretches of the request's tensors.
    pub data: Pieces<'e>,
    /// May ride in the same datagram as the frame before it.
    pub rides_along: bool,
    /// How many frames this is: more than one are a [`Train`](splitrpc_wire::Train) with `header` at its head, and `data`
    /// is that of all of them.
    pub frames: u32,
}

impl<S: ClientStorage, C: Congestion> Client<S, C> {
    /// The next frame to send, until there is none for now.
    pub fn poll_transmit(&mut self, now: Time) -> Option<ClientTransmit<'_>> {
        self.poll_train(now, 1)
    }

    /// The next frame to send, or up to `most` at once where they make a train, until there is none for now.
    pub fn poll_train(&mut self, now: Time, most: u32) -> Option<ClientTransmit<'_>> {
        match self.phase {
            Phase::Greeting { token } if self.hello_at <= now => {
                self.hello_at = now + HELLO_RETRY;
                return Some(self.hello(token));
            }
            Phase::Greeting { .. } => return None,
            Phase::Closed if self.goodbye => {
                self.goodbye = false;
                return Some(self.bare(Header::new(Kind::Goodbye)));
            }
            Phase::Closed => return None,
            Phase::Ready => {}
        }
        if let Some(token) = self.ping.take() {
            return Some(self.ping_frame(token));
        }
        if let Some(token) = self.pong.take() {
            return Some(self.bare(Header { request: token, ..Header::new(Kind::Pong) }));
        }
        if let Some(id) = self.cancels.pop_front() {
            return Some(self.cancel_frame(now, id));
        }
        if let Some((offset, at)) = self.list
            && at <= now
        {
            self.list = Some((offset, now + LIST_RETRY));
            return Some(self.bare(Header { offset, ..Header::new(Kind::List) }));
        }
        if let Some((index, sent)) = self.next_data(now, most) {
            self.sent_data = true;
            return Some(self.data_frame(now, index, sent));
        }
        let rides_along = core::mem::take(&mut self.sent_data);
        let due = self.channel.received.due() <= now;
        let with_data = rides_along && self.channel.received.may_ride();
        if due || with_data {
            return Some(self.ack_frame(now, rides_along));
        }
        None
    }

    fn hello(&mut self, token: u64) -> ClientTransmit<'_> {
        let hello = Hello {
            version_min: u16::from(VERSION),
            version_max: u16::from(VERSION),
            abilities: Abilities(0),
            datagram: self.config.datagram,
            max_response: self.config.max_response,
            nonce: self.nonce,
            token,
            key_id: 0,
            window: self.config.receive_window,
        };
        self.scratch = [0; HELLO_LEN];
        self.scratch[..Hello::LEN].copy_from_slice(&hello.to_bytes());
        self.stats.frames_out += 1;
        let header = Header { length: HELLO_LEN as u32, ..Header::new(Kind::Hello) };
        ClientTransmit { header, head: &self.scratch, request: None, data: nothing(), rides_along: false, frames: 1 }
    }

    fn bare(&mut self, header: Header) -> ClientTransmit<'_> {
        self.stats.frames_out += 1;
        let header = Header { session: self.session, ..header };
        ClientTransmit { header, head: &[], request: None, data: nothing(), rides_along: false, frames: 1 }
    }

    fn ping_frame(&mut self, token: u64) -> ClientTransmit<'_> {
        let length = PING_PADDING.len() as u32;
        ClientTransmit {
            head: &PING_PADDING,
            ..self.bare(Header { request: token, length, ..Header::new(Kind::Ping) })
        }
    }

    fn cancel_frame(&mut self, now: Time, id: u64) -> ClientTransmit<'_> {
        let packet = match self.channel.flight.is_full() {
            true => 0,
            false => self.channel.send(self.storage.parts().1, now, Cargo::None, HEADER_LEN as u32),
        };
        self.bare(Header { request: id, packet, ..Header::new(Kind::Cancel) })
    }

    fn ack_frame(&mut self, now: Time, rides_along: bool) -> ClientTransmit<'_> {
        let length = self.channel.take_ack(now, self.config.receive_window, &mut self.ranges).write(&mut self.scratch);
        self.stats.frames_out += 1;
        let header = Header { session: self.session, length: length as u32, ..Header::new(Kind::Ack) };
        ClientTransmit { header, head: &self.scratch[..length], request: None, data: nothing(), rides_along, frames: 1 }
    }

    fn next_data(&mut self, now: Time, most: u32) -> Option<(usize, Sent)> {
        let count = self.storage.slots().len();
        // What must go again goes first; the requests follow one after the other.
        let again = match self.repeats {
            true => self.storage.slots().iter().position(|s| s.state == State::Open && s.outgoing.next_is_repeat()),
            false => None,
        };
        self.repeats = again.is_some();
        let start = again.unwrap_or(self.current);
        // Records are large and most of them free: the search ends with the last open one.
        let mut unseen = self.open;
        for step in 0..count {
            if unseen == 0 {
                break;
            }
            let index = (start + step) % count;
            let (slots, flight) = self.storage.parts();
            let slot = &mut slots[index];
            if slot.state != State::Open {
                continue;
            }
            unseen -= 1;
            if slot.outgoing.all_sent() {
                continue;
            }
            if self.channel.may_send(now).is_err() {
                return None;
            }
            let key = slot.key(index);
            let Some(sent) = self.channel.send_next(flight, now, key, &mut slot.outgoing, most) else { continue };
            if again.is_none() {
                self.current = index;
            }
            return Some((index, sent));
        }
        None
    }

    fn data_frame(&mut self, now: Time, index: usize, sent: Sent) -> ClientTransmit<'_> {
        let Sent { chunk, packet, frames, ask } = sent;
        self.stats.frames_out += u64::from(frames);
        let slot = &self.storage.slots()[index];
        let head: &[u8] = match chunk {
            Chunk::First { .. } => &slot.head[..usize::from(slot.head_len)],
            Chunk::Part { .. } => &[],
        };
        let mut header = Header {
            flags: if slot.repeatable { Flags::REPEATABLE } else { Flags::NONE },
            priority: slot.priority,
            model: slot.model,
            session: self.session,
            request: slot.id,
            packet,
            length: head.len() as u32 + chunk.length() / frames,
            deadline_us: remaining_us(slot, now),
            total: slot.outgoing.total(),
            ..Header::new(Kind::Request)
        };
        describe(&mut header, &chunk, slot.outgoing.sizes(), ask);
        let data = Pieces::new(Run::NONE, chunk, slot.outgoing.sizes());
        ClientTransmit { header, head, request: Some(slot.key(index)), data, rides_along: false, frames }
    }
}

/// Tells a request that one of its frames was acknowledged or lost. Returns whether something must go again.
pub(super) fn settle(slots: &mut [ClientSlot], settled: &Settled, acked: bool) -> bool {
    let Some(key) = settled.cargo.key() else { return false };
    let Some(slot) = slots.get_mut(key.index as usize) else { return false };
    if slot.generation != key.generation || slot.state != State::Open {
        return false;
    }
    let Some(chunk) = settled.cargo.chunk() else { return false };
    if acked {
        slot.outgoing.on_acked(chunk);
        false
    } else {
        slot.outgoing.on_lost(chunk)
    }
}

fn remaining_us(slot: &ClientSlot, now: Time) -> u32 {
    if slot.deadline == Time::NEVER {
        return 0;
    }
    u32::try_from(slot.deadline.since(now) / 1_000).unwrap_or(u32::MAX).max(1)
}
