//! The table, and the same as JSON.

use crate::measure::Spread;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// What `ours` and `theirs` of a row are counted in. More is worse with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Nanoseconds,
    Bytes,
    SystemCalls,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Nanoseconds => "ns",
            Unit::Bytes => "B",
            Unit::SystemCalls => "calls",
        }
    }
}

/// One line: ours against one peer.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) peer: &'static str,
    /// Theirs by ours, round by round: above 1 we are better.
    pub(crate) spread: Spread,
    /// For one operation.
    pub(crate) ours: f64,
    pub(crate) theirs: f64,
    /// Ours by the limit: 1 is as good as it gets.
    pub(crate) of_limit: Option<f64>,
    pub(crate) unit: Unit,
}

const HEADINGS: [&str; 9] = [
    "workload",
    "peer",
    "ratio",
    "p10",
    "p90",
    "ours",
    "peer's",
    "unit",
    "ours/limit",
];

/// As a table in Markdown, aligned so that it can be read as it is.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            row.workload.clone(),
            row.peer.to_owned(),
            format!("{:.2}", row.spread.median),
            format!("{:.2}", row.spread.p10),
            format!("{:.2}", row.spread.p90),
            figure(row.ours),
            figure(row.theirs),
            row.unit.name().to_owned(),
            row.of_limit
                .map_or(String::new(), |limit| format!("{limit:.2}")),
        ]
    }));
    let widths: [usize; 9] = std::array::from_fn(|column| {
        let cells = lines.iter().map(|line| line[column].len());
        cells.max().unwrap_or_default()
    });
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let cell = if is_text(column) {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            };
            let _ = write!(text, "| {cell} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.into_iter().enumerate() {
                let rule = "-".repeat(width - 1);
                let (left, right) = if is_text(column) {
                    ("-", "")
                } else {
                    ("", ":")
                };
                let _ = write!(text, "| {left}{rule}{right} ");
            }
            text.push_str("|\n");
        }
    }
    text
}

fn is_text(column: usize) -> bool {
    matches!(column, 0 | 1 | 7)
}

/// Three digits that mean something.
fn figure(value: f64) -> String {
    let decimals = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// A list of objects. For workloads that count something else than time, `ours_ns` and `peer_ns` are
/// in the unit that the table shows.
pub(crate) fn json(rows: &[Row]) -> String {
    // Names are made of letters, digits and punctuation that needs no escaping.
    let objects: Vec<String> = rows
        .iter()
        .map(|row| {
            format!(
                "  {{\"workload\": \"{}\", \"peer\": \"{}\", \"ratio\": {:.4}, \"p10\": {:.4}, \
                 \"p90\": {:.4}, \"ours_ns\": {:.3}, \"peer_ns\": {:.3}}}",
                row.workload,
                row.peer,
                row.spread.median,
                row.spread.p10,
                row.spread.p90,
                row.ours,
                row.theirs
            )
        })
        .collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

/// Puts table and chart into the README, between two marks.
pub(crate) fn publish(table: &str, machine: &str, chart: &str) -> io::Result<()> {
    const BEGIN: &str = "<!-- figures: begin -->\n";
    const END: &str = "<!-- figures: end -->";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::write(root.join("benches/vs_epoll.svg"), chart)?;
    let path = root.join("README.md");
    let text = fs::read_to_string(&path)?;
    let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else {
        return Err(io::Error::other("the README has no place for figures"));
    };
    let readme = format!(
        "{}![Ratios to each peer, as bars](benches/vs_epoll.svg)\n\n\
         Measured on {machine}.\n\n\
         <details>\n<summary>All figures</summary>\n\n{table}\n</details>\n{}",
        &text[..begin + BEGIN.len()],
        &text[end..],
    );
    fs::write(path, readme)
}

/// Writes a file to cargo's target directory and returns where it is.
pub(crate) fn write(name: &str, text: &str) -> io::Result<PathBuf> {
    let path = target_directory()?.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

fn target_directory() -> io::Result<PathBuf> {
    if let Some(directory) = env::var_os("CARGO_TARGET_DIR") {
        return Ok(directory.into());
    }
    // This program is a few levels below. How many depends on whether a target was named, but cargo
    // tags the directory that it makes.
    let program = env::current_exe()?;
    let tagged = program
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").exists());
    tagged
        .or_else(|| program.ancestors().nth(3))
        .map(Path::to_path_buf)
        .ok_or_else(|| io::Error::other("no target directory above this program"))
}

/// What the figures were taken on: processors, kernel, and how busy it was.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |name| {
            name.trim_start_matches([' ', '\t', ':'])
        });
    let cores = crate::system::processors().len();
    let kernel = read("/proc/sys/kernel/osrelease");
    // What follows the version is the distributor's.
    let kernel = kernel.split('-').next().unwrap_or_default();
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    format!(
        "{cores} x {model}, Linux {}, load average {}",
        kernel.trim(),
        load.join(" ")
    )
}
