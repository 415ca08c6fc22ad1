use splitrpc_wire::path::Port;

use super::*;

fn machine() -> Machine {
    Machine { cores: vec![0, 1], open_files: 100_000, udp_offload: true, memory: Some(4 << 30) }
}

/// Loads a configuration file with this content.
fn load(text: &str) -> Result<Config, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(&Overrides { config: Some(file), ..Overrides::default() })
}

fn problems(change: impl FnOnce(&mut Config)) -> Vec<String> {
    let mut config = Config::default();
    change(&mut config);
    config.check(&machine()).into_iter().map(|p| p.key).collect()
}

#[test]
fn the_defaults_are_served_as_they_are() {
    let config = Config::load(&Overrides::default()).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.check(&machine()), []);
    assert_eq!(config.listen.tcp, Some("127.0.0.1:7100".parse().unwrap()));
}

#[test]
fn the_default_number_of_sessions_fits_the_open_files() {
    let alone = [(0, 1), (65, 1), (1024, 960), (4096, 4032), (16_448, 16_384), (u64::MAX, 16_384)];
    let shared = [(2, 20_000, 9_968), (2, 32_832, 16_384), (3, 1024, 320)];
    for (threads, open_files, sessions) in alone.into_iter().map(|(files, n)| (1, files, n)).chain(shared) {
        assert_eq!(check::sessions_for(open_files, threads), sessions);
        if open_files > 64 {
            let mut config = Config::default();
            (config.data.threads, config.limits.sessions) = (threads, sessions);
            assert_eq!(config.check(&Machine { open_files, ..machine() }), []);
        }
    }
}

#[test]
fn that_nobody_could_connect_is_said_once() {
    assert_eq!(problems(|c| (c.listen.tcp, c.listen.udp) = (None, None)), ["listen.tcp"]);
    assert_eq!(problems(|c| c.limits.datagram_sessions = 0), ["limits.datagram_sessions"]);
    let udp_alone = |c: &mut Config| (c.listen.tcp, c.limits.datagram_sessions) = (None, 0);
    assert_eq!(problems(udp_alone), ["limits.datagram_sessions"]);
    let tcp_alone = |c: &mut Config| (c.listen.udp, c.limits.sessions) = (None, 0);
    assert_eq!(problems(tcp_alone), ["limits.sessions"]);
}

#[test]
fn what_a_card_has_no_room_for_is_said_before_it_is_asked() {
    let many = |c: &mut Config| c.limits.requests = 100_000;
    assert_eq!(problems(many), [""; 0]);
    let on_card = |c: &mut Config| {
        many(c);
        c.nic.kind = NicKind::Smartnic;
    };
    assert_eq!(problems(on_card), ["limits.requests"]);
}

/// Every key there is, as `section.key`: what is said of a wrong one names them all.
fn keys() -> Vec<String> {
    let known = |text: &str| {
        let said = load(text).unwrap_err().to_string();
        let (_, rest) = said.split_once("known are ").unwrap_or_else(|| panic!("{said}"));
        let (names, _) = rest.split_once(", from ").unwrap();
        names.split(", ").map(str::to_owned).collect::<Vec<_>>()
    };
    let sections = known("wrong = 1\n").into_iter();
    sections.flat_map(|s| known(&format!("[{s}]\nwrong = 1\n")).into_iter().map(move |k| format!("{s}.{k}"))).collect()
}

/// A configuration with every key set to something other than its default.
fn all_set() -> Config {
    let mut config = Config::default();
    config.listen.udp = None;
    config.nic = Nic {
        kind: NicKind::Smartnic,
        device: Some("0000:03:00.0".into()),
        libraries: Some("/opt/doca".into()),
        doorbell: None,
        gpu_memory: GpuMemory::DmaBuf,
    };
    config.data.cores = vec![1];
    config.limits.sessions = 7;
    config.gpu.torch = Some("/opt/torch/lib".into());
    config.models.repository = Some("/srv/models".into());
    config.require = Require {
        mover: Some("kernel-to-slot".into()),
        memory: Some("host".into()),
        link: Some("in-process".into()),
        ports: vec!["tcp".into()],
        emulated: Some(false),
        udp_offload: true,
    };
    config
}

#[test]
fn every_key_is_shown_and_can_be_read_again() {
    assert!(keys().len() > 30, "{:?}", keys());
    for config in [Config::default(), all_set()] {
        let text = config.to_toml();
        assert_eq!(load(&text).unwrap(), config, "{text}");
        let mut section = "";
        let mut shown = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(name) => section = name,
                None => {
                    let key = line.trim_start_matches("# ").split(' ').next().unwrap();
                    shown.push(format!("{section}.{key}"));
                }
            }
        }
        shown.sort();
        let mut all = keys();
        all.sort();
        assert_eq!(shown, all, "{text}");
    }
    assert!(Config::default().to_toml().contains("\n# repository is not set: "));
    assert!(!all_set().to_toml().contains('#'));
}

