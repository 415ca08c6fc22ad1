//! Card and host as two processes, which share nothing but what is granted.

mod common;

use std::ffi::CStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::ptr::null_mut;

use common::events::{self, Event};
use common::{LOCAL, PCI_READ, PCI_WRITE, Running, doca, done, pair};
use doca_sys::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};

const LEN: usize = 64 << 10;

/// Where a host's memory lies.
#[derive(Clone, Copy)]
enum Place {
    /// In a file, from an odd page on, a shared mapping of which is registered.
    File,
    /// In a file, which itself is registered.
    Descriptor,
    /// In memory of the process's own.
    Private,
}

impl Place {
    fn of(role: &str) -> Place {
        match role {
            "file" => Place::File,
            "descriptor" => Place::Descriptor,
            _ => Place::Private,
        }
    }
}

fn file(len: usize) -> OwnedFd {
    let file = memfd_create("host", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, len as u64).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    file
}

fn mapped(file: &OwnedFd, offset: usize) -> &'static mut [u8] {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: wherever there is room.
    let start = unsafe { mmap(null_mut(), LEN, protection, MapFlags::SHARED, file.as_fd(), offset as u64) }.unwrap();
    // SAFETY: it stays mapped.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), LEN) }
}

/// The host's program: registers memory, tells the card of it, and answers what the card says until the card goes.
fn host(place: Place, name: &CStr) {
    let (host, engine) = (common::host(), common::engine());
    let client = pair::persistent_client(host, engine, name);
    let file = file(3 * LEN);
    let memory: &'static mut [u8] = match place {
        Place::File | Place::Descriptor => mapped(&file, 4096),
        Place::Private => vec![0; LEN].leak(),
    };
    for (at, byte) in memory.iter_mut().enumerate() {
        *byte = at as u8;
    }
    let export = |access| {
        let mut registered = null_mut();
        done!(doca_mmap_create(&raw mut registered));
        done!(doca_mmap_add_dev(registered, host));
        done!(doca_mmap_set_permissions(registered, access));
        let start = memory.as_ptr().cast_mut().cast();
        if let Place::Descriptor = place {
            let number = std::os::fd::AsRawFd::as_raw_fd(&file);
            done!(doca_mmap_set_dmabuf_memrange(registered, number, start, 4096, LEN));
        } else {
            done!(doca_mmap_set_memrange(registered, start, LEN));
        }
        done!(doca_mmap_start(registered));
        (registered, common::export(registered, host))
    };
    let (writable, readable) = (export(LOCAL | PCI_WRITE), export(LOCAL | PCI_READ));
    let mut told = memory.as_ptr().addr().to_le_bytes().to_vec();
    told.extend([&writable.1[..], &readable.1[..]].concat());
    common::succeeds("memory is told of", pair::client_sends(client, &told, 1));
    let mut granted = Some(writable.0);
    loop {
        let said = events::take();
        if said.iter().any(|event| matches!(event, Event::State(2, 3))) {
            return;
        }
        for event in said {
            let Event::Message(bytes) = event else { continue };
            let answer = match &bytes[..] {
                b"end the grant" => {
                    done!(doca_mmap_destroy(granted.take().unwrap()));
                    b"ended".to_vec()
                }
                // What lies at an offset, as the host sees it.
                offset => memory[usize::from_le_bytes(offset.try_into().unwrap())..][..16].to_vec(),
            };
            common::succeeds("it is answered", pair::client_sends(client, &answer, 2));
        }
        doca!(doca_pe_progress(engine));
    }
}

/// The card's program.
struct Card {
    arm: *mut doca_dev,
    engine: *mut doca_pe,
    server: *mut doca_comch_server,
    dma: *mut doca_dma,
    inventory: *mut doca_buf_inventory,
    local: *mut doca_mmap,
    memory: &'static mut [u8],
}

impl Card {
    fn new(name: &CStr) -> Card {
        let (arm, engine) = (common::arm(), common::engine());
        let memory = vec![0xee; LEN].leak();
        Card {
            arm,
            engine,
            server: pair::server(arm, engine, name),
            dma: common::dma(arm, engine, 4),
            inventory: common::inventory(4),
            local: common::mmap(arm, memory, LOCAL),
            memory,
        }
    }

    fn next_message(&self) -> Vec<u8> {
        let mut found = None;
        common::until(self.engine, "a message comes", || {
            found = events::take().into_iter().find_map(|event| match event {
                Event::Message(bytes) => Some(bytes),
                _ => None,
            });
            found.is_some()
        });
        found.unwrap()
    }

