//! Launches that wait on a device for requests which are yet to come.

use std::sync::{Arc, Mutex};

use splitrpc_ring::Run;
use splitrpc_telemetry::Event;
use splitrpc_wire::Status;

use super::device::{Control, rig};
use super::rig::{LAUNCH_LIMIT, ROW, Rig};

/// A rig whose device launches ahead, after a first request that shows where the next one will probably lie.
fn foreseeing(max_batch: u16, lanes: u16) -> (Rig, Arc<Mutex<Control>>) {
    let (mut rig, control) = rig(max_batch, Some(0).filter(|_| max_batch > 0), lanes);
    control.lock().unwrap().foresees = true;
    ask(&mut rig, 1);
    assert_eq!(waiting(&control), 1);
    assert_eq!(rig.outputs_free(), rig.output_slots() - 1, "slots for its answer are kept");
    (rig, control)
}

fn waiting(control: &Mutex<Control>) -> usize {
    control.lock().unwrap().waits.len()
}

/// A request of one row, answered right, whose answer has left.
fn ask(rig: &mut Rig, fill: u8) {
    rig.submit(1, fill);
    rig.poll();
    let (_, answer) = rig.answer().unwrap();
    assert_eq!((answer.status, &answer.bytes[..]), (Status::Ok, &[fill + 1; 4][..]));
    rig.release(answer.output);
    rig.poll();
}

/// How many were of use, and how many of none.
fn counted(rig: &Rig) -> (u64, u64) {
    (rig.telemetry.event(Event::PreLaunchesUsed), rig.telemetry.event(Event::PreLaunchesWasted))
}

#[test]
fn requests_that_follow_each_other_find_their_launch_waiting() {
    let (mut rig, control) = foreseeing(0, 1);
    for fill in 2..=20 {
        ask(&mut rig, fill);
        assert_eq!(waiting(&control), 1);
    }
    assert_eq!(counted(&rig), (19, 0));
    // Nobody has to look after what waits.
    assert_eq!(rig.host.next_deadline(rig.now), None);
}

#[test]
fn a_request_in_other_slots_or_of_more_rows_is_launched_as_ever() {
    let (mut rig, control) = foreseeing(4, 1);
    // One that never comes has the slots.
    let held = rig.place(0, 1, ROW, 9).unwrap();
    ask(&mut rig, 2);
    assert_eq!(counted(&rig), (0, 1));
    rig.submit(3, 5);
    rig.poll();
    let (_, answer) = rig.answer().unwrap();
    assert_eq!((answer.status, &answer.bytes[..]), (Status::Ok, &[6; 12][..]));
    rig.release(answer.output);
    rig.poll();
    // What the next one of so many rows will be is not foreseen.
    assert_eq!((counted(&rig), waiting(&control)), ((0, 2), 0));
    assert_eq!(rig.outputs_free(), rig.output_slots());
    assert_eq!(held.first, 0);
}

#[test]
fn the_lane_that_waits_for_a_request_gets_it_and_others_get_the_others() {
    let (mut rig, control) = foreseeing(0, 2);
    control.lock().unwrap().holds = true;
    let held = rig.place(0, 1, ROW, 9).unwrap();
    let other = rig.submit(1, 2);
    rig.poll();
    assert_eq!(waiting(&control), 1, "a lane on which nothing waits takes it");
    let key = rig.key();
    rig.send(key, held, 0, 0, 0);
    rig.poll();
    assert_eq!((waiting(&control), counted(&rig)), (0, (1, 0)));
    control.lock().unwrap().holds = false;
    rig.poll();
    let mut answers = [rig.answer().unwrap(), rig.answer().unwrap()];
    answers.sort_unstable_by_key(|(request, _)| request.generation);
    assert_eq!(answers.each_ref().map(|(request, _)| *request), [other, key]);
    assert_eq!(answers.each_ref().map(|(_, answer)| answer.bytes[0]), [3, 10]);
}

