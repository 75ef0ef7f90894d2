//! Few among many: what it costs to have thousands of descriptors registered that are silent.
//!
//! - `dispatch/sparse/K-of-10000`: K are ready.
//! - `busy/M`: a turn of a busy server. 500 of M are ready, and meanwhile 16 connections come and
//!   16 go, of those that came a few turns ago.
//! - `registration/among/M/ORDER`: 64 come and 64 go between two turns. Which ones go matters to a
//!   ring, which looks for a poll among all younger ones of its hash bucket.
//!
//! There are not enough descriptors for each side to have its own, so all sides of a workload watch
//! the same ones, and each throws away what happened while others were measured. Where M is larger
//! than the limit of descriptors, ours has several registrations on those that stay silent; epoll
//! can only have as many as there are descriptors.

use super::Entry;
use super::dispatch::collect;
use crate::measure::{Contest, Effort, Side, timed};
use crate::peers::{Peer, Want, Watcher, Workload};
use crate::report::Row;
use crate::system::{Dice, descriptors_to_spare, event_fds, signal};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

const PEERS: [Peer; 5] = [
    Peer::Epoll,
    Peer::Mio,
    Peer::Polling,
    Peer::Ring,
    Peer::OursOnEpoll,
];
/// A sparse harvest is one where the lagged head could matter.
const SPARSE_PEERS: [Peer; 6] = [
    Peer::Epoll,
    Peer::Mio,
    Peer::Polling,
    Peer::Ring,
    Peer::LaggedRing,
    Peer::OursOnEpoll,
];
/// Events of a busy turn.
const EVENTS: usize = 500;
/// Registrations, and deregistrations, of a busy turn.
const COMERS: usize = 16;
/// Turns that a connection of a busy server lives.
const LIFE: usize = 4;
/// Registrations between two turns among many.
const BATCH: usize = 64;

#[derive(Clone, Copy, Debug)]
enum Leaving {
    Youngest,
    Oldest,
    Random,
}

pub(super) fn entries() -> Vec<Entry> {
    let sparse = [1, 16, 128].map(|ready| {
        let name = format!("dispatch/sparse/{ready}-of-10000");
        Entry::new(name, true, move |name, effort| sparse(name, ready, effort))
    });
    let busy = [10_000, 100_000].map(|size| {
        Entry::new(format!("busy/{size}"), true, move |name, effort| {
            busy(name, size, effort)
        })
    });
    let orders = [
        (Leaving::Youngest, "youngest"),
        (Leaving::Oldest, "oldest"),
        (Leaving::Random, "random"),
    ];
    let among = [1_000, 10_000, 50_000, 100_000]
        .into_iter()
        .flat_map(|size| {
            orders.map(|(leaving, order)| {
                let name = format!("registration/among/{size}/{order}");
                let short = matches!(size, 10_000 | 100_000);
                Entry::new(name, short, move |name, effort| {
                    among(name, size, leaving, effort)
                })
            })
        });
    sparse.into_iter().chain(busy).chain(among).collect()
}

fn sparse(name: &str, ready: usize, effort: &Effort) -> Vec<Row> {
    let workload = Sparse {
        crowd: Crowd::new(10_000, 10_000, 0),
        ready,
    };
    contest(name, ready, &SPARSE_PEERS).run(effort, |peer| peer.side(&workload))
}

fn busy(name: &str, size: usize, effort: &Effort) -> Vec<Row> {
    let workload = Busy {
        crowd: Crowd::new(size, 5_000, COMERS * (LIFE + 1)),
    };
    contest(name, 1, &PEERS).run(effort, |peer| peer.side(&workload))
}

fn among(name: &str, size: usize, leaving: Leaving, effort: &Effort) -> Vec<Row> {
    let workload = Among {
        crowd: Crowd::new(size, 0, BATCH),
        leaving,
    };
    contest(name, BATCH, &PEERS).run(effort, |peer| peer.side(&workload))
}

fn contest<'a>(name: &'a str, operations: usize, peers: &'a [Peer]) -> Contest<'a, Peer> {
    Contest {
        workload: name,
        operations: operations as u32,
        peers,
        // They are shared.
        descriptors: 0,
    }
}

/// The descriptors that all sides watch.
#[derive(Clone)]
struct Crowd {
    fds: Rc<Vec<OwnedFd>>,
    /// How many registrations there are to be, if there are no limits.
    size: usize,
    /// The first so many descriptors have one registration each, and may become ready.
    active: usize,
    /// Room for those that come before others have gone.
    spare: usize,
}

impl Crowd {
    fn new(size: usize, active: usize, spare: usize) -> Crowd {
        let limit = descriptors_to_spare() as usize;
        let count = (size + spare).min(limit);
        assert!(
            count >= active + spare,
            "the limit of descriptors is too low"
        );
        Crowd {
            fds: Rc::new(event_fds(count)),
            size,
            active,
            spare,
        }
    }

    /// Registers everybody. Returns the keys in the order of their registration, and those that are
    /// still free.
    fn join<W: Watcher>(&self, watcher: &mut W) -> (VecDeque<usize>, Vec<usize>) {
        let seats = if watcher.shares_descriptors() {
            self.size + self.spare
        } else {
            self.fds.len()
        };
        let members = seats - self.spare;
        for key in 0..members {
            watcher.add(key, self.fd(key).as_fd(), Want::Read);
            if key % 1000 == 0 {
                watcher.look();
            }
        }
        watcher.settle();
        for key in 0..self.active {
            watcher.await_again(key, Want::Read);
        }
        ((0..members).collect(), (members..seats).rev().collect())
    }

