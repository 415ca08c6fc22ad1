//! A whole server in this process: built from a configuration, asked over TCP and HTTP, and ended.

mod model_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_agent::config::{Builtin, Config};
use host_agent::metrics::ModelState;
use host_agent::serve::{BuildError, Server, build};
use model_support::onnx::{D, FLOAT, Graph, INT64};
use model_support::put;
use splitrpc_client::{Client, ClientOptions, ConnectOptions, Connection, Error, Input, Request, Tensor, Transport};
use splitrpc_wire::path::{Memory, Mover, Port};
use splitrpc_wire::{DType, Stage, Status};

/// On ports that the kernel chooses.
fn config() -> Config {
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut config = Config::default();
    config.listen.tcp = any;
    config.listen.udp = None;
    config.listen.http = any;
    // Tests run beside each other, and need few clients.
    config.limits.sessions = 64;
    config
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_built_in_models_answer_and_are_counted() {
    let server = Server::start(build(config()).unwrap()).unwrap();
    let http = server.http().unwrap();
    let address = server.tcp().unwrap().to_string();
    let mut client = Client::connect(&address, ClientOptions::default()).unwrap();

    let bytes: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
    let dims = [bytes.len() as u32];
    let response = client.infer("echo", &[Input::new("INPUT", DType::Uint8, &dims, &bytes[..])]).unwrap();
    assert_eq!(response.data(), bytes);
    let path = response.path().unwrap();
    assert_eq!((path.port, path.mover, path.memory), (Port::Tcp, Mover::KernelToSlot, Memory::Host));
    assert_eq!((path.cpu_copies(), path.fixup_bytes, path.batch_rows), (1, 0, 1));

    let response = client.infer("null", &[Input::new("INPUT", DType::Uint8, &dims, &bytes[..])]).unwrap();
    let expected: Vec<u8> = (0..4_000u32).map(|i| ((i * 7 + 13) % 251) as u8).collect();
    assert_eq!(response.data(), expected);

    let image = vec![0; 2 * 64 * 4];
    let response = client.infer("digits", &[Input::new("IMAGE", DType::Fp32, &[2, 8, 8], &image[..])]).unwrap();
    assert_eq!(response.outputs().count(), 2);
    assert_eq!(response.path().unwrap().batch_rows, 2);
    assert!(response.path().unwrap().stage(Stage::Compute) > 0);

    assert!(get(http, "/health/ready").starts_with("HTTP/1.1 200"));
    assert!(server.stop());
    assert!(TcpStream::connect(http).is_err());
}

#[test]
fn a_model_that_reads_elsewhere_than_required_keeps_the_server_from_starting() {
    let mut config = config();
    config.models.builtins = vec![Builtin::Echo];
    config.require.memory = Some("cuda".into());
    let Err(BuildError::Config(problems)) = build(config) else { panic!("it is built") };
    let words = problems[0].to_string();
    assert!(words.contains("require.memory") && words.contains("model echo reads its inputs in \"host\""), "{words}");
}

/// A folder with a model that waits for batch mates for longer than the server waits for anything.
fn patient() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("digits/1")).unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/1/model.onnx");
    std::fs::copy(own, folder.path().join("digits/1/model.onnx")).unwrap();
    let patient = "max_batch_size: 16 dynamic_batching { max_queue_delay_microseconds: 3600000000 }";
    std::fs::write(folder.path().join("digits/config.pbtxt"), patient).unwrap();
    folder
}

#[test]
fn a_model_that_cannot_be_served_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let version = folder.path().join("broken/1");
    std::fs::create_dir_all(&version).unwrap();
    std::fs::write(version.join("model.onnx"), b"not a model").unwrap();
    // A name that a built-in model has.
    std::fs::create_dir_all(folder.path().join("digits/1")).unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/1/model.onnx");
    std::fs::copy(own, folder.path().join("digits/1/model.onnx")).unwrap();

    let mut config = config();
    config.models.repository = Some(folder.path().to_owned());
    let built = build(config).unwrap();
    let models = built.status.models();
    let states: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.state)).collect();
    let (ready, failed) = (ModelState::Ready, ModelState::Failed);
    let expected = [("null", ready), ("echo", ready), ("digits", ready), ("broken", failed), ("digits", failed)];
    assert_eq!(states, expected);
    let reasons: Vec<_> = models.iter().filter_map(|m| m.reason.as_deref()).collect();
    assert!(reasons[0].contains("broken/1/model.onnx"), "{}", reasons[0]);
    assert!(reasons[1].contains("models.builtins"), "{}", reasons[1]);
}

