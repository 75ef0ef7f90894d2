//! What a registration costs in memory, with N of them.
//!
//! - `memory/N`: bytes of the heap, the descriptor's owner included: `AsyncFd` against tokio's and
//!   async-io's. Counted by the allocator.
//! - `memory/N/kernel`: bytes of the kernel: a poll against an entry of epoll. The growth of the
//!   unreclaimable slabs of the kernel, of the whole machine, and so no better than the machine is quiet.
//!
//! There are not 100 000 descriptors: ours has several registrations on each, and the peers have one
//! on as many as there are. In the table, figures are bytes.

use super::Entry;
use crate::allocator;
use crate::measure::{Contender, Side, Spread, median};
use crate::peers::{Make, Peer, Want, Watcher, Workload};
use crate::report::{Row, Unit};
use crate::runtimes::Runtime;
use crate::system::{descriptors_to_spare, event_fds};
use std::cell::Cell;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use uring_reactor::{AsyncFd, Backend, Reactor};

const SAMPLES: usize = 5;

pub(super) fn entries() -> Vec<Entry> {
    let sizes = [10_000, 100_000];
    let heap = sizes.map(|size| {
        let name = format!("memory/{size}");
        Entry::new(name, size == 10_000, move |name, _| heap(name, size))
    });
    let kernel = sizes.map(|size| {
        let name = format!("memory/{size}/kernel");
        Entry::new(name, size == 10_000, move |name, _| kernel(name, size))
    });
    heap.into_iter().chain(kernel).collect()
}

fn fds_for(size: usize) -> Vec<OwnedFd> {
    event_fds(size.min(descriptors_to_spare() as usize))
}

fn heap(name: &str, size: usize) -> Vec<Row> {
    let fds = fds_for(size);
    let ours = ours(size, &fds);
    let row = |peer: Runtime, theirs: f64| Row {
        workload: name.to_owned(),
        peer: peer.name(),
        spread: Spread::exact(theirs / ours),
        ours,
        theirs,
        of_limit: None,
        unit: Unit::Bytes,
    };
    vec![
        row(Runtime::Tokio, tokio(&fds)),
        row(Runtime::AsyncIo, async_io(&fds)),
    ]
}

/// Bytes each.
fn each<'a, T>(
    count: usize,
    fds: &'a [OwnedFd],
    mut register: impl FnMut(BorrowedFd<'a>) -> T,
    turn: impl FnOnce(),
) -> f64 {
    let (bytes, registered) = allocator::growth(|| {
        let mut registered = Vec::with_capacity(count);
        registered.extend((0..count).map(|index| register(fds[index % fds.len()].as_fd())));
        // What is kept for a registration may be made when the kernel is told.
        turn();
        registered
    });
    drop(registered);
    bytes as f64 / count as f64
}

fn ours(count: usize, fds: &[OwnedFd]) -> f64 {
    let reactor = Reactor::builder().backend(Backend::Uring).build();
    let mut reactor = reactor.expect("this system has the backend");
    let handle = reactor.handle();
    each(
        count,
        fds,
        |fd| AsyncFd::with_handle(fd, &handle).expect("the reactor lives"),
        || {
            while reactor.turn(Some(Duration::ZERO)).expect("a turn").events() > 0 {}
        },
    )
}

fn tokio(fds: &[OwnedFd]) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("an epoll instance can be made");
    let _entered = runtime.enter();
    each(
        fds.len(),
        fds,
        |fd| {
            // SAFETY: the descriptors stay open for longer than this.
            let registered = unsafe { tokio::io::unix::AsyncFd::register(fd) };
            registered.expect("the runtime lives")
        },
        || {},
    )
}

fn async_io(fds: &[OwnedFd]) -> f64 {
    each(
        fds.len(),
        fds,
        |fd| async_io::Async::new_nonblocking(fd).expect("the reactor lives"),
        || {},
    )
}

fn kernel(name: &str, size: usize) -> Vec<Row> {
    const PEERS: [Peer; 2] = [Peer::Epoll, Peer::Ring];
    let workload = Registered {
        size,
        fds: Rc::new(fds_for(size)),
        bytes: Rc::default(),
    };
    // All of them stay to the end: what one frees the next would use, and not ask for.
    let mut alive = Vec::new();
    let mut sample = |peer: Peer| {
        alive.push(peer.side(&workload));
        workload.bytes.get()
    };
    let rounds: Vec<(f64, [f64; 2])> = (0..SAMPLES)
        .map(|_| (sample(Peer::OURS), PEERS.map(&mut sample)))
        .collect();
    let rows = PEERS.iter().enumerate().map(|(index, peer)| {
        let of = |round: &(f64, [f64; 2])| round.1[index];
        Row {
            workload: name.to_owned(),
            peer: peer.name(),
            spread: Spread::of(rounds.iter().map(|round| of(round) / round.0).collect()),
            ours: median(rounds.iter().map(|round| round.0).collect()),
            theirs: median(rounds.iter().map(of).collect()),
            of_limit: None,
            unit: Unit::Bytes,
        }
    });
    rows.collect()
}

/// Registers, and leaves in `bytes` what that cost.
struct Registered {
    size: usize,
    fds: Rc<Vec<OwnedFd>>,
    bytes: Rc<Cell<f64>>,
}

impl Workload for Registered {
    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let mut watcher = watcher();
        let count = if watcher.shares_descriptors() {
            self.size
        } else {
            self.fds.len()
        };
        watcher.look();
        let before = slabs();
        for key in 0..count {
            let fd = &self.fds[key % self.fds.len()];
            watcher.add(key, fd.as_fd(), Want::Read);
        }
        watcher.settle();
        self.bytes.set((slabs() - before) / count as f64);
        Box::new(Alive {
            _watcher: watcher,
            _fds: Rc::clone(&self.fds),
        })
    }
}

/// Bytes that the kernel has in slabs, but for caches that it would give up.
fn slabs() -> f64 {
    let memory = fs::read_to_string("/proc/meminfo").expect("proc is mounted");
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("SUnreclaim:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.and_then(|number| number.parse::<f64>().ok());
    kilobytes.expect("the kernel tells") * 1024.0
}

/// Does nothing but be there.
struct Alive<W> {
    _watcher: W,
    _fds: Rc<Vec<OwnedFd>>,
}

impl<W> Side for Alive<W> {
    fn run(&mut self, _: u32) -> Duration {
        Duration::ZERO
    }
}
