//! Rules whose breach hardware punishes in silence: each ends the process, and is told.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::ptr::null_mut;

use common::{ENOUGH, doca, done, events, pair};
use doca_sys::*;

/// A process that has all that rules are about.
struct Card {
    engine: *mut doca_pe,
    arm: *mut doca_dev,
    mmap: *mut doca_mmap,
    address: usize,
    inventory: *mut doca_buf_inventory,
    dma: *mut doca_dma,
    from: *mut doca_buf,
    to: *mut doca_buf,
}

impl Card {
    fn new() -> Card {
        let (arm, engine) = (common::arm(), common::engine());
        let memory = vec![7; 4096].leak();
        let address = memory.as_ptr().expose_provenance();
        let mmap = common::mmap(arm, memory, common::LOCAL);
        let inventory = common::inventory(8);
        let from = common::buf(inventory, mmap, address, 1024, 64);
        let to = common::buf(inventory, mmap, address + 2048, 1024, 0);
        Card { engine, arm, mmap, address, inventory, dma: common::dma(arm, engine, 4), from, to }
    }

    fn task(&self) -> *mut doca_task {
        common::copy(self.dma, self.from, self.to, 1)
    }

    fn in_flight(&self) -> *mut doca_task {
        let task = self.task();
        done!(doca_task_submit(task));
        task
    }

    fn progress(&self) {
        for _ in 0..ENOUGH {
            doca!(doca_pe_progress(self.engine));
        }
    }
}

