//! The report: one HTML page with its style and its plots inside, which loads nothing from anywhere.

mod open;

use std::collections::BTreeSet;
use std::fmt::Write;

use plotters::style::RGBColor;

use super::plots::{self, Bar, Line};
use super::{Ratios, asked, micros, split, void_reasons, workloads};
use crate::arms::Arm;
use crate::load::arrivals::Arrivals;
use crate::machine::Crossed;
use crate::plan::Section;
use crate::record::Sense;
use crate::record::{CpuUs, Report, Run};
use crate::wait::Wait;

const STYLE: &str = include_str!("style.css");

/// The stages in the order in which they are stacked, each with its colour, and last what is left of the latency.
const STAGES: [(&str, RGBColor); 9] = [
    ("receive", RGBColor(66, 133, 200)),
    ("place", RGBColor(214, 120, 34)),
    ("queue", RGBColor(176, 148, 50)),
    ("batch", RGBColor(140, 110, 190)),
    ("copy_in", RGBColor(205, 92, 92)),
    ("compute", RGBColor(60, 150, 100)),
    ("copy_out", RGBColor(190, 100, 150)),
    ("respond", RGBColor(80, 160, 170)),
    ("network and client", RGBColor(140, 146, 156)),
];
const CPU: [(&str, RGBColor); 3] = [
    ("client", RGBColor(140, 146, 156)),
    ("server, on the host", RGBColor(66, 133, 200)),
    ("its card", RGBColor(204, 62, 78)),
];

