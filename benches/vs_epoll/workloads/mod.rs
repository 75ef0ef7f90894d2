//! What is measured: one file a family, and the list of all of them.

mod churn;
mod close;
mod crowd;
mod dispatch;
mod echo;
mod handoff;
mod idle;
mod memory;
mod pingpong;
mod registration;
mod syscalls;
mod tasks;
mod wake;

use crate::measure::Effort;
use crate::report::Row;

/// Told its name and what it may take.
type Run = dyn Fn(&str, &Effort) -> Vec<Row>;

/// A workload that can be asked for by name.
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Part of the short set.
    pub(crate) short: bool,
    run: Box<Run>,
}

impl Entry {
    fn new(
        name: impl Into<String>,
        short: bool,
        run: impl Fn(&str, &Effort) -> Vec<Row> + 'static,
    ) -> Entry {
        Entry {
            name: name.into(),
            short,
            run: Box::new(run),
        }
    }

    pub(crate) fn run(&self, effort: &Effort) -> Vec<Row> {
        (self.run)(&self.name, effort)
    }
}

/// Everything, in the order of the table.
pub(crate) fn all() -> Vec<Entry> {
    [
        dispatch::entries(),
        crowd::entries(),
        registration::entries(),
        close::entries(),
        handoff::entries(),
        wake::entries(),
        idle::entries(),
        echo::entries(),
        pingpong::entries(),
        churn::entries(),
        tasks::entries(),
        memory::entries(),
        syscalls::entries(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
