//! Rings that have ended and still hold files.
//!
//! The end of a ring is not the end of its polls: the kernel takes them down tens of milliseconds later,
//! and only then are their files let go. Each ring has a *sentinel* for that: the write end of a pipe
//! whose read end nobody but the ring holds, as a registered file. Those go last. Its `POLLERR` says that
//! the ring is gone.
//!
//! The files go one after the other then, the youngest of a batch first (`delayed_fput`), so a sentinel
//! may go before the rest. When that of a *follower*, a ring which ended after all of them had gone, has come
//! through the same queue, the batch is done.

use super::instance::{Instance, poll_add};
use super::{ENDING, Ring};
use crate::backend::epoll::Entries;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

/// The sentinels of rings that were replaced, or are the reactor's last.
#[derive(Default)]
pub(super) struct EndingRings {
    rings: Vec<OwnedFd>,
    followers: Vec<OwnedFd>,
}

impl EndingRings {
    pub(super) fn add(&mut self, sentinels: impl IntoIterator<Item = OwnedFd>) {
        self.rings.extend(sentinels);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rings.is_empty() && self.followers.is_empty()
    }

    /// They are another process's.
    pub(super) fn forget(&mut self) {
        *self = EndingRings::default();
    }

    /// Has a new ring watch all of them.
    pub(super) fn watch_on(&self, instance: &mut Instance) {
        for sentinel in self.rings.iter().chain(&self.followers) {
            instance.push(watch(sentinel));
        }
    }

    /// Has them show in the far tier as well.
    pub(super) fn expose_in(&self, far: &Entries) {
        for sentinel in self.rings.iter().chain(&self.followers) {
            // `POLLERR` comes unasked. Without memory for that they show in the ring alone.
            let _ = far.watch(ENDING, sentinel.as_fd());
        }
    }

    /// One of them has gone, it seems. What is yet to go is watched by the ring, and if need be in the far
    /// tier.
    pub(super) fn look(&mut self, instance: &mut Instance, far: Option<&Entries>) {
        let lingers = |sentinel: &OwnedFd| !is_gone(sentinel, Instant::now());
        let before = self.rings.len();
        self.rings.retain(lingers);
        self.followers.retain(lingers);
        if before > 0
            && self.rings.is_empty()
            && let Some(sentinel) = follower()
        {
            instance.push(watch(&sentinel));
            self.followers.push(sentinel);
            if let Some(far) = far {
                self.expose_in(far);
            }
        }
    }

    /// Waits until the rings are gone, whose files may not be.
    pub(super) fn await_rings(&self, deadline: Instant) {
        for sentinel in &self.rings {
            is_gone(sentinel, deadline);
        }
    }

    /// Waits until no file is held any more. False if that takes too long.
    pub(super) fn await_files(self, deadline: Instant) -> bool {
        let EndingRings { rings, followers } = self;
        let mut all = rings.iter().chain(&followers);
        let gone = all.all(|sentinel| is_gone(sentinel, deadline));
        gone & follower().is_none_or(|sentinel| is_gone(&sentinel, deadline))
    }
}

fn watch(sentinel: &OwnedFd) -> io_uring::squeue::Entry {
    poll_add(ENDING, sentinel.as_raw_fd(), 0)
}

/// The sentinel of a ring that ends here and now.
fn follower() -> Option<OwnedFd> {
    let mut follower = Instance::of(Ring::smallest().ok()?);
    follower.sentinel.take()
}

/// Whether the ring of that sentinel is gone; if not, after having waited for it.
fn is_gone(sentinel: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        // `POLLERR` comes unasked.
        let mut watched = [PollFd::new(sentinel, PollFlags::empty())];
        match poll(&mut watched, Some(&timeout)) {
            Err(Errno::INTR) => {}
            Ok(0) => return false,
            _ => return true,
        }
    }
}
