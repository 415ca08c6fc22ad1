//! `--explain`: the path that a request took, and where its time went.

use std::fmt::Write;

use splitrpc_client::Response;
use splitrpc_client::wire::path::Link;
use splitrpc_client::wire::{Path, Stage};

const BAR: usize = 30;

/// A table of the response's path and stages, and of what the client's own clock adds.
pub(crate) fn table(response: &Response, transport: &str) -> String {
    let mut out = String::new();
    let total_ns = response.elapsed().as_nanos() as f64;
    // Writing to a string cannot fail.
    let mut line = |text: String| writeln!(out, "{text}").unwrap_or_default();
    let Some(path) = response.path() else {
        line(format!("client time  {:.1} us; the server told no path", total_ns / 1e3));
        return out;
    };
    let emulated = if path.emulated { "  (emulated: a software BlueField stood in for a card)" } else { "" };
    line(format!("path         client --{transport}--> {} port{emulated}", path.port.name()));
    line(format!(
        "             --{}--> {} memory --{} link--> runtime",
        path.mover.name(),
        path.memory.name(),
        path.link.name()
    ));
    line(format!("copies       {}", copies(path)));
    line(format!("batch        {} {}", path.batch_rows, if path.batch_rows == 1 { "row" } else { "rows" }));
    line(String::new());
    line(format!("{:<12} {:>12} {:>7}", "stage", "us", "share"));
    let server_ns: f64 = path.stages_ns.iter().map(|&ns| f64::from(ns)).sum();
    let mut row = |name: &str, ns: f64| {
        let share = if total_ns > 0.0 { (ns / total_ns).clamp(0.0, 1.0) } else { 0.0 };
        line(format!("{name:<12} {:>12.1} {:>6.1}%  {}", ns / 1e3, share * 100.0, bar(share)));
    };
    for stage in Stage::ALL {
        row(stage.name(), path.stage(stage).into());
    }
    row("network", (total_ns - server_ns).max(0.0));
    line(format!("{:<12} {:>12.1}   by the client's clock", "total", total_ns / 1e3));
    line("network is what the server's stages leave of the client's time: both hosts' stacks and the wire.".into());
    out
}

fn copies(path: &Path) -> String {
    // Beside a card it is the card's processor, and the host's copies nothing.
    let (whose, then) = match path.link {
        Link::Doca => ("the card's CPU into its slot there", ", from there by DMA"),
        _ => ("a CPU into the slot", ""),
    };
    let (copies, copied, payload) = (path.cpu_copies(), path.copied_bytes, path.payload_bytes);
    let mut text = format!("{copies} by {whose} ({copied} of {payload} payload bytes copied){then}");
    for (bytes, what) in [(path.fixup_bytes, "mended"), (path.runtime_copied_bytes, "copied by the runtime")] {
        if bytes > 0 {
            let _ = write!(text, ", {bytes} bytes {what}");
        }
    }
    if path.device_compactions > 0 {
        let _ = write!(text, ", {} inside the device", path.device_compactions);
    }
    text
}

fn bar(share: f64) -> String {
    // Eighths of a cell, so that short stages can still be told apart.
    let eighths = (share * (BAR * 8) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    // The blocks from one eighth to seven eighths stand one after the other in reverse order from U+2589.
    let last = Some(eighths % 8).filter(|&rest| rest > 0).and_then(|rest| char::from_u32(0x2590 - rest as u32));
    bar.extend(last);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_by_eighths() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.0).chars().count(), BAR);
        assert_eq!(bar(0.5 / 30.0), "▌");
        assert_eq!(bar(1.25 / 30.0), "█▎");
    }

    #[test]
    fn it_is_said_whose_cpu_copied() {
        let path = |link| Path { link, payload_bytes: 64, copied_bytes: 64, ..Path::default() };
        let beside_a_card = copies(&path(Link::Doca));
        assert!(beside_a_card.contains("the card's CPU") && beside_a_card.contains("by DMA"), "{beside_a_card}");
        let without = copies(&path(Link::InProcess));
        assert!(without.contains("by a CPU into the slot") && !without.contains("card"), "{without}");
    }
}
