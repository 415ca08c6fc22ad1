//! The plots: inline SVG that takes its text colour from the page, so that it can be read on light and on dark.

use anyhow::anyhow;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::arms::Arm;
use crate::record::Run;

/// Stands for the page's text colour until the SVG is done.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_TEXT: &str = "#010203";

/// An arm's colour: mid-tones, to be told apart on white and on near-black.
pub(crate) fn colour(arm: Arm) -> RGBColor {
    match arm {
        Arm::FloorTcp => RGBColor(120, 128, 140),
        Arm::FloorTcpAgain => RGBColor(158, 164, 173),
        Arm::FloorUdp => RGBColor(148, 118, 92),
        Arm::FloorUdpAgain => RGBColor(184, 158, 134),
        Arm::BundledTcp => RGBColor(214, 120, 34),
        Arm::CommodityTcp => RGBColor(40, 128, 214),
        Arm::CommodityUdp => RGBColor(32, 158, 112),
        Arm::SmartnicTcp => RGBColor(204, 62, 78),
        Arm::SmartnicUdp => RGBColor(222, 132, 64),
        Arm::BundledTcpPinned => RGBColor(184, 84, 120),
        Arm::Local => RGBColor(132, 96, 196),
        Arm::PinnedCopy => RGBColor(96, 140, 60),
    }
}

/// A line of a plot.
pub(crate) struct Line {
    /// Its colour.
    pub(crate) colour: RGBColor,
    /// What stands beside it, if anything.
    pub(crate) name: &'static str,
    /// Its points.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Line {
    /// An arm's, which a legend explains.
    pub(crate) fn of(arm: Arm, points: Vec<(f64, f64)>) -> Line {
        Line { colour: colour(arm), name: "", points }
    }
}

/// Dots of an arm, each at a place on one axis and a value on the other.
pub(crate) struct Dots {
    /// Whose they are.
    pub(crate) arm: Arm,
    /// Number of the place, and the value.
    pub(crate) places: Vec<(usize, f64)>,
}

/// A bar of stacked parts.
pub(crate) struct Bar {
    /// What it says below.
    pub(crate) name: String,
    /// Length of each part.
    pub(crate) parts: Vec<f64>,
}

/// Latency percentiles, on an axis on which each further nine takes as much room as the one before.
pub(crate) fn distribution(runs: &[&Run]) -> anyhow::Result<String> {
    let lines: Vec<Line> =
        runs.iter().map(|run| Line::of(run.arm, run.curve.iter().map(|&(p, us)| (nines(p), us)).collect())).collect();
    let most = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max);
    lines_svg(&lines, Nines { most }, "share of requests that took no longer", "latency, us", &|&nines| {
        let percentile = 100.0 * (1.0 - 10f64.powf(-nines));
        format!("{} %", (percentile * 1e4).round() / 1e4)
    })
}

fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

/// Microseconds against something that is counted, both logarithmic.
pub(crate) fn by_count(lines: &[Line], x: &str) -> anyhow::Result<String> {
    let most = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max);
    let axis = LogUs { low: 0.9, high: most * 1.2 };
    lines_svg(lines, axis, x, "us", &|count| format!("{count:.0}"))
}

/// Latency against throughput.
pub(crate) fn load_curve(lines: &[Line], y: &str) -> anyhow::Result<String> {
    let most = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max);
    let x: RangedCoordf64 = (0.0..most * 1.03).into();
    lines_svg(lines, x, "answers a second", y, &|rps| format!("{rps:.0}"))
}

fn lines_svg<X>(
    lines: &[Line],
    x: X,
    x_name: &str,
    y_name: &str,
    x_label: &dyn Fn(&f64) -> String,
) -> anyhow::Result<String>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let latencies = || lines.iter().flat_map(|line| &line.points).map(|point| point.1).filter(|&us| us > 0.0);
    let high = latencies().fold(1.0, f64::max) * 1.3;
    let low = latencies().fold(high, f64::min) * 0.8;
    draw((640, 320), |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(x, LogUs { low, high })?;
        chart
            .configure_mesh()
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.16))
            .light_line_style(INK.mix(0.0))
            .label_style(("sans-serif", 12).with_color(INK))
            .axis_desc_style(("sans-serif", 13).with_color(INK))
            .x_desc(x_name)
            .y_desc(y_name)
            .x_label_formatter(&x_label)
            .y_label_formatter(&|us| super::micros(*us))
            .draw()?;
        for line in lines {
            let colour = line.colour;
            let points: Vec<_> = line.points.iter().copied().filter(|&(_, us)| us > 0.0).collect();
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
            let style = ("sans-serif", 12).into_font().color(&colour);
            let names = points.last().map(|&point| EmptyElement::at(point) + Text::new(line.name, (-90, -16), style));
            chart.draw_series(names)?;
        }
        Ok(())
    })
}