/// A default as the table of docs/operating.md writes it.
fn written(default: Option<&toml::Value>) -> String {
    match default {
        None => "none".into(),
        Some(toml::Value::String(text)) => text.clone(),
        Some(toml::Value::Array(list)) if list.is_empty() => "[]".into(),
        Some(toml::Value::Array(list)) => list.iter().map(|v| written(Some(v))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

#[test]
fn the_manual_has_every_key_with_its_default() {
    let mut usual = Config::default();
    usual.limits.sessions = USUAL_SESSIONS;
    let usual = toml::Table::try_from(&usual).unwrap();
    let manual = include_str!("../../../docs/operating.md");
    let rows = manual.lines().skip_while(|line| *line != "| key | default | meaning |").skip(2);
    let mut described = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let names: Vec<&str> = cells[1].split(", ").map(|name| name.trim_matches('`')).collect();
        let mut defaults: Vec<String> = names
            .iter()
            .map(|name| {
                let (section, key) = name.split_once('.').unwrap();
                written(usual.get(section).and_then(|section| section.get(key)))
            })
            .collect();
        defaults.dedup();
        assert_eq!(cells[2], defaults.join(", "), "{row}");
        described.extend(names.into_iter().map(str::to_owned));
    }
    described.sort();
    let mut all = keys();
    all.sort();
    assert_eq!(described, all);
}

#[test]
fn the_command_line_outranks_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "[listen]\ntcp = \"127.0.0.1:1\"\nhttp = \"off\"\n[data]\nwait = \"spin\"\n").unwrap();
    let overrides = Overrides {
        config: Some(file),
        tcp: Some("127.0.0.1:2".into()),
        udp: Some("off".into()),
        ..Overrides::default()
    };
    let config = Config::load(&overrides).unwrap();
    assert_eq!(config.listen, Listen { tcp: Some("127.0.0.1:2".parse().unwrap()), udp: None, http: None });
    assert_eq!(config.data.wait, Wait::Spin);
}

#[test]
fn an_unknown_key_is_named_with_its_file() {
    let error = load("[limits]\nsesions = 3\n").unwrap_err().to_string();
    assert!(error.contains("sesions") && error.contains("agent.toml"), "{error}");
    let error = load("[limit]\nsessions = 3\n").unwrap_err().to_string();
    assert!(error.contains("`limit`") || error.contains("limit"), "{error}");
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_key() {
    let error = load("[limits]\nsessions = \"many\"\n").unwrap_err().to_string();
    assert!(error.contains("limits.sessions") && error.contains("agent.toml"), "{error}");
    let error = load("[listen]\ntcp = \"nowhere\"\n").unwrap_err().to_string();
    assert!(error.contains("listen.tcp") && error.contains("nowhere"), "{error}");
    let overrides = Overrides { tcp: Some("nowhere".into()), ..Overrides::default() };
    let error = Config::load(&overrides).unwrap_err().to_string();
    assert!(error.contains("--tcp"), "{error}");
}

#[test]
fn what_is_wrong_is_said_in_the_users_words() {
    for (text, said) in [
        ("[data]\nwait = \"foo\"\n", "key `data.wait`: \"foo\" is none of spin, adaptive, block, from"),
        ("[data]\nthreads = 65536\n", "key `data.threads`: 65536 is not a whole number from 0 to 65535, from"),
        ("[limits]\nrequests = -1\n", "key `limits.requests`: -1 is not a whole number from 0 to 4294967295, from"),
        ("[limits]\nrequests = \"x\"\n", "key `limits.requests`: \"x\" is not a whole number"),
        ("[data]\ncores = 1\n", "key `data.cores`: 1 is not a list, such as [0, 1], from"),
        ("[require]\nudp_offload = 2\n", "key `require.udp_offload`: 2 is not true or false, from"),
        ("data = 1\n", "key `data`: 1 is not a section, from"),
        ("[limits]\nfoo = 1\n", "unknown key `foo` in `limits`; known are"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.starts_with(said) && error.contains("agent.toml"), "{error}");
    }
}

#[test]
fn a_value_out_of_bounds_is_told_with_them() {
    let said = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        let found: Vec<_> = config.check(&machine()).iter().map(ToString::to_string).collect();
        found.join("\n")
    };
    let requests = "limits.requests: is 4294967295, and must be 1 to 1,048,576";
    assert_eq!(said(|c| c.limits.requests = u32::MAX), requests);
    let threads = "data.threads: is 65535, and must be 1 to 8, four for each of 2 cores";
    assert_eq!(said(|c| c.data.threads = u16::MAX), threads);
    let datagram = "data.max_datagram: is 100, and must be 1,232 to 65,000 bytes";
    assert_eq!(said(|c| c.data.max_datagram = 100), datagram);
    let outputs = "limits.external_outputs: is 4294967295, and must be 0 to 1,048,576";
    assert_eq!(said(|c| c.limits.external_outputs = u32::MAX), outputs);
}

