//! Streams over loopback.

mod common;

use std::io::ErrorKind;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use common::{loopback, loopback_v6, pattern, ready};
use splitrpc_socket::{
    Events, Interest, IoVec, IoVecSend, ListenOptions, MAX_IOVECS, Poller, TcpListener, TcpOptions, TcpStream,
};

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(loopback(), &ListenOptions::default()).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let client = TcpStream::connect(listener.local_addr(), &TcpOptions::default(), Duration::from_secs(20)).unwrap();
    ready(&listener, Interest::READ);
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!(server.peer_addr().unwrap(), peer);
    (client, server)
}

#[test]
fn bytes_are_scattered_and_gathered_in_order() {
    let (client, server) = pair();
    let (header, payload) = (pattern(64, 1), pattern(3_000_000, 2));
    let expected = payload.clone();
    let writer = thread::spawn(move || {
        let mut list = [IoVecSend::from(&header[..]), IoVecSend::from(&payload[..])];
        let mut rest = &mut list[..];
        while !rest.is_empty() {
            match client.writev(rest) {
                Ok(bytes) => IoVecSend::advance_list(&mut rest, bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready(&client, Interest::WRITE),
                Err(error) => panic!("{error}"),
            }
        }
        client
    });
    let (mut header, mut payload) = ([0; 64], vec![0; expected.len()]);
    let (low, high) = payload.split_at_mut(1_000_001);
    let mut list = [IoVec::from(&mut header[..]), IoVec::from(low), IoVec::from(high)];
    let mut rest = &mut list[..];
    while !rest.is_empty() {
        match server.readv(rest) {
            Ok(0) => panic!("the stream ended early"),
            Ok(bytes) => IoVec::advance_list(&mut rest, bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready(&server, Interest::READ),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(&header[..], pattern(64, 1));
    assert!(payload == expected);
    writer.join().unwrap();
}

#[test]
fn nothing_to_read_and_no_room_to_write_would_block() {
    let (client, server) = pair();
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(client.peek(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let chunk = vec![0; 1 << 20];
    let error = loop {
        if let Err(error) = client.write(&chunk) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(server);
}

#[test]
fn peeking_leaves_the_bytes_in_the_stream() {
    let (client, server) = pair();
    client.write(b"frame").unwrap();
    ready(&server, Interest::READ);
    let mut bytes = [0; 8];
    assert_eq!(server.peek(&mut bytes[..3]).unwrap(), 3);
    assert_eq!(&bytes[..3], b"fra");
    assert_eq!(server.read(&mut bytes).unwrap(), 5);
    assert_eq!(&bytes[..5], b"frame");
}

#[test]
fn lists_longer_than_the_kernel_takes_are_taken_in_part() {
    let (client, server) = pair();
    let byte = [1_u8];
    let list = vec![IoVecSend::from(&byte[..]); MAX_IOVECS + 10];
    assert_eq!(client.writev(&list).unwrap(), MAX_IOVECS);
    ready(&server, Interest::READ);
    let mut room = vec![0; MAX_IOVECS + 10];
    let mut list: Vec<IoVec<'_>> = room.chunks_mut(1).map(IoVec::from).collect();
    assert!(server.readv(&mut list).unwrap() <= MAX_IOVECS);
}

#[test]
fn the_end_is_told_and_a_closed_stream_is_an_error_not_a_signal() {
    let (client, server) = pair();
    client.shutdown(Shutdown::Write).unwrap();
    ready(&server, Interest::READ);
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(client.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let poller = Poller::new().unwrap();
    poller.add(&server, 3, Interest::READ).unwrap();
    let mut events = Events::with_capacity(1);
    poller.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
    assert!(events.iter().all(|event| event.token == 3 && event.readable && event.closed));
    assert_eq!(events.len(), 1);
}

#[test]
fn a_connection_can_be_begun_without_waiting() {
    let listener = TcpListener::bind(loopback_v6(), &ListenOptions::default()).unwrap();
    let client = TcpStream::connect_start(listener.local_addr(), &TcpOptions::default()).unwrap();
    ready(&client, Interest::WRITE);
    assert!(client.take_error().unwrap().is_none());
    assert_eq!(client.peer_addr().unwrap(), listener.local_addr());
    // An address on which nobody listens: its listener is gone.
    let gone = listener.local_addr();
    drop((listener, client));
    match TcpStream::connect_start(gone, &TcpOptions::default()) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
        Ok(client) => {
            ready(&client, Interest::WRITE);
            assert_eq!(client.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionRefused);
        }
    }
    let refused = TcpStream::connect(gone, &TcpOptions::default(), Duration::from_secs(20)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn several_listeners_share_an_address_where_asked() {
    let shared = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let first = TcpListener::bind(loopback(), &shared).unwrap();
    assert!(TcpListener::bind(first.local_addr(), &shared).is_ok());
    let alone = TcpListener::bind(loopback(), &ListenOptions::default()).unwrap();
    let second = TcpListener::bind(alone.local_addr(), &ListenOptions::default());
    assert_eq!(second.unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn buffer_sizes_reach_both_ends() {
    let small = ListenOptions { recv_buffer: Some(16_384), ..ListenOptions::default() };
    let listener = TcpListener::bind(loopback(), &small).unwrap();
    let options = TcpOptions { recv_buffer: Some(1 << 18), send_buffer: Some(1 << 18) };
    let client = TcpStream::connect(listener.local_addr(), &options, Duration::from_secs(20)).unwrap();
    ready(&listener, Interest::READ);
    let (server, _) = listener.accept().unwrap();
    assert!(server.buffers().unwrap().0 < client.buffers().unwrap().0);
    server.set_buffers(Some(1 << 18), None).unwrap();
    assert_eq!(server.buffers().unwrap().0, client.buffers().unwrap().0);
}
