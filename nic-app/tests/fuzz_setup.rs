//! What card and host agent say to each other before they serve: no bytes make a parser panic, what parses survives being written and parsed again, and what
//! is set up can be built. As tests these run over their corpora and random bytes; `deploy/fuzz nic-app:message` goes on for longer.

use nic_app::EngineMemory;
use nic_app::setup::{Exported, Hex, MAX_SETUP, Message, ModelShape, Parts, PoolShape, Ready, Setup};
use splitrpc_arena::PoolLayout;
use splitrpc_engine::{PathInfo, ServerConfig};
use splitrpc_ring::{CONTROL_LINES, LINE_WORDS};

#[test]
fn message() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(message) = Message::parse(bytes) {
            assert_eq!(message.to_bytes(), bytes);
            if let Message::Ready { json } = message
                && let Ok(ready) = serde_json::from_slice::<Ready>(json)
            {
                let again = serde_json::to_vec(&ready).unwrap();
                assert_eq!(serde_json::from_slice::<Ready>(&again).unwrap(), ready);
            }
        }
    });
}

/// Each four bytes are a part: what it says of the whole and of its place, and how much it brings.
#[test]
fn parts() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let (mut parts, mut whole, mut total) = (Parts::default(), Vec::new(), 0);
        for step in bytes.chunks_exact(4) {
            let said = match step[0] {
                0 => u32::MAX,
                1 => MAX_SETUP as u32 + 1,
                other => u32::from(other % 64),
            };
            let offset = if step[1] < 200 { whole.len() as u32 } else { u32::from(step[1] % 64) };
            let part = vec![step[3]; usize::from(step[2] % 16)];
            if offset == 0 {
                (whole, total) = (Vec::new(), said as usize);
            }
            match parts.take(said, offset, &part) {
                Ok(done) => {
                    assert!(said as usize == total && offset as usize == whole.len() && total <= MAX_SETUP);
                    whole.extend_from_slice(&part);
                    assert!(whole.len() <= total);
                    assert_eq!(done.is_some(), whole.len() == total);
                    if let Some(done) = done {
                        assert_eq!(done, whole);
                        (whole, total) = (Vec::new(), 0);
                    }
                }
                Err(_) => assert!(
                    part.is_empty()
                        || said as usize != total
                        || whole.len() + part.len() > total
                        || offset as usize != whole.len()
                        || total > MAX_SETUP
                ),
            }
        }
    });
}

