//! Small comparisons from end to end: every kind of run carries its fields, and servers that somebody else started are
//! used as well as own ones.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const ARMS: [&str; 9] = [
    "floor-tcp",
    "floor-tcp-again",
    "floor-udp",
    "floor-udp-again",
    "bundled-tcp",
    "commodity-tcp",
    "commodity-udp",
    "smartnic-tcp",
    "smartnic-udp",
];
/// No comparison here takes as long; one that hangs is ended.
const PATIENCE: Duration = Duration::from_secs(120);

fn benches() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_benches"));
    command.stdin(Stdio::null()).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a comparison, which must succeed, and gives its JSON and its page.
fn compare(name: &str, options: &[&str]) -> (Value, String) {
    let file = |ending: &str| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("compare-{name}.{ending}"));
    let (json, html) = (file("json"), file("html"));
    let mut command = benches();
    command.arg("compare").arg("--json").arg(&json).arg("--html").arg(&html).args(options).stdout(Stdio::null());
    let mut child = Running(command.spawn().unwrap());
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > until => panic!("the comparison does not end"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(status.success(), "{status}");
    (serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap(), std::fs::read_to_string(html).unwrap())
}

/// The runs, all of which have what readers rely on.
fn checked(report: &Value) -> &[Value] {
    assert!(report["machine"]["cpu"].is_string() && report["machine"]["cores"].is_u64());
    let runs = report["runs"].as_array().unwrap();
    for run in runs {
        let at = format!("{} in {}", run["arm"], run["point"]);
        let is = |name: &str, kind: fn(&Value) -> bool| assert!(kind(&run[name]), "{at}: {name} is {}", run[name]);
        let number =
            |value: &Value, name: &str| assert!(value[name].as_f64().is_some_and(|v| v >= 0.0), "{at}: {name}");
        for name in ["request_bytes", "response_bytes", "concurrency", "requests", "errors"] {
            is(name, Value::is_u64);
        }
        for name in ["model", "wait", "crossed", "point", "section"] {
            is(name, Value::is_string);
        }
        is("emulated", Value::is_boolean);
        is("throughput_rps", Value::is_f64);
        for name in ["p50", "p90", "p99", "p999", "mean", "max", "p10_of_medians"] {
            number(&run["latency_us"], name);
        }
        number(&run["cpu_us_per_request"], "client");
        let cpu = run["cpu_us_per_request"].as_object().unwrap();
        assert!(cpu.contains_key("nic") && cpu.contains_key("server"), "{at}");
        let card = run["arm"].as_str().unwrap().starts_with("smartnic-");
        // The processor of a card is seen where its server is, and there is no card here that is no software.
        assert_eq!(cpu["nic"].is_f64(), card && cpu["server"].is_f64(), "{at}: {cpu:?}");
        assert_eq!(run["emulated"], card, "{at}");
        let open = ["light load", "host cpu", "open loop", "fan-in"].iter().any(|&section| run["section"] == section);
        assert_eq!(run["offered_rps"].is_f64(), open, "{at}");
        let tells = !run["arm"].as_str().unwrap().starts_with("floor-");
        for name in ["stages_us", "path"] {
            assert!(run.as_object().unwrap().contains_key(name), "{at}: {name}");
            assert_eq!(run[name].is_object(), tells, "{at}: {name}");
        }
        assert_eq!(run["crossed"], "loopback", "{at}");
        assert!(run["requests"].as_u64() > Some(0), "{at}");
        if run["drop"] == 0.0 {
            assert_eq!(run["errors"], 0, "{at}: {}", run["error_kinds"]);
        }
    }
    runs
}

fn distinct<'a>(runs: &'a [Value], name: &str) -> BTreeSet<&'a str> {
    runs.iter().map(|run| run[name].as_str().unwrap()).collect()
}

/// Starts a server of every arm on a port of its own, and gives the first.
fn servers() -> (Vec<Running>, u16) {
    // Below the ports that the kernel hands out by itself.
    for base in (20_000 + std::process::id() as u16 % 1_000 * 10..32_000).step_by(ARMS.len()) {
        let ports = base..base + ARMS.len() as u16;
        let free =
            |port| TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok();
        // Beside each it tells its CPU time.
        if !ports.clone().chain(base + 100..base + 100 + ARMS.len() as u16).all(free) {
            continue;
        }
        let started: Option<Vec<Running>> = ARMS.iter().zip(ports).map(|(arm, port)| serve(arm, port)).collect();
        if let Some(started) = started {
            return (started, base);
        }
        // Somebody else took one of the ports meanwhile.
    }
    panic!("no {} free ports beside each other", ARMS.len());
}

fn serve(arm: &str, port: u16) -> Option<Running> {
    let mut command = benches();
    command.args(["serve-arm", arm, "--wait", "adaptive", "--bind", &format!("127.0.0.1:{port}")]);
    command.args(["--parent", &std::process::id().to_string()]);
    let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take()?).read_line(&mut line).ok()?;
    line.starts_with("ready ").then_some(server)
}

