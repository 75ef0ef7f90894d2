//! Who is compared, below tasks: each waits for descriptors in its own way, behind one trait.
//!
//! The workloads are generic over [`Watcher`], so that what is measured is compiled for each peer
//! alone and no call in it is dynamic.

mod epoll;
mod mio;
mod ours;
mod polling;
mod ring;

use crate::measure::{Contender, Side};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;
use uring_reactor::Backend;

pub(crate) use ours::{Ours, Wakers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Ours,
    /// One of ours that could move to another thread between two turns.
    OursMovable,
    /// Our own epoll backend.
    OursOnEpoll,
    /// `epoll_wait` in a loop.
    Epoll,
    /// `io_uring_enter` in a loop.
    Ring,
    /// The same with the trick that lets one call harvest more than 20 completions.
    LaggedRing,
    Mio,
    Polling,
}

impl Contender for Peer {
    const OURS: Peer = Peer::Ours;

    fn name(self) -> &'static str {
        match self {
            Peer::Ours => "uring-reactor",
            Peer::OursMovable => "own, movable",
            Peer::OursOnEpoll => "own epoll backend",
            Peer::Epoll => "bare epoll",
            Peer::Ring => "bare ring",
            Peer::LaggedRing => "bare ring, lagged head",
            Peer::Mio => "mio",
            Peer::Polling => "polling",
        }
    }

    fn is_limit(self) -> bool {
        matches!(self, Peer::Ring | Peer::LaggedRing)
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Read,
    Both,
}

/// A thing that waits for descriptors, edge-triggered. `key` is the caller's name for a descriptor.
pub(crate) trait Watcher: 'static {
    /// May wait for its turn, the next `look` or `wait`, to become true.
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want);

    /// As `add`, in that it may wait for its turn.
    fn remove(&mut self, key: usize, fd: BorrowedFd<'_>);

    /// Ends the watch and closes the descriptor, perhaps in the next turn.
    fn close(&mut self, key: usize, fd: OwnedFd);

    /// One wait that sleeps until there is something. Goes through the events and counts them.
    fn wait(&mut self) -> usize;

    /// As `wait`, without sleeping.
    fn look(&mut self) -> usize;

    /// As `wait`, and appends the keys of what is ready.
    fn wait_for_keys(&mut self, ready: &mut Vec<usize>);

    /// A task would poll now, and so leave its waker. With no wakers there is nothing to do.
    fn await_again(&mut self, _key: usize, _want: Want) {}

    /// Turns until everything that was asked for has been done.
    fn settle(&mut self) {
        self.look();
    }

    /// Calls of wakers so far, if there are wakers.
    fn woken(&self) -> Option<usize> {
        None
    }

    /// True if any number of registrations on one descriptor cost no descriptors.
    fn shares_descriptors(&self) -> bool {
        false
    }

    /// System calls made so far to wait, to register, to deregister and to close, if that is known.
    fn system_calls(&self) -> Option<u64> {
        None
    }
}

/// Makes a watcher on the thread that it is going to wait on.
pub(crate) trait Make<W>: FnOnce() -> W + Send + 'static {}

impl<W, F: FnOnce() -> W + Send + 'static> Make<W> for F {}

/// A watcher that other threads may register with.
pub(crate) trait Shared: Watcher {
    type Remote: Remote;

    fn remote(&self) -> Self::Remote;
}

/// A watcher as another thread has it.
pub(crate) trait Remote: Send + 'static {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want);
    fn remove(&mut self, key: usize, fd: BorrowedFd<'_>);
    /// Makes the watcher's current wait, or its next one, return.
    fn wake(&self);
}

/// A workload: how it is done with any watcher.
pub(crate) trait Workload {
    /// What the wakers of ours do.
    const WAKERS: Wakers = Wakers::Count;

    /// How long ours looks for events before it sleeps.
    const SPIN: Duration = Duration::ZERO;

    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side>;
}

/// A workload with another thread.
pub(crate) trait SharedWorkload {
    fn side<W: Shared>(&self, watcher: impl Make<W>) -> Box<dyn Side>;
}

impl Peer {
    pub(crate) fn side<L: Workload>(self, workload: &L) -> Box<dyn Side> {
        match self {
            Peer::Ours => workload.side(|| Ours::new(Backend::Uring, L::WAKERS, L::SPIN)),
            Peer::OursMovable => workload.side(|| Ours::movable(L::WAKERS)),
            Peer::OursOnEpoll => workload.side(|| Ours::new(Backend::Epoll, L::WAKERS, L::SPIN)),
            Peer::Epoll => workload.side(epoll::Epoll::new),
            Peer::Ring => workload.side(|| ring::Ring::new(ring::Head::Exact)),
            Peer::LaggedRing => workload.side(|| ring::Ring::new(ring::Head::Lagged)),
            Peer::Mio => workload.side(mio::Mio::new),
            Peer::Polling => workload.side(polling::Polling::new),
        }
    }

    pub(crate) fn shared_side(self, workload: &impl SharedWorkload) -> Box<dyn Side> {
        match self {
            Peer::Ours => workload.side(|| Ours::shared(Backend::Uring)),
            Peer::OursOnEpoll => workload.side(|| Ours::shared(Backend::Epoll)),
            Peer::Epoll => workload.side(epoll::Epoll::new),
            Peer::Mio => workload.side(mio::Mio::new),
            Peer::Polling => workload.side(polling::Polling::new),
            Peer::Ring | Peer::LaggedRing | Peer::OursMovable => {
                unreachable!("not a peer of such a workload")
            }
        }
    }
}
