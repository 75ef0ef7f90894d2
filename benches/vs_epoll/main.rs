//! What a readiness reactor on io_uring is worth: every workload against what one would use instead.
//!
//! ```text
//! cargo bench --bench vs_epoll                    the short set, in under five minutes
//! cargo bench --bench vs_epoll -- --full          everything
//! cargo bench --bench vs_epoll -- echo idle       workloads that have one of these names or, where none
//!                                                 has it, whose names contain it
//! cargo bench --bench vs_epoll -- --list          the names; those of the short set have a star
//! cargo bench --bench vs_epoll -- --readme        and the figures go to the README; also with --full
//! cargo bench --bench vs_epoll -- --smoke ...     too short to mean anything: does it work?
//! cargo bench --bench vs_epoll -- --alone NAME    our side only, for a profiler
//! ```
//!
//! A ratio is the peer's time by ours, so above 1 we are faster. Each is the median of the ratios of
//! rounds that both sides took one after the other, with the 10th and 90th percentile (`measure`).
//! Every side does the same work, and what it did is counted and checked. `ours/limit` is ours by
//! the best bare ring, which has no state for a descriptor and no wakers: what this crate costs.
//!
//! The table comes last. The same is in cargo's target directory as `vs_epoll.json`, with the machine
//! as `vs_epoll.md`, and as a chart in `vs_epoll.svg`: with `--full` a chart of the short set.
//!
//! Run by anything but `cargo bench`, as by `cargo test --benches`, it only sees whether everything
//! works, unless it is told otherwise.

mod allocator;
mod chart;
mod hosted;
mod load;
mod measure;
mod peers;
mod report;
mod runtimes;
mod server;
mod services;
mod system;
mod workloads;

use measure::Effort;
use report::Row;
use std::process::ExitCode;
use std::time::Instant;
use std::{env, io};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// Nothing takes that long. An event that does not come would otherwise be waited for for ever.
const LONGEST_WORKLOAD: u32 = 300;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let Arguments {
        full,
        smoke,
        alone,
        list,
        readme,
        filters,
    } = Arguments::parse()?;
    // A workload that is asked for by name is run whether it belongs to the short set or not.
    let all = full || !filters.is_empty();
    let entries = workloads::all();
    let wanted = |name: &str| {
        let is_name = |filter: &String| entries.iter().any(|entry| entry.name == *filter);
        let asks = |filter: &String| name == filter || !is_name(filter) && name.contains(filter);
        filters.is_empty() || filters.iter().any(asks)
    };
    let entries = entries.iter().filter(|entry| wanted(&entry.name));
    if list {
        for entry in entries {
            println!("{} {}", if entry.short { '*' } else { ' ' }, entry.name);
        }
        return Ok(());
    }
    let entries: Vec<_> = entries.filter(|entry| all || entry.short).collect();
    if entries.is_empty() {
        return Err(io::Error::other("no workload has such a name; see --list"));
    }
    let effort = match () {
        () if alone => Effort::ALONE,
        () if smoke => Effort::SMOKE,
        () if full => Effort::FULL,
        () => Effort::SHORT,
    };

    system::raise_descriptor_limit();
    system::pin(system::Place::Measuring);
    println!("before: {}", report::machine());
    let begun = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    let mut charted = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        // SAFETY: takes no pointer. Without a handler the signal ends the process.
        unsafe { libc::alarm(LONGEST_WORKLOAD) };
        let started = Instant::now();
        eprint!("[{:2}/{}] {:32} ", number + 1, entries.len(), entry.name);
        let new = entry.run(&effort);
        let ratios: Vec<String> = new
            .iter()
            .map(|row| format!("{} {:.2}", row.peer, row.spread.median))
            .collect();
        eprintln!(
            "{:4.1} s  {}",
            started.elapsed().as_secs_f64(),
            ratios.join(", ")
        );
        charted.extend(new.iter().map(|_| entry.short || !full));
        rows.extend(new);
    }
    // SAFETY: as above.
    unsafe { libc::alarm(0) };

    if alone {
        return Ok(());
    }
    let machine = report::machine();
    println!("after:  {machine}\n");
    let table = report::table(&rows);
    let shown = rows.iter().zip(charted).filter(|(_, charted)| *charted);
    let chart = chart::svg(shown.map(|(row, _)| row), &machine);
    print!("{table}");
    let markdown = format!("{machine}\n\n{table}");
    println!("\n{:.0} s; written:", begun.elapsed().as_secs_f64());
    for (name, text) in [
        ("vs_epoll.json", &report::json(&rows)),
        ("vs_epoll.md", &markdown),
        ("vs_epoll.svg", &chart),
    ] {
        println!("  {}", report::write(name, text)?.display());
    }
    if readme {
        report::publish(&table, &machine, &chart)?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Arguments {
    full: bool,
    smoke: bool,
    alone: bool,
    list: bool,
    readme: bool,
    filters: Vec<String>,
}

impl Arguments {
    fn parse() -> io::Result<Arguments> {
        let mut arguments = Arguments::default();
        let mut benchmark = false;
        for argument in env::args().skip(1) {
            match argument.as_str() {
                // `cargo bench` adds this.
                "--bench" => benchmark = true,
                "--full" => arguments.full = true,
                "--smoke" => arguments.smoke = true,
                "--alone" => arguments.alone = true,
                "--list" => arguments.list = true,
                "--readme" => arguments.readme = true,
                option if option.starts_with('-') => {
                    let usage = "cargo bench --bench vs_epoll -- [--full|--smoke|--alone] [--list] [--readme] [NAME]...";
                    return Err(io::Error::other(format!("{option}? usage: {usage}")));
                }
                _ => arguments.filters.push(argument),
            }
        }
        arguments.smoke |= !benchmark && !arguments.full;
        Ok(arguments)
    }
}
