//! The blocking and the asynchronous client.

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use common::{Greeting, Peer, echo_of, listen, pattern};
use splitrpc_client::wire::{DType, Kind, Status};
use splitrpc_client::{
    AsyncClient, CallOptions, Client, ClientOptions, ConnectOptions, Error, Input, Request, Tensor, Transport, Wait,
};

/// Serves one connection after another, each as the next of `scripts` says.
fn serve(scripts: Vec<fn(Peer)>) -> (SocketAddr, thread::JoinHandle<()>) {
    let (listener, addr) = listen();
    let serve = move |listener: TcpListener| {
        for script in scripts {
            script(Peer::accept(&listener, &Greeting::default()));
        }
    };
    (addr, thread::spawn(move || serve(listener)))
}

fn connect(addr: SocketAddr) -> Client {
    Client::connect(&addr.to_string(), ClientOptions::default()).unwrap()
}

fn echo(client: &mut Client, data: &[u8], options: &CallOptions) -> Result<Vec<u8>, Error> {
    let dims = [data.len() as u32];
    let input = Input::new("INPUT", DType::Uint8, &dims, data);
    let response = client.infer_with("echo", &[input], options)?;
    let out = response.data().to_vec();
    client.recycle(response);
    Ok(out)
}

fn answer_one(peer: &mut Peer) {
    let (header, payload) = peer.request().unwrap();
    peer.0.write_all(&echo_of(&header, &payload)).unwrap();
}

