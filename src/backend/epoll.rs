//! The epoll backend: for kernels and containers that refuse io_uring, and, as [`Entries`], for what
//! a ring cannot watch.
//!
//! It speaks the seam's language: a poll is an `EPOLLET` entry, its end is a completion made here.
//! `epoll_ctl` takes effect at once, so nothing is kept back.
//!
//! # Whose entry is it?
//!
//! epoll knows an entry by descriptor number *and* file, and forgets it when the last descriptor of
//! the file is closed. So the number of a poll may come to name another file, with an entry of its
//! own, before the poll is cancelled: `owners` remembers which poll added the living entry of a
//! number, and only that one removes it. A second poll on the same descriptor, which epoll answers
//! with `EEXIST`, is entered through a duplicate, whose number may be one that was closed too early.
//!
//! A descriptor may be closed before the turn that removes its entry, as long as that comes after the
//! deregistration. If its file lives on by another descriptor, so does the entry, and nobody can remove
//! it. It is taken over by the next poll of that number and file, if there is one. Otherwise it goes on
//! to report what nobody asked for; when that has happened often enough to pay for it, the instance is
//! replaced, if there can be another.

use crate::backend::bell::{self, Bell};
use crate::backend::{Completion, Kernel, Place, Standing, Tag, Tier, Token, events, process};
use crate::shared::Shared;
use crate::sync::{Arc, Ordering};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events of entries that cannot be removed, beside one for each registration, for which the instance is
/// replaced.
const STRAYS: usize = 64;
/// Events taken with one call.
pub(super) const BATCH: usize = 1024;

const DOORBELL: Token = Token::new(Tag::Internal, 0, 0);
const SCOUT: Token = Token::new(Tag::Internal, 1, 0);

/// The entries of one epoll instance.
pub(crate) struct Entries {
    epoll: OwnedFd,
    /// By descriptor number: the poll that added the entry, or zero.
    owners: Vec<u64>,
    duplicates: HashMap<Token, OwnedFd>,
}

