//! Clients and a server under virtual time, over a network that loses, duplicates, reorders and corrupts datagrams and
//! changes its largest size, with clients that vanish and servers that restart. Whatever happens: no slot is lost, no wrong
//! byte delivered, nothing executed twice, no client forgotten that is being served, and everything ends, with all credit
//! given back.
//!
//! `SPLITRPC_SIM_SEED=N` runs one seed, `SPLITRPC_SIM_SEEDS=N` the first N.
#![allow(missing_docs, unreachable_pub)]

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sim::client::Tally;
use sim::world::World;

const SEEDS: u64 = 1_200;

#[test]
fn every_seed_ends_well() {
    let number = |name| std::env::var(name).ok().and_then(|v: String| v.parse().ok());
    let seeds = match number("SPLITRPC_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SPLITRPC_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let (mut total, mut evicted) = (Tally::default(), 0);
    let many = seeds.clone().count() as u64 >= SEEDS;
    for seed in seeds {
        let mut world = World::new(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
            eprintln!("seed {seed} failed; run it alone with SPLITRPC_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        total.add(&world.tally());
        evicted += world.evicted;
    }
    eprintln!("{total:?}, {evicted} sessions made room");
    assert!(total.answered > 0, "nothing was ever answered");
    assert!(evicted > 0 || !many, "no table was ever full");
}
