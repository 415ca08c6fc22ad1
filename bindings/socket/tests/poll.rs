//! Waiting and waking.

mod common;

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use common::loopback;
use splitrpc_socket::{Events, Interest, IoVec, IoVecSend, Poller, UdpOptions, UdpSocket, WakeFd};

#[test]
fn waits_shorter_than_a_millisecond_are_neither_skipped_nor_refused() {
    let poller = Poller::new().unwrap();
    let mut events = Events::with_capacity(1);
    for timeout in [1, 50, 999, 1001].map(Duration::from_micros) {
        let begin = Instant::now();
        assert_eq!(poller.wait(&mut events, Some(timeout)).unwrap(), 0);
        assert!(begin.elapsed() >= timeout);
    }
    assert!(poller.waits_finely(), "the kernel is older than 5.11");
}

#[test]
fn a_wait_of_zero_returns_at_once() {
    let poller = Poller::new().unwrap();
    let mut events = Events::with_capacity(1);
    assert_eq!(poller.wait(&mut events, Some(Duration::ZERO)).unwrap(), 0);
    assert!(events.is_empty());
}

#[test]
fn waking_ends_an_endless_wait() {
    let poller = Poller::new().unwrap();
    let wake = WakeFd::new().unwrap();
    assert!(!wake.drain());
    poller.add(&wake, u64::MAX, Interest::READ).unwrap();
    let waker = thread::spawn({
        let wake = wake.clone();
        move || {
            wake.wake();
            wake.wake();
        }
    });
    let mut events = Events::with_capacity(4);
    while poller.wait(&mut events, None).unwrap() == 0 {}
    let event = events.iter().next().unwrap();
    assert!(event.token == u64::MAX && event.readable && !event.writable && !event.closed);
    waker.join().unwrap();
    assert!(wake.drain());
    assert!(!wake.drain());
    assert_eq!(poller.wait(&mut events, Some(Duration::ZERO)).unwrap(), 0);
}

#[test]
fn interests_can_be_changed_and_given_up() {
    let socket = UdpSocket::bind(loopback(), &UdpOptions::default()).unwrap();
    let poller = Poller::new().unwrap();
    let mut events = Events::with_capacity(4);
    let mut tokens = |poller: &Poller| {
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().map(|event| (event.token, event.readable, event.writable)).collect::<Vec<_>>()
    };
    poller.add(&socket, 1, Interest::READ).unwrap();
    assert_eq!(poller.add(&socket, 1, Interest::READ).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(tokens(&poller), []);
    poller.modify(&socket, 2, Interest::BOTH).unwrap();
    assert_eq!(tokens(&poller), [(2, false, true)]);
    socket.send(socket.local_addr(), &[IoVecSend::from(&b"self"[..])], None).unwrap();
    assert_eq!(tokens(&poller), [(2, true, true)]);
    poller.modify(&socket, 3, Interest::READ.edge()).unwrap();
    assert_eq!(tokens(&poller), [(3, true, false)]);
    assert_eq!(tokens(&poller), [], "told once");
    poller.modify(&socket, 4, Interest::NONE).unwrap();
    assert_eq!(tokens(&poller), []);
    poller.remove(&socket).unwrap();
    assert_eq!(poller.remove(&socket).unwrap_err().kind(), ErrorKind::NotFound);
    let mut bytes = [0; 4];
    assert_eq!(socket.recv(&mut [IoVec::from(&mut bytes[..])]).unwrap().len, 4);
}

#[test]
fn more_ready_than_room_comes_in_turns() {
    let poller = Poller::new().unwrap();
    let wakes: Vec<WakeFd> = (0..5).map(|_| WakeFd::new().unwrap()).collect();
    for (token, wake) in wakes.iter().enumerate() {
        poller.add(wake, token as u64, Interest::READ).unwrap();
        wake.wake();
    }
    let mut events = Events::with_capacity(2);
    let mut seen = Vec::new();
    while poller.wait(&mut events, Some(Duration::ZERO)).unwrap() > 0 {
        for event in events.iter() {
            assert!(wakes[event.token as usize].drain());
            seen.push(event.token);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
}