#[test]
fn what_still_runs_for_nothing_keeps_its_slots() {
    let (mut rig, control) = foreseeing(0, 1);
    control.lock().unwrap().lingers = true;
    let _held = rig.place(0, 1, ROW, 9).unwrap();
    ask(&mut rig, 2);
    assert_eq!((rig.outputs_free(), counted(&rig)), (rig.output_slots() - 1, (0, 0)));
    assert!(rig.host.next_deadline(rig.now).is_some(), "somebody has to look when that ends");
    assert_eq!(waiting(&control), 0, "a lane launches one ahead at a time");
    control.lock().unwrap().lingers = false;
    rig.poll();
    assert_eq!(counted(&rig), (0, 1));
}

#[test]
fn slots_that_are_kept_for_a_launch_are_given_back_where_there_are_no_others() {
    let (mut rig, _control) = foreseeing(0, 1);
    let mut held: Vec<Run> = Vec::new();
    let _other = rig.place(0, 1, ROW, 9).unwrap();
    // Answers that do not leave take all slots but those.
    while rig.outputs_free() > 0 {
        rig.submit(1, 2);
        rig.host.poll(rig.now);
        while rig.host.poll(rig.now) && rig.outputs_free() > 0 {}
        held.extend(rig.answer().map(|(_, answer)| answer.output));
    }
    rig.submit(1, 7);
    rig.poll();
    let (_, answer) = rig.answer().unwrap();
    assert_eq!((answer.status, answer.bytes[0]), (Status::Ok, 8));
}

#[test]
fn draining_lets_go_what_waits_and_nothing_waits_after_that() {
    let (mut rig, control) = foreseeing(0, 2);
    rig.host.drain();
    rig.poll();
    assert_eq!((waiting(&control), counted(&rig)), (0, (0, 1)));
    ask(&mut rig, 3);
    assert_eq!(waiting(&control), 0);
    assert_eq!(rig.outputs_free(), rig.output_slots());
    assert!(rig.host.is_idle());
}

#[test]
fn a_cancelled_request_and_one_that_is_late_leave_what_waits_where_it_is() {
    let (mut rig, control) = rig(4, Some(1_000), 1);
    control.lock().unwrap().foresees = true;
    rig.submit(1, 1);
    rig.poll();
    rig.pass(1_000_001);
    rig.poll();
    let (_, answer) = rig.answer().unwrap();
    rig.release(answer.output);
    rig.poll();
    assert_eq!(waiting(&control), 1);
    // They wait for mates.
    let cancelled = rig.submit(1, 2);
    rig.submit_with(1, ROW, 3, 0, 500_000).unwrap();
    rig.poll();
    rig.cancel(cancelled);
    rig.pass(600_000);
    rig.poll();
    let statuses = [rig.answer().unwrap().1.status, rig.answer().unwrap().1.status];
    assert_eq!(statuses, [Status::Cancelled, Status::DeadlineExceeded]);
    assert_eq!((waiting(&control), counted(&rig)), (1, (0, 0)));
}

#[test]
fn a_launch_that_was_waiting_and_does_not_end_is_given_up_as_any_other() {
    let (mut rig, control) = foreseeing(0, 1);
    // It may wait for as long as it likes.
    rig.pass(10 * LAUNCH_LIMIT);
    rig.poll();
    assert_eq!(waiting(&control), 1);
    control.lock().unwrap().holds = true;
    rig.submit(1, 2);
    rig.poll();
    rig.pass(LAUNCH_LIMIT + 1);
    rig.poll();
    assert_eq!(rig.answer().unwrap().1.status, Status::ModelFailed);
    assert_eq!(rig.outputs_free(), rig.output_slots() - 1, "the launch may still write there");
    control.lock().unwrap().holds = false;
    rig.poll();
    assert_eq!(counted(&rig), (1, 0));
    ask(&mut rig, 3);
}
