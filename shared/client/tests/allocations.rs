//! After a first few, requests of like shape cost the TCP connection no allocation.

mod common;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;

use allocation_counter::measure;
use bytes::Bytes;
use common::{Greeting, Peer, echo_of, listen, pattern};
use splitrpc_client::wire::{DType, HEADER_LEN};
use splitrpc_client::{ConnectOptions, Event, Request, TcpConnection, Tensor};

/// A connection, and the server's end of it, to be driven by the same thread: the counter counts per thread.
fn pair() -> (TcpConnection, TcpStream) {
    let (listener, addr) = listen();
    let server = thread::spawn(move || Peer::accept(&listener, &Greeting::default()).0);
    let connection = TcpConnection::connect(addr, ConnectOptions::default()).unwrap();
    let stream = server.join().unwrap();
    stream.set_nonblocking(true).unwrap();
    (connection, stream)
}

/// Submits `batch` requests of `len` bytes and polls until all are answered. The server's answer is the first request's,
/// made in advance, with the id put in.
struct Echo {
    answer: Vec<u8>,
    received: usize,
    sent: usize,
    buffer: Vec<u8>,
}

impl Echo {
    fn new(request_len: usize, answer: Vec<u8>) -> Echo {
        Echo { answer, received: 0, sent: 0, buffer: vec![0; request_len] }
    }

    /// Reads and answers what it can without blocking.
    fn step(&mut self, stream: &mut TcpStream) {
        let done = |r: io::Result<usize>| match r {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => panic!("{e}"),
        };
        if self.received < self.buffer.len() {
            self.received += done(stream.read(&mut self.buffer[self.received..]));
            if self.received == self.buffer.len() {
                let id = 24..32;
                self.answer[id.clone()].copy_from_slice(&self.buffer[id.clone()]);
                self.answer[16..24].copy_from_slice(&self.buffer[16..24]);
            }
        }
        if self.received == self.buffer.len() {
            self.sent += done(stream.write(&self.answer[self.sent..]));
            if self.sent == self.answer.len() {
                (self.received, self.sent) = (0, 0);
            }
        }
    }
}

fn round(
    connection: &mut TcpConnection,
    stream: &mut TcpStream,
    echo: &mut Echo,
    tensors: &[Tensor<'_>],
    batch: usize,
) {
    for _ in 0..batch {
        connection.submit(&Request::new(common::ECHO, tensors)).unwrap();
    }
    let mut answered = 0;
    while answered < batch {
        echo.step(stream);
        match connection.poll().unwrap() {
            Some(Event::Response(response)) => {
                assert!(response.data() == tensors[0].data.as_slice());
                connection.recycle(response);
                answered += 1;
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
}

fn steady_state(len: usize, batch: usize, shared: bool) {
    let (mut connection, mut stream) = pair();
    let data = Bytes::from(pattern(len, 3));
    let lent = &data[..];
    let tensor = if shared {
        Tensor::new(0, DType::Uint8, &[len as u32], &data)
    } else {
        Tensor::new(0, DType::Uint8, &[len as u32], lent)
    };
    let tensors = [tensor.unwrap()];
    // The frame that each request will be, to make the answer from.
    let payload = [common::manifest(&[tensors[0].desc], None), data.to_vec()].concat();
    let header = common::frame(
        &splitrpc_client::wire::Header {
            flags: splitrpc_client::wire::Flags::MANIFEST,
            ..splitrpc_client::wire::Header::new(splitrpc_client::wire::Kind::Request)
        },
        &payload,
    );
    let parsed = splitrpc_client::wire::Header::parse(&header).unwrap();
    let mut echo = Echo::new(HEADER_LEN + payload.len(), echo_of(&parsed, &payload));
    for _ in 0..20 {
        round(&mut connection, &mut stream, &mut echo, &tensors, batch);
    }
    let counted = measure(|| {
        for _ in 0..50 {
            round(&mut connection, &mut stream, &mut echo, &tensors, batch);
        }
    });
    assert_eq!(counted.count_total, 0, "{len} bytes, {batch} at once, shared: {shared}: {counted:?}");
}

#[test]
fn the_counter_counts() {
    let counted = measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn small_requests_allocate_nothing() {
    steady_state(64, 1, false);
    steady_state(64, 16, false);
}

#[test]
fn large_requests_allocate_nothing() {
    steady_state(602_112, 1, true);
    steady_state(602_112, 4, true);
    steady_state(602_112, 4, false);
}
