//! The TCP connection against a server that answers as it pleases.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Greeting, Peer, bytes_desc, echo_of, frame, listen, manifest, pattern, response};
use splitrpc_client::wire::{DType, Flags, Header, Kind, MANIFEST_TENSOR, Status, WireError};
use splitrpc_client::{ConnectOptions, Error, Event, Request, RequestId, Response, TcpConnection, Tensor, Wait};

/// A connection, and a server that runs `serve` with it once the session is set up.
fn with_server(serve: impl FnOnce(Peer) + Send + 'static) -> (TcpConnection, thread::JoinHandle<()>) {
    with_greeting(Greeting::default(), ConnectOptions::default(), serve)
}

fn with_greeting(
    greeting: Greeting,
    options: ConnectOptions,
    serve: impl FnOnce(Peer) + Send + 'static,
) -> (TcpConnection, thread::JoinHandle<()>) {
    let (listener, addr) = listen();
    let server = thread::spawn(move || serve(Peer::accept(&listener, &greeting)));
    (TcpConnection::connect(addr, options).unwrap(), server)
}

fn next(connection: &mut TcpConnection) -> Result<Event, Error> {
    let mut waiter = Wait::Block.waiter();
    loop {
        match connection.poll()? {
            Some(event) => return Ok(event),
            None => waiter.wait(connection.as_fd(), connection.wants_write(), connection.next_timeout()),
        }
    }
}

fn next_response(connection: &mut TcpConnection) -> Response {
    match next(connection).unwrap() {
        Event::Response(response) => response,
        other => panic!("{other:?}"),
    }
}

fn submit(connection: &mut TcpConnection, data: &[u8]) -> RequestId {
    let tensor = Tensor::new(0, DType::Uint8, &[data.len() as u32], data).unwrap();
    connection.submit(&Request::new(common::ECHO, &[tensor])).unwrap()
}

#[test]
fn the_catalogue_comes_in_pages() {
    for page in [1, 7, 64, 4096] {
        let greeting = Greeting { page, ..Greeting::default() };
        let (connection, server) = with_greeting(greeting, ConnectOptions::default(), |mut p| p.echo());
        let names: Vec<_> = connection.catalogue().models().iter().map(|m| m.name.clone()).collect();
        assert_eq!(names, ["echo", "pair"]);
        let pair = connection.catalogue().model("pair").unwrap();
        assert_eq!((pair.handle, pair.max_batch, pair.inputs[1].dims.as_slice()), (1, 8, &[-1][..]));
        drop(connection);
        server.join().unwrap();
    }
}

#[test]
fn requests_of_all_sizes_come_back_whole() {
    let (mut connection, server) = with_server(|mut p| p.echo());
    for (seed, len) in [0, 1, 64, 4000, 4000, 64, 602_112, 602_112, 5, 3_200_000, 70_000, 0].into_iter().enumerate() {
        let data = pattern(len, seed);
        let id = submit(&mut connection, &data);
        let response = next_response(&mut connection);
        assert_eq!(response.id(), id);
        assert!(response.data() == data, "{len} bytes differ");
        assert_eq!(response.path().unwrap().payload_bytes as usize, len);
        assert!(response.submitted() <= response.first_byte() && response.first_byte() <= response.completed());
        connection.recycle(response);
    }
    assert_eq!(connection.in_flight(), 0);
    drop(connection);
    server.join().unwrap();
}

