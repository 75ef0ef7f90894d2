//! A ring, what is to be submitted to it, and what must end with it.

use super::list::{RUN, RUN_OF_CHILD};
use super::ring::Ring;
use crate::backend::{Completion, Tag, Token, process};
use crate::metrics::Counters;
use io_uring::squeue::{self, Flags};
use io_uring::{opcode, types};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// One turn takes no more completions than that before it dispatches them, give or take the last
/// harvest.
const BATCH: usize = 4096;

/// A ring with what must end with it.
pub(super) struct Instance {
    pub(super) ring: Ring,
    pub(super) sentinel: Option<OwnedFd>,
    /// The thread that owns the ring, once it is enabled.
    pub(super) owner: Option<u64>,
    pub(super) process: u32,
    backlog: VecDeque<squeue::Entry>,
    /// System calls that no counter has heard of.
    uncounted: u64,
    /// Polls that have not had their last completion, the backend's own aside.
    pub(super) polls: u32,
    /// Polls that were armed so far. Each ring has a count of its own, so that its lists are of one length
    /// whatever share of all polls it gets.
    armed: u32,
    /// [`RUN`].
    run: u32,
    /// Entries queued, entries submitted: positions in the stream of all entries.
    pushed: u64,
    submitted: u64,
    /// `CLOSE` entries that were queued, by position.
    closes: VecDeque<(u64, RawFd)>,
    pub(super) broken: bool,
    /// It has made room for a successor, and must not be used.
    pub(super) ended: bool,
}

impl Instance {
    pub(super) fn new() -> io::Result<Instance> {
        Ok(Instance::of(Ring::new()?))
    }

    pub(super) fn of(ring: Ring) -> Instance {
        // Without a descriptor to spare the end of this ring will go unwatched.
        let sentinel = pipe_with(PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|(read, write)| ring.register_file(read.as_fd()).map(|()| write))
            .ok();
        Instance {
            ring,
            sentinel,
            owner: None,
            process: process::generation(),
            backlog: VecDeque::new(),
            uncounted: 0,
            polls: 0,
            armed: 0,
            run: RUN,
            pushed: 0,
            submitted: 0,
            closes: VecDeque::new(),
            broken: false,
            ended: false,
        }
    }

    pub(super) fn child(ring: Ring) -> Instance {
        let mut child = Instance::of(ring);
        child.run = RUN_OF_CHILD;
        child
    }

    /// Arms a poll, and returns the list that it is in.
    #[inline]
    pub(super) fn arm(&mut self, token: Token, fd: RawFd, events: u16) -> u8 {
        let list = (self.armed >> self.run) as u8;
        self.armed = self.armed.wrapping_add(1);
        self.polls += 1;
        self.push(poll_add(token.in_list(list), fd, events));
        list
    }

    pub(super) fn close(&mut self, token: Token, fd: OwnedFd) {
        let fd = fd.into_raw_fd();
        self.closes.push_back((self.pushed, fd));
        let entry = opcode::Close::new(types::Fd(fd)).build();
        self.push(entry.user_data(token.0));
    }

    /// Queues an entry that ends a poll, and answers only if it does not.
    #[inline]
    pub(super) fn remove(&mut self, token: Token, entry: squeue::Entry) {
        let entry = entry.flags(Flags::SKIP_SUCCESS);
        self.push(entry.user_data(token.tagged(Tag::Cancel).0));
    }

    /// Queues an entry, which refers to nothing but descriptors.
    // Inlined, with all that makes entries: so an entry is written where it belongs. Made elsewhere by
    // narrow stores and copied by wide loads, it would cost the processor a dozen cycles to tell which
    // bytes are whose.
    #[inline(always)]
    pub(super) fn push(&mut self, entry: squeue::Entry) {
        self.pushed += 1;
        if self.has_room() || self.make_room() {
            self.push_to_ring(&entry);
        } else {
            self.push_to_backlog(entry);
        }
    }

    fn has_room(&self) -> bool {
        self.backlog.is_empty() && self.ring.free() > 0
    }

    /// Hands over what is there. Whatever comes of it, the order is kept.
    #[cold]
    fn make_room(&mut self) -> bool {
        if self.ring.free() == 0 {
            self.uncounted += 1;
            let result = self.ring.submit();
            self.note_submitted(&result);
            self.refill();
        }
        self.has_room()
    }

    #[cold]
    fn push_to_backlog(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
    }

    #[inline]
    fn refill(&mut self) {
        if !self.backlog.is_empty() {
            self.refill_from_backlog();
        }
    }

    #[cold]
    fn refill_from_backlog(&mut self) {
        while self.ring.free() > 0
            && let Some(entry) = self.backlog.pop_front()
        {
            self.push_to_ring(&entry);
        }
    }

    #[inline(always)]
    fn push_to_ring(&mut self, entry: &squeue::Entry) {
        // SAFETY: `push` takes entries that refer to descriptors only. A descriptor that is closed
        // before the entry is submitted makes it fail or, if its number was used again, poll another
        // file; neither touches memory.
        unsafe { self.ring.push(entry) };
    }

