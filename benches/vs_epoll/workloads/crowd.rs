//! Few among many: what it costs to have thousands of descriptors registered that are silent.
//!
//! - `dispatch/sparse/K-of-10000`: K are ready.
//! - `busy/M`: a turn of a busy server. 500 of M are ready, and meanwhile 16 connections come and
//!   16 go, of those that came a few turns ago.
//! - `registration/among/M/ORDER`: 64 come and 64 go between two turns. Which ones go matters to a
//!   ring, which looks for a poll among all younger ones of its hash bucket.
//!
//! There are few descriptors for that many registrations. Those that may become ready belong to one
//! side alone, and are spread among the others. The silent rest is watched by both sides of a pair, and
//! where that is not enough ours has several registrations on each; epoll can only have as many as there
//! are descriptors.
//!
//! All are connected unix sockets, as a server with thousands of registrations has connections: a reactor
//! may keep them elsewhere than other files. Only those that become ready in `dispatch/sparse` are
//! eventfds, because there is no room for the other ends of so many.

use super::Entry;
use super::dispatch::collect;
use crate::measure::{Contender, Contest, Effort, PAIRS, Side, timed};
use crate::peers::{Make, Peer, Want, Watcher, Workload};
use crate::report::Row;
use crate::system::{Dice, Signals, descriptors_to_spare, sockets};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::thread;
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
/// Before a pair begins.
const PAUSE: Duration = Duration::from_millis(100);

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
    let workload = |crowd| Sparse { crowd, ready };
    let crowd = Crowd::new(10_000, Active::EventFds(9_000), 0);
    run(name, ready, &SPARSE_PEERS, effort, crowd.map(workload))
}

fn busy(name: &str, size: usize, effort: &Effort) -> Vec<Row> {
    let workload = |crowd| Busy { crowd };
    let crowd = Crowd::new(size, Active::Sockets(2_000), COMERS * (LIFE + 1));
    run(name, 1, &PEERS, effort, crowd.map(workload))
}

fn among(name: &str, size: usize, leaving: Leaving, effort: &Effort) -> Vec<Row> {
    let workload = |crowd| Among { crowd, leaving };
    let crowd = Crowd::new(size, Active::Sockets(0), BATCH);
    run(name, BATCH, &PEERS, effort, crowd.map(workload))
}

fn run<L: Workload>(
    name: &str,
    operations: usize,
    peers: &[Peer],
    effort: &Effort,
    workload: Option<L>,
) -> Vec<Row> {
    let Some(workload) = workload else {
        eprint!("left out: there are not enough descriptors. ");
        return Vec::new();
    };
    let contest = Contest {
        workload: name,
        operations: operations as u32,
        peers,
        descriptors: PAIRS,
    };
    contest.run(effort, |peer| {
        if peer == Peer::OURS {
            // The kernel may still be taking the last pair's polls down.
            thread::sleep(PAUSE);
        }
        peer.side(&workload)
    })
}

/// Registrations whose descriptors become ready.
#[derive(Clone, Copy)]
enum Active {
    EventFds(usize),
    Sockets(usize),
}

impl Active {
    fn count(self) -> usize {
        let (Active::EventFds(count) | Active::Sockets(count)) = self;
        count
    }

    /// How many descriptors they take.
    fn descriptors(self) -> usize {
        match self {
            Active::EventFds(count) => count,
            Active::Sockets(count) => 2 * count,
        }
    }

    fn make(self) -> Signals {
        match self {
            Active::EventFds(count) => Signals::event_fds(count),
            Active::Sockets(count) => Signals::unix(count),
        }
    }
}

/// The registrations of a side before it begins: how many, and on what.
#[derive(Clone)]
struct Crowd {
    /// How many there are to be, if there are no limits.
    size: usize,
    /// Those of them that have a descriptor that no other side has.
    active: Active,
    /// Room for those that come before others have gone.
    spare: usize,
    /// Descriptors of all others. Nothing ever happens to these.
    silent: Rc<Vec<OwnedFd>>,
}

impl Crowd {
    /// `None` if there are not enough descriptors.
    fn new(size: usize, active: Active, spare: usize) -> Option<Crowd> {
        let limit = descriptors_to_spare() as usize;
        let wanted = size + spare - active.count();
        // Two sides have active ones.
        let silent = wanted.min(limit.saturating_sub(2 * active.descriptors()));
        (silent > spare).then(|| Crowd {
            size,
            active,
            spare,
            silent: Rc::new(sockets(silent)),
        })
    }

    /// Registers everybody.
    fn join<W: Watcher>(&self, watcher: &mut W) -> Members {
        let seats = if watcher.shares_descriptors() {
            self.size + self.spare
        } else {
            self.active.count() + self.silent.len()
        };
        let count = seats - self.spare;
        let members = Members {
            active: self.active.make(),
            silent: Rc::clone(&self.silent),
            keys: (0..count).collect(),
            free: (count..seats).rev().collect(),
            dice: Dice::new(),
            chosen: Vec::new(),
        };
        let (mut active, mut silent) = (0..self.active.count(), self.active.count()..count);
        for number in 0..count {
            let actives_before = |number| number * self.active.count() / count;
            let due = actives_before(number + 1) > actives_before(number);
            let keys = if due { &mut active } else { &mut silent };
            let key = keys.next().expect("these are all");
            watcher.add(key, members.fd(key), Want::Read);
            if number % 1000 == 0 {
                watcher.look();
            }
        }
        watcher.settle();
        for key in 0..self.active.count() {
            watcher.await_again(key, Want::Read);
        }
        members
    }
}

