//! Models on a device: a stand-in that keeps the device's side of the contract, and sees that the orchestrator keeps its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use splitrpc_arena::{Arena, Run};
use splitrpc_engine::MS;
use splitrpc_telemetry::Outage;
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{Status, TensorDesc};

use super::rig::{FAIL, LAUNCH_LIMIT, ROW, Rig, TestModel};
use crate::runtime::device::{Device, Turn};
use crate::runtime::{Batch, BatchItem, Launch, RuntimeError};

/// What a test sees of a device, and tells it.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Batches do not end.
    pub(super) holds: bool,
    /// It is to be looked after until it has let go of something.
    pub(super) holds_on: bool,
    /// Every call fails from now on.
    pub(super) lost: bool,
    /// How long its copies are booked, in nanoseconds.
    pub(super) booked: u64,
    /// Requests whose inputs are on their way, with the first byte.
    pub(super) fetched: HashMap<u32, u8>,
    /// First input bytes of each batch's requests, in the order of its rows, and whether inputs and outputs lay together.
    pub(super) batches: Vec<(Vec<u8>, bool, bool)>,
    begun: HashSet<(u16, u16)>,
    /// It launches ahead.
    pub(super) foresees: bool,
    /// What was launched ahead for nothing does not end.
    pub(super) lingers: bool,
    /// Launches that wait, by model and lane, with input and output.
    pub(super) waits: HashMap<(u16, u16), (Run, Run)>,
    /// Those that are done, or will be, for nothing, with their output.
    pub(super) wasted: HashMap<(u16, u16), Run>,
}

impl Control {
    /// Slots that what was launched ahead may write.
    fn is_kept(&self, output: Run) -> bool {
        let kept = self.waits.values().map(|(_, output)| output).chain(self.wasted.values());
        kept.into_iter().any(|kept| (kept.pool, kept.first) == (output.pool, output.first))
    }

    /// What waits on a lane goes on for nothing.
    fn waste(&mut self, lane: (u16, u16)) {
        if let Some((_, output)) = self.waits.remove(&lane) {
            assert_eq!(self.wasted.insert(lane, output), None, "lane {lane:?} has two");
        }
    }
}

fn same_place(a: Run, b: Run) -> bool {
    (a.pool, a.first, a.rows) == (b.pool, b.first, b.rows)
}

pub(super) struct TestDevice {
    arena: Arena,
    lanes: u16,
    control: Arc<Mutex<Control>>,
}

impl TestDevice {
    pub(super) fn new(arena: Arena, lanes: u16, control: Arc<Mutex<Control>>) -> TestDevice {
        TestDevice { arena, lanes, control }
    }

    fn read(&self, run: Run, bytes: u32) -> Vec<u8> {
        let mut read = vec![0; bytes as usize];
        self.arena.span(run, 0, 0, bytes).unwrap().copy_to(&mut read);
        read
    }
}

fn together(runs: &[Run]) -> bool {
    runs.windows(2).all(|pair| pair[0].pool == pair[1].pool && pair[0].first + u32::from(pair[0].rows) == pair[1].first)
}

impl Device for TestDevice {
    fn lanes(&self, _: u16) -> u16 {
        self.lanes
    }

    fn idle_lane(&self, model: u16, _: u8) -> Option<u16> {
        let control = self.control.lock().unwrap();
        let mut idle = (0..self.lanes).filter(|lane| !control.begun.contains(&(model, *lane)));
        let first = idle.next()?;
        let has_nothing = |lane: &u16| !control.waits.contains_key(&(model, *lane));
        Some(std::iter::once(first).chain(idle).find(has_nothing).unwrap_or(first))
    }

    fn foresees(&self, _: u16) -> bool {
        self.control.lock().unwrap().foresees
    }

    fn launch_ahead(&mut self, model: u16, lane: u16, input: Run, output: Run) -> bool {
        let mut control = self.control.lock().unwrap();
        if !control.foresees {
            return false;
        }
        assert!(!control.begun.contains(&(model, lane)), "lane {lane} has a batch");
        assert!(!control.is_kept(output), "{output:?} are another launch's");
        assert_eq!((input.rows, output.rows), (1, 1));
        assert_eq!(control.wasted.get(&(model, lane)), None);
        assert_eq!(control.waits.insert((model, lane), (input, output)), None);
        true
    }