    fn ask(&self, question: &[u8]) -> Vec<u8> {
        common::succeeds("it is asked", pair::server_sends(self.server, events::connection(), question, 0));
        self.next_message()
    }

    /// Where the host's memory is, writable, and read-only.
    fn learn(&self) -> (usize, *mut doca_mmap, *mut doca_mmap) {
        let told = self.next_message();
        let (address, descriptors) = told.split_at(size_of::<usize>());
        let (first, second) = descriptors.split_at(descriptors.len() / 2);
        let [first, second] = [first, second].map(|descriptor| common::import(self.arm, descriptor).unwrap());
        (usize::from_le_bytes(address.try_into().unwrap()), first, second)
    }

    fn local(&self, offset: usize) -> usize {
        self.memory.as_ptr().expose_provenance() + offset
    }

    /// Copies, and returns what has come of it.
    fn copy(&self, from: (*mut doca_mmap, usize), to: (*mut doca_mmap, usize), len: usize) -> Event {
        let from = common::buf(self.inventory, from.0, from.1, len, len);
        let to = common::buf(self.inventory, to.0, to.1, len, 0);
        let task = common::copy(self.dma, from, to, 0);
        done!(doca_task_submit(task));
        let mut outcome = None;
        common::until(self.engine, "it is copied", || {
            let is_copy = |event: &Event| matches!(event, Event::Copied(_) | Event::CopyFailed(..));
            outcome = events::all().into_iter().find(is_copy);
            outcome.is_some()
        });
        events::take();
        let mut copied = 0;
        done!(doca_buf_get_data_len(to, &raw mut copied));
        if outcome == Some(Event::Copied(0)) {
            assert_eq!(copied, len);
        }
        doca!(doca_task_free(task));
        [from, to].into_iter().for_each(common::give_back);
        outcome.unwrap()
    }
}

/// A test whose host has its memory at a place, and whose card copies both ways.
fn grants(test: &str, place: &str, name: &CStr) {
    match common::role().as_deref() {
        Some("card") => card(name),
        Some(place) => host(Place::of(place), name),
        None => {
            let bus = tempfile::tempdir().unwrap();
            let _host = Running::start(common::child(test, place, "host", bus.path()));
            Running::start(common::child(test, "card", "arm", bus.path())).succeeds();
        }
    }
}

fn card(name: &CStr) {
    let card = Card::new(name);
    let (address, writable, readable) = card.learn();
    let expected = |offset: usize| (offset..offset + 16).map(|at| at as u8).collect::<Vec<_>>();
    // From the host, by either grant, at odd places and over pages' ends.
    for (grant, offset, len) in [(writable, 0, LEN), (readable, 4090, 4099), (writable, 12345, 1)] {
        card.memory.fill(0xee);
        let copied = card.copy((grant, address + offset), (card.local, card.local(offset)), len);
        assert_eq!(copied, Event::Copied(0));
        let outside = |at: &usize| *at < offset || *at >= offset + len;
        let right = |at: usize| if outside(&at) { 0xee } else { at as u8 };
        assert!((0..LEN).all(|at| card.memory[at] == right(at)));
    }
    // To the host.
    card.memory.fill(0xaa);
    assert_eq!(card.copy((card.local, card.local(0)), (writable, address + 5000), 10), Event::Copied(0));
    let seen = card.ask(&4997_usize.to_le_bytes());
    let mut right = expected(4997);
    right[3..13].fill(0xaa);
    assert_eq!(seen, right);
    // From the host to the host.
    assert_eq!(card.copy((readable, address), (writable, address + 8192), 40000), Event::Copied(0));
    assert_eq!(card.ask(&(8192_usize + 100).to_le_bytes()), expected(100));
    // What is granted for reading is not written, and the context does not survive the attempt.
    let stopped = Event::CopyFailed(0, "DOCA_ERROR_IO_FAILED");
    let outcome = card.copy((card.local, card.local(0)), (readable, address + 5000), 10);
    assert_eq!(outcome, stopped);
    assert_eq!(card.ask(&(8192_usize + 100).to_le_bytes()), expected(100));
    common::until(card.engine, "it is idle", || {
        common::state(doca!(doca_dma_as_ctx(card.dma))) == doca_ctx_states::DOCA_CTX_STATE_IDLE
    });
    let context = doca!(doca_dma_as_ctx(card.dma));
    done!(doca_ctx_start(context));
    // Nor is anything copied once the grant has ended; what was granted for reading is another grant.
    assert_eq!(card.ask(b"end the grant"), b"ended");
    assert_eq!(card.copy((card.local, card.local(0)), (writable, address), 10), stopped);
    assert_eq!(card.copy((writable, address), (card.local, card.local(0)), 10), stopped);
    assert_eq!(card.copy((readable, address), (card.local, card.local(0)), 10), Event::Copied(0));
    assert_eq!(card.memory[..10], expected(0)[..10]);
}

