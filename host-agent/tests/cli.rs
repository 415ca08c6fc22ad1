//! The `host-agent` command: what it says where it cannot serve.

use std::process::{Command, Output};

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
