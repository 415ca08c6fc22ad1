//! What arrives at a client.

use splitrpc_wire::ack::Ack;
use splitrpc_wire::hello::{Challenge, HelloAck};
use splitrpc_wire::{Flags, Header, Kind, Manifest, Status, StatusPayload, TOTAL_UNKNOWN};

use super::slot::State;
use super::{ASK_AFTER, Client, ClientEvent, ClientPlacement, ClientStorage, ClientVerdict, Phase, transmit};
use crate::Time;
use crate::congestion::Congestion;
use crate::incoming::Misfit;
use crate::message::Sizes;

impl<S: ClientStorage, C: Congestion> Client<S, C> {
    /// Takes in one frame from the server. `head` is the part of its payload that is not tensor data: the manifest where
    /// the frame has one, all of it for frames other than responses, else nothing.
    pub fn handle_frame(&mut self, now: Time, header: &Header, head: &[u8]) -> ClientVerdict {
        self.handle(now, header, head, 1)
    }

    /// Takes in `frames` response frames at once that make a [`Train`](splitrpc_wire::Train) with `first` at its head: one
    /// verdict and one placement for all of their data.
    pub fn handle_train(&mut self, now: Time, first: &Header, frames: u32) -> ClientVerdict {
        let in_trains = first.kind == Kind::Response && !first.flags.has(Flags::MANIFEST);
        match first.length.checked_mul(frames).filter(|_| in_trains && frames > 0) {
            Some(length) => self.handle(now, &Header { length, ..*first }, &[], frames),
            None => ClientVerdict::Discard,
        }
    }

    fn handle(&mut self, now: Time, header: &Header, head: &[u8], packets: u32) -> ClientVerdict {
        self.stats.frames_in += u64::from(packets);
        if header.flags.has(Flags::TAGGED) || header.flags.has(Flags::SEALED) {
            self.stats.malformed += 1;
            return ClientVerdict::Discard;
        }
        match (self.phase, header.kind) {
            (Phase::Closed, _) => ClientVerdict::Discard,
            (Phase::Greeting { token }, kind) => self.greeting_frame(now, token, kind, header, head),
            (Phase::Ready, _) if header.session != self.session => {
                self.stats.discarded += 1;
                ClientVerdict::Discard
            }
            (Phase::Ready, kind) => {
                self.last_heard = now;
                self.session_frame(now, kind, header, head, packets)
            }
        }
    }

    fn greeting_frame(&mut self, now: Time, token: u64, kind: Kind, header: &Header, head: &[u8]) -> ClientVerdict {
        match kind {
            Kind::Challenge => match Challenge::parse(head) {
                Ok(challenge) if challenge.nonce == self.nonce && challenge.token != token => {
                    self.phase = Phase::Greeting { token: challenge.token };
                    self.hello_at = now;
                }
                _ => self.stats.malformed += 1,
            },
            Kind::HelloAck => match HelloAck::parse(head) {
                Ok(ack) if ack.nonce == self.nonce => {
                    self.session = header.session;
                    self.server = Some(ack);
                    self.channel.reset(ack.datagram.min(self.config.datagram), ack.window);
                    self.phase = Phase::Ready;
                    self.last_heard = now;
                    let _ = self.events.push_back(ClientEvent::Connected(ack));
                }
                _ => self.stats.malformed += 1,
            },
            Kind::Error => match StatusPayload::parse(head) {
                // Before there is a session only its refusal can come.
                Ok(payload) if header.session == 0 => self.shut(payload.status),
                _ => self.stats.malformed += 1,
            },
            _ => self.stats.discarded += 1,
        }
        ClientVerdict::Done
    }

    fn session_frame(&mut self, now: Time, kind: Kind, header: &Header, head: &[u8], packets: u32) -> ClientVerdict {
        match kind {
            Kind::Response => return self.on_response(now, header, head, packets),
            Kind::Ack | Kind::Credit => match Ack::parse(head) {
                Ok(ack) => {
                    let (slots, flight) = self.storage.parts();
                    let (stats, repeats) = (&mut self.stats, &mut self.repeats);
                    self.channel.on_ack(flight, now, &ack, |settled, acked| {
                        stats.frames_lost += u64::from(!acked);
                        *repeats |= transmit::settle(slots, &settled, acked);
                    });
                }
                Err(_) => self.stats.malformed += 1,
            },
            Kind::Error => self.on_error(now, header, head),
            Kind::ListAck => {
                if let Some((wanted, _)) = self.list
                    && wanted == header.offset
                {
                    self.list = None;
                    return ClientVerdict::Catalog { offset: header.offset, total: header.total };
                }
                self.stats.discarded += 1;
            }
            Kind::Pong => {
                let _ = self.events.push_back(ClientEvent::Pong(header.request));
            }
            Kind::Goodbye => self.shut(Status::ConnectionLost),
            Kind::HelloAck | Kind::Challenge => self.stats.discarded += 1,
            Kind::Ping => self.pong = Some(header.request),
            Kind::Hello | Kind::List | Kind::Request | Kind::Cancel => self.stats.malformed += 1,
        }
        ClientVerdict::Done
    }

