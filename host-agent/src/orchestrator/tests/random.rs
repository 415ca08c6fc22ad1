//! Random sequences of submissions, cancellations, releases and passing time. The failing seed is printed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use splitrpc_engine::US;
use splitrpc_ring::{RequestKey, Run};
use splitrpc_wire::Status;

use super::device::Control;
use super::rig::{Answer, FAIL, PANIC, REQUESTS, ROW, Rig, TestModel};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What is known of a request that was sent.
struct Sent {
    fill: u8,
    bytes: usize,
    deadline: Option<u64>,
    cancelled: bool,
}

struct Course {
    rig: Rig,
    sent: HashMap<RequestKey, Sent>,
    held: Vec<Run>,
    answers: BTreeMap<u16, u32>,
}

impl Course {
    fn settle(&mut self, adds: u8) {
        while let Some((key, answer)) = self.rig.answer() {
            let sent = self.sent.remove(&key).expect("answered once");
            *self.answers.entry(answer.status as u16).or_default() += 1;
            match answer.status {
                Status::Ok => {
                    assert!(sent.fill < PANIC);
                    assert_eq!(answer.bytes, vec![sent.fill + adds; sent.bytes]);
                    self.held.push(answer.output);
                }
                Status::DeadlineExceeded => assert!(sent.deadline.is_some_and(|d| d <= self.rig.now.nanos())),
                Status::Cancelled => assert!(sent.cancelled),
                Status::ModelFailed => assert_ne!(answer.text, ""),
                Status::Busy => assert!(answer.text.contains("external_outputs")),
                other => panic!("{other:?}: {}", answer.text),
            }
        }
    }

    fn step(&mut self, random: &mut Random, max_rows: u16, fixed: bool) {
        match random.below(10) {
            0..=4 if (self.sent.len() as u32) < REQUESTS => {
                let rows = 1 + random.below(u64::from(max_rows)) as u16;
                let row = if fixed { ROW } else { 1 + random.below(3) as u32 };
                let fill = match random.below(40) {
                    0 => FAIL,
                    1 => PANIC,
                    _ => random.below(200) as u8,
                };
                let deadline = if random.below(3) == 0 { (1 + random.below(300)) * US } else { 0 };
                let until = (deadline > 0).then(|| self.rig.now.nanos() + deadline);
                let bytes = usize::from(rows) * row as usize;
                if let Some(key) = self.rig.submit_with(rows, row, fill, random.below(5) as u8, deadline) {
                    self.sent.insert(key, Sent { fill, bytes, deadline: until, cancelled: false });
                    // Deadlines run from when the orchestrator takes the request.
                    if random.below(2) == 0 || deadline > 0 {
                        self.rig.host.poll(self.rig.now);
                    }
                }
            }
            5 => {
                let index = random.below(self.sent.len().max(1) as u64) as usize;
                let mut keys: Vec<_> = self.sent.keys().copied().collect();
                keys.sort_unstable_by_key(|k| k.generation);
                if let Some(key) = keys.get(index) {
                    self.rig.cancel(*key);
                    self.sent.get_mut(key).expect("a key of this map").cancelled = true;
                }
            }
            6 if !self.held.is_empty() => {
                let index = random.below(self.held.len() as u64) as usize;
                let output = self.held.swap_remove(index);
                self.rig.release(output);
            }
            7 => self.rig.pass(random.below(150) * US),
            _ => {
                self.rig.host.poll(self.rig.now);
            }
        }
    }
}

/// Who computes.
#[derive(Clone, Copy, Debug)]
enum By {
    /// So many worker threads, or the data thread.
    Workers(usize),
    /// So many lanes of a device.
    Lanes(u16),
    /// The same, of one that launches ahead.
    Ahead(u16),
}

