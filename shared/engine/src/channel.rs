//! What one datagram session keeps for each direction: reliability, congestion, credit.

use splitrpc_ring::RequestKey;
use splitrpc_wire::HEADER_LEN;
use splitrpc_wire::ack::{Ack, AckRange, MAX_ACK_RANGES};
use splitrpc_wire::hello::MIN_DATAGRAM;

use crate::Time;
use crate::congestion::{AckSample, Congestion};
use crate::flight::{Cargo, Flight, SentFrame, Settled};
use crate::message::Chunk;
use crate::outgoing::Outgoing;
use crate::pacer::Pacer;
use crate::received::Received;
use crate::rtt::Rtt;
use crate::size::DatagramSize;
use crate::time::{MS, SEC};

/// Probes without an answer after which the first frames of messages go again too: without its manifest a receiver may
/// have no use for the rest of a message, and says nothing.
const PROBES_BEFORE_FIRSTS: u32 = 2;
/// How long probes go without an answer before the path is taken to refuse large datagrams. Shorter silences are those of
/// a peer that waits for its core.
const SILENCE_BEFORE_SHRINKING: u64 = 100 * MS;
/// Probes without an answer after which the window starts over.
const PROBES_BEFORE_SILENCE: u32 = 3;
const MAX_PROBE_GAP: u64 = SEC;

/// Why nothing may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// Until an acknowledgement opens the window.
    Window,
    /// Until this time.
    Pacing(Time),
}

/// A frame of a message's data that was sent, or a train of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// What all of it carries.
    pub(crate) chunk: Chunk,
    /// The first one's number for the wire.
    pub(crate) packet: u32,
    pub(crate) frames: u32,
    /// An acknowledgement is asked for with it.
    pub(crate) ask: bool,
}

/// One datagram session's transport state. Sized once; `C` decides how fast it sends.
#[derive(Debug)]
pub(crate) struct Channel<C> {
    size: DatagramSize,
    pub(crate) rtt: Rtt,
    congestion: C,
    pacer: Pacer,
    pub(crate) flight: Flight,
    pub(crate) received: Received,
    probes: u32,
    /// The first and the latest of them.
    silent_since: Time,
    probed_at: Time,
    /// A probe is to be sent, whatever window and pacer say.
    probing: bool,
    /// When an acknowledgement last told of something new.
    progressed_at: Time,
    /// Ask for an acknowledgement with the next frame.
    ask: bool,
    /// Bytes and packets sent since the peer acknowledged something or was asked to.
    unheard: (u64, u64),
    window_limited: bool,
    paced_until: Time,
    lost_from: u64,
    /// Bytes that the peer lets us have under way to it.
    peer_window: u64,
    pub(crate) lost_frames: u64,
}

impl<C: Congestion> Channel<C> {
    pub(crate) fn new(flight: Flight, datagram: u16) -> Channel<C> {
        Channel {
            size: DatagramSize::new(datagram),
            rtt: Rtt::new(),
            congestion: C::new(u64::from(datagram)),
            pacer: Pacer::new(),
            flight,
            received: Received::new(),
            probes: 0,
            silent_since: Time::default(),
            probed_at: Time::default(),
            probing: false,
            progressed_at: Time::default(),
            ask: false,
            unheard: (0, 0),
            window_limited: false,
            paced_until: Time::NEVER,
            lost_from: 0,
            peer_window: 0,
            lost_frames: 0,
        }
    }

    /// Starts over for a new session.
    pub(crate) fn reset(&mut self, datagram: u16, peer_window: u64) {
        let mut flight = Flight::new(0, 1);
        core::mem::swap(&mut flight, &mut self.flight);
        flight.reset();
        *self = Channel { peer_window, ..Channel::new(flight, datagram) };
    }

    /// Whether a full frame may leave now.
    pub(crate) fn may_send(&mut self, now: Time) -> Result<(), Blocked> {
        if self.probing && !self.flight.is_full() {
            return Ok(());
        }
        let bytes = u64::from(self.size_of_next(now));
        let window = self.congestion.window();
        let under_way = self.flight.bytes() + bytes;
        self.window_limited = self.flight.is_full() || under_way > window / 2;
        // One frame may always be under way, so that nothing stops for good.
        if self.flight.is_full() || (under_way > window.min(self.peer_window) && !self.flight.is_empty()) {
            return Err(Blocked::Window);
        }
        match self.pacer.ready_at(now, bytes, window, self.rtt.smoothed()) {
            None => {
                self.paced_until = Time::NEVER;
                Ok(())
            }
            Some(at) => {
                self.paced_until = at;
                Err(Blocked::Pacing(at))
            }
        }
    }

    /// Records a frame as sent and returns its packet number for the wire.
    pub(crate) fn send(&mut self, ring: &mut [SentFrame], now: Time, cargo: Cargo, bytes: u32) -> u32 {
        self.probing = false;
        self.pacer.spend(u64::from(bytes));
        self.unheard = (self.unheard.0 + u64::from(bytes), self.unheard.1 + 1);
        self.flight.send(ring, now, cargo, bytes) as u32
    }

