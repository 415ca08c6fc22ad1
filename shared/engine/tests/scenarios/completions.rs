//! What comes back over the link is checked before it is believed.

use splitrpc_engine::{CompletionHead, Peer, ServerConfig, Time};
use splitrpc_ring::{Completion, RequestKey, Run, Submission};
use splitrpc_wire::{DType, Header, Kind, ManifestWriter, Shape, Status, TensorDesc};

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

#[test]
fn one_of_what_the_link_has_not_taken_is_not_believed() {
    serve(&config(), |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        // Believed, each would free a record and its slots for another submission, and the link takes none.
        for id in 1..=500 {
            rig.request(from, session, id, &Ask::rows(1));
            for index in 0..rig.config.requests {
                for generation in 0..2 {
                    rig.answer(RequestKey { index, generation }, 10);
                }
            }
            rig.sent();
        }
        let requests: Vec<_> = rig
            .submissions()
            .iter()
            .map(|s| match s {
                Submission::Submit { request, .. } => *request,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(requests.len(), 8, "as many as a client may have");
        requests.into_iter().for_each(|request| rig.complete(request, Status::ModelFailed, Run::NONE, &[]));
        rig.sent();
        rig.assert_empty();
    });
}

#[test]
fn a_link_that_stands_still_at_the_worst_moment_loses_nothing() {
    serve(&ServerConfig { requests: 8, ..config() }, |rig| {
        let (from, session) = (Peer::Stream(0), rig.open_stream(0));
        let cancel = |rig: &mut Rig<'_>, id| {
            rig.control(from, Header { session, request: id, ..Header::new(Kind::Cancel) }, &[]);
        };
        let first: Vec<_> = (1..=8).map(|id| rig.submit(from, session, id, &Ask::rows(1)).0).collect();
        // The most that may wait of each record.
        (1..=8).for_each(|id| cancel(rig, id));
        for request in first {
            rig.answer(request, 10);
        }
        for id in 11..=18 {
            assert!(rig.server.accepts_frames());
            rig.request(from, session, id, &Ask::rows(1));
            cancel(rig, id);
        }
        assert!(rig.server.accepts_frames());
        let waiting = rig.submissions();
        assert_eq!(waiting.len(), 32);
        for submission in waiting {
            if let Submission::Submit { request, .. } = submission {
                rig.complete(request, Status::Cancelled, Run::NONE, &[]);
            }
        }
        rig.assert_empty();
    });
}