    fn on_error(&mut self, now: Time, header: &Header, head: &[u8]) {
        let Ok(payload) = StatusPayload::parse(head) else {
            self.stats.malformed += 1;
            return;
        };
        if header.request == 0 {
            self.shut(payload.status);
            return;
        }
        match self.by_id(header.request) {
            Some(index) if self.accepts_frames() => {
                self.note_answered(now, index, false);
                self.fail(index, payload.status);
            }
            _ => self.stats.discarded += 1,
        }
    }

    fn on_response(&mut self, now: Time, header: &Header, head: &[u8], packets: u32) -> ClientVerdict {
        let packet = self.channel.received.expand(header.packet);
        let ack_now = header.flags.has(Flags::ACK_NOW);
        let Some(index) = self.by_id(header.request) else {
            // Answered or given up long ago: the server may forget it too.
            self.stats.discarded += 1;
            self.channel.received.record_train(now, packet, packets, ack_now);
            return ClientVerdict::Discard;
        };
        if header.flags.has(Flags::MORE) {
            // One part of several, which this side never agreed to: it is not the answer.
            self.tell_cancelled(index);
            self.fail(index, Status::Unsupported);
            return ClientVerdict::Discard;
        }
        let manifest = match header.flags.has(Flags::MANIFEST) {
            true => match Manifest::parse(head) {
                Ok(manifest) => Some(manifest),
                Err(_) => {
                    self.stats.malformed += 1;
                    return ClientVerdict::Discard;
                }
            },
            false => None,
        };
        if !self.storage.slots()[index].answered {
            self.note_answered(now, index, true);
        }
        let max_response = self.config.max_response;
        let slot = &mut self.storage.parts().0[index];
        slot.ask_at = now + ASK_AFTER;
        slot.asked = 0;
        match &manifest {
            Some(manifest) if slot.sized => {
                if Sizes::of(manifest).as_slice() != slot.incoming.sizes().as_slice() {
                    self.stats.malformed += 1;
                    return ClientVerdict::Discard;
                }
            }
            Some(manifest) => {
                let total = manifest.as_bytes().len() as u64 + u64::from(manifest.data_len());
                if header.total == TOTAL_UNKNOWN || u64::from(header.total) != total || header.total > max_response {
                    self.tell_cancelled(index);
                    self.fail(index, Status::TooLarge);
                    return ClientVerdict::Discard;
                }
                slot.incoming.start(&Sizes::of(manifest));
                slot.sized = true;
            }
            None if slot.sized => {}
            None => {
                self.stats.discarded += 1;
                return ClientVerdict::Discard;
            }
        }
        match slot.incoming.chunk(header, manifest.as_ref()) {
            Ok(chunk) => {
                let request = slot.key(index);
                ClientVerdict::Place(ClientPlacement { request, chunk, packet, packets, ack_now })
            }
            Err(Misfit::Duplicate) => {
                self.stats.discarded += 1;
                self.channel.received.record_again(now, packet, packets, ack_now);
                ClientVerdict::Discard
            }
            Err(Misfit::Outside | Misfit::TooFragmented) => {
                self.stats.discarded += 1;
                ClientVerdict::Discard
            }
        }
    }

    /// A response shows that all of its request arrived (`whole`), an error that no more of it is wanted.
    fn note_answered(&mut self, now: Time, index: usize, whole: bool) {
        let (slots, flight) = self.storage.parts();
        let key = slots[index].key(index);
        // What asked for the answer repeats what had arrived, and may itself have been lost.
        let whole = whole && slots[index].asked == 0;
        slots[index].answered = true;
        slots[index].outgoing.all_arrived();
        self.channel.on_answered(flight, now, key, whole);
    }

    /// Response data is in place.
    pub fn placed(&mut self, now: Time, placement: &ClientPlacement) {
        let Some(index) = self.live(placement.request) else { return };
        let slot = &mut self.storage.parts().0[index];
        slot.incoming.commit(&placement.chunk);
        let complete = slot.incoming.is_complete();
        self.channel.received.record_train(now, placement.packet, placement.packets, placement.ack_now);
        if complete {
            self.end(index);
            // `accepts_frames` keeps room for it.
            let _ = self.events.push_back(ClientEvent::Response(placement.request));
        }
    }

    fn by_id(&self, id: u64) -> Option<usize> {
        self.storage.slots().iter().position(|s| s.state == State::Open && s.id == id)
    }
}
