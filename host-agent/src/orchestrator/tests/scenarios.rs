use splitrpc_engine::{Time, US};
use splitrpc_telemetry::Event;
use splitrpc_wire::Status;

use super::rig::{Answer, ROW, Rig, TestModel};
use crate::model::spec::ModelSpec;

#[test]
fn a_request_is_answered_in_output_slots() {
    let mut rig = Rig::new(TestModel::fixed(0, None));
    let key = rig.submit(1, 7);
    rig.poll();
    let (answered, answer) = rig.answer().unwrap();
    assert_eq!((answered, answer.status, answer.batch_rows), (key, Status::Ok, 1));
    assert_eq!(answer.bytes, [8; ROW as usize]);
    assert_eq!(rig.outputs_free(), rig.output_slots() - 1);
    rig.release(answer.output);
    rig.poll();
    assert_eq!(rig.outputs_free(), rig.output_slots());
    assert!(rig.host.is_idle());
}

#[test]
fn an_answer_may_be_the_input_itself() {
    let mut rig = Rig::new(TestModel::variable(0, Answer::Input));
    rig.submit(1, 7);
    rig.poll();
    let (_, answer) = rig.answer().unwrap();
    assert_eq!((answer.status, answer.bytes), (Status::Ok, vec![7; ROW as usize]));
}

#[test]
fn an_answer_may_lie_in_the_runtimes_own_memory() {
    let mut rig = Rig::new(TestModel::variable(0, Answer::Owned));
    let mut outputs = Vec::new();
    // The rig's arena takes four such outputs.
    for _ in 0..4 {
        rig.submit(1, 1);
        rig.poll();
        let (_, answer) = rig.answer().unwrap();
        assert_eq!((answer.status, answer.bytes), (Status::Ok, vec![2; ROW as usize]));
        outputs.push(answer.output);
    }
    rig.submit(1, 1);
    rig.poll();
    assert_eq!(rig.answer().unwrap().1.status, Status::Busy);
    rig.release(outputs[0]);
    rig.submit(1, 1);
    rig.poll();
    assert_eq!(rig.answer().unwrap().1.status, Status::Ok);
}

#[test]
fn requests_share_a_launch_once_the_oldest_is_due() {
    let mut rig = Rig::new(TestModel::fixed(8, Some(100)));
    rig.submit(1, 1);
    rig.submit(2, 2);
    rig.poll();
    assert!(rig.answer().is_none());
    assert_eq!(rig.host.next_deadline(rig.now), Some(rig.now + 100 * US));
    rig.pass(100 * US);
    rig.poll();
    let answers = [rig.answer().unwrap().1, rig.answer().unwrap().1];
    assert_eq!(answers.each_ref().map(|a| a.batch_rows), [3, 3]);
    assert_eq!(answers[1].bytes, [3; 2 * ROW as usize]);
    // 10 bytes a row, shared out by rows.
    assert_eq!(answers.each_ref().map(|a| a.runtime_copied), [10, 20]);
    assert_eq!(rig.telemetry.event(Event::Launches), 1);
    assert_eq!(rig.host.next_deadline(rig.now), None);
}

#[test]
fn a_full_batch_waits_for_nobody() {
    let mut rig = Rig::new(TestModel::fixed(2, Some(1_000_000)));
    rig.submit(1, 1);
    rig.submit(1, 2);
    rig.poll();
    assert_eq!([rig.answer().unwrap().1.batch_rows, rig.answer().unwrap().1.batch_rows], [2, 2]);
}

#[test]
fn draining_waits_for_no_mates() {
    let mut rig = Rig::new(TestModel::fixed(8, Some(1_000_000)));
    rig.submit(1, 1);
    rig.poll();
    assert!(!rig.host.is_idle());
    rig.host.drain();
    rig.poll();
    assert_eq!(rig.answer().unwrap().1.status, Status::Ok);
    assert!(rig.host.is_idle());
}

#[test]
fn rows_of_other_shapes_are_launched_apart() {
    let model = TestModel::variable(8, Answer::Owned);
    let launches = model.launches.clone();
    let mut rig = Rig::new(model);
    for (fill, row) in [(1, 4), (2, 8), (3, 4)] {
        rig.submit_with(1, row, fill, 0, 0).unwrap();
    }
    rig.poll();
    assert_eq!(*launches.lock().unwrap(), [vec![1, 3], vec![2]]);
}

#[test]
fn a_passed_deadline_is_answered_without_a_launch() {
    let model = TestModel::fixed(8, Some(1_000));
    let launches = model.launches.clone();
    let mut rig = Rig::new(model);
    let key = rig.submit_with(1, ROW, 1, 0, 500 * US).unwrap();
    rig.poll();
    assert_eq!(rig.host.next_deadline(rig.now), Some(rig.now + 500 * US));
    rig.pass(500 * US);
    rig.poll();
    let (answered, answer) = rig.answer().unwrap();
    assert_eq!((answered, answer.status), (key, Status::DeadlineExceeded));
    assert!(answer.text.contains("deadline"));
    assert!(launches.lock().unwrap().is_empty());
}