#[test]
fn memory_in_a_file_is_granted() {
    grants("memory_in_a_file_is_granted", "file", c"file");
}

#[test]
fn a_file_is_granted() {
    grants("a_file_is_granted", "descriptor", c"descriptor");
}

#[test]
fn private_memory_is_granted() {
    grants("private_memory_is_granted", "private", c"private");
}

/// A host may be killed at any time: the card notices, copies fail, and the next host is served.
#[test]
fn a_killed_host_is_noticed() {
    let test = "a_killed_host_is_noticed";
    match common::role().as_deref() {
        Some("card") => return card_of_killed_hosts(),
        Some(place) => return host(Place::of(place), c"killed"),
        None => {}
    }
    let bus = tempfile::tempdir().unwrap();
    let mut card = common::child(test, "card", "arm", bus.path());
    let mut card = Running(card.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap());
    let (mut to_card, from_card) = (card.0.stdin.take().unwrap(), BufReader::new(card.0.stdout.take().unwrap()));
    let mut lines = from_card.lines().map(Result::unwrap).filter(|line| line.starts_with("card: "));
    for (place, point) in [("file", "met"), ("private", "imported"), ("descriptor", "copying"), ("file", "copying")] {
        let mut host = Running::start(common::child(test, place, "host", bus.path()));
        writeln!(to_card, "{point}").unwrap();
        assert_eq!(lines.next().unwrap(), format!("card: {point}"));
        host.kill();
        writeln!(to_card, "killed").unwrap();
        assert_eq!(lines.next().unwrap(), "card: noticed");
    }
    drop(to_card);
    card.succeeds();
}

fn card_of_killed_hosts() {
    let card = Card::new(c"killed");
    let mut asked = std::io::stdin().lines().map(Result::unwrap);
    while let Some(point) = asked.next() {
        common::until(card.engine, "a host comes", || events::has(&Event::Connected));
        let granted = (point != "met").then(|| card.learn());
        if let Some((address, writable, _)) = granted.filter(|_| point == "copying") {
            assert_eq!(card.copy((writable, address), (card.local, card.local(0)), LEN), Event::Copied(0));
        }
        println!("\ncard: {point}");
        assert_eq!(asked.next().unwrap(), "killed");
        if let Some((address, writable, readable)) = granted {
            let failed = Event::CopyFailed(0, "DOCA_ERROR_IO_FAILED");
            // One that was seen alive a moment ago may pass for it still.
            common::until(card.engine, "it is noticed", || {
                card.copy((writable, address), (card.local, card.local(0)), 8) == failed
            });
            assert_eq!(card.copy((writable, address), (card.local, card.local(0)), 8), failed);
            assert_eq!(card.copy((card.local, card.local(0)), (writable, address), 8), failed);
            [writable, readable].into_iter().for_each(|mmap| done!(doca_mmap_destroy(mmap)));
        } else {
            common::until(card.engine, "it is noticed", || events::has(&Event::Disconnected));
        }
        events::take();
        println!("\ncard: noticed");
    }
}