/// Writes the page.
pub(crate) fn page(report: &Report) -> anyhow::Result<String> {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    out += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">";
    write!(out, "<title>splitrpc: comparison</title><style>{STYLE}</style></head><body><main><section>")?;
    head(report, &mut out)?;
    summary(report, &mut out)?;
    arms(report, &mut out)?;
    workloads::part(report, &mut out)?;
    split::part(report, &mut out)?;
    distributions(report, &mut out)?;
    load_curves(report, &mut out)?;
    open::part(report, &mut out)?;
    stage_bars(report, &mut out)?;
    cpu_bars(report, &mut out)?;
    tables(report, &mut out)?;
    out += "</section></main></body></html>\n";
    Ok(out)
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Begins a part of the page.
pub(super) fn part(title: &str, out: &mut String) {
    *out += &format!("</section><section><h2>{title}</h2>");
}

fn head(report: &Report, out: &mut String) -> anyhow::Result<()> {
    let machine = &report.machine;
    let over = match report.crossed {
        Crossed::Loopback => "loopback: both ends on this machine, no network between them",
        Crossed::Namespace => "a network namespace of this machine",
        Crossed::Wire => "a network",
    };
    let plan = report.scope.plan();
    writeln!(
        out,
        "<h1>What each arm costs beside its floor</h1><p class=\"machine\">{}, {} cores, {:.0} GiB, {}, TCP congestion \
         control {}. Over {over}. {plan}, {:.0} s, seed {}.</p>",
        escape(&machine.cpu),
        machine.cores,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        escape(&machine.kernel),
        escape(&machine.tcp_congestion_control),
        report.elapsed_s,
        report.seed
    )?;
    if let Some(disturbance) = report.disturbance() {
        write!(out, "<p class=\"warn\">{}</p>", escape(&disturbance))?;
    }
    if report.runs.iter().any(|run| run.emulated) {
        *out += "<p class=\"warn\">Arms marked <em>emulated</em> ran on a software BlueField: their times are not those \
                 of a card.</p>";
    }
    Ok(())
}

fn summary(report: &Report, out: &mut String) -> anyhow::Result<()> {
    part("Verdict", out);
    if let Some(why) = report.scope.why_unjudged(report.figures.len()) {
        let list = report.scope.unjudged.iter().map(|what| format!("<li>{}</li>", escape(what)));
        write!(out, "<details><summary>{}</summary><ul>{}</ul></details>", escape(&why), list.collect::<String>())?;
    }
    if !report.scope.not_run.is_empty() {
        write!(out, "<p class=\"warn\">No time was left for {}.</p>", escape(&report.scope.not_run.join(", ")))?;
    }
    if !report.scope.failed.is_empty() {
        write!(out, "<p class=\"warn\">Could not be run here: {}.</p>", escape(&report.scope.failed.join("; ")))?;
    }
    if report.figures.is_empty() {
        return Ok(());
    }
    *out += "<table class=\"verdict\"><thead><tr><th>verdict</th><th class=\"n\">value</th>\
             <th class=\"n\">target</th><th>figure</th></tr></thead><tbody>";
    for figure in &report.figures {
        let verdict = figure.verdict();
        let class = verdict.replace(' ', "-");
        let sense = if figure.sense == Sense::AtMost { "≤" } else { "≥" };
        let value = figure.value.map_or("–".to_owned(), |value| format!("{value:.3}"));
        let void = figure.void.as_deref().unwrap_or_default();
        writeln!(
            out,
            "<tr class=\"{class}\"><td><span class=\"badge\">{verdict}</span></td><td class=\"n\">{value}</td>\
             <td class=\"n\">{sense} {}</td><td>{}<br><small>{} {}</small></td></tr>",
            figure.target,
            escape(&figure.what),
            escape(&figure.detail),
            escape(void)
        )?;
    }
    *out += "</tbody></table><p><small>The figure of one request at a time is the 10th percentile of the medians of an \
             arm's fresh connections; that of several at once is the median over all requests, and their throughput and \
             CPU time are those of all rounds together. Arms take turns in an order drawn anew each round. How many times \
             the floor's a latency or throughput is, is the median over the rounds, save for one request at a time \
             while the machine kept its pace. Each floor runs twice: where its two runs, compared in the same way, \
             are more than 5 % apart, what was compared with it is void.</small></p>";
    Ok(())
}

/// What each arm is, in a line.
fn arms(report: &Report, out: &mut String) -> anyhow::Result<()> {
    part("The arms", out);
    *out += "<table><tbody>";
    for arm in arms_of(&report.runs.iter().collect::<Vec<_>>()) {
        let RGBColor(r, g, b) = plots::colour(arm);
        write!(
            out,
            "<tr><td class=\"legend\"><span><i style=\"background:rgb({r},{g},{b})\"></i>{arm}</span></td><td>{}</td></tr>",
            escape(arm.about())
        )?;
    }
    *out += "</tbody></table>";
    Ok(())
}

pub(super) fn legend(report: &Report, arms: &[Arm], out: &mut String) -> anyhow::Result<()> {
    *out += "<p class=\"legend\">";
    for &arm in arms {
        let RGBColor(r, g, b) = plots::colour(arm);
        write!(out, "<span><i style=\"background:rgb({r},{g},{b})\"></i>{}</span>", report.name(arm))?;
    }
    *out += "</p>";
    Ok(())
}

fn parts_legend(parts: &[(&str, RGBColor)], out: &mut String) -> anyhow::Result<()> {
    *out += "<p class=\"legend\">";
    for (name, RGBColor(r, g, b)) in parts {
        write!(out, "<span><i style=\"background:rgb({r},{g},{b})\"></i>{}</span>", name.replace('_', " "))?;
    }
    *out += "</p>";
    Ok(())
}

pub(super) fn figure(caption: &str, svg: &str, out: &mut String) -> anyhow::Result<()> {
    Ok(write!(out, "<figure><figcaption>{}</figcaption>{svg}</figure>", escape(caption))?)
}

/// The runs of each point of a section, in order.
fn by_point<'a>(report: &'a Report, section: Section) -> Vec<Vec<&'a Run>> {
    let mut groups: Vec<Vec<&'a Run>> = Vec::new();
    for run in report.runs.iter().filter(|run| run.section == section.name()) {
        match groups.iter_mut().find(|group| group[0].point == run.point) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups
}

