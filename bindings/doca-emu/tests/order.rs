//! What is not ordered: copies among each other, and messages with copies.

mod common;

use std::ffi::CString;

use common::events::{self, Event};
use common::{alone, doca, done, pair};
use doca_sys::*;

const TASKS: usize = 32;
const BYTES: usize = 256;

/// Copies of as many lines, submitted at once. What happened, as far as it goes.
struct Copies {
    engine: *mut doca_pe,
    dma: *mut doca_dma,
    tasks: Vec<*mut doca_task>,
    from: &'static mut [u8],
    to: &'static mut [u8],
}

impl Copies {
    fn new() -> Copies {
        let (arm, engine) = (common::arm(), common::engine());
        let from = (0..TASKS * BYTES).map(|at| (at / BYTES + 1) as u8).collect::<Vec<_>>().leak();
        let to = vec![0; TASKS * BYTES].leak();
        let inventory = common::inventory(2 * TASKS);
        let [source, destination] = [&mut *from, &mut *to].map(|memory| {
            let address = memory.as_ptr().expose_provenance();
            let mmap = common::mmap(arm, memory, common::LOCAL);
            move |line: usize, len| common::buf(inventory, mmap, address + line * BYTES, BYTES, len)
        });
        let dma = common::dma(arm, engine, TASKS as u32);
        let task = |line| common::copy(dma, source(line, BYTES), destination(line, 0), line as u64);
        Copies { engine, dma, tasks: (0..TASKS).map(task).collect(), from, to }
    }

    /// Submits all, and returns how they completed, and how often a line was seen half written.
    fn run(&mut self) -> (Vec<Event>, usize) {
        events::take();
        self.to.fill(0);
        for task in &self.tasks {
            while doca!(doca_task_submit(*task)) == doca_error::DOCA_ERROR_AGAIN {}
        }
        let mut torn = 0;
        for _ in 0..common::ENOUGH {
            if common::in_flight(doca!(doca_dma_as_ctx(self.dma))) == 0 {
                break;
            }
            doca!(doca_pe_progress(self.engine));
            torn += self.to.chunks(BYTES).filter(|line| line.contains(&0) && line.iter().any(|byte| *byte > 0)).count();
        }
        let events = events::take();
        let tasks = events.iter().filter(|event| !matches!(event, Event::State(..))).count();
        assert_eq!(tasks, TASKS, "{events:?}");
        for event in &events {
            if let Event::Copied(line) = event {
                let line = *line as usize * BYTES..(*line as usize + 1) * BYTES;
                assert_eq!(self.to[line.clone()], self.from[line]);
            }
        }
        (events, torn)
    }
}

fn faults(spec: &str) {
    let library = common::library();
    common::bluefield();
    // SAFETY: the library is loaded already, and nothing runs that has not.
    let library = unsafe { libloading::Library::new(library) }.unwrap();
    // SAFETY: it is declared so.
    let set = unsafe {
        library.get::<unsafe extern "C" fn(*const std::ffi::c_char) -> i32>(b"splitrpc_emulated_bluefield_faults\0")
    };
    let (set, spec) = (set.unwrap(), CString::new(spec).unwrap());
    // SAFETY: the text ends.
    assert_eq!(unsafe { set(spec.as_ptr()) }, 0);
}

#[test]
fn without_faults_copies_complete_in_order() {
    let (events, torn) = Copies::new().run();
    assert_eq!(events, (0..TASKS as u64).map(Event::Copied).collect::<Vec<_>>());
    assert_eq!(torn, 0);
}

#[test]
fn a_seed_says_what_goes_wrong() {
    alone("a_seed_says_what_goes_wrong", || {
        let mut copies = Copies::new();
        let mut orders = Vec::new();
        for seed in 0..200 {
            let spec = format!("seed={seed},delay=300,reorder=500,tear=300,fail=100,again=100");
            let run = |copies: &mut Copies| {
                faults(&spec);
                copies.run()
            };
            let first = run(&mut copies);
            assert_eq!(run(&mut copies), first, "{spec}");
            orders.push(first);
        }
        let ascends = |(events, _): &(Vec<Event>, usize)| {
            events.is_sorted_by_key(|event| match event {
                Event::Copied(line) | Event::CopyFailed(line, _) => *line,
                _ => 0,
            })
        };
        assert!(!orders.iter().any(ascends));
        let differ = orders.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(differ > 190, "{differ} of 199");
        let seen =
            |what: fn(&Event) -> bool| orders.iter().flat_map(|(events, _)| events).filter(|event| what(event)).count();
        let (copied, failed) = (
            seen(|event| matches!(event, Event::Copied(_))),
            seen(|event| matches!(event, Event::CopyFailed(_, "DOCA_ERROR_IO_FAILED"))),
        );
        assert_eq!(copied + failed, 200 * TASKS);
        assert!((400..900).contains(&failed), "{failed} failed");
        assert!(orders.iter().map(|(_, torn)| torn).sum::<usize>() > 1000);
    });
}

#[test]
fn a_message_overtakes_a_copy() {
    let copies = Copies::new();
    copies.to.fill(0);
    let (arm, host, engine) = (common::arm(), common::host(), common::engine());
    let (server, connection, _) = pair::both(arm, host, engine, c"overtakes");
    done!(doca_task_submit(copies.tasks[0]));
    common::succeeds("it is sent", pair::server_sends(server, connection, b"it is there", 1));
    common::until(engine, "it is received", || events::has(&Event::Message(b"it is there".to_vec())));
    // It is not.
    assert_eq!(copies.to[..BYTES], [0; BYTES]);
    assert!(!events::has(&Event::Copied(0)));
    common::until(copies.engine, "it is copied", || events::has(&Event::Copied(0)));
    assert_eq!(copies.to[..BYTES], [1; BYTES]);
}

#[test]
fn a_failure_may_stop_the_context() {
    alone("a_failure_may_stop_the_context", || {
        let mut copies = Copies::new();
        faults("fail=1000,stop=1000");
        let (events, _) = copies.run();
        let failed = |line| Event::CopyFailed(line, "DOCA_ERROR_IO_FAILED");
        // Two states fewer than there would be: it stops, and is not idle before its tasks are freed.
        assert_eq!(events, [Event::State(2, 3)].into_iter().chain((0..TASKS as u64).map(failed)).collect::<Vec<_>>());
    });
}

#[test]
fn connections_end_when_the_faults_say_so() {
    alone("connections_end_when_the_faults_say_so", || {
        let (arm, host, engine) = (common::arm(), common::host(), common::engine());
        let (server, connection, _) = pair::both(arm, host, engine, c"breaks");
        faults("disconnect=1000");
        common::succeeds("it is taken", pair::server_sends(server, connection, b"lost", 5));
        common::until(engine, "both notice", || events::has(&Event::Disconnected) && events::has(&Event::State(3, 0)));
        assert!(events::has(&Event::SendFailed(5, "DOCA_ERROR_CONNECTION_RESET")));
        assert!(!events::has(&Event::Message(b"lost".to_vec())));
    });
}