#[test]
fn a_cancelled_request_leaves_the_queue() {
    let mut rig = Rig::new(TestModel::fixed(8, Some(1_000)));
    let key = rig.submit(1, 1);
    rig.poll();
    rig.cancel(key);
    rig.poll();
    assert_eq!(rig.answer().unwrap().1.status, Status::Cancelled);
    rig.cancel(key);
    rig.pass(2_000 * US);
    rig.poll();
    assert!(rig.answer().is_none());
    assert_eq!(rig.telemetry.event(Event::Launches), 0);
}

#[test]
fn without_output_slots_requests_wait_in_the_order_of_service() {
    let model = TestModel::fixed(0, None);
    let launches = model.launches.clone();
    let mut rig = Rig::new(model);
    let mut held = Vec::new();
    while rig.outputs_free() > 0 {
        rig.submit(1, 0);
        rig.poll();
        held.push(rig.answer().unwrap().1.output);
    }
    launches.lock().unwrap().clear();
    // Priorities 1 to 3; 0 is the default, 2, and so is what is past 3.
    let second = Time::from_nanos(1_000_000_000).nanos();
    for (fill, priority, deadline) in [(1, 9, 0), (2, 0, 0), (3, 1, 0), (4, 2, second), (5, 1, 0), (6, 3, 0)] {
        rig.submit_with(1, ROW, fill, priority, deadline).unwrap();
    }
    rig.poll();
    assert!(rig.answer().is_none());
    for output in held.drain(..6) {
        rig.release(output);
        rig.poll();
        assert_eq!(rig.answer().unwrap().1.status, Status::Ok);
    }
    assert_eq!(launches.lock().unwrap().concat(), [3, 5, 4, 1, 2, 6]);
}

#[test]
fn a_full_queue_refuses_as_busy() {
    let mut model = TestModel::fixed(8, Some(1_000_000));
    let batching = model.spec.batching.take().unwrap();
    model.spec =
        ModelSpec { batching: Some(crate::model::spec::BatchingSpec { max_queue: 2, ..batching }), ..model.spec };
    let mut rig = Rig::new(model);
    rig.submit(1, 1);
    rig.submit(1, 2);
    let third = rig.submit(1, 3);
    rig.poll();
    let (answered, answer) = rig.answer().unwrap();
    assert_eq!((answered, answer.status, answer.text.as_str()), (third, Status::Busy, "the model's queue is full"));
    assert!(rig.answer().is_none());
}

#[test]
fn completions_wait_for_room_on_the_link() {
    let mut rig = Rig::with(vec![TestModel::fixed(0, None)], 0, 8);
    let mut keys = Vec::new();
    for round in 0..3 {
        for i in 0..8 {
            keys.push(rig.submit(1, round * 8 + i));
        }
        rig.poll();
    }
    assert_eq!(rig.host.next_deadline(rig.now), Some(rig.now));
    let mut answered = Vec::new();
    while let Some((key, _)) = rig.answer() {
        answered.push(key);
        rig.poll();
    }
    assert_eq!(answered, keys);
    assert!(rig.host.is_idle());
}

#[test]
fn two_models_do_not_share_a_launch() {
    let (first, second) = (TestModel::fixed(8, Some(0)), TestModel::fixed(8, Some(0)));
    let launches = [first.launches.clone(), second.launches.clone()];
    let mut rig = Rig::with(vec![first, second], 0, 64);
    for fill in 0..4u8 {
        let model = u16::from(fill % 2);
        let input = rig.place(model, 1, ROW, fill).unwrap();
        let key = rig.key();
        rig.send(key, input, model, 0, 0);
    }
    rig.poll();
    assert_eq!(launches.map(|l| l.lock().unwrap().clone()), [[vec![0, 2]], [vec![1, 3]]]);
}

#[test]
fn that_slots_are_wanted_is_something_that_was_done() {
    for workers in [0, 1] {
        let mut rig = Rig::with(vec![TestModel::fixed(8, Some(100))], workers, 64);
        let mut held = Vec::new();
        while rig.outputs_free() > 0 {
            rig.submit(1, 1);
            rig.poll();
            rig.pass(100 * US);
            held.push(rig.wait().1.output);
        }
        rig.submit(1, 1);
        rig.poll();
        assert!(!rig.host.wants_outputs(), "it is not due yet");
        // Who has looked whether slots are wanted, and sleeps once nothing is done, would not be roused for them.
        rig.pass(100 * US);
        assert!(rig.host.poll(rig.now) && rig.host.wants_outputs());
        assert!(!rig.host.poll(rig.now) && rig.host.wants_outputs());
        rig.release(held[0]);
        assert_eq!(rig.wait().1.status, Status::Ok);
    }
}
