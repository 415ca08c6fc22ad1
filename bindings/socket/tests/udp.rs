//! Datagrams over loopback.

mod common;

use std::io::ErrorKind;
use std::net::SocketAddr;

use common::{loopback, loopback_v6, pattern, ready};
use splitrpc_socket::{
    Interest, IoVec, IoVecBuf, IoVecSend, IoVecSendBuf, MAX_GSO_SEGMENTS, MAX_UDP_PAYLOAD, UdpOptions, UdpSocket,
};

const SEGMENT: usize = 1472;
const HEADER: usize = 64;
const SEGMENTS: usize = 44;

fn options() -> UdpOptions {
    UdpOptions { recv_buffer: Some(4 << 20), send_buffer: Some(4 << 20), dont_fragment: true, ..UdpOptions::default() }
}

fn pair(address: SocketAddr, send: &UdpOptions, recv: &UdpOptions) -> (UdpSocket, UdpSocket) {
    (UdpSocket::bind(address, send).unwrap(), UdpSocket::bind(address, recv).unwrap())
}

/// 44 datagrams, each a header of its own and its part of a payload.
fn frames() -> (Vec<Vec<u8>>, Vec<u8>) {
    let headers = (0..SEGMENTS).map(|index| pattern(HEADER, index * 1000)).collect();
    (headers, pattern(SEGMENTS * (SEGMENT - HEADER), 7))
}

fn send_frames(socket: &UdpSocket, to: SocketAddr, headers: &[Vec<u8>], payload: &[u8]) {
    let mut buffer = IoVecSendBuf::with_capacity(2 * SEGMENTS);
    let list = buffer.begin();
    for (header, part) in headers.iter().zip(payload.chunks(SEGMENT - HEADER)) {
        list.push(IoVecSend::from(&header[..]));
        list.push(IoVecSend::from(part));
    }
    assert_eq!(socket.send(to, list, Some(SEGMENT as u16)).unwrap(), SEGMENTS * SEGMENT);
}

/// Receives all frames, headers and payload apart, as many at a time as come; returns the datagrams of the largest receive.
fn receive_frames(socket: &UdpSocket, from: SocketAddr, headers: &[Vec<u8>], payload: &[u8]) -> usize {
    let mut got_headers = vec![vec![0; HEADER]; SEGMENTS];
    let mut got_payload = vec![0; payload.len()];
    let (mut done, mut most) = (0, 0);
    let mut buffer = IoVecBuf::with_capacity(2 * SEGMENTS);
    while done < SEGMENTS {
        ready(socket, Interest::READ);
        let list = buffer.begin();
        let parts = got_payload.chunks_mut(SEGMENT - HEADER);
        for (header, part) in got_headers.iter_mut().zip(parts).skip(done) {
            list.push(IoVec::from(&mut header[..]));
            list.push(IoVec::from(part));
        }
        let received = socket.recv(list).unwrap();
        assert!(!received.truncated);
        assert_eq!(received.from, from);
        assert_eq!(received.len % SEGMENT, 0);
        let segments = received.len / SEGMENT;
        if segments > 1 {
            assert_eq!(received.segment, Some(SEGMENT as u16));
        }
        done += segments;
        most = most.max(segments);
    }
    assert_eq!(got_headers, headers);
    assert_eq!(got_payload, payload);
    most
}

#[test]
fn offloaded_segments_scatter_into_headers_and_payload() {
    for address in [loopback(), loopback_v6()] {
        let (sender, receiver) = pair(address, &options(), &options());
        let (headers, payload) = frames();
        send_frames(&sender, receiver.local_addr(), &headers, &payload);
        let most = receive_frames(&receiver, sender.local_addr(), &headers, &payload);
        if sender.gso_supported() && receiver.gro_supported() {
            assert_eq!(most, SEGMENTS, "loopback keeps together what was sent together");
            assert_eq!(sender.gso_fallbacks(), 0);
        }
    }
}

#[test]
fn without_offload_the_same_bytes_arrive() {
    let plain = UdpOptions { gso: false, gro: false, ..options() };
    for (send, recv) in [(plain, options()), (options(), plain), (plain, plain)] {
        let (sender, receiver) = pair(loopback(), &send, &recv);
        assert!(send.gso || !sender.gso_supported());
        assert!(recv.gro || !receiver.gro_supported());
        let (headers, payload) = frames();
        send_frames(&sender, receiver.local_addr(), &headers, &payload);
        let most = receive_frames(&receiver, sender.local_addr(), &headers, &payload);
        if !recv.gro {
            assert_eq!(most, 1);
        }
        if !send.gso {
            assert_eq!(sender.gso_fallbacks(), 1);
        }
    }
}

#[test]
fn the_last_segment_may_be_short_and_pieces_need_not_match_segments() {
    for gso in [true, false] {
        let (sender, receiver) =
            pair(loopback(), &UdpOptions { gso, ..options() }, &UdpOptions { gro: false, ..options() });
        let bytes = pattern(2500, 3);
        let list = [&bytes[..1], &[], &bytes[1..999], &bytes[999..]].map(IoVecSend::from);
        assert_eq!(sender.send(receiver.local_addr(), &list, Some(1000)).unwrap(), 2500);
        for expected in bytes.chunks(1000) {
            ready(&receiver, Interest::READ);
            let mut frame = [0; 2000];
            let received = receiver.recv(&mut [IoVec::from(&mut frame[..])]).unwrap();
            assert_eq!(&frame[..received.len], expected);
            assert_eq!(received.segment, None);
        }
    }
}