fn arms_of(runs: &[&Run]) -> Vec<Arm> {
    Arm::ALL.into_iter().filter(|&arm| runs.iter().any(|run| run.arm == arm)).collect()
}

/// How the arms of a load wait. Floors, which come first, may do so in a way of their own.
fn waits(group: &[&Run]) -> String {
    let [floor, arm] = [group[0], group[group.len() - 1]].map(|run| run.wait);
    if floor == arm { arm.name().to_owned() } else { format!("{}, floors {}", arm.name(), floor.name()) }
}

fn distributions(report: &Report, out: &mut String) -> anyhow::Result<()> {
    part("Latency distribution", out);
    *out += "<p>One request at a time. Lower is better; both axes are logarithmic, the lower one in the share of requests \
             that took longer.</p>";
    let mut groups = by_point(report, Section::Single);
    groups.extend(by_point(report, Section::Light));
    if groups.is_empty() {
        *out += "<p>No such load was run.</p>";
        return Ok(());
    }
    legend(report, &arms_of(&groups.concat()), out)?;
    *out += "<div class=\"plots\">";
    for group in groups {
        let first = group[0];
        let datagram = first.datagram.map_or(String::new(), |bytes| format!(", {bytes}-byte datagrams"));
        let datagram = if group.iter().all(|run| run.datagram.is_some()) { datagram } else { String::new() };
        let void = void_reasons(group.iter().copied());
        let void = if void.is_empty() { String::new() } else { format!(" — void: {}", void.join("; ")) };
        let load = match first.offered_rps {
            Some(rps) => format!("{rps:.0} requests a second; {}", waits(&group)),
            None => waits(&group),
        };
        let caption = format!("{}, {load}{datagram}{void}", asked(first));
        figure(&caption, &plots::distribution(&group)?, out)?;
    }
    *out += "</div>";
    Ok(())
}

/// Lines through the points of each arm, from light load to heavy.
fn lines(runs: &[&Run], y: impl Fn(&Run) -> f64) -> Vec<Line> {
    let line = |arm| {
        let mut runs: Vec<&&Run> = runs.iter().filter(|run| run.arm == arm).collect();
        runs.sort_by(|a, b| {
            a.concurrency
                .cmp(&b.concurrency)
                .then(a.offered_rps.unwrap_or(0.0).total_cmp(&b.offered_rps.unwrap_or(0.0)))
        });
        Line::of(arm, runs.iter().map(|run| (run.throughput_rps, y(run))).collect())
    };
    arms_of(runs).into_iter().map(line).collect()
}

fn load_curves(report: &Report, out: &mut String) -> anyhow::Result<()> {
    let mut drawn: Vec<(String, String)> = Vec::new();
    let mut shown: Vec<&Run> = Vec::new();
    let mut asked_for: Vec<(&str, u32)> = report.runs.iter().map(|run| (run.model, run.request_bytes)).collect();
    asked_for.sort_unstable();
    asked_for.dedup();
    for &(model, bytes) in &asked_for {
        let of_size = |run: &&Run| (run.model, run.request_bytes) == (model, bytes);
        for wait in [Wait::Spin, Wait::Adaptive] {
            let closed = |run: &&Run| {
                run.section == Section::Concurrent.name()
                    || run.section == Section::Single.name() && run.datagram.is_none_or(|d| d == crate::arms::DATAGRAM)
            };
            let runs: Vec<&Run> =
                report.runs.iter().filter(|run| run.wait == wait).filter(of_size).filter(closed).collect();
            if runs.iter().any(|run| run.concurrency > 1) {
                let connections: BTreeSet<usize> = runs.iter().map(|run| run.concurrency).collect();
                let connections: Vec<String> = connections.iter().map(usize::to_string).collect();
                let connections = connections.join(", ");
                let caption = format!("{}, {}, closed loops; connections: {connections}", asked(runs[0]), wait.name());
                drawn
                    .push((caption, plots::load_curve(&lines(&runs, |run| run.latency_us.p50), "median latency, us")?));
                shown.extend(runs);
            }
        }
        let open: Vec<&Run> = report
            .runs
            .iter()
            .filter(of_size)
            .filter(|run| run.section == Section::Open.name() && run.arrivals == Some(Arrivals::Poisson))
            .filter(|run| !run.saturated)
            .collect();
        if !open.is_empty() {
            let caption = format!(
                "{}, open loop, Poisson arrivals, {} connections, {}",
                asked(open[0]),
                open[0].concurrency,
                open[0].wait.name()
            );
            drawn.push((caption, plots::load_curve(&lines(&open, |run| run.latency_us.p99), "p99 latency, us")?));
            shown.extend(open);
        }
    }
    if drawn.is_empty() {
        return Ok(());
    }
    part("Throughput against latency", out);
    *out += "<p>Lower and further to the right is better. Each dot is a load: from the bottom of a line to its top there are \
             more connections, or more requests are offered. Loads that saturated an arm are left out.</p>";
    legend(report, &arms_of(&shown), out)?;
    *out += "<div class=\"plots\">";
    for (caption, svg) in drawn {
        figure(&caption, &svg, out)?;
    }
    *out += "</div>";
    Ok(())
}

