//! Headers and control payloads: no bytes make a parser panic, and what parses survives being written and parsed again.
//! As tests these run over their corpora and random bytes; `deploy/fuzz splitrpc-wire:header` goes on for longer.

use splitrpc_wire::ack::{Ack, MAX_ACK_LEN};
use splitrpc_wire::hello::{Challenge, Hello, HelloAck};
use splitrpc_wire::{HEADER_LEN, Header, Kind, MAX_STATUS_TEXT, StatusPayload};

#[test]
fn header() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(header) = Header::parse(bytes) {
            // Every bit of a header means something, so that there is one way to write it.
            assert_eq!(header.to_bytes(), bytes[..HEADER_LEN]);
            if matches!(header.kind, Kind::Request | Kind::Response) {
                assert!(u64::from(header.offset) + u64::from(header.length) <= u64::from(header.total));
            }
        }
    });
}

/// Random bytes are seldom a frame's: these are, but for the fields.
#[test]
fn header_fields() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut frame = Header::new(Kind::Hello).to_bytes();
        for (to, from) in frame[3..].iter_mut().zip(bytes) {
            *to = *from;
        }
        frame[3] = frame[3] % 14 + 1;
        match Header::parse(&frame) {
            Ok(header) => assert_eq!(header.to_bytes(), frame),
            Err(error) => {
                let may_be_wrong = frame[4] & 0x80 != 0 || frame[48..] != [0; 16] || frame[3] == 6 || frame[3] == 7;
                assert!(may_be_wrong, "{error}");
            }
        }
    });
}

#[test]
fn hello() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(hello) = Hello::parse(bytes) {
            assert_eq!(Hello::parse(&hello.to_bytes()), Ok(hello));
        }
        if let Ok(challenge) = Challenge::parse(bytes) {
            assert_eq!(challenge.to_bytes(), bytes[..Challenge::LEN]);
        }
        if let Ok(ack) = HelloAck::parse(bytes) {
            assert_eq!(HelloAck::parse(&ack.to_bytes()), Ok(ack));
        }
    });
}

#[test]
fn ack() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(ack) = Ack::parse(bytes) else { return };
        let mut out = [0; MAX_ACK_LEN];
        let length = ack.write(&mut out);
        assert_eq!(out[..length], bytes[..length]);
        let Some(highest) = ack.ranges.first().map(|r| r.last()) else { return };
        // Unwrapped, the ranges descend and leave at least one packet between each other.
        let distances =
            |r: &splitrpc_wire::ack::AckRange| (highest.wrapping_sub(r.last()), highest.wrapping_sub(r.first()));
        for range in ack.ranges {
            let (near, far) = distances(range);
            assert!(near <= far && far < 1 << 31);
            assert_eq!(range.span(), far - near);
        }
        for pair in ack.ranges.windows(2) {
            assert!(distances(&pair[0]).1 + 1 < distances(&pair[1]).0);
        }
    });
}

#[test]
fn status() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(payload) = StatusPayload::parse(bytes) else { return };
        assert!(payload.text.len() <= MAX_STATUS_TEXT);
        let mut out = [0; 8 + MAX_STATUS_TEXT];
        let length = payload.write(&mut out);
        assert_eq!(out[..length], bytes[..length]);
        // Into any smaller buffer a prefix of it goes, cut between characters.
        let room = bytes.last().map_or(0, |b| usize::from(*b)).min(length);
        let length = payload.write(&mut out[..room]);
        if length > 0 {
            let cut = StatusPayload::parse(&out[..length]).unwrap();
            assert!(payload.text.starts_with(cut.text));
        }
    });
}