/// Horizontal bars of stacked parts. `colours` has one entry a part.
pub(crate) fn bars(bars: &[Bar], colours: &[RGBColor], x: &str) -> anyhow::Result<String> {
    let longest = bars.iter().map(|bar| bar.parts.iter().sum::<f64>()).fold(1e-6, f64::max);
    draw((640, 70 + 30 * bars.len() as u32), |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(150)
            .build_cartesian_2d(0.0..longest * 1.03, Places { count: bars.len() })?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.16))
            .light_line_style(INK.mix(0.0))
            .label_style(("sans-serif", 12).with_color(INK))
            .axis_desc_style(("sans-serif", 13).with_color(INK))
            .x_desc(x)
            .y_label_formatter(&|&at| bars.get(at as usize).map_or(String::new(), |bar| bar.name.clone()))
            .draw()?;
        for (place, bar) in bars.iter().enumerate() {
            let mut from = 0.0;
            for (&part, colour) in bar.parts.iter().zip(colours) {
                let corners = [(from, place as f64), (from + part, place as f64 + 1.0)];
                let mut rectangle = Rectangle::new(corners, colour.filled());
                rectangle.set_margin(5, 5, 0, 0);
                chart.draw_series([rectangle])?;
                from += part;
            }
        }
        Ok(())
    })
}

/// A row for each of `names`, with a dot for each arm on a logarithmic axis, and the arms' names below.
pub(crate) fn dots(names: &[&str], series: &[Dots], x: &str) -> anyhow::Result<String> {
    let values = || series.iter().flat_map(|dots| &dots.places).map(|place| place.1);
    let high = values().fold(1.0, f64::max) * 1.3;
    let low = values().fold(high, f64::min) * 0.8;
    let height = 80 + 30 * names.len() as u32;
    draw((640, height), |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .margin_bottom(28)
            .x_label_area_size(40)
            .y_label_area_size(120)
            .build_cartesian_2d(LogUs { low, high }, Places { count: names.len() })?;
        chart
            .configure_mesh()
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.16))
            .light_line_style(INK.mix(0.0))
            .label_style(("sans-serif", 12).with_color(INK))
            .axis_desc_style(("sans-serif", 13).with_color(INK))
            .x_desc(x)
            .x_label_formatter(&|value| super::micros(*value))
            .y_label_formatter(&|&at| names.get(at as usize).map_or(String::new(), |name| (*name).to_owned()))
            .draw()?;
        for (number, dots) in series.iter().enumerate() {
            let colour = colour(dots.arm);
            let places = dots.places.iter().map(|&(place, value)| (value, place as f64 + 0.5));
            chart.draw_series(places.map(|point| Circle::new(point, 5, colour.mix(0.85).filled())))?;
            let at = (24 + 150 * number as i32, height as i32 - 14);
            root.draw(&Circle::new(at, 5, colour.filled()))?;
            root.draw(&Text::new(dots.arm.name(), (at.0 + 10, at.1 - 6), ("sans-serif", 12).into_font().color(&INK)))?;
        }
        Ok(())
    })
}

type Root<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(
    size: (u32, u32),
    paint: impl FnOnce(&Root<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        paint(&root).map_err(|error| anyhow!("a plot cannot be drawn: {error}"))?;
        root.present().map_err(|error| anyhow!("a plot cannot be drawn: {error}"))?;
    }
    // Scales with the page instead of having a size of its own.
    let fixed = format!("<svg width=\"{}\" height=\"{}\"", size.0, size.1);
    Ok(svg.replace(INK_TEXT, "currentColor").replacen(&fixed, "<svg role=\"img\"", 1))
}

/// A logarithmic axis that marks 1, 2 and 5 of each decade, or only 1 where there are many decades.
struct LogUs {
    low: f64,
    high: f64,
}

