//! Any sequence of steps, honest or not, agrees with the queue: as property tests, and as a fuzz target that
//! `deploy/fuzz splitrpc-ring:ring` runs for longer.
#![cfg(not(loom))]

mod model;

use model::Op;
use proptest::prelude::*;

fn honest() -> impl Strategy<Value = Op> {
    prop_oneof![5 => any::<u8>().prop_map(Op::Push), 5 => Just(Op::Pop), 1 => Just(Op::Publish)]
}

fn hostile() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => honest(),
        1 => (any::<u8>(), any::<u8>(), prop_oneof![0..64u64, any::<u64>()])
            .prop_map(|(line, word, value)| Op::Scribble { line, word, value }),
        1 => any::<(u8, u16)>().prop_map(|(line, bit)| Op::Flip { line, bit }),
        1 => any::<(u8, u8)>().prop_map(|(from, to)| Op::Replay { from, to }),
        1 => any::<(u8, u8)>().prop_map(|(ahead, seed)| Op::Forge { ahead, seed }),
    ]
}

/// The first byte sizes the ring, the others are steps.
#[test]
fn ring() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Some((&log2, steps)) = bytes.split_first() else { return };
        model::play(log2, &model::ops(steps));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn honest_ends_make_a_queue(log2 in 0..6u8, ops in prop::collection::vec(honest(), 0..400)) {
        model::play(log2, &ops);
    }

    #[test]
    fn a_hostile_peer_forges_or_fails(log2 in 0..6u8, ops in prop::collection::vec(hostile(), 0..400)) {
        model::play(log2, &ops);
    }
}