impl Entries {
    pub(crate) fn new() -> io::Result<Entries> {
        Ok(Entries {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            owners: Vec::new(),
            duplicates: HashMap::new(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Adds an entry.
    pub(crate) fn add(&mut self, token: Token, fd: RawFd, events: u16) -> Result<(), Errno> {
        // SAFETY: the descriptor is the user's, who promised to keep it open until it is
        // deregistered. If it is not, its number names another file or none, as numbers do for
        // `epoll_ctl`; memory is not at stake, and `owners` keeps strangers apart.
        let source = unsafe { BorrowedFd::borrow_raw(fd) };
        match self.take_place(token, source, events) {
            Err(Errno::EXIST) => {
                let duplicate = rustix::io::fcntl_dupfd_cloexec(source, 0)?;
                self.take_place(token, duplicate.as_fd(), events)?;
                self.duplicates.insert(token, duplicate);
                Ok(())
            }
            result => result,
        }
    }

    /// Enters a poll by that number. What a poll which has ended left there is taken over.
    fn take_place(&mut self, token: Token, fd: BorrowedFd<'_>, events: u16) -> Result<(), Errno> {
        let number = fd.as_raw_fd();
        match self.enter(token, fd, events) {
            Err(Errno::EXIST) if !self.is_owned(number) => {
                epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), flags(events))?;
            }
            result => result?,
        }
        self.own(number, token);
        Ok(())
    }

    /// Shows the news of a file that is watched elsewhere. An error if there is such an entry.
    pub(crate) fn show(&self, token: Token, fd: RawFd, events: u16) -> Result<(), Errno> {
        // SAFETY: as in `add`.
        self.enter(token, unsafe { BorrowedFd::borrow_raw(fd) }, events)
    }

    /// Removes the entry that `show` has made.
    pub(crate) fn hide(&self, fd: RawFd) {
        if !self.is_owned(fd) {
            // SAFETY: as in `add`.
            self.ignore(unsafe { BorrowedFd::borrow_raw(fd) });
        }
    }

    /// The entry of that number, if there is one, is a poll's.
    fn is_owned(&self, fd: RawFd) -> bool {
        self.owners
            .get(fd as usize)
            .is_some_and(|owner| *owner != 0)
    }

    /// The entry of that number is that poll's. Another's, if there was one, went with its file.
    fn own(&mut self, fd: RawFd, token: Token) {
        let index = fd as usize;
        if self.owners.len() <= index {
            self.owners.resize(index + 1, 0);
        }
        self.owners[index] = token.0;
    }

    /// True if the entry of that number was that poll's, which it is no more.
    fn disown(&mut self, fd: RawFd, token: Token) -> bool {
        let owner = self.owners.get_mut(fd as usize);
        owner.is_some_and(|owner| {
            let owned = *owner == token.0;
            if owned {
                *owner = 0;
            }
            owned
        })
    }

    /// Adds the entry of something that is not a registration's. Twice is once.
    pub(crate) fn watch(&self, token: Token, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        match self.enter(token, fd, events::IN) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    /// Removes such an entry.
    fn ignore(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn enter(&self, token: Token, fd: BorrowedFd<'_>, events: u16) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token.0), flags(events))
    }

    /// Removes the entry of that poll, if it has one.
    pub(crate) fn remove(&mut self, token: Token, fd: RawFd) {
        if self.disown(fd, token) {
            // SAFETY: as in `add`. If the user closed the descriptor the entry went with it, and
            // this call removes nothing: whoever entered the number anew would own it.
            let source = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = epoll::delete(&self.epoll, source);
        } else if let Some(duplicate) = self.duplicates.remove(&token) {
            self.disown(duplicate.as_raw_fd(), token);
            // Closing a duplicate removes nothing: its file has other descriptors.
            let _ = epoll::delete(&self.epoll, duplicate);
        }
    }

    /// Adds what is ready to `batch`. Returns how many events there were.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        batch: &mut Vec<Completion>,
    ) -> Result<usize, Errno> {
        let timeout = match timeout {
            // `epoll_wait` counts milliseconds, up to an `i32` of them. `epoll_pwait2` would not, but
            // comes with Linux 5.11, and not through every filter.
            Some(timeout) if !is_whole_milliseconds(timeout) => {
                self.sleep(timeout)?;
                Some(Duration::ZERO)
            }
            timeout => timeout,
        };
        let timeout = timeout.map(timespec);
        let mut buffer = [MaybeUninit::uninit(); BATCH];
        let (events, _) = epoll::wait(&self.epoll, &mut buffer, timeout.as_ref())?;
        batch.extend(events.iter().map(|event| Completion {
            token: Token(event.data.u64()),
            result: { event.flags }.bits() as i32,
            more: true,
        }));
        Ok(events.len())
    }

    /// Sleeps until there is something to take, to the nanosecond, as far as the system has them.
    fn sleep(&self, timeout: Duration) -> Result<(), Errno> {
        poll(
            &mut [PollFd::new(&self.epoll, PollFlags::IN)],
            Some(&timespec(timeout)),
        )?;
        Ok(())
    }

    /// Removes every poll's entry.
    pub(crate) fn clear(&mut self) {
        for (fd, owner) in self.owners.iter_mut().enumerate() {
            if std::mem::take(owner) != 0 {
                // SAFETY: as in `remove`.
                let source = unsafe { BorrowedFd::borrow_raw(fd as RawFd) };
                let _ = epoll::delete(&self.epoll, source);
            }
        }
        self.duplicates.clear();
    }

    /// In a child process: an instance of its own. The old one is the parent's as well, and what is
    /// done to it here happens there. Others may know its number, so the new one takes that over.
    pub(crate) fn replace(&mut self) -> io::Result<()> {
        let fresh = Entries::new()?;
        bell::replace(self.fd(), fresh.epoll)?;
        self.owners.clear();
        self.duplicates.clear();
        Ok(())
    }

    /// Whether epoll would take that file, which is what `file_can_poll` in the kernel says of it.
    pub(crate) fn accepts(&self, fd: BorrowedFd<'_>) -> bool {
        match epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(DOORBELL.0),
            EventFlags::empty(),
        ) {
            Ok(()) => {
                let _ = epoll::delete(&self.epoll, fd);
                true
            }
            Err(error) => error != Errno::PERM,
        }
    }
}

fn flags(events: u16) -> EventFlags {
    EventFlags::from_bits_retain(u32::from(events)) | EventFlags::ET
}

fn is_whole_milliseconds(timeout: Duration) -> bool {
    i32::try_from(timeout.as_millis()).is_ok() && timeout.subsec_nanos().is_multiple_of(1_000_000)
}

fn timespec(duration: Duration) -> Timespec {
    // More than the kernel's `i64` of seconds is for ever.
    Timespec::try_from(duration).unwrap_or(Timespec {
        tv_sec: i64::from(i32::MAX),
        tv_nsec: 0,
    })
}

pub(crate) struct Epoll {
    entries: Entries,
    /// Completions that `epoll_wait` does not know of: refusals and ends.
    made: Vec<Completion>,
    /// Events of entries that cannot be removed.
    strays: usize,
    /// Takes the place of `entries`, which has too many of those.
    successor: Option<Entries>,
    process: u32,
    shared: Arc<Shared>,
}

impl Epoll {
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Epoll> {
        Ok(Epoll {
            entries: new_entries(&shared.bell)?,
            made: Vec::new(),
            strays: 0,
            successor: None,
            process: process::generation(),
            shared,
        })
    }

    fn finish(&mut self, token: Token, error: Errno) {
        self.made.push(Completion::end(token, error.raw_os_error()));
    }
}

/// Those of an instance that watches what is the reactor's own.
fn new_entries(bell: &Bell) -> io::Result<Entries> {
    let entries = Entries::new()?;
    watch_own(&entries, bell)?;
    Ok(entries)
}

fn watch_own(entries: &Entries, bell: &Bell) -> io::Result<()> {
    entries.watch(DOORBELL, bell.fd())?;
    Ok(entries.watch(SCOUT, bell.scout.fd())?)
}

impl Kernel for Epoll {
    /// epoll asks the file itself before it reports, so a shared entry will do.
    fn separate_urgent(&self) -> bool {
        false
    }

    fn arm(&mut self, token: Token, fd: RawFd, events: u16, _: Tier) -> Place {
        self.shared.counters.entries.add(1);
        if let Err(error) = self.entries.add(token, fd, events) {
            self.finish(token, error);
        }
        Place::default()
    }

    fn cancel(&mut self, token: Token, fd: RawFd, _: Place) {
        self.shared.counters.entries.add(1);
        self.entries.remove(token, fd);
        self.finish(token, Errno::CANCELED);
    }

    fn insist(&mut self, _: Token, _: Place) {
        // `epoll_ctl` does not refuse.
    }

    fn close(&mut self, token: Token, fd: OwnedFd, _: Place) {
        drop(fd);
        self.made.push(Completion::end(token, 0));
    }

    fn wait(&mut self, timeout: Option<Duration>, batch: &mut Vec<Completion>) -> io::Result<()> {
        let timeout = if self.made.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        batch.append(&mut self.made);
        self.shared.counters.enters.add(1);
        let result = self.entries.wait(timeout, batch);
        match result {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn has_news(&self) -> bool {
        !self.made.is_empty()
    }

    fn look(&self) -> bool {
        let mut watched = [PollFd::new(&self.entries.epoll, PollFlags::IN)];
        let ready = poll(&mut watched, Some(&Timespec::default()));
        self.has_news() || ready != Ok(0)
    }

    fn stray(&mut self) {
        self.strays += 1;
        if self.strays > STRAYS
            && self.strays > self.shared.registered()
            && self.successor.is_none()
            && !self.shared.nested.load(Ordering::Relaxed)
        {
            // It costs time if there can be none, but no event: as many strays later this tries again.
            self.strays = 0;
            self.successor = new_entries(&self.shared.bell)
                .inspect_err(|error| tracing::debug!(%error, "no other instance can be had"))
                .ok();
        }
    }

    fn own(&mut self, _: Completion, _: &mut Vec<Completion>) {
        // The bell, or the scout, has done its work by ending the wait.
    }

    fn renew_scout(&mut self) {
        let scout = &self.shared.bell.scout;
        // A child process may keep the old one, which then does not go with its number.
        self.entries.ignore(scout.fd());
        scout.renew(|| watch_own(&self.entries, &self.shared.bell));
        // Its number is another's now.
        self.successor = None;
    }

    fn is_pollable(&mut self, fd: BorrowedFd<'_>) -> bool {
        self.entries.accepts(fd)
    }

    fn standing(&self) -> Standing {
        if self.process != process::generation() {
            Standing::Inherited
        } else if self.successor.is_some() && !self.shared.nested.load(Ordering::Relaxed) {
            // Who waits for an instance would not hear of another.
            Standing::Lost
        } else {
            Standing::Ready
        }
    }

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn salvage(&mut self, batch: &mut Vec<Completion>) {
        batch.append(&mut self.made);
    }

    fn rebuild(&mut self) -> io::Result<()> {
        let successor = self.successor.take();
        if self.standing() == Standing::Inherited {
            self.shared.bell.replace()?;
            self.entries.replace()?;
            watch_own(&self.entries, &self.shared.bell)?;
        } else if let Some(successor) = successor {
            self.entries = successor;
        }
        self.made.clear();
        self.strays = 0;
        self.process = process::generation();
        self.shared.counters.rebuilds.add(1);
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.entries.fd()
    }

    fn nest(&mut self) -> io::Result<Tier> {
        Ok(Tier::Near)
    }

    fn settle(&mut self) -> io::Result<bool> {
        Ok(self.made.is_empty())
    }

    fn shut_down(self: Box<Self>, _: bool) {}
}
