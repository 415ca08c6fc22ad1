//! The table on the terminal.

use std::io::{self, Write};

use super::{Ratios, micros, void_reasons};
use crate::record::{Report, Run};

/// What the columns are, where their heads do not say it.
const LEGEND: &str = "\
figure us: of one request at a time the 10th percentile of the connections' medians, else the median
x floor: how many times the floor's latency, and how many times its requests a second; of several connections, and wherever the
         machine changed its pace, the median over the rounds
cpu us c, s, n: CPU time of client, server and its card for each request; s/GB: CPU seconds of all for each gigabyte of payload";

/// Prints figures and runs.
pub(crate) fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let machine = &report.machine;
    writeln!(
        out,
        "{}, {} cores, {:.0} GiB, {}; over {}; {:.0} s\n{}.",
        machine.cpu,
        machine.cores,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        machine.kernel,
        report.crossed.name(),
        report.elapsed_s,
        report.scope.plan()
    )?;
    if let Some(disturbance) = report.disturbance() {
        writeln!(out, "{disturbance}")?;
    }
    let groups = || report.runs.chunk_by(|one, next| one.point == next.point);
    let void = groups().filter(|group| group.iter().any(|run| run.void)).count();
    if void > 0 {
        writeln!(out, "Void, on TCP or UDP or both, since the floors disagree: {void} of {} loads.", groups().count())?;
    }
    let width = report.runs.iter().map(|run| run.point.len()).max().unwrap_or_default();
    writeln!(out, "\n{LEGEND}")?;
    writeln!(
        out,
        "\n{:<width$} {:<24} {:>9} {:>7} {:>9} {:>9} {:>9} {:>10} {:>7} {:>8} {:>8} {:>8} {:>8} {:>6}",
        "load",
        "arm",
        "figure us",
        "x floor",
        "p50",
        "p99",
        "p99.9",
        "req/s",
        "x floor",
        "cpu us c",
        "cpu us s",
        "cpu us n",
        "s/GB",
        "errors"
    )?;
    for group in groups() {
        for (at, run) in group.iter().enumerate() {
            let load = if at == 0 { &*run.point } else { "" };
            row(run, &format!("{load:<width$}"), &report.runs, out)?;
        }
        for reason in void_reasons(group) {
            writeln!(out, "{:<width$} void: {reason}", "")?;
        }
    }
    for idle in super::split::idles(report) {
        writeln!(out, "idle {idle}")?;
    }
    if let Some(crowd) = &report.crowd {
        writeln!(out, "{crowd}")?;
    }
    if !report.scope.not_run.is_empty() {
        writeln!(out, "No time was left for {}.", report.scope.not_run.join(", "))?;
    }
    for failed in &report.scope.failed {
        writeln!(out, "Could not be run here: {failed}")?;
    }
    super::workloads::table(report, out)?;
    super::split::table(report, out)?;
    writeln!(out)?;
    if let Some(why) = report.scope.why_unjudged(report.figures.len()) {
        writeln!(out, "{why}")?;
    }
    if report.figures.is_empty() {
        return Ok(());
    }
    writeln!(out, "{:<12} {:>8} {:>9}  figure", "verdict", "value", "target")?;
    for figure in &report.figures {
        let value = figure.value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let sense = match figure.sense {
            crate::record::Sense::AtMost => "<=",
            crate::record::Sense::AtLeast => ">=",
        };
        writeln!(
            out,
            "{:<12} {value:>8} {sense} {:>6}  {} ({})",
            figure.verdict(),
            figure.target,
            figure.what,
            figure.detail
        )?;
        if let Some(reason) = &figure.void {
            writeln!(out, "{:<12} {:>8}    {:>6}  {reason}", "", "", "")?;
        }
    }
    Ok(())
}

fn row(run: &Run, load: &str, runs: &[Run], out: &mut dyn Write) -> io::Result<()> {
    let (latency, ratios) = (&run.latency_us, Ratios::of(run, runs));
    let optional =
        |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let mut note = String::new();
    if let Some(offer) = run.offer() {
        note += &format!("  {offer}");
    }
    if run.drop > 0.0 {
        note += &format!("  {:.0} % lost", run.drop * 100.0);
    }
    if run.void {
        note += "  VOID";
    }
    if let Some((kind, count)) = run.error_kinds.iter().max_by_key(|(_, count)| **count) {
        note += &format!("  ({count}x {kind})");
    }
    writeln!(
        out,
        "{load} {:<24} {:>9} {:>7} {:>9} {:>9} {:>9} {:>10.0} {:>7} {:>8.1} {:>8} {:>8} {:>8} {:>6}{note}",
        run.name(),
        if run.saturated { "-".to_owned() } else { micros(run.figure_us()) },
        optional(ratios.latency, 2),
        micros(latency.p50),
        micros(latency.p99),
        micros(latency.p999),
        run.throughput_rps,
        optional(ratios.throughput, 2),
        run.cpu_us_per_request.client,
        optional(run.cpu_us_per_request.server, 1),
        optional(run.cpu_us_per_request.nic, 1),
        optional(run.cpu_s_per_gb, 2),
        run.errors,
    )
}
