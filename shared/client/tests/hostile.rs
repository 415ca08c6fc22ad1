//! Whatever a server sends, the client neither panics nor hangs nor takes more memory than its limits allow.

mod common;

use std::io::Write;
use std::thread;
use std::time::Duration;

use bolero::{TypeGenerator, check};
use common::{Greeting, Peer, bytes_desc, listen, manifest, response};
use splitrpc_client::wire::{DType, Flags, Header, Kind};
use splitrpc_client::{ConnectOptions, Event, Request, TcpConnection, Tensor};

/// One thing that a hostile server does.
#[derive(Clone, Debug, TypeGenerator)]
enum Act {
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// A frame whose header fields are as drawn.
    Frame { kind: u8, flags: u8, request: u8, tensor: u8, offset: u16, length: u16, total: u16, payload: u8 },
    /// A correct response to one of the first requests.
    Response { request: u8, length: u16 },
    /// The head of a response whose data follows in frames as drawn.
    Manifest { request: u8, lengths: [u8; 3] },
}

impl Act {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Act::Bytes(bytes) => bytes.clone(),
            Act::Frame { kind, flags, request, tensor, offset, length, total, payload } => {
                let mut bytes = Header {
                    request: u64::from(request % 8),
                    tensor: u16::from(tensor % 4),
                    offset: u32::from(*offset % 64),
                    length: u32::from(*length % 512),
                    total: u32::from(*total),
                    ..Header::new(Kind::ALL[usize::from(kind % 14)])
                }
                .to_bytes()
                .to_vec();
                bytes[4] = *flags;
                bytes.resize(64 + usize::from(*length % 512), *payload);
                bytes
            }
            Act::Response { request, length } => response(u64::from(request % 8), &vec![7; usize::from(*length)]),
            Act::Manifest { request, lengths } => {
                let tensors = [0, 1, 2].map(|i| bytes_desc(i as u16, lengths[i].into()));
                let head = manifest(&tensors, None);
                let total = head.len() as u32 + lengths.iter().map(|&l| u32::from(l)).sum::<u32>();
                let header = Header {
                    request: u64::from(request % 8),
                    total,
                    flags: Flags::MANIFEST,
                    ..Header::new(Kind::Response)
                };
                common::frame(&header, &head)
            }
        }
    }
}

#[test]
fn a_hostile_server_only_ends_its_own_session() {
    let (listener, addr) = listen();
    check!().with_type::<Vec<Act>>().with_iterations(400).for_each(|acts| {
        thread::scope(|scope| {
            let server = scope.spawn(|| Peer::accept(&listener, &Greeting::default()));
            let options = ConnectOptions { max_response: 100_000, ..ConnectOptions::default() };
            let mut connection = TcpConnection::connect(addr, options).unwrap();
            let mut peer = server.join().unwrap();
            for _ in 0..6 {
                let tensor = Tensor::new(0, DType::Uint8, &[3], &b"abc"[..]).unwrap();
                connection.submit(&Request::new(0, &[tensor])).unwrap();
            }
            for act in acts {
                // The client may have hung up already.
                let _ = peer.0.write_all(&act.bytes());
            }
            drop(peer);
            let mut events = 0;
            loop {
                match connection.poll() {
                    Ok(Some(Event::Response(response))) => {
                        assert!(response.data().len() <= 100_000);
                        assert_eq!(response.outputs().map(|o| o.data.len()).sum::<usize>(), response.data().len());
                        connection.recycle(response);
                        events += 1;
                    }
                    Ok(Some(Event::Failed(_))) => events += 1,
                    Ok(Some(_)) => {}
                    Ok(None) => thread::sleep(Duration::from_micros(20)),
                    Err(_) => break,
                }
            }
            assert!(events <= 6, "each request ends at most once");
        });
    });
}

#[test]
fn claims_cost_nothing_until_bytes_arrive() {
    let (listener, addr) = listen();
    let server = thread::spawn(move || {
        let mut peer = Peer::accept(&listener, &Greeting::default());
        for _ in 0..32 {
            let (header, _) = peer.request().unwrap();
            // Each answer claims a gigabyte and brings nothing of it.
            let head = manifest(&[bytes_desc(0, 1 << 30)], None);
            let total = head.len() as u32 + (1 << 30);
            let answer =
                Header { request: header.request, total, flags: Flags::MANIFEST, ..Header::new(Kind::Response) };
            peer.send(&answer, &head);
        }
        peer
    });
    let options = ConnectOptions { max_response: u32::MAX - 1, ..ConnectOptions::default() };
    let mut connection = TcpConnection::connect(addr, options).unwrap();
    for _ in 0..32 {
        let tensor = Tensor::new(0, DType::Uint8, &[0], &b""[..]).unwrap();
        connection.submit(&Request::new(0, &[tensor])).unwrap();
    }
    let peer = server.join().unwrap();
    for _ in 0..200 {
        assert!(connection.poll().unwrap().is_none());
        thread::sleep(Duration::from_millis(1));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 1 << 20, "{kilobytes} kB are resident for 32 GB of claims");
    drop(peer);
}