#[test]
fn shared_and_lent_tensors_survive_a_server_that_reads_late() {
    let (mut connection, server) = with_server(|mut p| {
        thread::sleep(Duration::from_millis(50));
        p.echo();
    });
    let shared = Bytes::from(pattern(3_000_000, 1));
    let mut expected = Vec::new();
    for seed in 0..6 {
        let lent = pattern(2_000_000 + seed, seed);
        let tensors = [
            Tensor::new(0, DType::Uint8, &[lent.len() as u32], &lent).unwrap(),
            Tensor::new(1, DType::Uint8, &[shared.len() as u32], &shared).unwrap(),
        ];
        let id = connection.submit(&Request::new(0, &tensors)).unwrap();
        expected.push((id, [&lent[..], &shared].concat()));
    }
    assert!(connection.unsent() > 0, "the server has read nothing yet");
    for (id, bytes) in expected {
        let response = next_response(&mut connection);
        assert_eq!(response.id(), id);
        assert!(response.data() == bytes);
        assert_eq!(response.output(1).unwrap().data.len(), shared.len());
        connection.recycle(response);
    }
    drop(connection);
    server.join().unwrap();
}

#[test]
fn submit_with_keeps_nothing_and_takes_answers_meanwhile() {
    let (mut connection, server) = with_server(|mut p| p.echo());
    let mut waits = 0;
    for seed in 0..5 {
        let data = pattern(8_000_000, seed);
        let tensor = Tensor::new(0, DType::Uint8, &[8_000_000], &data).unwrap();
        let blocked = |c: &TcpConnection| {
            assert_eq!(c.unsent(), 0);
            waits += 1;
            Wait::Block.waiter().wait(c.as_fd(), true, None);
            Ok(())
        };
        connection.submit_with(&Request::new(0, &[tensor]), blocked).unwrap();
    }
    assert!(waits > 0, "40 MB do not fit a socket");
    for seed in 0..5 {
        assert!(next_response(&mut connection).data() == pattern(8_000_000, seed));
    }
    drop(connection);
    server.join().unwrap();
}

#[test]
fn answers_may_come_in_any_order_shape_and_slicing() {
    let (mut connection, server) = with_server(|mut p| {
        let mut answers = Vec::new();
        for i in 0..40 {
            let (header, payload) = p.request().unwrap();
            answers.push(echo_of(&header, &payload));
            if i % 7 == 3 {
                answers.push(frame(&Header::new(Kind::Credit), &[0; 16]));
            }
        }
        answers.reverse();
        let stream = answers.concat();
        // First in crumbs, then in ever larger slices.
        let (mut at, mut step) = (0, 1);
        while at < stream.len() {
            let end = (at + step).min(stream.len());
            p.0.write_all(&stream[at..end]).unwrap();
            at = end;
            step += 1 + step / 50;
        }
        assert!(p.request().is_none());
    });
    let lengths: Vec<usize> = (0..40).map(|i| [3, 300, 300, 9000, 70_000, 0, 300][i % 7]).collect();
    let ids: Vec<RequestId> =
        lengths.iter().enumerate().map(|(i, &l)| submit(&mut connection, &pattern(l, i))).collect();
    for i in (0..40).rev() {
        let response = next_response(&mut connection);
        assert_eq!(response.id(), ids[i]);
        assert!(response.data() == pattern(lengths[i], i), "answer {i}");
        connection.recycle(response);
    }
    drop(connection);
    server.join().unwrap();
}

#[test]
fn answers_in_several_frames_may_interleave() {
    let (mut connection, server) = with_server(|mut p| {
        let ids = [p.request().unwrap().0.request, p.request().unwrap().0.request];
        let tensors = [bytes_desc(0, 1000), bytes_desc(1, 500)];
        let head = manifest(&tensors, None);
        let total = head.len() as u32 + 1500;
        let base = |request| Header { request, total, ..Header::new(Kind::Response) };
        let (first, second) = (pattern(1500, 0), pattern(1500, 1));
        p.send(&Header { flags: Flags::MANIFEST, tensor: MANIFEST_TENSOR, ..base(ids[0]) }, &head);
        let opening = [&head, &second[..300]].concat();
        p.send(&Header { flags: Flags::MANIFEST, ..base(ids[1]) }, &opening);
        p.send(&base(ids[0]), &first[..1000]);
        p.send(&Header { offset: 300, ..base(ids[1]) }, &second[300..1000]);
        p.send(&Header { tensor: 1, ..base(ids[1]) }, &second[1000..]);
        p.send(&Header { tensor: 1, ..base(ids[0]) }, &first[1000..1200]);
        p.send(&Header { tensor: 1, offset: 200, ..base(ids[0]) }, &first[1200..]);
        assert!(p.request().is_none());
    });
    let ids = [submit(&mut connection, b"x"), submit(&mut connection, b"y")];
    let second = next_response(&mut connection);
    assert_eq!(second.id(), ids[1]);
    assert!(second.data() == pattern(1500, 1));
    let first = next_response(&mut connection);
    assert_eq!(first.id(), ids[0]);
    assert!(first.output(1).unwrap().data == &pattern(1500, 0)[1000..]);
    drop(connection);
    server.join().unwrap();
}