#[test]
fn a_model_that_fails_its_first_launch_is_told_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let graph = Graph::default().input("x", FLOAT, &[D::N(2)]).output("y", INT64, &[D::N(2)]);
    put(folder.path(), "liar", &graph.node("Relu", &["x"], &["y"], vec![]).file(), None);
    let mut config = config();
    config.models.repository = Some(folder.path().to_owned());
    let built = build(config).unwrap();
    let models = built.status.models();
    let reasons: Vec<_> = models.iter().filter_map(|m| m.reason.as_deref()).collect();
    assert_eq!(reasons.len(), 1);
    assert!(reasons[0].contains("liar/1/model.onnx: "), "{}", reasons[0]);
    assert!(reasons[0].contains("INT64"), "{}", reasons[0]);
}

#[test]
fn a_model_that_no_request_fits_is_not_served_and_the_others_are() {
    let folder = tempfile::tempdir().unwrap();
    let relu = |dims: &[D]| {
        let graph = Graph::default().input("x", FLOAT, dims).output("y", FLOAT, dims);
        graph.node("Relu", &["x"], &["y"], vec![]).file()
    };
    put(folder.path(), "beyond", &relu(&[D::N(3_500_000_000)]), None);
    put(folder.path(), "rows", &relu(&[D::S("N"), D::N(1_000_000_000)]), None);
    put(folder.path(), "large", &relu(&[D::N(1 << 20)]), None);
    let mut config = config();
    config.models.repository = Some(folder.path().to_owned());
    config.limits.max_request_bytes = 4 << 20;
    let built = build(config).unwrap();
    assert_eq!(built.models.len(), 3);
    let failed: Vec<_> = built.status.models().into_iter().filter(|m| m.state == ModelState::Failed).collect();
    assert_eq!(failed.len(), 3);
    for model in failed {
        let reason = model.reason.as_deref().unwrap();
        assert!(reason.contains("model.onnx: ") && reason.contains("limits.max_request_bytes"), "{reason}");
    }
}

#[test]
fn without_a_gpu_its_models_are_told_and_the_others_served() {
    let folder = tempfile::tempdir().unwrap();
    let tensor = |kind: &str| format!("{kind} {{ name: \"{kind}\" data_type: TYPE_FP32 dims: [ 4 ] }}\n");
    let kernel = "module = \"add.ptx\"\n[[kernel]]\nfunction = \"add\"\ngrid = [1]\nblock = [4]\n\
                  arguments = [{ input = \"input\" }, { output = \"output\" }]\n";
    let buffer = "[[buffer]]\nname = \"weights\"\nfile = \"weights.bin\"\nbytes = 9\n";
    for (name, code, more) in
        [("add", Some("code"), ""), ("empty", Some(""), ""), ("lies", Some("code"), buffer), ("no-code", None, "")]
    {
        let version = folder.path().join(name).join("1");
        std::fs::create_dir_all(&version).unwrap();
        std::fs::write(version.with_file_name("config.pbtxt"), tensor("input") + &tensor("output")).unwrap();
        std::fs::write(version.join("kernels.toml"), [kernel, more].concat()).unwrap();
        std::fs::write(version.join("weights.bin"), "12345678").unwrap();
        code.into_iter().for_each(|code| std::fs::write(version.join("add.ptx"), code).unwrap());
    }
    let mut config = config();
    // No machine has so many.
    config.gpu.device = 255;
    config.models.builtins = vec![Builtin::Echo, Builtin::NullGpu];
    config.models.repository = Some(folder.path().to_owned());
    let server = Server::start(build(config).unwrap()).unwrap();
    let models = server.built.status.models();
    let states: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.state)).collect();
    assert_eq!(states[0], ("echo", ModelState::Ready));
    let failed = [
        ("null-gpu", "no GPU"),
        ("add", "no GPU"),
        // What is wrong with the files is told first.
        ("empty", "add.ptx: is empty"),
        ("lies", "weights.bin: has 8 bytes, where kernels.toml says 9"),
        ("no-code", "add.ptx: cannot be read: "),
    ];
    assert_eq!(states[1..], failed.map(|(name, _)| (name, ModelState::Failed)));
    for (model, (_, why)) in models[1..].iter().zip(failed) {
        let reason = model.reason.as_deref().unwrap();
        assert!(reason.contains(why), "{reason}");
    }
    let mut client = Client::connect(&server.tcp().unwrap().to_string(), ClientOptions::default()).unwrap();
    let response = client.infer("echo", &[Input::new("INPUT", DType::Uint8, &[3], &b"abc"[..])]).unwrap();
    assert_eq!(response.data(), b"abc");
    assert!(server.stop());
}