#[test]
fn a_missing_file_is_an_error() {
    let overrides = Overrides { config: Some("/nonexistent/agent.toml".into()), ..Overrides::default() };
    assert!(Config::load(&overrides).unwrap_err().to_string().contains("/nonexistent/agent.toml"));
}

#[test]
fn what_the_machine_lacks_is_named_by_key() {
    assert_eq!(problems(|c| c.data.cores = vec![7]), ["data.cores"]);
    assert_eq!(problems(|c| c.data.cores = vec![0, 1]), ["data.cores"]);
    assert_eq!(problems(|c| (c.data.threads, c.data.cores) = (2, vec![1, 1])), ["data.cores"]);
    assert_eq!(problems(|c| c.data.threads = 0), ["data.threads"]);
    assert_eq!(problems(|c| c.limits.sessions = 200_000), ["limits.sessions"]);
    assert_eq!(problems(|c| c.data.max_datagram = 100), ["data.max_datagram"]);
    assert_eq!(problems(|c| c.limits.datagrams_in_flight = 1000), ["limits.datagrams_in_flight"]);
    assert_eq!(problems(|c| c.models.builtins.clear()), ["models.builtins"]);
    assert_eq!(problems(|c| c.listen.http = c.listen.tcp), ["listen.http"]);
    assert_eq!(problems(|c| c.models.builtins = vec![Builtin::Null; 2]), ["models.builtins"]);
}

#[test]
fn too_many_sessions_for_the_open_files_are_told_how_many_fit() {
    let mut config = Config::default();
    (config.data.threads, config.limits.sessions) = (2, 60_000);
    let found = config.check(&machine());
    let [Problem { key, why }] = &found[..] else { panic!("{found:?}") };
    assert_eq!(key, "limits.sessions");
    for part in ["60000", "2 data threads", "120064 open files", "100000", "at most 49968", "ulimit -Hn 120064"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
    config.limits.sessions = 49_968;
    assert_eq!(config.check(&machine()), []);
}

#[test]
fn tables_that_the_memory_does_not_hold_are_refused_by_what_makes_them_large() {
    let mut config = Config::default();
    (config.limits.datagrams_in_flight, config.limits.datagram_sessions, config.data.threads) = (1 << 20, 1024, 2);
    let found = config.check(&machine());
    let [Problem { key, why }] = &found[..] else { panic!("{found:?}") };
    assert_eq!(key, "limits.datagrams_in_flight");
    for part in ["is 1048576", "data threads (2)", "4096 MiB are free", "or limits.datagram_sessions"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
    assert_eq!(config.check(&Machine { memory: None, ..machine() }), []);
    config.listen.udp = None;
    assert_eq!(config.check(&machine()), []);
    assert_eq!(problems(|c| c.limits.requests = 1 << 20), ["limits.requests"]);
    // What the default takes fits many times over.
    let small = Machine { memory: Some(64 << 20), ..machine() };
    assert_eq!(Config::default().check(&small), []);
}

#[test]
fn requirements_that_are_not_met_refuse_to_start() {
    assert_eq!(problems(|c| c.require.mover = Some("kernel-to-slot".into())), [""; 0]);
    assert_eq!(problems(|c| c.require.mover = Some("nic".into())), ["require.mover", "require.mover"]);
    assert_eq!(problems(|c| c.require.memory = Some("pinned".into())), ["require.memory"]);
    // Whether models do is known once they are loaded.
    assert_eq!(problems(|c| c.require.memory = Some("cuda".into())), [""; 0]);
    assert_eq!(problems(|c| c.require.ports = vec!["verbs".into(), Port::Tcp.name().into()]), ["require.ports"]);
    assert_eq!(problems(|c| (c.listen.udp, c.require.ports) = (None, vec!["udp".into()])), ["require.ports"]);
    assert_eq!(problems(|c| c.require.emulated = Some(false)), [""; 0]);
    let config = Config { require: Require { udp_offload: true, ..Require::default() }, ..Config::default() };
    let keys: Vec<_> = config.check(&Machine { udp_offload: false, ..machine() }).into_iter().map(|p| p.key).collect();
    assert_eq!(keys, ["require.udp_offload"]);
}