#[test]
fn failures_name_their_request() {
    let (mut connection, server) = with_server(|mut p| {
        let (header, _) = p.request().unwrap();
        p.fail(header.request, Status::Busy, 2500, "all slots are taken");
        p.echo();
    });
    let id = submit(&mut connection, b"abc");
    match next(&mut connection).unwrap() {
        Event::Failed(f) => {
            assert_eq!((f.id, f.status), (Some(id), Status::Busy));
            assert_eq!(f.retry_after, Some(Duration::from_micros(2500)));
            assert_eq!(f.text, "all slots are taken");
        }
        other => panic!("{other:?}"),
    }
    submit(&mut connection, b"abc");
    assert_eq!(next_response(&mut connection).data(), b"abc");
    drop(connection);
    server.join().unwrap();
}

#[test]
fn a_cancelled_request_is_told_and_its_late_answer_dropped() {
    let (mut connection, server) = with_server(|mut p| {
        let (request, _) = p.request().unwrap();
        // The first half of the answer; the rest after the cancellation.
        let answer = response(request.request, &pattern(200_000, 0));
        p.0.write_all(&answer[..100_000]).unwrap();
        let (cancel, _) = p.frame().unwrap();
        assert_eq!((cancel.kind, cancel.request, cancel.session), (Kind::Cancel, request.request, common::SESSION));
        p.0.write_all(&answer[100_000..]).unwrap();
        p.send(&Header { request: request.request, ..Header::new(Kind::Response) }, &[]);
        p.echo();
    });
    let id = submit(&mut connection, b"abc");
    // Until the first half is in.
    let until = Instant::now() + Duration::from_millis(50);
    while Instant::now() < until {
        assert!(connection.poll().unwrap().is_none());
    }
    assert!(connection.cancel(id));
    assert!(!connection.cancel(id));
    submit(&mut connection, b"next");
    assert_eq!(next_response(&mut connection).data(), b"next");
    drop(connection);
    server.join().unwrap();
}

#[test]
fn a_deadline_is_sent_and_kept() {
    let (mut connection, server) = with_server(|mut p| {
        let (request, _) = p.request().unwrap();
        assert_eq!(request.deadline_us, 30_000);
        assert_eq!((request.priority, request.flags.has(Flags::REPEATABLE)), (7, true));
        let (cancel, _) = p.frame().unwrap();
        assert_eq!((cancel.kind, cancel.request), (Kind::Cancel, request.request));
        p.0.write_all(&response(request.request, b"too late")).unwrap();
        p.echo();
    });
    let tensor = Tensor::new(0, DType::Uint8, &[1], &b"x"[..]).unwrap();
    let deadline = Some(Duration::from_millis(30));
    let tensors = [tensor];
    let request = Request { deadline, priority: 7, repeatable: true, ..Request::new(0, &tensors) };
    let id = connection.submit(&request).unwrap();
    match next(&mut connection).unwrap() {
        Event::Failed(f) => assert_eq!((f.id, f.status), (Some(id), Status::DeadlineExceeded)),
        other => panic!("{other:?}"),
    }
    submit(&mut connection, b"on time");
    assert_eq!(next_response(&mut connection).data(), b"on time");
    assert_eq!(connection.late_responses(), 1);
    drop(connection);
    server.join().unwrap();
}

