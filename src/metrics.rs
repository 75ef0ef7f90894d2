//! [`Metrics`]: the reactor's counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a reactor has done since it was made. From [`Reactor::metrics`](crate::Reactor::metrics)
/// or [`Handle::metrics`](crate::Handle::metrics).
///
/// All but `registered` only grow. A handle on another thread may see some of them a moment late;
/// the reactor's own thread sees them exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Turns taken.
    pub turns: u64,
    /// System calls that submit or wait: `io_uring_enter`, or `epoll_wait`, which a ring's reactor
    /// makes for what the ring cannot watch. The calls that set a ring up are not counted.
    pub enters: u64,
    /// Entries handed to the kernel for registrations: polls, cancels and closes; under epoll,
    /// calls of `epoll_ctl`.
    pub entries: u64,
    /// Completions that came back for registrations; under epoll, events.
    pub completions: u64,
    /// Events that were dispatched to a living registration.
    pub events: u64,
    /// Completions for which there was no registration any more.
    pub spurious: u64,
    /// Polls armed anew because the kernel had ended them.
    pub rearms: u64,
    /// Times that a completion queue was found to have overflowed.
    pub overflows: u64,
    /// Calls of [`Handle::wake`](crate::Handle::wake).
    pub wakes: u64,
    /// Rings, or epoll instances, that were replaced: after a move to another thread, after a
    /// fork, or beyond repair.
    pub rebuilds: u64,
    /// Living registrations, as of now. One that the kernel has refused is none.
    pub registered: u64,
}

/// A counter with one writer, unless it says `shared`.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// For the only thread that writes this counter: two plain moves instead of a locked one.
    pub(crate) fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Loom does not see these: they order nothing and nothing depends on them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) turns: Counter,
    pub(crate) enters: Counter,
    pub(crate) entries: Counter,
    pub(crate) completions: Counter,
    pub(crate) events: Counter,
    pub(crate) spurious: Counter,
    pub(crate) rearms: Counter,
    pub(crate) overflows: Counter,
    pub(crate) wakes: Counter,
    pub(crate) rebuilds: Counter,
}

impl Counters {
    pub(crate) fn snapshot(&self, registered: usize) -> Metrics {
        Metrics {
            turns: self.turns.get(),
            enters: self.enters.get(),
            entries: self.entries.get(),
            completions: self.completions.get(),
            events: self.events.get(),
            spurious: self.spurious.get(),
            rearms: self.rearms.get(),
            overflows: self.overflows.get(),
            wakes: self.wakes.get(),
            rebuilds: self.rebuilds.get(),
            registered: registered as u64,
        }
    }
}
