//! Models that fail, and a link that lies.

use std::sync::atomic::Ordering;

use splitrpc_ring::{NicLink, RequestKey, Run, Submission};
use splitrpc_telemetry::Event;
use splitrpc_wire::Status;

use super::rig::{Answer, FAIL, PANIC, REQUESTS, ROW, Rig, TestModel};

#[test]
fn a_failing_model_says_why_and_stays_usable() {
    for workers in [0, 1] {
        let mut rig = Rig::with(vec![TestModel::fixed(0, None)], workers, 64);
        rig.submit(1, FAIL);
        let (_, answer) = rig.wait();
        assert_eq!((answer.status, answer.text.as_str()), (Status::ModelFailed, "asked to fail"));
        rig.submit(1, 1);
        assert_eq!(rig.wait().1.status, Status::Ok);
        assert_eq!(rig.outputs_free(), rig.output_slots() - 1);
    }
}

#[test]
fn an_instance_that_panics_is_replaced() {
    for workers in [0, 1] {
        let mut rig = Rig::with(vec![TestModel::fixed(0, None)], workers, 64);
        rig.submit(1, PANIC);
        let (_, answer) = rig.wait();
        assert_eq!(answer.status, Status::ModelFailed);
        assert!(answer.text.contains("asked to panic"), "{}", answer.text);
        rig.submit(1, 1);
        assert_eq!(rig.wait().1.status, Status::Ok);
        assert_eq!(rig.telemetry.event(Event::WorkersReplaced), 1);
    }
}

#[test]
fn an_instance_that_cannot_be_replaced_still_answers() {
    let model = TestModel::fixed(0, None);
    let barren = model.barren.clone();
    let mut rig = Rig::with(vec![model], 1, 64);
    barren.store(true, Ordering::SeqCst);
    rig.submit(1, PANIC);
    assert_eq!(rig.wait().1.status, Status::ModelFailed);
    rig.submit(1, 1);
    let (_, answer) = rig.wait();
    assert_eq!((answer.status, answer.text.contains("could not be started")), (Status::ModelFailed, true));
}

#[test]
fn answers_that_do_not_fit_are_the_models_fault() {
    for answer in [Answer::Nothing, Answer::TooLarge] {
        let mut model = TestModel::fixed(0, None);
        model.answer = answer;
        let mut rig = Rig::new(model);
        rig.submit(1, 1);
        rig.poll();
        assert_eq!(rig.answer().unwrap().1.status, Status::ModelFailed, "{answer:?}");
        assert_eq!(rig.outputs_free(), rig.output_slots());
    }
}

#[test]
fn several_workers_compute_at_once_and_all_is_answered() {
    let mut rig = Rig::with(vec![TestModel::fixed(4, Some(0))], 3, 64);
    for round in 0..50u8 {
        let keys: Vec<_> = (0..20).map(|_| rig.submit(1, round)).collect();
        let mut answered = Vec::new();
        for _ in &keys {
            let (key, answer) = rig.wait();
            assert_eq!((answer.status, answer.bytes), (Status::Ok, vec![round + 1; ROW as usize]));
            answered.push(key);
            rig.release(answer.output);
        }
        answered.sort_unstable_by_key(|k| k.generation);
        assert_eq!(answered, keys);
    }
    rig.poll();
    assert_eq!(rig.outputs_free(), rig.output_slots());
}

#[test]
fn a_manifest_that_is_not_the_models_is_refused() {
    let mut rig = Rig::new(TestModel::fixed(8, Some(0)));
    // Shapes in the model's slots that are not its own: too short a row, other rows than slots, garbage.
    let input = rig.place(0, 1, ROW - 1, 1).unwrap();
    let key = rig.key();
    rig.send(key, input, 0, 0, 0);
    let input = rig.place(0, 2, ROW, 1).unwrap();
    let key = rig.key();
    rig.send(key, Run { rows: 1, ..input }, 0, 0, 0);
    let input = rig.place(0, 1, ROW, 1).unwrap();
    rig.arena.meta(input).unwrap().fill(0xff);
    let key = rig.key();
    rig.send(key, input, 0, 0, 0);
    rig.poll();
    let statuses: Vec<_> = std::iter::from_fn(|| rig.answer().map(|a| a.1.status)).collect();
    assert_eq!(statuses, [Status::BadTensor, Status::BadTensor, Status::Internal]);
    assert_eq!(rig.telemetry.event(Event::Launches), 0);
}

#[test]
fn a_link_that_names_what_does_not_exist_is_answered_and_counted() {
    let mut rig = Rig::new(TestModel::fixed(8, Some(1_000_000)));
    let honest = rig.submit(1, 1);
    rig.poll();
    let live = Run { pool: 0, rows: 1, first: 0, generation: 0 };
    let submit = |request, input, model| Submission::Submit {
        request,
        input,
        model,
        priority: 0,
        deadline_ns: 0,
        payload_bytes: 0,
        epoch: 0,
        on_device: false,
    };
    let key = |index| RequestKey { index, generation: 99 };
    let lies = [
        submit(key(REQUESTS), live, 0),
        submit(key(honest.index), live, 0),
        submit(key(5), live, 7),
        submit(key(6), Run { pool: 77, ..live }, 0),
        submit(key(7), Run { first: 1 << 30, ..live }, 0),
        submit(key(8), Run { pool: 1, ..live }, 0),
        submit(key(9), Run { rows: 0, ..live }, 0),
    ];
    for lie in &lies {
        rig.nic.submit(lie).unwrap();
    }
    rig.nic.submit(&Submission::Release { output: Run { pool: 1, rows: 1, first: 3, generation: 8 } }).unwrap();
    rig.nic.submit(&Submission::Release { output: Run::NONE }).unwrap();
    rig.nic.submit(&Submission::Cancel { request: key(REQUESTS + 3) }).unwrap();
    rig.poll();
    let refused: Vec<_> = std::iter::from_fn(|| rig.completion()).collect();
    assert_eq!(refused.len(), lies.len());
    assert!(refused.iter().all(|c| c.request.generation == 99 && c.status != Status::Ok && c.output == Run::NONE));
    assert_eq!(rig.telemetry.event(Event::LinkErrors), 4);
    // The honest request is untouched.
    rig.host.drain();
    rig.poll();
    let (answered, answer) = rig.answer().unwrap();
    assert_eq!((answered, answer.status), (honest, Status::Ok));
}

#[test]
fn a_request_in_a_devices_memory_is_refused_by_a_model_that_does_not_read_it_there() {
    let mut rig = Rig::new(TestModel::fixed(8, Some(0)));
    let input = rig.place(0, 1, ROW, 7).unwrap();
    let request = rig.key();
    let (model, priority, deadline_ns, payload_bytes, epoch) = (0, 0, 0, 0, 0);
    let on_device = true;
    rig.nic
        .submit(&Submission::Submit { request, input, model, priority, deadline_ns, payload_bytes, epoch, on_device })
        .unwrap();
    rig.poll();
    let refused = rig.completion().unwrap();
    assert_eq!((refused.request, refused.status, refused.output), (request, Status::Internal, Run::NONE));
    assert_eq!(rig.telemetry.event(Event::Launches), 0);
}
