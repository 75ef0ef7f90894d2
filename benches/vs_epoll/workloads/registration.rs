//! N descriptors are registered, a turn passes, they are deregistered, a turn passes.
//!
//! Everything is timed, the turns as well: on a ring they do the work.

use super::Entry;
use super::dispatch::collect;
use crate::measure::{Contest, Side, timed};
use crate::peers::{Make, Peer, Want, Watcher, Workload};
use crate::system::Signals;
use std::time::Duration;

const PEERS: [Peer; 5] = [
    Peer::Epoll,
    Peer::Mio,
    Peer::Polling,
    Peer::Ring,
    Peer::OursOnEpoll,
];

pub(super) fn entries() -> Vec<Entry> {
    let entries = [1, 8, 64, 512, 4096].map(|count| {
        let short = matches!(count, 1 | 64 | 512);
        Entry::new(
            format!("registration/{count}"),
            short,
            move |name, effort| {
                let contest = Contest {
                    workload: name,
                    operations: count,
                    peers: &PEERS,
                    descriptors: u64::from(count),
                };
                contest.run(effort, |peer| peer.side(&Registering { count }))
            },
        )
    });
    entries.into()
}

struct Registering {
    count: u32,
}

impl Workload for Registering {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut side = ComeAndGo {
            watcher: watcher(),
            signals: Signals::event_fds(self.count as usize),
        };
        side.check();
        Box::new(side)
    }
}

struct ComeAndGo<W> {
    watcher: W,
    signals: Signals,
}

impl<W: Watcher> ComeAndGo<W> {
    fn come(&mut self) {
        for key in 0..self.signals.len() {
            self.watcher.add(key, self.signals.get(key), Want::Read);
        }
        self.watcher.look();
    }

    fn go(&mut self) {
        for key in 0..self.signals.len() {
            self.watcher.remove(key, self.signals.get(key));
        }
        self.watcher.look();
    }

    /// Who is registered is heard, and who is not is not. The descriptors are made anew, for these
    /// stay readable.
    fn check(&mut self) {
        self.come();
        for key in 0..self.signals.len() {
            self.signals.signal(key);
        }
        collect(&mut self.watcher, self.signals.len());
        self.go();
        self.watcher.settle();
        for key in 0..self.signals.len() {
            self.signals.signal(key);
        }
        assert_eq!(self.watcher.look(), 0, "nobody is registered any more");
        let count = self.signals.len();
        // The old ones go first: there may be no room for both.
        self.signals = Signals::event_fds(0);
        self.signals = Signals::event_fds(count);
    }
}

impl<W: Watcher> Side for ComeAndGo<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        timed(&mut total, || {
            for _ in 0..iterations {
                self.come();
                self.go();
            }
        });
        total
    }
}
