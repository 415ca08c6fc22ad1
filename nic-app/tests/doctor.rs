//! What `nic-app doctor` says, of the software BlueField and of nothing.

use std::path::PathBuf;
use std::process::{Command, Output};

/// Runs it; `side` is which end of the software BlueField it is at, if any.
fn doctor(bus: &std::path::Path, side: Option<&str>, args: &[&str]) -> (String, Option<i32>) {
    let library: PathBuf = std::env::current_exe().unwrap().with_file_name("libdoca_emu.so");
    let mut command = nic_app();
    command.args(["doctor", "--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0"]).args(args);
    if let Some(side) = side {
        assert!(library.is_file(), "{} is not there", library.display());
        command.arg("--doca").arg(library).env("SPLITRPC_BLUEFIELD", bus).env("SPLITRPC_BLUEFIELD_SIDE", side);
    }
    let Output { status, stdout, .. } = command.output().unwrap();
    (String::from_utf8(stdout).unwrap(), status.code())
}

/// The program, by whatever runs the tests themselves where this machine cannot.
fn nic_app() -> Command {
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").ok();
    let runner = runner.filter(|_| cfg!(target_arch = "aarch64")).unwrap_or_default();
    let mut words = runner.split_whitespace().chain([env!("CARGO_BIN_EXE_nic-app")]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// Whether a line says so of that.
fn says(report: &str, verdict: &str, name: &str, what: &str) -> bool {
    let begin = |line: &&str| {
        line.starts_with(verdict) && line.get(6..).is_some_and(|rest| rest.starts_with(&format!("{name} ")))
    };
    report.lines().filter(begin).any(|line| line.contains(what))
}

#[test]
fn a_card_is_described() {
    let bus = tempfile::tempdir().unwrap();
    let (report, status) = doctor(bus.path(), Some("arm"), &[]);
    for (name, what) in [
        ("version", "protocol 3"),
        ("doca", "emulated"),
        ("mode", "DPU mode"),
        ("representor", ", of "),
        ("copies", "bytes into what the host shows"),
        ("messages", "of immediate data"),
        ("queues", "messages received"),
        ("libraries", "libdoca_emu.so"),
        ("copy", "bytes arrived"),
        ("large copies", "1048576"),
        ("gpu memory", "host-agent doctor"),
        ("message time", "host-agent doctor"),
        ("http address", "off"),
    ] {
        assert!(says(&report, "ok", name, what), "{name}: {what} in {report}");
    }
    assert!(
        report.ends_with("this card can serve; it is emulated, so nothing here says what a real one does\n"),
        "{report}"
    );
    assert_eq!(status, Some(0));
}

#[test]
fn on_the_host_the_mode_is_wrong() {
    let bus = tempfile::tempdir().unwrap();
    let (report, status) = doctor(bus.path(), Some("host"), &[]);
    assert!(says(&report, "FAIL", "mode", "NIC mode"), "{report}");
    assert!(
        report.contains("INTERNAL_CPU_OFFLOAD_ENGINE=0") && report.ends_with("this card cannot serve\n"),
        "{report}"
    );
    assert_eq!(status, Some(1));
}

#[test]
fn with_nothing_there_it_says_what_to_install() {
    let bus = tempfile::tempdir().unwrap();
    let (report, status) = doctor(bus.path(), None, &["--doca", "/nonexistent"]);
    assert!(says(&report, "FAIL", "doca", "/nonexistent"), "{report}");
    assert!(report.contains("doca-sdk-comch"), "{report}");
    assert_eq!(status, Some(1));
}

#[test]
fn a_representor_that_is_not_there_is_named() {
    let bus = tempfile::tempdir().unwrap();
    let (report, status) = doctor(bus.path(), Some("arm"), &["--representor", "0000:ee:00.0"]);
    assert!(says(&report, "FAIL", "device", "NOT_FOUND") && report.contains("--representor"), "{report}");
    assert_eq!(status, Some(1));
}