    fn fd(&self, key: usize) -> &OwnedFd {
        match self.fds.get(key) {
            Some(fd) => fd,
            // One more on a descriptor that is never signalled.
            None => {
                let silent = self.fds.len() - self.active;
                &self.fds[self.active + key % silent]
            }
        }
    }

    /// Throws away what happened while others were measured.
    fn forget<W: Watcher>(&self, watcher: &mut W) {
        if watcher.look() > 0 {
            while watcher.look() > 0 {}
            for key in 0..self.active {
                watcher.await_again(key, Want::Read);
            }
        }
    }

    /// Makes so many different descriptors ready, and returns their keys.
    fn signal(&self, count: usize, dice: &mut Dice, chosen: &mut Vec<usize>) {
        chosen.clear();
        // One from each of `count` equal parts: different ones without a search.
        let part = self.active / count;
        for index in 0..count {
            let key = index * part + dice.below(part);
            signal(&self.fds[key]);
            chosen.push(key);
        }
    }
}

struct Sparse {
    crowd: Crowd,
    ready: usize,
}

impl Workload for Sparse {
    fn side<W: Watcher>(&self, mut watcher: W) -> Box<dyn Side> {
        self.crowd.join(&mut watcher);
        Box::new(SparseSide {
            watcher,
            crowd: self.crowd.clone(),
            ready: self.ready,
            dice: Dice::new(),
            chosen: Vec::new(),
        })
    }
}

struct SparseSide<W> {
    watcher: W,
    crowd: Crowd,
    ready: usize,
    dice: Dice,
    chosen: Vec<usize>,
}

impl<W: Watcher> Side for SparseSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        self.crowd.forget(&mut self.watcher);
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            self.crowd
                .signal(self.ready, &mut self.dice, &mut self.chosen);
            timed(&mut total, || collect(&mut self.watcher, self.ready));
            for &key in &self.chosen {
                self.watcher.await_again(key, Want::Read);
            }
        }
        total
    }
}

struct Busy {
    crowd: Crowd,
}

impl Workload for Busy {
    fn side<W: Watcher>(&self, mut watcher: W) -> Box<dyn Side> {
        let (_, free) = self.crowd.join(&mut watcher);
        Box::new(BusySide {
            watcher,
            crowd: self.crowd.clone(),
            young: VecDeque::new(),
            free,
            dice: Dice::new(),
            chosen: Vec::new(),
        })
    }
}

struct BusySide<W> {
    watcher: W,
    crowd: Crowd,
    young: VecDeque<usize>,
    free: Vec<usize>,
    dice: Dice,
    chosen: Vec<usize>,
}

impl<W: Watcher> BusySide<W> {
    fn turn(&mut self) {
        collect(&mut self.watcher, EVENTS);
        for _ in 0..COMERS {
            let key = self.free.pop().expect("as many go as come");
            self.watcher
                .add(key, self.crowd.fd(key).as_fd(), Want::Read);
            self.young.push_back(key);
        }
        while self.young.len() > COMERS * LIFE {
            let Some(key) = self.young.pop_front() else {
                break;
            };
            self.watcher.remove(key, self.crowd.fd(key).as_fd());
            self.free.push(key);
        }
    }
}

impl<W: Watcher> Side for BusySide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        self.crowd.forget(&mut self.watcher);
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            self.crowd.signal(EVENTS, &mut self.dice, &mut self.chosen);
            timed(&mut total, || self.turn());
            for &key in &self.chosen {
                self.watcher.await_again(key, Want::Read);
            }
        }
        total
    }
}

struct Among {
    crowd: Crowd,
    leaving: Leaving,
}

impl Workload for Among {
    fn side<W: Watcher>(&self, mut watcher: W) -> Box<dyn Side> {
        let (members, free) = self.crowd.join(&mut watcher);
        Box::new(AmongSide {
            watcher,
            crowd: self.crowd.clone(),
            leaving: self.leaving,
            members,
            free,
            dice: Dice::new(),
        })
    }
}

struct AmongSide<W> {
    watcher: W,
    crowd: Crowd,
    leaving: Leaving,
    /// Oldest first, unless members leave at random.
    members: VecDeque<usize>,
    free: Vec<usize>,
    dice: Dice,
}

impl<W: Watcher> AmongSide<W> {
    fn leave(&mut self) -> usize {
        let member = match self.leaving {
            Leaving::Youngest => self.members.pop_back(),
            Leaving::Oldest => self.members.pop_front(),
            Leaving::Random => {
                let index = self.dice.below(self.members.len());
                self.members.swap_remove_back(index)
            }
        };
        member.expect("there are more than go")
    }
}

impl<W: Watcher> Side for AmongSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            timed(&mut total, || {
                for _ in 0..BATCH {
                    let key = self.free.pop().expect("as many go as come");
                    self.watcher
                        .add(key, self.crowd.fd(key).as_fd(), Want::Read);
                    self.members.push_back(key);
                }
                self.watcher.look();
                for _ in 0..BATCH {
                    let key = self.leave();
                    self.watcher.remove(key, self.crowd.fd(key).as_fd());
                    self.free.push(key);
                }
                self.watcher.look();
            });
        }
        total
    }
}