    fn waiting_lane(&self, model: u16, _: u8, input: Run) -> Option<u16> {
        let control = self.control.lock().unwrap();
        let waits = |lane: &u16| control.waits.get(&(model, *lane)).is_some_and(|(known, _)| same_place(*known, input));
        (0..self.lanes).filter(|lane| !control.begun.contains(&(model, *lane))).find(waits)
    }

    fn withdraw(&mut self, model: u16, lane: u16) {
        self.control.lock().unwrap().waste((model, lane));
    }

    fn is_over(&mut self, model: u16, lane: u16) -> bool {
        let mut control = self.control.lock().unwrap();
        if control.waits.contains_key(&(model, lane)) || control.lingers {
            return false;
        }
        let output = control.wasted.remove(&(model, lane)).expect("something that was launched ahead");
        // It has computed something, if not what anybody asked for.
        self.arena.span(output, 0, 0, ROW).unwrap().fill(0xee);
        true
    }

    fn booked(&self, _: u16, _: Turn, bytes: u64) -> u64 {
        assert!(bytes > 0);
        self.control.lock().unwrap().booked
    }

    fn fetch(&mut self, _: u16, request: u32, _: Turn, input: Run, tensors: &[TensorDesc]) {
        let first = self.read(input, tensors[0].bytes)[0];
        let before = self.control.lock().unwrap().fetched.insert(request, first);
        assert_eq!(before, None, "request {request} is fetched twice");
    }

    fn forget(&mut self, request: u32) {
        self.control.lock().unwrap().fetched.remove(&request);
    }

    fn begin(&mut self, model: u16, lane: u16, _: Turn, requests: &[u32], batch: &Batch) {
        assert_eq!(requests.len(), batch.items().len());
        let mut control = self.control.lock().unwrap();
        assert!(control.begun.insert((model, lane)), "lane {lane} has two batches");
        match (control.waits.get(&(model, lane)).copied(), batch.items()) {
            (Some((input, output)), [item]) if same_place(input, item.input) => {
                assert_eq!(item.output, Some(output));
                control.waits.remove(&(model, lane));
            }
            _ => control.waste((model, lane)),
        }
        let kept = |item: &BatchItem| item.output.is_some_and(|output| control.is_kept(output));
        assert!(!batch.items().iter().any(kept), "what was launched ahead may still write there");
        let mut firsts = Vec::new();
        for (request, item) in requests.iter().zip(batch.items()) {
            let first = self.read(item.input, batch.tensors(item)[0].bytes)[0];
            assert!(control.fetched.remove(request).is_none_or(|fetched| fetched == first));
            firsts.push(first);
        }
        let inputs: Vec<Run> = batch.items().iter().map(|item| item.input).collect();
        let outputs: Vec<Run> = batch.items().iter().filter_map(|item| item.output).collect();
        control.batches.push((firsts, together(&inputs), together(&outputs)));
    }

    fn give_up(&mut self, model: u16, lane: u16) {
        assert!(self.control.lock().unwrap().begun.contains(&(model, lane)));
    }

    fn is_lost(&self) -> bool {
        self.control.lock().unwrap().lost
    }

    fn holds_on(&self) -> bool {
        self.control.lock().unwrap().holds_on
    }

    fn has_news(&self) -> bool {
        let control = self.control.lock().unwrap();
        !control.begun.is_empty() || !control.wasted.is_empty()
    }

    fn pump(&mut self) -> bool {
        false
    }

