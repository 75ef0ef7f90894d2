//! The scout: an epoll instance that a parked reactor watches, and to which another thread gives a
//! descriptor instead of ringing the bell.
//!
//! To wake a processor that sleeps costs the caller more than ten microseconds, `epoll_ctl` one. So a
//! thread that registers with a parked reactor leaves the registration in the intake and the descriptor
//! here. The first news of one of these descriptors, or the first ring of the bell for another reason, wakes
//! the reactor, which drains the intake as always: takes the descriptors out of the scout, and watches them
//! itself. What was ready before that is reported then. That costs the reactor a call for each, and so does
//! leaving it here whoever registers; of many that come at once only the first few do, or none.
//!
//! So the scout is a doorbell that descriptors ring themselves. Nobody waits on it or reads its events,
//! and none need be: whoever watches an epoll instance is woken by every wake-up of an entry, also of one
//! that is known to be ready (`ep_poll_callback` in Linux 6.18), and by an entry that is ready when it
//! is added (`ep_insert`).
//!
//! # Whose entry is it?
//!
//! Of whoever added it, until the source is marked with
//! [`SCOUTED`](crate::source::intent::Intent::SCOUTED); then of whoever clears that bit. An entry
//! goes by the number of its descriptor, and a number can be closed and used again. So it is removed by
//! a `register` or `deregister`, which have a descriptor that is open, or by the reactor while it is
//! awake, when no more registrations are left here. If the reactor finds no entry of that number and
//! file, the descriptor was closed too early; another descriptor of its file may keep the entry alive,
//! and then nobody can remove it. The whole instance is replaced. If instead it finds the entry of another
//! registration, whose descriptor was given that number, it is that one's which it does not find.

use crate::backend::bell;
use crate::backend::process;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// No process.
const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Scout {
    epoll: OwnedFd,
    /// Whose it is. A child process must leave its parent's alone.
    process: AtomicU32,
}

impl Scout {
    pub(crate) fn new() -> io::Result<Scout> {
        Ok(Scout {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            process: AtomicU32::new(process::generation()),
        })
    }

    /// The descriptor to watch. Every event of what was added is an edge.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Adds what a registration for reading asks for. What is ready now is an event. False if that
    /// cannot be, for whatever reason: then there is the bell.
    pub(crate) fn add(&self, descriptor: BorrowedFd<'_>) -> bool {
        let events = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        self.is_ours() && epoll::add(&self.epoll, descriptor, EventData::new_u64(0), events).is_ok()
    }

    /// Removes it. False if there may be an entry that cannot be removed.
    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>) -> bool {
        !self.is_ours() || epoll::delete(&self.epoll, descriptor).is_ok()
    }

    /// Puts an empty instance of this process under the same number, which others know.
    pub(crate) fn replace(&self) -> io::Result<()> {
        bell::replace(self.fd(), epoll::create(CreateFlags::CLOEXEC)?)?;
        // Release: pairs with `is_ours`.
        self.process.store(process::generation(), Ordering::Release);
        Ok(())
    }

    /// As [`replace`](Scout::replace), and `watch` has the new instance watched. If that cannot be, no
    /// descriptors are taken any more.
    pub(crate) fn renew(&self, watch: impl FnOnce() -> io::Result<()>) {
        if let Err(error) = self.replace().and_then(|()| watch()) {
            tracing::warn!(%error, "registrations will have to wake the reactor from now on");
            self.retire();
        }
    }

    fn retire(&self) {
        self.process.store(NOBODY, Ordering::Relaxed);
    }

    fn is_ours(&self) -> bool {
        // Acquire: whoever is told so in a child process finds the child's instance.
        self.process.load(Ordering::Acquire) == process::generation()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::bell::new_eventfd;

    #[test]
    fn what_is_in_it_is_taken_once() {
        let scout = Scout::new().unwrap();
        let event = new_eventfd().unwrap();
        assert!(scout.add(event.as_fd()));
        assert!(!scout.add(event.as_fd()));
        assert!(scout.remove(event.as_fd()));
        assert!(!scout.remove(event.as_fd()));
    }

    #[test]
    fn one_that_has_retired_takes_nothing_until_it_is_replaced() {
        let scout = Scout::new().unwrap();
        let event = new_eventfd().unwrap();
        scout.retire();
        assert!(!scout.add(event.as_fd()));
        scout.replace().unwrap();
        assert!(scout.add(event.as_fd()));
    }
}
