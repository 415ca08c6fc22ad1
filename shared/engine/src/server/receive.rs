//! Request frames: from the first one of a request to its submission.

use splitrpc_ring::{RequestKey, Run, Submission};
use splitrpc_wire::{Flags, Header, Kind, Manifest, Status, StatusPayload, TOTAL_UNKNOWN};

use super::transmit::{Body, Control, retry_after_us};
use super::{Placement, Server, State, Verdict};
use crate::Time;
use crate::config::NO_INDEX;
use crate::congestion::Congestion;
use crate::incoming::Misfit;
use crate::message::Sizes;
use crate::time::MS;

/// When to try again to queue an error frame for which there was no room.
pub(super) const TELL_AGAIN: u64 = MS;

impl<C: Congestion> Server<'_, C> {
    /// A frame of a request, or a train of `packets` frames, which is like one long frame with many numbers.
    pub(super) fn on_request(
        &mut self,
        now: Time,
        session: u32,
        header: &Header,
        head: &[u8],
        packets: u32,
    ) -> Verdict {
        let stream = self.is_stream(session);
        let manifest = if header.flags.has(Flags::MANIFEST) {
            match Manifest::parse(head) {
                Ok(manifest) => Some(manifest),
                Err(error) => {
                    self.stats.malformed[error.index()] += 1;
                    return self.refuse(session, header, Status::BadFrame, "the manifest is malformed");
                }
            }
        } else {
            None
        };
        let index = match self.find_request(session, header.request) {
            Some(index) => match self.requests[index as usize].state {
                State::Receiving => match &manifest {
                    // The slots were handed out on a presumption or another manifest, which this one must bear out.
                    Some(manifest) if !self.agrees(index, header, manifest) => {
                        self.fail(now, index, Status::BadTensor, "manifest and frames contradict each other");
                        return Verdict::Discard;
                    }
                    _ => index,
                },
                // The rest of a request whose error is on its way to the client.
                State::Failed(_) if stream => return Verdict::Discard,
                _ if stream => return Verdict::Close,
                _ => return self.on_late_frame(now, session, index, header, packets),
            },
            None => match self.begin(now, session, header, manifest.as_ref(), packets) {
                Ok(index) => index,
                Err(verdict) => return verdict,
            },
        };
        self.sessions[session as usize].recent = index;
        self.place(now, session, index, header, manifest.as_ref(), packets)
    }

    /// Whether a manifest describes the request that this record was taken for.
    fn agrees(&self, index: u32, header: &Header, manifest: &Manifest<'_>) -> bool {
        let slot = &self.requests[index as usize];
        consistent(header, manifest)
            && header.model == slot.model
            && self.models[usize::from(slot.model)].admit(manifest).is_ok_and(|(rows, sizes)| {
                rows == slot.input.rows && sizes.as_slice() == slot.incoming.sizes().as_slice()
            })
    }

    /// A frame of a request that needs none any more: the client has not heard of that.
    fn on_late_frame(&mut self, now: Time, session: u32, index: u32, header: &Header, packets: u32) -> Verdict {
        self.acknowledge_duplicate(now, session, header, packets);
        let rtt = self.channels[self.channel_index(session)].channel.rtt.smoothed();
        let slot = &mut self.requests[index as usize];
        let first = header.flags.has(Flags::MANIFEST);
        if now.since(slot.last_resend.max(slot.settled_at)) < rtt && slot.last_resend != Time::default() {
            return Verdict::Discard;
        }
        match slot.state {
            State::Failed(_) if first => {
                slot.last_resend = now;
                self.push_failure(index);
            }
            State::Responding if first && slot.outgoing.all_sent() => {
                // Its probe timer would find out too, but the client is asking now.
                slot.last_resend = now;
                slot.outgoing.resend_first();
                self.activate(session);
            }
            _ => {}
        }
        Verdict::Discard
    }

    fn begin(
        &mut self,
        now: Time,
        session: u32,
        header: &Header,
        manifest: Option<&Manifest<'_>>,
        packets: u32,
    ) -> Result<u32, Verdict> {
        let stream = self.is_stream(session);
        if header.request == 0 {
            return Err(self.refuse(session, header, Status::BadFrame, "request number 0 is reserved"));
        }
        if !stream {
            let at = self.channel_index(session);
            let executed = &mut self.channels[at].executed;
            if executed.contains(header.request) {
                self.acknowledge_duplicate(now, session, header, packets);
                // How it ended is counted.
                return Err(self.answer_refusal(session, header, Status::ReplyGone, ""));
            }
            executed.see(header.request);
        }
        if self.draining {
            return Err(self.refuse(session, header, Status::Draining, ""));
        }
        if header.total == TOTAL_UNKNOWN {
            return Err(self.refuse(session, header, Status::Unsupported, "requests of unknown size"));
        }
        if header.total > self.config.max_request {
            return Err(self.refuse(session, header, Status::TooLarge, "the request exceeds limits.max_request_bytes"));
        }
        // Responses that have not left count too: a client that takes none must not hold ever more of them.
        if self.sessions[session as usize].held() >= self.config.requests_per_client {
            return Err(self.refuse(session, header, Status::Quota, "limits.requests_per_client is reached"));
        }
        let Some(plan) = self.models.get(usize::from(header.model)) else {
            return Err(self.refuse(session, header, Status::UnknownModel, "no model has this handle"));
        };
        let shape = match manifest {
            Some(manifest) => plan.admit(manifest).and_then(|shape| match consistent(header, manifest) {
                true => Ok(shape),
                false => Err(Status::BadTensor),
            }),
            // On a stream the manifest came first, so this is the rest of a request that was refused, failed or cancelled.
            None => match plan.presume(header.total).filter(|_| !stream) {
                Some(shape) => Ok(shape),
                None => {
                    self.stats.before_manifest += 1;
                    return Err(Verdict::Discard);
                }
            },
        };
        let priority = plan.priority(header.priority);
        let class = shape.and_then(|(rows, sizes)| Ok((rows, sizes, plan.class(self.pools, rows, &sizes)?)));
        let (rows, sizes, pool) = match class {
            Ok(class) => class,
            Err(Status::TooLarge) => {
                let text = "more rows than the model takes at once, or more bytes than its slots have, which \
                            limits.max_request_bytes and limits.class_bytes allow";
                return Err(self.refuse(session, header, Status::TooLarge, text));
            }
            Err(status) => {
                return Err(self.refuse(
                    session,
                    header,
                    status,
                    "tensor count, types or shapes differ from the model's",
                ));
            }
        };
        if self.free_request == NO_INDEX {
            self.evict_oldest_reply();
        }
        if self.free_request == NO_INDEX {
            return Err(self.refuse(session, header, Status::Busy, "limits.requests is reached"));
        }
        if !self.has_share(session, pool, rows) {
            let text = "this client's share of limits.slots_per_model is reached: at most as many as are free";
            return Err(self.refuse(session, header, Status::Quota, text));
        }
        let Some(input) = self.slots.alloc(pool, rows) else {
            return Err(self.refuse(session, header, Status::Busy, "all slots of the model are taken"));
        };
        Ok(self.open_request(now, session, header, priority, input, &sizes))
    }

    fn place(
        &mut self,
        now: Time,
        session: u32,
        index: u32,
        header: &Header,
        manifest: Option<&Manifest<'_>>,
        packets: u32,
    ) -> Verdict {
        let stream = self.is_stream(session);
        let slot = &self.requests[index as usize];
        match slot.incoming.chunk(header, manifest) {
            Ok(chunk) => Verdict::Place(Placement {
                request: slot.key(index),
                run: slot.input,
                chunk,
                packet: match stream {
                    true => 0,
                    false => self.channels[self.channel_index(session)].channel.received.expand(header.packet),
                },
                packets,
                ack_now: header.flags.has(Flags::ACK_NOW),
            }),
            Err(_) if stream => Verdict::Close,
            Err(Misfit::Duplicate) => {
                self.acknowledge_duplicate(now, session, header, packets);
                Verdict::Discard
            }
            Err(Misfit::TooFragmented) => {
                self.stats.fragmented += 1;
                Verdict::Discard
            }
            Err(Misfit::Outside) => {
                self.stats.outside += 1;
                Verdict::Discard
            }
        }
    }

    /// Whether the placement's slots are still the request's to write. A port asks before it goes on with a payload that
    /// arrives in pieces.
    #[must_use]
    pub fn still_placing(&self, placement: &Placement) -> bool {
        self.receiving(placement.request).is_some()
    }

    /// The run and the tensor sizes of a request that is still arriving, and the first byte (tensor, offset) past the
    /// highest one that is in place. From there on nothing has arrived, so a port may let bytes land there before it
    /// knows what they are.
    #[must_use]
    pub fn frontier(&self, request: RequestKey) -> Option<(Run, &Sizes, u16, u32)> {
        let slot = &self.requests[self.receiving(request)? as usize];
        let (tensor, offset) = slot.incoming.frontier();
        Some((slot.input, slot.incoming.sizes(), tensor, offset))
    }

    /// As [`Server::frontier`], if every byte before it is in place: what a host may make use of before the request is whole.
    #[must_use]
    pub fn unbroken(&self, request: RequestKey) -> Option<(Run, &Sizes, u16, u32)> {
        let slot = &self.requests[self.receiving(request)? as usize];
        let (tensor, offset) = slot.incoming.unbroken()?;
        Some((slot.input, slot.incoming.sizes(), tensor, offset))
    }

    /// The payload of a frame is in place. `copied` bytes of it were copied by a CPU, the kernel's copy included; `fixup` of
    /// those a second time because they had landed elsewhere.
    pub fn placed(&mut self, now: Time, placement: &Placement, copied: u32, fixup: u32) {
        let Some(index) = self.receiving(placement.request) else { return };
        let slot = &mut self.requests[index as usize];
        let session = slot.session;
        let new = slot.incoming.commit(&placement.chunk);
        slot.partial = 0;
        slot.copied = slot.copied.saturating_add(copied);
        slot.fixup = slot.fixup.saturating_add(fixup);
        let (complete, received) = (slot.incoming.is_complete(), slot.incoming.received());
        self.stats.bytes_placed += new;
        self.stats.bytes_copied += u64::from(copied);
        self.stats.bytes_fixup += u64::from(fixup);
        if !self.is_stream(session) {
            let at = self.channel_index(session);
            self.note_sender(now, at, received);
            let channel = &mut self.channels[at].channel;
            channel.received.record_train(now, placement.packet, placement.packets, placement.ack_now);
            self.activate(session);
        }
        if complete {
            self.submit(now, index);
        }
    }

    /// `bytes` of a payload that is still arriving are in place.
    pub fn progressed(&mut self, placement: &Placement, bytes: u32) {
        if let Some(index) = self.receiving(placement.request) {
            self.requests[index as usize].partial = u64::from(bytes);
        }
    }

    fn submit(&mut self, now: Time, index: u32) {
        let slot = &mut self.requests[index as usize];
        slot.state = State::Submitted;
        slot.arrived_at = now;
        let submission = Submission::Submit {
            request: slot.key(index),
            input: slot.input,
            model: slot.model,
            priority: slot.priority,
            deadline_ns: if slot.deadline == Time::NEVER { 0 } else { slot.deadline.since(now).max(1) },
            payload_bytes: slot.incoming.received() as u32,
            epoch: self.epoch as u16,
            on_device: false,
        };
        let (session, id) = (slot.session, slot.id);
        self.stats.submitted += 1;
        self.push_submission(submission);
        if !self.is_stream(session) {
            let at = self.channel_index(session);
            self.channels[at].executed.insert(id);
        }
    }

    /// Ends a request whose bytes are still arriving, or whose model failed: gives its slots back and tells its client.
    /// Returns when to look at the record again.
    pub(super) fn fail(&mut self, now: Time, index: u32, status: Status, text: &str) -> Time {
        let slot = &self.requests[index as usize];
        let session = slot.session;
        if slot.in_flight() {
            self.free_input(index);
            self.sessions[session as usize].in_flight -= 1;
        }
        let slot = &mut self.requests[index as usize];
        slot.state = State::Failed(status);
        slot.settled_at = now;
        let payload = StatusPayload { status, retry_after_us: retry_after_us(status), text };
        slot.head_len = payload.write(&mut slot.head) as u16;
        let id = slot.id;
        self.count_end(self.requests[index as usize].model, status);
        if !self.is_stream(session) {
            // Kept like a reply; late frames of the request must not start it again once it is forgotten.
            self.requests[index as usize].kept = true;
            self.kept += 1;
            let at = self.channel_index(session);
            self.channels[at].executed.insert(id);
        }
        self.push_failure(index);
        let next = if self.requests[index as usize].told { now + self.config.keep_reply } else { now + TELL_AGAIN };
        self.request_timer = self.request_timer.min(next);
        next
    }

    pub(super) fn push_failure(&mut self, index: u32) {
        let slot = &self.requests[index as usize];
        let owner = &self.sessions[slot.session as usize];
        let header = Header { session: owner.id, request: slot.id, ..Header::new(Kind::Error) };
        let control = Control { peer: owner.peer, header, body: Body::Failure(slot.key(index)) };
        self.requests[index as usize].told = self.push_control(control);
    }

    /// Answers a frame of a request that gets no record. Only the frame with the manifest is answered, so that a request of
    /// many frames is refused once.
    fn refuse(&mut self, session: u32, header: &Header, status: Status, text: &'static str) -> Verdict {
        if header.flags.has(Flags::MANIFEST) && self.is_first_refusal(session, header.request) {
            self.count_end(header.model, status);
        }
        self.answer_refusal(session, header, status, text)
    }

    /// Whether a request was not refused before: over datagrams its frame may come again.
    fn is_first_refusal(&mut self, session: u32, request: u64) -> bool {
        if self.is_stream(session) {
            return true;
        }
        let at = self.channel_index(session);
        let refused = &mut self.channels[at].refused;
        let first = !refused.contains(request);
        refused.insert(request);
        first
    }

    fn answer_refusal(&mut self, session: u32, header: &Header, status: Status, text: &'static str) -> Verdict {
        if header.flags.has(Flags::MANIFEST) {
            let owner = &self.sessions[session as usize];
            let answer = Header { session: owner.id, request: header.request, ..Header::new(Kind::Error) };
            self.push_control(Control { peer: owner.peer, header: answer, body: Body::status(status, text) });
        }
        Verdict::Discard
    }

    /// What these packets carry is here already; that they came is news to the client.
    fn acknowledge_duplicate(&mut self, now: Time, session: u32, header: &Header, packets: u32) {
        self.stats.duplicates += u64::from(packets);
        if self.is_stream(session) {
            return;
        }
        let at = self.channel_index(session);
        let received = &mut self.channels[at].channel.received;
        let first = received.expand(header.packet);
        received.record_again(now, first, packets, header.flags.has(Flags::ACK_NOW));
        self.activate(session);
    }
}

fn consistent(header: &Header, manifest: &Manifest<'_>) -> bool {
    u64::from(header.total) == manifest.as_bytes().len() as u64 + u64::from(manifest.data_len())
}