    fn ended(&mut self, model: u16, lane: u16, batch: &Batch, launch: &mut Launch) -> Option<Result<(), RuntimeError>> {
        let mut control = self.control.lock().unwrap();
        if control.holds || !control.begun.remove(&(model, lane)) {
            return None;
        }
        if control.lost {
            return Some(Err(RuntimeError("the device is lost".into())));
        }
        for item in batch.items() {
            let desc = TensorDesc { handle: 0, ..batch.tensors(item)[0] };
            let bytes = self.read(item.input, desc.bytes);
            if bytes[0] >= FAIL - 1 {
                return Some(Err(RuntimeError("asked to fail".into())));
            }
            let sum: Vec<u8> = bytes.iter().map(|b| b.wrapping_add(1)).collect();
            self.arena.span(item.output.unwrap(), 0, 0, desc.bytes).unwrap().copy_from(&sum);
            launch.push_in_place([desc]);
        }
        launch.moved = Some((Mover::GpuCopy, Memory::Cuda));
        launch.compactions = 1;
        Some(Ok(()))
    }
}

pub(super) fn rig(max_batch: u16, delay_us: Option<u64>, lanes: u16) -> (Rig, Arc<Mutex<Control>>) {
    let control = Arc::new(Mutex::new(Control::default()));
    (Rig::on_device(TestModel::fixed(max_batch, delay_us), lanes, 64, Arc::clone(&control)), control)
}

#[test]
fn a_request_is_answered_from_the_device_and_says_so() {
    let (mut rig, control) = rig(0, None, 1);
    let key = rig.submit(1, 7);
    rig.poll();
    let (answered, answer) = rig.answer().unwrap();
    assert_eq!((answered, answer.status, &answer.bytes[..]), (key, Status::Ok, &[8; 4][..]));
    assert_eq!((answer.moved, answer.compactions), ((Mover::GpuCopy, Memory::Cuda), 1));
    // It was launched at once, so nothing was copied ahead.
    assert_eq!(control.lock().unwrap().fetched.len(), 0);
    assert_eq!(rig.host.next_deadline(rig.now), None);
    // What it keeps it does not keep for as long as nobody comes.
    control.lock().unwrap().holds_on = true;
    assert_eq!(rig.host.next_deadline(rig.now), Some(rig.now + 2 * MS));
}

#[test]
fn the_next_requests_are_copied_while_a_batch_is_under_way() {
    let (mut rig, control) = rig(8, Some(0), 1);
    control.lock().unwrap().holds = true;
    rig.submit(1, 1);
    rig.poll();
    for fill in 2..=5 {
        rig.submit(1, fill);
    }
    rig.poll();
    let mut fetched: Vec<u8> = control.lock().unwrap().fetched.values().copied().collect();
    fetched.sort_unstable();
    assert_eq!(fetched, [2, 3, 4, 5]);
    // Somebody has to look again.
    assert!(rig.host.next_deadline(rig.now).is_some());
    control.lock().unwrap().holds = false;
    rig.poll();
    for _ in 0..5 {
        let (_, answer) = rig.answer().unwrap();
        assert_eq!(answer.status, Status::Ok);
        rig.release(answer.output);
    }
    rig.poll();
    let control = control.lock().unwrap();
    assert_eq!(control.batches, [(vec![1], true, true), (vec![2, 3, 4, 5], true, true)]);
    assert!(control.fetched.is_empty());
    assert_eq!(rig.outputs_free(), rig.output_slots());
}

#[test]
fn a_batch_lies_together_whatever_the_order_of_service() {
    let (mut rig, control) = rig(8, Some(100), 1);
    // Slots ascend as requests come; the later ones are served first.
    for (fill, priority) in [(1, 3), (2, 3), (3, 2), (4, 1)] {
        rig.submit_with(1, ROW, fill, priority, 0).unwrap();
        rig.host.poll(rig.now);
    }
    rig.pass(200_000);
    rig.poll();
    assert_eq!(control.lock().unwrap().batches, [(vec![1, 2, 3, 4], true, true)]);
    for _ in 0..4 {
        let (_, answer) = rig.answer().unwrap();
        assert_eq!(answer.status, Status::Ok);
        rig.release(answer.output);
    }
    rig.poll();
    assert_eq!(rig.outputs_free(), rig.output_slots());
}

