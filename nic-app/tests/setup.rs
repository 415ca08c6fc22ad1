//! A set-up comes from another machine's process: what cannot be is refused by its name.

use nic_app::setup::{BadSetup, DevicePool, Exported, Hex, Message, ModelShape, PoolShape, Setup};
use splitrpc_arena::PoolLayout;
use splitrpc_engine::{PathInfo, ServerConfig};

/// What is not written, the card's own sockets and paths, is as by default.
const LIMITS: ServerConfig = ServerConfig {
    stream_sessions: 4,
    datagram_sessions: 4,
    requests: 16,
    flight: 64,
    receive_room: 0,
    datagram_path: PathInfo::USUAL,
    ..ServerConfig::small()
};

/// Two pools of inputs and one of outputs; the inputs of the second one are on a device.
fn setup() -> Setup {
    let pool = |id, row_bytes| PoolShape { id, row_bytes: vec![row_bytes], max_batch: 1, windows: 4 };
    let pools = vec![pool(0, 4096), pool(1, 65_536), pool(2, 100)];
    let layout = |shape: &PoolShape| PoolLayout::new(&shape.row_bytes, shape.max_batch, shape.windows).unwrap();
    let bytes = |pools: &[PoolShape]| pools.iter().map(|shape| layout(shape).bytes()).sum::<u64>();
    let exported = |bytes| Exported { description: Hex(vec![1, 2, 3]), bytes };
    Setup {
        arena: exported(bytes(&pools)),
        ring: exported(1 << 20),
        ring_entries: 64,
        device: vec![DevicePool { pool: 1, memory: exported(bytes(&pools[1..2])) }],
        pools,
        input_pools: 2,
        models: vec![ModelShape {
            inputs: Vec::new(),
            classes: vec![0, 1],
            max_batch: 0,
            priority_levels: 1,
            default_priority: 1,
        }],
        catalog: Hex(Vec::new()),
        limits: LIMITS,
        doorbell: None,
        knock: 7,
    }
}

/// What is said of a set-up in which something was changed.
fn refused(change: impl FnOnce(&mut Setup)) -> String {
    let mut setup = setup();
    change(&mut setup);
    Setup::parse(&setup.to_json()).expect_err("it is taken").to_string()
}

#[test]
fn what_was_written_is_read_again() {
    let setup = setup();
    assert_eq!(Setup::parse(&setup.to_json()), Ok(setup));
    let mut none = self::setup();
    none.device.clear();
    assert_eq!(Setup::parse(&none.to_json()), Ok(none));
}

#[test]
fn memory_of_a_device_is_for_input_pools_each_once_and_large_enough() {
    let more = |pool, bytes| DevicePool { pool, memory: Exported { description: Hex(Vec::new()), bytes } };
    // A device rounds up.
    let mut larger = setup();
    larger.device[0].memory.bytes = 2 << 20;
    assert!(Setup::parse(&larger.to_json()).is_ok());
    assert!(refused(|setup| setup.device[0].memory.bytes -= 1).contains("device: its bytes"));
    assert!(refused(|setup| setup.device[0].memory.bytes = u64::MAX).contains("device: its bytes"));
    assert!(refused(|setup| setup.device.push(more(1, 1 << 20))).contains("device: its order"));
    assert!(refused(|setup| setup.device.push(more(0, 1 << 20))).contains("device: its order"));
    // One of outputs, and none at all.
    assert!(refused(|setup| setup.device[0].pool = 2).contains("device: a pool"));
    assert!(refused(|setup| setup.device[0].pool = 9).contains("device: a pool"));
}

#[test]
fn a_set_up_without_word_of_the_device_is_none() {
    let mut json: serde_json::Value = serde_json::from_slice(&setup().to_json()).unwrap();
    json.as_object_mut().unwrap().remove("device");
    let read = Setup::parse(json.to_string().as_bytes());
    assert!(matches!(read, Err(BadSetup::Json(_))), "{read:?}");
}

#[test]
fn a_card_may_say_that_it_cannot_reach_it() {
    let message = Message::Unreached { why: "no" };
    assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
}

#[test]
fn pools_come_in_their_order() {
    for ids in [[0, 1, 1], [0, 2, 1], [1, 0, 2]] {
        let said = refused(|setup| setup.pools.iter_mut().zip(ids).for_each(|(pool, id)| pool.id = id));
        assert!(said.contains("pools: the order of their slots"), "{said}");
    }
}