/// Says below the runs of a load why they are void, if they are.
fn void_row(runs: &[&Run], columns: usize, out: &mut String) -> anyhow::Result<()> {
    for reason in void_reasons(runs.iter().copied()) {
        writeln!(
            out,
            "<tr class=\"void\"><td></td><td colspan=\"{}\">void: {}</td></tr>",
            columns - 1,
            escape(reason)
        )?;
    }
    Ok(())
}

fn stage_bars(report: &Report, out: &mut String) -> anyhow::Result<()> {
    let mut plotted = String::new();
    for group in by_point(report, Section::Single) {
        let mut bars = Vec::new();
        for run in &group {
            let Some(stages) = &run.stages_us else { continue };
            let mut parts: Vec<f64> =
                STAGES[..8].iter().map(|(name, _)| stages.get(name).copied().unwrap_or_default()).collect();
            let known: f64 = parts.iter().sum();
            parts.push((run.latency_us.mean - known).max(0.0));
            bars.push(Bar { name: run.name(), parts });
        }
        if !bars.is_empty() {
            let colours: Vec<RGBColor> = STAGES.iter().map(|&(_, colour)| colour).collect();
            let datagram = group.iter().all(|run| run.datagram.is_some()).then_some(group[0].datagram).flatten();
            let datagram = datagram.map_or(String::new(), |bytes| format!(", {bytes}-byte datagrams"));
            let caption = format!("{}, {}{datagram}", asked(group[0]), group[0].wait.name());
            figure(&caption, &plots::bars(&bars, &colours, "mean, us")?, &mut plotted)?;
        }
    }
    if !plotted.is_empty() {
        part("Where the time goes", out);
        *out += "<p>One request at a time, as the server told it in each response; what is left \
                 is the network and the client. Receiving overlaps with the client's sending.</p>";
        parts_legend(&STAGES, out)?;
        write!(out, "<div class=\"plots\">{plotted}</div>")?;
    }
    Ok(())
}