    /// Takes the next chunk of a message, with what makes a train of up to `most` frames with it, and records these frames
    /// as sent. To be asked when [`Channel::may_send`] allows.
    ///
    /// The peer lets many packets come together before it acknowledges them. Who would be held back by that asks in time: see
    /// [`Channel::asks_after`].
    pub(crate) fn send_next(
        &mut self,
        ring: &mut [SentFrame],
        now: Time,
        key: RequestKey,
        message: &mut Outgoing,
        most: u32,
    ) -> Option<Sent> {
        let room = u32::from(self.size_of_next(now)) - HEADER_LEN as u32;
        let chunk = message.next_chunk(room)?;
        let (cargo, bytes) = (Cargo::of(key, chunk), HEADER_LEN as u32 + message.payload(&chunk));
        let packet = self.send(ring, now, cargo, bytes);
        let asks_after = self.asks_after(message);
        let ask = self.ask || self.unheard.0 > asks_after || 2 * self.unheard.1 > self.flight.capacity();
        let most = if self.size.tries(now, bytes) || ask { 0 } else { self.room_for(bytes, most - 1, asks_after) };
        let following = message.take_following(chunk, room, most);
        self.send_following(ring, now, cargo, bytes, following);
        if ask {
            self.unheard = (0, 0);
        }
        Some(Sent { chunk: chunk.with_following(following), packet, frames: following + 1, ask })
    }

    /// The most that the next datagram may have. A probe is to arrive.
    fn size_of_next(&self, now: Time) -> u16 {
        if self.probing { self.size.bytes() } else { self.size.next(now) }
    }

    /// Bytes that may be under way.
    fn window(&self) -> u64 {
        self.congestion.window().min(self.peer_window)
    }

    /// Bytes without a word of the peer after which it is asked for one: half of what may be under way, and more where the
    /// rest of the message fits what is left of that. Its answer will acknowledge all of it, while an acknowledgement that
    /// has to be made shortly before the message is complete keeps the peer from completing it.
    ///
    /// Not so where a quarter of the window takes no datagram: the next one would be held back, and nobody asked. Nor before
    /// the first round trip is measured, which an answer does not do, and without which pacer and probes know no pace.
    fn asks_after(&self, message: &Outgoing) -> u64 {
        let window = self.window();
        let left = window.saturating_sub(self.flight.bytes());
        let spares = window / 4 >= u64::from(self.size.negotiated()) && self.rtt.is_sampled();
        if spares && message.unsent() <= left { window / 4 * 3 } else { window / 2 }
    }

    /// How many of `most` further frames of `bytes` each may leave along with one that has just been sent, before an
    /// acknowledgement is to be asked for after so many bytes.
    fn room_for(&self, bytes: u32, most: u32, asks_after: u64) -> u32 {
        let left = self.window().saturating_sub(self.flight.bytes()).min(asks_after.saturating_sub(self.unheard.0));
        let frames = left.min(self.pacer.tokens()) / u64::from(bytes.max(1));
        let tracked = self.flight.room().min((self.flight.capacity() / 2).saturating_sub(self.unheard.1));
        frames.min(tracked).min(u64::from(most)) as u32
    }

    /// Records the frames that make a train with the one sent just before: parts of one tensor, `count` of them.
    fn send_following(&mut self, ring: &mut [SentFrame], now: Time, mut cargo: Cargo, bytes: u32, count: u32) {
        for _ in 0..count {
            if let Cargo::Part { offset, length, .. } = &mut cargo {
                *offset += *length;
            }
            self.send(ring, now, cargo, bytes);
        }
        self.window_limited |= self.flight.bytes() > self.congestion.window() / 2;
    }

    pub(crate) fn progressed_at(&self) -> Time {
        self.progressed_at
    }

    /// Takes in an acknowledgement. `settled` hears of each frame: true for acknowledged, false for lost.
    pub(crate) fn on_ack(
        &mut self,
        ring: &mut [SentFrame],
        now: Time,
        ack: &Ack<'_>,
        mut settled: impl FnMut(Settled, bool),
    ) {
        self.peer_window = ack.window;
        let mut bytes = 0;
        let mut newest: Option<Settled> = None;
        for range in ack.ranges {
            let Some(last) = self.flight.expand(range.last()) else { continue };
            let first = last.saturating_sub(u64::from(range.span()));
            for packet in self.flight.within(first, last) {
                if let Some(s) = self.flight.acknowledge(ring, packet) {
                    bytes += u64::from(s.bytes);
                    self.size.carried(s.bytes);
                    if newest.is_none_or(|n| n.packet < s.packet) {
                        newest = Some(s);
                    }
                    settled(s, true);
                }
            }
        }
        if let Some(newest) = newest {
            let is_highest = ack.ranges.first().and_then(|r| self.flight.expand(r.last())) == Some(newest.packet);
            let rtt = now.since(newest.sent_at);
            // How long the peer waited before it acknowledged is no queue of the path's.
            let sample = is_highest.then(|| self.rtt.sample(now, rtt, u64::from(ack.delay_us) * 1_000));
            self.progress(now, bytes, sample);
        }
        self.detect_losses(ring, now, |s| settled(s, false));
    }

