//! Real paths that take smaller datagrams than client and server agreed on.
//!
//! Each test runs itself again in a network of its own, whose loopback device takes packets of a certain length only, or
//! which a cable ties to another one that drops longer ones without a word. That needs `unshare`, `nsenter` and `ip`, and root
//! or a kernel that lets users make namespaces; where it cannot be had, the test says so and is skipped.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use host_agent::config::{Builtin, Config};
use host_agent::serve::{Server, build};
use splitrpc_client::{Client, ClientOptions, Error, Input, Transport};
use splitrpc_wire::{DType, Status};

/// Set where a test runs in a network of its own.
const INSIDE: &str = "TEST_IN_A_NETWORK_OF_ITS_OWN";
const BYTES: u32 = 602_112;

/// Runs `scenario`, which is all that the test of this name does, where loopback takes packets of `mtu` bytes.
fn over(mtu: u32, test: &str, scenario: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run(&format!("ip link set lo mtu {mtu} up"));
        return scenario();
    }
    let own = [&["--net"][..], &["--net", "--map-root-user"]].into_iter().find(|own| {
        let devices = "ip link set lo mtu 1300 up && ip link add near type veth peer name far";
        let tried = Command::new("unshare").args(*own).args(["sh", "-c", devices]).output();
        tried.is_ok_and(|tried| tried.status.success())
    });
    let Some(own) = own else {
        eprintln!("skipped: no network of its own for {test} (needs unshare, ip, veth, and root or user namespaces)");
        return;
    };
    let ended = Command::new("timeout")
        .args(["60", "unshare"])
        .args(own)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(ended.unwrap().success(), "{test} failed in a network of its own");
}

/// A command that must succeed.
fn run(command: &str) {
    let mut words = command.split(' ');
    let ended = Command::new(words.next().unwrap()).args(words).status();
    assert!(ended.is_ok_and(|ended| ended.success()), "{command} failed");
}

/// A server at the other end of a cable, in a network of its own, until it is dropped. That end takes packets of `mtu` bytes.
struct Remote(Child);

impl Remote {
    const UDP: &str = "10.9.0.2:7100";

    fn start(mtu: u32) -> Remote {
        run("ip link add near mtu 1500 type veth peer name far");
        run("ip addr add 10.9.0.1/24 dev near");
        run("ip link set near up");
        let server = Command::new("unshare")
            .args(["--net", env!("CARGO_BIN_EXE_host-agent"), "serve"])
            .args(["--tcp", "off", "--udp", "0.0.0.0:7100", "--http", "off"])
            .spawn();
        let remote = Remote(server.unwrap());
        let pid = remote.0.id();
        let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while network(&pid.to_string()) == network("self") {
            assert!(Instant::now() < until, "it never got a network of its own");
            std::thread::sleep(Duration::from_millis(1));
        }
        run(&format!("ip link set far netns {pid}"));
        let there = format!("nsenter --target {pid} --net ip");
        run(&format!("{there} addr add 10.9.0.2/24 dev far"));
        run(&format!("{there} link set far mtu {mtu} up"));
        remote
    }

    /// Connects once the server is there, and gives up after a second without an answer.
    fn connect(&self) -> Result<Client, Error> {
        let mut options = ClientOptions { transport: Transport::Udp, ..ClientOptions::default() };
        options.connect.timeout = Duration::from_secs(1);
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match Client::connect(Remote::UDP, options.clone()) {
                Err(Error::Unreachable { .. }) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                connected => return connected,
            }
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bytes(round: u32) -> Vec<u8> {
    (0..BYTES).map(|i| (i.wrapping_mul(31) + i / 4096 + round) as u8).collect()
}

fn assert_echoes(client: &mut Client) {
    for round in 0..3 {
        let bytes = bytes(round);
        let response = client.infer("echo", &[Input::new("INPUT", DType::Uint8, &[BYTES], &bytes[..])]).unwrap();
        assert!(response.data() == bytes, "wrong bytes came back");
        client.recycle(response);
    }
}

fn server() -> Server {
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    server_at(any, any)
}

fn server_at(udp: Option<SocketAddr>, http: Option<SocketAddr>) -> Server {
    let mut config = Config::default();
    (config.listen.tcp, config.listen.udp, config.listen.http) = (None, udp, http);
    config.models.builtins = vec![Builtin::Null, Builtin::Echo];
    Server::start(build(config).unwrap()).unwrap()
}

fn client(server: &Server) -> Client {
    let options = ClientOptions { transport: Transport::Udp, ..ClientOptions::default() };
    Client::connect(&server.udp().unwrap().to_string(), options).unwrap()
}

fn metrics(server: &Server) -> String {
    let mut stream = TcpStream::connect(server.http().unwrap()).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn large_requests_and_answers_get_through_where_the_agreed_datagrams_do_not() {
    over(1300, "large_requests_and_answers_get_through_where_the_agreed_datagrams_do_not", || {
        let server = server();
        let mut client = client(&server);
        assert_echoes(&mut client);
        // Published a moment later.
        let until = Instant::now() + Duration::from_secs(10);
        while !metrics(&server).contains("\nsplitrpc_paths_shrunk_total 1\n") {
            assert!(Instant::now() < until, "the path took everything: {}", metrics(&server));
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(client);
        assert!(server.stop());
    });
}

#[test]
fn a_path_that_does_not_take_the_smallest_datagrams_is_named_as_the_cause() {
    over(1000, "a_path_that_does_not_take_the_smallest_datagrams_is_named_as_the_cause", || {
        let server = server();
        let mut client = client(&server);
        // The kernel sends larger ones of the client's in fragments. The server's it refuses.
        let bytes = bytes(0);
        let input = [Input::new("INPUT", DType::Uint8, &[BYTES], &bytes[..])];
        let error = client.infer("echo", &input).unwrap_err();
        assert!(matches!(&error, Error::Failed(failure) if failure.status == Status::ReplyGone), "{error:?}");
        assert!(error.to_string().contains("MTU"), "{error}");
        drop(client);
        assert!(server.stop());
    });
}

#[test]
fn large_requests_and_answers_get_through_where_longer_packets_vanish() {
    over(1500, "large_requests_and_answers_get_through_where_longer_packets_vanish", || {
        let remote = Remote::start(1300);
        // The kernel may take a second or two until it lets packets through a new cable.
        let mut client = (0..5).find_map(|_| remote.connect().ok()).expect("a session");
        assert_echoes(&mut client);
    });
}

#[test]
fn a_path_on_which_the_hello_vanishes_is_named_as_a_cause() {
    over(1500, "a_path_on_which_the_hello_vanishes_is_named_as_a_cause", || {
        let remote = Remote::start(1000);
        let error = remote.connect().err().unwrap();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        assert!(error.to_string().contains("MTU"), "{error}");
    });
}

#[test]
fn a_server_starts_where_there_is_no_loopback() {
    over(1500, "a_server_starts_where_there_is_no_loopback", || {
        run("ip addr flush dev lo");
        run("ip link add near type veth peer name far");
        run("ip addr add 10.9.0.1/24 dev near");
        run("ip link set near up");
        server_at(Some(SocketAddr::from(([0, 0, 0, 0], 7100))), None);
    });
}