#[test]
fn a_client_for_which_there_is_no_place_hears_why() {
    let mut config = config();
    config.limits.sessions = 1;
    let server = Server::start(build(config).unwrap()).unwrap();
    let address = server.tcp().unwrap().to_string();
    let first = Client::connect(&address, ClientOptions::default()).unwrap();
    for _ in 0..50 {
        let error = Client::connect(&address, ClientOptions::default()).map(drop).unwrap_err();
        let told = matches!(&error, Error::Refused(failure) if failure.status == Status::TooManySessions);
        assert!(told && error.to_string().contains("limits.sessions"), "{error}");
    }
    drop(first);
}

#[test]
fn a_datagram_client_for_which_there_is_no_place_is_counted() {
    let folder = patient();
    let mut config = config();
    (config.listen.tcp, config.listen.udp) = (None, Some(SocketAddr::from(([127, 0, 0, 1], 0))));
    (config.limits.datagram_sessions, config.limits.drain_ms) = (1, 0);
    config.models.builtins = vec![Builtin::Echo];
    config.models.repository = Some(folder.path().to_owned());
    let server = Server::start(build(config).unwrap()).unwrap();
    let status = Arc::clone(&server.built.status);
    assert!(status.metrics().contains("\nsplitrpc_sessions_refused_total 0\n"));
    let address = server.udp().unwrap().to_string();
    let connect = || Connection::connect(&address, Transport::Udp, &ConnectOptions::default());
    // A request that waits keeps its client's place.
    let mut client = connect().unwrap();
    let model = client.catalogue().model("digits").unwrap().handle;
    let image = [0; 64 * 4];
    let tensors = [Tensor::new(0, DType::Fp32, &[1, 8, 8], &image[..]).unwrap()];
    client.submit(&Request::new(model, &tensors)).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !status.metrics().contains("\nsplitrpc_requests_queued 1\n") {
        assert!(Instant::now() < until, "the request does not wait");
        assert!(client.poll().unwrap().is_none(), "answered too soon");
    }
    let refused = connect().unwrap_err();
    assert!(matches!(&refused, Error::Refused(f) if f.status == Status::TooManySessions), "{refused}");
    while status.metrics().contains("\nsplitrpc_sessions_refused_total 0\n") {
        assert!(Instant::now() < until, "it is never counted");
        std::thread::yield_now();
    }
}

#[test]
fn failures_are_counted_for_the_model_that_failed() {
    let server = Server::start(build(config()).unwrap()).unwrap();
    let address = server.tcp().unwrap().to_string();
    let mut client = Connection::connect(&address, Transport::Tcp, &ConnectOptions::default()).unwrap();
    // Rows of another size than the model's.
    let model = client.catalogue().model("digits").unwrap().handle;
    let image = [0; 7 * 4];
    let tensors = [Tensor::new(0, DType::Fp32, &[1, 7], &image[..]).unwrap()];
    for _ in 0..2 {
        client.submit(&Request::new(model, &tensors)).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(20);
    let counted = "\nsplitrpc_refusals_total{model=\"digits\",status=\"BadTensor\"} 2\n";
    while !server.built.status.metrics().contains(counted) {
        assert!(Instant::now() < until, "{}", server.built.status.metrics());
        let _ = client.poll().unwrap();
    }
    assert!(server.built.status.metrics().contains("\nsplitrpc_refusals_total{status=\"BadTensor\"} 0\n"));
}

#[test]
fn the_repository_replaces_built_in_models() {
    let mut config = config();
    config.models.builtins = vec![Builtin::Echo];
    config.models.repository = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("models"));
    let built = build(config).unwrap();
    let names: Vec<_> = built.models.iter().map(|m| m.factory.spec().name.clone()).collect();
    assert_eq!(names, ["echo", "digits"]);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_key() {
    let mut unmet = config();
    unmet.require.mover = Some("nic".into());
    let error = build(unmet).unwrap_err();
    assert!(matches!(&error, BuildError::Config(problems) if problems[0].key == "require.mover"), "{error}");

    let mut missing = config();
    missing.models.repository = Some("/nonexistent/models".into());
    let error = build(missing).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/models"), "{error}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config();
    config.listen.tcp = Some(taken.local_addr().unwrap());
    let error = Server::start(build(config).unwrap()).unwrap_err().to_string();
    assert!(error.contains("tcp") && error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
}
