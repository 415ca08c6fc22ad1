//! The `host-agent` command: what it says where it cannot serve.

mod model_support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use model_support::onnx::{D, FLOAT, Graph};
use model_support::put;

fn host_agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_host-agent")).args(args).output().unwrap()
}

/// What a command that fails says of it.
fn fault(args: &[&str]) -> String {
    let output = host_agent(args);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_reason_for_not_serving_is_given_once() {
    let said = fault(&["serve", "--model-repository", "/nonexistent"]);
    assert_eq!(said.matches("/nonexistent").count(), 1, "{said}");
    assert_eq!(said.matches("cannot be read").count(), 1, "{said}");
    let said = fault(&["serve", "--tcp", "off", "--udp", "off"]);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("listen.tcp"), "{said}");
}

#[test]
fn a_model_that_is_left_out_says_why() {
    let off = ["--tcp", "127.0.0.1:0", "--udp", "off", "--http", "off"];
    let left_out = ["null", "echo"].map(|model| ["--left-out".to_owned(), format!("{model}=was tried: in vain")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_host-agent"));
    let mut agent =
        command.arg("serve").args(off).args(left_out.as_flattened()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<_> = lines.take_while(|line| line != "ready").collect();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let has = |line: &str| said.iter().any(|said| said.starts_with(line));
    assert!(has("  model  null: not served: was tried: in vain"), "{said:?}");
    assert!(has("  model  echo: not served: was tried: in vain"), "{said:?}");
    assert!(has("  model  digits version 1: ready"), "{said:?}");
    let all = ["null=x", "echo=y", "digits=z"].map(|model| ["--left-out", model]);
    assert!(fault(&[&["serve"][..], &off, all.as_flattened()].concat()).contains("no model can be served"));
}

#[test]
fn check_config_tells_of_a_repository_that_is_not_there() {
    for folder in ["/nonexistent", "/dev/null"] {
        let said = fault(&["check-config", "--model-repository", folder]);
        assert!(said.starts_with(&format!("models.repository: {folder} cannot be read: ")), "{said}");
    }
}

#[test]
fn what_the_environment_sets_for_others_is_left_alone() {
    let others =
        [("SPLITRPC_SERVICE_HOST", "10.0.0.1"), ("SPLITRPC_PORT", "tcp://10.0.0.1:7100"), ("SPLITRPC_LOG", "warn")];
    let output = Command::new(env!("CARGO_BIN_EXE_host-agent")).arg("check-config").envs(others).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_reader_that_has_gone_is_no_fault() {
    let program = env!("CARGO_BIN_EXE_host-agent");
    let command = format!("{program} check-config >/dev/full");
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn what_the_environment_sets_wrongly_is_named_by_its_variable() {
    for (variable, value) in
        [("SPLITRPC_MODELS_BUILTINS", "[foo]"), ("SPLITRPC_LIMITS_REQUESTS", "x"), ("SPLITRPC_LIMITS_FOO", "1")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_host-agent")).arg("check-config").env(variable, value).output();
        let said = String::from_utf8(output.unwrap().stderr).unwrap();
        assert!(said.ends_with(&format!(", from {variable}\n")), "{said}");
    }
}

#[test]
fn a_panic_over_a_model_file_is_its_error_and_nothing_else() {
    let repository = tempfile::tempdir().unwrap();
    // An output that no node makes makes tract panic.
    let graph = Graph::default().input("x", FLOAT, &[D::N(2)]).node("Relu", &["x"], &["y"], vec![]);
    put(repository.path(), "strange", &graph.output("z", FLOAT, &[D::N(2)]).file(), None);
    let folder = repository.path().to_str().unwrap();
    let off = ["--tcp", "off", "--http", "off", "--udp", "127.0.0.1:0"];
    let output = host_agent(&[&["doctor", "--model-repository", folder], &off[..]].concat());
    let (said, complained) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(said.contains("strange") && said.contains("is not understood"), "{said}");
    assert!(!complained.contains("panicked"), "{complained}");
}

#[test]
fn without_doca_the_doctor_says_what_to_install() {
    let nowhere = ["--nic", "smartnic", "--http", "off"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_host-agent"));
    let output = command.arg("doctor").args(nowhere).env("SPLITRPC_NIC_LIBRARIES", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.lines().any(|line| line.starts_with("FAIL  doca ") && line.contains("/nonexistent")), "{said}");
    assert!(said.contains("doca-sdk-comch") && said.contains("The server could not start"), "{said}");
}

/// Runs `host-agent check-config` with two data threads, where the process may have 1,024 files open.
fn two_threads(file: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, file).unwrap();
    let program = env!("CARGO_BIN_EXE_host-agent");
    let command = format!("ulimit -n 1024 && exec {program} check-config --config {}", path.display());
    Command::new("sh").args(["-c", &command]).env("SPLITRPC_DATA_THREADS", "2").output().unwrap()
}

#[test]
fn data_threads_share_the_open_files_by_default() {
    let output = two_threads("");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("\nsessions = 480\n"));
    let output = two_threads("[limits]\nsessions = 16384\n");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("limits.sessions: 16384 for each of 2 data threads"), "{said}");
}