/// What is read is written as it was, and an engine can be built of it, or says why not.
fn try_setup(json: &[u8]) {
    match Setup::parse(json) {
        Ok(setup) => {
            assert_eq!(Setup::parse(&setup.to_json()), Ok(setup.clone()));
            let layouts = setup.layouts().unwrap();
            let limits = setup.engine(1 << 20, true);
            // Not more than a test may take.
            let slots: u64 = layouts.iter().map(|(_, layout)| u64::from(layout.slots())).sum();
            let small =
                limits.requests <= 64 && limits.flight <= 64 && limits.datagram_sessions + limits.stream_sessions <= 64;
            if small && slots < 10_000 {
                let inputs: Vec<_> = setup.models.iter().map(ModelShape::inputs).collect();
                assert!(setup.models.iter().zip(&inputs).all(|(model, inputs)| model.inputs.len() == inputs.len()));
                let models: Vec<_> =
                    setup.models.iter().zip(&inputs).map(|(model, inputs)| model.plan(inputs)).collect();
                let pools = &layouts[..usize::from(setup.input_pools)];
                if let Ok(mut memory) = EngineMemory::new(&limits, models.len(), pools)
                    && let Err(error) = memory.engine(&models, &setup.catalog.0, pools)
                {
                    assert!(!error.to_string().is_empty());
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[test]
fn setup_json() {
    bolero::check!().for_each(|bytes: &[u8]| try_setup(bytes));
}

/// Random bytes are seldom a set-up: these are, but for some of its numbers.
#[test]
fn setup_fields() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut setup = sound();
        for step in bytes.chunks_exact(4) {
            change(&mut setup, step[0], step[1], [step[2], step[3]]);
        }
        try_setup(&setup.to_json());
    });
}

#[test]
fn a_sound_setup_is_taken_and_a_giant_one_is_not() {
    let mut setup = sound();
    assert_eq!(Setup::parse(&setup.to_json()), Ok(setup.clone()));
    // Each of these may be, but no card has memory for what they make together.
    (setup.limits.datagram_sessions, setup.limits.flight) = (1 << 10, 1 << 20);
    let error = Setup::parse(&setup.to_json()).unwrap_err().to_string();
    assert!(error.contains("a card takes at most"), "{error}");
    setup = sound();
    setup.limits.requests = 1 << 20;
    assert!(Setup::parse(&setup.to_json()).is_err());
}

fn sound() -> Setup {
    let shape = |id, rows: &[u32]| PoolShape { id, row_bytes: rows.to_vec(), max_batch: 2, windows: 2 };
    let pools = vec![shape(0, &[64, 4096]), shape(3, &[1 << 20]), shape(4, &[100])];
    let mut setup = Setup {
        arena: Exported { description: Hex(vec![1, 2, 3]), bytes: 0 },
        ring: Exported { description: Hex(vec![4]), bytes: ((CONTROL_LINES + 16) * 8 * LINE_WORDS) as u64 },
        ring_entries: 16,
        pools,
        input_pools: 2,
        device: Vec::new(),
        models: vec![
            ModelShape {
                inputs: vec![(1, vec![-1, 16]), (1, vec![-1])],
                classes: vec![0],
                max_batch: 2,
                priority_levels: 2,
                default_priority: 1,
            },
            ModelShape {
                inputs: vec![(6, vec![-1])],
                classes: vec![3],
                max_batch: 0,
                priority_levels: 0,
                default_priority: 0,
            },
        ],
        catalog: Hex(vec![0; 4]),
        limits: ServerConfig {
            stream_sessions: 4,
            datagram_sessions: 4,
            requests: 16,
            flight: 16,
            // Not written: the card's own sockets and paths.
            receive_room: 0,
            datagram_path: PathInfo::USUAL,
            ..ServerConfig::small()
        },
        doorbell: Some(([127, 0, 0, 1], 7).into()),
        knock: 7,
    };
    setup.arena.bytes = bytes(&setup.pools);
    setup
}

/// Bytes of the slots of pools that can be.
fn bytes(pools: &[PoolShape]) -> u64 {
    let layout =
        |pool: &PoolShape| PoolLayout::new(&pool.row_bytes, pool.max_batch, pool.windows).map(|layout| layout.bytes());
    pools.iter().filter_map(|pool| layout(pool).ok()).sum::<u64>().max(4096)
}

fn change(setup: &mut Setup, what: u8, which: u8, value: [u8; 2]) {
    let small = u16::from_le_bytes(value);
    // Also numbers past all limits.
    let large = u32::from(small) << (u32::from(which) % 17);
    let count = setup.pools.len();
    let pool = &mut setup.pools[usize::from(which) % count];
    let models = setup.models.len();
    let model = &mut setup.models[usize::from(which) % models];
    let limits = &mut setup.limits;
    match what % 24 {
        0 => pool.id = small,
        1 => pool.row_bytes.push(large),
        2 => pool.row_bytes.clear(),
        3 => pool.max_batch = small,
        4 => pool.windows = large,
        5 if count > 1 => drop(setup.pools.pop()),
        6 => setup.input_pools = small,
        7 => setup.ring_entries = large,
        8 => setup.ring.bytes = large.into(),
        9 => setup.arena.bytes = large.into(),
        10 => setup.arena.bytes = bytes(&setup.pools),
        11 => model.inputs.push((value[0], vec![i32::from(value[1]) - 3; usize::from(which % 12)])),
        12 => model.inputs.clear(),
        13 => model.classes.push(small),
        14 => model.classes.clear(),
        15 => model.max_batch = small,
        16 => (model.priority_levels, model.default_priority) = (value[0], value[1]),
        17 => limits.requests = large,
        18 => (limits.stream_sessions, limits.datagram_sessions) = (large, u32::from(value[0])),
        19 => limits.flight = 1 << (value[0] % 22),
        20 => (limits.max_request, limits.datagram) = (large, small),
        21 => (limits.receive_window, limits.idle_timeout) = (u64::from(large) << 16, u64::from(large) << 20),
        22 => (limits.kept_replies, limits.requests_per_client) = (large, small),
        _ => setup.catalog = Hex(vec![value[0]; usize::from(value[1])]),
    }
}