/// What is done, the rule that it breaks, and the function that tells.
type Breach = (&'static str, &'static str, &'static str, fn(&Card));

const BREACHES: &[Breach] = &[
    ("free_in_flight", "a task was freed in flight", "doca_task_free", |card| {
        doca!(doca_task_free(card.in_flight()));
    }),
    ("free_twice", "a task was used after it was freed", "doca_task_free", |card| {
        let task = card.task();
        doca!(doca_task_free(task));
        doca!(doca_task_free(task));
    }),
    ("submit_freed", "a task was used after it was freed", "doca_task_submit", |card| {
        let task = card.task();
        doca!(doca_task_free(task));
        doca!(doca_task_submit(task));
    }),
    ("submit_twice", "a task was submitted twice", "doca_task_submit", |card| {
        doca!(doca_task_submit(card.in_flight()));
    }),
    ("change_in_flight", "a task was changed in flight", "doca_dma_task_memcpy_set_src", |card| {
        doca!(doca_dma_task_memcpy_set_src(card.in_flight().cast(), card.from));
    }),
    ("buf_in_flight", "a buf of a task in flight was given back", "doca_buf_dec_refcount", |card| {
        card.in_flight();
        doca!(doca_buf_dec_refcount(card.to, null_mut()));
    }),
    ("data_in_flight", "a buf of a task in flight was changed", "doca_buf_set_data", |card| {
        card.in_flight();
        doca!(doca_buf_set_data(card.to, null_mut(), 0));
    }),
    ("list_in_flight", "a buf of a task in flight was changed", "doca_buf_set_data", |card| {
        let more = common::buf(card.inventory, card.mmap, card.address + 1024, 1024, 64);
        done!(doca_buf_chain_list(card.from, more));
        card.in_flight();
        doca!(doca_buf_set_data(more, null_mut(), 0));
    }),
    ("submit_returned_buf", "a buf was used after it went back to its inventory", "doca_task_submit", |card| {
        let task = card.task();
        common::give_back(card.from);
        doca!(doca_task_submit(task));
    }),
    ("submit_ended_buf", "a buf was used after its end", "doca_task_submit", |card| {
        let task = card.task();
        common::give_back(card.from);
        common::give_back(card.to);
        done!(doca_buf_inventory_destroy(card.inventory));
        doca!(doca_task_submit(task));
    }),
    ("buf_after_its_end", "a buf was used after it went back to its inventory", "doca_buf_get_len", |card| {
        common::give_back(card.from);
        doca!(doca_buf_get_len(card.from, &mut 0));
    }),
    ("buf_of_ended_inventory", "a buf was used after its end", "doca_buf_get_len", |card| {
        common::give_back(card.from);
        common::give_back(card.to);
        done!(doca_buf_inventory_destroy(card.inventory));
        doca!(doca_buf_get_len(card.from, &mut 0));
    }),
    ("device_after_its_end", "a device was used after its end", "doca_dev_as_devinfo", |_| {
        let host = common::host();
        done!(doca_dev_close(host));
        doca!(doca_dev_as_devinfo(host));
    }),
    ("info_after_its_list", "a devinfo was used after its end", "doca_devinfo_get_iface_name", |_| {
        let (mut list, mut number) = (null_mut(), 0);
        done!(doca_devinfo_create_list(&raw mut list, &raw mut number));
        // SAFETY: there are two devices.
        let entry = unsafe { *list };
        done!(doca_devinfo_destroy_list(list));
        doca!(doca_devinfo_get_iface_name(entry, null_mut(), 0));
    }),
    ("list_twice", "a list that was not handed out, or no longer, was destroyed", "doca_devinfo_destroy_list", |_| {
        let (mut list, mut number) = (null_mut(), 0);
        done!(doca_devinfo_create_list(&raw mut list, &raw mut number));
        done!(doca_devinfo_destroy_list(list));
        doca!(doca_devinfo_destroy_list(list));
    }),
    ("another_kind", "what was passed as an mmap is none", "doca_mmap_start", |card| {
        doca!(doca_mmap_start(card.engine.cast()));
    }),
    ("another_context", "another context was passed as a client", "doca_comch_client_as_ctx", |card| {
        doca!(doca_comch_client_as_ctx(card.dma.cast()));
    }),
    ("null_task", "a null pointer was passed as a task", "doca_task_free", |_| {
        doca!(doca_task_free(null_mut()));
    }),
    ("two_threads", "a progress engine was used by two threads", "doca_pe_progress", |card| {
        doca!(doca_pe_progress(card.engine));
        let engine = card.engine.expose_provenance();
        let other = move || doca!(doca_pe_progress(std::ptr::with_exposed_provenance_mut(engine)));
        std::thread::spawn(other).join().unwrap();
    }),
    ("submit_by_another_thread", "a progress engine was used by two threads", "doca_task_submit", |card| {
        doca!(doca_pe_progress(card.engine));
        let task = card.task().expose_provenance();
        let other = move || doca!(doca_task_submit(std::ptr::with_exposed_provenance_mut(task)));
        std::thread::spawn(other).join().unwrap();
    }),
    ("re_entrant", "a progress engine was made to progress in one of its callbacks", "doca_pe_progress", |card| {
        let engine = card.engine;
        events::next(move || {
            doca!(doca_pe_progress(engine));
        });
        card.in_flight();
        card.progress();
    }),
    ("destroyed_in_callback", "a progress engine was destroyed in one of its callbacks", "doca_pe_destroy", |card| {
        let engine = card.engine;
        events::next(move || {
            doca!(doca_pe_destroy(engine));
        });
        card.in_flight();
        card.progress();
    }),
    (
        "connection_after_its_end",
        "a connection was used after its end",
        "doca_comch_connection_set_user_data",
        |card| {
            let (_, connection, client) = pair::both(card.arm, common::host(), card.engine, c"ended");
            let context = doca!(doca_comch_client_as_ctx(client));
            doca!(doca_ctx_stop(context));
            common::until(card.engine, "the client has gone", || events::has(&events::Event::Disconnected));
            doca!(doca_comch_connection_set_user_data(connection, doca_data { u64_: 0 }));
        },
    ),
    ("long_immediate", "immediate data is up to 32 bytes", "doca_comch_producer_task_send_set_imm_data", |card| {
        let (_, connection, _) = pair::both(card.arm, common::host(), card.engine, c"immediate");
        let (producer, mut task) = (pair::producer(connection, card.engine), null_mut());
        let (none, nothing) = (std::ptr::null(), null_mut());
        done!(doca_comch_producer_task_send_alloc_init(producer, none, nothing, 0, 1, &raw mut task));
        doca!(doca_comch_producer_task_send_set_imm_data(task, [0; 33].as_mut_ptr(), 33));
    }),
];

#[test]
fn each_broken_rule_ends_the_process_and_is_told() {
    if let Some(role) = common::role() {
        let (.., breach) = BREACHES.iter().find(|(name, ..)| *name == role).unwrap();
        breach(&Card::new());
        panic!("nobody minded");
    }
    for (name, rule, function, _) in BREACHES {
        let bus = tempfile::tempdir().unwrap();
        let test = "each_broken_rule_ends_the_process_and_is_told";
        let ended = common::child(test, name, "both", bus.path()).output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        let expected = format!("software BlueField: RULE BROKEN: {rule} (in {function})\n");
        assert!(told.contains(&expected), "{name}: {told}");
        assert_eq!(ended.status.signal(), Some(6), "{name}: {told}");
    }
}

/// The buffer is the library's again: what a program kept a pointer to has changed.
#[test]
fn a_message_is_gone_after_its_callback() {
    let (arm, host, engine) = (common::arm(), common::host(), common::engine());
    let (server, connection, _) = pair::both(arm, host, engine, c"poison");
    common::succeeds("it is sent", pair::server_sends(server, connection, b"here today", 1));
    common::until(engine, "it is received", || events::has(&events::Event::Message(b"here today".to_vec())));
    // SAFETY: the memory stays as long as the connection, though its bytes do not.
    let kept = unsafe { std::slice::from_raw_parts(events::message(), 10) };
    assert_eq!(kept, [0xdb; 10]);
}

/// With wrong settings there is no card, and it is told why.
#[test]
fn wrong_settings_are_told() {
    if common::role().is_some() {
        let (mut list, mut number) = (null_mut(), 0);
        let outcome = doca!(doca_devinfo_create_list(&raw mut list, &raw mut number));
        assert_eq!(common::name(outcome), "DOCA_ERROR_INITIALIZATION");
        return;
    }
    let bus = tempfile::tempdir().unwrap();
    let told = |side: &str, faults: &str, bus: &std::path::Path| {
        let mut child = common::child("wrong_settings_are_told", "lists", side, bus);
        let ended = child.env("SPLITRPC_BLUEFIELD_FAULTS", faults).output().unwrap();
        assert!(ended.status.success());
        String::from_utf8(ended.stderr).unwrap()
    };
    let expected = [
        (told("nic", "", bus.path()), "SPLITRPC_BLUEFIELD_SIDE is arm, host or both, not 'nic'"),
        (told("arm", "fail=1001", bus.path()), "SPLITRPC_BLUEFIELD_FAULTS: fail is permille, 0 to 1000, not '1001'"),
        (told("arm", "fial=1", bus.path()), "SPLITRPC_BLUEFIELD_FAULTS: there is no 'fial'; there are seed, delay"),
        (told("arm", "seed", bus.path()), "SPLITRPC_BLUEFIELD_FAULTS: 'seed' is not key=value"),
        (told("arm", "", &bus.path().join("none")), "SPLITRPC_BLUEFIELD names a folder, and"),
    ];
    for (told, expected) in expected {
        assert!(told.contains(&format!("software BlueField: {expected}")), "{told}");
    }
}

#[test]
fn without_settings_there_are_no_devices() {
    if common::role().is_some() {
        let (mut list, mut number) = (null_mut(), 7);
        done!(doca_devinfo_create_list(&raw mut list, &raw mut number));
        assert_eq!(number, 0);
        done!(doca_devinfo_destroy_list(list));
        return;
    }
    let mut child = common::child("without_settings_there_are_no_devices", "lists", "arm", std::path::Path::new(""));
    child.env_remove("SPLITRPC_BLUEFIELD");
    common::Running::start(child).succeeds();
}
