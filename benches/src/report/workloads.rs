//! Models that compute on a GPU: what each arm adds to them, and how much it carries.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::html::{escape, figure, legend, part as begin};
use super::plots::{self, Dots};
use super::{micros, size};
use crate::arms::Arm;
use crate::record::Report;
use crate::summary::Summary;

/// The cells of a row, beside workload and arm, with what stands above them.
const COLUMNS: [&str; 12] = [
    "local us",
    "one us",
    "tax us",
    "most/s",
    "conns",
    "cpu us",
    "cores",
    "p99 at 70 %",
    "of rounds",
    "goodput/s",
    "GPU MiB",
    "host MiB",
];

const LEGEND: &str = "\
Models on a GPU. local: the model alone, with pinned copies and no network; one: one request at a time; tax: the one less the
other; most/s: the closed loop that carried most, with its connections, the server's CPU time for each request and the cores
that it keeps busy; p99 in us, of all requests and the median of the rounds, and goodput in answers a second: an open loop at 70 %
of the arm's own saturation";

fn cells(summary: &Summary) -> [String; COLUMNS.len()] {
    let us = |us: Option<f64>| us.map_or("-".to_owned(), micros);
    let fixed = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let mebibytes = |bytes: Option<u64>| fixed(bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)), 0);
    let (most, loaded) = (&summary.saturation, &summary.at_70_percent);
    [
        us(summary.local_us),
        us(summary.latency_us),
        us(summary.rpc_tax_us),
        fixed(most.map(|most| most.rps), 0),
        most.map_or("-".to_owned(), |most| most.connections.to_string()),
        us(most.and_then(|most| most.server_cpu_us)),
        fixed(most.and_then(|most| most.host_cores), 2),
        us(loaded.and_then(|loaded| loaded.p99_us)),
        us(loaded.and_then(|loaded| loaded.rounds_p99_us)),
        fixed(loaded.and_then(|loaded| loaded.goodput_rps), 0),
        mebibytes(summary.memory.and_then(|memory| memory.device_bytes)),
        mebibytes(summary.memory.map(|memory| memory.host_bytes)),
    ]
}

/// Prints them on the terminal.
pub(super) fn table(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    if report.workloads.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{LEGEND}\n")?;
    write!(out, "{:<16} {:<18}", "model", "arm")?;
    COLUMNS.iter().try_for_each(|column| write!(out, " {column:>11}"))?;
    writeln!(out)?;
    for of_model in report.workloads.chunk_by(|one, next| one.workload == next.workload) {
        for (at, summary) in of_model.iter().enumerate() {
            write!(out, "{:<16} {:<18}", if at == 0 { summary.workload } else { "" }, summary.arm)?;
            cells(summary).iter().try_for_each(|cell| write!(out, " {cell:>11}"))?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// The part of the page.
pub(super) fn part(report: &Report, out: &mut String) -> anyhow::Result<()> {
    if report.workloads.is_empty() {
        return Ok(());
    }
    begin("Models on a GPU", out);
    *out += "<p>The tax of an arm is what it adds to the model alone, which has pinned copies in and out and no network, for one \
             request at a time. A name that ends in <em>-shaped</em> is no network: it reads and writes as many bytes as one. \
             GPU memory is what the server has taken for the model and its tensors, host memory what of it is resident.</p>";
    let arms = arms(report);
    legend(report, &arms, out)?;
    *out += "<div class=\"plots\">";
    for (name, svg) in plots(report)? {
        figure(if name == TAX { "RPC tax" } else { "Requests a second at saturation" }, &svg, out)?;
    }
    *out += "</div><div class=\"wide\"><table><thead><tr><th>model</th><th>bytes</th><th>arm</th>";
    COLUMNS.iter().try_for_each(|column| write!(out, "<th class=\"n\">{column}</th>"))?;
    *out += "</tr></thead><tbody>";
    for summary in &report.workloads {
        let bytes = format!("{} in, {} out", size(summary.request_bytes), size(summary.response_bytes));
        write!(out, "<tr><td>{}</td><td>{bytes}</td><td>{}</td>", escape(summary.workload), summary.arm)?;
        cells(summary).iter().try_for_each(|cell| write!(out, "<td class=\"n\">{cell}</td>"))?;
        *out += "</tr>\n";
    }
    *out += "</tbody></table></div>";
    Ok(())
}

const TAX: &str = "rpc-tax";
const MOST: &str = "saturation";

/// The plots, by the names of their files.
pub(crate) fn plots(report: &Report) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut models: Vec<&str> = report.workloads.iter().map(|summary| summary.workload).collect();
    models.dedup();
    if models.is_empty() {
        return Ok(Vec::new());
    }
    let dots = |value: &dyn Fn(&Summary) -> Option<f64>| {
        let of = |arm: Arm| {
            let own = report.workloads.iter().filter(move |summary| summary.arm == arm);
            let place = |summary: &Summary| models.iter().position(|&model| model == summary.workload);
            own.filter_map(|summary| place(summary).zip(value(summary).filter(|&value| value > 0.0))).collect()
        };
        arms(report).into_iter().map(|arm| Dots { arm, places: of(arm) }).collect::<Vec<_>>()
    };
    let tax = plots::dots(&models, &dots(&|summary| summary.rpc_tax_us), "RPC tax: us added to the model alone")?;
    let most = dots(&|summary| summary.saturation.filter(|_| summary.arm.computes()).map(|most| most.rps));
    Ok(vec![(TAX, tax), (MOST, plots::dots(&models, &most, "requests a second at saturation")?)])
}

/// Those of the arms that have a model.
fn arms(report: &Report) -> Vec<Arm> {
    let taken = |arm: &Arm| report.workloads.iter().any(|summary| summary.arm == *arm);
    Arm::ALL.into_iter().filter(|arm| arm.computes() && taken(arm)).collect()
}
