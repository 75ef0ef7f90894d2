//! The end of N descriptors between two turns: deregistered and closed.
//!
//! Each side does it in the way that its documentation asks for, and the fastest of those: ours
//! hands the descriptors over, mio and polling deregister and close, bare epoll only closes.

use super::Entry;
use crate::measure::{Contest, Side, timed};
use crate::peers::{Make, Peer, Want, Watcher, Workload};
use crate::system::event_fds;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

const PEERS: [Peer; 5] = [
    Peer::Epoll,
    Peer::Mio,
    Peer::Polling,
    Peer::Ring,
    Peer::OursOnEpoll,
];

pub(super) fn entries() -> Vec<Entry> {
    let entries = [1, 64, 512].map(|count| {
        Entry::new(
            format!("close/{count}"),
            count != 512,
            move |name, effort| {
                let contest = Contest {
                    workload: name,
                    operations: count,
                    peers: &PEERS,
                    descriptors: u64::from(count),
                };
                contest.run(effort, |peer| peer.side(&Closing { count }))
            },
        )
    });
    entries.into()
}

struct Closing {
    count: u32,
}

impl Workload for Closing {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        Box::new(ClosingSide {
            watcher: watcher(),
            count: self.count as usize,
            numbers: Vec::new(),
        })
    }
}

struct ClosingSide<W> {
    watcher: W,
    count: usize,
    numbers: Vec<RawFd>,
}

impl<W: Watcher> Side for ClosingSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            let fds = event_fds(self.count);
            self.numbers.clear();
            for (key, fd) in fds.iter().enumerate() {
                self.watcher.add(key, fd.as_fd(), Want::Read);
                self.numbers.push(fd.as_raw_fd());
            }
            self.watcher.settle();
            timed(&mut total, || {
                for (key, fd) in fds.into_iter().enumerate() {
                    self.watcher.close(key, fd);
                }
                self.watcher.settle();
            });
            assert!(self.numbers.iter().all(|&fd| is_closed(fd)), "all closed");
        }
        total
    }
}

fn is_closed(fd: RawFd) -> bool {
    // SAFETY: asks whether the number is in use. Nothing is done to whatever it may name.
    unsafe { libc::fcntl(fd, libc::F_GETFD) == -1 }
}
