//! A turn that may not sleep and finds nothing to do, with 64 descriptors registered.

use super::Entry;
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
const REGISTERED: usize = 64;

pub(super) fn entries() -> Vec<Entry> {
    vec![Entry::new("idle", true, |name, effort| {
        let contest = Contest {
            workload: name,
            operations: 1,
            peers: &PEERS,
            descriptors: REGISTERED as u64,
        };
        contest.run(effort, |peer| peer.side(&Idle))
    })]
}

struct Idle;

impl Workload for Idle {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut watcher = watcher();
        let signals = Signals::event_fds(REGISTERED);
        for key in 0..REGISTERED {
            watcher.add(key, signals.get(key), Want::Read);
        }
        watcher.settle();
        for key in 0..REGISTERED {
            watcher.await_again(key, Want::Read);
        }
        Box::new(IdleSide { watcher, signals })
    }
}

struct IdleSide<W> {
    watcher: W,
    signals: Signals,
}

impl<W: Watcher> Side for IdleSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        let mut seen = 0;
        timed(&mut total, || {
            for _ in 0..iterations {
                seen += self.watcher.look();
            }
        });
        assert_eq!(seen, 0, "nothing happens");
        self.signals.signal(0);
        assert_eq!(self.watcher.look(), 1, "but would have been seen");
        self.watcher.await_again(0, Want::Read);
        total
    }
}
