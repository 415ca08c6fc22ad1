//! Immediates: no bytes make the parser panic, and what parses survives being written and parsed again. As a test this runs over its corpus and random bytes;
//! `deploy/fuzz splitrpc-ring:immediate` goes on for longer.
#![cfg(not(loom))]

use splitrpc_ring::{IMMEDIATE_BYTES, Immediate};

#[test]
fn immediate() {
    bolero::check!().for_each(|bytes: &[u8]| {
        // Most random bytes are of a length, or a kind, that there is not: these are, but for what they say.
        let mut likely = [0; IMMEDIATE_BYTES];
        likely.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        (likely[0], likely[1], likely[2], likely[3]) = (likely[0] % 24, 0, likely[2] % 4, 0);
        for bytes in [bytes, &likely] {
            if let Ok(immediate) = Immediate::from_bytes(bytes) {
                assert_eq!(bytes.len(), IMMEDIATE_BYTES);
                assert_eq!(Immediate::from_bytes(&immediate.to_bytes()), Ok(immediate));
            }
        }
    });
}
