//! The bell: an eventfd that a parked reactor watches.
//!
//! A ring's own descriptor is of no use to another event loop (see `uring`), so such a reactor has a
//! second eventfd, the *notifier*, which its ring signals when there is something to reap. The bell
//! signals it as well: what the ring does on account of a signalled eventfd it may not do by
//! signalling another at once (`eventfd_signal_allowed` in the kernel), only some milliseconds later.

use crate::backend::process;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    notifier: OnceLock<OwnedFd>,
    /// For a reactor that lives on a thread of its own: the process of that thread, plus one.
    /// Nothing survives a fork that could turn such a reactor.
    home: AtomicU32,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        Ok(Bell {
            fd: new_eventfd()?,
            notifier: OnceLock::new(),
            home: AtomicU32::new(0),
        })
    }

    /// The descriptor to watch. It is never read: every ring is an edge.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The descriptor for other loops, once [`set_notifier`](Bell::set_notifier) was called.
    pub(crate) fn notifier(&self) -> Option<BorrowedFd<'_>> {
        self.notifier.get().map(OwnedFd::as_fd)
    }

    pub(crate) fn set_notifier(&self, notifier: OwnedFd) {
        // There is one backend a bell.
        let _ = self.notifier.set(notifier);
    }

    /// Wakes the reactor, and the loop that it is nested in, if it is.
    pub(crate) fn ring(&self, nested: bool) {
        signal(self.fd());
        if nested && let Some(notifier) = self.notifier() {
            signal(notifier);
        }
    }

    /// In a child process: takes the parent's eventfds out of this process's hands, under the same
    /// numbers, which others know.
    pub(crate) fn replace(&self) -> io::Result<()> {
        replace(self.fd(), new_eventfd()?)?;
        match self.notifier() {
            Some(notifier) => replace(notifier, new_eventfd()?),
            None => Ok(()),
        }
    }

    /// Only a thread of this process turns the reactor from now on.
    pub(crate) fn settle_down(&self) {
        self.home
            .store(process::generation() + 1, Ordering::Relaxed);
    }

    /// True in a process forked from that of the thread that turned the reactor.
    pub(crate) fn is_orphaned(&self) -> bool {
        let home = self.home.load(Ordering::Relaxed);
        home != 0 && home != process::generation() + 1
    }
}

pub(crate) fn new_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes an eventfd readable.
pub(crate) fn signal(eventfd: BorrowedFd<'_>) {
    // It can only fail with `EAGAIN`, after 2^64 - 2 signals: then it is readable anyway.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

/// Puts another file under a descriptor that others know by its number.
pub(crate) fn replace(old: BorrowedFd<'_>, new: OwnedFd) -> io::Result<()> {
    // SAFETY: the alias is not dropped, so the number keeps its one owner; and that owner, from whom
    // `old` is borrowed, goes on to own whatever file is under it.
    let mut alias = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(old.as_raw_fd()) });
    Ok(rustix::io::dup3(
        new,
        &mut alias,
        rustix::io::DupFlags::CLOEXEC,
    )?)
}
