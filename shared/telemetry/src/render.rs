//! The Prometheus text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use splitrpc_wire::{Stage, Status, WireError};

use crate::shard::Series;
use crate::{Cell, Event, Level, Shard, Snapshot};

/// Bounds of a histogram: powers of two, of which these are the exponents.
type Bounds = std::iter::StepBy<std::ops::RangeInclusive<u32>>;

/// Bounds of requests' times, from 4 µs to 17 s, in nanoseconds. Each is a line for every model and path.
fn request_times() -> Bounds {
    (12..=34).step_by(1)
}

/// Bounds of stages' times, from 1 µs to 17 s: every other power of two, since there are many stages.
fn stage_times() -> Bounds {
    (10..=34).step_by(2)
}

/// Bounds of histograms of counts: 1 to 1,024, which is all that there is of batches.
fn counts() -> Bounds {
    (0..=10).step_by(1)
}

/// Writes metrics in the text format. Samples of a metric follow its [`Writer::head`].
#[derive(Debug, Default)]
pub struct Writer {
    text: String,
}

impl Writer {
    /// With no metric yet.
    #[must_use]
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Begins a metric. `kind` is `counter`, `gauge` or `histogram`.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string does not fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        self.labels(labels, None);
        let _ = writeln!(self.text, " {value}");
    }

    /// A histogram's samples. Bounds are 2^bits of `unit` each. `whole`: a value on a bound counts below it, as it should;
    /// for times, where it cannot matter, it counts above.
    fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        snapshot: &Snapshot,
        bits: Bounds,
        unit: f64,
        whole: bool,
    ) {
        for bits in bits {
            let (count, bound) = if whole {
                (snapshot.at_most_power(bits), (1u64 << bits) as f64)
            } else {
                (snapshot.below_power(bits), (1u64 << bits) as f64 * unit)
            };
            let _ = write!(self.text, "{name}_bucket");
            self.labels(labels, Some(&bound.to_string()));
            let _ = writeln!(self.text, " {count}");
        }
        let _ = write!(self.text, "{name}_bucket");
        self.labels(labels, Some("+Inf"));
        let _ = writeln!(self.text, " {}", snapshot.count());
        self.sample(&format!("{name}_sum"), labels, snapshot.sum() as f64 * unit);
        self.sample(&format!("{name}_count"), labels, snapshot.count() as f64);
    }

    fn labels(&mut self, labels: &[(&str, &str)], bound: Option<&str>) {
        if labels.is_empty() && bound.is_none() {
            return;
        }
        let mut lead = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|b| ("le", b))) {
            self.text.push(lead);
            lead = ',';
            let _ = write!(self.text, "{name}=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        self.text.push('}');
    }

    /// The text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

/// All metrics of these shards, added up. `models` names the models by handle.
pub fn render(out: &mut Writer, models: &[&str], shards: &[&Shard]) {
    for &event in Event::ALL {
        let name = event.metric();
        out.head(&name, "counter", event.help());
        out.sample(&name, &[], shards.iter().map(|s| s.events[event as usize].load()).sum::<u64>() as f64);
    }
    for &level in Level::ALL {
        let name = level.metric();
        out.head(&name, "gauge", level.help());
        out.sample(&name, &[], shards.iter().map(|s| s.levels[level as usize].load()).sum::<u64>() as f64);
    }
    let name = "splitrpc_wire_errors_total";
    out.head(name, "counter", "Bytes from peers that were refused, by the rule that they broke.");
    for error in WireError::ALL {
        let n: u64 = shards.iter().map(|s| s.wire_errors[error.index()].load()).sum();
        out.sample(name, &[("error", error.name())], n as f64);
    }
    let name = "splitrpc_refusals_total";
    out.head(
        name,
        "counter",
        "Requests that were not answered: refused, failed, cancelled, or out of time, by status, and by model where they \
         named one that is served.",
    );
    for &status in Status::ALL.iter().filter(|&&s| s != Status::Ok) {
        let n: u64 = shards.iter().map(|s| s.refusals[status as usize].load()).sum();
        out.sample(name, &[("status", status.name())], n as f64);
        for (handle, model) in models.iter().enumerate() {
            let models = shards.iter().filter_map(|s| s.models.get(handle));
            let n: u64 = models.map(|m| m.refusals[status as usize].load()).sum();
            if n > 0 {
                out.sample(name, &[("model", model), ("status", status.name())], n as f64);
            }
        }
    }
    render_models(out, models, shards);
    render_paths(out, models, shards);
    render_stages(out, models, shards);
}

fn render_models(out: &mut Writer, models: &[&str], shards: &[&Shard]) {
    let name = "splitrpc_model_queued";
    out.head(name, "gauge", "Requests that wait for a launch.");
    for (handle, model) in models.iter().enumerate() {
        let n: u64 = shards.iter().filter_map(|s| s.models.get(handle)).map(|m| m.queued.load()).sum();
        out.sample(name, &[("model", model)], n as f64);
    }
    for (name, help, rows) in [
        ("splitrpc_batch_rows", "Rows in each launch.", true),
        ("splitrpc_batch_requests", "Requests in each launch.", false),
    ] {
        out.head(name, "histogram", help);
        for (handle, model) in models.iter().enumerate() {
            let mut sum = Snapshot::new();
            for m in shards.iter().filter_map(|s| s.models.get(handle)) {
                sum.add(if rows { &m.batch_rows } else { &m.batch_requests });
            }
            out.histogram(name, &[("model", model)], &sum, counts(), 1.0, true);
        }
    }
}

/// One model's series over one path, of all shards, and their labels.
struct Group<'s> {
    labels: Vec<(&'s str, &'s str)>,
    series: Vec<&'s Series>,
}