fn cpu_bars(report: &Report, out: &mut String) -> anyhow::Result<()> {
    let single = by_point(report, Section::Single).into_iter().filter(|group| group[0].wait == Wait::Adaptive);
    let crowded = by_point(report, Section::Concurrent).into_iter().filter(|group| group[0].concurrency == 16);
    let steady = by_point(report, Section::HostCpu);
    let groups: Vec<Vec<&Run>> = steady.into_iter().chain(single).chain(crowded).collect();
    if groups.is_empty() {
        return Ok(());
    }
    part("What it costs in CPU time", out);
    *out += "<p>Client and server together. A thread that spins uses its core whatever \
             happens, so the adaptive and the crowded loads say more.</p>";
    parts_legend(&CPU, out)?;
    *out += "<div class=\"plots\">";
    for group in groups {
        let run = group[0];
        let colours: Vec<RGBColor> = CPU.iter().map(|&(_, colour)| colour).collect();
        let large = run.request_bytes >= 65_536;
        let scale = |run: &Run| if large { 1e3 / f64::from(run.request_bytes + run.response_bytes) } else { 1.0 };
        let bar = |run: &&Run| Bar {
            name: run.name(),
            parts: {
                let CpuUs { client, server, nic } = run.cpu_us_per_request;
                [client, server.unwrap_or_default(), nic.unwrap_or_default()].map(|us| us * scale(run)).to_vec()
            },
        };
        let bars: Vec<Bar> = group.iter().map(bar).collect();
        let unit = if large { "CPU seconds for each gigabyte" } else { "CPU us for each request" };
        let load = match run.offered_rps {
            Some(rps) => format!("{rps:.0} requests a second"),
            None => format!("{} at once", run.concurrency),
        };
        let caption = format!("{}, {load}, {}", asked(run), run.wait.name());
        figure(&caption, &plots::bars(&bars, &colours, unit)?, out)?;
    }
    *out += "</div>";
    Ok(())
}

fn tables(report: &Report, out: &mut String) -> anyhow::Result<()> {
    part("All runs", out);
    *out += "<div class=\"wide\"><table><thead><tr><th>load</th><th>arm</th><th class=\"n\">figure us</th>\
             <th class=\"n\">× floor</th><th class=\"n\">p50</th><th class=\"n\">p90</th><th class=\"n\">p99</th>\
             <th class=\"n\">p99.9</th><th class=\"n\">req/s</th><th class=\"n\">× floor</th><th class=\"n\">MB/s</th>\
             <th class=\"n\">CPU us client</th>\
             <th class=\"n\">CPU us server</th><th class=\"n\">CPU us card</th><th class=\"n\">CPU s/GB</th><th class=\"n\">copies</th>\
             <th class=\"n\">errors</th></tr></thead><tbody>";
    for (at, run) in report.runs.iter().enumerate() {
        let (latency, ratios) = (&run.latency_us, Ratios::of(run, &report.runs));
        let optional = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.2}"));
        let mut name = run.arm.name().to_owned();
        if run.emulated {
            name += " <em>emulated</em>";
        }
        if run.drop > 0.0 {
            name += &format!(" <em>{:.0} % lost</em>", run.drop * 100.0);
        }
        let (class, mark) = if run.void { (" class=\"void\"", " <em>void</em>") } else { ("", "") };
        writeln!(
            out,
            "<tr{class}><td>{}</td><td>{name}{mark}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{:.0}</td><td class=\"n\">{}</td><td class=\"n\">{:.1}</td><td class=\"n\">{:.1}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escape(&run.point),
            if run.saturated { "saturated".to_owned() } else { micros(run.figure_us()) },
            optional(ratios.latency),
            micros(latency.p50),
            micros(latency.p90),
            micros(latency.p99),
            micros(latency.p999),
            run.throughput_rps,
            optional(ratios.throughput),
            run.bytes_per_s / 1e6,
            run.cpu_us_per_request.client,
            optional(run.cpu_us_per_request.server),
            optional(run.cpu_us_per_request.nic),
            optional(run.cpu_s_per_gb),
            optional(run.path.as_ref().map(|path| path.cpu_copies + path.runtime_copies)),
            run.errors
        )?;
        if report.runs.get(at + 1).is_none_or(|next| next.point != run.point) {
            let group: Vec<&Run> = report.runs.iter().filter(|other| other.point == run.point).collect();
            void_row(&group, 17, out)?;
        }
    }
    *out += "</tbody></table></div>";
    for idle in split::idles(report) {
        write!(out, "<p>An idle server used: {idle}.</p>")?;
    }
    if let Some(crowd) = &report.crowd {
        write!(out, "<p>{crowd}.</p>")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