impl Ranged for LogUs {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        limit.0 + (share * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let steps: &[f64] = if self.high / self.low > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let marks = (0..9).flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        marks.filter(|mark| (self.low..=self.high).contains(mark)).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for LogUs {
    fn format(value: &f64) -> String {
        super::micros(*value)
    }
}

/// An axis of places for bars, the first on top, each with its mark in the middle.
struct Places {
    count: usize,
}

impl Ranged for Places {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        // Drawn from below.
        let share = 1.0 - value / self.count.max(1) as f64;
        limit.0 + (share * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.count).map(|place| place as f64 + 0.5).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.count as f64
    }
}

impl ValueFormatter<f64> for Places {
    fn format(value: &f64) -> String {
        format!("{value:.0}")
    }
}

/// An axis of nines: 0 is the fastest request, 1 the 90th percentile, 2 the 99th.
struct Nines {
    most: f64,
}

impl Ranged for Nines {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (value / (self.most * 1.03) * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let marks = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99].map(nines);
        marks.into_iter().filter(|&mark| mark <= self.most).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.most
    }
}

impl ValueFormatter<f64> for Nines {
    fn format(value: &f64) -> String {
        format!("{value:.0} nines")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run;

    #[test]
    fn lines_have_names_and_counts_are_spread_evenly() {
        let line =
            |name, us| Line { colour: colour(Arm::Local), name, points: vec![(1.0, us), (10.0, us), (100.0, us)] };
        let svg = by_count(&[line("above", 50.0), line("below", 5.0)], "frames").unwrap();
        assert!(svg.contains(">\nabove\n") && svg.contains(">\nbelow\n"), "{svg}");
        let places: Vec<i32> = svg
            .match_indices("<circle cx=\"")
            .map(|(at, mark)| svg[at + mark.len()..].split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(places.len(), 6);
        assert!((places[2] - places[1]).abs_diff(places[1] - places[0]) <= 1, "{places:?}");
    }

    #[test]
    fn plots_take_the_pages_colour_and_scale() {
        let mut floor = run(Arm::FloorTcp, "p", 100.0);
        floor.curve = vec![(0.0, 80.0), (50.0, 100.0), (99.0, 300.0), (99.9, 900.0)];
        let plot = distribution(&[&floor]).unwrap();
        assert!(plot.contains("currentColor") && !plot.contains(INK_TEXT));
        assert!(plot.contains("viewBox") && !plot.contains("<svg width"));
        assert!(plot.contains("99.9 %") && plot.contains("50 %"));
        assert!(distribution(&[]).is_ok());
    }

    #[test]
    fn each_dot_stands_in_its_row_and_further_right_for_more() {
        let dots = |arm, places: &[(usize, f64)]| Dots { arm, places: places.to_vec() };
        let series = [dots(Arm::BundledTcp, &[(0, 10.0), (1, 1_000.0)]), dots(Arm::CommodityTcp, &[(1, 100.0)])];
        let svg = super::dots(&["one", "two"], &series, "us").unwrap();
        let number = |circle: &str, name: &str| -> i32 {
            let value = circle.split_once(&format!(" {name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
            value.and_then(|(value, _)| value.parse().ok()).unwrap()
        };
        let circles: Vec<(i32, i32)> =
            svg.split("<circle").skip(1).map(|circle| (number(circle, "cx"), number(circle, "cy"))).collect();
        // A dot for each value, and one for each arm below.
        assert_eq!(circles.len(), 3 + 2, "{svg}");
        let [first, second, _, third, _] = circles[..] else { panic!("{circles:?}") };
        assert!(first.0 < third.0 && third.0 < second.0 && first.1 < second.1 && second.1 == third.1, "{circles:?}");
        assert!(["one", "two", "bundled-tcp", "commodity-tcp"].iter().all(|name| svg.contains(name)));
    }

    #[test]
    fn each_bar_has_its_name_and_one_mark_and_there_are_no_others() {
        let bar = |name: &str| Bar { name: name.into(), parts: vec![1.0, 2.0] };
        // A short level line that ends at the axis.
        let mark = |line: &&str| {
            let points = line.split("points=\"").nth(1)?.split_whitespace().map(|point| point.split_once(','));
            let points: Vec<(&str, &str)> = points.take(2).collect::<Option<_>>()?;
            Some(points[0].1 == points[1].1 && points[1].0 == "157").filter(|&mark| mark)
        };
        let marks = |svg: &str| svg.lines().filter_map(|line| mark(&line)).count();
        for names in [&["a bar"][..], &["first", "second", "third"]] {
            let svg = bars(&names.iter().map(|name| bar(name)).collect::<Vec<_>>(), &[RED, BLUE], "us").unwrap();
            assert_eq!((svg.matches("<rect").count(), marks(&svg)), (2 * names.len(), names.len()), "{svg}");
            assert!(names.iter().all(|name| svg.contains(name)) && !svg.contains("height=\"0\""));
        }
    }
}