#[test]
fn pings_are_answered_both_ways() {
    let (mut connection, server) = with_server(|mut p| {
        let (ping, _) = p.frame().unwrap();
        assert_eq!(ping.kind, Kind::Ping);
        p.send(&Header { packet: 9, request: 4, ..Header::new(Kind::Ping) }, &[]);
        let (pong, _) = p.frame().unwrap();
        assert_eq!((pong.kind, pong.packet, pong.request), (Kind::Pong, 9, 4));
        p.send(&Header::new(Kind::Pong), &[]);
        assert!(p.request().is_none());
    });
    connection.ping().unwrap();
    assert!(matches!(next(&mut connection).unwrap(), Event::Pong { .. }));
    drop(connection);
    server.join().unwrap();
}

#[test]
fn limits_are_kept_before_anything_is_sent() {
    let greeting = Greeting { max_requests: 2, max_request: 1000, ..Greeting::default() };
    let (mut connection, server) = with_greeting(greeting, ConnectOptions::default(), |mut p| {
        for _ in 0..2 {
            p.request().unwrap();
        }
        assert!(p.request().is_none(), "refused requests must not reach the server");
    });
    let data = vec![0; 2000];
    let large = Tensor::new(0, DType::Uint8, &[2000], &data).unwrap();
    let refused = connection.submit(&Request::new(0, &[large]));
    assert!(matches!(refused, Err(Error::TooLarge { limit: 1000, .. })), "{refused:?}");
    let mut lying = Tensor::new(0, DType::Uint8, &[10], &data[..10]).unwrap();
    lying.desc.bytes = 11;
    assert!(matches!(connection.submit(&Request::new(0, &[lying])), Err(Error::BadInput(_))));
    submit(&mut connection, b"1");
    submit(&mut connection, b"2");
    let tensor = Tensor::new(0, DType::Uint8, &[1], &data[..1]).unwrap();
    let refused = connection.submit(&Request::new(0, &[tensor]));
    assert_eq!(refused, Err(Error::TooManyInFlight { limit: 2 }));
    drop(connection);
    server.join().unwrap();
}

#[test]
fn unsent_copies_are_bounded() {
    let options = ConnectOptions { max_unsent: 1 << 20, ..ConnectOptions::default() };
    let (mut connection, server) = with_greeting(Greeting::default(), options, |mut p| while p.frame().is_some() {});
    let data = vec![0; 900_000];
    let tensor = Tensor::new(0, DType::Uint8, &[900_000], &data).unwrap();
    let refused = (0..1000).find_map(|_| connection.submit(&Request::new(0, &[tensor])).err());
    assert!(matches!(refused, Some(Error::Backpressure { .. } | Error::TooManyInFlight { .. })), "{refused:?}");
    assert!(connection.unsent() <= 2 << 20);
    drop(connection);
    server.join().unwrap();
}

#[test]
fn a_response_over_the_limit_fails_alone() {
    let options = ConnectOptions { max_response: 10_000, ..ConnectOptions::default() };
    let (mut connection, server) = with_greeting(Greeting::default(), options, |mut p| p.echo());
    let id = submit(&mut connection, &pattern(20_000, 0));
    match next(&mut connection).unwrap() {
        Event::Failed(f) => assert_eq!((f.id, f.status), (Some(id), Status::TooLarge)),
        other => panic!("{other:?}"),
    }
    submit(&mut connection, b"small");
    assert_eq!(next_response(&mut connection).data(), b"small");
    drop(connection);
    server.join().unwrap();
}