/// The registrations of a side.
struct Members {
    active: Signals,
    silent: Rc<Vec<OwnedFd>>,
    /// Oldest first, at the beginning.
    keys: VecDeque<usize>,
    /// Keys of nobody.
    free: Vec<usize>,
    dice: Dice,
    /// Keys of the descriptors that were made ready last.
    chosen: Vec<usize>,
}

impl Members {
    fn fd(&self, key: usize) -> BorrowedFd<'_> {
        match key.checked_sub(self.active.len()) {
            None => self.active.get(key),
            Some(key) => self.silent[key % self.silent.len()].as_fd(),
        }
    }

    /// Makes so many different descriptors ready.
    fn signal(&mut self, count: usize) {
        self.chosen.clear();
        // One from each of `count` equal parts: different ones without a search.
        let part = self.active.len() / count;
        for index in 0..count {
            let key = index * part + self.dice.below(part);
            self.active.signal(key);
            self.chosen.push(key);
        }
    }

    /// The tasks of what was ready wait again.
    fn await_again<W: Watcher>(&self, watcher: &mut W) {
        for &key in &self.chosen {
            self.active.drain(key);
            watcher.await_again(key, Want::Read);
        }
    }

    /// Registers one more, and returns its key.
    fn come<W: Watcher>(&mut self, watcher: &mut W) -> usize {
        let key = self.free.pop().expect("as many go as come");
        watcher.add(key, self.fd(key), Want::Read);
        key
    }

    fn go<W: Watcher>(&mut self, watcher: &mut W, key: usize) {
        watcher.remove(key, self.fd(key));
        self.free.push(key);
    }
}

struct Sparse {
    crowd: Crowd,
    ready: usize,
}

impl Workload for Sparse {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut watcher = watcher();
        let members = self.crowd.join(&mut watcher);
        Box::new(SparseSide {
            watcher,
            members,
            ready: self.ready,
        })
    }
}

struct SparseSide<W> {
    watcher: W,
    members: Members,
    ready: usize,
}

impl<W: Watcher> Side for SparseSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            self.members.signal(self.ready);
            timed(&mut total, || collect(&mut self.watcher, self.ready));
            self.members.await_again(&mut self.watcher);
        }
        total
    }
}

struct Busy {
    crowd: Crowd,
}

impl Workload for Busy {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut watcher = watcher();
        let members = self.crowd.join(&mut watcher);
        Box::new(BusySide {
            watcher,
            members,
            young: VecDeque::new(),
        })
    }
}

struct BusySide<W> {
    watcher: W,
    members: Members,
    /// Those that came, oldest first.
    young: VecDeque<usize>,
}

impl<W: Watcher> BusySide<W> {
    fn turn(&mut self) {
        let BusySide {
            watcher,
            members,
            young,
        } = self;
        collect(watcher, EVENTS);
        young.extend((0..COMERS).map(|_| members.come(watcher)));
        let goers = young.len().saturating_sub(COMERS * LIFE);
        for key in young.drain(..goers) {
            members.go(watcher, key);
        }
    }
}

impl<W: Watcher> Side for BusySide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            self.members.signal(EVENTS);
            timed(&mut total, || self.turn());
            self.members.await_again(&mut self.watcher);
        }
        total
    }
}

struct Among {
    crowd: Crowd,
    leaving: Leaving,
}

impl Workload for Among {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut watcher = watcher();
        let members = self.crowd.join(&mut watcher);
        Box::new(AmongSide {
            watcher,
            members,
            leaving: self.leaving,
        })
    }
}

struct AmongSide<W> {
    watcher: W,
    members: Members,
    leaving: Leaving,
}

impl<W: Watcher> AmongSide<W> {
    fn batch(&mut self) {
        let AmongSide {
            watcher,
            members,
            leaving,
        } = self;
        for _ in 0..BATCH {
            let key = members.come(watcher);
            members.keys.push_back(key);
        }
        watcher.look();
        for _ in 0..BATCH {
            let key = members.next_to_go(*leaving);
            members.go(watcher, key);
        }
        watcher.look();
    }
}

impl Members {
    fn next_to_go(&mut self, leaving: Leaving) -> usize {
        let key = match leaving {
            Leaving::Youngest => self.keys.pop_back(),
            Leaving::Oldest => self.keys.pop_front(),
            Leaving::Random => {
                let index = self.dice.below(self.keys.len());
                self.keys.swap_remove_back(index)
            }
        };
        key.expect("there are more than go")
    }
}

impl<W: Watcher> Side for AmongSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        timed(&mut total, || {
            for _ in 0..iterations {
                self.batch();
            }
        });
        total
    }
}