    fn note_submitted(&mut self, result: &io::Result<u32>) {
        if let Ok(count) = result {
            self.submitted += u64::from(*count);
            while self
                .closes
                .front()
                .is_some_and(|(position, _)| *position < self.submitted)
            {
                self.closes.pop_front();
            }
        }
    }

    #[inline(always)]
    fn counted_enter(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
        counters: &Counters,
    ) -> io::Result<()> {
        counters.enters.add(1 + std::mem::take(&mut self.uncounted));
        self.enter(want, timeout)
    }

    #[inline(always)]
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.refill();
        let result = self.ring.enter(want, timeout);
        self.note_submitted(&result);
        result.map(drop)
    }

    pub(super) fn reap(&mut self, batch: &mut Vec<Completion>) -> u32 {
        let harvest = self.ring.reap(batch);
        self.polls = self.polls.saturating_sub(harvest.ended);
        harvest.count
    }

    pub(super) fn has_requests(&self) -> bool {
        self.ring.queued() > 0 || !self.backlog.is_empty()
    }

    pub(super) fn has_news(&self) -> bool {
        self.ring.has_completions() || self.ring.has_work()
    }

    /// Hands over all requests and adds to `batch` what there is, for which it waits if `block` says
    /// so.
    #[inline(always)]
    pub(super) fn serve(
        &mut self,
        block: bool,
        timeout: Option<Duration>,
        batch: &mut Vec<Completion>,
        counters: &Counters,
    ) -> io::Result<()> {
        self.refill();
        // What finds no room in the queue even now must not wait for an event.
        let block = block && self.backlog.is_empty();
        let mut result = Ok(());
        let work = !self.ring.has_completions() && self.ring.has_work();
        // Requests may have been handed over since the last time, and the call that follows mends it.
        let overflowed = self.ring.has_overflowed();
        if block || self.ring.queued() > 0 || work {
            result = self.counted_enter(u32::from(block), timeout, counters);
        }
        let harvest = self.reap(batch);
        if overflowed || self.ring.has_overflowed() {
            counters.overflows.add(1);
        }
        if result.is_ok() && self.leaves_work(harvest) {
            result = self.serve_rest(harvest, batch, counters);
        }
        result.or_else(|error| self.excuse(error))
    }

    /// Normally a harvest is all that there is. One as large as a call can bring leaves work behind, and
    /// so does an overflow.
    fn leaves_work(&self, harvest: u32) -> bool {
        harvest > 0 && (harvest >= self.ring.harvest_limit() || self.ring.has_overflowed())
    }

    #[inline(never)]
    fn serve_rest(
        &mut self,
        mut harvest: u32,
        batch: &mut Vec<Completion>,
        counters: &Counters,
    ) -> io::Result<()> {
        while self.leaves_work(harvest) && batch.len() < BATCH {
            let result = self.counted_enter(0, None, counters);
            harvest = self.reap(batch);
            result?;
        }
        Ok(())
    }

    /// What a turn makes of that error.
    #[cold]
    fn excuse(&mut self, error: io::Error) -> io::Result<()> {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            // A signal, the end of the wait, or a shortage that the next turn tries anew.
            Some(Errno::INTR | Errno::TIME | Errno::AGAIN | Errno::BUSY) => Ok(()),
            // Completions were lost, or the ring is another thread's after all: start over.
            Some(Errno::BADR | Errno::EXIST) => {
                self.broken = true;
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Hands over all requests. False if there is something to say.
    pub(super) fn settle(&mut self, counters: &Counters) -> io::Result<bool> {
        self.refill();
        if self.ring.queued() > 0 {
            let result = self.counted_enter(0, None, counters);
            result.or_else(|error| self.excuse(error))?;
        }
        Ok(!self.has_news() && !self.has_requests())
    }

    /// This is the thread that owns the ring.
    pub(super) fn is_at_home(&self) -> bool {
        self.process == process::generation() && self.owner == Some(process::thread())
    }

    /// Ends the ring, ahead of its successor. What is left is good for nothing but a drop.
    pub(super) fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // An index in this thread's table would keep the ring, and so its files, alive.
        if self.is_at_home() {
            self.ring.unregister();
        }
        // A `CLOSE` that was not submitted has not closed anything, here or in a parent.
        for (position, fd) in self.closes.drain(..) {
            if position >= self.submitted {
                // SAFETY: `close` took the `OwnedFd` apart, and the entry that was to close it will
                // never be submitted.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: a child ends in its drop. Of the main ring `standing` says `Lost` from here on, or
        // `Inherited`, and then only `salvage` and `unpin`, which look at `ended`, and `rebuild`, which
        // replaces this, come to the instance.
        unsafe { self.ring.end() };
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.end();
    }
}

#[inline(always)]
pub(super) fn poll_add(token: Token, fd: RawFd, events: u16) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(fd), u32::from(events))
        .multi(true)
        .build()
        .user_data(token.0)
}