#[test]
fn the_end_of_a_session_says_why() {
    let end = |serve: fn(&mut Peer, u64)| {
        let (mut connection, server) = with_server(move |mut p| {
            let (header, _) = p.request().unwrap();
            serve(&mut p, header.request);
        });
        submit(&mut connection, b"abc");
        let error = next(&mut connection).unwrap_err();
        assert_eq!(connection.poll().unwrap_err(), error, "the same error comes again");
        assert_eq!(connection.in_flight_ids().count(), 1);
        assert!(!connection.is_ready());
        server.join().unwrap();
        error
    };
    assert!(matches!(end(|_, _| {}), Error::Lost { may_have_executed: true, .. }));
    assert!(matches!(end(|p, _| p.send(&Header::new(Kind::Goodbye), &[])), Error::Lost { .. }));
    let refused = end(|p, _| p.fail(0, Status::Draining, 0, "going down"));
    assert!(refused.to_string().contains("going down"), "{refused}");
    let broken = |serve| match end(serve) {
        Error::Protocol { error, .. } => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(broken(|p, _| p.0.write_all(&[b'H'; 64]).unwrap()), WireError::BadMagic);
    assert_eq!(broken(|p, _| p.send(&Header::new(Kind::Hello), &[])), WireError::BadKind);
    assert_eq!(broken(|p, _| p.send(&Header::new(Kind::ListAck), &[1])), WireError::BadKind);
    assert_eq!(broken(|p, _| p.send(&Header::new(Kind::Error), &[0xff; 8])), WireError::TooLong);
    let huge = |p: &mut Peer, _| {
        let header = Header { length: u32::MAX, ..Header::new(Kind::Pong) };
        p.0.write_all(&header.to_bytes()).unwrap();
    };
    assert_eq!(broken(huge), WireError::TooLong);
    // Data before its manifest, data outside its tensor, a manifest that is longer than its frame.
    assert_eq!(
        broken(|p, request| p.send(&Header { request, ..Header::new(Kind::Response) }, &[1])),
        WireError::BadManifest
    );
    assert_eq!(
        broken(|p, request| {
            let head = manifest(&[bytes_desc(0, 10)], None);
            let total = head.len() as u32 + 10;
            let base = Header { request, total, ..Header::new(Kind::Response) };
            p.send(&Header { flags: Flags::MANIFEST, tensor: MANIFEST_TENSOR, ..base }, &head);
            p.send(&Header { offset: 5, ..base }, &[0; 6]);
        }),
        WireError::BadExtent
    );
    assert_eq!(
        broken(|p, request| {
            let head = manifest(&[bytes_desc(0, 10)], None);
            let header = Header { request, flags: Flags::MANIFEST, ..Header::new(Kind::Response) };
            p.send(&header, &head);
        }),
        WireError::BadExtent
    );
}

#[test]
fn set_up_fails_with_a_reason() {
    let (listener, addr) = listen();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = TcpConnection::connect(gone, ConnectOptions::default()).unwrap_err();
    assert!(matches!(refused, Error::Unreachable { kind: std::io::ErrorKind::ConnectionRefused, .. }), "{refused:?}");
    // Nobody accepts, so nobody answers.
    let options = ConnectOptions { timeout: Duration::from_millis(30), ..ConnectOptions::default() };
    let silent = TcpConnection::connect(addr, options).unwrap_err();
    assert!(matches!(silent, Error::TimedOut { .. }), "{silent:?}");
    let server = thread::spawn(move || {
        // The client that gave up is still in line.
        drop(listener.accept().unwrap());
        let mut peer = Peer(listener.accept().unwrap().0);
        peer.frame().unwrap();
        peer.fail(0, Status::TooManySessions, 1_000_000, "");
    });
    let full = TcpConnection::connect(addr, ConnectOptions::default()).unwrap_err();
    assert!(matches!(&full, Error::Refused(f) if f.status == Status::TooManySessions), "{full:?}");
    assert!(full.is_unreachable());
    server.join().unwrap();
}

#[test]
fn nothing_is_written_into_a_frame_that_has_left_in_part() {
    let (go, wait) = std::sync::mpsc::channel();
    let data = pattern(32 << 20, 1);
    let sent = data.clone();
    let (mut client, server) = with_server(move |mut p| {
        // Until now the request of this test fills the buffers of both sides.
        wait.recv().unwrap();
        let kinds = [(); 3].map(|()| {
            let (header, payload) = p.frame().unwrap();
            if header.length as usize > sent.len() {
                assert!(payload.ends_with(&sent), "bytes of another frame among the tensor's");
            }
            header.kind
        });
        assert_eq!(kinds, [Kind::Request, Kind::Request, Kind::Cancel]);
    });
    let small = Tensor::new(0, DType::Uint8, &[3], &b"abc"[..]).unwrap();
    let deadline = Duration::from_millis(20);
    client.submit(&Request { deadline: Some(deadline), ..Request::new(common::ECHO, &[small]) }).unwrap();
    let large = [Tensor::new(0, DType::Uint8, &[data.len() as u32], &data[..]).unwrap()];
    let mut waiter = Wait::Block.waiter();
    let mut blocked = 0;
    let request = Request::new(common::ECHO, &large);
    let submitted = client.submit_with(&request, |c| {
        blocked += 1;
        match blocked {
            // The next poll finds the first request's deadline passed, and cancels it.
            1 => thread::sleep(deadline * 2),
            2 => go.send(()).unwrap(),
            _ => waiter.wait(c.as_fd(), true, c.next_timeout()),
        }
        Ok(())
    });
    submitted.unwrap();
    while client.wants_write() {
        waiter.wait(client.as_fd(), true, None);
        client.poll().unwrap();
    }
    server.join().unwrap();
}

#[test]
fn a_server_that_stops_reading_in_the_middle_of_a_request_is_given_up() {
    let options = ConnectOptions { silence: Duration::from_millis(100), ..ConnectOptions::default() };
    let (done, over) = std::sync::mpsc::channel::<()>();
    let (mut client, server) = with_greeting(Greeting::default(), options, move |_| {
        // It holds its end open, until the client has gone.
        let _ = over.recv();
    });
    let bytes = vec![7; 40 << 20];
    let tensor = [Tensor::new(0, DType::Uint8, &[40 << 20], &bytes).unwrap()];
    client.submit(&Request::new(common::ECHO, &tensor)).unwrap();
    let error = next(&mut client).unwrap_err();
    assert!(error.to_string().contains("the server is silent"), "{error}");
    drop((client, done));
    server.join().unwrap();
}

#[test]
fn a_server_that_falls_silent_is_given_up_and_one_that_computes_is_not() {
    let options = ConnectOptions { silence: Duration::from_millis(100), ..ConnectOptions::default() };
    let (mut client, server) = with_greeting(Greeting::default(), options, |mut p| {
        let (header, payload) = p.frame().unwrap();
        // It computes for long, and says that it lives.
        for _ in 0..5 {
            let (ping, _) = p.frame().unwrap();
            assert_eq!(ping.kind, Kind::Ping);
            p.send(&Header { request: ping.request, ..Header::new(Kind::Pong) }, &[]);
        }
        p.0.write_all(&echo_of(&header, &payload)).unwrap();
        let kinds = [p.frame().unwrap().0.kind, p.frame().unwrap().0.kind];
        assert_eq!(kinds, [Kind::Request, Kind::Ping]);
        // Silent until the client has gone.
        assert!(p.frame().is_none());
    });
    let tensor = [Tensor::new(0, DType::Uint8, &[3], &b"abc"[..]).unwrap()];
    client.submit(&Request::new(common::ECHO, &tensor)).unwrap();
    assert!(matches!(next(&mut client), Ok(Event::Response(_))));
    client.submit(&Request::new(common::ECHO, &tensor)).unwrap();
    let error = next(&mut client).unwrap_err();
    assert!(error.to_string().contains("the server is silent"), "{error}");
    drop(client);
    server.join().unwrap();
}
