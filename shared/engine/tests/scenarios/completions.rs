//! What comes back over the link is checked before it is believed.

use splitrpc_engine::{CompletionHead, Peer, Time};
use splitrpc_ring::{Completion, RequestKey, Run, Submission};
use splitrpc_wire::{DType, Kind, ManifestWriter, Shape, Status, TensorDesc};

use crate::rig::{Ask, OUTPUT_POOL, Rig, config, response, serve};

fn status(rig: &mut Rig<'_>) -> Status {
    rig.sent_one().status().status
}

#[test]
fn one_that_names_no_request_is_counted_and_dropped() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let (request, _) = rig.submit(Peer::Stream(0), session, 1, &Ask::rows(1));
        let stale = RequestKey { generation: request.generation.wrapping_add(1), ..request };
        let absent = RequestKey { index: u32::MAX, ..request };
        let free = RequestKey { index: 5, generation: 0 };
        for key in [stale, absent, free] {
            rig.answer(key, 10);
        }
        assert_eq!(rig.server.stats().stray_completions, 3);
        assert!(rig.sent().is_empty() && rig.submissions().is_empty());
        rig.answer(request, 10);
        rig.answer(request, 10);
        assert_eq!(rig.server.stats().stray_completions, 4, "completed twice");
        assert_eq!(rig.sent_one().header.kind, Kind::Response);
    });
}

#[test]
fn outputs_are_the_orchestrators_own_or_the_requests_input() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let (from, ask) = (Peer::Stream(0), Ask::bytes(100));
        let (_, other_input) = rig.submit(from, session, 1, &ask);
        // Somebody else's input, free slots, a stale life of its own, and none at all for data.
        let (request, _) = rig.submit(from, session, 2, &ask);
        rig.complete(request, Status::Ok, other_input, &response(100));
        assert_eq!(status(rig), Status::Internal);
        let (request, input) = rig.submit(from, session, 3, &ask);
        rig.complete(request, Status::Ok, Run { first: 7, ..input }, &response(100));
        assert_eq!(status(rig), Status::Internal);
        let (request, input) = rig.submit(from, session, 4, &ask);
        rig.complete(request, Status::Ok, Run { generation: input.generation + 1, ..input }, &response(100));
        assert_eq!(status(rig), Status::Internal);
        let (request, _) = rig.submit(from, session, 5, &ask);
        rig.complete(request, Status::Ok, Run::NONE, &response(100));
        assert_eq!(status(rig), Status::Internal);
        // More than its own input holds.
        let (request, input) = rig.submit(from, session, 6, &ask);
        rig.complete(request, Status::Ok, input, &response(4097));
        assert_eq!(status(rig), Status::Internal);
        assert!(rig.submissions().is_empty(), "input slots are not the orchestrator's");
        assert_eq!((rig.server.live_requests(), rig.server.free_slots(1)), (1, 15));
    });
}

#[test]
fn outputs_of_a_failure_are_given_back() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let output = Run { pool: OUTPUT_POOL, rows: 1, first: 3, generation: 1 };
        let (request, _) = rig.submit(Peer::Stream(0), session, 1, &Ask::rows(1));
        rig.complete(request, Status::ModelFailed, output, &[]);
        assert_eq!(status(rig), Status::ModelFailed);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        let (request, _) = rig.submit(Peer::Stream(0), session, 2, &Ask::rows(1));
        let completion = Completion { request, status: Status::Ok, output };
        rig.server.handle_completion(rig.now, &completion, &CompletionHead::Nonsense);
        assert_eq!(status(rig), Status::Internal);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        rig.assert_empty();
    });
}

#[test]
fn a_response_larger_than_the_client_takes_fails() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        let (request, _) = rig.submit(Peer::Stream(0), session, 1, &Ask::rows(1));
        let output = rig.answer(request, 3 << 20);
        assert_eq!(status(rig), Status::TooLarge);
        assert_eq!(rig.submissions(), [Submission::Release { output }]);
        rig.assert_empty();
    });
}

#[test]
fn a_manifest_without_a_path_is_sent_as_it_is() {
    serve(&config(), |rig| {
        let session = rig.open_stream(0);
        // Enough small tensors that the place of a path is full of zeros and ones, as a path's might be.
        let mut writer = ManifestWriter::new();
        for handle in 0..8 {
            let shape = Shape::new(&[0, 0, 0]).unwrap();
            writer.push(&TensorDesc::fixed(handle, DType::Bool, shape).unwrap()).unwrap();
        }
        let manifest = writer.finish().to_vec();
        let (request, _) = rig.submit(Peer::Stream(0), session, 1, &Ask::rows(1));
        rig.now = Time::from_nanos(rig.now.nanos() + 12_345);
        rig.complete(request, Status::Ok, Run::NONE, &manifest);
        rig.now = Time::from_nanos(rig.now.nanos() + 12_345);
        assert_eq!(rig.sent_one().head, manifest);
    });
}
