//! The `splitrpc` command against a server made of the wire crate.

mod common;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use common::{Greeting, Peer, SESSION, catalogue, frame, hello_ack, listen};
use splitrpc_client::npy;
use splitrpc_client::wire::hello::Hello;
use splitrpc_client::wire::{DType, HEADER_LEN, Header, Kind, Status, StatusPayload};

/// Serves one connection.
fn serve(script: fn(Peer)) -> (SocketAddr, thread::JoinHandle<()>) {
    let (listener, addr) = listen();
    (addr, thread::spawn(move || script(Peer::accept(&listener, &Greeting::default()))))
}

fn splitrpc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_splitrpc")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn save(dir: &Path, name: &str, dtype: DType, dims: &[u32], data: &[u8]) -> String {
    let path = dir.join(name);
    npy::write(&mut fs::File::create(&path).unwrap(), dtype, dims, data).unwrap();
    path.to_str().unwrap().to_owned()
}

fn load(path: &Path) -> npy::Array {
    npy::read(&mut fs::File::open(path).unwrap(), 1 << 20).unwrap()
}

#[test]
fn infer_writes_each_output_into_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (addr, server) = serve(|mut p| p.echo());
    let floats: Vec<u8> = [1.5f32, 2.5, -3.0, 4.0].iter().flat_map(|f| f.to_le_bytes()).collect();
    let a = format!("a={}", save(dir.path(), "in=a.npy", DType::Fp32, &[2, 2], &floats));
    let b = format!("b={}", save(dir.path(), "b.npy", DType::Int64, &[2], &[7; 16]));
    let out = dir.path().join("deep/out");
    let output = splitrpc(&[
        "infer",
        &addr.to_string(),
        "pair",
        "--input",
        &b,
        "--input",
        &a,
        "--output-dir",
        out.to_str().unwrap(),
        "--explain",
        "--repeat",
        "3",
        "--priority",
        "2",
        "--deadline",
        "60000",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // The server calls its outputs `../sum` and `..\sum`.
    assert_eq!(load(&out.join("_.._sum.npy")).data, floats);
    assert_eq!(load(&out.join("_.._sum-2.npy")).dims, [2]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    let printed = text(&output.stdout);
    for wanted in
        ["tcp port", "kernel-to-slot", "1 by a CPU", "compute", "network", "3 times: min", "by the client's clock"]
    {
        assert!(printed.contains(wanted), "{wanted} is missing in:\n{printed}");
    }
    server.join().unwrap();
}

#[test]
fn a_single_input_needs_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let (addr, server) = serve(|mut p| p.echo());
    let file = save(dir.path(), "x.npy", DType::Uint8, &[3], b"abc");
    let out = dir.path().to_str().unwrap();
    let output = splitrpc(&["infer", &addr.to_string(), "echo", "--input", &file, "--output-dir", out]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(load(&dir.path().join("OUTPUT.npy")).data, b"abc");
    server.join().unwrap();
}

#[test]
fn outputs_that_are_only_explained_are_listed_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (addr, server) = serve(|mut p| p.echo());
    let file = save(dir.path(), "x.npy", DType::Uint8, &[3], b"abc");
    let infer = ["infer", &addr.to_string(), "echo", "--input", &file];
    let output = splitrpc(&infer);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--output-dir <DIR>"), "{}", text(&output.stderr));
    let explain = [&infer[..], &["--explain"]].concat();
    let output = Command::new(env!("CARGO_BIN_EXE_splitrpc")).args(explain).current_dir(&dir).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    assert!(printed.starts_with("OUTPUT: UINT8 [3], not written\n") && printed.contains("compute"), "{printed}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    server.join().unwrap();
}

#[test]
fn models_are_listed_for_people_and_programs() {
    let (addr, server) = serve(|mut p| assert!(p.request().is_none()));
    let printed = text(&splitrpc(&["models", &addr.to_string()]).stdout);
    assert!(printed.contains("pair (version 1, up to 8 rows a request)"), "{printed}");
    assert!(printed.contains("takes a FP32 [?, 2]") && printed.contains("gives OUTPUT UINT8 [?]"), "{printed}");
    server.join().unwrap();
    let (addr, server) = serve(|mut p| assert!(p.request().is_none()));
    let json: serde_json::Value =
        serde_json::from_slice(&splitrpc(&["models", &addr.to_string(), "--json"]).stdout).unwrap();
    assert_eq!(json[1]["inputs"][1]["datatype"], "INT64");
    assert_eq!(json[0]["name"], "echo");
    server.join().unwrap();
}

#[test]
fn ping_counts() {
    let (addr, server) = serve(|mut p| assert!(p.request().is_none()));
    let output = splitrpc(&["ping", &addr.to_string(), "--count", "2"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("2 sent, 2 answered, 0 lost: min"), "{}", text(&output.stdout));
    server.join().unwrap();
}

/// Opens a session over UDP and answers only the pings of these numbers, until the client goes. At the ping of number
/// `forgets` it knows of no session.
fn answer_pings(socket: &UdpSocket, answered: &[u64], forgets: u64) {
    let mut datagram = [0; 2048];
    let mut pings = 0;
    loop {
        let (length, from) = socket.recv_from(&mut datagram).unwrap();
        let header = Header::parse(&datagram[..length]).unwrap();
        let payload = &datagram[HEADER_LEN..HEADER_LEN + header.length as usize];
        let session = Header { session: SESSION, request: header.request, ..Header::new(Kind::Pong) };
        let answer = match header.kind {
            Kind::Hello => {
                let ack = hello_ack(&Hello::parse(payload).unwrap(), &Greeting::default(), catalogue().len());
                frame(&Header { kind: Kind::HelloAck, ..session }, &ack.to_bytes())
            }
            Kind::List => {
                let (from, total) = (header.offset as usize, catalogue().len() as u32);
                let header = Header { kind: Kind::ListAck, offset: header.offset, total, ..session };
                frame(&header, &catalogue()[from..])
            }
            Kind::Ping => {
                pings += 1;
                if pings == forgets {
                    let mut status = [0; 8];
                    StatusPayload { status: Status::UnknownSession, retry_after_us: 0, text: "" }.write(&mut status);
                    let error = frame(&Header { kind: Kind::Error, request: 0, ..session }, &status);
                    assert!(error.len() <= length, "an answer to strangers is no longer than their question");
                    error
                } else if answered.contains(&pings) {
                    frame(&session, &[])
                } else {
                    continue;
                }
            }
            Kind::Goodbye => return,
            _ => continue,
        };
        socket.send_to(&answer, from).unwrap();
    }
}

#[test]
fn pings_that_are_lost_are_counted() {
    for (answered, code, told) in
        [(&[1, 3][..], 0, "3 sent, 2 answered, 1 lost: min"), (&[], 3, "3 sent, 0 answered, 3 lost\n")]
    {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap().to_string();
        let server = thread::spawn(move || answer_pings(&socket, answered, 0));
        let output = splitrpc(&["ping", &addr, "--transport", "udp", "--count", "3", "--timeout", "0.5"]);
        let printed = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{printed}{}", text(&output.stderr));
        assert!(printed.contains(told) && printed.contains(": 2: no answer within 500ms"), "{printed}");
        server.join().unwrap();
    }
}

#[test]
fn pings_to_a_server_that_ends_are_counted_all_the_same() {
    let (addr, server) = serve(|mut p| {
        let (ping, _) = p.frame().unwrap();
        p.send(&Header { request: ping.request, ..Header::new(Kind::Pong) }, &[]);
        p.frame().unwrap();
    });
    let output = splitrpc(&["ping", &addr.to_string(), "--count", "9"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("9 sent, 1 answered, 8 lost: min"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("is the server running"), "{}", text(&output.stderr));
    server.join().unwrap();
}

#[test]
fn a_session_that_is_lost_between_pings_is_opened_anew_over_either_transport() {
    let told = |transport: &str, addr: SocketAddr| {
        let output = splitrpc(&["ping", &addr.to_string(), "--transport", transport, "--count", "4"]);
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{printed}{said}");
        assert!(
            printed.contains("4 sent, 3 answered, 1 lost: min") && printed.contains(": 2: connection"),
            "{printed}"
        );
        assert_eq!(
            said.lines().collect::<Vec<_>>(),
            [format!("splitrpc: the session was lost, and another one opened with {addr}")]
        );
    };
    let (listener, addr) = listen();
    let server = thread::spawn(move || {
        for answered in [1, 2] {
            let mut peer = Peer::accept(&listener, &Greeting::default());
            for _ in 0..answered {
                let (ping, _) = peer.frame().unwrap();
                peer.send(&Header { request: ping.request, ..Header::new(Kind::Pong) }, &[]);
            }
            peer.frame().unwrap();
        }
    });
    told("tcp", addr);
    server.join().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let server = thread::spawn(move || answer_pings(&socket, &[1, 3, 4], 2));
    told("udp", addr);
    server.join().unwrap();
}

#[test]
fn a_server_that_falls_silent_is_given_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = save(dir.path(), "x.npy", DType::Uint8, &[3], b"abc");
    // It takes what comes, and says nothing.
    let (addr, server) = serve(|mut p| while p.frame().is_some() {});
    let out = dir.path().to_str().unwrap();
    let infer = ["infer", &addr.to_string(), "echo", "--input", &file, "--output-dir", out, "--timeout", "0.4"];
    let output = splitrpc(&infer);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("the server is silent") && told.contains("--repeatable"), "{told}");
    server.join().unwrap();
}

#[test]
fn what_was_answered_before_the_end_is_shown_and_not_denied() {
    let dir = tempfile::tempdir().unwrap();
    let file = save(dir.path(), "x.npy", DType::Uint8, &[3], b"abc");
    let (addr, server) = serve(|mut peer| {
        for _ in 0..2 {
            let (header, payload) = peer.request().unwrap();
            peer.answer(&header, &payload);
        }
        let (header, _) = peer.request().unwrap();
        peer.fail(header.request, Status::Draining, 0, "");
    });
    let out = dir.path().join("out");
    let args = ["infer", &addr.to_string(), "echo", "--input", &file, "--output-dir", out.to_str().unwrap()];
    let output = splitrpc(&[&args[..], &["--repeat", "9"]].concat());
    let (told, printed) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("after 2 answers: ") && printed.contains("2 times: min"), "{told}\n{printed}");
    assert_eq!(load(&out.join("OUTPUT.npy")).data, b"abc");
    server.join().unwrap();
}

#[test]
fn files_and_folders_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let file = save(dir.path(), "x.npy", DType::Uint8, &[3], b"abc");
    let folder = dir.path().to_str().unwrap();
    for (input, out, told) in [
        (folder, folder, "is a folder; --input wants one .npy file of it"),
        (&*file, &*file, "is a file; --output-dir wants a folder"),
    ] {
        // Nothing is asked of any server before.
        let output = splitrpc(&["infer", "127.0.0.1:1", "echo", "--input", input, "--output-dir", out]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(told), "{}", text(&output.stderr));
    }
}

#[test]
fn short_and_long_help_begin_alike() {
    for command in [&[][..], &["infer"], &["models"], &["ping"]] {
        let help = |flag| text(&splitrpc(&[command, &[flag]].concat()).stdout);
        let (short, long) = (help("-h"), help("--help"));
        assert!(short.lines().next().is_some() && short.lines().next() == long.lines().next(), "{short}\n{long}");
    }
}

#[test]
fn exit_codes_and_messages_tell_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let good = save(dir.path(), "x.npy", DType::Uint8, &[3], b"abc");
    let wrong = save(dir.path(), "f.npy", DType::Fp32, &[1], &[0; 4]);
    let out = dir.path().to_str().unwrap();
    let infer = |addr: SocketAddr, model: &str, input: &str| {
        let output = splitrpc(&["infer", &addr.to_string(), model, "--input", input, "--output-dir", out]);
        (output.status.code().unwrap(), text(&output.stderr))
    };
    let serve_no_request = || serve(|mut p| assert!(p.request().is_none()));
    let expect = |(code, message): (i32, String), wanted: i32, words: &str| {
        assert!(code == wanted && message.contains(words), "{code}: {message}");
    };

    let (addr, server) = serve(|mut p| {
        let (header, _) = p.request().unwrap();
        p.fail(header.request, Status::ModelFailed, 0, "divided by \x1b[31mzero");
        assert!(p.request().is_none());
    });
    let failed = infer(addr, "echo", &good);
    assert!(!failed.1.contains('\x1b'), "control characters must not reach the terminal");
    expect(failed, 1, "divided by");
    server.join().unwrap();

    let (addr, server) = serve_no_request();
    expect(infer(addr, "nope", &good), 1, "the server serves: echo, pair");
    server.join().unwrap();
    let (addr, server) = serve_no_request();
    expect(infer(addr, "echo", &wrong), 1, "the model wants UINT8");
    server.join().unwrap();

    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    expect(infer(nowhere, "echo", "INPUT=missing.npy"), 2, "missing.npy");
    expect(infer(nowhere, "echo", &good), 3, "is the server running");
    let output = splitrpc(&["models", "host:what"]);
    expect((output.status.code().unwrap(), text(&output.stderr)), 3, "give host or host:port");
    assert_eq!(splitrpc(&["infer", "127.0.0.1"]).status.code(), Some(2));
    assert_eq!(splitrpc(&["--version"]).status.code(), Some(0));
    assert!(text(&splitrpc(&["--help"]).stdout).contains("Exit codes"));
}
