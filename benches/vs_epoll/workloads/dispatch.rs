//! From "the kernel knows" to "the task knows": all of N descriptors are ready, and one round of
//! waiting brings them home.
//!
//! Timed is the waiting, until all events have been seen. Ours has then set the bits of every
//! registration and called its waker; the peers have gone through a list. Making the descriptors
//! ready is not timed, and neither is the poll with which a task leaves its waker again, but for
//! `dispatch/polled/N`.

use super::Entry;
use crate::measure::{Contest, Effort, Side, timed};
use crate::peers::{Make, Peer, Want, Watcher, Workload};
use crate::report::Row;
use crate::system::Signals;
use std::time::Duration;

const PEERS: [Peer; 7] = [
    Peer::Epoll,
    Peer::Mio,
    Peer::Polling,
    Peer::Ring,
    Peer::LaggedRing,
    Peer::OursMovable,
    Peer::OursOnEpoll,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    EventFd,
    Tcp,
    /// Eventfds, and the polls of the tasks count.
    Polled,
}

pub(super) fn entries() -> Vec<Entry> {
    let sets: [(Kind, &str, &[u32], &[u32]); 3] = [
        (
            Kind::EventFd,
            "eventfd",
            &[1, 16, 256, 1024, 4096],
            &[1, 16, 256],
        ),
        (Kind::Tcp, "tcp", &[1, 16, 256, 1024], &[1, 256]),
        (Kind::Polled, "polled", &[256], &[256]),
    ];
    let entries = sets.into_iter().flat_map(|(kind, name, counts, short)| {
        counts.iter().map(move |&count| {
            let name = format!("dispatch/{name}/{count}");
            Entry::new(name, short.contains(&count), move |name, effort| {
                run(name, kind, count, effort)
            })
        })
    });
    entries.collect()
}

fn run(name: &str, kind: Kind, count: u32, effort: &Effort) -> Vec<Row> {
    let contest = Contest {
        workload: name,
        operations: count,
        peers: &PEERS,
        descriptors: u64::from(count) * if kind == Kind::Tcp { 2 } else { 1 },
    };
    contest.run(effort, |peer| peer.side(&Dispatch { kind, count }))
}

struct Dispatch {
    kind: Kind,
    count: u32,
}

impl Workload for Dispatch {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut watcher = watcher();
        let count = self.count as usize;
        let (signals, want) = match self.kind {
            Kind::EventFd | Kind::Polled => (Signals::event_fds(count), Want::Read),
            Kind::Tcp => (Signals::tcp(count), Want::Both),
        };
        for key in 0..count {
            watcher.add(key, signals.get(key), want);
        }
        // A socket reports that it can be written to.
        while watcher.look() > 0 {}
        for key in 0..count {
            watcher.await_again(key, Want::Read);
        }
        Box::new(Ready {
            watcher,
            signals,
            polls_count: self.kind == Kind::Polled,
        })
    }
}

struct Ready<W> {
    watcher: W,
    signals: Signals,
    polls_count: bool,
}

impl<W: Watcher> Side for Ready<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let Ready {
            watcher,
            signals,
            polls_count,
        } = self;
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            for key in 0..signals.len() {
                signals.signal(key);
            }
            let woken = watcher.woken();
            timed(&mut total, || collect(watcher, signals.len()));
            if let (Some(before), Some(after)) = (woken, watcher.woken()) {
                assert_eq!(
                    after - before,
                    signals.len(),
                    "every waker was called, once"
                );
            }
            for key in 0..signals.len() {
                signals.drain(key);
            }
            let poll_all = || {
                for key in 0..signals.len() {
                    watcher.await_again(key, Want::Read);
                }
            };
            if *polls_count {
                timed(&mut total, poll_all);
            } else {
                let mut poll_all = poll_all;
                poll_all();
            }
        }
        assert_eq!(watcher.look(), 0, "no event came twice");
        total
    }
}

/// Waits until so many events have been seen.
pub(super) fn collect<W: Watcher>(watcher: &mut W, count: usize) {
    let mut seen = 0;
    while seen < count {
        seen += watcher.wait();
    }
    assert_eq!(seen, count, "every descriptor is reported once");
}
