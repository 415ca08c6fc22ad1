//! SmartNIC and commodity card side by side: what people compare them for.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::html::{escape, part as begin};
use super::{asked, micros};
use crate::arms::Arm;
use crate::record::{Idle, Report, Run};

const TITLE: &str = "SmartNIC against commodity card";
const LEGEND: &str = "\
for each load commodity card, SmartNIC, and how many times the former the latter is: less is better, but for requests/s. host, card and
both: CPU time for each request of the host's process, of the card's, and of both together; polling while nothing comes is in it";
const EMULATED: &str = "Emulated: a process of this machine stands in for the card, so times, and the card's CPU time, are not those of a card.";

/// A quantity of a run, with how it is written.
struct Quantity {
    name: &'static str,
    of: fn(&Run) -> Option<f64>,
}

const QUANTITIES: [Quantity; 6] = [
    Quantity { name: "p50 us", of: |run| Some(run.latency_us.p50) },
    Quantity { name: "p99 us", of: |run| Some(run.latency_us.p99) },
    Quantity { name: "requests/s", of: |run| run.offered_rps.is_none().then_some(run.throughput_rps) },
    Quantity { name: "host CPU us", of: |run| run.cpu_us_per_request.server },
    Quantity { name: "card CPU us", of: |run| run.cpu_us_per_request.nic },
    Quantity {
        name: "both us",
        of: |run| Some(run.cpu_us_per_request.server? + run.cpu_us_per_request.nic.unwrap_or_default()),
    },
];

/// Two runs of one load over one transport.
struct Pair<'a> {
    commodity: &'a Run,
    smartnic: &'a Run,
}

/// Loads under which both answered, over either transport.
fn pairs(report: &Report) -> Vec<Pair<'_>> {
    let both = [(Arm::CommodityTcp, Arm::SmartnicTcp), (Arm::CommodityUdp, Arm::SmartnicUdp)];
    let of = |smartnic: &'_ Run| {
        let (other, _) = both.into_iter().find(|(_, arm)| *arm == smartnic.arm)?;
        report.runs.iter().find(|run| run.arm == other && run.point == smartnic.point && run.requests > 0)
    };
    let runs = report.runs.iter().filter(|run| run.requests > 0);
    runs.filter_map(|smartnic| Some(Pair { commodity: of(smartnic)?, smartnic })).collect()
}

/// What a pair has of a quantity: both values, and their ratio.
fn cells(pair: &Pair<'_>, quantity: &Quantity) -> [String; 3] {
    let [commodity, smartnic] = [pair.commodity, pair.smartnic].map(quantity.of);
    let show = |value: Option<f64>| value.map_or("-".to_owned(), micros);
    let ratio = commodity.zip(smartnic).map(|(commodity, smartnic)| smartnic / commodity);
    let ratio = ratio.filter(|ratio| ratio.is_finite()).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    [show(commodity), show(smartnic), ratio]
}

fn idle(idle: &Idle) -> String {
    let card = idle.nic_core_share.map_or(String::new(), |share| format!(", its card {:.3} %", share * 100.0));
    format!("{} {:.3} % of a core{card}", idle.name(), idle.core_share * 100.0)
}

/// Prints them on the terminal.
pub(super) fn table(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let pairs = pairs(report);
    if pairs.is_empty() {
        return Ok(());
    }
    let width = pairs.iter().map(|pair| pair.smartnic.point.len()).max().unwrap_or_default();
    writeln!(out, "\n{TITLE}; {LEGEND}\n")?;
    if pairs.iter().any(|pair| pair.smartnic.emulated) {
        writeln!(out, "{EMULATED}\n")?;
    }
    write!(out, "{:<width$} {:<24}", "load", "arm")?;
    QUANTITIES.iter().try_for_each(|quantity| write!(out, " {:>21}", quantity.name))?;
    write!(out, "\n{:<width$} {:<24}", "", "")?;
    QUANTITIES.iter().try_for_each(|_| write!(out, " {:>7} {:>7} {:>5}", "comm.", "smart", "x"))?;
    writeln!(out)?;
    for pair in &pairs {
        write!(out, "{:<width$} {:<24}", pair.smartnic.point, pair.smartnic.name())?;
        for quantity in &QUANTITIES {
            let [commodity, smartnic, ratio] = cells(pair, quantity);
            write!(out, " {commodity:>7} {smartnic:>7} {ratio:>5}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The lines on idle servers.
pub(super) fn idles(report: &Report) -> impl Iterator<Item = String> {
    report.idle.iter().map(idle)
}

/// The part of the page.
pub(super) fn part(report: &Report, out: &mut String) -> anyhow::Result<()> {
    let pairs = pairs(report);
    if pairs.is_empty() {
        return Ok(());
    }
    begin(TITLE, out);
    *out += "<p>The same load over the same transport, once with the network half of splitrpc in the host's process and once on the card. \
             × is how many times the commodity card's the SmartNIC's is. CPU time is for each request: of the process on the host, of the \
             one on the card, and of both; polling while nothing comes is in it. Stages and the client's part stand below.</p>";
    *out += "<div class=\"wide\"><table><thead><tr><th>load</th><th>over</th>";
    for quantity in &QUANTITIES {
        write!(
            out,
            "<th class=\"n\">{}<br>commodity</th><th class=\"n\">SmartNIC</th><th class=\"n\">×</th>",
            quantity.name
        )?;
    }
    *out += "</tr></thead><tbody>";
    for pair in &pairs {
        let mark = if pair.smartnic.emulated { " <em>emulated</em>" } else { "" };
        let (load, arm) = (format!("{}, {}", asked(pair.smartnic), pair.smartnic.point), pair.smartnic.arm);
        write!(out, "<tr><td>{}</td><td>{arm}{mark}</td>", escape(&load))?;
        for cell in QUANTITIES.iter().flat_map(|quantity| cells(pair, quantity)) {
            write!(out, "<td class=\"n\">{cell}</td>")?;
        }
        *out += "</tr>\n";
    }
    *out += "</tbody></table></div>";
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::CpuUs;
    use crate::record::tests::run;

    #[test]
    fn runs_of_one_load_and_transport_stand_side_by_side() {
        let cpu = |server, nic| CpuUs { client: 1.0, server: Some(server), nic };
        let commodity = Run { cpu_us_per_request: cpu(100.0, None), ..run(Arm::CommodityTcp, "p", 200.0) };
        let smartnic =
            Run { emulated: true, cpu_us_per_request: cpu(10.0, Some(140.0)), ..run(Arm::SmartnicTcp, "p", 300.0) };
        let pair = Pair { commodity: &commodity, smartnic: &smartnic };
        let of = |name| cells(&pair, QUANTITIES.iter().find(|quantity| quantity.name == name).unwrap());
        assert_eq!(of("host CPU us"), ["100", "10.0", "0.10"]);
        assert_eq!(of("card CPU us"), ["-", "140", "-"]);
        assert_eq!(of("both us"), ["100", "150", "1.50"]);
        assert_eq!(smartnic.name(), "smartnic-tcp (emulated)");
    }
}