    /// A message was answered, so none of its frames is under way any more; if `whole`, all of them arrived.
    pub(crate) fn on_answered(&mut self, ring: &mut [SentFrame], now: Time, key: RequestKey, whole: bool) {
        let (mut bytes, mut newest, size) = (0, Time::default(), &mut self.size);
        self.flight.forget(ring, key, |s| {
            bytes += u64::from(s.bytes);
            newest = newest.max(s.sent_at);
            if whole {
                size.carried(s.bytes);
            }
        });
        if bytes > 0 {
            if whole {
                self.rtt.bound(now.since(newest));
            }
            self.progress(now, bytes, None);
        }
    }

    /// Silence so far says nothing of what is sent from now on.
    pub(crate) fn stop_probing(&mut self) {
        self.probes = 0;
        self.probing = false;
        self.ask = false;
    }

    fn progress(&mut self, now: Time, bytes: u64, rtt_ns: Option<u64>) {
        self.stop_probing();
        self.unheard = (0, 0);
        self.progressed_at = now;
        let sample = AckSample {
            now,
            bytes,
            rtt_ns,
            min_rtt_ns: self.rtt.min(),
            smoothed_rtt_ns: self.rtt.smoothed(),
            window_limited: self.window_limited,
        };
        self.congestion.on_ack(&sample);
    }

    fn detect_losses(&mut self, ring: &mut [SentFrame], now: Time, mut lost: impl FnMut(Settled)) {
        let delay = self.rtt.loss_delay();
        let mut bytes = 0;
        let mut from = self.lost_from;
        while let Some(s) = self.flight.take_lost(ring, &mut from, now, delay) {
            bytes += u64::from(s.bytes);
            self.lost_frames += 1;
            self.size.missed(now, s.bytes);
            lost(s);
        }
        self.lost_from = from;
        if bytes > 0 {
            self.congestion.on_loss(now, bytes, self.rtt.smoothed());
        }
    }

    /// When [`Channel::on_timer`] or an acknowledgement is due.
    pub(crate) fn timer(&self, ring: &[SentFrame]) -> Time {
        let mut at = self.received.due().min(self.paced_until);
        if !self.flight.is_empty() {
            at = at.min(self.probe_at());
            if let Some(loss) = self.flight.loss_time(ring, self.rtt.loss_delay()) {
                at = at.min(loss);
            }
        }
        at
    }

    /// Deals with what is due: late frames count as lost, and silence is probed. `lost` hears of each frame that is taken for
    /// lost, and says whether something of it must go again.
    pub(crate) fn on_timer(&mut self, ring: &mut [SentFrame], now: Time, mut lost: impl FnMut(Settled) -> bool) {
        if self.paced_until <= now {
            self.paced_until = Time::NEVER;
        }
        if self.flight.is_empty() {
            return;
        }
        self.detect_losses(ring, now, |s| _ = lost(s));
        if self.flight.is_empty() || now < self.probe_at() {
            return;
        }
        if self.probes == 0 {
            self.silent_since = now;
        }
        self.probes += 1;
        self.probed_at = now;
        self.probing = true;
        self.ask = true;
        if self.probes >= PROBES_BEFORE_SILENCE {
            self.congestion.on_silence();
        }
        let (mut frames, mut again) = (0, false);
        let mut lost = |s| {
            frames += 1;
            again |= lost(s);
            again
        };
        if now.since(self.silent_since) >= SILENCE_BEFORE_SHRINKING
            && !self.size.has_shrunk()
            && self.flight.any(ring, |bytes| bytes > u32::from(MIN_DATAGRAM))
        {
            self.size.shrink(now);
            self.flight.take_where(ring, |_| true, |s| _ = lost(s));
        } else if self.probes >= PROBES_BEFORE_FIRSTS {
            self.flight.take_where(ring, |cargo| matches!(cargo, Cargo::First { .. }), |s| _ = lost(s));
        }
        // What nobody needs any more makes no probe.
        while let Some(s) = self.flight.take_oldest(ring)
            && !lost(s)
        {}
        self.lost_frames += frames;
        if !again {
            self.stop_probing();
        }
    }

    /// The datagram size that the session began with.
    pub(crate) fn negotiated(&self) -> u16 {
        self.size.negotiated()
    }

    /// Whether the path was taken to refuse the negotiated datagram size.
    pub(crate) fn has_shrunk(&self) -> bool {
        self.size.has_shrunk()
    }

    /// The acknowledgement to send now, with the bytes that the peer may have under way.
    pub(crate) fn take_ack<'r>(
        &mut self,
        now: Time,
        window: u64,
        ranges: &'r mut heapless::Vec<AckRange, MAX_ACK_RANGES>,
    ) -> Ack<'r> {
        let delay_us = self.received.take_ack(now, ranges);
        Ack { window, delay_us, ranges }
    }

    fn probe_at(&self) -> Time {
        let gap = self.rtt.probe_timeout().saturating_mul(1 << self.probes.min(16));
        self.flight.last_sent_at().max(self.probed_at) + gap.clamp(MS / 4, MAX_PROBE_GAP)
    }
}