#[test]
fn peeking_takes_nothing_and_tells_the_whole_length() {
    let (sender, receiver) = pair(loopback(), &options(), &options());
    let bytes = pattern(3 * SEGMENT, 0);
    sender.send(receiver.local_addr(), &[IoVecSend::from(&bytes[..])], Some(SEGMENT as u16)).unwrap();
    ready(&receiver, Interest::READ);
    let mut head = [0; 16];
    let first = receiver.peek(&mut head).unwrap();
    assert_eq!(head, bytes[..16]);
    assert_eq!(first.from, sender.local_addr());
    if receiver.gro_supported() && sender.gso_supported() {
        assert_eq!((first.len, first.segment), (3 * SEGMENT, Some(SEGMENT as u16)));
    }
    assert_eq!(receiver.peek(&mut head).unwrap(), first);
    let mut all = vec![0; MAX_UDP_PAYLOAD];
    let received = receiver.recv(&mut [IoVec::from(&mut all[..])]).unwrap();
    assert_eq!((received.len, received.segment, received.truncated), (first.len, first.segment, false));
    assert_eq!(all[..first.len], bytes[..first.len]);
}

#[test]
fn what_does_not_fit_is_reported() {
    let (sender, receiver) = pair(loopback(), &options(), &options());
    sender.send(receiver.local_addr(), &[IoVecSend::from(&[5; 100][..])], None).unwrap();
    ready(&receiver, Interest::READ);
    let (mut a, mut b) = ([0; 10], [0; 20]);
    let received = receiver.recv(&mut [IoVec::from(&mut a[..]), IoVec::from(&mut b[..])]).unwrap();
    assert_eq!((received.len, received.truncated), (30, true));
    assert_eq!((a, b), ([5; 10], [5; 20]));
}

#[test]
fn an_empty_queue_would_block() {
    let receiver = UdpSocket::bind(loopback(), &options()).unwrap();
    assert_eq!(receiver.peek(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(receiver.recv(&mut [IoVec::from(&mut [0; 4][..])]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn an_empty_datagram_is_a_datagram() {
    let (sender, receiver) = pair(loopback(), &options(), &options());
    assert_eq!(sender.send(receiver.local_addr(), &[], None).unwrap(), 0);
    ready(&receiver, Interest::READ);
    assert_eq!(receiver.peek(&mut [0; 4]).unwrap().len, 0);
    let received = receiver.recv(&mut [IoVec::from(&mut [0; 4][..])]).unwrap();
    assert_eq!((received.len, received.from), (0, sender.local_addr()));
}

#[test]
fn a_connected_socket_hears_its_peer_only() {
    let (mut client, server) = pair(loopback(), &options(), &options());
    let stranger = UdpSocket::bind(loopback(), &options()).unwrap();
    client.connect(server.local_addr()).unwrap();
    stranger.send(client.local_addr(), &[IoVecSend::from(&b"stranger"[..])], None).unwrap();
    client.send(server.local_addr(), &[IoVecSend::from(&b"hello"[..])], None).unwrap();
    ready(&server, Interest::READ);
    let mut bytes = [0; 16];
    let received = server.recv(&mut [IoVec::from(&mut bytes[..])]).unwrap();
    assert_eq!(received.from, client.local_addr());
    server.send(received.from, &[IoVecSend::from(&b"answer"[..])], None).unwrap();
    ready(&client, Interest::READ);
    let received = client.recv(&mut [IoVec::from(&mut bytes[..])]).unwrap();
    assert_eq!(&bytes[..received.len], b"answer");
}

#[test]
fn sends_that_break_the_limits_are_refused() {
    let (sender, receiver) = pair(loopback(), &options(), &options());
    let to = receiver.local_addr();
    let bytes = vec![0; MAX_UDP_PAYLOAD + 1];
    let refused =
        |len: usize, segment: Option<u16>| sender.send(to, &[IoVecSend::from(&bytes[..len])], segment).unwrap_err();
    assert_eq!(refused(100, Some(0)).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(MAX_GSO_SEGMENTS * 100 + 1, Some(100)).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(MAX_UDP_PAYLOAD + 1, Some(1472)).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(MAX_UDP_PAYLOAD + 1, None).raw_os_error(), Some(libc::EMSGSIZE));
}

#[test]
fn several_sockets_share_an_address_where_asked() {
    let shared = UdpOptions { reuse_port: true, ..options() };
    let first = UdpSocket::bind(loopback(), &shared).unwrap();
    assert!(UdpSocket::bind(first.local_addr(), &shared).is_ok());
    let alone = UdpSocket::bind(loopback(), &options()).unwrap();
    assert_eq!(UdpSocket::bind(alone.local_addr(), &options()).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn buffers_are_what_was_asked_for_or_the_systems_limit() {
    let small = UdpSocket::bind(loopback(), &UdpOptions { recv_buffer: Some(8192), ..options() }).unwrap();
    let large = UdpSocket::bind(loopback(), &UdpOptions { recv_buffer: Some(1 << 20), ..options() }).unwrap();
    assert!(small.buffers().unwrap().0 < large.buffers().unwrap().0);
}