fn group<'s>(models: &[&'s str], shards: &[&'s Shard]) -> Vec<Group<'s>> {
    // By model and path, in an order that stays.
    let mut groups: BTreeMap<_, Group<'s>> = BTreeMap::new();
    for shard in shards {
        for (handle, (model, name)) in shard.models.iter().zip(models).enumerate() {
            for (key, series) in model.series.taken() {
                let path = key.labels();
                let new = || Group { labels: [("model", *name)].into_iter().chain(path).collect(), series: Vec::new() };
                groups.entry((handle, path)).or_insert_with(new).series.push(series);
            }
        }
    }
    groups.into_values().collect()
}

fn render_paths(out: &mut Writer, models: &[&str], shards: &[&Shard]) {
    let groups = group(models, shards);
    let name = "splitrpc_requests_total";
    out.head(name, "counter", "Requests answered, by model, path and status.");
    for Group { labels, series } in &groups {
        for &status in Status::ALL {
            let n: u64 = series.iter().map(|s| s.statuses[status as usize].load()).sum();
            if n > 0 {
                let labels: Vec<_> = labels.iter().copied().chain([("status", status.name())]).collect();
                out.sample(name, &labels, n as f64);
            }
        }
    }
    type Field = fn(&Series) -> &Cell;
    let counters: [(&str, &str, Field); 5] = [
        ("splitrpc_payload_bytes_total", "Tensor bytes of requests.", |s| &s.payload_bytes),
        (
            "splitrpc_cpu_copied_bytes_total",
            "Request bytes that a CPU copied on the way into their slots, the kernel's own copy included.",
            |s| &s.copied_bytes,
        ),
        (
            "splitrpc_fixup_bytes_total",
            "Of those, bytes copied again because they had landed in the wrong place.",
            |s| &s.fixup_bytes,
        ),
        ("splitrpc_runtime_copied_bytes_total", "Bytes that runtimes copied on the CPU beyond the slots.", |s| {
            &s.runtime_copied_bytes
        }),
        (
            "splitrpc_device_compactions_total",
            "Copies inside a device by which batches were put together or results apart, for each of their requests.",
            |s| &s.device_compactions,
        ),
    ];
    for (name, help, field) in counters {
        out.head(name, "counter", help);
        for Group { labels, series } in &groups {
            out.sample(name, labels, series.iter().map(|s| field(s).load()).sum::<u64>() as f64);
        }
    }
    let name = "splitrpc_request_duration_seconds";
    out.head(name, "histogram", "First byte of a request to its answer, of requests that succeeded.");
    for Group { labels, series } in &groups {
        let mut sum = Snapshot::new();
        series.iter().for_each(|s| sum.add(&s.total));
        out.histogram(name, labels, &sum, request_times(), 1e-9, false);
    }
}

fn render_stages(out: &mut Writer, models: &[&str], shards: &[&Shard]) {
    let name = "splitrpc_model_stage_seconds_total";
    out.head(name, "counter", "Time that requests that succeeded spent in each stage, by model.");
    for (handle, model) in models.iter().enumerate() {
        for stage in Stage::ALL {
            let models = shards.iter().filter_map(|s| s.models.get(handle));
            let spent: u64 = models.map(|m| m.stages_ns[stage as usize].load()).sum();
            out.sample(name, &[("model", model), ("stage", stage.name())], spent as f64 * 1e-9);
        }
    }
    let mut paths: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, stages) in shards.iter().flat_map(|shard| shard.stages.taken()) {
        paths.entry(key.labels()).or_default().push(stages);
    }
    let name = "splitrpc_stage_duration_seconds";
    out.head(name, "histogram", "Duration of each stage, of requests that succeeded, by path.");
    for (path, series) in &paths {
        for stage in Stage::ALL {
            let mut sum = Snapshot::new();
            series.iter().for_each(|stages| sum.add(&stages[stage as usize]));
            let labels: Vec<_> = path.iter().copied().chain([("stage", stage.name())]).collect();
            out.histogram(name, &labels, &sum, stage_times(), 1e-9, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use splitrpc_wire::Path;
    use splitrpc_wire::path::{Mover, Port};

    use super::*;

    fn sample() -> String {
        let shards = [Shard::new(2), Shard::new(2)];
        let mut path = Path {
            port: Port::Tcp,
            mover: Mover::KernelToSlot,
            payload_bytes: 10,
            copied_bytes: 10,
            ..Path::default()
        };
        path.set_stage(Stage::Compute, 3_000);
        for shard in &shards {
            shard.request(1, &path, Status::Ok, 5_000);
            shard.count(Event::FramesReceived, 3);
            shard.wire_error(WireError::BadMagic);
            shard.set_refused(None, Status::UnknownModel, 1);
            shard.set_refused(Some(1), Status::Busy, 3);
            shard.set_refused(Some(2), Status::Busy, 9);
            shard.models[1].batch_rows.record(8);
        }
        shards[0].request(1, &path, Status::Busy, 0);
        let mut out = Writer::new();
        render(&mut out, &["a", "say \"hi\""], &shards.each_ref());
        out.finish()
    }

    #[test]
    fn shards_are_added_up_under_their_labels() {
        let text = sample();
        let path = r#"emulated="false",link="unknown",memory="unknown",mover="kernel-to-slot",port="tcp""#;
        let stages = format!("splitrpc_stage_duration_seconds_bucket{{{path},stage=\"compute\",le=\"0.000004096\"}} 2");
        let path = format!(r#"model="say \"hi\"",{path}"#);
        for line in [
            "splitrpc_frames_received_total 6".to_owned(),
            r#"splitrpc_wire_errors_total{error="BadMagic"} 2"#.to_owned(),
            r#"splitrpc_refusals_total{status="UnknownModel"} 2"#.to_owned(),
            r#"splitrpc_refusals_total{status="Busy"} 0"#.to_owned(),
            r#"splitrpc_refusals_total{model="say \"hi\"",status="Busy"} 6"#.to_owned(),
            format!("splitrpc_requests_total{{{path},status=\"Ok\"}} 2"),
            format!("splitrpc_requests_total{{{path},status=\"Busy\"}} 1"),
            format!("splitrpc_cpu_copied_bytes_total{{{path}}} 30"),
            format!("splitrpc_request_duration_seconds_count{{{path}}} 2"),
            stages,
            r#"splitrpc_model_stage_seconds_total{model="say \"hi\"",stage="compute"} 0.000006"#.to_owned(),
            r#"splitrpc_batch_rows_bucket{model="say \"hi\"",le="8"} 2"#.to_owned(),
            r#"splitrpc_batch_rows_bucket{model="say \"hi\"",le="4"} 0"#.to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn many_models_are_not_many_lines_each() {
        let lines = |models: usize| {
            let shard = Shard::new(models);
            for model in 0..models {
                for port in [Port::Tcp, Port::Udp] {
                    shard.request(model as u16, &Path { port, ..Path::default() }, Status::Ok, 1);
                }
            }
            let mut out = Writer::new();
            render(&mut out, &vec!["m"; models], &[&shard]);
            out.finish().lines().count()
        };
        let each = lines(30) - lines(29);
        assert!(each < 110, "{each} lines more for one more model that was asked over two paths");
    }

    #[test]
    fn every_sample_follows_its_own_head_and_buckets_never_fall() {
        let mut metric = String::new();
        let mut last = (String::new(), 0.0);
        for line in sample().lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                metric = rest.split(' ').next().unwrap().to_owned();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&metric), "{line} under {metric}");
                let (name, value) = line.rsplit_once(' ').unwrap();
                let value: f64 = value.parse().unwrap();
                let series = name.split("le=").next().unwrap().to_owned();
                assert!(series != last.0 || !name.contains("le=") || value >= last.1, "{line}");
                last = (series, value);
            }
        }
    }
}