/// A server may be killed too: its client comes to rest, with its tasks, and a new server takes the place of the old one.
#[test]
fn a_killed_card_is_noticed() {
    let (test, name) = ("a_killed_card_is_noticed", c"server");
    match common::role().as_deref() {
        Some("card") => {
            let (arm, engine) = (common::arm(), common::engine());
            pair::server(arm, engine, name);
            common::until(engine, "nothing", || false);
            return;
        }
        Some(_) => {
            let (host, engine) = (common::host(), common::engine());
            for _ in 0..3 {
                let client = pair::persistent_client(host, engine, name);
                println!("\nhost: met");
                let context = doca!(doca_comch_client_as_ctx(client));
                common::until(engine, "it is noticed", || {
                    common::state(context) == doca_ctx_states::DOCA_CTX_STATE_IDLE
                });
                assert!(events::take().ends_with(&[Event::State(2, 3), Event::State(3, 0)]));
                done!(doca_comch_client_destroy(client));
            }
            return;
        }
        None => {}
    }
    let bus = tempfile::tempdir().unwrap();
    let mut host = common::child(test, "host", "host", bus.path());
    let mut host = Running(host.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(host.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    for _ in 0..3 {
        let mut card = Running::start(common::child(test, "card", "arm", bus.path()));
        assert!(lines.any(|line| line == "host: met"));
        card.kill();
    }
    host.succeeds();
}

/// The fast path, from either side to the other.
#[test]
fn posted_receives_take_what_producers_send() {
    let (test, name) = ("posted_receives_take_what_producers_send", c"fast path");
    match common::role().as_deref() {
        None => {
            let bus = tempfile::tempdir().unwrap();
            let host = Running::start(common::child(test, "host", "host", bus.path()));
            Running::start(common::child(test, "card", "arm", bus.path())).succeeds();
            host.succeeds();
        }
        Some("card") => {
            let (arm, engine) = (common::arm(), common::engine());
            let server = pair::server(arm, engine, name);
            common::until(engine, "the host comes", || events::has(&Event::Connected));
            exchange(arm, engine, events::connection());
            common::until(engine, "the host goes", || events::has(&Event::Disconnected));
            let context = doca!(doca_comch_server_as_ctx(server));
            done!(doca_ctx_stop(context));
            done!(doca_comch_server_destroy(server));
        }
        Some(_) => {
            let (host, engine) = (common::host(), common::engine());
            let client = pair::persistent_client(host, engine, name);
            exchange(host, engine, pair::connection(client));
            let context = doca!(doca_comch_client_as_ctx(client));
            assert_eq!(doca!(doca_ctx_stop(context)), doca_error::DOCA_ERROR_IN_PROGRESS);
            common::until(engine, "it is idle", || common::state(context) == doca_ctx_states::DOCA_CTX_STATE_IDLE);
            done!(doca_comch_client_destroy(client));
        }
    }
}

/// Both sides do the same: receive from the other's producer what theirs receives from ours.
fn exchange(device: *mut doca_dev, engine: *mut doca_pe, connection: *mut doca_comch_connection) {
    const ROUNDS: u64 = 200;
    let memory: &'static mut [u8] = vec![0; 2 * LEN].leak();
    let address = memory.as_ptr().expose_provenance();
    let registered = common::mmap(device, memory, LOCAL | PCI_WRITE);
    let inventory = common::inventory(2);
    let from = common::buf(inventory, registered, address, LEN, LEN);
    let into = common::buf(inventory, registered, address + LEN, LEN, 0);
    let consumer = pair::consumer(connection, registered, engine, 32);
    let mut theirs = None;
    common::until(engine, "the other side has a consumer", || {
        theirs = events::all().into_iter().find_map(|event| match event {
            Event::NewConsumer(id) => Some(id),
            _ => None,
        });
        theirs.is_some()
    });
    let (producer, theirs, mut expired) = (pair::producer(connection, engine), theirs.unwrap(), false);
    for round in 0..ROUNDS {
        let len = (round as usize * 331) % LEN + 1;
        let with_payload = round % 3 > 0;
        memory[..len].fill(round as u8);
        let start = std::ptr::with_exposed_provenance_mut(address);
        done!(doca_buf_set_data(from, start, len));
        let (into, from) = if with_payload { (into, from) } else { (null_mut(), null_mut()) };
        pair::post(consumer, into, round);
        let immediate = vec![round as u8; round as usize % 33];
        common::until(engine, "a receive is posted", || {
            pair::produce(producer, from, &immediate, theirs, round) == common::SUCCESS
        });
        common::until(engine, "both are done", || {
            let received = |event: &Event| matches!(event, Event::Received { task, .. } if *task == round);
            events::has(&Event::Produced(round)) && events::count(received) == 1
        });
        let events = events::take();
        expired |= events.contains(&Event::ExpiredConsumer(theirs));
        let came = events.into_iter().find_map(|event| match event {
            Event::Received { immediate, .. } => Some(immediate),
            _ => None,
        });
        assert_eq!(came.unwrap(), immediate);
        if with_payload {
            let mut data_len = 0;
            done!(doca_buf_get_data_len(into, &raw mut data_len));
            assert_eq!(data_len, len);
            assert!(memory[LEN..LEN + len].iter().all(|byte| *byte == round as u8));
        }
    }
    let contexts = [doca!(doca_comch_producer_as_ctx(producer)), doca!(doca_comch_consumer_as_ctx(consumer))];
    for context in contexts {
        doca!(doca_ctx_stop(context));
        common::until(engine, "it is idle", || common::state(context) == doca_ctx_states::DOCA_CTX_STATE_IDLE);
    }
    // The other side may not be that far.
    common::until(engine, "the other side has stopped too", || expired || events::has(&Event::ExpiredConsumer(theirs)));
    done!(doca_comch_producer_destroy(producer));
    done!(doca_comch_consumer_destroy(consumer));
}
