//! What the agent's `doctor` says of a card.

use splitrpc_client::Transport;

use crate::rig::{Bus, ask, null_answer};

/// The lines of the report that are about this, with their advice.
fn about<'a>(report: &'a str, name: &str) -> Vec<&'a str> {
    let lines =
        report.lines().skip_while(|line| line.get(6..).is_none_or(|rest| !rest.starts_with(&format!("{name}  "))));
    lines.take(2).collect()
}

fn starts(report: &str, name: &str, verdict: &str) -> bool {
    about(report, name).first().is_some_and(|line| line.starts_with(verdict))
}

#[test]
fn a_card_is_visited_and_left_as_it_was() {
    let bus = Bus::new();
    let (report, content) = bus.doctor();
    assert!(starts(&report, "card", "warn") && report.contains("nobody answers"), "{report}");
    assert!(content, "{report}");

    let card = bus.card("");
    let (report, content) = bus.doctor();
    assert!(starts(&report, "doca", "ok") && report.contains("the software BlueField, emulated"), "{report}");
    for name in ["card's device", "card's messages", "memory for the card", "message time", "doorbell"] {
        assert!(starts(&report, name, "ok"), "{name} in {report}");
    }
    // The card's process here says that it is of version "test".
    let said = about(&report, "card")[0];
    assert!(
        said.starts_with("warn") && said.contains("nic-app test waits for an agent") && said.contains("protocol 3"),
        "{report}"
    );
    assert!(content, "{report}");

    // It waits as before, and serves whoever comes.
    let _agent = bus.agent("");
    card.says("serving");
    let mut client = bus.client(Transport::Tcp);
    assert_eq!(ask(&mut client, "null", &[1; 64]).unwrap().data(), null_answer());
    for _ in 0..3 {
        let (report, content) = bus.doctor();
        assert!(starts(&report, "card", "runs") && report.contains("serves a host agent already"), "{report}");
        assert!(content, "{report}");
        assert_eq!(ask(&mut client, "null", &[1; 64]).unwrap().data(), null_answer());
    }
    assert_eq!(bus.card_counter("splitrpc_card_host_agents_served_total"), 1);
    assert_eq!(bus.card_counter("splitrpc_card_host_agents_refused_total"), 0);
}