#[test]
fn who_leaves_the_queue_is_copied_no_more() {
    let (mut rig, control) = rig(0, None, 1);
    control.lock().unwrap().holds = true;
    rig.submit(1, 1);
    rig.poll();
    let cancelled = rig.submit(1, 2);
    rig.submit_with(1, ROW, 3, 0, 1_000).unwrap();
    rig.submit(1, 4);
    rig.poll();
    assert_eq!(control.lock().unwrap().fetched.len(), 3);
    rig.cancel(cancelled);
    rig.pass(2_000);
    rig.poll();
    assert_eq!(control.lock().unwrap().fetched.values().copied().collect::<Vec<_>>(), [4]);
    let statuses = [rig.answer().unwrap().1.status, rig.answer().unwrap().1.status];
    assert_eq!(statuses, [Status::Cancelled, Status::DeadlineExceeded]);
}

#[test]
fn who_would_wait_for_copies_until_after_its_deadline_is_refused_at_once() {
    let (mut rig, control) = rig(0, None, 1);
    control.lock().unwrap().holds = true;
    rig.submit(1, 1);
    rig.poll();
    control.lock().unwrap().booked = 2_000;
    // By its deadline they would not be there, but by those of the others.
    rig.submit_with(1, ROW, 2, 0, 1_999).unwrap();
    rig.submit_with(1, ROW, 3, 0, 2_001).unwrap();
    rig.submit(1, 4);
    rig.poll();
    let (_, answer) = rig.answer().unwrap();
    assert_eq!(answer.status, Status::DeadlineExceeded);
    assert!(rig.answer().is_none());
    let mut fetched: Vec<u8> = control.lock().unwrap().fetched.values().copied().collect();
    fetched.sort_unstable();
    assert_eq!(fetched, [3, 4]);
}

#[test]
fn a_launch_that_does_not_end_is_given_up_and_keeps_what_it_writes() {
    let (mut rig, control) = rig(0, None, 1);
    control.lock().unwrap().holds = true;
    rig.submit(1, 1);
    rig.poll();
    rig.submit(1, 2);
    rig.poll();
    rig.pass(LAUNCH_LIMIT + 1);
    rig.poll();
    let (_, given_up) = rig.answer().unwrap();
    assert_eq!(
        (given_up.status, given_up.text.as_str()),
        (Status::ModelFailed, "the launch has not ended after 50 ms")
    );
    let (_, waited) = rig.answer().unwrap();
    assert_eq!((waited.status, waited.text.contains("has not ended")), (Status::ModelFailed, true));
    assert_eq!(rig.outputs_free(), rig.output_slots() - 1, "the launch may still write there");
    assert_eq!(rig.telemetry.model(0).unwrap().outage(), Some(Outage::Stuck));
    // Nobody is kept waiting for it.
    rig.submit(1, 3);
    rig.poll();
    assert_eq!(rig.answer().unwrap().1.status, Status::ModelFailed);
    assert!(rig.host.is_idle());
    // Once it has ended, all is as before.
    control.lock().unwrap().holds = false;
    rig.poll();
    assert_eq!(rig.outputs_free(), rig.output_slots());
    assert_eq!(rig.telemetry.model(0).unwrap().outage(), None);
    rig.submit(1, 4);
    rig.poll();
    let (_, answer) = rig.answer().unwrap();
    assert_eq!((answer.status, &answer.bytes[..]), (Status::Ok, &[5; 4][..]));
}

#[test]
fn a_device_that_is_lost_fails_what_is_under_way_and_what_comes() {
    let (mut rig, control) = rig(0, None, 2);
    control.lock().unwrap().lost = true;
    for fill in 0..5 {
        rig.submit(1, fill);
    }
    rig.poll();
    for _ in 0..5 {
        let (_, answer) = rig.answer().unwrap();
        assert_eq!((answer.status, answer.text.as_str()), (Status::ModelFailed, "the device is lost"));
    }
    assert_eq!(rig.outputs_free(), rig.output_slots());
    assert!(rig.host.is_idle());
    assert_eq!(rig.telemetry.model(0).unwrap().outage(), Some(Outage::DeviceLost));
}