#[test]
fn calls_by_name_work_in_every_wait_mode() {
    for wait in [Wait::Spin, Wait::default(), Wait::Block] {
        let (addr, server) = serve(vec![|mut p| p.echo()]);
        let mut client =
            Client::connect(&addr.to_string(), ClientOptions { wait, ..ClientOptions::default() }).unwrap();
        for len in [1, 1000, 2_000_000] {
            let data = pattern(len, len);
            assert!(echo(&mut client, &data, &CallOptions::default()).unwrap() == data);
        }
        assert!(client.ping().unwrap() > Duration::ZERO);
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn mistakes_are_told_before_anything_is_sent() {
    let (addr, server) = serve(vec![|mut p| assert!(p.request().is_none())]);
    let mut client = connect(addr);
    let input = Input::new("INPUT", DType::Fp32, &[1], &[0u8; 4][..]);
    let message = client.infer("echo", &[input]).unwrap_err().to_string();
    assert!(message.contains("the model wants UINT8") && message.contains("INPUT UINT8 [?]"), "{message}");
    let message = client.infer("ecko", &[input]).unwrap_err().to_string();
    assert!(message.contains("serves: echo, pair"), "{message}");
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_connection_gone_stale_is_made_anew() {
    let (addr, server) = serve(vec![answer_and_close, |mut p| p.echo()]);
    fn answer_and_close(mut peer: Peer) {
        answer_one(&mut peer);
    }
    let mut client = connect(addr);
    assert_eq!(echo(&mut client, b"one", &CallOptions::default()).unwrap(), b"one");
    thread::sleep(Duration::from_millis(20));
    assert_eq!(echo(&mut client, b"two", &CallOptions::default()).unwrap(), b"two");
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_request_that_may_have_been_executed_is_only_repeated_if_it_may_be() {
    let swallow: fn(Peer) = |mut p| drop(p.request().unwrap());
    let (addr, server) = serve(vec![swallow, swallow, |mut p| p.echo()]);
    let mut client = connect(addr);
    let lost = echo(&mut client, b"once", &CallOptions::default()).unwrap_err();
    assert!(matches!(lost, Error::Lost { may_have_executed: true, .. }), "{lost:?}");
    let repeatable = CallOptions { repeatable: true, ..CallOptions::default() };
    assert_eq!(echo(&mut client, b"twice", &repeatable).unwrap(), b"twice");
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_request_that_did_not_leave_whole_is_sent_again() {
    // The server hangs up in the middle of a large request, which it cannot have executed.
    let hang_up: fn(Peer) = |mut p| {
        let mut some = [0; 1000];
        std::io::Read::read_exact(&mut p.0, &mut some).unwrap();
    };
    let (addr, server) = serve(vec![hang_up, |mut p| p.echo()]);
    let mut client = connect(addr);
    let data = pattern(30_000_000, 0);
    assert!(echo(&mut client, &data, &CallOptions::default()).unwrap() == data);
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_busy_server_is_asked_again_if_wanted() {
    let (addr, server) = serve(vec![|mut p| {
        for _ in 0..4 {
            let (header, _) = p.request().unwrap();
            p.fail(header.request, Status::Busy, 5000, "");
        }
        p.echo();
    }]);
    let mut client = connect(addr);
    let refused = echo(&mut client, b"x", &CallOptions::default()).unwrap_err();
    assert!(matches!(&refused, Error::Failed(f) if f.status == Status::Busy), "{refused:?}");
    let patient = CallOptions { retry_busy_for: Some(Duration::from_secs(20)), ..CallOptions::default() };
    let started = Instant::now();
    assert_eq!(echo(&mut client, b"x", &patient).unwrap(), b"x");
    assert!(started.elapsed() >= Duration::from_millis(15), "three refusals asked for 5 ms each");
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_call_ends_at_its_deadline() {
    let (addr, server) = serve(vec![|mut p| {
        drop(p.request().unwrap());
        p.echo();
    }]);
    let mut client = connect(addr);
    let options = CallOptions { deadline: Some(Duration::from_millis(20)), ..CallOptions::default() };
    let late = echo(&mut client, b"x", &options).unwrap_err();
    assert!(matches!(&late, Error::Failed(f) if f.status == Status::DeadlineExceeded), "{late:?}");
    assert_eq!(echo(&mut client, b"y", &CallOptions::default()).unwrap(), b"y");
    drop(client);
    server.join().unwrap();
}

fn in_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn async_connect(addr: SocketAddr) -> AsyncClient {
    AsyncClient::connect(&addr.to_string(), Transport::Tcp, ConnectOptions::default()).await.unwrap()
}

#[test]
fn futures_share_a_connection() {
    let (addr, server) = serve(vec![|mut p| p.echo()]);
    in_runtime(async {
        let client = async_connect(addr).await;
        let tasks: Vec<_> = (0..200)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move {
                    let data = pattern([10, 5000, 400_000][i % 3], i);
                    let dims = [data.len() as u32];
                    let input = Input::new("", DType::Uint8, &dims, &data);
                    let response = client.infer("echo", &[input], &CallOptions::default()).await.unwrap();
                    assert!(response.data() == data);
                    client.recycle(response);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    server.join().unwrap();
}

#[test]
fn dropping_a_future_cancels_its_request() {
    let (addr, server) = serve(vec![|mut p| {
        let (dropped, payload) = p.request().unwrap();
        let (cancel, _) = p.frame().unwrap();
        assert_eq!((cancel.kind, cancel.request), (Kind::Cancel, dropped.request));
        p.0.write_all(&echo_of(&dropped, &payload)).unwrap();
        p.echo();
    }]);
    in_runtime(async {
        let client = async_connect(addr).await;
        let tensors = [Tensor::new(0, DType::Uint8, &[4], &b"drop"[..]).unwrap()];
        let request = Request::new(common::ECHO, &tensors);
        let late = tokio::time::timeout(Duration::from_millis(30), client.run(&request)).await;
        assert!(late.is_err());
        let tensors = [Tensor::new(0, DType::Uint8, &[4], &b"keep"[..]).unwrap()];
        assert_eq!(client.run(&Request::new(common::ECHO, &tensors)).await.unwrap().data(), b"keep");
    });
    server.join().unwrap();
}

#[test]
fn a_lost_connection_is_told_to_every_future() {
    let (addr, server) = serve(vec![|mut p| {
        for _ in 0..3 {
            p.request().unwrap();
        }
    }]);
    in_runtime(async {
        let client = async_connect(addr).await;
        let tensors = [Tensor::new(0, DType::Uint8, &[1], &b"x"[..]).unwrap()];
        let request = Request::new(common::ECHO, &tensors);
        let (a, b, c) = tokio::join!(client.run(&request), client.run(&request), client.run(&request));
        for answer in [a, b, c] {
            assert!(matches!(answer, Err(Error::Lost { .. })), "{answer:?}");
        }
        assert!(matches!(client.run(&request).await, Err(Error::Lost { .. })));
    });
    server.join().unwrap();
}