#[test]
fn servers_started_by_others_are_compared_as_own_ones_are() {
    let (servers, base) = servers();
    let server = format!("127.0.0.1:{base}");
    let options = ["--quick", "--server", &server, "--loads", "one-at-a-time/64/adaptive", "--limit", "8"];
    let (report, page) = compare("elsewhere", &options);
    let runs = checked(&report);
    assert_eq!(distinct(runs, "arm"), BTreeSet::from(ARMS));
    assert_eq!(runs.len(), ARMS.len());
    for run in runs {
        let (cpu, on_card) = (&run["cpu_us_per_request"], run["arm"].as_str().unwrap().starts_with("smartnic"));
        assert!(cpu["server"].as_f64().is_some_and(|us| us > 0.0) && run["wait"] == "adaptive", "{run}");
        assert_eq!(cpu["nic"].as_f64().is_some_and(|us| us > 0.0), on_card, "{run}");
        assert_eq!(run["emulated"], on_card, "{run}");
    }
    let idle = report["idle"].as_array().unwrap();
    assert!(idle.iter().any(|idle| idle["emulated"] == true && idle["nic_core_share"].is_f64()), "{idle:?}");
    assert!(report["crowd"].is_null());
    // They are on this machine, but not known to be no others.
    assert!(runs.iter().all(|run| run["others_cpu_share"].is_null()) && !page.contains("Disturbed"));
    // No figure of the project is read off this load, but for those of servers that are left idle, and that is said.
    let figures = report["figures"].as_array().unwrap();
    assert!(!figures.is_empty() && figures.iter().all(|f| f["what"].as_str().unwrap().contains("idle")), "{figures:?}");
    assert!(report["scope"]["unjudged"].as_array().is_some_and(|unjudged| unjudged.len() > 10));
    assert!(
        page.contains(" verdicts are not given: ")
            && page.contains("--server-wait spin")
            && page.contains("A part of the short")
    );
    assert!(page.contains("commodity-udp"));
    drop(servers);

    let mut gone = benches();
    gone.args(["compare", "--quick", "--server", &server, "--arms", "floor-tcp,commodity-tcp"]);
    let gone = gone.output().unwrap();
    let said = String::from_utf8(gone.stderr).unwrap();
    assert!(!gone.status.success() && said.contains("serve-arm commodity-tcp --wait adaptive"), "{said}");
}

#[test]
fn light_load_and_losses_have_their_fields_and_their_figures() {
    let arms = "floor-tcp,commodity-tcp,commodity-udp";
    let options = ["--quick", "--arms", arms, "--loads", "light-load/64/,loss", "--limit", "20"];
    let (report, _) = compare("light", &options);
    let runs = checked(&report);
    assert_eq!(distinct(runs, "section"), BTreeSet::from(["light load", "loss"]));
    let server_cpu = |run: &Value| run["cpu_us_per_request"]["server"].is_f64();
    assert!(runs.iter().all(server_cpu));
    let figures = report["figures"].as_array().unwrap();
    let names: Vec<&str> = figures.iter().map(|figure| figure["what"].as_str().unwrap()).collect();
    // The one load, the server that it leaves idle, and two of losses.
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(figures.iter().all(|figure| figure["value"].is_f64()), "{figures:?}");
}

#[test]
fn a_smartnic_is_set_beside_a_commodity_card_and_called_emulated() {
    let arms = "commodity-tcp,commodity-udp,smartnic-tcp,smartnic-udp";
    let loads = "host-cpu,one-at-a-time/602112/adaptive,concurrent/602112/c4";
    let (report, page) = compare("smartnic", &["--quick", "--arms", arms, "--loads", loads, "--limit", "30"]);
    let runs = checked(&report);
    assert_eq!(distinct(runs, "arm").len(), 4);
    assert_eq!(runs.len(), 12);
    for run in runs.iter().filter(|run| run["emulated"] == true) {
        assert_eq!((&run["path"]["link"], &run["path"]["mover"]), (&"doca".into(), &"doca-dma".into()), "{run}");
    }
    let idle = report["idle"].as_array().unwrap();
    for card in idle.iter().filter(|idle| idle["arm"].as_str().unwrap().starts_with("smartnic-")) {
        assert!(card["emulated"] == true && card["nic_core_share"].is_f64(), "{card}");
    }
    assert_eq!(idle.len(), 4);
    let figures = report["figures"].as_array().unwrap();
    let smartnic = |figure: &&Value| figure["what"].as_str().unwrap().starts_with("smartnic-tcp");
    let smartnic: Vec<&Value> = figures.iter().filter(smartnic).collect();
    // Latency, the host's CPU time, and what is used when idle.
    assert_eq!(smartnic.len(), 3);
    assert!(smartnic.iter().all(|figure| figure["value"].is_f64()), "{smartnic:?}");
    assert!(page.contains("SmartNIC against commodity card") && page.contains("smartnic-udp (emulated)"));
}

#[test]
fn concurrent_and_open_loops_have_their_fields() {
    let loads = "concurrent/64/c4/adaptive,open-loop/64/c16/poisson-30,fan-in/4096/c64";
    let (report, page) = compare("open", &["--loads", loads, "--limit", "20"]);
    let runs = checked(&report);
    assert_eq!(distinct(runs, "section"), BTreeSet::from(["concurrent", "open loop", "fan-in"]));
    // Closed loops that nobody had to ask for told the rates.
    for run in runs.iter().filter(|run| run["section"] != "concurrent") {
        for name in ["offered_rps", "saturation_rps"] {
            assert!(run[name].as_f64().is_some_and(|rps| rps > 0.0), "{run}");
        }
    }
    assert_eq!(report["scope"]["loads"], 3);
    assert_eq!(distinct(runs, "arm"), BTreeSet::from(ARMS));
    assert!(page.contains("<svg") && !page.contains("src=\"http") && !page.contains("href=\"http"));
}
