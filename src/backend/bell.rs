//! The bell: an eventfd that a parked reactor watches. With it comes the [`Scout`].

use crate::backend::process;
use crate::backend::scout::Scout;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    pub(crate) scout: Scout,
    /// For a reactor that lives on a thread of its own: the process of that thread, plus one.
    /// Nothing survives a fork that could turn such a reactor.
    home: AtomicU32,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        Ok(Bell {
            fd: new_eventfd()?,
            scout: Scout::new()?,
            home: AtomicU32::new(0),
        })
    }

    /// The descriptor to watch. It is never read: every ring is an edge.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn ring(&self) {
        signal(self.fd());
    }

    /// In a child process: takes what is the parent's out of this process's hands, under the same
    /// numbers, which others know.
    pub(crate) fn replace(&self) -> io::Result<()> {
        replace(self.fd(), new_eventfd()?)?;
        self.scout.replace()
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
