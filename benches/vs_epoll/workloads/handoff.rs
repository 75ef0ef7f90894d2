//! Registering from another thread than the one that waits: what the caller pays.
//!
//! - `handoff/running`: the other thread does not sleep, as on a busy server.
//! - `handoff/parked`: it sleeps, one registration at a time.
//! - `handoff/parked/both`: the same for reading and writing. The descriptor can be written to at once,
//!   so that the thread has to wake.
//! - `handoff/parked-N`: it sleeps, and N come in a row.
//! - `handoff/first-event`: it sleeps; from the call until it has seen the event of a descriptor
//!   that was ready all along.
//!
//! All but `.../both` register for reading alone, for which a thread that sleeps need not be woken
//! before there is something to read. Figures are for one registration. Deregistering is not timed but
//! for `.../remove`, where it is the other way round.

use super::Entry;
use crate::hosted::{Hosted, Mode, spin_until};
use crate::measure::{Contest, Effort, Side, timed};
use crate::peers::{Make, Peer, Remote, Shared, SharedWorkload, Want};
use crate::report::Row;
use crate::system::Signals;
use std::time::Duration;

const PEERS: [Peer; 4] = [Peer::Epoll, Peer::Mio, Peer::Polling, Peer::OursOnEpoll];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timed {
    Add,
    Remove,
    FirstEvent,
}

#[derive(Clone, Copy)]
struct Handoff {
    mode: Mode,
    burst: usize,
    timed: Timed,
    want: Want,
}

pub(super) fn entries() -> Vec<Entry> {
    use Mode::{Parked, Running};
    use Timed::{Add, FirstEvent, Remove};
    use Want::{Both, Read};

    let variants = [
        ("handoff/running", true, Running, 64, Add, Read),
        ("handoff/running/remove", false, Running, 64, Remove, Read),
        ("handoff/parked", true, Parked, 1, Add, Read),
        ("handoff/parked/both", true, Parked, 1, Add, Both),
        ("handoff/parked/remove", false, Parked, 1, Remove, Read),
        ("handoff/parked-2", false, Parked, 2, Add, Read),
        ("handoff/parked-4", false, Parked, 4, Add, Read),
        ("handoff/parked-8", false, Parked, 8, Add, Read),
        ("handoff/parked-16", true, Parked, 16, Add, Read),
        ("handoff/parked-32", false, Parked, 32, Add, Read),
        ("handoff/parked-16/remove", false, Parked, 16, Remove, Read),
        ("handoff/first-event", true, Parked, 1, FirstEvent, Read),
    ];
    let entries = variants.map(|(name, short, mode, burst, timed, want)| {
        let workload = Handoff {
            mode,
            burst,
            timed,
            want,
        };
        Entry::new(name, short, move |name, effort| run(name, workload, effort))
    });
    entries.into()
}

fn run(name: &str, workload: Handoff, effort: &Effort) -> Vec<Row> {
    let contest = Contest {
        workload: name,
        operations: workload.burst as u32,
        peers: &PEERS,
        descriptors: workload.burst as u64,
    };
    contest.run(effort, |peer| peer.shared_side(&workload))
}

impl SharedWorkload for Handoff {
    fn side<W: Shared>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut side = HandoffSide {
            host: Hosted::new(watcher, self.mode),
            signals: Signals::event_fds(self.burst),
            workload: *self,
        };
        side.check();
        Box::new(side)
    }
}

struct HandoffSide<W: Shared> {
    host: Hosted<W>,
    signals: Signals,
    workload: Handoff,
}

impl<W: Shared> HandoffSide<W> {
    /// A parked one is to be found parked.
    fn await_mode(&self) {
        if self.workload.mode == Mode::Parked {
            self.host.view.await_sleep();
        }
    }

    fn add(&mut self) {
        for key in 0..self.signals.len() {
            let want = self.workload.want;
            self.host.remote.add(key, self.signals.get(key), want);
        }
    }

    fn remove(&mut self) {
        for key in 0..self.signals.len() {
            self.host.remote.remove(key, self.signals.get(key));
        }
    }

    /// What was registered from here is heard there. The descriptors stay readable, which is what
    /// `first-event` wants; for the others they are made anew.
    fn check(&mut self) {
        self.host.start();
        self.add();
        let before = self.host.events();
        for key in 0..self.signals.len() {
            self.signals.signal(key);
        }
        spin_until(|| self.host.events() - before >= self.signals.len());
        self.remove();
        self.catch_up();
        if self.workload.timed != Timed::FirstEvent {
            self.signals = Signals::event_fds(self.workload.burst);
        }
        self.host.pause();
    }

    /// The other thread has seen whatever was handed to it: a wait that began after that is over.
    fn catch_up(&self) {
        for _ in 0..2 {
            let before = self.host.waits();
            self.host.remote.wake();
            self.host.await_waits(before + 1);
        }
    }
}

impl<W: Shared> Side for HandoffSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        self.host.start();
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            self.await_mode();
            match self.workload.timed {
                Timed::Add => {
                    timed(&mut total, || self.add());
                    self.catch_up();
                    self.remove();
                }
                Timed::Remove => {
                    self.add();
                    self.catch_up();
                    self.await_mode();
                    timed(&mut total, || self.remove());
                }
                Timed::FirstEvent => {
                    let before = self.host.events();
                    timed(&mut total, || {
                        self.add();
                        spin_until(|| self.host.events() > before);
                    });
                    self.remove();
                }
            }
            self.catch_up();
        }
        self.host.pause();
        total
    }
}