fn run(seed: u64, by: By) {
    let mut random = Random(seed);
    let fixed = random.below(2) == 0;
    let max_batch = [0, 1, 4, 8][random.below(4) as usize];
    let control = Arc::new(Mutex::new(Control::default()));
    // A device knows its outputs' sizes.
    let fixed = fixed || !matches!(by, By::Workers(_));
    let (model, adds) = match (fixed, random.below(2)) {
        (true, 0) => (TestModel::fixed(max_batch, None), 1),
        (true, _) => (TestModel::fixed(max_batch, Some(random.below(3) * 50)), 1),
        (false, 0) => (TestModel::variable(max_batch, Answer::Input), 0),
        (false, _) => (TestModel::variable(max_batch, Answer::Owned), 1),
    };
    let ring = 16 << random.below(3);
    let rig = match by {
        By::Workers(workers) => Rig::with(vec![model], workers, ring),
        By::Lanes(lanes) | By::Ahead(lanes) => Rig::on_device(model, lanes, ring, Arc::clone(&control)),
    };
    control.lock().unwrap().foresees = matches!(by, By::Ahead(_));
    let mut all = Course { rig, sent: HashMap::new(), held: Vec::new(), answers: BTreeMap::new() };
    for _ in 0..300 {
        control.lock().unwrap().holds = random.below(3) > 0;
        control.lock().unwrap().lingers = random.below(3) > 0;
        all.step(&mut random, max_batch.max(1), fixed);
        if random.below(4) == 0 {
            all.settle(adds);
        }
        // The ring towards the orchestrator is as small as the one back: make room.
        all.rig.host.poll(all.rig.now);
    }
    all.rig.host.drain();
    (control.lock().unwrap().holds, control.lock().unwrap().lingers) = (false, false);
    while !all.sent.is_empty() {
        all.rig.poll();
        all.settle(adds);
        for output in std::mem::take(&mut all.held) {
            all.rig.release(output);
            all.rig.host.poll(all.rig.now);
        }
        std::thread::yield_now();
    }
    all.rig.poll();
    assert!(all.rig.host.is_idle());
    assert_eq!(all.rig.outputs_free(), all.rig.output_slots(), "an output slot is lost");
    assert!(control.lock().unwrap().fetched.is_empty(), "the device was not told of who left");
    assert!(all.answers.contains_key(&(Status::Ok as u16)), "nothing succeeded: {:?}", all.answers);
}

fn seeds(count: u64, by: By) {
    // Panics of the models are expected by the hundred; what they print is not wanted.
    for seed in 0..count {
        let outcome = std::panic::catch_unwind(|| run(seed, by));
        if let Err(panic) = outcome {
            eprintln!("seed {seed}, computed by {by:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn everything_is_answered_once_and_no_slot_is_lost() {
    seeds(400, By::Workers(0));
}

#[test]
fn everything_is_answered_once_with_workers_too() {
    seeds(60, By::Workers(2));
}

#[test]
fn everything_is_answered_once_with_a_device_too() {
    seeds(200, By::Lanes(1));
    seeds(200, By::Lanes(3));
}

#[test]
fn everything_is_answered_once_with_a_device_that_launches_ahead() {
    seeds(300, By::Ahead(1));
    seeds(300, By::Ahead(3));
}

#[test]
fn a_launch_never_leaves_a_better_ranked_request_behind() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let model = TestModel::fixed(4, Some(100));
        let launches = model.launches.clone();
        let mut rig = Rig::new(model);
        // Fill bytes name requests; the rank is what the order of service should follow.
        let mut waiting: BTreeMap<(u8, u64, u8), u8> = BTreeMap::new();
        for fill in 0..60u8 {
            let (priority, deadline) = (1 + random.below(3) as u8, random.below(2) * (1_000 + random.below(50)) * US);
            if rig.submit_with(1, ROW, fill, priority, deadline).is_some() {
                let until = if deadline == 0 { u64::MAX } else { rig.now.nanos() + deadline };
                waiting.insert((priority, until, fill), fill);
            }
            if random.below(3) == 0 {
                continue;
            }
            rig.host.poll(rig.now);
            rig.pass(random.below(40) * US);
            rig.host.poll(rig.now);
            for launch in launches.lock().unwrap().drain(..) {
                let best: Vec<u8> = waiting.values().copied().take(launch.len()).collect();
                assert_eq!(launch, best, "seed {seed}");
                waiting.retain(|_, fill| !launch.contains(fill));
            }
            while let Some((_, answer)) = rig.answer() {
                assert_eq!(answer.status, Status::Ok, "seed {seed}");
                rig.release(answer.output);
            }
        }
    }
}
