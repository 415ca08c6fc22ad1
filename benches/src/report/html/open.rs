//! Open loops at a share of saturation: what was offered, what was carried, and how late.

use std::fmt::Write;

use super::super::{Ratios, asked, micros};
use super::{by_point, void_row};
use crate::plan::{Basis, Section};
use crate::record::{Report, Run};

/// The part on open loops, if there were any at a share of saturation that says something by itself.
pub(super) fn part(report: &Report, out: &mut String) -> anyhow::Result<()> {
    let groups: Vec<Vec<&Run>> = [Section::Open, Section::FanIn]
        .into_iter()
        .flat_map(|section| by_point(report, section))
        .filter(|group| group[0].section == Section::FanIn.name() || group[0].of_saturation == Some(0.7))
        .collect();
    if groups.is_empty() {
        return Ok(());
    }
    super::part("At a share of saturation, and goodput", out);
    *out += "<p>Requests come at a rate, and latency counts from the time at which each was to be sent. Saturation is what the \
             arm answers in a closed loop of as many connections, measured anew before a few rounds each. Where all arms are offered a \
             share of the slowest one's, their latencies can be compared; where each is offered a share of its own, they \
             are under different loads. An arm that cannot keep up is saturated, and has no latency to speak of. p99 has no \
             verdict: see how far a floor and its second run are apart. Goodput is the most answers a second, over all \
             offered loads, that came within the target: ten times the median for one request at a time of the floor, and of the model alone where it \
             computes on a GPU.</p>\
             <div class=\"wide\"><table><thead><tr><th>load</th><th>arm</th><th class=\"n\">saturation /s</th>\
             <th class=\"n\">offered /s</th><th class=\"n\">carried /s</th><th class=\"n\">p50 us</th>\
             <th class=\"n\">× floor</th><th class=\"n\">p99 us</th><th class=\"n\">p99.9 us</th>\
             <th class=\"n\">best goodput /s</th><th class=\"n\">target us</th></tr></thead><tbody>";
    for group in groups {
        for run in &group {
            row(run, report, out)?;
        }
        void_row(&group, 11, out)?;
    }
    *out += "</tbody></table></div>";
    Ok(())
}

fn row(run: &Run, report: &Report, out: &mut String) -> anyhow::Result<()> {
    let same = |other: &&Run| {
        (other.arm, other.model, other.section) == (run.arm, run.model, run.section)
            && other.request_bytes == run.request_bytes
    };
    let goodput = report.runs.iter().filter(same).filter_map(|run| run.goodput_rps).reduce(f64::max);
    let load = format!(
        "{}, {} connections, {}, {:.0} % of {}",
        asked(run),
        run.concurrency,
        run.arrivals.map_or("", |arrivals| arrivals.name()),
        run.of_saturation.unwrap_or_default() * 100.0,
        if run.saturation_of == Some(Basis::Slowest) { "the slowest's" } else { "its own" }
    );
    let whole = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.0}"));
    write!(
        out,
        "<tr><td>{load}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{:.0}</td>",
        run.arm,
        whole(run.saturation_rps),
        whole(run.offered_rps),
        run.throughput_rps
    )?;
    if run.saturated {
        *out += "<td class=\"n\" colspan=\"4\">saturated</td>";
    } else {
        let latency = &run.latency_us;
        let ratio = Ratios::of(run, &report.runs).latency.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        for cell in [micros(latency.p50), ratio, micros(latency.p99), micros(latency.p999)] {
            write!(out, "<td class=\"n\">{cell}</td>")?;
        }
    }
    let target = run.latency_target_us.map_or("–".to_owned(), micros);
    writeln!(out, "<td class=\"n\">{}</td><td class=\"n\">{target}</td></tr>", whole(goodput))?;
    Ok(())
}
