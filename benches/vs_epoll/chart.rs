//! The table as a picture: a bar from 1, where both sides are equal, to the ratio, and a whisker
//! from the 10th to the 90th percentile. The scale is logarithmic, so that twice as fast is as long
//! as half as fast. What one would use instead of this crate is shown, and what is timed; limits, our
//! own other backend, what is counted, and what a peer could not do the same way (to spin), are in the
//! table.

use crate::report::{Row, Unit};
use std::fmt::Write as _;

const LINE: f64 = 16.0;
const TOP: f64 = 56.0;
/// Where the bars' area begins and how wide it is.
const LEFT: f64 = 330.0;
const WIDTH: f64 = 520.0;
/// Room for the figure behind a bar.
const RIGHT: f64 = 70.0;
/// What the scale shows. A bar that is longer ends there.
const LEAST: f64 = 0.25;
const MOST: f64 = 64.0;

/// Who is not shown.
const ASIDE: [&str; 4] = [
    "bare ring",
    "bare ring, lagged head",
    "own, movable",
    "own epoll backend",
];

const BETTER: &str = "#2f7d5b";
const WORSE: &str = "#b5493a";
const INK: &str = "#24292f";
const FAINT: &str = "#8b949e";
const PAPER: &str = "#ffffff";

pub(crate) fn svg<'a>(rows: impl Iterator<Item = &'a Row>, machine: &str) -> String {
    let shown = |row: &&Row| {
        row.unit == Unit::Nanoseconds
            && !ASIDE.contains(&row.peer)
            && !row.workload.contains("/spin")
    };
    let rows: Vec<&Row> = rows.filter(shown).collect();
    let width = LEFT + WIDTH + RIGHT;
    let bottom = TOP + LINE * rows.len() as f64;
    let height = bottom + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"11\" \
         fill=\"{INK}\">\n<rect width=\"100%\" height=\"100%\" fill=\"{PAPER}\"/>\n"
    );
    text(
        &mut svg,
        (10.0, 20.0),
        "font-size=\"15\" font-weight=\"600\"",
        "uring-reactor against its peers: how many times as fast",
    );
    text(
        &mut svg,
        (10.0, 38.0),
        &format!("fill=\"{FAINT}\""),
        machine,
    );
    grid(&mut svg, bottom);
    let mut previous = "";
    for (index, row) in rows.iter().enumerate() {
        let y = TOP + LINE * index as f64;
        if row.workload != previous {
            line(&mut svg, (0.0, y), (width, y), "stroke-opacity=\"0.15\"");
            text(&mut svg, (10.0, y + 12.0), "", &row.workload);
        }
        previous = &row.workload;
        bar(&mut svg, row, y);
    }
    svg.push_str("</svg>\n");
    svg
}

fn grid(svg: &mut String, bottom: f64) {
    let mut mark = LEAST;
    while mark <= MOST {
        let x = x_of(mark);
        let style = if mark == 1.0 {
            "stroke-opacity=\"0.8\""
        } else {
            "stroke-opacity=\"0.12\""
        };
        line(svg, (x, TOP), (x, bottom), style);
        let style = format!("text-anchor=\"middle\" fill=\"{FAINT}\"");
        text(svg, (x, bottom + 16.0), &style, &format!("{mark}"));
        mark *= 2.0;
    }
}

fn bar(svg: &mut String, row: &Row, y: f64) {
    let ratio = row.spread.median;
    let (one, end) = (x_of(1.0), x_of(ratio));
    let color = if ratio >= 1.0 { BETTER } else { WORSE };
    let style = format!("text-anchor=\"end\" fill=\"{FAINT}\"");
    text(svg, (LEFT - 8.0, y + 12.0), &style, row.peer);
    let _ = writeln!(
        svg,
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\"/>",
        one.min(end),
        y + 3.0,
        (end - one).abs(),
        LINE - 6.0
    );
    let middle = y + LINE / 2.0;
    let (from, to) = (x_of(row.spread.p10), x_of(row.spread.p90));
    line(svg, (from, middle), (to, middle), "stroke-width=\"1.5\"");
    let figure = format!("{ratio:.2}");
    text(svg, (one.max(end).max(to) + 5.0, y + 12.0), "", &figure);
}

fn x_of(ratio: f64) -> f64 {
    let position = (ratio.clamp(LEAST, MOST) / LEAST).log2();
    LEFT + WIDTH * position / (MOST / LEAST).log2()
}

fn text(svg: &mut String, (x, y): (f64, f64), style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{INK}\" {style}/>",
        from.0, from.1, to.0, to.1
    );
}
